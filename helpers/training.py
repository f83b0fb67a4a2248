"""The one loop. Distillation changes its loss, pruning its step, factorization its model; it knows none.

Read ``fit`` from top to bottom and you have understood the series.
"""

import inspect
import math
import time
from collections.abc import Callable
from typing import Literal

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers.callbacks import Callback, Run
from helpers.checkpoint import Checkpoint, CheckpointPath
from helpers.data import Data, Split, batches
from helpers.evaluation import Accuracy, Precision, autocast, evaluate, predict
from helpers.muon import Muon
from helpers.networks import fixed, logits_of, outputs, refusing
from helpers.runs import channels_last, classifier
from helpers.types import (
    Count,
    NotNegative,
    Number,
    Positive,
    Seed,
    ShareBelowOne,
    Whole,
    checked,
    several,
)

__all__ = ["Accuracy", "Callback", "Checkpoint", "Loss", "Run", "evaluate", "fit", "learning_rate", "predict"]

Loss = Callable[..., Tensor]  # of (logits, images, labels) or (logits, labels): a scalar
Schedule = Literal["cosine", "one_cycle"]


@checked
def fit(
    model: nn.Module,  # maps normalised images, B x 3 x H x W, to logits, B x classes; trained in place
    data: Data,  # trains on data.train and measures on data.validation; data.test is not touched
    *,
    epochs: Count,  # passes over data.train
    loss: Loss | None = None,  # (logits, images, labels) or (logits, labels) -> scalar; None: cross-entropy
    callbacks: several(Callback) = (),  # what happens beside the steps
    optimizer: Literal["sgd", "muon"] = "sgd",  # with Nesterov momentum, both; see helpers.muon
    lr: Positive = 0.1,  # the largest learning rate
    batch_size: Count = 256,  # pictures a step, over all processes (a multiple of their number)
    momentum: ShareBelowOne = 0.9,  # 0.6 suits Muon
    weight_decay: NotNegative = 5e-4,  # of convolution and linear weights that go by SGD
    label_smoothing: ShareBelowOne = 0.0,  # of the default loss
    schedule: Schedule = "cosine",  # how the learning rate falls: see learning_rate
    warmup: ShareBelowOne = 0.15,  # share of the run in which it climbs
    augment: bool = True,  # random shifts, and mirroring where the data allow it
    cutout: Whole = 0,  # side of a square of every training picture that is hidden, in pixels; 0: none
    precision: Precision = "auto",  # "bf16" (autocast), "fp32", or "auto": bf16 where the processor has it
    compile: bool = False,  # torch.compile: a minute, which long runs on a GPU or with Intel AMX win back
    seed: Seed = 0,  # of order, augmentation and dropout; weights are drawn before, by models.build
    checkpoint: CheckpointPath | None = None,  # a file from which an interrupted run goes on: see Checkpoint
    progress: bool = True,  # show a bar
) -> pd.DataFrame:
    """Train ``model`` in place, on the device that accelerate picks, and return a row for each epoch.

    Each argument is explained beside it (``fit??`` shows that). A row holds epoch, lr (of the last step),
    loss, train_accuracy, validation_accuracy (shares of 1), seconds, images_per_second, and what callbacks
    add. A loss that is NaN or infinite raises a FloatingPointError that names the step. Parts of ``model``
    that come in eval mode and frozen stay in eval mode, so that their batch normalisation stays, too. Of a
    network with several outputs the first, or "logits" or "out", is trained.
    """
    arguments = dict(locals())  # of the checkpoint: only a run with the same ones goes on from it
    accelerator = Accelerator(mixed_precision="no")  # autocast is ours, below: it then covers a teacher too
    device, world = accelerator.device, accelerator.num_processes
    _check(arguments, world)

    # 1. Everything moves to the device once: the model, the teacher if the loss has one, the pictures.
    for module in (model, loss):
        if isinstance(module, nn.Module):
            channels_last(module.to(device))
    train, validation = data.train.to(device), data.validation.to(device)
    raw = _optimizer(model, train, optimizer, lr, momentum, weight_decay)
    wrapped, stepper = accelerator.prepare(model, raw)
    forward = torch.compile(wrapped) if compile else wrapped
    objective, eval_parts = _objective(loss, label_smoothing), fixed(model)

    # 2. A run is where it is: at its start, or where its checkpoint left it.
    if checkpoint is not None:
        callbacks = (Checkpoint(checkpoint), *callbacks)
    steps, main = max(1, len(train) // batch_size), accelerator.is_main_process
    run = Run(model, raw, epochs * steps, arguments=arguments, callbacks=callbacks, main=main)
    for callback in callbacks:
        callback.on_start(run)
    bar = tqdm(total=run.steps, initial=run.step, disable=not (progress and main), leave=False)
    views = {"augmented": augment, "hole": cutout, "rank": accelerator.process_index, "world": world}

    # 3. The loop.
    while run.epoch < epochs:
        started, totals = time.perf_counter(), torch.zeros(3, device=device)
        model.train()
        for part in eval_parts:
            part.eval()
        for images, labels in batches(train, batch_size, generator=_seeded(seed, run.epoch, device), **views):
            for group in raw.param_groups:
                group["lr"] = learning_rate((run.step + 0.5) / run.steps, lr, schedule, warmup)
            with autocast(device, precision):
                logits = logits_of(forward(images)).float()
                value = objective(logits, images, labels)
            if device.type == "cpu":  # to look at a GPU's is to wait for it, so once an epoch, below
                _check_finite(value.item(), f"step {run.step + 1}", run)
            stepper.zero_grad()
            accelerator.backward(value)
            for callback in callbacks:
                callback.on_gradients(run)
            stepper.step()
            run.step += 1
            for callback in callbacks:
                callback.on_step(run)
            right = (logits.argmax(1) == (labels if labels.ndim == 1 else labels.argmax(1))).sum()
            totals += torch.stack([value.detach() * len(labels), right, torch.full_like(right, len(labels))])
            bar.update()
        total, correct, seen = accelerator.reduce(totals).tolist()
        seconds = time.perf_counter() - started
        _check_finite(total, f"steps {run.step - steps + 1} to {run.step}", run)
        broadcast(list(model.buffers()))  # each process has normalised its own pictures: the first's count

        # 4. A row of what happened.
        run.epoch += 1
        row = {"epoch": run.epoch, "lr": raw.param_groups[0]["lr"]}
        row |= {"loss": total / seen, "train_accuracy": correct / seen}
        row["validation_accuracy"] = float(evaluate(model, validation, precision=precision))
        row |= {"seconds": seconds, "images_per_second": seen / seconds}
        for callback in callbacks:
            row |= callback.on_epoch(run)
        run.history.append(row)
        for callback in callbacks:
            callback.on_row(run)
        bar.set_postfix(loss=f"{row['loss']:.3f}", validation=f"{row['validation_accuracy']:.1%}")
    bar.close()
    model.eval()
    return pd.DataFrame(run.history)


@checked
def learning_rate(
    progress: Number, lr: NotNegative, schedule: Schedule = "cosine", warmup: ShareBelowOne = 0.15
) -> float:
    """Return the learning rate at ``progress`` of a run, from 0 to 1; beyond them that of the nearer end.

    Both schedules climb linearly from 0 to ``lr`` over the first ``warmup`` of a run. Then "cosine" follows
    half a cosine down to 0 (Loshchilov and Hutter 2017, section 3), "one_cycle" a straight line (Smith 2018,
    section 4). ``fit`` asks in the middle of each step, at (step + 1/2) / steps: no step has a rate of 0.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return lr * progress / warmup
    left = (1 - progress) / (1 - warmup)
    return lr * (left if schedule == "one_cycle" else 0.5 * (1 - math.cos(math.pi * left)))


# -- what the loop leans on --------------------------------------------------------------------------------


def _check(arguments: dict, world: int) -> None:
    # What the types of single arguments cannot refuse is refused before an hour is spent on it.
    model, train, smoothing = arguments["model"], arguments["data"].train, arguments["label_smoothing"]
    if arguments["loss"] is not None and smoothing:
        raise ValueError(
            f"label_smoothing must be 0 where loss is given, got {smoothing}: it is the default's"
        )
    if arguments["cutout"] > min(train.images.shape[2:]):
        raise ValueError(f"cutout must be at most a picture's side, got {arguments['cutout']}")
    if arguments["batch_size"] % world:
        raise ValueError(f"batch_size must be a multiple of {world} processes, got {arguments['batch_size']}")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(
            "model must have a parameter to train, but every one is frozen (requires_grad False)"
        )
    kinds = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    if any(kind.itemsize < 4 for kind in kinds):
        found = ", ".join(map(str, kinds))
        raise ValueError(
            f'model must hold float32: call model.float(), for speed precision="bf16"; got {found}'
        )
    # A label beyond the logits would end a GPU's process: two pictures show how many there are.
    two = train.take(slice(0, 2))
    found, classes = predict(model, two).shape[1], int(train.likeliest.max()) + 1
    if found < classes:
        raise ValueError(
            f"model must put out a logit for each of the {classes} classes that data.train has, got {found}"
        )
    sizes = " x ".join(map(str, train.images.shape[1:]))
    with refusing(f"model must take pictures of {sizes} in train mode, too"), torch.no_grad():
        outputs(model, next(batches(two, 2))[0].to(next(model.parameters()).device), training=True)


def _objective(loss: Loss | None, label_smoothing: float) -> Loss:
    """Return the loss as one of (logits, images, labels): PyTorch's own take only the first and the last."""
    loss = loss or nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    wanted = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values()
    needed = [one for one in wanted if one.default is one.empty and one.kind < one.VAR_POSITIONAL]
    return (lambda logits, _, labels: loss(logits, labels)) if len(needed) == 2 else loss


def _check_finite(loss: float, where: str, run: Run) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at {where} of {run.steps} (epoch {run.epoch + 1}): lower lr (it is "
            f"{run.arguments['lr']:g}), lengthen warmup, or look for NaN in the weights and pictures"
        )


def _optimizer(
    model: nn.Module, train: Split, name: str, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = [weight for weight in weights if weight.ndim > 1]
    vectors = {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0}
    if name == "sgd":
        groups = [{"params": matrices, "weight_decay": weight_decay}, vectors]
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    last = classifier(model, next(batches(train.take(slice(0, 2)), 2))[0])
    head = None if last is None else model.get_submodule(last).weight
    hidden, heads = ([weight for weight in matrices if (weight is head) == own] for own in (False, True))
    by_sgd = {"params": heads, "weight_decay": weight_decay, "orthogonal": False}
    return Muon([{"params": hidden}, by_sgd, vectors | {"orthogonal": False}], lr=lr, momentum=momentum)


def _seeded(seed: int, epoch: int, device: torch.device) -> torch.Generator:
    # From (seed, epoch) alone, so that a resumed run draws what it would have drawn.
    number = seed * 1_000_003 + epoch
    torch.manual_seed(number)
    return torch.Generator(device).manual_seed(number)
