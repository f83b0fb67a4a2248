"""What a recipe says, and the network that it starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torchvision
from torch import nn

from helpers import models
from helpers.benchmark.changes import Change, Prepare
from helpers.training import Callback

TORCH, DEPLOYED = ("torch",), ("torch", "onnx", "onnx int8")
EVERYWHERE = (*DEPLOYED, "litert", "litert int8", "executorch", "coreml", "coreml int8", "torchserve")
NETWORKS: dict[str, Recipe] = {}  # by name; ``helpers.benchmark.recipes`` fills it


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One network.

    Attributes:
        start: an architecture of ``models.build`` or of torchvision ("torchvision/resnet18"), or another
            recipe's name.
        change: the model: what is done to it before it is trained.
        teacher: the loss: the recipe whose network teaches; None: labels alone.
        told: what the student is told of the teacher's answers: the teacher, changed. Default: all of them.
        recorded: whether the teacher is asked once, beforehand (``distillation.record``), not at each step.
            An epoch is then each picture as it is and mirrored.
        temperature: of the soft targets.
        alpha: weight of the soft targets.
        callbacks: the step: what ``fit`` is given for this network.
        epochs: passes over the training pictures; 0: not trained.
        gpu: epochs where ``--budget gpu`` is asked for; 0: as many.
        fit: further arguments of ``fit``.
        pictures: training pictures, drawn stratified; None: all.
        prepare: what is done to the pictures, given the network that the recipe starts from and the seed.
        seeds: a run for each; the first one's network is what other recipes start from.
        exports: the file formats that are written and measured.
        split: what it is measured on: "validation" where a choice hangs on the result.
        reference: the recipe whose network it is compared with.
        file: its name in data/checkpoints, if it is shipped there.
        label: what README's table calls it; empty: it is not there.
        shown: the formats of its files in README's table.
        claimed: what is usually claimed: times smaller, points of accuracy lost, times faster.
    """

    start: str
    change: Change = field(default=lambda model, lab: model)
    teacher: str | None = None
    told: Callable[[nn.Module], nn.Module] = field(default=lambda teacher: teacher)
    recorded: bool = False
    temperature: float = 4.0
    alpha: float = 0.9
    callbacks: Callable[[nn.Module], Sequence[Callback]] = field(default=lambda model: ())
    epochs: int = 0
    gpu: int = 0
    fit: Mapping[str, object] = field(default_factory=dict)
    pictures: int | None = None
    prepare: Prepare = field(default=lambda data, model, seed: data)
    seeds: tuple[int, ...] = (0,)
    exports: tuple[str, ...] = DEPLOYED
    split: Literal["test", "validation"] = "test"
    reference: str = "teacher"
    file: str | None = None
    label: str = ""
    shown: tuple[str, ...] = ("onnx", "onnx int8")
    claimed: tuple[float, float, float] | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        """The other recipes whose networks this one is made from, taught by or compared with."""
        named = (self.start, self.teacher, self.reference)
        return tuple(dict.fromkeys(name for name in named if name in NETWORKS and NETWORKS[name] is not self))


def fresh(name: str, classes: int, width: float = 1.0) -> nn.Module:
    """Build the architecture that a recipe goes back to, untrained; or the architecture ``name`` itself.

    "torchvision/resnet18" is torchvision's; a name without a slash is of ``models.build``. ``width`` is for
    the latter alone.
    """
    seen = set()
    while name in NETWORKS:
        if name in seen:
            raise ValueError(f"start must lead back to an architecture, got a circle through {name!r}")
        seen.add(name)
        name = NETWORKS[name].start
    family, _, own = name.rpartition("/")
    if family:
        return getattr(torchvision.models, own)(num_classes=classes)
    return models.build(own, classes, width=width)


def opened(name: str, path: Path) -> nn.Module:
    """Load a network that the recipe ``name`` made."""
    into = fresh(name, 10)
    return models.load(path, None if hasattr(into, "recipe") else into)
