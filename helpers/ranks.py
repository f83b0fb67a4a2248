"""Choosing ranks: what each rank of a layer keeps and costs, and which rank each layer gets.

Arithmetic on shapes and energies. ``options`` lists the ranks of one layer; a plan is one of these rows for
each layer, chosen by energy, by budget or by hand. ``low_rank`` takes the layers apart before, and builds
their two parts after.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.data import Split
from helpers.evaluation import predict
from helpers.networks import check_plain, known, outputs, refusing
from helpers.runs import calls, example_of, hooked
from helpers.types import (
    Count,
    Names,
    Network,
    PositiveShare,
    Shape,
    Whole,
    by_name,
    checked,
    several,
    tensor,
)

Layer = nn.Conv2d | nn.Linear
Scheme = Literal["channel", "spatial"]
Counted = Literal["parameters", "macs", "both"]
Budget = PositiveShare | several(PositiveShare)


def sides(module: Layer, scheme: str) -> tuple[int, int, int]:
    """Return groups, rows and columns of a layer's matrix (see ``low_rank.matricize``)."""
    groups = getattr(module, "groups", 1)
    outputs, inputs, height, width = (*module.weight.shape, 1, 1)[:4]
    if scheme == "channel" or isinstance(module, nn.Linear):
        return groups, outputs // groups, inputs * height * width
    return groups, inputs * height, outputs // groups * width


@checked
def factorized_size(module: Layer, rank: Count, scheme: Scheme = "channel") -> int:
    """Return the number of weights of both parts at ``rank`` (per group), biases left out."""
    groups, rows, columns = sides(module, scheme)
    return groups * rank * (rows + columns)


@checked
def break_even_rank(module: Layer, scheme: Scheme = "channel") -> int:
    """Return the largest rank at which the two parts have fewer weights than the layer, 0 if none."""
    _, rows, columns = sides(module, scheme)
    return (rows * columns - 1) // (rows + columns)


@checked
def factorizable(model: Network, skip: Names = ()) -> dict[str, nn.Module]:
    """Return every Conv2d and Linear by name, in order, but those in ``skip``.

    Left out, too, are the parts of PyTorch's attention, which reads their weights instead of calling them.
    """
    check_plain(model)
    readers = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    read = {part for module in model.modules() if isinstance(module, readers) for part in module.children()}
    layers = {name: layer for name, layer in model.named_modules() if type(layer) in (nn.Conv2d, nn.Linear)}
    known("skip", skip, layers)
    left_alone = {id(layers[name].weight) for name in skip}  # also where another layer has the same weights
    chosen = {name: layer for name, layer in layers.items() if id(layer.weight) not in left_alone}
    owners: dict[int, str] = {}
    for name, layer in chosen.items():
        owner = owners.setdefault(id(layer.weight), name)
        if owner != name:
            raise ValueError(
                f"skip must name {name}, which shares its weights with {owner}: both stay whole then"
            )
    return {name: layer for name, layer in chosen.items() if layer not in read}


@torch.no_grad()
def runs_of(
    model: nn.Module, skip: tuple[str, ...], input_shape: tuple[int, ...], pictures: Split | None
) -> tuple[list[Callable], tuple[str, ...]]:
    """Return what runs a network, as in training and in eval mode, as far as ``model`` can; and ``skip``,
    with the layers that no run calls: others read their weights, if anybody does.
    """
    shape = input_shape if pictures is None else (1, *pictures.images.shape[1:])
    example, runs, called = example_of(model, shape), [], set()
    layers = factorizable(model, skip)
    with hooked(layers, lambda name, *rest: called.add(name)):
        for training in (True, False):
            run = partial(outputs, pictures=example, training=training)
            with suppress(Exception):  # whatever a network raises on pictures that it was not made for
                run(model)
                runs.append(run)
    if not runs:
        warnings.warn(
            f"the result was not run: model does not take input_shape {shape}", stacklevel=5
        )  # whoever called
        return runs, skip
    return runs, (*skip, *(name for name in layers if name not in called))


@torch.no_grad()
def tried(model: nn.Module, runs: list[Callable]) -> nn.Module:
    """Return ``model`` once it has been run."""
    with refusing("skip must name the layers that this network reads besides calling them"):
        for run in runs:
            run(model)
    return model


@checked
def responses(model: nn.Module, pictures: Split, skip: Names = ()) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the mean and covariance of every layer's outputs over ``pictures``, bias left out, by layer
    name.

    Args:
        model: any module that takes normalised pictures.
        pictures: a few hundred training pictures.
        skip: names of layers to leave out.
    """
    sums: dict[str, tuple] = {}

    def add(name: str, layer: Layer, inputs: tuple, named: dict, output: Tensor) -> None:
        outputs = output if isinstance(layer, nn.Linear) else output.movedim(1, -1)
        rows = outputs.flatten(0, -2).unflatten(1, (getattr(layer, "groups", 1), -1)).transpose(0, 1)
        rows = rows.float() if rows.device.type == "mps" else rows.double()  # Apple's GPUs have no float64
        if layer.bias is not None:
            rows = rows - layer.bias.detach().to(rows.dtype).view(len(rows), 1, -1)
        new = rows.shape[1], rows.sum(1).cpu().double(), (rows.mT @ rows).cpu().double()
        sums[name] = tuple(a + b for a, b in zip(sums.get(name, (0, 0, 0)), new, strict=True))

    with hooked(factorizable(model, skip), add):
        predict(model, pictures, batch_size=100)
    means = {name: total / count for name, (count, total, _) in sums.items()}
    return {
        name: (means[name], square / count - means[name][:, :, None] * means[name][:, None])
        for name, (count, _, square) in sums.items()
    }


@checked
@torch.no_grad()
def positions(
    model: nn.Module, layers: by_name(Layer), input_shape: Shape | None
) -> dict[str, tuple[int, int]]:
    """Count for how many outputs each weight of a layer works.

    Returns:
        {layer: (positions of the k x 1 part that "spatial" would put before it, positions of the layer)}; the
        first are more where the layer has a stride. Without an ``input_shape``, both are for one output.
    """
    if input_shape is None:
        return {name: (getattr(layer, "stride", (1, 1))[1], 1) for name, layer in layers.items()}
    found = dict.fromkeys(layers, (0, 0))
    for call in calls(model, input_shape):
        if (name := call.name) in layers:
            (given,) = (*call.run.args, *call.run.keywords.values())  # what the layer reads, named or not
            before, after = given.shape, call.output_shape
            count = math.prod(after) // len(call.layer.weight)
            tall = count * before[3] // after[3] if isinstance(call.layer, nn.Conv2d) else count
            found[name] = found[name][0] + tall, found[name][1] + count
    return found


@checked
def options(
    name: str, module: Layer, scheme: Scheme, kept: tensor(1), positions: tuple[Whole, Whole]
) -> pd.DataFrame:
    """List the ranks of a layer.

    Args:
        name: of the layer.
        module: the layer.
        scheme: how it would be split.
        kept: energy that rank 1, 2, ... keeps.
        positions: of the layer, from ``positions``.

    Returns:
        A row per rank, with the columns of ``low_rank.analyze`` but the last.
    """
    groups, rows, columns = sides(module, scheme)
    weights, rank = module.weight.numel(), np.arange(1, len(kept) + 1)
    first, second = positions if scheme == "spatial" else (positions[1], positions[1])
    return pd.DataFrame({
        "layer": name, "shape": [tuple(module.weight.shape)] * len(rank), "scheme": scheme,
        "full_rank": len(rank), "rank": rank, "energy": kept.tolist(),
        "parameters": weights, "factorized_parameters": groups * rank * (rows + columns),
        "macs": weights * second, "factorized_macs": groups * rank * (rows * first + columns * second),
        "break_even_rank": break_even_rank(module, scheme),
    })  # fmt: skip


@checked
def plan(
    options: pd.DataFrame, energy: PositiveShare, budget: Budget | None, count: Counted, round_to: Count
) -> pd.DataFrame:
    """Choose an option for each layer by energy or, with a ``budget``, by that; see ``low_rank.analyze``."""
    full, rank = options["full_rank"], options["rank"]
    options = options[(rank % round_to == 0) | (rank == full)]
    return _by_energy(options, energy) if budget is None else _by_budget(options, budget, count)


def _by_energy(options: pd.DataFrame, energy: float) -> pd.DataFrame:
    enough = options[options["energy"] >= energy - 1e-12]
    chosen = _first(enough.sort_values(["factorized_macs", "factorized_parameters"]))
    fewer = chosen["factorized_parameters"] < chosen["parameters"]
    return chosen.assign(worthwhile=fewer & (chosen["factorized_macs"] <= chosen["macs"]))


def _by_budget(options: pd.DataFrame, budget: float | tuple[float, ...], count: str) -> pd.DataFrame:
    counted = ["parameters", "macs"] if count == "both" else [count]
    shares = budget if isinstance(budget, tuple) else (budget,) * len(counted)
    if len(shares) != len(counted):
        wanted = 'one number, or a pair with count "both"'
        raise ValueError(f"budget must be {wanted}; got {budget!r} with count {count!r}")
    whole = _first(options[options["rank"] == options["full_rank"]])
    table = pd.concat([whole.assign(worthwhile=False), options.assign(worthwhile=True)], ignore_index=True)
    costs = [table[f"factorized_{one}"].where(table["worthwhile"], table[one]) for one in counted]
    cost, total = np.stack(costs, axis=1), whole[counted].sum().to_numpy()
    limits = total * shares
    # Prices are in units of the budget. Of two, a step's price is a mixture; the best of several is taken.
    mixtures = [(part, 1 - part) for part in np.linspace(0, 1, 11)] if count == "both" else [(1,)]
    plans = [_spend(table, cost, limits, mixture / np.maximum(1, limits)) for mixture in mixtures]
    affordable = [rows for rows in plans if (cost[rows].sum(0) <= limits).all()]
    if not affordable:
        lowest = " and ".join(f"{share:.4f}" for share in cost[plans[0]].sum(0) / np.maximum(1, total))
        raise ValueError(f"budget must be at least {lowest}, what the lowest ranks cost, got {budget!r}")
    best = max(affordable, key=lambda rows: table["energy"][rows].sum())
    return table.iloc[best].reset_index(drop=True)


def _spend(table: pd.DataFrame, cost: np.ndarray, limits: np.ndarray, prices: np.ndarray) -> np.ndarray:
    # From every layer's cheapest option on, always the affordable step with most energy for its price. So
    # each layer moves along the upper hull of its options, which is the best plan but for the last steps
    # (Sinha and Zoltners 1979, The multiple-choice knapsack problem).
    energy, price = table["energy"].to_numpy(), cost @ prices
    options = [np.flatnonzero(table["layer"] == name) for name in table["layer"].unique()]
    here = [rows[np.lexsort((-energy[rows], price[rows]))[0]] for rows in options]
    spent = cost[here].sum(0)

    def best_step(layer: int) -> tuple[float, int]:
        rows, now = options[layer], here[layer]
        slope = (energy[rows] - energy[now]) / np.maximum(price[rows] - price[now], 1e-15)
        slope[(spent + cost[rows] - cost[now] > limits).any(1)] = 0
        return slope.max(), rows[slope.argmax()]

    steps = [best_step(layer) for layer in range(len(options))]
    while max(steps)[0] > 0:
        layer = steps.index(max(steps))
        after = spent + cost[steps[layer][1]] - cost[here[layer]]
        if (after <= limits).all():
            here[layer], spent = steps[layer][1], after
        steps[layer] = best_step(layer)
    return np.array(here)


def _first(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop_duplicates("layer").sort_index().reset_index(drop=True)


@checked
def by_hand(options: pd.DataFrame, ranks: by_name(Count)) -> pd.DataFrame:
    """Choose the given rank for each layer, in the scheme that has fewer weights at that rank."""
    chosen = options[options["rank"] == options["layer"].map(ranks)]
    for name, rank in ranks.items():
        full = options.loc[options["layer"] == name, "full_rank"].max()
        if name not in set(chosen["layer"]):
            raise ValueError(f"ranks[{name!r}] must be from 1 to {full}, the full rank, got {rank}")
    return _first(chosen.sort_values("factorized_parameters")).assign(worthwhile=True)
