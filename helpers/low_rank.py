"""Low-rank factorization: the technique that changes the model. One layer becomes two thinner ones."""

import copy
import warnings
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn

from helpers import ranks as choosing
from helpers.data import Split
from helpers.evaluation import Precision, measure
from helpers.networks import known
from helpers.profiling import count_macs, count_parameters
from helpers.ranks import Budget, Counted, Layer, Network, Scheme, factorizable, responses
from helpers.types import Count, Names, Number, PositiveShare, Shape, by_name, checked, several, tensor

Schemes = Literal["channel", "spatial", "auto"]
break_even_rank, factorized_size = choosing.break_even_rank, choosing.factorized_size


@checked
def matricize(module: Layer, scheme: Scheme = "channel") -> Tensor:
    """Write a layer's weights as the matrix whose singular values decide how thin it may become.

    "channel" (Zhang 2016, section 3): a row per output, a column per weight of its kernel; splits a
    convolution into k x k with few outputs, then 1 x 1. "spatial" (Jaderberg 2014, scheme 2): rows are
    (input, y), columns (output, x); splits it into k x 1, then 1 x k.

    Args:
        module, scheme: a Conv2d or Linear; a Linear has only the first scheme.

    Returns:
        groups x rows x columns; a Linear and an ordinary convolution are one group.
    """
    weight = module.weight.detach()
    if not weight.isfinite().all():
        raise ValueError("module must have finite weights, but one is NaN or infinite")
    if scheme == "spatial" and isinstance(module, nn.Conv2d):
        weight = weight.unflatten(0, (module.groups, -1)).permute(0, 2, 3, 1, 4)
    return weight.reshape(choosing.sides(module, scheme))


@checked
def singular_values(module: Layer, scheme: Scheme = "channel") -> Tensor:
    """Return a layer's singular values, largest first, in float64, exact to 1e-8 of the largest.

    Those of a grouped convolution are the roots of the sums of the groups' squares, so that ``energy`` says
    what is kept when every group keeps the same rank.
    """
    return decompose(module, scheme).values


@checked
def energy(singular_values: tensor(1) | several(Number)) -> Tensor:
    """Return the share of the squared weights that rank 1, 2, ... keeps (Eckart and Young 1936).

    Args:
        singular_values: non-negative, largest first.

    Returns:
        float64, of the same length, non-decreasing, ending in 1. One minus the r-th is the squared relative
        error of the best approximation of rank r.
    """
    values = torch.as_tensor(singular_values, dtype=torch.float64)
    if not len(values) or (values < 0).any() or (values > 1e150).any():  # whose squares would overflow
        raise ValueError(f"singular_values must be one or more numbers in [0, 1e150], got {values.tolist()}")
    kept = values.square().cumsum(0)
    return kept / kept[-1] if kept[-1] > 0 else torch.ones_like(kept)


@checked
def rank_for_energy(singular_values: tensor(1) | several(Number), threshold: PositiveShare) -> int:
    """Return the smallest rank that keeps at least ``threshold`` of the energy."""
    return min(int((energy(singular_values) < threshold - 1e-12).sum()) + 1, len(singular_values))


@dataclass(frozen=True)
class Factors:
    """A layer's matrix taken apart: the first r columns of both sides are its best approximation of rank r.

    Attributes:
        left: groups x rows x full rank.
        right: groups x columns x full rank; the matrix is ``left @ right.mT``.
        values: the singular values, largest first, or the standard deviations of the responses to pictures.
        mean: of the responses to pictures, groups x rows; None without.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    mean: Tensor | None = None


@checked
def decompose(
    module: Layer, scheme: Scheme = "channel", responses: tuple[tensor(2), tensor(3)] | None = None
) -> Factors:
    """Take a layer's matrix apart by its singular values, or by the principal components of its responses.

    The second is data-aware: of all matrices of rank r, projecting the responses on their first r principal
    components changes the layer's outputs least (Zhang 2016, section 3.1). The first is that for white
    inputs: eigenvectors of the matrix times its transpose, found several times sooner than by an SVD.

    Args:
        module: a Conv2d or Linear.
        scheme: "channel" or "spatial".
        responses: mean (groups x rows) and covariance (groups x rows x rows) of the outputs without bias.
    """
    matrix = matricize(module, scheme).cpu().double()
    if turned := responses is None and matrix.shape[1] > matrix.shape[2]:
        matrix = matrix.mT  # the smaller side's eigenvectors say as much, and are found sooner
    groups, rows, columns = matrix.shape
    given = responses or (None, matrix @ matrix.mT)
    mean, covariance = (part if part is None else part.cpu().double() for part in given)
    sizes = (groups, rows), (groups, rows, rows)
    if responses and (scheme != "channel" or (mean.shape, covariance.shape) != sizes):
        found = f"{tuple(mean.shape)} and {tuple(covariance.shape)}, scheme {scheme}"
        raise ValueError(f"responses must be {sizes[0]} and {sizes[1]}, scheme channel; got {found}")
    variances, directions = torch.linalg.eigh(covariance)  # smallest first
    directions = directions.flip(-1)[:, :, : min(rows, columns)]
    values = variances.flip(-1)[:, : min(rows, columns)].clamp_min(0).sum(0).sqrt()
    right = matrix.mT @ directions  # columns x rank: what each direction reads from the inputs
    root = right.norm(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    left, right = directions * root, right / root
    return Factors(right, left, values) if turned else Factors(left, right, values, mean)


@checked
def split(module: Layer, rank: Count, scheme: Scheme = "channel") -> nn.Sequential:
    """Return two layers that together compute the best approximation of ``module`` of this rank.

    Both parts carry the square root of the singular values, so neither is much larger than the other and both
    train alike. Stride, padding, dilation, groups, bias, type, device, memory format and whether it trains
    are the layer's.

    Args:
        module: a Conv2d or Linear.
        rank: from 1 to full; of each group, for a grouped convolution.
        scheme: "channel" or "spatial".
    """
    full = min(choosing.sides(module, scheme)[1:])
    if rank > full:
        raise ValueError(f"rank must be from 1 to {full}, the full rank, got {rank}")
    return _build(module, decompose(module, scheme), rank, scheme)


def _build(module: Layer, factors: Factors, rank: int, scheme: str) -> nn.Sequential:
    left, right = factors.left[:, :, :rank], factors.right[:, :, :rank].mT
    bias = None if module.bias is None else module.bias.detach().cpu().double()
    if factors.mean is not None:  # what the lost directions add on average goes into the bias
        directions = left / left.norm(dim=1, keepdim=True)
        lost = factors.mean[:, :, None] - directions @ (directions.mT @ factors.mean[:, :, None])
        bias = lost.flatten() + (0 if bias is None else bias)
    if isinstance(module, nn.Linear):
        first = nn.Linear(module.in_features, rank, bias=False)
        second = nn.Linear(rank, module.out_features, bias=bias is not None)
    else:
        before, after = ("yx", "") if scheme == "channel" else ("y", "x")
        middle = module.groups * rank
        first = _convolution(module, module.in_channels, middle, before, bias=False)
        second = _convolution(module, middle, module.out_channels, after, bias=bias is not None)
    if scheme == "spatial" and isinstance(module, nn.Conv2d):  # rows are (input, y), columns (output, x)
        left, right = right.unflatten(2, (-1, module.kernel_size[1])).transpose(1, 2), left.mT
    parts = nn.Sequential(first, second).to(module.weight.device, module.weight.dtype).train(module.training)
    with torch.no_grad():
        first.weight.copy_(right.reshape(first.weight.shape))
        second.weight.copy_(left.reshape(second.weight.shape))
        if bias is not None:
            second.bias.copy_(bias)
    if isinstance(module, nn.Conv2d) and module.weight.is_contiguous(memory_format=torch.channels_last):
        parts.to(memory_format=torch.channels_last)
    return parts.requires_grad_(module.weight.requires_grad)


def _convolution(module: nn.Conv2d, inputs: int, outputs: int, sides: str, bias: bool) -> nn.Conv2d:
    geometry = {}  # that of module along sides, of "y" and "x"; 1 wide along the others
    for name, neutral in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        own = getattr(module, name)
        if not isinstance(own, str):  # "same" and "valid" are so along every side
            own = tuple(value if side in sides else neutral for side, value in zip("yx", own, strict=True))
        geometry[name] = own
    own = {"groups": module.groups, "padding_mode": module.padding_mode}
    return nn.Conv2d(inputs, outputs, **geometry, **own, bias=bias)


@checked
def analyze(
    model: Network,
    energy: PositiveShare = 0.9,
    *,
    scheme: Schemes = "channel",
    skip: Names = (),
    budget: Budget | None = None,
    count: Counted = "parameters",
    round_to: Count = 1,
    pictures: Split | None = None,
    input_shape: Shape | None = (1, 3, 32, 32),
) -> pd.DataFrame:
    """Choose a rank for every Conv2d and Linear, and say what factorization would make of each.

    Args:
        model: any module.
        energy: share of each layer's squared weights to keep, in (0, 1]; not used with ``budget``.
        scheme: "channel", "spatial", or "auto": for each layer whichever needs fewer MACs, or buys more.
        skip: names of layers to leave out.
        budget: share of these layers' ``count`` that the network may keep, in (0, 1], spent on (nearly) the
            largest sum of the layers' energies; a layer that is cheaper whole stays whole.
        count: what the budget counts; with "both", neither may exceed it, or its own of a pair of budgets.
        round_to: ranks are multiples of this where the layer has that many; up for an energy, to keep it.
        pictures: choose by what these do in the network instead of by the weights alone (see ``decompose``);
            "channel" only. Energy then is the share of the variance of the layer's responses.
        input_shape: for MACs; with pictures it is theirs. None: MACs of one output of a wide picture.

    Returns:
        A row per layer: layer, shape, scheme, full_rank, rank, energy (really kept), parameters and
        factorized_parameters (weights, without biases), macs and factorized_macs, break_even_rank, worthwhile
        (the two parts have fewer weights than the one and no more MACs, or, with a budget, are what it buys).
    """
    options, _ = _take_apart(model, skip, scheme, pictures, input_shape)
    return choosing.plan(options, energy, budget, count, round_to)


@checked
def factorize(
    model: Network,
    energy: PositiveShare = 0.9,
    ranks: by_name(Count) | None = None,
    skip: Names = (),
    *,
    scheme: Schemes = "channel",
    budget: Budget | None = None,
    count: Counted = "parameters",
    round_to: Count = 1,
    pictures: Split | None = None,
    input_shape: Shape = (1, 3, 32, 32),
) -> nn.Module:
    """Return a copy of ``model`` in which every layer worth it is split in two.

    Args:
        model: any module; it is not changed.
        energy: as in ``analyze``. A layer that would grow is left as it is, with a warning that names it.
        ranks: {layer name: rank}, honoured, with a warning where the layer grows; others are left alone.
        skip: names of layers to leave alone.
        scheme: with ``ranks``, "auto" is whichever has fewer weights at that rank; else as in ``analyze``.
        budget, count, round_to, pictures, input_shape: as in ``analyze``.

    Returns:
        The copy, after a run in both modes; layers that do not run, since others read their weights, are left
        alone. A model of ``models.build`` keeps its recipe: it saves, loads and trains like any other.
    """
    if ranks is not None and budget is not None:
        raise ValueError(f"budget must be None where ranks are given, got {budget!r}")
    runs, skip = choosing.runs_of(model, skip, input_shape, pictures)
    if ranks is None:
        shape = input_shape if runs or count != "parameters" else None
        options, factors = _take_apart(model, skip, scheme, pictures, shape)
        plan = choosing.plan(options, energy, budget, count, round_to)
        alone = plan.loc[~plan["worthwhile"], "layer"]
        if len(alone) and budget is None:
            why = f"left alone, since two parts would be no smaller at energy {energy:g}"
            warnings.warn(f"{why}: {', '.join(alone)}", stacklevel=3)  # 3: whoever called
    else:
        layers = factorizable(model, skip)
        known("ranks", ranks, layers)
        others = [*skip, *(name for name in layers if name not in ranks)]
        options, factors = _take_apart(model, others, scheme, pictures, None)
        plan = choosing.by_hand(options, ranks)
        for row in plan[plan["factorized_parameters"] >= plan["parameters"]].itertuples():
            sizes = f"{row.parameters:,} to {row.factorized_parameters:,} weights"
            warnings.warn(f"layer {row.layer} grows from {sizes} at rank {row.rank}", stacklevel=3)
    return choosing.tried(_apply(model, plan, factors), runs)


@checked
def sweep(
    model: Network,
    split: Split,
    energies: several(PositiveShare) = (),
    *,
    calibration: Split,
    budgets: several(PositiveShare) = (),
    count: Counted = "parameters",
    scheme: Schemes = "channel",
    skip: Names = (),
    pictures: Split | None = None,
    precision: Precision = "fp32",
) -> pd.DataFrame:
    """Factorize at each energy, and to each budget, without any training. Every layer is taken apart once.

    Args:
        model: is not changed.
        split: what to measure accuracy on.
        energies: in (0, 1]; the slider of notebook 03 moves through them.
        calibration: training pictures for batch normalisation (see ``evaluation.recalibrate``).
        budgets: shares of the ``count``, in (0, 1].
        count, scheme, skip, pictures: as in ``analyze``.
        precision: as in ``evaluate``.

    Returns:
        A row per energy and budget: energy or budget, parameters and macs (of the whole network), what
        ``evaluation.measure`` gives, and ranks ({layer: rank, 0 where the layer stays whole}).
    """
    shape, rows = (1, *split.images.shape[1:]), []
    options, factors = _take_apart(model, skip, scheme, pictures, shape)
    for column, value in [("energy", one) for one in energies] + [("budget", one) for one in budgets]:
        plan = choosing.plan(options, value, value if column == "budget" else None, count, 1)
        thinner = _apply(model, plan, factors)
        row = {column: value, "parameters": count_parameters(thinner), "macs": count_macs(thinner, shape)}
        ranks = dict(zip(plan["layer"], plan["rank"].where(plan["worthwhile"], 0).tolist(), strict=True))
        rows.append(row | measure(thinner, split, calibration, precision=precision) | {"ranks": ranks})
    return pd.DataFrame(rows)


def _take_apart(
    model: nn.Module, skip: Names, scheme: str, pictures: Split | None, input_shape: tuple[int, ...] | None
) -> tuple[pd.DataFrame, dict[tuple[str, str], Factors]]:
    if pictures is not None and scheme != "channel":
        raise ValueError(f'scheme must be "channel" with pictures, got {scheme!r}')
    if not (layers := factorizable(model, skip)):
        raise ValueError("model must have a Conv2d or Linear besides those in skip, got none")
    for name in (name for name, layer in layers.items() if not layer.weight.isfinite().all()):
        raise ValueError(f"model must have finite weights, but layer {name} has NaN or infinity")
    shape = (1, *pictures.images.shape[1:]) if pictures and input_shape else input_shape
    positions = choosing.positions(model, layers, shape)
    seen = {} if pictures is None else responses(model, pictures, skip)
    schemes = ("channel", "spatial") if scheme == "auto" else (scheme,)
    tables, factors = [], {}
    for name, layer in layers.items():
        for one in ("channel",) if isinstance(layer, nn.Linear) else schemes:
            factors[name, one] = decompose(layer, one, seen.get(name))
            kept = energy(factors[name, one].values)
            tables.append(choosing.options(name, layer, one, kept, positions[name]))
    return pd.concat(tables, ignore_index=True), factors


def _apply(model: nn.Module, plan: pd.DataFrame, factors: dict[tuple[str, str], Factors]) -> nn.Module:
    result = copy.deepcopy(model)
    for row in plan[plan["worthwhile"]].itertuples():
        whole = result.get_submodule(row.layer)
        parts = _build(whole, factors[row.layer, row.scheme], row.rank, row.scheme)
        if whole is result:
            return parts
        for name, layer in list(result.named_modules(remove_duplicate=False)):
            if layer is whole:  # it may have two names
                result.set_submodule(name, parts)
    return result
