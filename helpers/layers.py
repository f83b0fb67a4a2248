"""What a network is beside its weights: layers and their settings, ties. Described, compared, rebuilt.

Compression changes the shapes of layers. What it does not change (pooling, activation, dropout) must be the
same in the network that the weights are read into, or it computes something else.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers.files import digest
from helpers.networks import check_plain

_CONVOLUTION = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("padding_mode", "bias"),
)
_RUNNING = ("num_features", "eps", "momentum", "affine", "track_running_stats")
SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {  # the constructor's, of layers whose shape may change
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _CONVOLUTION),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), (*_CONVOLUTION, "output_padding")
    ),
    nn.Linear: ("in_features", "out_features", "bias"),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _RUNNING),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _RUNNING),
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine", "bias"),
    nn.RMSNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.PReLU: ("num_parameters",),
}
KINDS = {kind.__name__: kind for kind in SETTINGS}
WITHOUT_EFFECT = ("training", "inplace", "device", "recipe")  # on what a network computes
OF_MODULES = frozenset((*dir(nn.Module), *vars(nn.Module())))  # what every module has
OF_TOOLS = (  # how private attributes begin that torch, accelerate and transformers hang on anybody's module
    *("__", "_flat_weight", "_dynamo", "_torchdynamo", "_is_accelerate", "_original_forward", "_old_forward"),
    *("_hf_", "_is_hf_", "_use_kernels"),
)
PARTS = ("layers", "settings", "private", "weights", "shared", "ties")  # of a description
CACHED = re.compile(r"\(.*\btensor [0-9a-f]")  # a private list or dict that holds tensors


def describe(model: nn.Module) -> dict:
    """Describe a network in what JSON can say.

    Returns:
        layers: {name: its type and constructor arguments} of those whose shape compression may change;
        settings: {name: its type and plain public attributes} of all other modules; private: {name: the
        private ones} of those that are not torch's; weights: {name: shape} of theirs; shared: lists of the
        names of modules that have several; ties: of weights that have several.

    Raises:
        ValueError: a layer's weight is not a plain parameter, or modules lie where PyTorch does not see them.
    """
    modules = list(model.named_modules(remove_duplicate=False))
    check_plain(model)
    described, seen = layers(model), {id(layer) for _, layer in modules}
    others = [(name, layer) for name, layer in modules if name not in described]
    parts = {
        "layers": described,
        "settings": {name: _settings(name, layer) for name, layer in others},
        "private": {name: _private(name, layer, seen) for name, layer in others},
        "weights": {
            name: list(tensor.shape)
            for name, tensor in model.state_dict(keep_vars=True).items()
            if _owner(name) not in described
        },
        "shared": _grouped(
            (name, id(layer)) for name, layer in modules if [*layer.parameters(), *layer.buffers()]
        ),
        "ties": ties(model),
    }
    return json.loads(json.dumps(parts))


def layers(model: nn.Module) -> dict[str, dict]:
    """Return {name: its type and constructor arguments} of the layers whose shape compression may change."""
    described = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        settings = {key: getattr(layer, key) for key in _arguments(type(layer))}
        if "bias" in settings:
            settings["bias"] = layer.bias is not None
        if settings:
            described[name] = {"type": type(layer).__name__, **settings}
    return described


def ties(model: nn.Module) -> list[list[str]]:
    """Return lists of names in the state_dict that are one tensor.

    Raises:
        ValueError: weights share memory in different shapes.
    """
    entries = model.state_dict(keep_vars=True)
    groups = _grouped((name, tensor.data_ptr() or id(tensor)) for name, tensor in entries.items())
    for names in groups:
        if len({(entries[name].shape, entries[name].stride()) for name in names}) > 1:
            raise ValueError(f"model would not come back: {' and '.join(names)} share memory, in two shapes")
    return groups


def difference(described: dict, model: nn.Module) -> str:
    """Say which module of ``model`` is not as ``described``, with both settings; nothing where all are.

    Private attributes count where ``described`` has them: files of earlier versions do not.
    """
    present = describe(model)
    mine, own = (about["layers"] | about["settings"] for about in (described, present))
    if "private" in described:
        for about, told in ((mine, described["private"]), (own, present["private"])):
            about.update({name: about.get(name, {}) | said for name, said in told.items()})
    for name in mine | own:
        keys = _differing(mine.get(name), own.get(name))
        if keys is not None:
            first, second = (_shown(about.get(name), keys) for about in (mine, own))
            return f"{name or 'the whole'} is {first} and not {second}"
    return ""


def missing(described: dict, model: nn.Module) -> str:
    """Say which module described lies where ``model`` has none but a plain attribute; nothing where none."""
    for name, about in (described.get("settings", {}) | described["layers"]).items():
        parent, (*path, child) = model, name.split(".")
        for part in path:
            parent = getattr(parent, "_modules", {}).get(part)
        if parent is not None and child in vars(parent):
            value = vars(parent)[child]
            own = "absent" if value is None else in_words(name, value)
            return f"{name} is {_shown(about, [*about])} and not {own}"
    return ""


def rebuild(model: nn.Module, description: dict) -> None:
    """Give ``model`` the layers described, on the meta device; one split in parts becomes a Sequential.

    Raises:
        ValueError: it cannot be given them.
    """
    _reshape(model, description["layers"])
    for first, *others in description.get("shared", ()):
        layer = model.get_submodule(first)
        for name in others:
            if model.get_submodule(name) is not layer:
                model.set_submodule(name, layer)
    entries = model.state_dict(keep_vars=True)
    for name, shape in description.get("weights", {}).items():  # a parameter that no layer's shape implies
        tensor = entries.get(name)
        if tensor is not None and list(tensor.shape) != shape and math.prod(shape) < tensor.numel():
            smaller = torch.empty(shape, dtype=tensor.dtype, device="meta")
            smaller = nn.Parameter(smaller) if isinstance(tensor, nn.Parameter) else smaller
            setattr(model.get_submodule(_owner(name)), name.rpartition(".")[2], smaller)


def tie(model: nn.Module, description: dict) -> None:
    """Make the weights that the description ties one tensor again.

    Raises:
        ValueError: other weights of ``model`` are tied than these.
    """
    for names in description["ties"]:
        entries = model.state_dict(keep_vars=True)
        if strange := set(names) - entries.keys():
            raise ValueError(f"there is no weight {min(strange)}")
        for name in names:
            setattr(model.get_submodule(_owner(name)), name.rpartition(".")[2], entries[names[0]])
    odd = [names for names in ties(model) if names not in description["ties"]]
    if odd:
        raise ValueError(f"{' and '.join(odd[0])} are one here and two in the file")


# -- what describing leans on --------------------------------------------------------------------------------


def _arguments(kind: type[nn.Module]) -> tuple[str, ...]:
    # a subclass that keeps the constructor is built like its base
    bases = (base for base in kind.__mro__ if base in SETTINGS and base.__init__ is kind.__init__)
    return SETTINGS.get(next(bases, kind), ())


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _grouped(pairs: Iterator[tuple[str, int]]) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, key in pairs:
        groups.setdefault(key, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _settings(name: str, layer: nn.Module) -> dict[str, str]:
    hidden = {key: layer._buffers[key] for key in layer._non_persistent_buffers_set}  # in no file
    plain = {key: value for key, value in vars(layer).items() if key[0] != "_" and key not in WITHOUT_EFFECT}
    said = {
        key: in_words(f"{name}.{key}", value) for key, value in (plain | hidden).items() if value is not None
    }
    # each copy of an fx.GraphModule has a class of its own, under another name
    kind = "GraphModule" if isinstance(layer, torch.fx.GraphModule) else type(layer).__name__
    return {"type": kind, **said}


def _private(name: str, layer: nn.Module, seen: set[int]) -> dict[str, str]:
    # torch's own layers have none that their public attributes do not imply; an empty cache is like None
    if type(layer).__module__.partition(".")[0] == "torch":
        return {}
    said = {
        key: in_words(f"{name}.{key}", value, seen)
        for key, value in vars(layer).items()
        if key[0] == "_" and key not in OF_MODULES and not key.startswith(OF_TOOLS) and value is not None
    }
    return {key: text for key, text in said.items() if text != "()"}


def in_words(name: str, value: Any, seen: Collection[int] = ()) -> str:
    """Say what an attribute holds; ``seen``: modules that may be named, as they are described elsewhere."""
    if isinstance(value, nn.Module) and id(value) not in seen:
        raise ValueError(
            f"model would not come back: {name.lstrip('.')} holds layers in a plain list or dict. Way out: "
            "nn.ModuleList or nn.ModuleDict"
        )
    if isinstance(value, Tensor):
        if value.is_meta:
            return "tensor "
        value, places = value.detach().cpu(), {}
        if value.layout != torch.strided:
            value = value.to_sparse_coo().coalesce()
            value, places = value.values(), {"indices": value.indices()}
        return f"tensor {digest({'': value.contiguous(), **places})[-8:]}"
    if isinstance(value, functools.partial):
        value = value.func, value.args, value.keywords
    if isinstance(value, (np.ndarray, np.generic)):
        value = str(value.dtype), value.shape, value.tolist()
    if isinstance(value, (set, frozenset)):
        value = sorted(in_words(name, part, seen) for part in value)
    if is_dataclass(value) or type(value) is SimpleNamespace:
        value = type(value).__name__, vars(value)
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, (list, tuple)):
        parts = [in_words(name, part, seen) for part in value]
        text = parts[0] if len(parts) > 1 and len({*parts}) == 1 else f"({', '.join(parts)})"
        # (2, 2) says no more than 2; of a long table its digest is enough
        return (
            text if len(text) < 100 else f"({text[:40]}... {hashlib.sha256(text.encode()).hexdigest()[:8]})"
        )
    if isinstance(value, (str, bytes, int, float, complex, torch.dtype, Enum)):
        return repr(value)
    return getattr(value, "__name__", type(value).__name__)


def _differing(mine: dict | None, own: dict | None) -> list[str] | None:
    # the settings that differ, None where nothing does
    if mine is None or own is None:
        return [*(mine or own)]
    pairs = {key: (mine.get(key), own.get(key)) for key in mine | own}
    keys = [
        key
        for key, (a, b) in pairs.items()
        if a != b and not (None in (a, b) and _left_by_a_run(key, str(a or b)))
    ]
    return keys or None


def _left_by_a_run(key: str, said: str) -> bool:
    # where only one of two networks has it: a tensor, or a private cache of some
    return said.startswith("tensor ") or (key[0] == "_" and bool(CACHED.match(said)))


def _shown(about: dict | None, keys: list[str]) -> str:
    if about is None:
        return "absent"
    said = (f"{key}={about[key]}" for key in keys if key in about and key != "type")
    return f"{about['type']}({', '.join(said)})"


def _reshape(model: nn.Module, described: dict[str, dict]) -> None:
    current = layers(model)
    for name, settings in described.items():
        settings = {key: tuple(part) if isinstance(part, list) else part for key, part in settings.items()}
        if settings == current.get(name):
            continue
        sizes = [size for key, size in settings.items() if key.endswith(("channels", "features"))]
        if math.prod(sizes) >= 2**40:
            raise ValueError(f"layer {name} claims an absurd size")
        parent, (*path, child) = model, name.split(".")
        for part in path:
            if getattr(parent, part, None) is None or _arguments(type(getattr(parent, part))):
                parent.add_module(part, nn.Sequential())
            parent = parent.get_submodule(part)
        kind, there = settings.pop("type"), type(getattr(parent, child, None))
        with torch.device("meta"):
            kind = there if there.__name__ == kind and _arguments(there) else KINDS[kind]
            parent.add_module(child, kind(**settings))
