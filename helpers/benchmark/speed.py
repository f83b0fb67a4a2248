"""How fast the helpers are beside what people would use otherwise; timed on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn

from helpers import low_rank, models, pruning
from helpers.benchmark import results
from helpers.benchmark.bench import Bench
from helpers.data import CIFAR10_MEAN, CIFAR10_STD, cifar10_root, load_data
from helpers.training import Callback, Run, fit

BATCH, STEPS = 256, 12


def race_all(bench: Bench) -> None:
    """Run every race and append its rows; says so and does nothing where a GPU would train."""
    if results.state().device.type != "cpu":
        print("speed is timed on the CPU: give --device cpu")
        return
    for race in (training, gradual_pruning, pruning_at_once, factorizing):
        rows = [_row(*found) for found in race(bench)]
        results.append("speed", [row | results.provenance() for row in rows], bench.results)
        for row in rows:
            print("{what}: {ours} {unit}, {library} {theirs}, ratio {ratio}".format(**row))


def _row(
    what: str,
    unit: str,
    ours: float,
    library: str = "",
    theirs: float | None = None,
    more_is_better: bool = False,
) -> dict:
    ratio = "" if theirs is None else round(ours / theirs if more_is_better else theirs / ours, 2)
    others = {"theirs": "" if theirs is None else round(theirs, 3), "library": library}
    return {"what": what, "unit": unit, "ours": round(ours, 3), "ratio": ratio, **others}


Found = Iterator[tuple]  # the arguments of _row


def training(bench: Bench) -> Found:
    """Time fit against the loop of PyTorch's CIFAR-10 tutorial: DataLoader, two workers, float32, SGD."""
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    data = load_data("cifar10", train_limit=BATCH * STEPS)
    data = replace(data, validation=data.validation.take(slice(0, 500)))
    model = models.build("vgg19")
    warm_up = replace(data, train=data.train.take(slice(0, 2 * BATCH)))
    fit(model, warm_up, epochs=1, batch_size=BATCH, progress=False)
    ours = fit(model, data, epochs=1, batch_size=BATCH, progress=False)["images_per_second"][0]
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD)])
    loader = torch.utils.data.DataLoader(
        CIFAR10(cifar10_root(), transform=transform), BATCH, shuffle=True, num_workers=2
    )
    model = models.build("vgg19").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    for step, (inputs, labels) in enumerate(loader):
        if step == 2:
            started = time.perf_counter()
        if step == 2 + STEPS:
            break
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    theirs = BATCH * STEPS / (time.perf_counter() - started)
    yield "training VGG-19", "pictures/s", ours, "the plain loop of PyTorch's CIFAR-10 tutorial", theirs, True


class _Timed(Callback):  # runs another callback and adds up its seconds
    def __init__(self, callback: Callback) -> None:
        self.callback, self.seconds = callback, 0.0

    @contextmanager
    def _clock(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    def on_start(self, run: Run) -> None:
        self.callback.on_start(run)

    def on_gradients(self, run: Run) -> None:
        with self._clock():
            self.callback.on_gradients(run)

    def on_step(self, run: Run) -> None:
        with self._clock():
            self.callback.on_step(run)


def gradual_pruning(bench: Bench) -> Found:
    """Time what GradualPruner adds to fit's steps, in percent; masks are there from the first step on."""
    data = load_data("cifar10", train_limit=60 * BATCH)
    data = replace(data, validation=data.validation.take(slice(0, 500)))
    pruner = _Timed(pruning.GradualPruner(pruning.PolynomialSchedule(0.9, 0.5), every=30))
    options = {"epochs": 1, "batch_size": BATCH, "lr": 0.01, "progress": False}
    history = fit(models.load(bench.file("teacher")), data, callbacks=[pruner], **options)
    yield (
        "GradualPruner in a step of VGG-19",
        "% of it",
        100 * pruner.seconds / (history["seconds"][0] - pruner.seconds),
    )


def pruning_at_once(bench: Bench) -> Found:
    """Time prune_once on VGG-19 against torch.nn.utils.prune."""

    def theirs(model: nn.Module) -> None:
        layers = [(model.get_submodule(name), "weight") for name in pruning.prunable(model)]
        nn.utils.prune.global_unstructured(layers, nn.utils.prune.L1Unstructured, amount=0.9)

    seconds = [
        [_seconds(prune, models.build("vgg19")) for prune in (lambda m: pruning.prune_once(m, 0.9), theirs)]
        for _ in range(5)
    ]
    ours, others = (statistics.median(column) for column in zip(*seconds, strict=True))
    yield "pruning VGG-19 at once", "s", ours, "torch.nn.utils.prune", others


def factorizing(bench: Bench) -> Found:
    """Time factorizing VGG-19 against tensorly's partial Tucker at the same ranks."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    tensorly.set_backend("pytorch")
    model = models.load(bench.file("teacher"))
    plan = low_rank.analyze(model, 0.8)

    def theirs(model: nn.Module) -> None:
        for row in plan[plan["worthwhile"]].itertuples():
            weight = model.get_submodule(row.layer).weight.detach()
            if weight.ndim == 4:
                partial_tucker(weight, rank=[row.rank, min(row.rank, weight.shape[1])], modes=[0, 1])

    ours = _seconds(lambda model: low_rank.factorize(model, 0.8), model)
    yield "factorizing VGG-19", "s", ours, "tensorly's partial Tucker", _seconds(theirs, model)


def _seconds(function: Callable[[nn.Module], object], model: nn.Module) -> float:
    started = time.perf_counter()
    function(model)
    return time.perf_counter() - started
