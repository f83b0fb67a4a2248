"""Measuring accuracy: a count of correct answers, and the interval it leaves open. Knows nothing of training."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from helpers import checks
from helpers.convolution import SmallMaps, has_tiles
from helpers.data import Split, batches
from helpers.types import Count, checked


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy, as a count: ``float()`` gives the share, ``print`` the percentage with its interval.

    Attributes:
        correct: pictures classified correctly.
        total: pictures.
    """

    correct: int
    total: int

    def __post_init__(self) -> None:
        checks.integer("total", self.total, 1)
        checks.integer("correct", self.correct, 0, self.total)

    def __float__(self) -> float:
        """Return the share of correct answers, in [0, 1]."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share (Wilson 1927): where the accuracy on all such pictures plausibly lies."""
        z, n, p = 1.959963984540054, self.total, float(self)
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)

    def __str__(self) -> str:
        """Return for example ``94.2% (9,421 of 10,000; 93.7 to 94.7)``."""
        low, high = self.interval
        return f"{float(self):.1%} ({self.correct:,} of {self.total:,}; {100 * low:.1f} to {100 * high:.1f})"


def predict(model: nn.Module, split: Split, *, batch_size: int = 500, precision: str = "fp32") -> Tensor:
    """Return the logits of every picture of ``split``, in order, in eval mode: N x classes, float32, on the CPU."""
    checks.instance("model", model, nn.Module)
    checks.instance("split", split, Split)
    checks.integer("batch_size", batch_size, 1)
    if len(split) == 0:
        raise ValueError("split must hold at least one picture, got none")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    logits = []
    with evaluating(model), autocast(device, precision):
        for images, _ in batches(split.to(device), batch_size):
            logits.append(model(images).float().cpu())
            if logits[-1].ndim != 2 or len(logits[-1]) != len(images):
                raise ValueError(
                    f"model must map pictures to logits, {len(images)} x classes, got {tuple(logits[-1].shape)}"
                )
    return torch.cat(logits)


def evaluate(model: nn.Module, split: Split, *, batch_size: int = 500, precision: str = "fp32") -> Accuracy:
    """Measure top-1 accuracy on ``split``, in eval mode.

    Args:
        model: maps normalised images to logits.
        split: what to classify.
        batch_size: pictures at a time; does not change the result beyond rounding.
        precision: "fp32", "bf16" (autocast, about twice as fast where the processor computes in it), or "auto": bf16 there.

    Returns:
        Accuracy: ``float()`` in [0, 1], and its 95% interval.
    """
    answers = predict(model, split, batch_size=batch_size, precision=precision).argmax(1)
    return Accuracy(int((answers == split.labels.cpu()).sum()), len(split))


@checked
def recalibrate(model: nn.Module, split: Split, *, batch_size: Count = 500) -> nn.Module:
    """Return a copy of ``model`` whose batch normalisation has taken its statistics anew, from pictures without labels.

    Whoever changes a network without training it leaves the means and variances of the network that was: they, not the lost
    weights, make most cliffs (Nagel 2019, section 4.2; Schneider 2020). Each layer's are averaged over the batches.

    Args:
        model: maps normalised images to logits; not changed. Without batch normalisation the copy is just that.
        split: some hundred training pictures.
        batch_size: pictures at a time; a last batch that would be smaller is left out.
    """
    fresh = copy.deepcopy(model)
    kind = nn.modules.batchnorm._BatchNorm
    norms = [layer for layer in fresh.modules() if isinstance(layer, kind) and layer.running_mean is not None]
    momenta, modes = [norm.momentum for norm in norms], {layer: layer.training for layer in fresh.modules()}
    fresh.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    whole = (
        split.take(slice(0, max(1, len(split) // batch_size) * batch_size))
        if norms
        else split.take(slice(0, 0))
    )
    with torch.no_grad():
        for images, _ in batches(whole.to(device), batch_size):
            fresh(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for layer, mode in modes.items():
        layer.training = mode
    return fresh


@checked
def measure(
    model: nn.Module, split: Split, calibration: Split, *, precision: str = "fp32"
) -> dict[str, float]:
    """Measure a network that was changed and not trained: as it fell out, and recalibrated on the pictures of ``calibration``.

    Returns:
        correct, recalibrated_correct and total (pictures of ``split``), accuracy and recalibrated (shares of 1).
    """
    as_is = evaluate(model, split, precision=precision)
    fresh = evaluate(recalibrate(model, calibration), split, precision=precision)
    counts = {"correct": as_is.correct, "recalibrated_correct": fresh.correct, "total": as_is.total}
    return counts | {"accuracy": float(as_is), "recalibrated": float(fresh)}


@dataclass(frozen=True)
class Paired:
    """Two networks on the same pictures.

    Attributes:
        only_first: pictures that only the first has right.
        only_second: pictures that only the second has right.
        total: pictures.
    """

    only_first: int
    only_second: int
    total: int

    @property
    def points(self) -> float:
        """Return by how many percentage points the first is ahead."""
        return 100 * (self.only_first - self.only_second) / self.total

    @property
    def p_value(self) -> float:
        """Return how likely a difference at least as large is if both are equally good (exact McNemar test, 1947)."""
        return (
            float(binomtest(self.only_first, self.only_first + self.only_second).pvalue)
            if self.only_first + self.only_second
            else 1.0
        )

    def __str__(self) -> str:
        """Return for example ``-0.11 points (62 against 73 of 10,000; p 0.39)``."""
        counts = f"{self.only_first:,} against {self.only_second:,} of {self.total:,}"
        return f"{self.points:+.2f} points ({counts}; p {self.p_value:.2g})"


def paired(answers_a: Tensor, answers_b: Tensor, labels: Tensor) -> Paired:
    """Compare two networks by their answers to the same pictures, which is far sharper than two intervals.

    Args:
        answers_a: the class that the first network gave each picture: N.
        answers_b: of the second.
        labels: the true classes.
    """
    a, b, labels = (torch.as_tensor(values) for values in (answers_a, answers_b, labels))
    if not a.shape == b.shape == labels.shape or a.ndim != 1 or not len(a):
        raise ValueError(
            "answers_a, answers_b and labels must be one class for each of the same pictures, "
            f"got shapes {tuple(a.shape)}, {tuple(b.shape)} and {tuple(labels.shape)}"
        )
    right_a, right_b = a == labels, b == labels
    return Paired(int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum()), len(labels))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for the block; afterwards every module has the mode it had."""
    checks.instance("model", model, nn.Module)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@functools.cache
def has_bf16(device_type: str = "cpu") -> bool:
    """Whether processors of this type ("cpu", "cuda") compute in bfloat16 here, at more than emulated speed."""
    checks.instance("device_type", device_type, str)
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    text = flags.read_text("utf-8") if device_type == "cpu" and flags.exists() else ""
    return any(flag in text for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context that computes in "fp32", "bf16" or "auto" on ``device``; small maps go to tile units where there are some.

    It serves for one ``with``; ask for another for the next.

    Raises:
        ValueError: another precision.
    """
    checks.choice("precision", precision, ("auto", "bf16", "fp32"))
    checks.instance("device", device, torch.device)
    enabled = precision == "bf16" or (precision == "auto" and has_bf16(device.type))
    return _autocast(device.type, enabled)


@contextmanager
def _autocast(device_type: str, enabled: bool) -> Iterator[None]:
    tiles = SmallMaps() if enabled and has_tiles(device_type) else nullcontext()
    with torch.autocast(device_type, torch.bfloat16, enabled=enabled), tiles:
        yield
