"""Whole channels taken away, which leaves a smaller dense network; and what each layer alone can spare."""

from __future__ import annotations

import copy
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from helpers.data import Split
from helpers.evaluation import evaluating, measure
from helpers.networks import narrow, outputs, refusing, widen
from helpers.pruning import Scope, _known, prunable, prune_once
from helpers.types import (
    Count,
    Names,
    Network,
    Share,
    ShareBelowOne,
    by_name,
    checked,
    several,
    table,
    tensor,
)

Scan = table("layer", "ratio", "recalibrated")
WHY = "since more depends on their channels than the layers behind them"
VISITS = 3_000  # of layers and operations, while what depends on a layer's channels is looked for
SCORES = {  # the words of this series, and torch-pruning's
    "magnitude": "GroupMagnitudeImportance",
    "batchnorm": "BNScaleImportance",
    "gradient": "GroupTaylorImportance",
}


@checked
def prune_channels(
    model: Network,
    example: tensor(),
    ratio: ShareBelowOne | by_name(ShareBelowOne),
    importance: Literal["magnitude", "batchnorm", "gradient"] = "magnitude",
    *,
    scope: Scope = "layer",
    round_to: Count = 8,
    skip: Names = (),
) -> nn.Module:
    """Take whole channels away, with all in other layers that depends on them: a smaller network (Li 2017).

    The bookkeeping (a channel gone here is an input gone there, a residual sum ties layers together) is
    torch-pruning's dependency graph (Fang 2023). The result needs it no more: it is a plain module. It was
    run in both modes, and answers as ``model`` would if what reads these channels were zero.

    Args:
        model: is not changed. Its last Linear, whose outputs are the classes, keeps them. So do layers whose
            channels cannot go one by one: on both sides of a grouped convolution, before group normalisation.
            Others that more depends on than the layers behind them (before a layer normalisation, inside
            attention, where the network's outputs are) are left alone with a warning that names them.
        example: an input it takes, for example 1 x 3 x 32 x 32.
        ratio: share of each layer's channels to remove, or {layer name: share}; layers it does not name keep
            theirs. Of layers that are tied to each other, the smallest share given for any of them counts.
        importance: of a channel: "magnitude", the norm of its weights; "batchnorm", the scale of the
            normalisation behind it (network slimming; Liu 2017); "gradient", first-order Taylor (Molchanov
            2017), for which the parameters must hold gradients: call backward on a batch or two first.
        scope: "layer" takes the same share of every layer; "global" ranks the channels of all together.
        round_to: as many channels are left as the nearest multiple of this, and no fewer than it, where the
            layer had as many (8 suits processors' vectors).
        skip: names of layers whose outputs stay, and with them those of layers tied to them.

    Returns:
        The smaller network. One of ``models.build`` keeps its recipe: it saves and loads like any other.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ImportError("prune_channels needs torch-pruning: pip install torch-pruning") from error
    shares = _shares(model, ratio, skip)
    if scope == "global" and isinstance(ratio, dict):
        raise ValueError('scope must be "layer" where ratio names layers, got "global"')
    if importance == "gradient" and any(weight.grad is None for weight in prunable(model).values()):
        raise ValueError('importance "gradient" needs gradients: call backward on a batch first')
    graph, *_ = _traced(model, example)
    with refusing("model must be a network whose channels can go"):
        groups, alone = _groups(graph, shares, getattr(torch_pruning.importance, SCORES[importance])())
    ranked = _ranked(groups, ratio) if scope == "global" else groups
    plan = {name: gone for name, scores, share in ranked if (gone := _lowest(scores, share, round_to))}
    smaller, leaking = _carried_out(model, example, plan)
    while leaking:
        alone, plan = alone + leaking, {name: gone for name, gone in plan.items() if name not in leaking}
        smaller, leaking = _carried_out(model, example, plan)
    if alone and not plan:
        raise ValueError(f"model must be a network whose channels can go, {WHY}: {', '.join(alone)}")
    if alone:
        warnings.warn(f"left alone, {WHY}: {', '.join(alone)}", stacklevel=3)  # 3: whoever called
    for mine, theirs in zip(smaller.parameters(), model.parameters(), strict=True):
        mine.grad = None
        mine.requires_grad_(theirs.requires_grad)
    return narrow(smaller, model)


class _Counted(list):
    """What depends on a layer: notes who comes by, and ends a search that would not end."""

    def __init__(self, dependencies: Iterable, layer: nn.Module, visits: list[nn.Module]) -> None:
        super().__init__(dependencies)
        self.layer, self.visits = layer, visits

    def __iter__(self) -> Iterator:
        self.visits.append(self.layer)
        if len(self.visits) > VISITS:
            raise RecursionError(f"what depends on its channels was not found in {VISITS} steps")
        return super().__iter__()


def _traced(model: nn.Module, example: Tensor) -> tuple[Any, Tensor, bool]:
    """Return torch-pruning's graph of a copy; random pictures; whether auxiliary outputs are in the graph."""
    import torch_pruning

    network = widen(copy.deepcopy(model)).requires_grad_(True)  # the graph is read off autograd's
    for mine, theirs in zip(network.parameters(), model.parameters(), strict=True):
        mine.grad = None if theirs.grad is None else theirs.grad.to(mine.dtype)
    like, generator = next(network.parameters()), torch.Generator().manual_seed(0)
    pictures = torch.randn(2, *example.shape[1:], generator=generator).to(like)
    with evaluating(network), torch.enable_grad():
        with refusing(f"example must be an input that the model takes, got {tuple(example.shape)}"):
            outputs(network, example.to(like), training=False)
        try:
            training = bool(outputs(network, pictures, training=True))
        except Exception:  # in train mode it takes larger pictures only, as Inception does
            training = False
        with refusing("model must be a network whose channels can go"):
            run = partial(outputs, training=training)
            graph = torch_pruning.DependencyGraph().build_dependency(network, pictures, run, verbose=False)
    graph.visits = []
    for node in graph.module2node.values():
        node.dependencies = _Counted(node.dependencies, node.module, graph.visits)
    return graph, pictures, training


def _group(graph: Any, layer: nn.Module, channels: Iterable[int]) -> Any:
    graph.visits.clear()
    return graph.get_pruning_group(
        layer, graph.get_pruner_of_module(layer).prune_out_channels, list(channels)
    )


def _parts(graph: Any, group: Any, ends: bool) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Yield weights that make a group's channels (at their ends: that read them), dimension, places."""
    for dep, places in group:
        layer = dep.target.module
        reads = not graph.is_out_channel_pruning_fn(dep.handler)
        if reads == ends and isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            dimension = int(reads != getattr(layer, "transposed", False))
            yield layer.weight, dimension, torch.tensor(places, device=layer.weight.device)


@torch.enable_grad()
def _carried_out(
    model: nn.Module, example: Tensor, plan: dict[str, list[int]]
) -> tuple[nn.Module, list[str]]:
    """Return a copy without the planned channels, or the layers on whose channels more depends than is known.

    What reads a channel is first set to zero. No output may then depend on it any more, by autograd's word,
    and the smaller network must answer as this one.
    """
    graph, pictures, training = _traced(model, example)
    network = graph.model
    layers = {name: network.get_submodule(name) for name in plan}
    groups = {name: _group(graph, layers[name], gone) for name, gone in plan.items()}
    for group in groups.values():
        for weight, dimension, places in _parts(graph, group, ends=True):
            weight.data.index_fill_(dimension, places, 0)
    found, before = (outputs(network, pictures, training=mode) for mode in (training, False))
    makers = {name: [*_parts(graph, group, ends=False)] for name, group in groups.items()}
    weights = list({weight: None for parts in makers.values() for weight, _, _ in parts})
    total = sum((one * torch.randn_like(one)).sum() for one in found)
    slopes = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True) if weights else ()
    slope = dict(zip(weights, slopes, strict=True))
    leaking = [
        n for n, parts in makers.items() if any(slope[w].index_select(d, p).any() for w, d, p in parts)
    ]
    if leaking:
        return network, leaking
    try:
        for name, gone in plan.items():
            _group(graph, layers[name], gone).prune()
        if len([*network.parameters()]) != len([*model.parameters()]):
            raise ValueError("two layers share its weights")
        with torch.no_grad():
            shapes = [one.shape for one in outputs(network, pictures, training=training)]
            after = outputs(network, pictures, training=False)
        if shapes != [one.shape for one in found] or not all(map(_close, after, before)):
            raise ValueError("the rest of the network takes other channels for them")
    except Exception as error:  # torch's and torch-pruning's, too
        whole = [{name: plan[name] for name in [*plan][: count + 1]} for count in range(len(plan))]
        first = bisect_left(whole[:-1], True, key=lambda part: _fails(model, example, part))
        raise ValueError(f"skip must name {[*plan][first]}, whose channels cannot go ({error})") from error
    return network, []


def _fails(model: nn.Module, example: Tensor, plan: dict[str, list[int]]) -> bool:
    try:
        _carried_out(model, example, plan)
    except ValueError:
        return True
    return False


def _close(after: Tensor, before: Tensor) -> bool:
    across = (before - before.mean(0)).abs().max()  # what pictures change is small in some networks
    same = after.shape == before.shape
    return same and bool((after - before).abs().max() <= 0.01 * across + 1e-5 * before.abs().max())


def _shares(model: nn.Module, ratio: float | dict[str, float], skip: tuple[str, ...]) -> dict[str, float]:
    """Return {layer: share that may go}, 0 where all stay; others follow the layers they are tied to."""
    layers, free, classifier = prunable(model), prunable(model, skip), _classifier(model)
    kept = [name for name in layers if name not in free or name == classifier]
    if not isinstance(ratio, dict):
        return dict.fromkeys(layers, ratio) | dict.fromkeys(kept, 0.0)
    if not ratio:
        raise ValueError("ratio must name at least one layer, got an empty mapping")
    _known("ratio", ratio, [name for name in layers if name != classifier])
    return ratio | dict.fromkeys(kept, 0.0)


def _classifier(model: nn.Module) -> str | None:
    return next((n for n, layer in [*model.named_modules()][::-1] if isinstance(layer, nn.Linear)), None)


def _divided(layer: nn.Module) -> bool:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups > 1
    groups = getattr(layer, "groups", 1)
    return groups > 1 and not groups == layer.in_channels == layer.out_channels  # a depthwise one has as many


def _groups(
    graph: Any, shares: dict[str, float], score: Callable
) -> tuple[list[tuple[str, Tensor, float]], list[str]]:
    """Return the groups of layers with tied outputs, by the first: its name, its channels' scores, the share
    that goes; and the layers for which nobody can tell what is tied to them.
    """
    given = {graph.model.get_submodule(name): share for name, share in shares.items()}
    names = {layer: name for name, layer in graph.model.named_modules()}
    groups, alone, seen = [], [], set()
    for layer in list(graph.module2node):
        if layer in seen or not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        try:
            group = _group(graph, layer, range(len(layer.weight)))
        except RecursionError:
            seen.update(graph.visits)
            alone += [names[layer]] if given.get(layer) else []
            continue
        tied = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
        seen.update(tied)
        share = min((given[one] for one in tied if one in given), default=0.0)
        if share > 0 and not any(_divided(dep.target.module) for dep, _ in group):
            scores = score(group)
            if scores is None:
                raise ValueError('importance "batchnorm" needs a normalisation behind each of its layers')
            groups.append((names[layer], scores.detach(), share))
    return groups, alone


def _ranked(groups: list[tuple[str, Tensor, float]], ratio: float) -> list[tuple[str, Tensor, float]]:
    """Return the groups with the share of each that is among the lowest ``ratio`` of all channels."""
    sizes = [len(scores) for _, scores, _ in groups]
    ranks = torch.cat([torch.empty(0), *(scores.cpu() for _, scores, _ in groups)]).argsort().argsort()
    low = (ranks < round(ratio * len(ranks))).float().split(sizes)
    return [(name, scores, float(part.mean())) for (name, scores, _), part in zip(groups, low, strict=True)]


def _lowest(scores: Tensor, share: float, round_to: int) -> list[int]:
    nearest = round_to * round(len(scores) * (1 - share) / round_to)
    left = max(nearest, min(round_to, len(scores)))
    return sorted(scores.argsort(stable=True)[: max(0, len(scores) - left)].tolist())


@checked
def sensitivity(
    model: nn.Module,
    split: Split,
    ratios: several(ShareBelowOne) = (0.5, 0.8, 0.9, 0.95, 0.98),
    *,
    calibration: Split,
    unit: Literal["weight", "channel"] = "weight",
    only: Names | None = None,
    precision: Literal["fp32", "bf16", "auto"] = "fp32",
) -> pd.DataFrame:
    """Prune one layer at a time, nothing else, and see what it does (Han 2015, section 5, figure 6).

    Args:
        model: is not changed.
        split: what to measure on; the validation split, since what is read from it is a choice.
        ratios: shares of the layer to take away.
        calibration: training pictures, from which the recalibrated copies take their statistics.
        unit: "weight", the smallest weights set to zero, or "channel", what ``prune_channels`` removes.
        only: names of layers. Default: every one that has the unit.
        precision: as in ``evaluate``.

    Returns:
        A row per layer and ratio: layer, ratio, the columns of ``measure``; ratio 0 is the whole network.
    """
    every = list(prunable(model))
    layers = [name for name in every if unit == "weight" or name != _classifier(model)]
    _known("only", only or (), layers)
    whole = measure(model, split, calibration, precision=precision)
    rows = []
    for name in layers if only is None else only:
        rows.append({"layer": name, "ratio": 0.0} | whole)
        for ratio in ratios:
            if unit == "channel":
                thinner = prune_channels(model, split.images[:1].float(), {name: ratio}, round_to=1)
            else:
                thinner = copy.deepcopy(model)
                prune_once(thinner, ratio, skip=[other for other in every if other != name])
            found = measure(thinner, split, calibration, precision=precision)
            rows.append({"layer": name, "ratio": ratio} | found)
    return pd.DataFrame(rows)


@checked
def ratios_by_sensitivity(scan: Scan, tolerance: Share) -> dict[str, float]:
    """Return for each layer the largest ratio that alone costs at most ``tolerance``, recalibrated.

    Args:
        scan: what ``sensitivity`` returned.
        tolerance: share of 1; 0.01 is one point.
    """
    whole = scan.groupby("layer")["recalibrated"].transform("first")
    good = scan[scan["recalibrated"] >= whole - tolerance]
    return good.groupby("layer", sort=False)["ratio"].max().astype(float).to_dict()
