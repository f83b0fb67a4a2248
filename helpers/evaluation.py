"""Measuring accuracy: a count of correct answers, and the interval it leaves open."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from helpers.convolution import SmallMaps
from helpers.data import Data, Split, batches
from helpers.networks import logits_of, modes_kept, narrow, refusing, widen
from helpers.processor import has_bf16, has_tiles
from helpers.types import Count, Network, Shape, Whole, checked, shown

Precision = Literal["auto", "bf16", "fp32"]
Answers = Tensor | np.ndarray  # N classes, one for each picture


@checked
@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy, as a count: ``float()`` gives the share, ``print`` the percentage with its interval.

    Attributes:
        correct: pictures classified correctly.
        total: pictures.
    """

    correct: Whole
    total: Count

    def __post_init__(self) -> None:
        if self.correct > self.total:
            raise ValueError(f"correct must be at most total, {self.total}, got {self.correct}")

    def __float__(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share (Wilson 1927): where it plausibly lies on all such pictures."""
        low, high = binomtest(self.correct, self.total).proportion_ci(0.95, method="wilson")
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval  # for example: 94.2% (9,421 of 10,000; 93.7 to 94.7)
        return f"{float(self):.1%} ({self.correct:,} of {self.total:,}; {100 * low:.1f} to {100 * high:.1f})"


@checked
def predict(
    model: nn.Module, split: Split, *, batch_size: Count = 500, precision: Precision = "fp32"
) -> Tensor:
    """Return the logits of all pictures of ``split``, in eval mode: N x classes, float32, on the CPU."""
    if not len(split):
        raise ValueError("split must hold at least one picture, got none")
    like, logits = _like(model), []
    wanted = f"model must take pictures of {' x '.join(map(str, split.images.shape[1:]))}"
    with evaluating(model), autocast(like.device, precision):
        for images, _ in batches(split.to(like.device), batch_size):
            with refusing(wanted):
                output = model(images.to(like.dtype))
            logits.append(logits_of(output).float().cpu())
            if logits[-1].ndim != 2 or len(logits[-1]) != len(images):
                raise ValueError(
                    f"model must map pictures to logits, {len(images)} x classes, got {shown(logits[-1])}"
                )
    return torch.cat(logits)


@checked
def evaluate(
    model: nn.Module, split: Split, *, batch_size: Count = 500, precision: Precision = "fp32"
) -> Accuracy:
    """Measure top-1 accuracy on ``split``, in eval mode.

    Args:
        model: maps normalised images to logits.
        split: what to classify.
        batch_size: pictures at a time; does not change the result beyond rounding.
        precision: "fp32", "bf16" (autocast, about twice as fast where the processor computes in it), or
            "auto": bf16 there.

    Returns:
        Accuracy: ``float()`` in [0, 1], and its 95% interval.
    """
    return right(predict(model, split, batch_size=batch_size, precision=precision), split)


def right(logits: Tensor, split: Split) -> Accuracy:
    """Count the pictures of ``split`` whose largest logit is their class's; each class must have one."""
    labels = split.likeliest.cpu()
    if labels.max() >= logits.shape[1]:
        hint = (
            "" if logits.shape[1] > 1 else ": of one logit z, for two classes, make torch.cat([0 * z, z], 1)"
        )
        raise ValueError(
            f"model must give a logit for each class, 0 to {labels.max()}, got {logits.shape[1]}{hint}"
        )
    return Accuracy(int((logits.argmax(1) == labels).sum()), len(split))


@checked
def recalibrate(
    model: Network, split: Split, *, batch_size: Count = 500, precision: Precision = "fp32"
) -> nn.Module:
    """Return a copy of ``model`` whose batch normalisation has taken its statistics anew, without labels.

    Whoever changes a network without training it leaves it the means and variances of the network that was:
    they, not the lost weights, make most cliffs (adaptive batch normalisation; EagleEye, Li 2020). The new
    ones are averages over batches, each of which passes as in training, normalised by its own; dropout and
    the rest are in eval mode.

    Args:
        model: maps normalised images to logits; not changed. Without batch normalisation the copy equals it.
        split: some hundred pictures as it was shown in training; if they lean to one side and it saw them
            mirrored, too, both.
        batch_size: pictures at a time. A last, smaller batch is left out; fewer pictures are one batch.
        precision: as in ``evaluate``.
    """
    fresh, kind = widen(copy.deepcopy(model)), nn.modules.batchnorm._BatchNorm
    norms = [layer for layer in fresh.modules() if isinstance(layer, kind) and layer.running_mean is not None]
    if not norms:
        return narrow(fresh, model)
    if len(split) < 2:
        raise ValueError(f"split must hold at least two pictures, got {len(split)}: one has no variance")
    momenta, like = [norm.momentum for norm in norms], _like(fresh)
    used = len(split) // batch_size * batch_size or len(split)
    pictures = split.take(slice(0, used)).to(like.device)
    with evaluating(fresh), autocast(like.device, precision):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
            norm.train()
        for images, _ in batches(pictures, batch_size):
            shape = " x ".join(map(str, images.shape))
            with refusing(f"model must take pictures of {shape} in train mode"):
                fresh(images.to(like.dtype))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return narrow(fresh, model)


@checked
def measure(
    model: nn.Module, split: Split, calibration: Split, *, precision: Precision = "fp32"
) -> dict[str, float]:
    """Measure a network that was changed, not trained: as it fell out, and recalibrated on ``calibration``.

    Returns:
        correct, recalibrated_correct, total (pictures of ``split``), accuracy and recalibrated (shares of 1).
    """
    as_is = evaluate(model, split, precision=precision)
    fresh = evaluate(recalibrate(model, calibration, precision=precision), split, precision=precision)
    counts = {"correct": as_is.correct, "recalibrated_correct": fresh.correct, "total": as_is.total}
    return counts | {"accuracy": float(as_is), "recalibrated": float(fresh)}


@checked
@dataclass(frozen=True)
class Paired:
    """Two networks on the same pictures.

    Attributes:
        only_first: pictures that only the first has right.
        only_second: pictures that only the second has right.
        total: pictures.
    """

    only_first: Whole
    only_second: Whole
    total: Count

    def __post_init__(self) -> None:
        if self.only_first + self.only_second > self.total:
            both = self.only_first + self.only_second
            raise ValueError(
                f"only_first and only_second must be at most total, {self.total}, together, got {both}"
            )

    @property
    def points(self) -> float:
        """Return by how many percentage points the first is ahead."""
        return 100 * (self.only_first - self.only_second) / self.total

    @property
    def p_value(self) -> float:
        """Return how likely so large a difference is if both are equally good (exact McNemar test)."""
        differing = self.only_first + self.only_second
        return float(binomtest(self.only_first, differing).pvalue) if differing else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95% interval of ``points``: 1.96 standard errors either way, one picture more differing.

        The one is for few pictures: without it, none that differs would rule out any loss (after Agresti and
        Min, Statistics in Medicine 2005, who add half a picture to each of the four counts).
        """
        half = 1.96 * 100 * (self.only_first + self.only_second + 1) ** 0.5 / self.total
        return self.points - half, self.points + half

    @property
    def largest_loss(self) -> float:
        """Return the loss of the first, in points, that these pairs do not rule out (97.5%, one-sided)."""
        return 0.0 - self.interval[0]

    def __str__(self) -> str:
        # for example: -0.11 points (62 against 73 of 10,000; p 0.39)
        counts = f"{self.only_first:,} against {self.only_second:,} of {self.total:,}"
        return f"{self.points:+.2f} points ({counts}; p {self.p_value:.2g})"


@checked
def paired(answers_a: Answers, answers_b: Answers, labels: Answers) -> Paired:
    """Compare two networks by their answers to the same pictures, which is far sharper than two intervals.

    Args:
        answers_a: the class that the first network gave each picture: N whole numbers.
        answers_b: of the second.
        labels: the true classes.
    """
    a, b, labels = (torch.as_tensor(values).cpu() for values in (answers_a, answers_b, labels))
    if not a.shape == b.shape == labels.shape or a.ndim != 1 or not len(a):
        raise ValueError(
            "answers_a, answers_b and labels must be one class for each of the same pictures, "
            f"got shapes {tuple(a.shape)}, {tuple(b.shape)} and {tuple(labels.shape)}"
        )
    right_a, right_b = a == labels, b == labels
    return Paired(int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum()), len(labels))


@checked
@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for the block; afterwards every module has the mode it had."""
    with modes_kept(model), torch.no_grad():
        model.eval()
        yield


@checked
def picture_shape(data: Data | Split | None, default: Shape) -> tuple[int, ...]:
    """Return the shape of one picture, as a batch: 1 x 3 x H x W; ``default`` without data."""
    split = data.test if isinstance(data, Data) else data
    return default if split is None else (1, *split.images.shape[1:])


@checked
@contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute in "fp32", "bf16" or "auto" on ``device`` for the block; small maps go to tile units if any."""
    enabled = precision == "bf16" or (precision == "auto" and has_bf16(device.type))
    tiles = SmallMaps() if enabled and has_tiles(device.type) else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), tiles:
        yield


def _like(model: nn.Module) -> Tensor:
    # A tensor of the device and the kind of numbers that the model computes with.
    floating = (weight for weight in model.parameters() if weight.is_floating_point())
    return next(floating, torch.empty(0))
