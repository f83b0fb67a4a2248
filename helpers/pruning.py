"""Pruning: the technique that changes the step. After each optimizer step, the weights that were given up are zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pandas as pd
import torch
from torch import Tensor, nn

from helpers import checks
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
        self, final_sparsity: float, initial_sparsity: float = 0.0, begin: float = 0.0, end: float = 1.0, power: float = 3
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
        t = (progress - self.begin) / (self.end - self.begin)
        if t <= 0:
            return self.initial_sparsity
        if t >= 1:
            return self.final_sparsity
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * (1 - t) ** self.power

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
    if isinstance(skip, str):
        raise TypeError(f"skip must be a collection of layer names, got the string {skip!r}")
    layers = {name: layer.weight for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    skip = set(skip)
    for name in skip:
        checks.choice("skip", name, layers)
    return {name: weight for name, weight in layers.items() if name not in skip}


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
    for name, values in saliency.items():
        if values.isnan().any():
            raise ValueError(f"saliency of layer {name} must not be NaN")
    if scope == "layer":
        return {name: _keep_largest(values, sparsity) for name, values in saliency.items()}
    flat = torch.cat([values.flatten() for values in saliency.values()]) if saliency else torch.empty(0)
    parts = _keep_largest(flat, sparsity).split([values.numel() for values in saliency.values()])
    return {name: part.view(values.shape) for (name, values), part in zip(saliency.items(), parts, strict=True)}


def _keep_largest(values: Tensor, sparsity: float) -> Tensor:
    count = round(sparsity * values.numel())
    mask = torch.ones(values.numel(), dtype=torch.bool, device=values.device)
    if count:
        mask[values.flatten().topk(count, largest=False, sorted=False).indices] = False
    return mask.view(values.shape)


def prune_once(model: nn.Module, sparsity: float, scope: str = "global", skip: Iterable[str] = ()) -> dict[str, Tensor]:
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
    Masks travel in fit's checkpoint; a new run starts with open masks.
    torch.nn.utils.prune is not used: it replaces each weight by a pair of tensors and a hook, which every other tool of this
    series (files, export, factorization) would have to know about. Here the model stays plain from first to last.

    Args:
        schedule: callable(progress) -> sparsity, for example a PolynomialSchedule; ``lambda progress: 0.9`` is one-shot.
        importance: "magnitude", |w| (Han 2015), or "gradient", |w * dL/dw| averaged over the batches since the last
            masks (first-order Taylor; Molchanov 2017, eq. 7).
        scope: "global" or "layer", as in ``masks_for``.
        skip: names of layers to leave alone.
        every: steps between masks. Default: a hundredth of the run.

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
        self.skip = tuple(skip) if not isinstance(skip, str) else skip
        self.every = None if every is None else checks.integer("every", every, 1)
        self.masks: dict[str, Tensor] = {}
        self._taylor: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        """Return the settings, for fit's checkpoint; a schedule by what it asks for along the run."""
        asked = ", ".join(f"{self.schedule(step / 10):.4g}" for step in range(11))
        return f"{self.importance}, {self.scope}, skip={sorted(self.skip)}, every={self.every}, schedule=[{asked}]"

    def on_start(self, run: Run) -> None:
        """Find the layers; start with open masks, or take them back after an interruption."""
        self.weights = prunable(run.model, self.skip)
        for name, weight in self.weights.items():
            if not weight.requires_grad:
                raise ValueError(f"skip must name {name}, whose weights are frozen")
        if run.step == 0:
            self.masks, self._taylor = {}, {}
        self.masks = {name: self._like(name, mask) for name, mask in self.masks.items()}
        self._taylor = {name: self._like(name, taylor) for name, taylor in self._taylor.items()}

    def _like(self, name: str, tensor: Tensor) -> Tensor:
        """Put a tensor on the device and in the memory order of layer ``name``'s weight."""
        return torch.empty_like(self.weights[name], dtype=tensor.dtype).copy_(tensor)

    @torch.no_grad()
    def on_gradients(self, run: Run) -> None:
        """Collect |w * dL/dw| where it is asked for; what is given up gets no gradient, so it and its momentum stay zero."""
        for name, weight in self.weights.items():
            if self.importance == "gradient":
                taylor = (weight * weight.grad).abs()
                self._taylor[name] = self._taylor[name] + taylor if name in self._taylor else taylor
            if name in self.masks:
                weight.grad.masked_fill_(~self.masks[name], 0)

    @torch.no_grad()
    def on_step(self, run: Run) -> None:
        """Draw the masks anew if it is time, and set what lies outside them to zero."""
        every = self.every or max(1, run.steps // 100)
        if run.step % every and run.step != run.steps:
            return
        saliency = self._taylor if self.importance == "gradient" else {n: w.detach().abs() for n, w in self.weights.items()}
        for name, mask in self.masks.items():
            saliency[name].masked_fill_(~mask, -1.0)  # below any weight that is still alive
        drawn = masks_for(saliency, self.schedule(run.progress), self.scope)
        self.masks = {name: self._like(name, mask & self.masks.get(name, mask)) for name, mask in drawn.items()}
        self._taylor = {}
        for name, weight in self.weights.items():
            gone = ~self.masks[name]
            weight.masked_fill_(gone, 0)
            momentum = run.optimizer.state.get(weight, {}).get("momentum_buffer")
            if momentum is not None:
                momentum.masked_fill_(gone, 0)

    def on_epoch(self, run: Run) -> dict[str, float]:
        """Add the reached sparsity to the epoch's row."""
        total = sum(weight.numel() for weight in self.weights.values())
        return {"sparsity": sum(int((weight == 0).sum()) for weight in self.weights.values()) / max(1, total)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return masks and collected gradients."""
        return {f"mask/{n}": m for n, m in self.masks.items()} | {f"taylor/{n}": t for n, t in self._taylor.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave."""
        self.masks = {name.removeprefix("mask/"): tensor for name, tensor in state.items() if name.startswith("mask/")}
        self._taylor = {name.removeprefix("taylor/"): tensor for name, tensor in state.items() if name.startswith("taylor/")}


def sparsity_table(model: nn.Module) -> pd.DataFrame:
    """Count the zeros: a row per Conv2d and Linear weight with layer, shape, parameters, zeros and sparsity (share of 1)."""
    rows = []
    for name, weight in prunable(model).items():
        zeros = int((weight == 0).sum())
        row = {"layer": name, "shape": tuple(weight.shape), "parameters": weight.numel(), "zeros": zeros}
        rows.append(row | {"sparsity": zeros / max(1, weight.numel())})
    return pd.DataFrame(rows, columns=["layer", "shape", "parameters", "zeros", "sparsity"])
