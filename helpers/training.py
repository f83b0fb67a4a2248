"""The one loop. Distillation changes its loss, pruning its step, factorization its model; it knows none of them.

Read ``fit`` from top to bottom and you have understood the series.
"""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers import checks
from helpers.data import Data, Split, batches
from helpers.evaluation import Accuracy, autocast, evaluate, predict
from helpers.models import CheckpointError, digest, read_safetensors, write_safetensors

__all__ = ["Accuracy", "Callback", "Run", "evaluate", "fit", "learning_rate", "predict"]

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

    def extra_repr(self) -> str:
        """Return the settings that make this run another run; fit's checkpoint remembers them."""
        return ""

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
    cutout: int = 0,
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
        cutout: side of a square of every training picture that is hidden, in pixels; 0: none. See ``data.cutout``.
        precision: "bf16" (autocast), "fp32", or "auto": bf16 where the processor computes in it.
        compile: use torch.compile. Worth its minute of compilation for long runs on a GPU, and on a CPU with tile units (Intel
            AMX), where VGG-19 trained a tenth faster; on other CPUs it was slower.
        seed: of the order, the augmentation and dropout. Initial weights are drawn before, by ``models.build``.
        checkpoint: a .safetensors file, written after each epoch. If it is there, the run goes on from it and ends
            with the same weights, bit for bit, as one that was never interrupted (on a CPU, with the same thread count;
            on a GPU as far as its kernels are deterministic). Its weights then replace ``model``'s: for a run
            from other initial weights name another file.
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
        "cutout": checks.integer("cutout", cutout, 0, min(data.train.images.shape[2:])),
        "precision": checks.choice("precision", precision, ("auto", "bf16", "fp32")),
        "seed": checks.integer("seed", seed, 0, 2**32 - 1),
    }
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be callable(logits, images, labels) -> scalar, got {loss!r}")
    callbacks = tuple(
        checks.instance("callbacks", callback, Callback)
        for callback in checks.instance("callbacks", callbacks, Sequence)
    )
    if checkpoint is not None:
        checkpoint = checks.path("checkpoint", checkpoint, ".safetensors")
        checks.writable(checkpoint)
    if loss is not None and label_smoothing:
        raise ValueError(
            f"label_smoothing must be 0 when loss is given, got {label_smoothing}: it is the default loss's"
        )

    # 1. Everything moves to the device once: the model, the teacher if the loss has one, the pictures.
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "model must have a parameter to train, but every one is frozen (requires_grad is False)"
        )
    accelerator = Accelerator(mixed_precision="no")  # autocast is ours, below: it then covers a teacher too
    device = accelerator.device
    if batch_size % accelerator.num_processes:
        raise ValueError(
            f"batch_size must be a multiple of the {accelerator.num_processes} processes, got {batch_size}"
        )
    model.to(device, memory_format=torch.channels_last)
    if isinstance(loss, nn.Module):
        loss.to(device, memory_format=torch.channels_last)
    train, validation = data.train.to(device), data.validation.to(device)
    _check_logits(model, train)
    optimizer = torch.optim.SGD(
        _parameter_groups(model, weight_decay), lr=lr, momentum=momentum, nesterov=momentum > 0
    )
    wrapped, stepper = accelerator.prepare(model, optimizer)
    forward = torch.compile(wrapped) if compile else wrapped
    objective = loss or (
        lambda logits, images, labels: F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    )

    # 2. A run is where it is: fresh, or wherever the checkpoint says.
    steps_per_epoch = max(1, len(train) // batch_size)
    run = Run(model, optimizer, steps=epochs * steps_per_epoch)
    history: list[dict] = []
    settings |= _fingerprint(model, data, loss, callbacks)
    if checkpoint is not None and checkpoint.exists():
        history = _resume(checkpoint, run, callbacks, settings)
        run.epoch, run.step = len(history), len(history) * steps_per_epoch
    for callback in callbacks:
        callback.on_start(run)

    # 3. The loop.
    bar = tqdm(
        total=run.steps,
        initial=run.step,
        disable=not progress or not accelerator.is_main_process,
        leave=False,
    )
    views = {
        "augmented": augment,
        "hole": cutout,
        "rank": accelerator.process_index,
        "world": accelerator.num_processes,
    }
    while run.epoch < epochs:
        started, totals = time.perf_counter(), torch.zeros(3, device=device)
        model.train()
        for images, labels in batches(train, batch_size, generator=_seeded(seed, run.epoch, device), **views):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(run.progress, lr, schedule, warmup)
            with autocast(device, precision):
                logits = forward(images).float()
                value = objective(logits, images, labels)
            _check_finite(value.item(), run, lr)
            stepper.zero_grad()
            accelerator.backward(value)
            for callback in callbacks:
                callback.on_gradients(run)
            stepper.step()
            run.step += 1
            for callback in callbacks:
                callback.on_step(run)
            correct = (logits.argmax(1) == labels).sum()
            totals += torch.stack(
                [value.detach() * len(labels), correct, torch.full_like(correct, len(labels))]
            )
            bar.update()
        seconds = time.perf_counter() - started
        total, correct, seen = accelerator.reduce(totals).tolist()
        if (
            accelerator.num_processes > 1
        ):  # each process has normalised its own pictures; keep the first one's statistics
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)

        # 4. A row, and a checkpoint.
        run.epoch += 1
        row = {
            "epoch": run.epoch,
            "lr": optimizer.param_groups[0]["lr"],
            "loss": total / seen,
            "train_accuracy": correct / seen,
        }
        row["validation_accuracy"] = float(evaluate(model, validation, precision=precision))
        row |= {"seconds": seconds, "images_per_second": seen / seconds}
        for callback in callbacks:
            row |= callback.on_epoch(run)
        history.append(row)
        bar.set_postfix(loss=f"{row['loss']:.3f}", validation=f"{row['validation_accuracy']:.1%}")
        if checkpoint is not None and accelerator.is_main_process:
            _write_checkpoint(checkpoint, run, callbacks, settings, history)
    bar.close()
    model.eval()
    return pd.DataFrame(history)


def learning_rate(progress: float, lr: float, schedule: str = "cosine", warmup: float = 0.15) -> float:
    """Return the learning rate at ``progress`` (0 to 1) of a run.

    Both climb linearly from 0 to ``lr`` over the first ``warmup`` of the run. Then "cosine" follows half a cosine
    down to 0 (Loshchilov and Hutter 2017, section 3) and "one_cycle" a straight line (Smith 2018, section 4).

    Raises:
        ValueError: an argument is not finite or out of range; a progress outside [0, 1] counts as its nearer end.
    """
    checks.choice("schedule", schedule, ("cosine", "one_cycle"))
    checks.number("warmup", warmup, 0, 0.9999)
    checks.number("lr", lr, 0)
    progress = min(max(checks.number("progress", progress), 0.0), 1.0)
    if progress < warmup:
        return lr * progress / warmup
    left = (1 - progress) / (1 - warmup)
    return lr * (left if schedule == "one_cycle" else 0.5 * (1 - math.cos(math.pi * left)))


# -- what the loop leans on ------------------------------------------------------------------------------------------


def _check_logits(model: nn.Module, train: Split) -> None:
    """Look at the logits of two pictures before an hour is spent on them; a label beyond them would end a GPU's process."""
    found, classes = predict(model, train.take(slice(0, 2))).shape[1], int(train.labels.max()) + 1
    if found < classes:
        raise ValueError(
            f"model must put out a logit for each of the {classes} classes that data.train has, got {found}"
        )


def _check_finite(loss: float, run: Run, lr: float) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at step {run.step + 1} of {run.steps} (epoch {run.epoch + 1}): "
            f"lower lr (it is {lr:g}), lengthen warmup, or look for NaN in the weights and pictures"
        )


def _fingerprint(model: nn.Module, data: Data, loss: Loss | None, callbacks: Sequence[Callback]) -> dict:
    """Say what a run trains, on what, how: a checkpoint is only taken up by such a run.

    The weights it began with are not asked for: whoever starts a killed run again need not draw the same ones, since the checkpoint
    holds what became of them.
    """
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    described = loss.extra_repr() if isinstance(loss, nn.Module) else getattr(loss, "__qualname__", "")
    if isinstance(loss, nn.Module) and loss.state_dict():  # another teacher's opinions are another run
        described += f", weights {digest({name: tensor.detach().cpu() for name, tensor in loss.state_dict().items()})[:10]}"
    observed = [
        f"{type(callback).__name__}({callback.extra_repr()})"
        for callback in callbacks
        if callback.extra_repr()
    ]
    pictures, labels = (
        zlib.crc32(tensor.cpu().contiguous().numpy()) for tensor in (data.train.images, data.train.labels)
    )
    return {
        "data": [data.name, len(data.train), pictures, labels],
        "model": zlib.crc32(json.dumps(shapes).encode()),
        "loss": "" if loss is None else f"{type(loss).__name__}({described})",
        "callbacks": observed,
    }


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


def _write_checkpoint(
    path: Path, run: Run, callbacks: Sequence[Callback], settings: dict, history: list[dict]
) -> None:
    tensors = {f"model/{name}": tensor for name, tensor in run.model.state_dict().items()}
    for index, state in run.optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer/{index}/{name}": torch.as_tensor(value)
            for name, value in state.items()
            if value is not None
        }
    for index, callback in enumerate(callbacks):
        tensors |= {f"callback/{index}/{name}": tensor for name, tensor in callback.state_dict().items()}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    record = json.dumps({"settings": settings, "history": history})
    write_safetensors(path, tensors, {"record": record, "sha256": digest(tensors, record)})


def _resume(path: Path, run: Run, callbacks: Sequence[Callback], settings: dict) -> list[dict]:
    """Load weights, momentum and callback state from ``path``; return the rows of the finished epochs."""
    metadata, tensors = read_safetensors(path)
    if "record" not in metadata:
        raise CheckpointError(f"{path} is not a checkpoint of fit. Way out: delete it or name another file.")
    if metadata.get("sha256") != digest(tensors, metadata["record"]):
        raise CheckpointError(
            f"{path} is altered: it does not match the checksum in its header. Way out: delete it."
        )
    try:
        record = json.loads(metadata["record"])
        found, history = record["settings"], [dict(row) for row in record["history"]]
        found = {"cutout": 0, **found}  # files from before there was one go on
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of fit ({error}). Way out: delete it or name another file."
        ) from error
    differing = [key for key in {**settings, **found} if found.get(key) != settings.get(key)]
    if differing:
        other = ", ".join(f"{key} {found.get(key)!r} (now {settings.get(key)!r})" for key in differing)
        raise ValueError(f"checkpoint {path} belongs to a run with {other}: delete it or name another file")

    def under(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
        }

    try:
        run.model.load_state_dict(under("model/"))
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        for name, tensor in under("optimizer/").items():
            index, _, key = name.partition("/")
            run.optimizer.state[parameters[int(index)]][key] = torch.empty_like(parameters[int(index)]).copy_(
                tensor
            )
        for index, callback in enumerate(callbacks):
            callback.load_state_dict(under(f"callback/{index}/"))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} holds other tensors than this run's ({error}). Way out: delete it or name another file."
        ) from error
    return history
