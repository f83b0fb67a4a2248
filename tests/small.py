"""A network that has in a few layers what ours have, trained on digits for seconds: what the tests of the exports write."""

import functools
import warnings

import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual

from helpers import low_rank, models, pruning
from helpers.data import load_data
from helpers.training import fit


@functools.cache
def trained():
    """Pooling, a residual block, a depthwise convolution, batch normalisations, ReLU6, factors, and zeros."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    layers += [models.ResidualBlock(16), InvertedResidual(16, 24, 2, 2), nn.Conv2d(24, 32, 1), nn.ReLU6()]
    model = models.ConvNet(nn.Sequential(*layers), 32, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = low_rank.factorize(model, ranks={"features.4.body.0": 10})
    fit(model, load_data("digits"), epochs=8, batch_size=64, progress=False)
    pruning.prune_once(model, 0.2)
    return model


def untrained():
    """The smallest network that all exporters take."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()
