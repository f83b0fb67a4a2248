"""Regenerate the published numbers: ``python -m helpers.benchmark teacher | distillation | pruning | low_rank | ...``.

Each row of data/results/ comes from here. A finished row is not run again; a killed run goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn

from helpers import checks, export, models, profiling, pruning, results
from helpers import low_rank as low_rank_module
from helpers.data import CIFAR10_MEAN, CIFAR10_STD, HOME, Data, Split, cifar10_root, load_data
from helpers.distillation import DistillationLoss
from helpers.series import TEACHER
from helpers.training import Callback, Loss, Run, evaluate, fit, predict

WORK = HOME / "build" / "benchmark"  # unfinished runs; ignored by git


def teacher(arguments: argparse.Namespace) -> None:
    """Train VGG-19 on CIFAR-10; write data/checkpoints/vgg19.safetensors (fp16) and vgg19_history.csv beside it.

    ``--restart`` trains the one that is there for another cycle (a warm restart, Loshchilov and Hutter 2017) and replaces it.
    """
    data = load_data("cifar10")
    row = {"model": "vgg19", "data": data.name, "epochs": arguments.epochs or (200 if torch.cuda.is_available() else 30)}
    seed = arguments.seeds[0]
    torch.manual_seed(seed)
    # no label smoothing: it would erase what a student can learn (Mueller 2019)
    recipe = {"epochs": row["epochs"], "lr": 0.1, "batch_size": 128, "schedule": "one_cycle", "warmup": 0.2}
    if arguments.restart:
        model = models.load(TEACHER)
        row["cycle"] = int(results.read("teacher").iloc[-1]["cycle"]) + 1
        data = replace(data, train=_least_sure(model, data, seed))
        recipe |= {"lr": 0.05, "warmup": 0.1}
    else:
        row["cycle"] = 1
        if TEACHER.exists() and results.finished("teacher", {"model": "vgg19"}):
            print(f"{TEACHER} is there already; delete it to train anew, or give --restart to train it on")
            return
        model = models.build("vgg19")
    row["train_pictures"] = len(data.train)
    checkpoint = WORK / f"teacher-{row['cycle']}-{row['epochs']}-{seed}.safetensors"
    history = fit(model, data, seed=seed, checkpoint=checkpoint, **recipe)
    history.insert(0, "cycle", row["cycle"])
    table = TEACHER.with_name("vgg19_history.csv")
    if arguments.restart:
        history = pd.concat([pd.read_csv(table), history])
    with checks.atomic_path(table) as part:
        history.round(5).to_csv(part, index=False)
    models.save(model, TEACHER, torch.float16)
    accuracy = evaluate(models.load(TEACHER), data.test)
    results.append("teacher", row | {"correct": accuracy.correct, "total": accuracy.total} | results.provenance(seed))
    print(f"VGG-19 on the test split: {accuracy}")


def _least_sure(model: nn.Module, data: Data, seed: int, hard: int = 24_000, others: int = 8_000) -> Split:
    """Return the training pictures of which ``model`` is least sure, and a random draw of the others.

    Chosen by its largest probability, never by the label: the pictures it knows teach it little, but leaving out by the
    loss would leave the wrongly labelled ones in (on the order of learning: Toneva 2019).
    """
    sure = predict(model, data.train, precision="auto").softmax(1).amax(1)
    order = sure.argsort(stable=True)
    rest = order[hard:]
    draw = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:others]
    return data.train.take(torch.cat([order[:hard], rest[draw]]).sort().values)


def distillation(arguments: argparse.Namespace) -> None:
    """Train the student alone and taught, per seed, from the same start; append rows to data/results/distillation.csv."""
    for seed in arguments.seeds:
        data = load_data("cifar10", train_limit=arguments.train_limit, seed=seed)
        for arm, temperature, alpha in (("alone", 1.0, 0.0), ("taught", 4.0, 0.9)):
            row = _student_row(arguments, data, temperature, alpha) | {"arm": arm}
            if results.finished("distillation", row | {"seed": seed}):
                continue
            student = _train_student(arguments, data, temperature, alpha, seed)
            accuracy = evaluate(student, data.test)
            row |= {"correct": accuracy.correct, "total": accuracy.total}
            results.append("distillation", row | results.provenance(seed))
            print(f"seed {seed}, {arm}: {accuracy} of the test split")


def distillation_grid(arguments: argparse.Namespace) -> None:
    """Train one student per temperature and alpha; append validation accuracies to data/results/distillation_grid.csv."""
    seed = arguments.seeds[0]
    data = load_data("cifar10", train_limit=arguments.train_limit, seed=seed)
    for temperature in (1.0, 4.0, 16.0):
        for alpha in (0.1, 0.5, 0.9):
            row = _student_row(arguments, data, temperature, alpha)
            if results.finished("distillation_grid", row | {"seed": seed}):
                continue
            accuracy = evaluate(_train_student(arguments, data, temperature, alpha, seed), data.validation)
            row |= {"correct": accuracy.correct, "total": accuracy.total}
            results.append("distillation_grid", row | results.provenance(seed))
            print(f"T {temperature:g}, alpha {alpha:g}: {accuracy} of the validation split")


def _student_row(arguments: argparse.Namespace, data: Data, temperature: float, alpha: float) -> dict:
    names = {"student": arguments.student, "teacher": "vgg19", "data": data.name, "train_pictures": len(data.train)}
    return names | {"epochs": arguments.epochs or 30, "temperature": temperature, "alpha": alpha}


def _train_student(arguments: argparse.Namespace, data: Data, temperature: float, alpha: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    student = models.build(arguments.student)
    loss = DistillationLoss(models.load(TEACHER), temperature, alpha) if alpha > 0 else None
    epochs = arguments.epochs or 30
    checkpoint = WORK / f"{arguments.student}-{len(data.train)}-{epochs}-T{temperature:g}-a{alpha:g}-{seed}.safetensors"
    watched = replace(data, validation=data.validation.take(slice(0, 1_000)))  # a glance per epoch; nothing is chosen by it
    batch_size = 128 if len(data.train) >= 20_000 else 64  # few pictures need small batches to make enough steps
    fit(student, watched, epochs=epochs, batch_size=batch_size, loss=loss, seed=seed, checkpoint=checkpoint)
    return student


def sensitivity(arguments: argparse.Namespace) -> None:
    """Prune the teacher one layer at a time, by weights and by channels; write data/results/sensitivity.csv."""
    data, model = load_data("cifar10"), models.load(TEACHER)
    held_out = data.validation.take(slice(0, 1_000))
    for unit, ratios in (("weight", (0.5, 0.8, 0.9, 0.95, 0.98)), ("channel", (0.25, 0.5, 0.75, 0.9))):
        same = {"model": "vgg19", "data": data.name, "unit": unit, "pictures": len(held_out), "weights": _digest()}
        if results.finished("sensitivity", same):
            continue
        scan = pruning.sensitivity(model, held_out, ratios, unit=unit, precision="auto").drop(columns="accuracy")
        results.append("sensitivity", *(same | row | results.provenance(0) for row in scan.to_dict("records")))


def prune(arguments: argparse.Namespace) -> None:
    """Prune the teacher's weights gradually and at once, beside a dense network trained on as long; append to data/results/pruning.csv."""
    data = load_data("cifar10", train_limit=arguments.train_limit)
    epochs = arguments.epochs or 3
    arms = [
        ("dense", 0.0),
        ("gradual", 0.9),
        ("gradual", 0.95),
        ("gradual", 0.98),
        ("one-shot", 0.9),
        ("one-shot", 0.95),
        ("one-shot", 0.98),
    ]
    for method, sparsity in arms:
        if arguments.only and f"{method}-{sparsity:g}" not in arguments.only:
            continue
        for seed in arguments.seeds:
            row = {"model": "vgg19", "data": data.name, "method": method, "sparsity": sparsity, "train_pictures": len(data.train)}
            row |= {"epochs": epochs, "lr": arguments.lr, "loss": _loss_name(arguments), "weights": _digest()}
            if results.finished("pruning", row | {"seed": seed}):
                continue
            model = models.load(TEACHER)
            if method == "one-shot":
                pruning.prune_once(model, sparsity)
            schedule = pruning.PolynomialSchedule(sparsity, sparsity if method == "one-shot" else 0.0, end=0.7)
            callbacks = [pruning.GradualPruner(schedule)] if sparsity else []
            _train_on(model, data, epochs, arguments.lr, seed, f"{method}-{sparsity:g}-{row['loss']}", callbacks, _loss(arguments))
            _measure("pruning", row, model, data, seed, f"vgg19_pruned{100 * sparsity:g}" if method == "gradual" else None)


def channels(arguments: argparse.Namespace) -> None:
    """Take channels out of the teacher where the sensitivity scan allows it, train on; append to data/results/channels.csv."""
    data = load_data("cifar10", train_limit=arguments.train_limit)
    epochs = arguments.epochs or 6
    scan = _channel_scan()
    for tolerance in arguments.tolerances:
        for seed in arguments.seeds:
            row = {"model": "vgg19", "data": data.name, "method": "channels", "tolerance": tolerance, "train_pictures": len(data.train)}
            row |= {"epochs": epochs, "lr": arguments.lr, "loss": _loss_name(arguments), "weights": _digest()}
            if results.finished("channels", row | {"seed": seed}):
                continue
            ratios = pruning.ratios_by_sensitivity(scan, tolerance)
            model = pruning.prune_channels(models.load(TEACHER), torch.zeros(1, 3, 32, 32), ratios)
            row["before"] = evaluate(model, data.validation.take(slice(0, 1_000)), precision="auto").correct
            _train_on(model, data, epochs, arguments.lr, seed, f"channels-{tolerance:g}-{row['loss']}", loss=_loss(arguments))
            _measure("channels", row, model, data, seed, f"vgg19_channels{100 * tolerance:g}")


def low_rank(arguments: argparse.Namespace) -> None:
    """Factorize the teacher to several budgets: accuracy at once, and after training on; append to data/results/low_rank.csv."""
    data = load_data("cifar10", train_limit=arguments.train_limit)
    held_out, some = data.validation.take(slice(0, 1_000)), data.train.take(slice(0, 300))
    teacher = models.load(TEACHER)
    budgets = (1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30)  # times fewer parameters and MACs; not trained
    ways = {"weights": {}, "schemes": {"scheme": "auto"}, "pictures": {"pictures": some}, "pictures, ranks of weights": {"pictures": some}}
    for method, options in ways.items():
        same = {"model": "vgg19", "data": data.name, "method": method, "epochs": 0, "weights": _digest()}
        if results.finished("low_rank", same):
            continue
        if method == "pictures, ranks of weights":
            plans = [low_rank_module.analyze(teacher, budget=1 / times, count="both") for times in budgets]
            ranks = [dict(plan[plan["worthwhile"]].set_index("layer")["rank"]) for plan in plans]
            networks = [low_rank_module.factorize(teacher, ranks=one, **options) for one in ranks]
            table = pd.DataFrame([_counts(network, held_out) for network in networks])
        else:
            shares = [1 / times for times in budgets]
            table = low_rank_module.sweep(teacher, held_out, budgets=shares, count="both", precision="auto", **options)
        rows = []
        for times, found in zip(budgets, table.itertuples(), strict=True):
            row = same | {"times": times, "validation_correct": found.correct, "validation_total": len(held_out)}
            rows.append(row | {"parameters": found.parameters, "macs": found.macs} | results.provenance(0))
        results.append("low_rank", *rows)
    epochs = arguments.epochs or 3
    for times, times_macs in zip(arguments.budgets, arguments.macs or arguments.budgets, strict=True):
        for seed in arguments.seeds:
            row = {"model": "vgg19", "data": data.name, "method": "pictures", "times": times, "times_macs": times_macs, "epochs": epochs}
            row |= {"lr": arguments.lr, "loss": _loss_name(arguments), "train_pictures": len(data.train), "weights": _digest()}
            if results.finished("low_rank", row | {"seed": seed}):
                continue
            model = low_rank_module.factorize(teacher, budget=(1 / times, 1 / times_macs), count="both", round_to=8, pictures=some)
            row["before"] = evaluate(model, held_out, precision="auto").correct
            name = f"low-rank-{times:g}-{times_macs:g}-{_loss_name(arguments)}"
            _train_on(model, data, epochs, arguments.lr, seed, name, loss=_loss(arguments))
            _measure("low_rank", row, model, data, seed, f"vgg19_rank{times:g}")


def _loss_name(arguments: argparse.Namespace) -> str:
    return "distillation" if arguments.distil else "labels"


def _loss(arguments: argparse.Namespace) -> Loss | None:
    return DistillationLoss(models.load(TEACHER), temperature=4, alpha=0.9) if arguments.distil else None


def combined(arguments: argparse.Namespace) -> None:
    """All of it on one network: a smaller model, the teacher in the loss, pruning in the step, then int8; append to combined.csv.

    ``--start vgg19_channels20`` goes on from that file of data/checkpoints; without it, channels are taken out of the teacher here.
    """
    data = load_data("cifar10", train_limit=arguments.train_limit)
    epochs = arguments.epochs or 12
    teacher = models.load(TEACHER)
    for seed in arguments.seeds:
        tolerance = None if arguments.start else arguments.tolerances[0]
        row = {"model": "vgg19", "data": data.name, "point": arguments.point, "start": arguments.start or f"channels {tolerance:g}"}
        row |= {"sparsity": arguments.sparsity, "epochs": epochs, "lr": arguments.lr, "loss": "distillation"}
        row |= {"train_pictures": len(data.train), "weights": _digest()}
        if results.finished("combined", row | {"seed": seed}):
            continue
        if arguments.start:
            model = models.load(TEACHER.with_name(f"{arguments.start}.safetensors"))
        else:
            model = pruning.prune_channels(teacher, torch.zeros(1, 3, 32, 32), pruning.ratios_by_sensitivity(_channel_scan(), tolerance))
        callbacks = [pruning.GradualPruner(pruning.PolynomialSchedule(arguments.sparsity, end=0.7))] if arguments.sparsity else []
        loss = DistillationLoss(models.load(TEACHER), temperature=4, alpha=0.9)
        name = f"combined-{arguments.point}-{arguments.start or tolerance}-{arguments.sparsity:g}"
        _train_on(model, data, epochs, arguments.lr, seed, name, callbacks, loss)
        keep = seed == 0 and len(data.train) == 45_000
        path = TEACHER.with_name(f"vgg19_{arguments.point}.safetensors") if keep else WORK / f"{name}.safetensors"
        models.save(model, path, torch.float16, "bitmask+zip")
        results.append("combined", row | deployed(models.load(path), teacher, data) | results.provenance(seed))


def deployed(model: nn.Module, teacher: nn.Module, data: Data) -> dict:
    """Export ``model`` and the teacher to ONNX, quantize the model, and measure both in onnxruntime: bytes, accuracy, latency."""
    folder, some = WORK / "deployed", data.train.take(slice(0, 500))
    folder.mkdir(parents=True, exist_ok=True)
    files = {"": export.to_onnx(model, folder / "model.onnx", some), "teacher_": export.to_onnx(teacher, folder / "teacher.onnx", some)}
    files["int8_"] = export.quantize_onnx(files[""], folder / "int8.onnx", some)
    row = {"parameters": profiling.count_parameters(model), "nonzeros": sum(int(p.count_nonzero()) for p in model.parameters())}
    row |= {"macs": profiling.count_macs(model), "total": len(data.test)}
    for who, path in files.items():
        row[f"{who}onnx_bytes"], row[f"{who}zip_bytes"] = path.stat().st_size, export.zipped_bytes(path)
        row[f"{who}correct"] = export.onnx_accuracy(path, data.test).correct
    for threads in sorted({1, torch.get_num_threads()}):
        for who, path in files.items():
            measured = export.onnx_latency(path, threads=threads)
            for key in ("latency_ms", "latency_low_ms", "latency_high_ms"):
                row[f"{who}{key}_{threads}_threads"] = round(measured[key], 4)
    smaller = row["teacher_onnx_bytes"] / row["int8_zip_bytes"]
    faster = row["teacher_latency_ms_1_threads"] / row["int8_latency_ms_1_threads"]
    right = f"int8: {row['int8_correct']} of {row['total']}, teacher {row['teacher_correct']}"
    print(f"{right}; {smaller:.0f} times smaller, {faster:.1f} times faster")
    return row


def _channel_scan() -> pd.DataFrame:
    scan = results.read("sensitivity")
    scan = scan[(scan["unit"] == "channel") & (scan["weights"] == _digest())]
    if scan.empty:
        raise RuntimeError("data/results/sensitivity.csv has no scan of this teacher: run python -m helpers.benchmark sensitivity first")
    return scan.assign(accuracy=scan["correct"] / scan["total"])


def _counts(network: nn.Module, split: Split) -> dict[str, int]:
    correct = evaluate(network, split, precision="auto").correct
    return {"correct": correct, "parameters": profiling.count_parameters(network), "macs": profiling.count_macs(network)}


def _digest() -> str:
    """Return which teacher a row stands on: the first digits of the SHA-256 in its file."""
    return "sha256:" + models.read_safetensors(TEACHER)[0]["sha256"][:10]


def _train_on(
    model: nn.Module, data: Data, epochs: int, lr: float, seed: int, name: str, callbacks: Sequence[Callback] = (), loss: Loss | None = None
) -> None:
    """Train a compressed teacher further, from its own weights, with the one loop."""
    checkpoint = WORK / f"{name}-{len(data.train)}-{epochs}-{lr:g}-{seed}-{_digest().removeprefix('sha256:')}.safetensors"
    watched = replace(data, validation=data.validation.take(slice(0, 1_000)))  # a glance per epoch; nothing is chosen by it
    options = {"batch_size": 128, "warmup": 0.05, "callbacks": callbacks, "loss": loss, "seed": seed, "checkpoint": checkpoint}
    fit(model, watched, epochs=epochs, lr=lr, **options)


def _measure(name: str, row: dict, model: nn.Module, data: Data, seed: int, file: str | None) -> None:
    """Append what the finished model costs and scores beside the teacher, measured in the same minute; keep its file."""
    teacher = models.load(TEACHER)
    storage, size = profiling.smallest_file(model)  # in single precision, as trained
    row |= {"storage": storage, "bytes": size, "teacher_bytes": profiling.file_bytes(teacher)}
    keep = file and seed == 0 and row["train_pictures"] == 45_000  # of many runs, one file
    path = TEACHER.with_name(f"{file}.safetensors") if keep else WORK / f"{file or name}-measured.safetensors"
    models.save(model, path, torch.float16, "bitmask+zip" if storage != "dense" else "dense")
    model = models.load(path)  # what is measured from here on is what is kept, half precision included
    row |= {"half_bytes": path.stat().st_size, "teacher_half_bytes": profiling.file_bytes(teacher, torch.float16)}
    row |= {"teacher_half_zip_bytes": profiling.file_bytes(teacher, torch.float16, "zip")}
    accuracy, before = evaluate(model, data.test), evaluate(teacher, data.test)
    row |= {"correct": accuracy.correct, "teacher_correct": before.correct, "total": accuracy.total}
    row |= {"parameters": profiling.count_parameters(model), "nonzeros": sum(int(p.count_nonzero()) for p in model.parameters())}
    row |= {"macs": profiling.count_macs(model)}
    for threads in sorted({1, torch.get_num_threads()}):
        for who, network in (("teacher_", teacher), ("", model)):
            measured = profiling.measure_latency(network, threads=threads)
            for key in ("latency_ms", "latency_low_ms", "latency_high_ms"):
                row[f"{who}{key}_{threads}_threads"] = round(measured[key], 3)
    results.append(name, row | results.provenance(seed))
    print(
        f"{row['method']}: {accuracy} of the test split, the teacher {before}; {row['teacher_bytes'] / size:.1f} times smaller ({storage})"
    )


def speed(arguments: argparse.Namespace) -> None:
    """Time fit against the loop of PyTorch's CIFAR-10 tutorial on VGG-19; append to data/results/speed.csv."""
    if torch.cuda.is_available():
        raise RuntimeError("speed compares the two loops on the CPU: hide the GPU with CUDA_VISIBLE_DEVICES=")
    batch_size, steps = 256, arguments.steps
    data = load_data("cifar10", train_limit=batch_size * steps)
    data = replace(data, validation=data.validation.take(slice(0, 500)))
    model = models.build("vgg19")
    fit(model, replace(data, train=data.train.take(slice(0, 2 * batch_size))), epochs=1, batch_size=batch_size, progress=False)
    ours = fit(model, data, epochs=1, batch_size=batch_size, progress=False)["images_per_second"][0]
    plain = _tutorial_loop(batch_size, steps)
    row = {"model": "vgg19", "batch_size": batch_size, "steps": steps, "fit_images_per_second": round(ours, 1)}
    row |= {"tutorial_images_per_second": round(plain, 1), "ratio": round(ours / plain, 2)}
    results.append("speed", row | results.provenance(0))
    print(f"fit {ours:.1f} images/s, tutorial loop {plain:.1f} images/s: {ours / plain:.2f} times")


def speed_pruning(arguments: argparse.Namespace) -> None:
    """Time what GradualPruner adds to fit's steps, and a pruning step against PyTorch's; append to data/results/speed_pruning.csv."""
    if torch.cuda.is_available():
        raise RuntimeError("speed_pruning times the CPU: hide the GPU with CUDA_VISIBLE_DEVICES=")
    batch_size, steps, every = 256, 60, 30  # as often as by default in a run of a few epochs
    data = load_data("cifar10", train_limit=batch_size * steps)
    data = replace(data, validation=data.validation.take(slice(0, 500)))
    pruner = _Timed(pruning.GradualPruner(pruning.PolynomialSchedule(0.9, 0.5), every=every))  # masks are there from the first step on
    history = fit(models.load(TEACHER), data, epochs=1, batch_size=batch_size, lr=0.01, callbacks=[pruner], progress=False)
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
    row = {"model": "vgg19", "batch_size": batch_size, "steps": steps, "every": every, "pruner_percent_of_step": round(share, 2)}
    row |= {"prune_once_seconds": round(ours, 3), "torch_seconds": round(theirs, 3), "ratio": round(theirs / ours, 2)}
    results.append("speed_pruning", row | results.provenance(0))
    print(f"GradualPruner adds {share:.2f}% to a step; one pruning of VGG-19 {ours:.2f} s, torch.nn.utils.prune {theirs:.2f} s")


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
    """Time everything that is timed: the loop, pruning, factorization."""
    for command in (speed, speed_pruning, speed_low_rank):
        command(arguments)


def speed_low_rank(arguments: argparse.Namespace) -> None:
    """Time factorizing VGG-19 against tensorly's partial Tucker at the same ranks; append to data/results/speed_low_rank.csv."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    tensorly.set_backend("pytorch")
    model = models.load(TEACHER)
    started = time.perf_counter()
    plan = low_rank_module.analyze(model, 0.8)
    analyzed = time.perf_counter()
    low_rank_module.factorize(model, 0.8)
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
    row |= {"tensorly_seconds": round(ended - factorized, 2), "ratio": round((ended - factorized) / (factorized - analyzed), 2)}
    results.append("speed_low_rank", row | results.provenance(0))
    print(f"analyze {row['analyze_seconds']} s, factorize {row['factorize_seconds']} s, tensorly {row['tensorly_seconds']} s")


def _tutorial_loop(batch_size: int, steps: int) -> float:
    """Images per second of the plain loop: DataLoader with transforms, two workers, fp32, SGD, as in pytorch.org's tutorial."""
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD)])
    loader = torch.utils.data.DataLoader(CIFAR10(cifar10_root(), transform=transform), batch_size, shuffle=True, num_workers=2)
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


COMMANDS = {
    "teacher": teacher,
    "distillation": distillation,
    "distillation_grid": distillation_grid,
    "sensitivity": sensitivity,
    "pruning": prune,
    "channels": channels,
    "low_rank": low_rank,
    "combined": combined,
    "speed": speed_all,
    "speed_loop": speed,
    "speed_pruning": speed_pruning,
    "speed_low_rank": speed_low_rank,
}


def main() -> None:
    """Parse the command line and run what it names."""
    parser = argparse.ArgumentParser(prog="python -m helpers.benchmark", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--epochs", type=int, help="default: 30, for the teacher on a GPU 200")
    parser.add_argument("--restart", action="store_true", help="teacher: train the one that is there for another cycle")
    parser.add_argument("--steps", type=int, default=12, choices=range(1, 150), metavar="1..149", help="timed by speed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-limit", type=int, help="training pictures for the students; default: all")
    parser.add_argument("--student", default="tiny_convnet", choices=models.MODELS)
    parser.add_argument("--lr", type=float, default=0.02, help="for training a compressed teacher further")
    parser.add_argument("--only", nargs="+", help="pruning: some of dense-0, gradual-0.9, one-shot-0.95, ...")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.02], help="channels: accuracy each layer alone may cost")
    parser.add_argument("--distil", action="store_true", help="train further with the teacher in the loss, temperature 4, alpha 0.9")
    parser.add_argument("--sparsity", type=float, default=0.5, help="combined: of the weights that are left after the channels went")
    parser.add_argument("--start", help="combined: the file of data/checkpoints to go on from, for example vgg19_rank6")
    parser.add_argument("--point", default="combined", help="combined: what this model is called in the table, and its file after vgg19_")
    parser.add_argument("--budgets", type=float, nargs="+", default=[2, 4, 6, 10], help="low_rank: times fewer parameters")
    parser.add_argument("--macs", type=float, nargs="+", help="low_rank: times fewer MACs; default: as --budgets")
    arguments = parser.parse_args()
    COMMANDS[arguments.what](arguments)
    results.write_readme()


if __name__ == "__main__":
    main()
