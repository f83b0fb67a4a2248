"""What can happen beside the steps of ``training.fit``: pruning and checkpoints are callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Run:
    """What a callback sees of a training run.

    Attributes:
        model: the network being trained.
        optimizer: its optimizer.
        steps: optimizer steps in the whole run.
        step: steps taken so far.
        epoch: epochs finished so far.
        history: a row for each of them.
        arguments: what ``fit`` was called with, by name.
        callbacks: all that see this run.
        main: whether this process, of several, is the one that writes files.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    step: int = 0
    epoch: int = 0
    history: list[dict] = field(default_factory=list)
    arguments: dict = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()
    main: bool = True

    @property
    def progress(self) -> float:
        """Return how far the run is, from 0 to 1."""
        return self.step / self.steps


class Callback:
    """Something that happens during ``fit``: override what you need."""

    def on_start(self, run: Run) -> None:
        """Before the first step; in a resumed run, once its weights are back."""

    def on_gradients(self, run: Run) -> None:
        """Gradients are there, weights have not moved yet."""

    def on_step(self, run: Run) -> None:
        """After each optimizer step."""

    def on_epoch(self, run: Run) -> dict[str, float]:
        """After each epoch; what is returned becomes columns of its row."""
        return {}

    def on_row(self, run: Run) -> None:
        """After all callbacks' ``on_epoch``: the epoch's row is the last one of ``run.history``."""

    def extra_repr(self) -> str:
        """Return the settings that make this run another run; fit's checkpoint remembers them."""
        return ""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave."""
