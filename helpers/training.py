"""The one loop. Distillation changes its loss, pruning its step, factorization its model; it knows none of them.

Read ``fit`` from top to bottom and you have understood the series.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers import checks
from helpers.data import Data, Split, batches
from helpers.models import CheckpointError, read_safetensors

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits, images, labels) -> scalar


@dataclass
class Run:
    """What a callback sees of a training run.

    Attributes:
        model: the network being trained.
        optimizer: its optimizer.
        steps: optimizer steps in the whole run.
        step: steps taken so far.
        epoch: epochs finished so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    step: int = 0
    epoch: int = 0

    @property
    def progress(self) -> float:
        """Return how far the run is, from 0 to 1."""
        return self.step / self.steps


class Callback:
    """Something that happens during ``fit``: override what you need."""

    def on_start(self, run: Run) -> None:
        """Before the first step, and again after a resumed run has its weights back."""

    def on_gradients(self, run: Run) -> None:
        """Gradients are there, weights have not moved yet."""

    def on_step(self, run: Run) -> None:
        """After each optimizer step."""

    def on_epoch(self, run: Run) -> dict[str, float]:
        """After each epoch; what is returned becomes columns of its row."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave."""


def fit(
    model: nn.Module,
    data: Data,
    *,
    epochs: int,
    loss: Loss | None = None,
    callbacks: Sequence[Callback] = (),
    lr: float = 0.1,
    batch_size: int = 256,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    schedule: str = "cosine",
    warmup: float = 0.15,
    augment: bool = True,
    precision: str = "auto",
    compile: bool = False,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train ``model`` in place by SGD with Nesterov momentum, and return what happened.

    Args:
        model: any module that maps normalised images, B x 3 x 32 x 32, to logits, B x classes. It ends up on the
            device that accelerate picks: the GPU if there is one, one per process under ``accelerate launch``.
        data: trains on ``data.train`` and measures on ``data.validation``; the test split is not touched.
        epochs: passes over the training split.
        loss: callable(logits, images, labels) -> scalar. Default: cross-entropy with ``label_smoothing``.
        callbacks: see ``Callback``.
        lr: the largest learning rate, for batches of ``batch_size``.
        batch_size: pictures a step, over all processes (a multiple of their number).
        momentum: of Nesterov's method, in [0, 1).
        weight_decay: on convolution and linear weights; biases and normalisation layers are spared.
        label_smoothing: in [0, 1); only for the default loss.
        schedule: "cosine" or "one_cycle"; see ``learning_rate``.
        warmup: share of the run in which the learning rate climbs, in [0, 1).
        augment: random shifts, and mirroring where the data allow it.
        precision: "bf16" (autocast), "fp32", or "auto": bf16 where the processor computes in it.
        compile: use torch.compile. Worth its minute of compilation for long runs on a GPU; on CPUs it was slower.
        seed: of the order, the augmentation and dropout. Initial weights are drawn before, by ``models.build``.
        checkpoint: a .safetensors file, written after each epoch. If it is there, the run goes on from it and ends
            with the same weights, bit for bit, as one that was never interrupted (same machine, same thread count).
        progress: show a progress bar.

    Returns:
        A row per epoch: epoch, lr, loss, train_accuracy and validation_accuracy (shares of 1), seconds,
        images_per_second, and what the callbacks add.

    Raises:
        ValueError: an argument is out of range, or ``checkpoint`` belongs to a run with other settings.
        FloatingPointError: the loss is NaN or infinite; the message says at which step.
        CheckpointError: ``checkpoint`` is damaged.
    """
    checks.instance("model", model, nn.Module)
    checks.instance("data", data, Data)
    settings = {
        "epochs": checks.integer("epochs", epochs, 1),
        "lr": checks.number("lr", lr, 0, open_low=True),
        "batch_size": checks.integer("batch_size", batch_size, 1),
        "momentum": checks.number("momentum", momentum, 0, 0.9999),
        "weight_decay": checks.number("weight_decay", weight_decay, 0),
        "label_smoothing": checks.number("label_smoothing", label_smoothing, 0, 0.9999),
        "schedule": checks.choice("schedule", schedule, ("cosine", "one_cycle")),
        "warmup": checks.number("warmup", warmup, 0, 0.9999),
        "augment": bool(augment),
        "seed": checks.integer("seed", seed, 0),
        "data": [data.name, len(data.train), int(data.train.labels.sum())],
        "parameters": sum(p.numel() for p in model.parameters()),
    }

    # 1. Everything moves to the device once: the model, the teacher if the loss has one, the pictures.
    accelerator = Accelerator(mixed_precision="no")  # autocast is ours, below: it then covers a teacher too
    device = accelerator.device
    if batch_size % accelerator.num_processes:
        raise ValueError(f"batch_size must be a multiple of the {accelerator.num_processes} processes, got {batch_size}")
    model.to(device, memory_format=torch.channels_last)
    if isinstance(loss, nn.Module):
        loss.to(device)
    train, validation = data.train.to(device), data.validation.to(device)
    optimizer = torch.optim.SGD(_parameter_groups(model, weight_decay), lr=lr, momentum=momentum, nesterov=momentum > 0)
    wrapped, stepper = accelerator.prepare(model, optimizer)
    forward = torch.compile(wrapped) if compile else wrapped
    loss = loss or (lambda logits, images, labels: F.cross_entropy(logits, labels, label_smoothing=label_smoothing))

    # 2. A run is where it is: fresh, or wherever the checkpoint says.
    steps_per_epoch = max(1, len(train) // batch_size)
    run = Run(model, optimizer, steps=epochs * steps_per_epoch)
    history: list[dict] = []
    if checkpoint is not None and Path(checkpoint).exists():
        history = _resume(Path(checkpoint), run, callbacks, settings)
        run.epoch, run.step = len(history), len(history) * steps_per_epoch
    for callback in callbacks:
        callback.on_start(run)

    # 3. The loop.
    bar = tqdm(total=run.steps, initial=run.step, disable=not progress or not accelerator.is_main_process, leave=False)
    while run.epoch < epochs:
        started, total, correct, seen = time.perf_counter(), 0.0, 0, 0
        generator = _seeded(seed, run.epoch, device)
        model.train()
        share = {"rank": accelerator.process_index, "world": accelerator.num_processes}
        for images, labels in batches(train, batch_size, generator=generator, augmented=augment, **share):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(run.progress, lr, schedule, warmup)
            with _autocast(device, precision):
                logits = forward(images)
                value = loss(logits.float(), images, labels)
            if not math.isfinite(value.item()):
                raise FloatingPointError(
                    f"the loss is {value.item()} at step {run.step + 1} of {run.steps} (epoch {run.epoch + 1}): "
                    f"lower lr (it is {lr:g}), lengthen warmup, or look for NaN in the weights and pictures"
                )
            stepper.zero_grad()
            accelerator.backward(value)
            for callback in callbacks:
                callback.on_gradients(run)
            stepper.step()
            run.step += 1
            for callback in callbacks:
                callback.on_step(run)
            total += value.item() * len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
            bar.update()
        seconds = time.perf_counter() - started
        total, correct, seen = accelerator.reduce(torch.tensor([total, correct, seen], dtype=torch.float64)).tolist()

        # 4. A row, and a checkpoint.
        run.epoch += 1
        row = {"epoch": run.epoch, "lr": optimizer.param_groups[0]["lr"], "loss": total / seen, "train_accuracy": correct / seen}
        row["validation_accuracy"] = float(evaluate(model, validation, precision=precision))
        row |= {"seconds": seconds, "images_per_second": seen / seconds}
        for callback in callbacks:
            row |= callback.on_epoch(run)
        history.append(row)
        bar.set_postfix(loss=f"{row['loss']:.3f}", validation=f"{row['validation_accuracy']:.1%}")
        if checkpoint is not None and accelerator.is_main_process:
            _write_checkpoint(Path(checkpoint), run, callbacks, settings, history)
    bar.close()
    model.eval()
    return pd.DataFrame(history)


def learning_rate(progress: float, lr: float, schedule: str = "cosine", warmup: float = 0.15) -> float:
    """Return the learning rate at ``progress`` (0 to 1) of a run.

    Both climb linearly from 0 to ``lr`` over the first ``warmup`` of the run. Then "cosine" follows half a cosine
    down to 0 (Loshchilov and Hutter 2017, section 3) and "one_cycle" a straight line (Smith 2018, section 4).
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return lr * progress / warmup
    left = (1 - progress) / (1 - warmup)
    return lr * (left if schedule == "one_cycle" else 0.5 * (1 - math.cos(math.pi * left)))


# -- measuring accuracy ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy, as a count: ``float()`` gives the share, ``print`` the percentage with its interval.

    Attributes:
        correct: pictures classified rightly.
        total: pictures.
    """

    correct: int
    total: int

    def __post_init__(self) -> None:
        checks.integer("total", self.total, 1)
        checks.integer("correct", self.correct, 0, self.total)

    def __float__(self) -> float:
        """Return the share of correct answers, in [0, 1]."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share (Wilson 1927): where the accuracy on all such pictures plausibly lies."""
        z, n, p = 1.959963984540054, self.total, float(self)
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)

    def __str__(self) -> str:
        """Return for example ``94.2% (9,421 of 10,000; 93.7 to 94.7)``."""
        low, high = self.interval
        return f"{float(self):.1%} ({self.correct:,} of {self.total:,}; {100 * low:.1f} to {100 * high:.1f})"


def predict(model: nn.Module, split: Split, *, batch_size: int = 500, precision: str = "auto") -> Tensor:
    """Return the logits of every picture of ``split``, in order, in eval mode: N x classes, float32, on the CPU."""
    checks.instance("model", model, nn.Module)
    checks.instance("split", split, Split)
    checks.integer("batch_size", batch_size, 1)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training, logits = model.training, []
    model.eval()
    try:
        with torch.inference_mode(), _autocast(device, precision):
            for images, _ in batches(split.to(device), batch_size):
                logits.append(model(images).float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(logits)


def evaluate(model: nn.Module, split: Split, *, batch_size: int = 500, precision: str = "auto") -> Accuracy:
    """Measure top-1 accuracy on ``split``, in eval mode.

    Args:
        model: maps normalised images to logits.
        split: what to classify.
        batch_size: pictures at a time; does not change the result beyond rounding.
        precision: as in ``fit``.

    Returns:
        Accuracy: ``float()`` in [0, 1], and its 95% interval.
    """
    answers = predict(model, split, batch_size=batch_size, precision=precision).argmax(1)
    return Accuracy(int((answers == split.labels.cpu()).sum()), len(split))


# -- what the loop leans on ------------------------------------------------------------------------------------------


def has_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether ``device`` computes in bfloat16 at more than emulated speed."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        flags = Path("/proc/cpuinfo")
        return flags.exists() and any(flag in flags.read_text() for flag in ("avx512_bf16", "amx_bf16", " bf16"))
    return False


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    checks.choice("precision", precision, ("auto", "bf16", "fp32"))
    enabled = precision == "bf16" or (precision == "auto" and has_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _seeded(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    """Seed this epoch's randomness from (seed, epoch) alone, so that a resumed run draws what it would have drawn."""
    number = seed * 1_000_003 + epoch
    torch.manual_seed(number)
    return torch.Generator(device).manual_seed(number)


def _write_checkpoint(path: Path, run: Run, callbacks: Sequence[Callback], settings: dict, history: list[dict]) -> None:
    tensors = {f"model/{name}": tensor for name, tensor in run.model.state_dict().items()}
    for index, state in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items() if value is not None}
    for index, callback in enumerate(callbacks):
        tensors |= {f"callback/{index}/{name}": tensor for name, tensor in callback.state_dict().items()}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with checks.atomic_path(path) as part:
        save_file(tensors, part, {"settings": json.dumps(settings), "history": json.dumps(history)})


def _resume(path: Path, run: Run, callbacks: Sequence[Callback], settings: dict) -> list[dict]:
    """Load weights, momentum and callback state from ``path``; return the rows of the finished epochs."""
    metadata, tensors = read_safetensors(path)
    try:
        found, history = json.loads(metadata["settings"]), json.loads(metadata["history"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of fit. Way out: delete it or name another file.") from error
    other = [f"{key} {found.get(key)!r} (now {settings[key]!r})" for key in settings if found.get(key) != settings[key]]
    if other:
        raise ValueError(f"checkpoint {path} belongs to a run with {', '.join(other)}: delete it or name another file")

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    try:
        run.model.load_state_dict(under("model/"))
        state = run.optimizer.state_dict()
        for name, tensor in under("optimizer/").items():
            index, _, key = name.partition("/")
            state["state"].setdefault(int(index), {})[key] = tensor
        run.optimizer.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit this model ({error}). Way out: delete it or name another file.") from error
    for index, callback in enumerate(callbacks):
        callback.load_state_dict(under(f"callback/{index}/"))
    return history
