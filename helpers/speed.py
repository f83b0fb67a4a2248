"""How fast the helpers are, beside what people would use otherwise: ``python -m helpers.benchmark speed``. Ratios, measured on a CPU."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn

from helpers import business, low_rank, models, pruning, quantization, results, widgets
from helpers.data import CIFAR10_MEAN, CIFAR10_STD, cifar10_root, load_data
from helpers.series import TEACHER
from helpers.training import Callback, Run, fit, predict


def speed(arguments: argparse.Namespace) -> None:
    """Time fit against the loop of PyTorch's CIFAR-10 tutorial on VGG-19; append to data/results/speed.csv."""
    if results.state().device.type != "cpu":
        raise RuntimeError("speed compares the two loops on the CPU: give --device cpu")
    batch_size, steps = 256, arguments.steps
    data = load_data("cifar10", train_limit=batch_size * steps)
    data = replace(data, validation=data.validation.take(slice(0, 500)))
    model = models.build("vgg19")
    fit(
        model,
        replace(data, train=data.train.take(slice(0, 2 * batch_size))),
        epochs=1,
        batch_size=batch_size,
        progress=False,
    )
    ours = fit(model, data, epochs=1, batch_size=batch_size, progress=False)["images_per_second"][0]
    plain = _tutorial_loop(batch_size, steps)
    row = {
        "model": "vgg19",
        "batch_size": batch_size,
        "steps": steps,
        "fit_images_per_second": round(ours, 1),
    }
    row |= {"tutorial_images_per_second": round(plain, 1), "ratio": round(ours / plain, 2)}
    results.append("speed", row | results.provenance(0))
    print(f"fit {ours:.1f} images/s, tutorial loop {plain:.1f} images/s: {ours / plain:.2f} times")


def speed_pruning(arguments: argparse.Namespace) -> None:
    """Time what GradualPruner adds to fit's steps, and a pruning step against PyTorch's; append to data/results/speed_pruning.csv."""
    if results.state().device.type != "cpu":
        raise RuntimeError("speed_pruning times the CPU: give --device cpu")
    batch_size, steps, every = 256, 60, 30  # as often as by default in a run of a few epochs
    data = load_data("cifar10", train_limit=batch_size * steps)
    data = replace(data, validation=data.validation.take(slice(0, 500)))
    pruner = _Timed(
        pruning.GradualPruner(pruning.PolynomialSchedule(0.9, 0.5), every=every)
    )  # masks are there from the first step on
    history = fit(
        models.load(TEACHER),
        data,
        epochs=1,
        batch_size=batch_size,
        lr=0.01,
        callbacks=[pruner],
        progress=False,
    )
    share = 100 * pruner.seconds / (history["seconds"][0] - pruner.seconds)
    seconds: dict[str, list[float]] = {"ours": [], "torch": []}
    for _ in range(5):
        for who in seconds:
            model = models.build("vgg19")
            layers = [(model.get_submodule(name), "weight") for name in pruning.prunable(model)]
            started = time.perf_counter()
            if who == "ours":
                pruning.prune_once(model, 0.9)
            else:
                nn.utils.prune.global_unstructured(layers, nn.utils.prune.L1Unstructured, amount=0.9)
            seconds[who].append(time.perf_counter() - started)
    ours, theirs = (statistics.median(some) for some in seconds.values())
    row = {
        "model": "vgg19",
        "batch_size": batch_size,
        "steps": steps,
        "every": every,
        "pruner_percent_of_step": round(share, 2),
    }
    row |= {
        "prune_once_seconds": round(ours, 3),
        "torch_seconds": round(theirs, 3),
        "ratio": round(theirs / ours, 2),
    }
    results.append("speed_pruning", row | results.provenance(0))
    print(
        f"GradualPruner adds {share:.2f}% to a step; one pruning of VGG-19 {ours:.2f} s, torch.nn.utils.prune {theirs:.2f} s"
    )


class _Timed(Callback):
    """A callback that runs another and adds up its seconds."""

    def __init__(self, callback: Callback) -> None:
        self.callback, self.seconds = callback, 0.0

    def _time(self, name: str, run: Run) -> object:
        started = time.perf_counter()
        result = getattr(self.callback, name)(run)
        self.seconds += time.perf_counter() - started
        return result

    def on_start(self, run: Run) -> None:
        self.callback.on_start(run)

    def on_gradients(self, run: Run) -> None:
        self._time("on_gradients", run)

    def on_step(self, run: Run) -> None:
        self._time("on_step", run)


def speed_all(arguments: argparse.Namespace) -> None:
    """Time everything that is timed: the loop, pruning, factorization, the sliders."""
    for command in (speed, speed_pruning, speed_low_rank, speed_sliders):
        command(arguments)


def speed_low_rank(arguments: argparse.Namespace) -> None:
    """Time factorizing VGG-19 against tensorly's partial Tucker at the same ranks; append to data/results/speed_low_rank.csv."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    tensorly.set_backend("pytorch")
    model = models.load(TEACHER)
    started = time.perf_counter()
    plan = low_rank.analyze(model, 0.8)
    analyzed = time.perf_counter()
    low_rank.factorize(model, 0.8)
    factorized = time.perf_counter()
    for row in plan[plan["worthwhile"]].itertuples():
        weight = model.get_submodule(row.layer).weight.detach()
        if weight.ndim == 4:
            partial_tucker(weight, rank=[row.rank, min(row.rank, weight.shape[1])], modes=[0, 1])
    ended = time.perf_counter()
    row = {
        "model": "vgg19",
        "energy": 0.8,
        "analyze_seconds": round(analyzed - started, 2),
        "factorize_seconds": round(factorized - analyzed, 2),
    }
    row |= {
        "tensorly_seconds": round(ended - factorized, 2),
        "ratio": round((ended - factorized) / (factorized - analyzed), 2),
    }
    results.append("speed_low_rank", row | results.provenance(0))
    print(
        f"analyze {row['analyze_seconds']} s, factorize {row['factorize_seconds']} s, tensorly {row['tensorly_seconds']} s"
    )


def speed_sliders(arguments: argparse.Namespace) -> None:
    """Time how long each slider takes to redraw its figure, the slowest of its positions; append to data/results/speed_sliders.csv."""
    data, model = load_data("cifar10"), models.load(TEACHER)
    sample, weight = data.validation.take(slice(0, 100)), model.get_submodule("features.20").weight.detach()
    layers = {name: model.get_submodule(name) for name in pruning.prunable(model)}
    full = {name: min(layer.weight.flatten(1).shape) for name, layer in layers.items()}
    even = {name: low_rank.break_even_rank(layer) for name, layer in layers.items()}
    networks = [
        business.Network(name, milliseconds, 80.0, 0.92, 80.0)
        for name, milliseconds in (("before", 12.0), ("after", 0.5))
    ]
    boxes = {
        "temperature": widgets.temperature_slider(predict(model, sample)[0], data.classes, 0),
        "sparsity": widgets.sparsity_slider(weight, pruning.sweep(model, sample, (0.0, 0.5, 0.9)), 0.5),
        "energy": widgets.energy_slider(low_rank.sweep(model, sample, (0.5, 0.9, 1.0)), full, even),
        "bits": widgets.bits_slider(weight[0], quantization.sweep(model, sample, (2, 4, 8))),
        "cost": widgets.cost_sliders(*networks, business.Assumptions()),
    }
    for name, box in boxes.items():
        slider, seconds = box.children[0], []
        positions = (
            [slider.min, slider.max]
            if name == "temperature"
            else [value for _, value in slider._options_full]
        )
        for value in (*positions, *positions[::-1])[1:]:
            started = time.perf_counter()
            slider.value = value
            seconds.append(time.perf_counter() - started)
        row = {
            "slider": name,
            "redraws": len(seconds),
            "median_seconds": round(statistics.median(seconds), 3),
        }
        results.append(
            "speed_sliders", row | {"largest_seconds": round(max(seconds), 3)} | results.provenance(0)
        )
        print(f"{name}: a redraw takes {statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s")


def _tutorial_loop(batch_size: int, steps: int) -> float:
    """Images per second of the plain loop: DataLoader with transforms, two workers, fp32, SGD, as in pytorch.org's tutorial."""
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD)])
    loader = torch.utils.data.DataLoader(
        CIFAR10(cifar10_root(), transform=transform), batch_size, shuffle=True, num_workers=2
    )
    model = models.build("vgg19").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    started, warm_up = 0.0, 2
    for step, (inputs, labels) in enumerate(loader):
        if step == warm_up:
            started = time.perf_counter()
        if step == warm_up + steps:
            break
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return batch_size * steps / (time.perf_counter() - started)
