"""Fewer bits per weight: real numbers on a grid of integers, and codes that are short for what is frequent."""

from __future__ import annotations

import copy
import heapq
import itertools
from collections.abc import Iterable, Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from helpers import checks
from helpers.data import Split
from helpers.evaluation import evaluate


def affine_grid(low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """Return scale and zero point of the unsigned ``bits``-bit grid that covers [low, high] and holds 0 exactly (Jacob 2018, section 2.1).

    A real value r is stored as the integer q with r = scale * (q - zero_point).

    Args:
        low: smallest value to cover.
        high: largest value to cover, not below ``low``.
        bits: from 1 to 16.

    Raises:
        ValueError: an argument is out of range.
    """
    low = checks.number("low", low, -1e300, 1e300)
    high = checks.number("high", high, low, 1e300)
    levels = 2 ** checks.integer("bits", bits, 1, 16) - 1
    low, high = min(low, 0.0), max(high, 0.0)  # zero must be exact: padding and ReLU produce it all the time
    scale = (high - low) / levels or 1.0
    return scale, min(levels, max(0, round(-low / scale)))


def quantize(values: Tensor, scale: float, zero_point: int, bits: int = 8) -> Tensor:
    """Return the integers nearest to ``values`` on the grid, clamped to its ends: int64, of the same shape."""
    levels = 2 ** checks.integer("bits", bits, 1, 16) - 1
    checks.number("scale", scale, 0, open_low=True)
    checks.integer("zero_point", zero_point, 0, levels)
    checks.tensor("values", values)
    return (values / scale + zero_point).round().clamp(0, levels).long()


def dequantize(integers: Tensor, scale: float, zero_point: int) -> Tensor:
    """Return the real values that the integers stand for."""
    checks.number("scale", scale, 0, open_low=True)
    checks.integer("zero_point", zero_point, 0)
    checks.tensor("integers", integers)
    return scale * (integers - zero_point)


def round_weights(model: nn.Module, bits: int, *, per_channel: bool = True) -> nn.Module:
    """Return a copy of ``model`` whose Conv2d and Linear weights are rounded to 2^bits - 1 levels, symmetric about 0.

    The arithmetic stays in floating point; this shows what the rounding of weights alone costs (activations: ``export.quantize_onnx``).

    Args:
        model: is not changed.
        bits: from 2 to 16.
        per_channel: a scale for each output channel, instead of one for the layer (Krishnamoorthi 2018, section 2.3).
    """
    checks.integer("bits", bits, 2, 16)
    checks.instance("model", model, nn.Module)
    rounded = copy.deepcopy(model)
    for layer in rounded.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            with torch.no_grad():
                layer.weight.copy_(round_to_grid(layer.weight, bits, per_channel=per_channel))
    return rounded


def round_to_grid(weight: Tensor, bits: int, *, per_channel: bool = True) -> Tensor:
    """Round a weight to 2^bits - 1 levels, symmetric about 0: ``symmetric_grid``'s integers times its scale."""
    integers, scale = symmetric_grid(weight, bits, per_channel=per_channel)
    return integers * scale


def symmetric_grid(weight: Tensor, bits: int = 8, *, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    """Return a weight as integers from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1, and what one step is worth.

    Args:
        weight: outputs x anything.
        bits: from 2 to 16.
        per_channel: a scale for each output (Krishnamoorthi 2018, section 2.3), instead of one for all.

    Returns:
        Integers of the weight's shape, int64, and the scale, which multiplies them: outputs x 1 x ...
    """
    top = 2 ** (checks.integer("bits", bits, 2, 16) - 1) - 1
    if not checks.tensor("weight", weight).ndim or not weight.is_floating_point():
        raise ValueError(
            f"weight must be floating-point, outputs x anything, got {weight.dtype}, {tuple(weight.shape)}"
        )
    largest = weight.abs().flatten(1).amax(1) if per_channel else weight.abs().max().expand(len(weight))
    scale = (largest / top).clamp_min(1e-12).view(-1, *[1] * (weight.ndim - 1))
    return (weight / scale).round().clamp(-top, top).long(), scale


def sweep(
    model: nn.Module, split: Split, bits: Iterable[int], *, per_channel: bool = True, precision: str = "fp32"
) -> pd.DataFrame:
    """Round the weights to each number of bits: what the slider of notebook 04 moves through.

    Returns:
        A row per number of bits: bits, correct, total, accuracy, bytes (of the weights alone, packed).
    """
    checks.instance("model", model, nn.Module)
    checks.instance("split", split, Split)
    bits = [checks.integer("bits", one, 2, 16) for one in checks.collection("bits", bits, "integers")]
    rows = []
    count = sum(
        layer.weight.numel() for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    )
    for number in bits:
        accuracy = evaluate(round_weights(model, number, per_channel=per_channel), split, precision=precision)
        row = {
            "bits": number,
            "correct": accuracy.correct,
            "total": accuracy.total,
            "accuracy": float(accuracy),
        }
        rows.append(row | {"bytes": -(-count * number // 8)})
    return pd.DataFrame(rows)


def entropy(values: Tensor) -> float:
    """Return the Shannon entropy of the values' frequencies, in bits per value: no code of single values can be shorter on average."""
    counts = checks.tensor("values", values).unique(return_counts=True)[1].cpu().double()
    shares = counts / counts.sum()
    return float(-(shares * shares.log2()).sum())


def huffman_lengths(counts: Mapping[int, int]) -> dict[int, int]:
    """Return the length in bits of each symbol's code in the best prefix code (Huffman 1952).

    Args:
        counts: {symbol: how often it occurs}, each at least 1.

    Raises:
        ValueError: ``counts`` is empty, or a count is below 1.
    """
    checks.instance("counts", counts, Mapping)
    if not counts:
        raise ValueError("counts must hold at least one symbol, got none")
    ticket = itertools.count()  # breaks ties between equal counts
    heap = [
        (checks.integer("counts", count, 1), next(ticket), {symbol: 0}) for symbol, count in counts.items()
    ]
    if len(heap) == 1:
        return dict.fromkeys(counts, 1)
    heapq.heapify(heap)
    while len(heap) > 1:  # join the two rarest: everything under them gets one bit longer
        (one, _, left), (two, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(
            heap, (one + two, next(ticket), {symbol: depth + 1 for symbol, depth in (left | right).items()})
        )
    return heap[0][2]
