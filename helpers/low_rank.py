"""Low-rank factorization: the technique that changes the model. One layer becomes two thinner ones."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from helpers import checks

SCHEMES = ("channel", "spatial")


def matricize(module: nn.Module, scheme: str = "channel") -> Tensor:
    """Write a layer's weights as the matrix whose singular values decide how thin it may become.

    "channel" (Zhang 2016, section 3): a row per output, a column per weight of its kernel; splits a convolution into
    k x k with few outputs, then 1 x 1. "spatial" (Jaderberg 2014, scheme 2): rows are (input, y), columns (output, x);
    splits it into k x 1, then 1 x k.

    Args:
        module: a Conv2d or Linear.
        scheme: "channel" or "spatial"; a Linear has only the first.

    Returns:
        groups x rows x columns; a Linear and an ordinary convolution are one group.

    Raises:
        TypeError: another kind of layer.
    """
    checks.instance("module", module, (nn.Conv2d, nn.Linear))
    checks.choice("scheme", scheme, SCHEMES)
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        return weight[None]
    groups, (outputs, inputs, height, width) = module.groups, weight.shape
    kernels = weight.reshape(groups, outputs // groups, inputs, height, width)
    if scheme == "channel":
        return kernels.reshape(groups, outputs // groups, -1)
    return kernels.permute(0, 2, 3, 1, 4).reshape(groups, inputs * height, outputs // groups * width)


def singular_values(module: nn.Module, scheme: str = "channel") -> Tensor:
    """Return a layer's singular values, largest first, in float64.

    For a grouped convolution the i-th value is the root of the sum of squares of the groups' i-th values, so that ``energy``
    says what is kept when every group keeps the same rank.
    """
    return torch.linalg.svdvals(matricize(module, scheme).to("cpu", torch.float64)).square().sum(0).sqrt()


def energy(singular_values: Tensor) -> Tensor:
    """Return the share of the squared weights that the first 1, 2, ... singular values keep (Eckart and Young 1936).

    Args:
        singular_values: non-negative, largest first.

    Returns:
        float64, of the same length, non-decreasing, ending in 1. One minus the r-th is the squared relative error of the best
        approximation of rank r.

    Raises:
        ValueError: not a vector of at least one finite, non-negative number.
    """
    values = torch.as_tensor(singular_values, dtype=torch.float64)
    if values.ndim != 1 or not len(values) or not values.isfinite().all() or (values < 0).any():
        raise ValueError(f"singular_values must be a vector of finite, non-negative numbers, got shape {tuple(values.shape)}")
    kept = values.square().cumsum(0)
    return kept / kept[-1] if kept[-1] > 0 else torch.ones_like(kept)


_energy = energy  # for the functions that have an argument of that name


def rank_for_energy(singular_values: Tensor, threshold: float) -> int:
    """Return the smallest rank that keeps at least ``threshold`` of the energy.

    Raises:
        ValueError: ``threshold`` is not in (0, 1].
    """
    threshold = checks.number("threshold", threshold, 0, 1, open_low=True)
    return min(int((energy(singular_values) < threshold - 1e-12).sum()) + 1, len(singular_values))


def factorized_size(module: nn.Module, rank: int, scheme: str = "channel") -> int:
    """Return the number of weights of both parts at ``rank`` (per group), biases left out."""
    _, rows, columns = matricize(module, scheme).shape
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    return groups * rank * (rows + columns)


def break_even_rank(module: nn.Module, scheme: str = "channel") -> int:
    """Return the largest rank at which the two parts have fewer weights than the layer; 0 if there is none."""
    _, rows, columns = matricize(module, scheme).shape
    return math.ceil(rows * columns / (rows + columns)) - 1


def analyze(model: nn.Module, energy: float = 0.9, *, scheme: str = "channel", skip: Iterable[str] = ()) -> pd.DataFrame:
    """Say for every Conv2d and Linear what factorization at this energy would make of it.

    Args:
        model: any module.
        energy: share of each layer's squared weights to keep, in (0, 1].
        scheme: "channel" or "spatial".
        skip: names of layers to leave out.

    Returns:
        A row per layer: layer, shape, full_rank, rank, energy (really kept), parameters and factorized_parameters (weights, without
        biases), break_even_rank, worthwhile (the two parts have fewer weights than the one).

    Raises:
        ValueError: ``energy`` is outside (0, 1], or a name in ``skip`` is unknown.
    """
    energy = checks.number("energy", energy, 0, 1, open_low=True)
    rows = []
    for name, layer in factorizable(model, skip).items():
        values = singular_values(layer, scheme)
        rank = rank_for_energy(values, energy)
        size = factorized_size(layer, rank, scheme)
        rows.append(
            {
                "layer": name,
                "shape": tuple(layer.weight.shape),
                "full_rank": len(values),
                "rank": rank,
                "energy": float(_energy(values)[rank - 1]),
                "parameters": layer.weight.numel(),
                "factorized_parameters": size,
                "break_even_rank": break_even_rank(layer, scheme),
                "worthwhile": size < layer.weight.numel(),
            }
        )
    columns = ["layer", "shape", "full_rank", "rank", "energy", "parameters", "factorized_parameters", "break_even_rank", "worthwhile"]
    return pd.DataFrame(rows, columns=columns)


def factorizable(model: nn.Module, skip: Iterable[str] = ()) -> dict[str, nn.Module]:
    """Return every Conv2d and Linear by name, in order, but those in ``skip``.

    Raises:
        ValueError: a name in ``skip`` is not such a layer.
    """
    if isinstance(skip, str):
        raise TypeError(f"skip must be a collection of layer names, got the string {skip!r}")
    layers = {name: layer for name, layer in model.named_modules() if type(layer) in (nn.Conv2d, nn.Linear)}
    skip = set(skip)
    for name in skip:
        checks.choice("skip", name, layers)
    return {name: layer for name, layer in layers.items() if name not in skip}


def split(module: nn.Module, rank: int, scheme: str = "channel") -> nn.Sequential:
    """Return two layers that together compute the best approximation of ``module`` of this rank.

    Both parts carry the square root of the singular values, so neither is much larger than the other and both train alike.
    Stride, padding, dilation, groups, bias, type, device, memory format and whether it trains are the layer's own.

    Args:
        module: a Conv2d or Linear.
        rank: from 1 to full; of each group, for a grouped convolution.
        scheme: "channel" or "spatial".

    Raises:
        ValueError: ``rank`` is out of range.
    """
    matrix = matricize(module, scheme)
    groups, rows, columns = matrix.shape
    rank = checks.integer("rank", rank, 1, min(rows, columns))
    u, s, v = torch.linalg.svd(matrix.to("cpu", torch.float64), full_matrices=False)
    root = s[:, :rank].sqrt()
    left, right = u[:, :, :rank] * root[:, None], v[:, :rank] * root[:, :, None]  # groups x rows x rank, groups x rank x columns
    if isinstance(module, nn.Linear):
        first = nn.Linear(module.in_features, rank, bias=False)
        second = nn.Linear(rank, module.out_features, bias=module.bias is not None)
        weights = right[0], left[0]
    else:
        first, second = _convolutions(module, groups * rank, scheme)
        outputs, inputs, height, width = module.weight.shape
        if scheme == "channel":
            weights = right.reshape(groups * rank, inputs, height, width), left.reshape(outputs, rank, 1, 1)
        else:
            tall = left.reshape(groups, inputs, height, rank).permute(0, 3, 1, 2)
            wide = right.reshape(groups, rank, outputs // groups, width).permute(0, 2, 1, 3)
            weights = tall.reshape(groups * rank, inputs, height, 1), wide.reshape(outputs, rank, 1, width)
    parts = nn.Sequential(first, second).to(module.weight.device, module.weight.dtype).train(module.training)
    with torch.no_grad():
        for part, weight in zip(parts, weights, strict=True):
            part.weight.copy_(weight)
        if module.bias is not None:
            parts[1].bias.copy_(module.bias)
    if isinstance(module, nn.Conv2d) and module.weight.is_contiguous(memory_format=torch.channels_last):
        parts.to(memory_format=torch.channels_last)
    return parts.requires_grad_(module.weight.requires_grad)


def _convolutions(module: nn.Conv2d, channels: int, scheme: str) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Return the two convolutions with the geometry of ``module`` shared between them, ``channels`` wide in the middle."""
    own = {"groups": module.groups, "padding_mode": module.padding_mode}
    shape = {"kernel_size": module.kernel_size, "stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    bias = module.bias is not None
    if scheme == "channel":
        first = nn.Conv2d(module.in_channels, channels, **shape, bias=False, **own)
        return first, nn.Conv2d(channels, module.out_channels, 1, bias=bias, groups=module.groups)
    neutral = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    tall = {key: value if isinstance(value, str) else (value[0], neutral[key]) for key, value in shape.items()}
    wide = {key: value if isinstance(value, str) else (neutral[key], value[1]) for key, value in shape.items()}
    first = nn.Conv2d(module.in_channels, channels, **tall, bias=False, **own)
    return first, nn.Conv2d(channels, module.out_channels, **wide, bias=bias, **own)


def factorize(
    model: nn.Module,
    energy: float = 0.9,
    ranks: Mapping[str, int] | None = None,
    skip: Iterable[str] = (),
    *,
    scheme: str = "channel",
) -> nn.Module:
    """Return a copy of ``model`` in which every layer worth it is split in two.

    Args:
        model: any module; it is not changed.
        energy: share of each layer's squared weights to keep, in (0, 1]. A layer that would grow is left as it is.
        ranks: {layer name: rank}, honoured even where the layer grows, with a warning; other layers are then left alone.
        skip: names of layers to leave alone.
        scheme: "channel" or "spatial".

    Returns:
        The copy. A model of ``models.build`` keeps its recipe, so it saves, loads and trains like any other.

    Raises:
        ValueError: ``energy`` is outside (0, 1], a rank is out of range, or a layer's name is unknown.
    """
    energy = checks.number("energy", energy, 0, 1, open_low=True)
    checks.choice("scheme", scheme, SCHEMES)
    layers = factorizable(model, skip)
    if ranks is None:
        chosen = {name: rank_for_energy(singular_values(layer, scheme), energy) for name, layer in layers.items()}
        chosen = {name: rank for name, rank in chosen.items() if rank <= break_even_rank(layers[name], scheme)}
    else:
        chosen = dict(checks.instance("ranks", ranks, Mapping))
        for name, rank in chosen.items():
            checks.choice("ranks", name, layers)
            chosen[name] = checks.integer(f"ranks[{name!r}]", rank, 1, min(matricize(layers[name], scheme).shape[1:]))
    result = copy.deepcopy(model)
    for name, rank in chosen.items():
        before, after = layers[name].weight.numel(), factorized_size(layers[name], rank, scheme)
        parts = split(layers[name], rank, scheme)
        if after >= before:
            warnings.warn(f"layer {name} grows from {before:,} to {after:,} weights at rank {rank}", stacklevel=2)
        if not name:
            return parts
        result.set_submodule(name, parts)
    return result
