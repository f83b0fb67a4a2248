"""Pruning: the technique that changes the step. After each step, the weights that were given up are zero."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from helpers.data import Split
from helpers.evaluation import Precision, measure
from helpers.networks import prunable
from helpers.profiling import file_bytes
from helpers.training import Callback, Run
from helpers.types import (
    Count,
    Names,
    Number,
    Positive,
    Share,
    ShareBelowOne,
    by_name,
    checked,
    several,
)

Scope = Literal["global", "layer"]  # all weights are ranked together, or each layer's by themselves


@checked
@dataclass(frozen=True)
class PolynomialSchedule:
    """How sparse the network should be at each moment of a run (Zhu and Gupta 2017, eq. 1).

    sparsity = final + (initial - final) * (1 - t)^power, where t climbs from 0 at ``begin`` to 1 at ``end``:
    many weights go early, while the network can still recover, and few late. Before ``begin`` it is
    ``initial_sparsity``, after ``end`` it is ``final_sparsity``, for any progress whatever.

    Args:
        final_sparsity: share of weights that are zero in the end.
        initial_sparsity: the share to start with, no more than ``final_sparsity``.
        begin: where in the run it starts.
        end: where it stops, after ``begin``; what is left of the run is fine-tuning.
        power: 1 is a straight line, 3 the paper's choice.
    """

    final_sparsity: ShareBelowOne
    initial_sparsity: Share = 0.0
    begin: ShareBelowOne = 0.0
    end: Share = 1.0
    power: Positive = 3.0

    def __post_init__(self) -> None:
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(f"initial_sparsity must be at most the final, got {self.initial_sparsity}")
        if self.end <= self.begin:
            raise ValueError(f"end must be after begin, got {self.end}")

    @checked
    def __call__(self, progress: Number) -> float:
        """Return the sparsity asked for at ``progress``: 0 is the start of the run, 1 its end."""
        t = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        left = (1 - t) ** self.power
        return left * self.initial_sparsity + (1 - left) * self.final_sparsity


@checked
def masks_for(saliency: by_name(Tensor), sparsity: Share, scope: Scope = "global") -> dict[str, Tensor]:
    """Return masks (True is kept) that give up the least important round(sparsity * weights) weights.

    Args:
        saliency: by layer name, the importance of each weight, of the weight's shape.
        sparsity: share to give up.
        scope: "global" ranks all weights of the network together; "layer" gives up the same share of each.
    """
    for name, values in saliency.items():
        if values.isnan().any():
            raise ValueError(f"saliency of layer {name} must not be NaN")
    flat = [values.detach().flatten() for values in saliency.values()]
    if scope == "layer":
        kept = [_largest(values, sparsity) for values in flat]
    else:
        kept = _largest(torch.cat(flat or [torch.empty(0)]), sparsity).split([len(values) for values in flat])
    return {  # in the weights' memory order: else each product with them would be slow
        name: torch.empty_like(values, dtype=torch.bool).copy_(mask.view(values.shape))
        for (name, values), mask in zip(saliency.items(), kept, strict=True)
    }


def _largest(values: Tensor, sparsity: float) -> Tensor:
    # of several that are equal at the threshold, those go that torch.nn.utils.prune would take
    gone = values.topk(round(sparsity * len(values)), largest=False, sorted=False).indices
    return torch.ones_like(values, dtype=torch.bool).index_fill(0, gone, False)


@checked
def prune_once(
    model: nn.Module, sparsity: Share, scope: Scope = "global", skip: Names = ()
) -> dict[str, Tensor]:
    """Set the smallest weights to zero, at once and in place (magnitude pruning; Han 2015); return the masks.

    Args:
        model: pruned in place.
        sparsity: share of the prunable weights.
        scope: as in ``masks_for``.
        skip: names of layers to leave alone.
    """
    weights = prunable(model, skip)
    masks = masks_for({name: weight.detach().abs() for name, weight in weights.items()}, sparsity, scope)
    _clear(weights, masks)
    return masks


@torch.no_grad()
def _clear(tensors: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    for name in tensors.keys() & masks.keys():
        tensors[name].masked_fill_(~masks[name], 0)  # a product would leave -0.0, which does not zip


@torch.no_grad()
def _silence(model: nn.Module) -> None:
    # A channel that never varies says its shift, whatever its scale. But divided by sqrt(eps), the difference
    # that another precision makes between what it is and its stored mean would be hundreds of times as large.
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and layer.affine and layer.track_running_stats:
            layer.weight[layer.running_var < 1e-3 * layer.eps] = 0


@checked
class GradualPruner(Callback):
    """Prune while training: ``fit(model, data, callbacks=[GradualPruner(PolynomialSchedule(0.9))], ...)``.

    Every few steps the masks are drawn anew at the sparsity the schedule asks for. The weights outside them,
    and their momentum, are set to zero and get no gradient. Where an optimizer moves them all the same, they
    are set to zero after every step: once given up, given up for good. At the end, normalised channels that
    no longer vary lose their scale, so that their answer is the same in every precision.
    Masks travel in fit's checkpoint; a new run starts with those of the schedule's beginning.
    torch.nn.utils.prune is not used: it replaces each weight by a pair of tensors and a hook, which all other
    tools of this series (files, export, factorization) would have to know about. Here the model stays plain.

    Args:
        schedule: callable(progress) -> sparsity: a PolynomialSchedule; ``lambda progress: 0.9`` is one-shot.
        importance: "magnitude", |w| (Han 2015), or "gradient", |w * dL/dw| summed over the batches since
            the last masks (first-order Taylor; Molchanov 2017, eq. 7).
        scope: "global" or "layer", as in ``masks_for``.
        skip: names of layers to leave alone.
        every: steps between masks. Default: 30, but a tenth of a run of fewer than 300 steps, and a fiftieth
            of one of more than 1,500.
    """

    def __init__(
        self,
        schedule: Callable[[float], float],
        importance: Literal["magnitude", "gradient"] = "magnitude",
        scope: Scope = "global",
        skip: Names = (),
        every: Count | None = None,
    ) -> None:
        self.schedule, self.importance, self.scope = schedule, importance, scope
        self.skip, self.every = skip, every
        self.masks, self._taylor = {}, {}

    def extra_repr(self) -> str:
        """Return the settings, for fit's checkpoint; a schedule by what it asks for along the run."""
        asked = ", ".join(f"{self.schedule(step / 10):.4g}" for step in range(11))
        settings = f"{self.importance}, {self.scope}, skip={sorted(self.skip)}, every={self.every}"
        return f"{settings}, schedule=[{asked}]"

    def on_start(self, run: Run) -> None:
        """Find the layers; draw the schedule's first masks, or take them back after an interruption."""
        self.model, self.weights = run.model, prunable(run.model, self.skip)
        for name, weight in self.weights.items():
            if not weight.requires_grad:
                raise ValueError(f"skip must name {name}, whose weights are frozen")
        if run.step:
            device = next(run.model.parameters()).device
            self.load_state_dict({key: tensor.to(device) for key, tensor in self.state_dict().items()})
            return
        self.masks, self._taylor = {}, {}
        if self.schedule(0.0) > 0 and self.importance == "magnitude":
            self._draw(run)
        elif self.schedule(0.0) > 0:  # no gradients yet: what has been pruned before stays so
            self.masks = {name: weight.detach() != 0 for name, weight in self.weights.items()}

    @torch.no_grad()
    def on_gradients(self, run: Run) -> None:
        """Collect |w * dL/dw| where it is asked for; what is given up gets no gradient."""
        for name, weight in self.weights.items():
            if weight.grad is None:  # a layer that this batch did not use
                continue
            if self.importance == "gradient":
                self._taylor[name] = self._taylor.get(name, 0) + (weight * weight.grad).abs()
            if name in self.masks:
                weight.grad.mul_(self.masks[name])

    def on_step(self, run: Run) -> None:
        """Draw the masks anew if it is time; set the weights outside them to zero."""
        every = self.every or max(1, run.steps // 50, min(30, run.steps // 10))
        if run.step % every == 0 or run.step == run.steps:
            self._draw(run)
        elif type(run.optimizer) is not torch.optim.SGD:  # SGD moves nothing without gradient and momentum
            _clear(self.weights, self.masks)
        if run.step == run.steps:
            _silence(run.model)

    def _draw(self, run: Run) -> None:
        saliency = {name: weight.detach().abs() for name, weight in self.weights.items()}
        if self.importance == "gradient":
            saliency = {n: self._taylor.get(n, torch.zeros_like(size)) for n, size in saliency.items()}
        for name, mask in self.masks.items():
            saliency[name].masked_fill_(~mask, -1.0)  # below any weight that is still alive
        drawn = masks_for(saliency, self.schedule(run.progress), self.scope)
        self.masks = {name: mask & self.masks.get(name, mask) for name, mask in drawn.items()}
        self._taylor = {}
        momenta = {
            name: run.optimizer.state.get(weight, {}).get("momentum_buffer")
            for name, weight in self.weights.items()
        }
        _clear({name: momentum for name, momentum in momenta.items() if momentum is not None}, self.masks)
        _clear(self.weights, self.masks)
        last = run.step == run.steps
        if last and (empty := [name for name, mask in self.masks.items() if not mask.any()]):
            said = 'scope="layer" or a lower sparsity keeps some, skip all of them'
            warnings.warn(f"no weight is left in {', '.join(empty)}: {said}", stacklevel=2)

    def on_epoch(self, run: Run) -> dict[str, float]:
        """Add the reached sparsity to the epoch's row."""
        total = sum(weight.numel() for weight in self.weights.values())
        return {"sparsity": sum(int((weight == 0).sum()) for weight in self.weights.values()) / max(1, total)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return masks and collected gradients."""
        masks = {f"mask/{name}": mask for name, mask in self.masks.items()}
        return masks | {f"taylor/{name}": taylor for name, taylor in self._taylor.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave."""
        self.masks = {key[len("mask/") :]: one for key, one in state.items() if key.startswith("mask/")}
        self._taylor = {key[len("taylor/") :]: one for key, one in state.items() if key.startswith("taylor/")}


@checked
def sparsity_table(model: nn.Module) -> pd.DataFrame:
    """Count the zeros: a row per Conv2d and Linear: layer, shape, parameters, zeros, sparsity (of 1)."""
    rows = [(name, tuple(w.shape), w.numel(), int((w == 0).sum())) for name, w in prunable(model).items()]
    table = pd.DataFrame(rows, columns=["layer", "shape", "parameters", "zeros"])
    return table.assign(sparsity=table["zeros"] / table["parameters"])


@checked
def prune_two_of_four(model: nn.Module, skip: Names = ()) -> dict[str, Tensor]:
    """Keep the two largest of every four neighbouring inputs, in place (Mishra 2021), and return the masks.

    Layers whose number of inputs is not a multiple of four are left alone.
    """
    weights, masks = prunable(model, skip), {}
    for name, weight in weights.items():
        if weight.shape[1] % 4 == 0:
            fours = weight.detach().abs().movedim(1, -1).unflatten(-1, (-1, 4))
            largest = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, fours.topk(2).indices, True)
            masks[name] = largest.flatten(-2).movedim(-1, 1)
    _clear(weights, masks)
    return masks


@checked
def sweep(
    model: nn.Module,
    split: Split,
    sparsities: several(ShareBelowOne),
    *,
    calibration: Split,
    skip: Names = (),
    precision: Precision = "fp32",
) -> pd.DataFrame:
    """Prune once, globally, to each sparsity, without training: what the slider of notebook 02 moves through.

    Args:
        model: is not changed.
        split: what to measure accuracy on.
        sparsities: shares of the weights to give up.
        calibration: training pictures, from which the recalibrated copy takes its statistics.
        skip: names of layers to leave alone.
        precision: as in ``evaluate``.

    Returns:
        A row per sparsity: sparsity, threshold (the largest weight given up), the columns of ``measure``,
        bytes (of the file, as a bitmask and values, dense where that is smaller).
    """
    sizes = torch.cat([weight.detach().abs().flatten() for weight in prunable(model, skip).values()])
    rows = []
    for sparsity in sparsities:
        sparser, count = copy.deepcopy(model), round(sparsity * len(sizes))
        prune_once(sparser, sparsity, skip=skip)
        row = {"sparsity": sparsity, "threshold": float(sizes.kthvalue(count).values) if count else 0.0}
        row |= measure(sparser, split, calibration, precision=precision)
        rows.append(row | {"bytes": file_bytes(sparser, storage="bitmask")})
    return pd.DataFrame(rows)


def __getattr__(name: str) -> Any:
    if name not in ("prune_channels", "ratios_by_sensitivity", "sensitivity"):  # these live one floor up
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from helpers import channels

    return getattr(channels, name)
