"""Fewer bits per weight: real numbers on a grid of integers, and codes short for what is frequent."""

import copy
import heapq
import itertools
from collections.abc import Hashable, Mapping

import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from helpers.callbacks import Callback, Run
from helpers.data import Split
from helpers.evaluation import Precision, measure
from helpers.networks import check_plain, prunable
from helpers.types import Bits, Count, Network, Positive, Whole, checked, real, several, shown, tensor, whole

GridBits, CodeBits, Real = whole(1, 16), whole(1, 8), real(ge=-1e300, le=1e300)


@checked
def affine_grid(low: Real, high: Real, bits: GridBits = 8) -> tuple[float, int]:
    """Return scale and zero point of the unsigned ``bits``-bit grid over [low, high] that holds 0 exactly.

    A real value r is stored as the integer q with r = scale * (q - zero_point) (Jacob 2018, section 2.1).

    Args:
        low: smallest value to cover.
        high: largest value to cover, not below ``low``.
        bits: the grid has 2^bits points.
    """
    if high < low:
        raise ValueError(f"high must be at least low, {low}, got {high}")
    levels = 2**bits - 1
    low, high = min(low, 0.0), max(high, 0.0)  # zero must be exact: padding and ReLU produce it all the time
    scale = max((high - low) / levels, 1e-30) if high > low else 1.0  # no float32 is below 1e-45
    return scale, min(levels, max(0, round(-low / scale)))


@checked
def quantize(values: tensor(), scale: Positive, zero_point: Whole, bits: GridBits = 8) -> Tensor:
    """Return the integers nearest to ``values`` on the grid, clamped to its ends: int64, the same shape."""
    levels = 2**bits - 1
    if zero_point > levels:
        raise ValueError(f"zero_point must be on the grid, 0 to {levels}, got {zero_point}")
    values = values.to(torch.promote_types(values.dtype, torch.float32))  # half has too few digits
    return (values / scale + zero_point).round().clamp(0, levels).long()


@checked
def dequantize(integers: tensor(), scale: Positive, zero_point: Whole) -> Tensor:
    """Return the real values that the integers stand for."""
    return scale * (integers.to(torch.promote_types(integers.dtype, torch.int64)) - zero_point)


@checked
@torch.no_grad()
def round_weights(model: Network, bits: Bits, *, per_channel: bool = True, clip: bool = False) -> nn.Module:
    """Return a copy whose Conv2d and Linear weights are rounded to 2^bits - 1 levels, symmetric about 0.

    The arithmetic stays in floating point; this shows what the rounding of weights alone costs (activations:
    ``export.quantize_onnx``).

    Args:
        model: is not changed.
        bits: of each weight.
        per_channel: a scale for each output channel, instead of one for the layer (Krishnamoorthi 2018,
            section 2.6).
        clip: as in ``symmetric_grid``.
    """
    check_plain(model)
    rounded = copy.deepcopy(model)
    for weight in prunable(rounded).values():
        weight.copy_(round_to_grid(weight, bits, per_channel=per_channel, clip=clip))
    return rounded


def round_to_grid(weight: Tensor, bits: int, *, per_channel: bool = True, clip: bool = False) -> Tensor:
    """Round a weight to 2^bits - 1 levels about 0: ``symmetric_grid``'s integers times its scale."""
    integers, scale = symmetric_grid(weight, bits, per_channel=per_channel, clip=clip)
    return integers * scale


@checked
def symmetric_grid(
    weight: tensor(), bits: Bits = 8, *, per_channel: bool = True, clip: bool = False
) -> tuple[Tensor, Tensor]:
    """Return a weight as integers from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1, and what one step is worth.

    Args:
        weight: outputs x anything, floating-point.
        bits: of each integer.
        per_channel: a scale for each output (Krishnamoorthi 2018, section 2.6), instead of one for all.
        clip: the grid ends where the squared error is least, of 20 places up to the largest weight, and what
            lies beyond is clipped (Nagel 2021, section 3.1); else it ends at the largest weight.

    Returns:
        Integers of the weight's shape, int64, and the scale, which multiplies them: outputs x 1 x ...
    """
    if not weight.ndim or not weight.is_floating_point():
        raise ValueError(f"weight must be floating-point, outputs x anything, got {shown(weight)}")
    weight, top = weight.to(torch.promote_types(weight.dtype, torch.float32)), 2 ** (bits - 1) - 1
    rows = weight.detach().reshape(len(weight), -1)
    largest = rows.abs().amax(1, keepdim=True) if per_channel else rows.abs().max().expand(len(rows), 1)
    scale, least = (largest / top).clamp_min(1e-12), torch.full_like(largest, torch.inf)
    for share in [step / 20 for step in range(1, 21)] if clip else ():
        narrower = (share * largest / top).clamp_min(1e-12)
        error = (_levels(rows, narrower, top) * narrower - rows).square().sum(1, keepdim=True)
        error = error if per_channel else error.sum().expand_as(error)
        scale, least = torch.where(error < least, narrower, scale), torch.minimum(error, least)
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    return _levels(weight, scale, top).long(), scale


def _levels(weight: Tensor, scale: Tensor, top: int) -> Tensor:
    return (weight / scale).round().clamp(-top, top)


@checked
class QuantizationAware(Callback):
    """Train with rounded weights: ``fit(model, data, callbacks=[QuantizationAware(4)], ...)``.

    Every step computes with the weights on their grid, and its gradient moves the exact ones behind them:
    rounding, whose slope is 0 almost everywhere, is passed as if its slope were 1 (straight-through
    estimator; Bengio 2013, section 4; for whole networks Jacob 2018, section 3). Steps too small to reach the
    next level add up there. ``fit`` measures, and leaves behind, the rounded network.

    Of several callbacks it comes last: what the others do to weights is done before they are rounded.

    Args:
        bits: of each Conv2d and Linear weight.
        per_channel: as in ``round_weights``.
        clip: as in ``symmetric_grid``.
    """

    def __init__(self, bits: Bits, *, per_channel: bool = True, clip: bool = False) -> None:
        self.bits, self.grid, self.exact = bits, {"per_channel": per_channel, "clip": clip}, {}

    def extra_repr(self) -> str:
        """Return the settings, for fit's checkpoint."""
        return f"bits={self.bits}, {self.grid}"

    def on_start(self, run: Run) -> None:
        """Keep the exact weights, or take them back after an interruption; put rounded ones in.

        Raises:
            ValueError: a pruner comes behind it: its zeros would not be in the exact weights.
        """
        behind = itertools.dropwhile(lambda one: one is not self, run.callbacks)
        if any(hasattr(one, "masks") for one in behind):
            raise ValueError("callbacks must have QuantizationAware behind the pruner, got it before")
        self.weights = prunable(run.model)
        if run.step:
            self._put(self.exact)
        self.on_step(run)

    def on_gradients(self, run: Run) -> None:
        """The gradient was computed with rounded weights; the step is taken from the exact ones."""
        self._put(self.exact)

    def on_step(self, run: Run) -> None:
        """Keep the exact weights, put rounded ones in for the next step."""
        self.exact = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._put({name: round_to_grid(w, self.bits, **self.grid) for name, w in self.exact.items()})

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.weights[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the exact weights."""
        return self.exact

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave."""
        self.exact = state


@checked
@torch.no_grad()
def codebook(model: Network, bits: CodeBits, *, per_channel: bool = True) -> nn.Module:
    """Return a copy in which each Conv2d and Linear has a table of 2^bits values, by k-means (Han 2016).

    A weight is then stored as its value's number in the table. Weights that are zero stay zero and have no
    number, since a sparse file stores the places of the others (Han 2016, section 2).

    Args:
        model: is not changed.
        bits: of each number.
        per_channel: each output channel is divided by its root mean square before, and multiplied by it
            afterwards, as a grid has a scale for each; else one table as it is, as in Han 2016.
    """
    check_plain(model)
    shared = copy.deepcopy(model)
    for weight in prunable(shared).values():
        alive, rows = weight != 0, weight.flatten(1)
        size = rows.square().mean(1).sqrt().clamp_min(1e-12) if per_channel else torch.ones_like(rows[:, 0])
        size = size.view(-1, *[1] * (weight.ndim - 1)).expand_as(weight)
        if alive.any():
            centers, numbers = k_means((weight / size)[alive], bits)
            weight[alive] = centers[numbers] * size[alive]
    return shared


@checked
def k_means(values: tensor(1), bits: CodeBits, steps: Count = 100) -> tuple[Tensor, Tensor]:
    """Move 2^bits numbers until each is the mean of the values nearest to it (Lloyd 1982).

    They start evenly spaced from the smallest value to the largest, so that the few large ones, which matter
    most, are not forgotten (Han 2016, section 3.2). One that no value is nearest to stays where it is.

    Args:
        values: N.
        bits: of each value's number.
        steps: at most so many; it ends earlier when nothing moves any more.

    Returns:
        centers: 2^bits, ascending. numbers: N, int64, of each value's nearest center.
    """
    values = values if values.is_floating_point() else values.float()  # the means are no whole numbers
    centers = torch.linspace(float(values.min()), float(values.max()), 2**bits).to(values)
    for _ in range(steps):
        numbers = torch.bucketize(values, (centers[1:] + centers[:-1]) / 2)
        count, total = (numbers.bincount(weights, 2**bits) for weights in (None, values.double()))
        moved = torch.where(count > 0, total / count.clamp_min(1), centers.double()).to(values)
        if moved.equal(centers):
            break
        centers = moved
    return centers, torch.bucketize(values, (centers[1:] + centers[:-1]) / 2)


@checked
def sweep(
    model: nn.Module,
    split: Split,
    bits: several(Bits),
    *,
    calibration: Split,
    per_channel: bool = True,
    precision: Precision = "fp32",
) -> pd.DataFrame:
    """Round the weights to each number of bits: what the slider of notebook 04 moves through.

    Args:
        model: is not changed.
        split: what to measure accuracy on.
        bits: of each weight, one row each.
        calibration: training pictures, from which the recalibrated copy takes its statistics.
        per_channel: as in ``round_weights``.
        precision: as in ``evaluate``.

    Returns:
        A row per number of bits: bits, the columns of ``measure``, bytes (of the weights alone, packed).
    """
    count, rows = sum(weight.numel() for weight in prunable(model).values()), []
    for number in bits:
        rounded = round_weights(model, number, per_channel=per_channel)
        found = measure(rounded, split, calibration, precision=precision)
        rows.append({"bits": number} | found | {"bytes": -(-count * number // 8)})
    return pd.DataFrame(rows)


@checked
def entropy(values: tensor()) -> float:
    """Return the Shannon entropy of the values' frequencies, in bits per value.

    No code of single values can be shorter on average.
    """
    return float(stats.entropy(values.unique(return_counts=True)[1].cpu(), base=2))


@checked
def huffman_lengths(counts: Mapping[Hashable, Count]) -> dict[Hashable, int]:
    """Return the length in bits of each symbol's code in the best prefix code (Huffman 1952).

    Args:
        counts: {symbol: how often it occurs}.
    """
    if not counts:
        raise ValueError("counts must hold at least one symbol, got none")
    ticket = itertools.count()  # breaks ties between equal counts
    heap = sorted((count, next(ticket), {symbol: 0}) for symbol, count in counts.items())
    while len(heap) > 1:  # join the two rarest: everything under them gets one bit longer
        (one, _, left), (two, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        longer = {symbol: depth + 1 for symbol, depth in (left | right).items()}
        heapq.heappush(heap, (one + two, next(ticket), longer))
    return {symbol: max(1, depth) for symbol, depth in heap[0][2].items()}  # one bit even if it is alone
