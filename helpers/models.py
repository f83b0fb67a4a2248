"""Every architecture of the series by name, and files that bring each back, compressed shapes included."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from helpers import types
from helpers.architectures import MODELS, ConvNet, FastConvNet, ResidualBlock, whiten
from helpers.files import WAY_OUT, CheckpointError, digest, fingerprint, read_safetensors, write_safetensors
from helpers.storage import Storage, pack, unpack
from helpers.types import AnyPath, checked

FORMAT = "neural-network-compression/1"
__all__ = [
    "MODELS",
    "CheckpointError",
    "ConvNet",
    "FastConvNet",
    "ResidualBlock",
    "build",
    "digest",
    "fingerprint",
    "load",
    "read_safetensors",
    "save",
    "whiten",
    "write_safetensors",
]
Name, Classes, Width = Literal[tuple(MODELS)], types.whole(1, 1_000_000), types.real(gt=0, le=16)


@checked
def build(name: Name, num_classes: Classes = 10, width: Width = 1.0) -> nn.Module:
    """Build an untrained network for 3 x 32 x 32 pictures.

    Args:
        name: vgg11, vgg13, vgg16, vgg19 (batch-normalised, one linear classifier), resnet18, resnet34,
            resnet50, small_convnet (10% of VGG-19's parameters), tiny_convnet (5%), fast_convnet (1.5%),
            mobilenet_student (1.3%), micro_convnet (1.2%), or vgg19_imagenet: VGG-19 as published, with the
            4096-wide classifier; with ``num_classes=1000`` that is the 548 MiB model (143,667,240 parameters)
            everybody quotes.
        num_classes: number of logits.
        width: factor on every layer's channel count but the pictures' 3 and the logits; one channel stays.

    Returns:
        The module, with ``.recipe`` saying how it was built. Weights are drawn from torch's global generator:
        convolutions by Kaiming (fan_out; He 2015, section 2.2), the classifier from N(0, 0.01), biases zero.
    """
    model = _blank(name, num_classes, width).to_empty(device="cpu")
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
    if isinstance(model, FastConvNet):
        model.reset_parameters()
    return model


# -- files ---------------------------------------------------------------------------------------------------

SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {  # of the layers whose shape compression changes
    nn.Conv2d: (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
        "bias",
    ),
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
}


@checked
def save(
    model: nn.Module,
    path: types.path(".safetensors"),
    dtype: torch.dtype | None = None,
    storage: Storage = "dense",
) -> Path:
    """Write a network to a safetensors file that ``load`` turns back into the same network.

    The recipe (name, width, and the shape of every Conv2d, Linear and BatchNorm2d) and a SHA-256 of the
    weights stand in the file's metadata; nothing in it is executable. Factorized and channel-pruned networks,
    whose layers no longer have the shapes of ``build``, come back as they are.

    Args:
        model: made by ``build``, or any other network; possibly compressed since. Of another network the file
            describes those layers only: ``load`` needs a fresh instance of it.
        path: the file to write, ending in .safetensors; its folder is made if need be.
        dtype: store floating-point weights in this type (torch.float16 halves the file). Default: unchanged.
        storage: how weights lie in the file, for models with many zeros (see ``helpers.storage``); lossless.

    Returns:
        The path.

    Raises:
        ValueError: a weight does not fit in ``dtype``, or ``model`` holds a layer that would not come back.
        OSError: the file cannot be written; an older file of that name is left as it was.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, got {dtype}")
    tensors = {}
    for name, tensor in model.state_dict().items():
        if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(f"model must hold plain tensors, but {name} would not come back")
        kept = tensor.to("cpu", dtype if tensor.is_floating_point() else None, copy=True).contiguous()
        if not torch.equal(tensor.isfinite().cpu(), kept.isfinite()):
            raise ValueError(f"dtype must hold every weight, but {name} overflows {dtype}")
        tensors[name] = kept
    built = model.recipe if isinstance(getattr(model, "recipe", None), dict) else {}
    recipe = json.dumps({**built, "layers": _layers(model)})
    twin = _follow(recipe) if built else model
    mine, theirs = (
        {name: type(layer) for name, layer in each.named_modules()} | _shapes(each.state_dict())
        for each in (model, twin)
    )
    lost = dict(mine.items() ^ theirs.items())
    if lost:
        kinds = "Conv2d, Linear and BatchNorm2d"
        raise ValueError(f"model may have other {kinds} than build's, but {min(lost)} would not come back")
    written, packed = pack(tensors, storage)
    more = {} if storage == "dense" else {"storage": storage, "packed": json.dumps(packed)}
    checksum = digest(tensors, recipe + more.get("packed", ""))
    write_safetensors(path, written, {"format": FORMAT, "recipe": recipe, "sha256": checksum, **more})
    return path


@checked
def load(path: AnyPath, into: nn.Module | None = None) -> nn.Module:
    """Read a network written by ``save``, as float32, on the CPU, in eval mode.

    Args:
        path: the file.
        into: a fresh instance of the network that was saved, where ``build`` does not know it; it stays as it
            is. What the file describes comes back in a copy, compressed shapes included.

    Raises:
        CheckpointError: the file is missing, truncated, altered, not of ``save`` or does not fit ``into``.
    """
    metadata, tensors = read_safetensors(path)
    recipe, packed = metadata.get("recipe", ""), metadata.get("packed", "{}")
    if metadata.get("format") != FORMAT:
        form = metadata.get("format")
        raise CheckpointError(f"{path} is not a model of this project (format {form!r}). {WAY_OUT}")
    if into is None and recipe.startswith('{"layers"'):
        hint = "load it with into=, a fresh instance of its class"
        raise CheckpointError(f"{path} holds a network that build does not know. Way out: {hint}.")
    try:
        model = _follow(recipe, into)
        expected, claims = _shapes(model.state_dict()), json.loads(packed)
        if any(tuple(about["shape"]) != expected[name][0] for name, about in claims.items()):
            raise ValueError("packed weights have other shapes")  # before a few bytes become gigabytes
        tensors = unpack(tensors, claims, metadata.get("storage", "dense"))
        if metadata.get("sha256") != digest(tensors, recipe + metadata.get("packed", "")):
            raise ValueError("its contents do not match the checksum in its header")
        odd = dict(expected.items() ^ _shapes(tensors).items())
        if odd:
            raise ValueError(f"the recipe does not describe the weights {min(odd)}")
        for name, tensor in tensors.items():
            tensors[name] = (tensor.float() if tensor.is_floating_point() else tensor).clone()
        model.load_state_dict(tensors, assign=True)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        verb = "follow" if into is None else f"follow into {type(into).__name__}"
        said = f"{path} is altered or has a recipe this version cannot {verb} ({error}). {WAY_OUT}"
        raise CheckpointError(said) from error
    return model.eval()


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple]:
    return {name: (tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in tensors.items()}


def _layers(model: nn.Module) -> dict[str, dict]:
    # every layer whose shape may change: {qualified name: {"type": ..., constructor arguments}}
    described = {}
    for name, layer in model.named_modules():
        settings = {key: getattr(layer, key) for key in SETTINGS.get(type(layer), ())}
        if "bias" in settings:
            settings["bias"] = layer.bias is not None
        if settings:
            described[name] = {"type": type(layer).__name__, **settings}
    return described


def _follow(recipe: str, into: nn.Module | None = None) -> nn.Module:
    # what a file's recipe describes: on the meta device, without weights, but where ``into`` has its shape
    arguments = json.loads(recipe)
    layers = arguments.pop("layers")
    model = _blank(**arguments) if into is None else copy.deepcopy(into).cpu()
    _reshape(model, layers)
    return model


@checked
def _blank(name: Name, num_classes: Classes, width: Width) -> nn.Module:
    with torch.device("meta"):  # shapes, but no weights and no memory yet
        model = MODELS[name](num_classes)
    if width != 1:
        _reshape(model, _widened(_layers(model), width, num_classes))
    model.recipe = {"name": name, "num_classes": num_classes, "width": width}
    return model


def _widened(layers: dict[str, dict], width: float, num_classes: int) -> dict[str, dict]:
    for settings in layers.values():
        for key in ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features"):
            size = settings.get(key, 1)
            if size not in (1, 3):  # one group; the pictures' channels
                cells = 49 if size == 512 * 49 else 1  # the ImageNet classifier sees 512 channels at 7 x 7
                settings[key] = max(1, round(size // cells * width)) * cells
    settings["out_features"] = num_classes  # of the last layer: the logits
    return layers


def _reshape(model: nn.Module, layers: dict[str, dict]) -> None:
    # gives ``model`` the layers described; one that was split in parts becomes a Sequential of them
    kinds, current = {kind.__name__: kind for kind in SETTINGS}, _layers(model)
    for name, settings in layers.items():
        described = {key: tuple(part) if isinstance(part, list) else part for key, part in settings.items()}
        if described == current.get(name):
            continue
        sizes = [size for key, size in described.items() if key.endswith(("channels", "features"))]
        if math.prod(sizes) >= 2**40:
            raise ValueError(f"layer {name} claims an absurd size")
        parent, (*path, child) = model, name.split(".")
        for part in path:
            if type(getattr(parent, part, None)) in (*SETTINGS, type(None)):
                parent.add_module(part, nn.Sequential())
            parent = parent.get_submodule(part)
        with torch.device("meta"):
            parent.add_module(child, kinds[described.pop("type")](**described))
