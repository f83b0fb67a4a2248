"""Every architecture of the series by name, and files that bring any of them back, compressed shapes included."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

from helpers import checks
from helpers.files import WAY_OUT, CheckpointError, digest, fingerprint, read_safetensors, write_safetensors
from helpers.storage import STORAGES, pack, unpack

FORMAT = "neural-network-compression/1"
__all__ = [
    "MODELS",
    "CheckpointError",
    "build",
    "digest",
    "fingerprint",
    "load",
    "read_safetensors",
    "save",
    "write_safetensors",
]


# -- architectures ---------------------------------------------------------------------------------------------------


class ConvNet(nn.Module):
    """Convolutional features, global average pooling, one linear classifier: the frame of our own networks.

    Args:
        features: maps B x 3 x 32 x 32 to B x channels x h x w.
        channels: what ``features`` puts out.
        num_classes: number of logits.
    """

    def __init__(self, features: nn.Sequential, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, B x 3 x H x W, to logits, B x num_classes."""
        return self.classifier(self.pool(self.features(images)).flatten(1))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, and the input added back (He 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(channels, channels), *_conv(channels, channels)[:-1])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map B x channels x h x w to the same shape."""
        return self.relu(x + self.body(x))


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _vgg(letter: str) -> Callable[[int], nn.Module]:
    """VGG with batch normalisation (Simonyan 2015, table 1) and, for 32 x 32 pictures, one linear layer on 512 features."""

    def build(num_classes: int) -> nn.Module:
        features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs[letter], batch_norm=True)
        return ConvNet(features, 512, num_classes)

    return build


def _resnet(name: str) -> Callable[[int], nn.Module]:
    """torchvision's ResNet (He 2016) with the CIFAR stem: 3 x 3, stride 1, no pooling."""

    def build(num_classes: int) -> nn.Module:
        model = getattr(torchvision.models, name)(num_classes=num_classes)
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
        return model

    return build


def _residual_convnet(widths: Sequence[int], blocks: Sequence[int]) -> Callable[[int], nn.Module]:
    """A stem at full resolution that is one cheap layer, then per stage a stride-2 convolution and so many residual blocks."""

    def build(num_classes: int) -> nn.Module:
        layers = _conv(3, widths[0])
        for (inputs, outputs), count in zip(itertools.pairwise(widths), blocks, strict=True):
            layers += [*_conv(inputs, outputs, stride=2), *(ResidualBlock(outputs) for _ in range(count))]
        return ConvNet(nn.Sequential(*layers), widths[-1], num_classes)

    return build


def _mobilenet_student(num_classes: int) -> nn.Module:
    """Inverted residuals with depthwise convolutions (Sandler 2018, MobileNetV2), sized for 32 x 32 pictures."""
    layers, inputs = _conv(3, 16), 16
    for expansion, outputs, stride in (
        (2, 24, 2),
        (4, 24, 1),
        (4, 40, 2),
        (4, 40, 1),
        (4, 40, 1),
        (4, 80, 2),
        (4, 80, 1),
    ):
        layers.append(InvertedResidual(inputs, outputs, stride, expansion))
        inputs = outputs
    layers += [nn.Conv2d(inputs, 320, 1, bias=False), nn.BatchNorm2d(320), nn.ReLU6(inplace=True)]
    return ConvNet(nn.Sequential(*layers), 320, num_classes)


def _vgg19_imagenet(num_classes: int) -> nn.Module:
    return torchvision.models.vgg19(num_classes=num_classes, init_weights=False)


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "vgg11": _vgg("A"),
    "vgg13": _vgg("B"),
    "vgg16": _vgg("D"),
    "vgg19": _vgg("E"),
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "resnet50": _resnet("resnet50"),
    "small_convnet": _residual_convnet((32, 64, 128, 256), (1, 1, 1)),
    "tiny_convnet": _residual_convnet((24, 48, 96, 184), (1, 1, 1)),
    "micro_convnet": _residual_convnet(
        (16, 32, 64), (4, 2)
    ),  # few parameters make few errors where they are deep, not wide
    "mobilenet_student": _mobilenet_student,
    "vgg19_imagenet": _vgg19_imagenet,
}


def build(name: str, num_classes: int = 10, width: float = 1.0) -> nn.Module:
    """Build an untrained network for 3 x 32 x 32 pictures.

    Args:
        name: vgg11, vgg13, vgg16, vgg19 (batch-normalised, one linear classifier), resnet18, resnet34, resnet50,
            small_convnet (10% of VGG-19's parameters), tiny_convnet (5%), mobilenet_student (1.3%), micro_convnet
            (1.2%), or vgg19_imagenet: VGG-19 as published, with the 4096-wide classifier; with ``num_classes=1000`` that is
            the 548 MiB model (143,667,240 parameters) everybody quotes.
        num_classes: number of logits.
        width: factor on every layer's channel count but the pictures' 3 and the logits; at least one channel stays.

    Returns:
        The module, with ``.recipe`` saying how it was built. Weights are drawn from torch's global generator:
        convolutions by Kaiming (fan_out; He 2015, section 2.2), the classifier from N(0, 0.01), biases zero.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """
    model = _blank(name, num_classes, width)
    model.to_empty(device="cpu")
    _initialize(model)
    return model


def _blank(name: str, num_classes: int, width: float) -> nn.Module:
    """Build the architecture on the meta device: shapes, but no weights and no memory yet."""
    checks.choice("name", name, MODELS)
    checks.integer("num_classes", num_classes, 1, 1_000_000)
    width = checks.number("width", width, 0, 16, open_low=True)
    with torch.device("meta"):
        model = MODELS[name](num_classes)
    if width != 1:
        _scale(model, width, num_classes)
    model.recipe = {"name": name, "num_classes": num_classes, "width": width}
    return model


def _scale(model: nn.Module, width: float, num_classes: int) -> None:
    """Rebuild every layer of ``model`` with its channels multiplied by ``width``."""

    def scaled(channels: int) -> int:
        return max(1, round(channels * width))

    classifier = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
    for name, layer in list(model.named_modules()):
        settings = _settings(layer)
        if settings is None:
            continue
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != 3:
                settings["in_channels"] = scaled(layer.in_channels)
            settings["out_channels"] = scaled(layer.out_channels)
            if layer.groups > 1:
                settings["groups"] = scaled(layer.groups)
        elif isinstance(layer, nn.Linear):
            spatial = (
                49 if layer.in_features == 512 * 49 else 1
            )  # the ImageNet classifier sees 512 channels at 7 x 7
            settings["in_features"] = scaled(layer.in_features // spatial) * spatial
            settings["out_features"] = num_classes if name == classifier else scaled(layer.out_features)
        else:
            settings["num_features"] = scaled(layer.num_features)
        with torch.device("meta"):
            model.set_submodule(name, type(layer)(**settings))


def _initialize(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


# -- files -----------------------------------------------------------------------------------------------------------

SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ),
    nn.Linear: ("in_features", "out_features"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
}


def _settings(layer: nn.Module) -> dict | None:
    """Return the constructor arguments of a Conv2d, Linear or BatchNorm2d; None for anything else."""
    names = SETTINGS.get(type(layer))
    if names is None:
        return None
    settings = {name: getattr(layer, name) for name in names}
    return settings if isinstance(layer, nn.BatchNorm2d) else {**settings, "bias": layer.bias is not None}


def _layers(model: nn.Module) -> dict[str, dict]:
    """Describe every layer that has weights: {qualified name: {"type": ..., constructor arguments}}."""
    described = {name: (type(layer).__name__, _settings(layer)) for name, layer in model.named_modules()}
    return {
        name: {"type": kind, **settings}
        for name, (kind, settings) in described.items()
        if settings is not None
    }


def save(
    model: nn.Module, path: str | os.PathLike, dtype: torch.dtype | None = None, storage: str = "dense"
) -> Path:
    """Write a network to a safetensors file that ``load`` turns back into the same network.

    The recipe (name, width, and the shape of every layer) and a SHA-256 of the weights stand in the file's
    metadata; nothing in it is executable. Factorized and channel-pruned networks, whose layers no longer have
    the shapes of ``build``, come back as they are.

    Args:
        model: made by ``build``, possibly compressed since.
        path: the file to write, ending in .safetensors; its folder is made if need be.
        dtype: store floating-point weights in this type (torch.float16 halves the file). Default: as they are.
        storage: how weights lie in the file, for models with many zeros: "dense", "zip", "bitmask", "bitmask+zip", "csr" or
            "2:4" (see ``helpers.storage``). All of them lose nothing.

    Returns:
        The path.

    Raises:
        TypeError: ``model`` has no recipe.
        ValueError: ``path`` does not end in .safetensors, ``storage`` is unknown, a weight does not fit in ``dtype``, or ``model``
            holds a layer that the recipe cannot describe.
        OSError: the file cannot be written; an older file of that name is left as it was.
    """
    if not isinstance(getattr(model, "recipe", None), dict):
        raise TypeError(
            f"model must come from helpers.models.build (it has no .recipe), got {type(model).__name__}"
        )
    path = checks.path("path", path, ".safetensors")
    checks.choice("storage", storage, STORAGES)
    if dtype is not None and not checks.instance("dtype", dtype, torch.dtype).is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, got {dtype}")
    tensors = {}
    for name, tensor in model.state_dict().items():
        kept = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        if (
            dtype is not None
            and tensor.is_floating_point()
            and not torch.equal(tensor.isfinite().cpu(), kept.isfinite())
        ):
            raise ValueError(f"dtype must hold every weight, but {name} overflows {dtype}")
        tensors[name] = kept.clone()
    recipe = json.dumps({**model.recipe, "layers": _layers(model)})
    twin = _follow(recipe)
    mine, theirs = (
        {name: (type(layer), len(list(layer.children()))) for name, layer in m.named_modules()}
        for m in (model, twin)
    )
    for name in mine | theirs:
        if mine.get(name) != theirs.get(name):
            raise ValueError(
                f"model may have other Conv2d, Linear and BatchNorm2d than build's, but {name} would not come back"
            )
    metadata = {"format": FORMAT, "recipe": recipe, "sha256": digest(tensors, recipe)}
    if storage != "dense":
        unpacked = tensors
        tensors, packed = pack(tensors, storage)
        metadata |= {"storage": storage, "packed": json.dumps(packed)}
        metadata["sha256"] = digest(unpacked, recipe + metadata["packed"])
    write_safetensors(path, tensors, metadata)
    return path


def load(path: str | os.PathLike) -> nn.Module:
    """Read a network written by ``save``, as float32, on the CPU, in eval mode.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or not written by ``save``.
    """
    path = checks.path("path", path)
    metadata, tensors = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a model of this project (format {metadata.get('format')!r}). {WAY_OUT}"
        )
    if "packed" in metadata:
        try:
            packed, expected = json.loads(metadata["packed"]), _follow(metadata["recipe"]).state_dict()
            if any(tuple(about["shape"]) != tuple(expected[name].shape) for name, about in packed.items()):
                raise ValueError(
                    "their shapes are not those of the recipe"
                )  # said before a few bytes become gigabytes
            tensors = unpack(tensors, packed, metadata.get("storage", ""))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} holds packed weights that do not fit together ({error}). {WAY_OUT}"
            ) from error
    if metadata.get("sha256") != digest(tensors, metadata.get("recipe", "") + metadata.get("packed", "")):
        raise CheckpointError(
            f"{path} is altered: its contents do not match the checksum in its header. {WAY_OUT}"
        )
    try:
        model = _follow(metadata["recipe"])
        theirs, ours = (
            {name: (t.shape, t.is_floating_point()) for name, t in some.items()}
            for some in (tensors, model.state_dict())
        )
        if theirs != ours:
            raise ValueError("the recipe does not describe the weights")
        model.to_empty(device="cpu")
        model.load_state_dict(
            {
                name: tensor.float() if tensor.is_floating_point() else tensor
                for name, tensor in tensors.items()
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} has a recipe this version cannot follow ({error}). {WAY_OUT}"
        ) from error
    return model.eval()


def _follow(recipe: str) -> nn.Module:
    """Build what a file's recipe describes, on the meta device."""
    arguments = json.loads(recipe)
    layers = arguments.pop("layers")
    model = _blank(**arguments)
    with torch.device("meta"):
        _reshape(model, layers)
    return model


def _reshape(model: nn.Module, layers: dict[str, dict]) -> None:
    """Give ``model`` the layers described; a layer that was split in parts becomes a Sequential of them."""
    kinds = {kind.__name__: kind for kind in SETTINGS}
    current = _layers(model)
    for name, settings in layers.items():
        arguments = {
            key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
        }
        if arguments == current.get(name):
            continue
        sizes = [v for k, v in arguments.items() if k.endswith(("channels", "features"))]
        if math.prod(sizes) >= 2**40:
            raise ValueError(f"layer {name} claims an absurd size")
        parent, _, child = name.rpartition(".")
        path = parent.split(".") if parent else []
        for depth in range(1, len(path) + 1):
            above = model.get_submodule(".".join(path[: depth - 1]))
            if type(getattr(above, path[depth - 1], None)) in (*SETTINGS, type(None)):
                above.add_module(path[depth - 1], nn.Sequential())
        layer = kinds[arguments.pop("type")](**arguments)
        model.get_submodule(parent).add_module(child, layer)
