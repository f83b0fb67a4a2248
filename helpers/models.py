"""Every architecture of the series by name, and files that bring each back, compressed shapes included."""

import copy
import json
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from helpers import layers, types
from helpers.architectures import MODELS, ConvNet, FastConvNet, ResidualBlock, whiten
from helpers.files import WAY_OUT, CheckpointError, digest, fingerprint, read_safetensors, write_safetensors
from helpers.storage import Storage, pack, unpack
from helpers.types import AnyPath, Network, checked

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
    """Build an untrained network, made for pictures of 32 x 32; larger ones fit as well.

    Args:
        name: vgg11, vgg13, vgg16, vgg19 (batch-normalised, one linear classifier), resnet18, resnet34,
            resnet50, small_convnet (10% of VGG-19's parameters), tiny_convnet (5%), fast_convnet (1.5%),
            fast_convnet_1m (5%), fast_convnet_2m (10%), mobilenet_student (0.8%), micro_convnet (1.2%), or
            vgg19_imagenet: VGG-19 as published, with the 4096-wide classifier; with ``num_classes=1000`` that
            is the 548 MiB model (143,667,240 parameters) everybody quotes.
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


@checked
def save(
    model: Network,
    path: types.path(".safetensors"),
    dtype: torch.dtype | None = None,
    storage: Storage = "dense",
) -> Path:
    """Write a network to a safetensors file that ``load`` turns back into the same network.

    The recipe (name, width, and the shape of every convolution, linear layer and normalisation) and a SHA-256
    of the weights stand in the file's metadata; nothing in it is executable. Factorized and channel-pruned
    networks, whose layers no longer have the shapes of ``build``, come back as they are.

    Args:
        model: made by ``build``, or any other network; possibly compressed since. Of another network the file
            holds the settings of all modules beside the shapes: ``load`` needs a fresh instance of it.
        path: the file to write, ending in .safetensors; its folder is made if need be.
        dtype: store floating-point weights in this type (torch.float16 halves the file). Default: unchanged.
        storage: how weights lie in the file, for models with many zeros (see ``helpers.storage``); lossless.

    Returns:
        The path.

    Raises:
        ValueError: a weight does not fit in ``dtype``, or ``model`` holds a layer that would not come back.
        OSError: the file cannot be written; an older file of that name is left as it was.
    """
    if dtype not in (None, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float16, bfloat16, float32 or float64, got {dtype}")
    tensors = {}
    for name, tensor in model.state_dict().items():
        strided = type(tensor) is Tensor and tensor.layout == torch.strided
        if not strided or tensor.is_quantized or tensor.is_meta:
            hint = "Way out: save it before its tensors become quantized or sparse"
            kind = f"{tensor.layout}, {tensor.device}" if type(tensor) is Tensor else type(tensor).__name__
            raise ValueError(
                f"model must hold plain tensors, but {name} ({kind}) would not come back. {hint}"
            )
        kept = tensor.to("cpu", dtype if tensor.is_floating_point() else None, copy=True).contiguous()
        if dtype is not None and not torch.equal(tensor.isfinite().cpu(), kept.isfinite()):
            raise ValueError(f"dtype must hold every weight, but {name} overflows {dtype}")
        tensors[name] = kept
    recipe = json.dumps(_recipe(model))
    written, packed = pack(tensors, storage)
    more = {} if storage == "dense" else {"storage": storage, "packed": json.dumps(packed)}
    checksum = digest(tensors, recipe + more.get("packed", ""))
    write_safetensors(path, written, {"format": FORMAT, "recipe": recipe, "sha256": checksum, **more})
    return path


@checked
def load(path: AnyPath, into: Network | None = None) -> nn.Module:
    """Read a network written by ``save``, on the CPU, in eval mode, as float32 (or of the types of ``into``).

    Args:
        path: the file.
        into: a fresh instance of the network that was saved, where ``build`` does not know it; it stays as it
            is. What the file describes comes back in a copy, compressed shapes and ties included. What it
            only names (pooling, activation, dropout, other attributes) must be the same in both.

    Raises:
        CheckpointError: the file is missing, truncated, altered, not of ``save`` or does not fit ``into``.
    """
    metadata, tensors = read_safetensors(path)
    recipe, packed, form = metadata.get("recipe", ""), metadata.get("packed", "{}"), metadata.get("format")
    if form != FORMAT:
        raise CheckpointError(f"{path} is not a model of this project (format {form!r}). {WAY_OUT}")
    if into is None and recipe.startswith('{"layers"'):
        hint = "load it with into=, a fresh instance of its class"
        raise CheckpointError(f"{path} holds a network that build does not know. Way out: {hint}.")
    try:
        model, described = _follow(recipe, into)
        expected, claims = _shapes(model.state_dict()), json.loads(packed)
        if any(tuple(about["shape"]) != expected[name][0] for name, about in claims.items()):
            raise ValueError("packed weights have other shapes")  # before a few bytes become gigabytes
        tensors = unpack(tensors, claims, metadata.get("storage", "dense"))
        if metadata.get("sha256") != digest(tensors, recipe + metadata.get("packed", "")):
            raise ValueError("its contents do not match the checksum in its header")
        odd = dict(expected.items() ^ _shapes(tensors).items())
        if odd:
            raise ValueError(f"the recipe does not describe the weights {min(odd)}")
        own = {} if into is None else into.state_dict()
        kinds = {name: tensor.dtype for name, tensor in own.items() if tensor.is_floating_point()}
        common = next(iter(kinds.values()), torch.float32)
        state = model.state_dict()  # with the versions of the layers' formats, which some layers ask for
        for name, tensor in tensors.items():
            kind = kinds.get(name, common) if tensor.is_floating_point() else tensor.dtype
            state[name] = tensor.to(kind, copy=True)
        model.load_state_dict(state, assign=True)
        if "ties" in described:
            layers.tie(model, described)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{path} {error}") from None
        verb = "follow" if into is None else f"follow into {type(into).__name__}"
        said = f"{path} is altered or has a recipe this version cannot {verb} ({error}). {WAY_OUT}"
        raise CheckpointError(said) from error
    return model.eval()


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple]:
    return {name: (tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in tensors.items()}


def _recipe(model: nn.Module) -> dict:
    # of build's networks the file holds what build cannot know; that all comes back is seen here
    described, built = layers.describe(model), getattr(model, "recipe", None)
    if not isinstance(built, dict) or built.keys() != {"name", "num_classes", "width"}:
        return described
    own = built | {
        key: described[key] for key in ("layers", "shared", "ties") if described[key] or key == "layers"
    }
    twin = _follow(json.dumps(own))[0]
    lost = layers.difference(described, twin)
    odd = dict(_shapes(model.state_dict()).items() ^ _shapes(twin.state_dict()).items())
    if lost or odd:
        hint = "Way out: del model.recipe, and load the file with into="
        raise ValueError(f"model would not come back: {lost or min(odd)} as in build's. {hint}")
    return own


def _follow(recipe: str, into: nn.Module | None = None) -> tuple[nn.Module, dict]:
    # what a file's recipe describes, and its description: on the meta device, without weights, but where
    # ``into`` has its shape
    built = json.loads(recipe)
    described = {key: built.pop(key) for key in layers.PARTS if key in built}
    model = _blank(**built) if into is None else copy.deepcopy(into).cpu()
    lost = layers.missing(described, model) if into is not None else ""
    if not lost:
        layers.rebuild(model, described)
    if into is not None and built:  # one of build's: it says itself how it must be
        described = layers.describe(_follow(recipe)[0]) | described
    if into is not None and "settings" in described:
        lost = lost or layers.difference(described, model)
    if lost:
        hint = f"make a fresh {type(into).__name__} with the same settings as that which was saved"
        raise CheckpointError(
            f"does not fit into {type(into).__name__}: in the file {lost}. Way out: {hint}."
        )
    return model, described


@checked
def _blank(name: Name, num_classes: Classes, width: Width) -> nn.Module:
    with torch.device("meta"):  # shapes, but no weights and no memory yet
        model = MODELS[name](num_classes)
    if width != 1:
        layers.rebuild(model, {"layers": _widened(layers.layers(model), width, num_classes)})
    model.recipe = {"name": name, "num_classes": num_classes, "width": width}
    return model


def _widened(described: dict[str, dict], width: float, num_classes: int) -> dict[str, dict]:
    for settings in described.values():
        for key in ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features"):
            size = settings.get(key, 1)
            if size not in (1, 3):  # one group; the pictures' channels
                cells = 49 if size == 512 * 49 else 1  # the ImageNet classifier sees 512 channels at 7 x 7
                settings[key] = max(1, round(size // cells * width)) * cells
    settings["out_features"] = num_classes  # of the last layer: the logits
    return described
