"""Pruning: the technique that changes the step. After each optimizer step, the weights that were given up are zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers import checks
from helpers.data import Split
from helpers.evaluation import evaluate
from helpers.profiling import file_bytes
from helpers.training import Callback, Run


class PolynomialSchedule:
    """How sparse the network should be at each moment of a run (Zhu and Gupta 2017, eq. 1).

    sparsity = final + (initial - final) * (1 - t)^power, where t climbs from 0 at ``begin`` to 1 at ``end``: many weights
    go early, while the network can still recover, and few late. Before ``begin`` it is ``initial_sparsity``, after
    ``end`` it is ``final_sparsity``, for any progress whatever.

    Args:
        final_sparsity: share of weights that are zero in the end, in [0, 1).
        initial_sparsity: the share to start with, in [0, final_sparsity].
        begin: where in the run it starts, in [0, 1).
        end: where it stops, in (begin, 1]; what is left of the run is fine-tuning.
        power: 1 is a straight line, 3 the paper's choice; above 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        final_sparsity: float,
        initial_sparsity: float = 0.0,
        begin: float = 0.0,
        end: float = 1.0,
        power: float = 3,
    ) -> None:
        self.final_sparsity = checks.number("final_sparsity", final_sparsity, 0, 1)
        if self.final_sparsity == 1:
            raise ValueError("final_sparsity must be in [0, 1), got 1.0: no weight would be left")
        self.initial_sparsity = checks.number("initial_sparsity", initial_sparsity, 0, self.final_sparsity)
        self.begin = checks.number("begin", begin, 0, 0.9999)
        self.end = checks.number("end", end, self.begin, 1, open_low=True)
        self.power = checks.number("power", power, 0, open_low=True)

    def __call__(self, progress: float) -> float:
        """Return the sparsity asked for at ``progress``: 0 is the start of the run, 1 its end."""
        t = (checks.number("progress", progress) - self.begin) / (self.end - self.begin)
        if t <= 0:
            return self.initial_sparsity
        if t >= 1:
            return self.final_sparsity
        between = self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * (1 - t) ** self.power
        return min(
            max(between, self.initial_sparsity), self.final_sparsity
        )  # rounding must not leave the range either

    def __repr__(self) -> str:
        """Return the schedule as it is written."""
        return f"PolynomialSchedule({self.final_sparsity}, {self.initial_sparsity}, {self.begin}, {self.end}, {self.power})"


def prunable(model: nn.Module, skip: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """Return the weights of every Conv2d and Linear by layer name, in order; biases and normalisation are never pruned.

    Args:
        model: any module.
        skip: names of layers to leave alone.

    Raises:
        ValueError: a name in ``skip`` is not such a layer.
    """
    checks.instance("model", model, nn.Module)
    layers = {
        name: layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    }
    skip = set(checks.names("skip", skip))
    for name in skip:
        checks.choice("skip", name, layers)
    once = {
        id(weight): name for name, weight in reversed(layers.items())
    }  # a weight that two layers share is pruned once
    return {name: weight for name, weight in layers.items() if name not in skip and once[id(weight)] == name}


def masks_for(saliency: dict[str, Tensor], sparsity: float, scope: str = "global") -> dict[str, Tensor]:
    """Return the masks (True is kept) that give up the least important weights, exactly round(sparsity * weights) of them.

    Args:
        saliency: by layer name, the importance of each weight, of the weight's shape.
        sparsity: share to give up, in [0, 1].
        scope: "global" ranks all weights of the network together; "layer" gives up the same share of each layer.

    Raises:
        ValueError: an argument is out of range, or a saliency is NaN.
    """
    sparsity = checks.number("sparsity", sparsity, 0, 1)
    checks.choice("scope", scope, ("global", "layer"))
    for name, values in checks.instance("saliency", saliency, Mapping).items():
        if checks.instance(f"saliency[{name!r}]", values, Tensor).isnan().any():
            raise ValueError(f"saliency of layer {name} must not be NaN")
    if scope == "layer":
        return {name: _keep_largest(values, sparsity) for name, values in saliency.items()}
    flat = torch.cat([values.flatten() for values in saliency.values()]) if saliency else torch.empty(0)
    parts = _keep_largest(flat, sparsity).split([values.numel() for values in saliency.values()])
    return {
        name: part.view(values.shape) for (name, values), part in zip(saliency.items(), parts, strict=True)
    }


def _keep_largest(values: Tensor, sparsity: float) -> Tensor:
    flat = values.flatten()
    count = round(sparsity * len(flat))
    if count == 0:
        return torch.ones_like(values, dtype=torch.bool)
    threshold = float(np.partition(flat.float().cpu().numpy(), count - 1)[count - 1])
    mask = flat > threshold
    if (
        len(flat) - int(mask.sum()) != count
    ):  # equal weights at the threshold: take the same ones as torch.nn.utils.prune does
        mask = torch.ones_like(mask)
        mask[flat.topk(count, largest=False, sorted=False).indices] = False
    return mask.view(values.shape)


def prune_once(
    model: nn.Module, sparsity: float, scope: str = "global", skip: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Set the smallest weights to zero, all at once and in place (magnitude pruning; Han 2015), and return the masks.

    Args:
        model: pruned in place.
        sparsity: share of the prunable weights, in [0, 1].
        scope: as in ``masks_for``.
        skip: names of layers to leave alone.
    """
    weights = prunable(model, skip)
    masks = masks_for({name: weight.detach().abs() for name, weight in weights.items()}, sparsity, scope)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.masked_fill_(~masks[name], 0)  # not a product: that would leave -0.0, which does not zip
    return masks


class GradualPruner(Callback):
    """Prune while training: ``fit(model, data, epochs=..., callbacks=[GradualPruner(PolynomialSchedule(0.9))])``.

    Every few steps the masks are drawn anew at the sparsity the schedule asks for, and the weights outside them, and their
    momentum, set to zero. There they stay, because their gradient is masked: a weight once given up is given up for good.
    Masks travel in fit's checkpoint; a new run starts with those of the schedule's beginning.
    torch.nn.utils.prune is not used: it replaces each weight by a pair of tensors and a hook, which every other tool of this
    series (files, export, factorization) would have to know about. Here the model stays plain from first to last.

    Args:
        schedule: callable(progress) -> sparsity, for example a PolynomialSchedule; ``lambda progress: 0.9`` is one-shot.
        importance: "magnitude", |w| (Han 2015), or "gradient", |w * dL/dw| averaged over the batches since the last
            masks (first-order Taylor; Molchanov 2017, eq. 7).
        scope: "global" or "layer", as in ``masks_for``.
        skip: names of layers to leave alone.
        every: steps between masks. Default: a fiftieth of the run, but 30 where it has 300 steps or more, to keep its cost low.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        schedule: Callable[[float], float],
        importance: str = "magnitude",
        scope: str = "global",
        skip: Iterable[str] = (),
        every: int | None = None,
    ) -> None:
        if not callable(schedule):
            raise TypeError(f"schedule must be callable(progress) -> sparsity, got {schedule!r}")
        self.schedule = schedule
        self.importance = checks.choice("importance", importance, ("magnitude", "gradient"))
        self.scope = checks.choice("scope", scope, ("global", "layer"))
        self.skip = checks.names("skip", skip)
        self.every = None if every is None else checks.integer("every", every, 1)
        self.masks: dict[str, Tensor] = {}
        self._taylor: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        """Return the settings, for fit's checkpoint; a schedule by what it asks for along the run."""
        asked = ", ".join(f"{self.schedule(step / 10):.4g}" for step in range(11))
        return f"{self.importance}, {self.scope}, skip={sorted(self.skip)}, every={self.every}, schedule=[{asked}]"

    def on_start(self, run: Run) -> None:
        """Find the layers; draw the schedule's first masks, or take the masks back after an interruption."""
        self.model, self.weights = run.model, prunable(run.model, self.skip)
        for name, weight in self.weights.items():
            if not weight.requires_grad:
                raise ValueError(f"skip must name {name}, whose weights are frozen")
        if run.step == 0:
            self.masks, self._taylor = {}, {}
            if self.schedule(0.0) > 0 and self.importance == "magnitude":
                self._draw(run, {name: weight.detach().abs() for name, weight in self.weights.items()})
            elif self.schedule(0.0) > 0:  # no gradients yet: what has been pruned before stays so
                self.masks = {name: weight.detach() != 0 for name, weight in self.weights.items()}
        self.masks = {name: self._like(name, mask) for name, mask in self.masks.items()}
        self._taylor = {name: self._like(name, taylor) for name, taylor in self._taylor.items()}

    def _like(self, name: str, tensor: Tensor) -> Tensor:
        """Put a tensor on the device and in the memory order of layer ``name``'s weight."""
        return torch.empty_like(self.weights[name], dtype=tensor.dtype).copy_(tensor)

    @torch.no_grad()
    def on_gradients(self, run: Run) -> None:
        """Collect |w * dL/dw| where it is asked for; what is given up gets no gradient, so it and its momentum stay zero."""
        for name, weight in self.weights.items():
            if weight.grad is None:  # a layer that this batch did not use
                continue
            if self.importance == "gradient":
                taylor = (weight * weight.grad).abs()
                self._taylor[name] = self._taylor[name] + taylor if name in self._taylor else taylor
            if name in self.masks:
                weight.grad.mul_(self.masks[name])

    def on_step(self, run: Run) -> None:
        """Draw the masks anew if it is time, and set what lies outside them to zero."""
        every = self.every or max(1, run.steps // 50, min(30, run.steps // 10))
        if run.step % every and run.step != run.steps:
            return
        saliency = {name: weight.detach().abs() for name, weight in self.weights.items()}
        if self.importance == "gradient":
            saliency = {
                name: self._taylor.get(name, torch.zeros_like(weight)) for name, weight in saliency.items()
            }
        self._draw(run, saliency)

    @torch.no_grad()
    def _draw(self, run: Run, saliency: dict[str, Tensor]) -> None:
        for name, mask in self.masks.items():
            saliency[name].masked_fill_(~mask, -1.0)  # below any weight that is still alive
        drawn = masks_for(saliency, self.schedule(run.progress), self.scope)
        self.masks = {
            name: self._like(name, mask & self.masks.get(name, mask)) for name, mask in drawn.items()
        }
        self._taylor = {}
        for name, weight in self.weights.items():
            gone = ~self.masks[name]
            weight.masked_fill_(gone, 0)
            momentum = run.optimizer.state.get(weight, {}).get("momentum_buffer")
            if momentum is not None:
                momentum.masked_fill_(gone, 0)

    @torch.no_grad()
    def finalize(self) -> nn.Module:
        """Return the pruned model and let go of the masks; it was plain all along: ordinary layers, zeros in the weights.

        Raises:
            RuntimeError: no run has begun yet.
        """
        if not hasattr(self, "model"):
            raise RuntimeError("finalize comes after fit: this pruner has not seen a model yet")
        for name, mask in self.masks.items():
            self.weights[name].masked_fill_(~mask, 0)
        self.masks, self._taylor = {}, {}
        return self.model

    def on_epoch(self, run: Run) -> dict[str, float]:
        """Add the reached sparsity to the epoch's row."""
        total = sum(weight.numel() for weight in self.weights.values())
        return {"sparsity": sum(int((weight == 0).sum()) for weight in self.weights.values()) / max(1, total)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return masks and collected gradients."""
        return {f"mask/{n}": m for n, m in self.masks.items()} | {
            f"taylor/{n}": t for n, t in self._taylor.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave."""
        self.masks = {
            name.removeprefix("mask/"): tensor for name, tensor in state.items() if name.startswith("mask/")
        }
        self._taylor = {
            name.removeprefix("taylor/"): tensor
            for name, tensor in state.items()
            if name.startswith("taylor/")
        }


def sparsity_table(model: nn.Module) -> pd.DataFrame:
    """Count the zeros: a row per Conv2d and Linear weight with layer, shape, parameters, zeros and sparsity (share of 1)."""
    rows = []
    for name, weight in prunable(model).items():
        zeros = int((weight == 0).sum())
        row = {"layer": name, "shape": tuple(weight.shape), "parameters": weight.numel(), "zeros": zeros}
        rows.append(row | {"sparsity": zeros / max(1, weight.numel())})
    return pd.DataFrame(rows, columns=["layer", "shape", "parameters", "zeros", "sparsity"])


def prune_two_of_four(model: nn.Module, skip: Iterable[str] = ()) -> dict[str, Tensor]:
    """Keep the two largest of every four neighbouring inputs of a weight, in place (Mishra 2021), and return the masks.

    Layers whose number of inputs is not a multiple of four are left alone.
    """
    masks = {}
    for name, weight in prunable(model, skip).items():
        if weight.shape[1] % 4 == 0:
            groups = weight.detach().abs().movedim(1, -1).unflatten(-1, (-1, 4))
            mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(
                -1, groups.topk(2, dim=-1).indices, True
            )
            masks[name] = mask.flatten(-2).movedim(-1, 1)
            with torch.no_grad():
                weight.masked_fill_(~masks[name], 0)
    return masks


def sensitivity(
    model: nn.Module,
    split: Split,
    ratios: Iterable[float] = (0.5, 0.8, 0.9, 0.95, 0.98),
    *,
    unit: str = "weight",
    only: Iterable[str] | None = None,
    precision: str = "fp32",
) -> pd.DataFrame:
    """Prune one layer at a time, nothing else, and see what it does to the accuracy (Han 2015, section 5, figure 6).

    Args:
        model: is not changed.
        split: what to measure on; the validation split, since what is read from it is a choice.
        ratios: shares of the layer to take away, in [0, 1).
        unit: "weight", the smallest weights set to zero, or "channel", whole outputs removed as ``prune_channels`` does.
        only: names of layers. Default: every one that has the unit.
        precision: as in ``evaluate``.

    Returns:
        A row per layer and ratio: layer, ratio, correct, total, accuracy (share of 1); ratio 0 is the network as it is.
    """
    checks.choice("unit", unit, ("weight", "channel"))
    checks.instance("split", split, Split)
    ratios = checks.numbers("ratios", ratios, 0, 0.9999)
    every = [name for name in prunable(model) if unit == "weight" or name != _classifier(model)]
    layers = (
        every if only is None else [checks.choice("only", name, every) for name in checks.names("only", only)]
    )
    whole = evaluate(model, split, precision=precision)
    rows = []
    for name in layers:
        rows.append((name, 0.0, whole.correct, whole.total, float(whole)))
        for ratio in ratios:
            thinner = copy.deepcopy(model)
            if unit == "channel":
                thinner = prune_channels(thinner, split.images[:1].float(), {name: ratio}, round_to=1)
            else:
                prune_once(thinner, ratio, skip=[other for other in prunable(model) if other != name])
            accuracy = evaluate(thinner, split, precision=precision)
            rows.append((name, ratio, accuracy.correct, accuracy.total, float(accuracy)))
    return pd.DataFrame(rows, columns=["layer", "ratio", "correct", "total", "accuracy"])


def ratios_by_sensitivity(scan: pd.DataFrame, tolerance: float) -> dict[str, float]:
    """Return for each layer the largest ratio at which it alone costs at most ``tolerance`` of the accuracy.

    Args:
        scan: what ``sensitivity`` returned.
        tolerance: share of 1; 0.01 is one point.
    """
    tolerance = checks.number("tolerance", tolerance, 0, 1)
    if not {"layer", "ratio", "accuracy"} <= set(checks.instance("scan", scan, pd.DataFrame)):
        raise ValueError(
            f"scan must have the columns layer, ratio and accuracy, got {', '.join(map(str, scan))}"
        )
    good = scan[scan["accuracy"] >= scan.groupby("layer")["accuracy"].transform("first") - tolerance]
    return {name: float(rows["ratio"].max()) for name, rows in good.groupby("layer", sort=False)}


def prune_channels(
    model: nn.Module,
    example: Tensor,
    ratio: float | Mapping[str, float],
    importance: str = "magnitude",
    *,
    scope: str = "layer",
    round_to: int = 8,
    skip: Iterable[str] = (),
) -> nn.Module:
    """Take whole channels away, with everything in other layers that depends on them: a smaller dense network (Li 2017).

    The bookkeeping (a channel gone here is an input gone there, a residual sum ties layers together) is
    torch-pruning's dependency graph (Fang 2023). The result needs it no more: it is a plain module with smaller layers.

    Args:
        model: is not changed. Its last Linear, whose outputs are the classes, keeps them.
        example: an input it takes, for example 1 x 3 x 32 x 32.
        ratio: share of each layer's channels to remove, in [0, 1), or {layer name: share}; layers it does not name keep theirs. Of
            layers that are tied to each other, the smallest share given for any of them counts.
        importance: of a channel: "magnitude", the norm of its weights; "batchnorm", the scale of the normalisation behind it
            (network slimming; Liu 2017); "gradient", first-order Taylor (Molchanov 2017), for which the parameters must hold
            gradients: call backward on a batch or two first.
        scope: "layer" takes the same share of every layer; "global" ranks the channels of all layers together.
        round_to: as many channels are left as the nearest multiple of this, and no fewer than it, where the layer had as many (8 suits
            processors' vectors).
        skip: names of layers whose outputs stay, and with them those of layers tied to them.

    Returns:
        The smaller network. A model of ``models.build`` keeps its recipe, so it saves, loads and trains like any other.

    Raises:
        ValueError: an argument is out of range or does not fit the model, a layer's name is unknown, or gradients are missing.
        ImportError: torch-pruning is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ImportError("prune_channels needs torch-pruning: pip install torch-pruning") from error

    checks.instance("model", model, nn.Module)
    checks.tensor("example", example)
    checks.choice("importance", importance, ("magnitude", "batchnorm", "gradient"))
    checks.choice("scope", scope, ("layer", "global"))
    checks.integer("round_to", round_to, 1)
    shares = _shares(model, ratio, scope, skip)
    if importance == "gradient" and any(weight.grad is None for weight in prunable(model).values()):
        raise ValueError(
            'importance "gradient" needs gradients, but a weight has none: call backward on a batch first'
        )
    smaller = (
        copy.deepcopy(model).eval().requires_grad_(True)
    )  # the graph is read off autograd's, which frozen weights are not in
    for mine, theirs in zip(smaller.parameters(), model.parameters(), strict=True):
        mine.grad = None if theirs.grad is None or importance != "gradient" else theirs.grad.clone()
    example = example.to(next(smaller.parameters()))
    try:
        outputs = smaller(example).shape
        with torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(smaller, example)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"example must be an input that the model takes, got shape {tuple(example.shape)} ({error})"
        ) from error
    score = {
        "magnitude": "GroupMagnitudeImportance",
        "batchnorm": "BNScaleImportance",
        "gradient": "GroupTaylorImportance",
    }[importance]
    chosen = _channels_to_go(
        graph, smaller, shares, getattr(torch_pruning.importance, score)(), scope == "global", round_to
    )
    for layer, prune, channels in chosen:
        graph.get_pruning_group(layer, prune, channels).prune()
    if smaller(example).shape != outputs:
        raise ValueError(
            "skip must name the layer whose outputs are the network's: they would have become fewer"
        )
    for (_, mine), (_, theirs) in zip(smaller.named_modules(), model.named_modules(), strict=True):
        mine.training = theirs.training
    for mine, theirs in zip(smaller.parameters(), model.parameters(), strict=True):
        mine.grad = None
        mine.requires_grad_(theirs.requires_grad)
    return smaller


def _shares(
    model: nn.Module, ratio: float | Mapping[str, float], scope: str, skip: Iterable[str]
) -> dict[str, float]:
    """Return {layer name: share of its channels that may go}."""
    layers, classifier = prunable(model), _classifier(model)
    kept = set(layers) - set(prunable(model, skip)) | {classifier}
    if not isinstance(ratio, Mapping):
        ratio = checks.number("ratio", ratio, 0, 0.9999)
        return {name: 0.0 if name in kept else ratio for name in layers}
    if scope == "global":
        raise ValueError('scope must be "layer" where ratio names layers, got "global"')
    if not ratio:
        raise ValueError("ratio must name at least one layer, got an empty mapping")
    for name, share in ratio.items():
        checks.choice("ratio", name, [layer for layer in layers if layer != classifier])
        checks.number(f"ratio[{name!r}]", share, 0, 0.9999)
    return {name: 0.0 for name in kept} | {
        name: float(share) for name, share in ratio.items() if name not in kept
    }


def _channels_to_go(
    graph: object,
    model: nn.Module,
    shares: dict[str, float],
    importance: Callable,
    together: bool,
    round_to: int,
) -> list[tuple[nn.Module, Callable, list[int]]]:
    """Return for each group of tied layers its first layer, the function that prunes its outputs, and which of them go."""
    names = {layer: name for name, layer in model.named_modules()}
    found = []
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        tied = {
            names[dep.target.module]
            for dep, _ in group
            if dep.target.module in names and graph.is_out_channel_pruning_fn(dep.handler)
        }
        given = [shares[name] for name in tied if name in shares]
        grouped = any(
            1
            < getattr(model.get_submodule(name), "groups", 1)
            < getattr(model.get_submodule(name), "out_channels", 1)
            for name in tied
        )
        if not given or min(given) == 0 or grouped:  # channels of a grouped convolution cannot go one by one
            continue
        scores = importance(group)
        if scores is None:
            raise ValueError(f'importance "batchnorm" needs a normalisation behind {", ".join(sorted(tied))}')
        found.append((group[0].dep.target.module, group[0].dep.handler, scores.detach(), min(given)))
    if together and found:
        every = torch.cat([scores for _, _, scores, _ in found])
        threshold = (
            every.sort().values[round(found[0][3] * len(every)) - 1]
            if round(found[0][3] * len(every))
            else -1
        )
        found = [
            (layer, prune, scores, float((scores <= threshold).float().mean()))
            for layer, prune, scores, _ in found
        ]
    chosen = []
    for layer, prune, scores, share in found:
        count = len(scores)
        left = max(round_to * round(count * (1 - share) / round_to), min(round_to, count), 1)
        if left < count:
            chosen.append((layer, prune, scores.argsort(stable=True)[: count - left].sort().values.tolist()))
    return chosen


def _classifier(model: nn.Module) -> str | None:
    """Return the name of the last Linear, whose outputs are the classes."""
    return next(
        (name for name, layer in reversed(list(model.named_modules())) if isinstance(layer, nn.Linear)), None
    )


def sweep(
    model: nn.Module,
    split: Split,
    sparsities: Iterable[float],
    *,
    skip: Iterable[str] = (),
    precision: str = "fp32",
) -> pd.DataFrame:
    """Prune once, globally, to each sparsity, without any training: what the slider of notebook 02 moves through.

    Args:
        model: is not changed.
        split: what to measure accuracy on.
        sparsities: in [0, 1).
        skip: names of layers to leave alone.
        precision: as in ``evaluate``.

    Returns:
        A row per sparsity: sparsity, threshold (the largest weight given up), correct, total, accuracy, bytes (of the file, as a
        bitmask and values, dense where that is smaller).
    """
    sparsities = checks.numbers("sparsities", sparsities, 0, 0.9999)
    checks.instance("split", split, Split)
    rows = []
    sizes = (
        torch.cat([weight.detach().abs().flatten() for weight in prunable(model, skip).values()])
        .sort()
        .values
    )
    for sparsity in sparsities:
        sparser = copy.deepcopy(model)
        prune_once(sparser, sparsity, skip=skip)
        count = round(sparsity * len(sizes))
        accuracy = evaluate(sparser, split, precision=precision)
        row = {"sparsity": sparsity, "threshold": float(sizes[count - 1]) if count else 0.0}
        row |= {"correct": accuracy.correct, "total": accuracy.total, "accuracy": float(accuracy)}
        rows.append(row | {"bytes": file_bytes(sparser, storage="bitmask")})
    return pd.DataFrame(rows)
