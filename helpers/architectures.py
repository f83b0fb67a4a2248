"""The networks of the series: plain modules for 3 x 32 x 32 pictures, by name in ``MODELS``."""

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

from helpers.data import Split, normalize
from helpers.types import checked


class ConvNet(nn.Module):
    """Convolutional features, global average pooling, one linear classifier: the frame of our own networks.

    Args:
        features: maps B x 3 x H x W to B x channels x h x w.
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


def _vgg(letter: str, num_classes: int) -> nn.Module:
    # batch-normalised (Simonyan 2015, table 1) and, for 32 x 32 pictures, with one linear layer at the end
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs[letter], batch_norm=True)
    return ConvNet(features, 512, num_classes)


def _resnet(name: str, num_classes: int) -> nn.Module:
    # torchvision's (He 2016) with the CIFAR stem: 3 x 3, stride 1, no pooling
    model = torchvision.models.get_model(name, num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def _residual_convnet(widths: Sequence[int], blocks: Sequence[int], num_classes: int) -> nn.Module:
    # a stem at full resolution, one cheap layer; then per stage a stride-2 convolution and residual blocks
    layers = _conv(3, widths[0])
    for (inputs, outputs), count in zip(itertools.pairwise(widths), blocks, strict=True):
        layers += [*_conv(inputs, outputs, stride=2), *(ResidualBlock(outputs) for _ in range(count))]
    return ConvNet(nn.Sequential(*layers), widths[-1], num_classes)


def _mobilenet_student(num_classes: int) -> nn.Module:
    # inverted residuals with depthwise convolutions (Sandler 2018, MobileNetV2), sized for 32 x 32 pictures
    widths, strides = (16, 24, 24, 40, 40, 40, 80, 80), (2, 1, 2, 1, 1, 2, 1)
    layers = _conv(3, widths[0])
    for (inputs, outputs), stride in zip(itertools.pairwise(widths), strides, strict=True):
        layers.append(InvertedResidual(inputs, outputs, stride, expand_ratio=2 if inputs == 16 else 4))
    layers += [nn.Conv2d(widths[-1], 320, 1, bias=False), nn.BatchNorm2d(320), nn.ReLU6(inplace=True)]
    return ConvNet(nn.Sequential(*layers), 320, num_classes)


class FastConvNet(ConvNet):
    """Learns CIFAR-10 in two epochs (after airbench94, Jordan 2024): what live cells train.

    A layer of 2 x 2 patches that ``whiten`` computes from the pictures instead of learning it, then three
    groups of two 3 x 3 convolutions, each group pooled after the first. The convolutions start as identities
    where they can, and batch normalisation follows its batches closely, since there are few.

    Args:
        widths: channels of the three groups.
        num_classes: number of logits.
    """

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        layers, inputs = [nn.Conv2d(3, 24, 2), nn.ReLU(inplace=True)], 24
        for width in widths:
            first, *rest = _conv(inputs, width)
            layers += [first, nn.MaxPool2d(2), *rest, *_conv(width, width)]
            inputs = width
        super().__init__(nn.Sequential(*layers), inputs, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.4

    def reset_parameters(self) -> None:
        """Let each 3 x 3 convolution hand its inputs on; what it has more outputs stays as it was drawn."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                nn.init.dirac_(layer.weight[: layer.in_channels])


@checked
@torch.no_grad()
def whiten(model: FastConvNet, split: Split) -> FastConvNet:
    """Compute the first layer from pictures, and freeze it: the eigenvectors of their 2 x 2 patches.

    Each filter is an eigenvector of the patches' covariance over the square root of its eigenvalue, so that
    all answers vary alike and are uncorrelated; it is there with both signs, since a ReLU drops one
    (Page 2019, "How to train your ResNet").

    Args:
        model: made by ``build("fast_convnet")``; changed in place and returned.
        split: pictures; the first 5,000 are enough.
    """
    layer = model.features[0]
    patches = F.unfold(normalize(split.images[:5000], split), 2).transpose(1, 2).flatten(0, 1)  # P x 12
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).T.flip(0).view(12, 3, 2, 2)  # the largest first
    layer.weight.copy_(torch.cat([filters, -filters])[: layer.out_channels])
    layer.requires_grad_(False)
    return model


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "vgg11": functools.partial(_vgg, "A"),
    "vgg13": functools.partial(_vgg, "B"),
    "vgg16": functools.partial(_vgg, "D"),
    "vgg19": functools.partial(_vgg, "E"),
    "resnet18": functools.partial(_resnet, "resnet18"),
    "resnet34": functools.partial(_resnet, "resnet34"),
    "resnet50": functools.partial(_resnet, "resnet50"),
    "small_convnet": functools.partial(_residual_convnet, (32, 64, 128, 256), (1, 1, 1)),
    "tiny_convnet": functools.partial(_residual_convnet, (24, 48, 96, 184), (1, 1, 1)),
    # few parameters make few errors where they are deep, not wide
    "micro_convnet": functools.partial(_residual_convnet, (16, 32, 64), (4, 2)),
    "fast_convnet": functools.partial(FastConvNet, (32, 96, 96)),
    "fast_convnet_1m": functools.partial(FastConvNet, (48, 176, 176)),
    "fast_convnet_2m": functools.partial(FastConvNet, (64, 256, 256)),  # as wide as airbench94's
    "mobilenet_student": _mobilenet_student,
    "vgg19_imagenet": lambda classes: torchvision.models.vgg19(num_classes=classes, init_weights=False),
}
