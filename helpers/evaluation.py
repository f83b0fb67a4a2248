"""Measuring accuracy: a count of correct answers, and the interval it leaves open. Knows nothing of training."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers import checks
from helpers.convolution import SmallMaps, has_tiles
from helpers.data import Split, batches


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
                raise ValueError(f"model must map pictures to logits, {len(images)} x classes, got {tuple(logits[-1].shape)}")
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
