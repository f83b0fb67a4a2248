"""Low-rank factorization: the technique that changes the model. One layer becomes two thinner ones."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor, nn

from helpers import checks
from helpers.data import Split
from helpers.evaluation import evaluate, evaluating, predict
from helpers.profiling import count_macs, count_parameters

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
    if not weight.isfinite().all():
        raise ValueError("module must have finite weights, but one is NaN or infinite")
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
    return torch.linalg.svdvals(matricize(module, scheme).cpu().double()).square().sum(0).sqrt()


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
    if not isinstance(singular_values, Tensor):
        singular_values = torch.tensor(
            checks.numbers("singular_values", singular_values), dtype=torch.float64
        )
    values = checks.tensor("singular_values", singular_values).to(torch.float64)
    if values.ndim != 1 or (values < 0).any() or (values > 1e150).any():  # whose squares would overflow
        raise ValueError(
            f"singular_values must be a vector of numbers in [0, 1e150], got shape {tuple(values.shape)}"
        )
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
    groups, rows, columns = matricize(module, scheme).shape
    return groups * checks.integer("rank", rank, 1) * (rows + columns)


def break_even_rank(module: nn.Module, scheme: str = "channel") -> int:
    """Return the largest rank at which the two parts have fewer weights than the layer; 0 if there is none."""
    _, rows, columns = matricize(module, scheme).shape
    return math.ceil(rows * columns / (rows + columns)) - 1


@dataclass(frozen=True)
class Factors:
    """A layer's matrix taken apart, rank by rank: the first r columns of both sides are its best approximation of rank r.

    Attributes:
        left: groups x rows x full rank.
        right: groups x columns x full rank; the matrix is ``left @ right.mT``, each side with the root of the singular value.
        values: the singular values, largest first; for ``pictures``, the standard deviations of the responses along them.
        mean: of the responses to ``pictures``, groups x rows; None without.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    mean: Tensor | None = None


def decompose(
    module: nn.Module, scheme: str = "channel", responses: tuple[Tensor, Tensor] | None = None
) -> Factors:
    """Take a layer's matrix apart by its singular values, or by the principal components of its responses.

    The second is data-aware: of all matrices of rank r, projecting the responses on their first r principal components
    changes the layer's outputs least (Zhang 2016, section 3.1). The same follows from whitening the weights by the inputs'
    covariance before the SVD, but needs a covariance of outputs only, which is many times smaller.

    Args:
        module: a Conv2d or Linear.
        scheme: "channel" or "spatial".
        responses: mean (groups x rows) and covariance (groups x rows x rows) of the outputs, bias left out; "channel" only.
    """
    matrix = matricize(module, scheme).cpu().double()
    if responses is None:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        root = s.sqrt()[:, None]
        return Factors(u * root, v.mT * root, s.square().sum(0).sqrt())
    try:
        mean, covariance = (checks.tensor("responses", part) for part in responses)
    except TypeError as error:
        raise TypeError(f"responses must be a mean and a covariance, two tensors ({error})") from error
    groups, rows, _ = matrix.shape
    if scheme != "channel" or mean.shape != (groups, rows) or covariance.shape != (groups, rows, rows):
        wanted = f"{(groups, rows)} and {(groups, rows, rows)}, scheme channel"
        raise ValueError(
            f"responses must have the shapes {wanted}; got {tuple(mean.shape)} and {tuple(covariance.shape)}, scheme {scheme}"
        )
    variances, directions = torch.linalg.eigh(covariance.cpu().double())
    rank = min(matrix.shape[1:])
    directions = directions.flip(2)[:, :, :rank]
    right = matrix.mT @ directions  # columns x rank: what each direction reads from the inputs
    root = right.norm(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    return Factors(
        directions * root,
        right / root,
        variances.flip(1)[:, :rank].clamp_min(0).sum(0).sqrt(),
        mean.cpu().double(),
    )


def responses(
    model: nn.Module, pictures: Split, skip: Iterable[str] = ()
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the mean and covariance of every layer's outputs (bias left out) over ``pictures``, by layer name.

    Args:
        model: any module that takes normalised pictures.
        pictures: a few hundred training pictures.
        skip: names of layers to leave out.
    """
    checks.instance("pictures", pictures, Split)
    layers = factorizable(model, skip)
    sums: dict[str, list] = {}

    def collect(name: str) -> Callable:
        def hook(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
            groups = getattr(layer, "groups", 1)
            outputs = output if isinstance(layer, nn.Linear) else output.movedim(1, -1)
            rows = outputs.reshape(-1, groups, outputs.shape[-1] // groups).transpose(0, 1)
            wide = (
                rows.float() if rows.device.type == "mps" else rows.double()
            )  # Apple's GPUs have no float64
            if layer.bias is not None:
                wide = wide - layer.bias.detach().to(wide.dtype).view(groups, 1, -1)
            new = [wide.shape[1], wide.sum(1).cpu().double(), (wide.mT @ wide).cpu().double()]
            sums[name] = (
                [old + more for old, more in zip(sums[name], new, strict=True)] if name in sums else new
            )

        return hook

    hooks = [layer.register_forward_hook(collect(name)) for name, layer in layers.items()]
    try:
        predict(model, pictures, batch_size=100)
    finally:
        for hook in hooks:
            hook.remove()
    means = {name: total / count for name, (count, total, _) in sums.items()}
    return {
        name: (means[name], square / count - means[name][:, :, None] * means[name][:, None])
        for name, (count, _, square) in sums.items()
    }


def analyze(
    model: nn.Module,
    energy: float = 0.9,
    *,
    scheme: str = "channel",
    skip: Iterable[str] = (),
    budget: float | tuple[float, float] | None = None,
    count: str = "parameters",
    round_to: int = 1,
    pictures: Split | None = None,
    input_shape: Sequence[int] | None = (1, 3, 32, 32),
) -> pd.DataFrame:
    """Choose a rank for every Conv2d and Linear, and say what factorization would make of each.

    Args:
        model: any module.
        energy: share of each layer's squared weights to keep, in (0, 1]; not used with ``budget``.
        scheme: "channel", "spatial", or "auto": for each layer whichever needs fewer MACs.
        skip: names of layers to leave out.
        budget: share of these layers' ``count`` that the network may keep, in (0, 1]. The ranks then are those with (nearly) the largest
            sum of the layers' energies for the money; a layer too dear to split stays whole.
        count: "parameters", "macs", or "both": what ``budget`` counts; with "both", neither may take a larger share (two shares, if
            ``budget`` is a pair).
        round_to: ranks are multiples of this where the layer has that many: up for an energy, so that it is kept.
        pictures: choose by what these do in the network instead of by the weights alone (see ``decompose``); "channel" only. Energy
            then is the share of the variance of the layer's responses.
        input_shape: of the model's input, for MACs. None: MACs are given for one output position of a wide picture.

    Returns:
        A row per layer: layer, shape, scheme, full_rank, rank, energy (really kept), parameters and factorized_parameters (weights, without
        biases), macs and factorized_macs, break_even_rank, worthwhile (the two parts have fewer weights than the one and no more
        MACs, or, with a budget, are what it buys).

    Raises:
        ValueError: an argument is out of range, a name in ``skip`` is unknown, or the budget cannot be met even at the lowest ranks.
    """
    return _choose(_options(model, scheme, skip, round_to, pictures, input_shape), energy, budget, count)


def _options(
    model: nn.Module,
    scheme: str,
    skip: Iterable[str],
    round_to: int,
    pictures: Split | None,
    input_shape: Sequence[int] | None,
) -> dict[str, list[_Option]]:
    """Take every layer apart, by each scheme that is open to it."""
    checks.choice("scheme", scheme, (*SCHEMES, "auto"))
    checks.integer("round_to", round_to, 1)
    if pictures is not None and scheme != "channel":
        raise ValueError(f'scheme must be "channel" with pictures, got {scheme!r}')
    layers = factorizable(model, skip)
    for name, layer in layers.items():
        if not layer.weight.isfinite().all():
            raise ValueError(f"model must have finite weights, but layer {name} has NaN or infinity")
    positions = _positions(model, layers, input_shape)
    seen = {} if pictures is None else responses(model, pictures, skip)
    return {
        name: [
            _Option(layer, one, decompose(layer, one, seen.get(name)), *positions[name], round_to)
            for one in _schemes(layer, scheme)
        ]
        for name, layer in layers.items()
    }


def _schemes(layer: nn.Module, scheme: str) -> tuple[str, ...]:
    if isinstance(layer, nn.Linear):
        return ("channel",)
    return SCHEMES if scheme == "auto" else (scheme,)


def _choose(
    options: dict[str, list[_Option]],
    energy: float,
    budget: float | tuple[float, float] | None = None,
    count: str = "parameters",
) -> pd.DataFrame:
    """Choose scheme and rank of every layer, by energy or by budget."""
    checks.number("energy", energy, 0, 1, open_low=True)
    checks.choice("count", count, ("parameters", "macs", "both"))
    if budget is None:
        chosen = {
            name: min(((one, one.rank_for(energy)) for one in some), key=_cost)
            for name, some in options.items()
        }
        worthwhile = {name: option.saves(rank) for name, (option, rank) in chosen.items()}
    else:
        counts = ("parameters", "macs") if count == "both" else (count,)
        shares = tuple(budget) if isinstance(budget, (tuple, list)) else (budget,) * len(counts)
        if len(shares) != len(counts):
            raise ValueError(
                f'budget must be one number, or a pair with count "both"; got {budget!r} with count {count!r}'
            )
        plans = [
            _spend(options, checks.number("budget", share, 0, 1, open_low=True), one)
            for share, one in zip(shares, counts, strict=True)
        ]
        worthwhile = {name: any(split[name] for _, split in plans) for name in options}
        chosen = {  # the smaller of what the plans leave of a layer
            name: min((plan[name] for plan, split in plans if split[name] or not worthwhile[name]), key=_size)
            for name in options
        }
    rows = [
        option.row(name, rank) | {"worthwhile": worthwhile[name]} for name, (option, rank) in chosen.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _size(chosen: tuple[_Option, int]) -> int:
    option, rank = chosen
    return option.size(rank)


def _cost(chosen: tuple[_Option, int]) -> tuple[int, int]:
    option, rank = chosen
    return option.macs(rank), option.size(rank)


COLUMNS = [
    "layer", "shape", "scheme", "full_rank", "rank", "energy", "parameters", "factorized_parameters", "macs", "factorized_macs",
    "break_even_rank", "worthwhile",
]  # fmt: skip


@dataclass(frozen=True)
class _Option:
    """One layer split by one scheme: what each rank keeps and costs."""

    layer: nn.Module
    scheme: str
    factors: Factors
    positions: int  # outputs that each weight works for
    tall: int  # and each weight of the k x 1 part, which still sees every column
    round_to: int

    @cached_property
    def kept(self) -> Tensor:
        return _energy(self.factors.values)  # by rank

    @property
    def parameters(self) -> int:
        return self.layer.weight.numel()

    def size(self, rank: int) -> int:
        return factorized_size(self.layer, rank, self.scheme)

    def macs(self, rank: int) -> int:
        groups, rows, columns = matricize(self.layer, self.scheme).shape
        first, second = (rows * self.tall, columns) if self.scheme == "spatial" else (rows, columns)
        return (
            groups
            * rank
            * (
                first + second * self.positions
                if self.scheme == "spatial"
                else (first + second) * self.positions
            )
        )

    def saves(self, rank: int) -> bool:
        return self.size(rank) < self.parameters and self.macs(rank) <= self.positions * self.parameters

    def rank_for(self, energy: float) -> int:
        rank = min(int((self.kept < energy - 1e-12).sum()) + 1, len(self.kept))
        return min(-(-rank // self.round_to) * self.round_to, len(self.kept))

    def row(self, name: str, rank: int) -> dict:
        return {
            "layer": name,
            "shape": tuple(self.layer.weight.shape),
            "scheme": self.scheme,
            "full_rank": len(self.kept),
            "rank": rank,
            "energy": float(self.kept[rank - 1]),
            "parameters": self.parameters,
            "factorized_parameters": self.size(rank),
            "macs": self.positions * self.parameters,
            "factorized_macs": self.macs(rank),
            "break_even_rank": break_even_rank(self.layer, self.scheme),
        }


def _spend(
    options: dict[str, list[_Option]], budget: float, count: str
) -> tuple[dict[str, tuple[_Option, int]], dict[str, bool]]:
    """Choose ranks with the largest sum of energies that cost at most ``budget`` (a share of the whole), by one price for all layers.

    At a price, every layer takes the rank (or stays whole) that maximises its energy less what it costs; the price is bisected.
    """
    whole = {
        name: some[0].parameters * (some[0].positions if count == "macs" else 1)
        for name, some in options.items()
    }
    total = sum(whole.values())

    def choose(price: float) -> tuple[float, dict[str, tuple[_Option, int]], dict[str, bool]]:
        spent, chosen, worthwhile = 0.0, {}, {}
        for name, some in options.items():
            best, cost = 1 - price * whole[name] / total, whole[name]
            chosen[name], worthwhile[name] = (some[0], len(some[0].kept)), False
            for option in some:
                unit = option.macs(1) if count == "macs" else option.size(1)
                full, step = len(option.kept), option.round_to
                ranks = torch.arange(step, full + 1, step) if full >= step else torch.tensor([full])
                net = option.kept[ranks - 1] - price * unit * ranks / total
                index = int(net.argmax())
                if net[index] > best:
                    best, cost = float(net[index]), unit * int(ranks[index])
                    chosen[name], worthwhile[name] = (option, int(ranks[index])), True
            spent += cost
        return spent / max(1, total), chosen, worthwhile

    low, high = -30.0, 60.0  # logarithms of the price
    if choose(math.exp(high))[0] > budget:
        raise ValueError(
            f"budget must be at least {choose(math.exp(high))[0]:.4f}, what the lowest ranks cost, got {budget!r}"
        )
    if choose(math.exp(low))[0] <= budget:
        high = low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if choose(math.exp(middle))[0] <= budget else (middle, high)
    spent, chosen, worthwhile = choose(math.exp(high))
    return _round_up(
        {name: pair for name, pair in chosen.items() if worthwhile[name]},
        (budget - spent) * total,
        count,
        chosen,
    ), worthwhile


def _round_up(
    split: dict[str, tuple[_Option, int]], left: float, count: str, chosen: dict[str, tuple[_Option, int]]
) -> dict[str, tuple[_Option, int]]:
    """Spend the small change that one price for all leaves over, on the ranks that give most for it."""
    chosen = dict(chosen)
    while True:
        offers = []
        for name in split:
            option, rank = chosen[name]
            more = rank + option.round_to
            cost = (option.macs(option.round_to) if count == "macs" else option.size(option.round_to)) or 1
            if more <= len(option.kept) and cost <= left and option.size(more) < option.parameters:
                offers.append((float(option.kept[more - 1] - option.kept[rank - 1]) / cost, cost, name))
        if not offers:
            return chosen
        _, cost, name = max(offers)
        option, rank = chosen[name]
        chosen[name], left = (option, rank + option.round_to), left - cost


def _positions(
    model: nn.Module, layers: dict[str, nn.Module], input_shape: Sequence[int] | None
) -> dict[str, tuple[int, int]]:
    """Return how many outputs each weight of a layer works for, and each of its k x 1 part in the spatial scheme."""
    if input_shape is None:
        return {
            name: (1, layer.stride[1] if isinstance(layer, nn.Conv2d) else 1)
            for name, layer in layers.items()
        }
    found = dict.fromkeys(layers, (0, 0))

    def note(name: str) -> Callable:
        def hook(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
            width = inputs[0].shape[3] / output.shape[3] if isinstance(layer, nn.Conv2d) else 1
            count = output.numel() // layer.weight.shape[0]
            found[name] = found[name][0] + count, found[name][1] + round(count * width)

        return hook

    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        with evaluating(model):
            model(torch.zeros(checks.shape("input_shape", input_shape)).to(next(model.parameters())))
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"input_shape must suit the model, or be None; got {tuple(input_shape)} ({error})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return found


def factorizable(model: nn.Module, skip: Iterable[str] = ()) -> dict[str, nn.Module]:
    """Return every Conv2d and Linear by name, in order, but those in ``skip``.

    Raises:
        ValueError: a name in ``skip`` is not such a layer.
    """
    checks.instance("model", model, nn.Module)
    skip = set(checks.names("skip", skip))
    layers = {name: layer for name, layer in model.named_modules() if type(layer) in (nn.Conv2d, nn.Linear)}
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        if owners.setdefault(id(layer.weight), name) != name and name not in skip:
            raise ValueError(
                f"skip must name {name}, which shares its weights with {owners[id(layer.weight)]}"
            )
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
    rank = checks.integer("rank", rank, 1, min(matricize(module, scheme).shape[1:]))
    return _build(module, decompose(module, scheme), rank, scheme)


def _build(module: nn.Module, factors: Factors, rank: int, scheme: str) -> nn.Sequential:
    left, right = factors.left[:, :, :rank], factors.right[:, :, :rank].mT
    groups = len(left)
    bias = None if module.bias is None else module.bias.detach().cpu().double()
    if factors.mean is not None:  # what the lost directions add on average goes into the bias
        directions = left / left.norm(dim=1, keepdim=True)
        lost = factors.mean - (directions @ (directions.mT @ factors.mean[:, :, None]))[:, :, 0]
        bias = lost.flatten() + (0 if bias is None else bias)
    if isinstance(module, nn.Linear):
        first = nn.Linear(module.in_features, rank, bias=False)
        second = nn.Linear(rank, module.out_features, bias=bias is not None)
        weights = right[0], left[0]
    else:
        first, second = _convolutions(module, groups * rank, scheme, bias is not None)
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
        if bias is not None:
            parts[1].bias.copy_(bias)
    if isinstance(module, nn.Conv2d) and module.weight.is_contiguous(memory_format=torch.channels_last):
        parts.to(memory_format=torch.channels_last)
    return parts.requires_grad_(module.weight.requires_grad)


def _convolutions(module: nn.Conv2d, channels: int, scheme: str, bias: bool) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Return the two convolutions with the geometry of ``module`` shared between them, ``channels`` wide in the middle."""
    own = {"groups": module.groups, "padding_mode": module.padding_mode}
    shape = {
        "kernel_size": module.kernel_size,
        "stride": module.stride,
        "padding": module.padding,
        "dilation": module.dilation,
    }
    if scheme == "channel":
        first = nn.Conv2d(module.in_channels, channels, **shape, bias=False, **own)
        return first, nn.Conv2d(channels, module.out_channels, 1, bias=bias, groups=module.groups)
    neutral = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    tall = {
        key: value if isinstance(value, str) else (value[0], neutral[key]) for key, value in shape.items()
    }
    wide = {
        key: value if isinstance(value, str) else (neutral[key], value[1]) for key, value in shape.items()
    }
    first = nn.Conv2d(module.in_channels, channels, **tall, bias=False, **own)
    return first, nn.Conv2d(channels, module.out_channels, **wide, bias=bias, **own)


def factorize(
    model: nn.Module,
    energy: float = 0.9,
    ranks: Mapping[str, int] | None = None,
    skip: Iterable[str] = (),
    *,
    scheme: str = "channel",
    budget: float | tuple[float, float] | None = None,
    count: str = "parameters",
    round_to: int = 1,
    pictures: Split | None = None,
    input_shape: Sequence[int] = (1, 3, 32, 32),
) -> nn.Module:
    """Return a copy of ``model`` in which every layer worth it is split in two.

    Args:
        model: any module; it is not changed.
        energy: share of each layer's squared weights to keep, in (0, 1]. A layer that would grow is left as it is, with a warning
            that names it.
        ranks: {layer name: rank}, honoured even where the layer grows, with a warning; other layers are then left alone.
        skip: names of layers to leave alone.
        scheme: "channel", "spatial" or "auto" (with ``ranks``: whichever has fewer weights at that rank).
        budget: instead of ``energy``: the share of parameters or MACs that may stay; this, ``count``, ``round_to`` and ``pictures`` as in
            ``analyze``.
        count: see there.
        round_to: see there.
        pictures: see there.
        input_shape: see there; used only where MACs decide.

    Returns:
        The copy. A model of ``models.build`` keeps its recipe, so it saves, loads and trains like any other.

    Raises:
        ValueError: an argument is out of range, or a layer's name is unknown.
    """
    checks.number("energy", energy, 0, 1, open_low=True)
    if ranks is not None and budget is not None:
        raise ValueError(f"budget must be None where ranks are given, got {budget!r}")
    checks.choice("count", count, ("parameters", "macs", "both"))
    if ranks is not None:
        return _by_hand(model, ranks, skip, scheme, pictures)
    options = _options(
        model, scheme, skip, round_to, pictures, None if count == "parameters" else input_shape
    )
    plan = _choose(options, energy, budget, count)
    alone = plan[~plan["worthwhile"]]["layer"]
    if len(alone) and budget is None:
        warnings.warn(
            f"left alone, since two parts would be no smaller at energy {energy:g}: {', '.join(alone)}",
            stacklevel=2,
        )
    return _apply(model, plan, options)


def _apply(model: nn.Module, plan: pd.DataFrame, options: dict[str, list[_Option]]) -> nn.Module:
    """Return a copy of ``model`` with the worthwhile rows of ``plan`` carried out."""
    result = copy.deepcopy(model)
    for row in plan[plan["worthwhile"]].itertuples():
        option = next(one for one in options[row.layer] if one.scheme == row.scheme)
        parts = _build(option.layer, option.factors, row.rank, row.scheme)
        if not row.layer:
            return parts
        whole = result.get_submodule(row.layer)
        for name in [
            name for name, layer in result.named_modules(remove_duplicate=False) if layer is whole
        ]:  # it may have two names
            result.set_submodule(name, parts)
    return result


def _by_hand(
    model: nn.Module, ranks: Mapping[str, int], skip: Iterable[str], scheme: str, pictures: Split | None
) -> nn.Module:
    checks.choice("scheme", scheme, (*SCHEMES, "auto"))
    layers = factorizable(model, skip)
    checks.names("ranks", checks.instance("ranks", ranks, Mapping))
    if pictures is not None and scheme != "channel":
        raise ValueError(f'scheme must be "channel" with pictures, got {scheme!r}')
    for name in ranks:
        checks.choice("ranks", name, layers)
    seen = (
        {}
        if pictures is None
        else responses(model, pictures, [name for name in factorizable(model) if name not in ranks])
    )
    rows, options = [], {}
    for name, rank in ranks.items():
        layer = layers[name]
        one = min(_schemes(layer, scheme), key=lambda s, layer=layer: factorized_size(layer, 1, s))
        rank = checks.integer(f"ranks[{name!r}]", rank, 1, min(matricize(layer, one).shape[1:]))
        before, after = layer.weight.numel(), factorized_size(layer, rank, one)
        if after >= before:
            warnings.warn(
                f"layer {name} grows from {before:,} to {after:,} weights at rank {rank}", stacklevel=3
            )
        options[name] = [_Option(layer, one, decompose(layer, one, seen.get(name)), 1, 1, 1)]
        rows.append({"layer": name, "scheme": one, "rank": rank, "worthwhile": True})
    return _apply(model, pd.DataFrame(rows, columns=["layer", "scheme", "rank", "worthwhile"]), options)


def sweep(
    model: nn.Module,
    split: Split,
    energies: Iterable[float] = (),
    *,
    budgets: Iterable[float] = (),
    count: str = "parameters",
    scheme: str = "channel",
    skip: Iterable[str] = (),
    pictures: Split | None = None,
    precision: str = "fp32",
) -> pd.DataFrame:
    """Factorize at each energy, and to each budget, without any training. Every layer is taken apart once.

    Args:
        model: is not changed.
        split: what to measure accuracy on.
        energies: in (0, 1]; the slider of notebook 03 moves through them.
        budgets: shares of the ``count``, in (0, 1].
        count: as in ``analyze``, and so the others.
        scheme: see there.
        skip: see there.
        pictures: see there.
        precision: as in ``evaluate``.

    Returns:
        A row per energy and budget: energy or budget, parameters and macs (of the whole network), correct, total, accuracy, and ranks
        ({layer: rank, 0 where the layer stays whole}).
    """
    checks.instance("split", split, Split)
    options = _options(model, scheme, skip, 1, pictures, (1, *split.images.shape[1:]))
    asked = [("energy", energy) for energy in checks.numbers("energies", energies, 0, 1, open_low=True)]
    asked += [("budget", budget) for budget in checks.numbers("budgets", budgets, 0, 1, open_low=True)]
    rows = []
    for column, value in asked:
        plan = _choose(options, value) if column == "energy" else _choose(options, 1.0, value, count)
        thinner = _apply(model, plan, options)
        accuracy = evaluate(thinner, split, precision=precision)
        row = {
            column: value,
            "parameters": count_parameters(thinner),
            "macs": count_macs(thinner, (1, *split.images.shape[1:])),
        }
        row |= {"correct": accuracy.correct, "total": accuracy.total, "accuracy": float(accuracy)}
        ranks = {one.layer: int(one.rank) if one.worthwhile else 0 for one in plan.itertuples()}
        rows.append(row | {"ranks": ranks})
    return pd.DataFrame(rows)
