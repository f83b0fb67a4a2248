"""Whole channels taken away, which leaves a smaller dense network; and what each layer alone can spare."""

import copy
import warnings
from typing import Literal

import pandas as pd
import torch
from torch import nn

from helpers.channel_graph import Group, groups_of, traced, without
from helpers.data import Split
from helpers.evaluation import Precision, measure
from helpers.networks import known, narrow
from helpers.profiling import count_parameters
from helpers.pruning import Scope, prunable, prune_once
from helpers.runs import classifier
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
WHOLE = "kept all channels, which cannot go one by one or are tied to layers that keep theirs"
SCORES = {  # the words of this series, and torch-pruning's
    "magnitude": "GroupMagnitudeImportance",
    "batchnorm": "BNScaleImportance",
    "gradient": "GroupTaylorImportance",
}


class _StayError(ValueError):
    """None of the channels that were asked for can go."""


@checked
@torch.inference_mode(False)  # the graph is read off autograd's, which this mode switches off for good
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
        model: is not changed. The Linear that runs last, whose outputs are the classes, keeps them. So do
            layers whose channels cannot go one by one: on both sides of a grouped convolution, before group
            normalisation, with a warning if ``ratio`` names them.
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
    shares = _shares(model, classifier(model, example), ratio, skip)
    if scope == "global" and isinstance(ratio, dict):
        raise ValueError('scope must be "layer" where ratio names layers, got "global"')
    if importance == "gradient" and any(weight.grad is None for weight in prunable(model).values()):
        raise ValueError('importance "gradient" needs gradients: call backward on a batch first')
    score = getattr(torch_pruning.importance, SCORES[importance])()
    groups, tied, alone = groups_of(traced(model, example)[0], shares, score)
    ranked = _ranked(groups, ratio) if scope == "global" else groups
    plan = {group.name: gone for group in ranked if (gone := _lowest(group, round_to))}
    smaller, leaking = without(model, example, plan)
    while leaking:
        alone += [one for name in leaking for one in tied[name]]
        plan = {name: gone for name, gone in plan.items() if name not in leaking}
        smaller, leaking = without(model, example, plan)
    listed = ", ".join(dict.fromkeys(alone))
    if alone and not plan:
        what = "ratio must name layers" if isinstance(ratio, dict) else "model must be a network"
        raise _StayError(f"{what} whose channels can go, {WHY}: {listed}; factorize can split these")
    if alone:
        warnings.warn(f"left alone, {WHY}: {listed}", stacklevel=4)  # 4: whoever called
    followed = {*alone, *(one for together in tied.values() for one in together)}
    if isinstance(ratio, dict) and (whole := [one for one in ratio if ratio[one] and one not in followed]):
        warnings.warn(f"{', '.join(whole)}: {WHOLE}", stacklevel=4)
    for mine, theirs in zip(smaller.parameters(), model.parameters(), strict=True):
        mine.grad = None
        mine.requires_grad_(theirs.requires_grad)
    return narrow(smaller, model)


def _shares(
    model: nn.Module, last: str | None, ratio: float | dict[str, float], skip: tuple[str, ...]
) -> dict[str, float]:
    """Return {layer: share that may go}, 0 where all stay; others follow the layers they are tied to."""
    layers, free = prunable(model), prunable(model, skip)
    kept = [name for name in layers if name not in free or name == last]
    if not isinstance(ratio, dict):
        return dict.fromkeys(layers, ratio) | dict.fromkeys(kept, 0.0)
    if not ratio:
        raise ValueError("ratio must name at least one layer, got an empty mapping")
    known("ratio", ratio, [name for name in layers if name != last])
    return ratio | dict.fromkeys(kept, 0.0)


def _ranked(groups: list[Group], ratio: float) -> list[Group]:
    """Return the groups with the share of each that is among the lowest ``ratio`` of all channels."""
    sizes = [len(group.scores) for group in groups]
    ranks = torch.cat([torch.empty(0), *(group.scores.cpu() for group in groups)]).argsort().argsort()
    low = (ranks < round(ratio * len(ranks))).float().split(sizes)
    return [group._replace(share=float(part.mean())) for group, part in zip(groups, low, strict=True)]


def _lowest(group: Group, round_to: int) -> list[int]:
    """Return the channels to remove: the sets of lowest scores, as many as share and rounding allow."""
    count = len(group.scores)
    nearest, gone = round_to * round(count * (1 - group.share) / round_to), []
    most = count - max(nearest, min(round_to, count))
    for together in sorted(group.sets, key=lambda some: float(group.scores[some[0]])):
        if len(gone) + len(together) > most:
            break
        gone += together
    return sorted(gone)


@checked
def sensitivity(
    model: nn.Module,
    split: Split,
    ratios: several(ShareBelowOne) = (0.5, 0.8, 0.9, 0.95, 0.98),
    *,
    calibration: Split,
    unit: Literal["weight", "channel"] = "weight",
    only: Names | None = None,
    precision: Precision = "fp32",
) -> pd.DataFrame:
    """Prune one layer at a time, nothing else, and see what it does (Han 2015, section 5, figure 6).

    Args:
        model: is not changed.
        split: what to measure on; the validation split, since what is read from it is a choice.
        ratios: shares of the layer to take away.
        calibration: training pictures, from which the recalibrated copies take their statistics.
        unit: "weight", the smallest weights set to zero, or "channel", what ``prune_channels`` removes.
        only: names of layers. Default: every one that has the unit, and whose channels can go.
        precision: as in ``evaluate``.

    Returns:
        A row per layer and ratio: layer, ratio, the columns of ``measure``; ratio 0 is the whole network.
    """
    every = list(prunable(model))
    last = None if unit == "weight" else classifier(model, split.images[:1].float())
    layers = [name for name in every if name != last]
    known("only", only or (), layers)
    whole, rows = measure(model, split, calibration, precision=precision), []

    def pruned(name: str, ratio: float) -> nn.Module:
        thinner = copy.deepcopy(model)
        if unit == "channel":  # cut on the CPU: a GPU's sums are too coarse to see that nothing else changed
            example, device = split.images[:1].float().cpu(), next(model.parameters()).device
            return prune_channels(thinner.cpu(), example, {name: ratio}, round_to=1).to(device)
        prune_once(thinner, ratio, skip=[other for other in every if other != name])
        return thinner

    for name in layers if only is None else only:
        own, smaller = [{"layer": name, "ratio": 0.0} | whole], unit == "weight" or not any(ratios)
        try:
            for ratio in ratios:
                thinner = pruned(name, ratio)
                smaller |= count_parameters(thinner) < count_parameters(model)
                found = measure(thinner, split, calibration, precision=precision)
                own.append({"layer": name, "ratio": ratio} | found)
        except _StayError:
            if only is not None:
                raise
        else:  # a layer that keeps its channels at every ratio has nothing to say, unless it was asked
            rows += own if smaller or only is not None else []
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
