"""Regenerate the published numbers: ``python -m helpers.benchmark`` (all of them) or ``... pruning channels`` (some).

Each row of data/results/ comes from here. A finished row is not run again; a killed run goes on from its last epoch. Runs are
independent of each other: ``--engine ray`` spreads them over a Ray cluster, ``accelerate launch -m helpers.benchmark ...`` spreads
one run over several processes. ``--data digits --out somewhere`` tries everything out in minutes and leaves the published rows alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from helpers import checks, export, models, peers, profiling, pruning, results, series, speed
from helpers import low_rank as low_rank_module
from helpers.data import HOME, Data, Split, load_data
from helpers.distillation import DistillationLoss
from helpers.training import Callback, Loss, evaluate, fit, predict

TEACHER = series.TEACHER
WORK = HOME / "build" / "benchmark"  # unfinished runs; ignored by git

# Epochs per budget: quick is what a laptop's CPU does in a night, full what a GPU does.
EPOCHS = {
    "teacher": {"quick": 30, "full": 200},
    "distillation": {"quick": 30, "full": 200},
    "distillation_grid": {"quick": 3, "full": 60},
    "students": {"quick": 50, "full": 300},
    "pruning": {"quick": 3, "full": 100},
    "channels": {"quick": 10, "full": 100},
    "low_rank": {"quick": 4, "full": 60},
    "combined": {"quick": 12, "full": 200},
    "orders": {"quick": 2, "full": 30},
    "peers": {"quick": 2, "full": 30},
}
TRIAL = ("alone", "smoothed", "taught")
ARMS = (
    "dense-0",
    "gradual-0.9",
    "gradual-0.95",
    "gradual-0.98",
    "one-shot-0.9",
    "one-shot-0.95",
    "one-shot-0.98",
)


def teacher(arguments: argparse.Namespace) -> None:
    """Train the teacher; write data/checkpoints/vgg19.safetensors (fp16) and vgg19_history.csv beside it.

    ``--restart`` trains the one that is there for another cycle (a warm restart, Loshchilov and Hutter 2017) and replaces it.
    ``--pixels 16`` trains and tests on pictures of 16 x 16, at a quarter of the cost: a start for ``--restart`` at full size
    (progressive resizing; Tan and Le 2021, section 4).
    """
    data, seed = load_data(arguments.data, train_limit=arguments.train_limit), arguments.seeds[0]
    row = {"model": arguments.model, "data": data.name, "epochs": _epochs(arguments, "teacher")}
    if arguments.pixels:
        if arguments.model.startswith("vgg"):
            raise ValueError(
                f"--pixels is for networks that take any size; {arguments.model} halves its pictures five times, got {arguments.pixels}"
            )
        data = replace(
            data,
            **{
                name: _resized(getattr(data, name), arguments.pixels)
                for name in ("train", "validation", "test")
            },
        )
        row["pixels"] = arguments.pixels
    if arguments.cutout:
        row["cutout"] = arguments.cutout
    torch.manual_seed(seed)
    # no label smoothing: it would erase what a student can learn (Mueller 2019)
    recipe = {"epochs": row["epochs"], "lr": 0.1, "batch_size": 128, "schedule": "one_cycle", "warmup": 0.2}
    if arguments.restart:
        row["cycle"] = int(results.read("teacher").query("model == @arguments.model").iloc[-1]["cycle"]) + 1
        recipe |= {"lr": 0.05, "warmup": 0.1}
    else:
        row["cycle"] = 1
        if TEACHER.exists() and results.finished("teacher", {"model": arguments.model}):
            print(f"{TEACHER} is there already; delete it to train anew, or give --restart to train it on")
            return
        model = models.build(arguments.model, width=1.0 if data.name == "cifar10" else 0.25)
    checkpoint = WORK / f"{arguments.model}-{row['cycle']}-{row['epochs']}-{seed}.safetensors"
    if arguments.restart:
        before = checkpoint.with_name(f"{checkpoint.stem}-before.safetensors")
        if (
            not checkpoint.exists() and _writes()
        ):  # a killed run finds where it began, even if the teacher has been replaced since
            checks.writable(before)
            with checks.atomic_path(before) as part:
                shutil.copyfile(TEACHER, part)
        results.state().wait_for_everyone()
        model = models.load(before)
        if arguments.train_limit is None:
            data = replace(data, train=_least_sure(model, data, seed))
    row["train_pictures"] = len(data.train)
    history = fit(
        model,
        data,
        seed=seed,
        checkpoint=checkpoint,
        cutout=arguments.cutout,
        compile=arguments.compile,
        **recipe,
    )
    if not _writes():
        return
    history.insert(0, "cycle", row["cycle"])
    table = TEACHER.with_name(f"{arguments.model}_history.csv")
    if arguments.restart:
        cycles = pd.read_csv(table)
        history = pd.concat(
            [cycles[cycles["cycle"] != row["cycle"]], history]
        )  # a run killed after this line comes by again
    table.parent.mkdir(parents=True, exist_ok=True)
    with checks.atomic_path(table) as part:
        history.round(5).to_csv(part, index=False)
    models.save(model, TEACHER, torch.float16)
    accuracy = evaluate(models.load(TEACHER), data.test)
    row |= {"correct": accuracy.correct, "total": accuracy.total, "weights": _digest()}
    results.append("teacher", row | results.provenance(seed))
    print(f"{arguments.model} on the test split: {accuracy}")


def _resized(split: Split, pixels: int) -> Split:
    """Return the pictures at ``pixels`` x ``pixels``, each new pixel the mean of those it covers."""
    smaller = F.interpolate(split.images.float(), pixels, mode="area").round().to(torch.uint8)
    return replace(split, images=smaller)


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
    """Train the student alone, with smoothed labels, and taught, per seed, from one start; append to data/results/distillation.csv.

    Smoothed labels are soft targets without a teacher: what they give is no knowledge of his (Yuan 2020, section 3).
    ``--start vgg19_rank6`` lets that file of data/checkpoints teach instead of the teacher it was made from.
    """
    for seed in arguments.seeds:
        data = load_data(arguments.data, train_limit=arguments.train_limit, seed=seed)
        for arm in arguments.arms:
            temperature, alpha = (4.0, 0.9) if arm == "taught" else (1.0, 0.0)
            row = _student_row(arguments, "distillation", data, temperature, alpha) | {"arm": arm}
            if arm == "smoothed":
                row["label_smoothing"] = 0.1
            if results.finished("distillation", row | {"seed": seed}):
                continue
            student = _train_student(row, data, seed)
            if _writes():
                accuracy = evaluate(student, data.test)
                row |= {"correct": accuracy.correct, "total": accuracy.total}
                results.append("distillation", row | results.provenance(seed))
                print(f"seed {seed}, {arm}: {accuracy} of the test split")


def distillation_grid(arguments: argparse.Namespace) -> None:
    """Train one student per temperature and alpha, and one alone; append validation accuracies to data/results/distillation_grid.csv."""
    seed = arguments.seeds[0]
    data = load_data(arguments.data, train_limit=arguments.train_limit, seed=seed)
    alone, taught = (1.0, 0.0), itertools.product((1.0, 4.0, 16.0), (0.1, 0.5, 0.9))
    for temperature, alpha in (alone, *taught):
        row = _student_row(arguments, "distillation_grid", data, temperature, alpha)
        if results.finished("distillation_grid", row | {"seed": seed}):
            continue
        student = _train_student(row, data, seed)
        if _writes():
            accuracy = evaluate(student, data.validation)
            row |= {"correct": accuracy.correct, "total": accuracy.total}
            results.append("distillation_grid", row | results.provenance(seed))
            print(f"T {temperature:g}, alpha {alpha:g}: {accuracy} of the validation split")


def _student_row(
    arguments: argparse.Namespace, command: str, data: Data, temperature: float, alpha: float
) -> dict:
    names = {"student": arguments.student, "teacher": arguments.start or arguments.model, "data": data.name}
    if alpha > 0:
        names["weights"] = _digest(TEACHER.with_name(f"{names['teacher']}.safetensors"))
    return names | {
        "train_pictures": len(data.train),
        "epochs": _epochs(arguments, command),
        "temperature": temperature,
        "alpha": alpha,
    }


def _train_student(row: dict, data: Data, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    student, temperature, alpha = models.build(row["student"]), row["temperature"], row["alpha"]
    teacher = TEACHER.with_name(f"{row['teacher']}.safetensors")
    loss = DistillationLoss(models.load(teacher), temperature, alpha) if alpha > 0 else None
    settings = f"{len(data.train)}-{row['epochs']}-T{temperature:g}-a{alpha:g}-{seed}-{row.get('weights', '').removeprefix('sha256:')}"
    smoothing = row.get("label_smoothing", 0.0)
    checkpoint = (
        WORK / f"{row['student']}-{row['teacher']}-{settings}{'-smoothed' if smoothing else ''}.safetensors"
    )
    batch_size = (
        128 if len(data.train) >= 20_000 else 64
    )  # few pictures need small batches to make enough steps
    options = {
        "batch_size": batch_size,
        "loss": loss,
        "label_smoothing": smoothing,
        "seed": seed,
        "checkpoint": checkpoint,
    }
    fit(student, _glance(data), epochs=row["epochs"], **options)
    return student


def students(arguments: argparse.Namespace) -> None:
    """Train the student on all pictures, export and quantize it, measure it beside the teacher; append to data/results/students.csv.

    The teacher is in the loss; ``--start vgg19_rank6`` lets that file of data/checkpoints teach instead: a compressed copy answers
    several times as fast. ``--alone`` trains on the labels only. ``--restart`` trains the student that is there for another cycle.
    """
    data, epochs = (
        load_data(arguments.data, train_limit=arguments.train_limit),
        _epochs(arguments, "students"),
    )
    for seed in arguments.seeds:
        taught_by = "nobody" if arguments.alone else arguments.start or arguments.model
        row = {
            "student": arguments.student,
            "model": arguments.model,
            "data": data.name,
            "taught_by": taught_by,
        }
        row |= {"epochs": epochs, "lr": 0.1, "train_pictures": len(data.train), "weights": _digest()}
        torch.manual_seed(seed)
        student = models.build(arguments.student)
        name = f"{arguments.student}-{taught_by}-{len(data.train)}-{seed}"
        if arguments.restart:  # never written over, so that a killed run finds it again
            before = WORK / f"{name}.safetensors"
            student, name = models.load(before), f"{name}-again"
            row |= {"lr": 0.05, "before": _digest(before)}
        if results.finished("students", row | {"seed": seed}):
            continue
        loss = None if arguments.alone else _distilling(TEACHER.with_name(f"{taught_by}.safetensors"))
        _train_on(student, data, epochs, row["lr"], seed, f"student-{name}", loss=loss)
        if not _writes():
            continue
        student = models.load(models.save(student, WORK / f"{name}.safetensors", torch.float16))
        results.append("students", row | deployed(student, data) | results.provenance(seed))
        if (
            not arguments.alone
            and seed == 0
            and len(data.train) == 45_000
            and profiling.file_bytes(student, torch.float16) < 1e6
        ):
            models.save(
                student,
                TEACHER.with_name(f"{arguments.model}_{arguments.student}.safetensors"),
                torch.float16,
            )  # small: kept


def sensitivity(arguments: argparse.Namespace) -> None:
    """Prune the teacher one layer at a time, by weights and by channels; write data/results/sensitivity.csv."""
    data, model = load_data(arguments.data), models.load(TEACHER)
    held_out = data.validation.take(slice(0, 1_000))
    for unit, ratios in (("weight", (0.5, 0.8, 0.9, 0.95, 0.98)), ("channel", (0.25, 0.5, 0.75, 0.9))):
        same = {
            "model": arguments.model,
            "data": data.name,
            "unit": unit,
            "pictures": len(held_out),
            "weights": _digest(),
        }
        if results.finished("sensitivity", same) or not _writes():
            continue
        scan = pruning.sensitivity(model, held_out, ratios, unit=unit, precision="auto").drop(
            columns="accuracy"
        )
        results.append(
            "sensitivity", *(same | row | results.provenance(0) for row in scan.to_dict("records"))
        )


def prune(arguments: argparse.Namespace) -> None:
    """Prune the teacher's weights gradually and at once, beside a dense network trained on as long; append to data/results/pruning.csv."""
    data = load_data(arguments.data, train_limit=arguments.train_limit)
    epochs = _epochs(arguments, "pruning")
    for arm in arguments.only or ARMS:
        method, _, share = arm.rpartition("-")
        sparsity = float(share)
        for seed in arguments.seeds:
            row = {
                "model": arguments.model,
                "data": data.name,
                "method": method,
                "sparsity": sparsity,
                "train_pictures": len(data.train),
            }
            row |= {
                "epochs": epochs,
                "lr": arguments.lr,
                "loss": _loss_name(arguments),
                "end": arguments.end,
                "weights": _digest(),
            }
            if results.finished("pruning", row | {"seed": seed}):
                continue
            model = models.load(TEACHER)
            if method == "one-shot":
                pruning.prune_once(model, sparsity)
            schedule = pruning.PolynomialSchedule(
                sparsity, sparsity if method == "one-shot" else 0.0, end=arguments.end
            )
            callbacks = [pruning.GradualPruner(schedule)] if sparsity else []
            _train_on(
                model,
                data,
                epochs,
                arguments.lr,
                seed,
                f"{method}-{sparsity:g}-{arguments.end:g}-{row['loss']}",
                callbacks,
                _loss(arguments),
            )
            _measure(
                "pruning",
                row,
                model,
                data,
                seed,
                f"pruned{100 * sparsity:g}" if method == "gradual" else None,
            )


def channels(arguments: argparse.Namespace) -> None:
    """Take channels out of the teacher where the sensitivity scan allows it, train on; append to data/results/channels.csv."""
    data = load_data(arguments.data, train_limit=arguments.train_limit)
    epochs = _epochs(arguments, "channels")
    for tolerance in arguments.tolerances:
        for seed in arguments.seeds:
            row = {"model": arguments.model, "data": data.name, "method": "channels", "tolerance": tolerance}
            row |= {
                "train_pictures": len(data.train),
                "epochs": epochs,
                "lr": arguments.lr,
                "loss": _loss_name(arguments),
            }
            row |= {"weights": _digest()}
            if results.finished("channels", row | {"seed": seed}):
                continue
            model = _fewer_channels(tolerance)
            row["before"] = evaluate(model, data.validation.take(slice(0, 1_000)), precision="auto").correct
            _train_on(
                model,
                data,
                epochs,
                arguments.lr,
                seed,
                f"channels-{tolerance:g}-{row['loss']}",
                loss=_loss(arguments),
            )
            _measure("channels", row, model, data, seed, f"channels{100 * tolerance:g}")


def _fewer_channels(tolerance: float) -> nn.Module:
    return pruning.prune_channels(
        models.load(TEACHER),
        torch.zeros(1, 3, 32, 32),
        pruning.ratios_by_sensitivity(_channel_scan(), tolerance),
    )


def low_rank_curve(arguments: argparse.Namespace) -> None:
    """Factorize the teacher to ten budgets in four ways, and measure at once, without training; append to data/results/low_rank.csv."""
    data, teacher = load_data(arguments.data), models.load(TEACHER)
    held_out, some = data.validation.take(slice(0, 1_000)), data.train.take(slice(0, 300))
    budgets = (1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30)  # times fewer parameters and MACs
    ways = {
        "weights": {},
        "schemes": {"scheme": "auto"},
        "pictures": {"pictures": some},
        "pictures, ranks of weights": {"pictures": some},
    }
    for method, options in ways.items():
        same = {
            "model": arguments.model,
            "data": data.name,
            "method": method,
            "epochs": 0,
            "weights": _digest(),
        }
        if results.finished("low_rank", same) or not _writes():
            continue
        if method == "pictures, ranks of weights":
            plans = [low_rank_module.analyze(teacher, budget=1 / times, count="both") for times in budgets]
            ranks = [dict(plan[plan["worthwhile"]].set_index("layer")["rank"]) for plan in plans]
            networks = [low_rank_module.factorize(teacher, ranks=one, **options) for one in ranks]
            table = pd.DataFrame([_counts(network, held_out) for network in networks])
        else:
            shares = [1 / times for times in budgets]
            table = low_rank_module.sweep(
                teacher, held_out, budgets=shares, count="both", precision="auto", **options
            )
        rows = []
        for times, found in zip(budgets, table.itertuples(), strict=True):
            row = same | {
                "times": times,
                "validation_correct": found.correct,
                "validation_total": len(held_out),
            }
            rows.append(row | {"parameters": found.parameters, "macs": found.macs} | results.provenance(0))
        results.append("low_rank", *rows)


def low_rank(arguments: argparse.Namespace) -> None:
    """Factorize the teacher to some budgets with an eye on pictures, and train on; append to data/results/low_rank.csv."""
    data, epochs = (
        load_data(arguments.data, train_limit=arguments.train_limit),
        _epochs(arguments, "low_rank"),
    )
    held_out, some = data.validation.take(slice(0, 1_000)), data.train.take(slice(0, 300))
    for times, times_macs in zip(arguments.budgets, arguments.macs or arguments.budgets, strict=True):
        for seed in arguments.seeds:
            row = {
                "model": arguments.model,
                "data": data.name,
                "method": "pictures",
                "times": times,
                "times_macs": times_macs,
            }
            row |= {
                "epochs": epochs,
                "lr": arguments.lr,
                "loss": _loss_name(arguments),
                "train_pictures": len(data.train),
            }
            row |= {"weights": _digest()}
            if results.finished("low_rank", row | {"seed": seed}):
                continue
            budget = (1 / times, 1 / times_macs)
            model = low_rank_module.factorize(
                models.load(TEACHER), budget=budget, count="both", round_to=8, pictures=some
            )
            row["before"] = evaluate(model, held_out, precision="auto").correct
            name = f"low-rank-{times:g}-{times_macs:g}-{_loss_name(arguments)}"
            _train_on(model, data, epochs, arguments.lr, seed, name, loss=_loss(arguments))
            _measure("low_rank", row, model, data, seed, f"rank{times:g}")


def combined(arguments: argparse.Namespace) -> None:
    """All of it on one network: a smaller model, the teacher in the loss, pruning in the step, then int8; append to combined.csv.

    ``--start vgg19_channels20`` goes on from that file of data/checkpoints; without it, channels are taken out of the teacher here.
    """
    data, epochs = (
        load_data(arguments.data, train_limit=arguments.train_limit),
        _epochs(arguments, "combined"),
    )
    for seed in arguments.seeds:
        tolerance = None if arguments.start else arguments.tolerances[0]
        row = {"model": arguments.model, "data": data.name, "point": arguments.point}
        row |= {
            "start": arguments.start or f"channels {tolerance:g}",
            "sparsity": arguments.sparsity,
            "epochs": epochs,
        }
        row |= {
            "lr": arguments.lr,
            "loss": "distillation",
            "train_pictures": len(data.train),
            "weights": _digest(),
        }
        if results.finished("combined", row | {"seed": seed}):
            continue
        start = TEACHER.with_name(f"{arguments.start}.safetensors") if arguments.start else None
        model = models.load(start) if start else _fewer_channels(tolerance)
        weights = pruning.prunable(model).values()
        already = sum(int((weight == 0).sum()) for weight in weights) / sum(
            weight.numel() for weight in weights
        )
        schedule = pruning.PolynomialSchedule(arguments.sparsity, min(already, arguments.sparsity), end=0.7)
        callbacks = [pruning.GradualPruner(schedule)] if arguments.sparsity else []
        begun = f"{arguments.start}-{_digest(start).removeprefix('sha256:')}" if start else tolerance
        name = f"combined-{arguments.point}-{begun}-{arguments.sparsity:g}"
        _train_on(model, data, epochs, arguments.lr, seed, name, callbacks, _distilling())
        if not _writes():
            continue
        keep = seed == 0 and len(data.train) == 45_000
        path = (
            TEACHER.with_name(f"{arguments.model}_{arguments.point}.safetensors")
            if keep
            else WORK / f"{name}-{seed}.safetensors"
        )
        models.save(model, path, torch.float16, "bitmask+zip")
        results.append("combined", row | deployed(models.load(path), data) | results.provenance(seed))


def deployed(model: nn.Module, data: Data) -> dict:
    """Export ``model`` and the teacher to ONNX, quantize both, and measure the four in onnxruntime: bytes, accuracy, latency."""
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="deployed-", dir=WORK
    ) as folder:  # its own: another run may be measuring beside this one
        return _deployed(model, data, Path(folder))


def _deployed(model: nn.Module, data: Data, own: Path) -> dict:
    row = {
        "parameters": profiling.count_parameters(model),
        "nonzeros": sum(int(p.count_nonzero()) for p in model.parameters()),
    }
    row |= {"macs": profiling.count_macs(model), "total": len(data.test)}
    files = {}
    for who, network in (("", model), ("teacher_", models.load(TEACHER))):
        folder = WORK / "deployed" / _digest() if who else own
        if who and folder in _TEACHERS:  # its bytes and accuracy are measured once, its latency every time
            paths, measured = _TEACHERS[folder]
        else:
            paths, measured = _written(network, folder, data)
        if who:
            _TEACHERS[folder] = paths, measured
        files |= {f"{who}{kind}": path for kind, path in paths.items()}
        row |= {f"{who}{name}": value for name, value in measured.items()}
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


_TEACHERS: dict[Path, tuple[dict[str, Path], dict[str, int]]] = {}


def _written(network: nn.Module, folder: Path, data: Data) -> tuple[dict[str, Path], dict[str, int]]:
    """Write a network as ONNX, in float32 and int8; return the files, and their bytes and correct answers."""
    folder.mkdir(parents=True, exist_ok=True)
    some = data.train.take(slice(0, 500))
    files = {"": export.to_onnx(network, folder / "float.onnx", some)}
    files["int8_"] = export.quantize_onnx(files[""], folder / "int8.onnx", some)
    measured = {}
    for kind, path in files.items():
        measured[f"{kind}onnx_bytes"], measured[f"{kind}zip_bytes"] = (
            path.stat().st_size,
            export.zipped_bytes(path),
        )
        measured[f"{kind}correct"] = export.onnx_accuracy(path, data.test).correct
    return files, measured


def shipped(arguments: argparse.Namespace) -> None:
    """Measure every file of data/checkpoints in onnxruntime, as it is and in int8; append to data/results/shipped.csv."""
    data = load_data(arguments.data)
    for path in sorted(TEACHER.parent.glob("*.safetensors")):
        if path.stem.removeprefix(f"{arguments.model}_") in models.MODELS and path != TEACHER:
            continue  # a student: its row is in students.csv
        row = {"file": path.stem, "data": data.name, "checksum": _digest(path)}
        if _writes() and not results.finished("shipped", row):
            results.append("shipped", row | deployed(models.load(path), data) | results.provenance(0))


FORMATS = {  # how to write each: (suffix, function of model, path, pictures to compare on, pictures to calibrate with)
    "ONNX": (".onnx", lambda model, path, some, few: export.to_onnx(model, path, some)),
    "ONNX, int8": (
        ".onnx",
        lambda model, path, some, few: export.quantize_onnx(
            export.to_onnx(model, path, some), path, few, some
        ),
    ),
    "LiteRT": (".tflite", lambda model, path, some, few: export.to_litert(model, path, some)),
    "LiteRT, int8": (
        ".tflite",
        lambda model, path, some, few: export.to_litert(model, path, some, int8=True, calibration=few),
    ),
    "ExecuTorch": (".pte", lambda model, path, some, few: export.to_executorch(model, path, some)),
    "Core ML, float16": (".mlpackage", lambda model, path, some, few: export.to_coreml(model, path, some)),
    "Core ML, int8": (
        ".mlpackage",
        lambda model, path, some, few: export.to_coreml(model, path, some, weights="int8"),
    ),
    "TorchServe": (".mar", lambda model, path, some, few: export.to_torchserve(model, path, some)),
}


def formats(arguments: argparse.Namespace) -> None:
    """Write the teacher and the combined network in every format, and run each in its own runtime; append to data/results/formats.csv."""
    data = load_data(arguments.data)
    some, few, folder = data.test.take(slice(0, 200)), data.train.take(slice(0, 200)), WORK / "formats"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (arguments.model, f"{arguments.model}_combined"):
        path = TEACHER.with_name(f"{file}.safetensors")
        if not _writes() or not path.exists():
            continue
        for name, (suffix, write) in FORMATS.items():
            row = {"file": file, "data": data.name, "format": name, "checksum": _digest(path)}
            if results.finished("formats", row):
                continue
            model = models.load(path)
            target = write(model, folder / f"{file}{suffix}", some, few)
            size = (
                sum(each.stat().st_size for each in target.rglob("*"))
                if target.is_dir()
                else target.stat().st_size
            )
            row |= {"bytes": size, "zip_bytes": export.zipped_bytes(target), "pictures": len(some)}
            row |= _as_run(target, predict(model, some), some)
            results.append("formats", row | results.provenance(0))
            print(f"{file}, {name}: {size / 1e6:.2f} MB")


def _as_run(path: Path, expected: torch.Tensor, some: Split) -> dict:
    """Measure a file: agreement with PyTorch, and where its own runtime is a program of this machine, latency and memory."""
    if path.suffix == ".mar":  # its handler answers with a class and a probability, not with logits
        return {"same_class": int((export.archive_labels(path, some) == expected.argmax(1)).sum())}
    answers = export.coreml_logits(path, some) if path.suffix == ".mlpackage" else export.logits(path, some)
    row = {"same_class": int((answers.argmax(1) == expected.argmax(1)).sum())}
    row |= {"largest_difference": round(float((answers - expected).abs().max()), 6)}
    if path.suffix == ".mlpackage":
        return row
    for threads in sorted({1, torch.get_num_threads()}):
        measured = export.latency(path, threads=threads)
        row |= {
            f"{key}_{threads}_threads": round(measured[key], 4)
            for key in ("latency_ms", "latency_low_ms", "latency_high_ms")
        }
    return row | {key: round(value, 1) for key, value in export.peak_memory(path).items()}


def orders(arguments: argparse.Namespace) -> None:
    """Factorize, prune and quantize the teacher in three orders, trained equally long; append to data/results/orders.csv."""
    data, epochs = load_data(arguments.data, train_limit=arguments.train_limit), _epochs(arguments, "orders")
    for order in peers.ORDERS:
        row = {
            "model": arguments.model,
            "data": data.name,
            "order": order,
            "epochs": epochs,
            "lr": arguments.lr,
        }
        row |= {"loss": "distillation", "train_pictures": len(data.train), "weights": _digest()}
        if results.finished("orders", row):
            continue
        model = peers.in_order(order, models.load(TEACHER), data, _distilling(), epochs, arguments.lr)
        if _writes():
            row |= {"on_grid": round(peers.on_grid(model), 4)}
            results.append("orders", row | deployed(model, data) | results.provenance(0))


def compare_peers(arguments: argparse.Namespace) -> None:
    """Our methods and those of well-known libraries, from the same teacher, trained on alike; append to data/results/peers.csv."""
    data, epochs = load_data(arguments.data, train_limit=arguments.train_limit), _epochs(arguments, "peers")
    ratios = pruning.ratios_by_sensitivity(_channel_scan(), peers.CHANNEL_TOLERANCE)
    for task, tools in peers.TASKS.items():
        for tool, compress in tools.items():
            row = {
                "model": arguments.model,
                "data": data.name,
                "task": task,
                "tool": tool,
                "epochs": epochs,
                "lr": arguments.lr,
            }
            row |= {"loss": "distillation", "train_pictures": len(data.train), "weights": _digest()}
            if results.finished("peers", row):
                continue
            model, callbacks = compress(models.load(TEACHER), data, ratios)
            peers.train(model, data, _distilling(), epochs, arguments.lr, callbacks)
            if _writes():
                results.append("peers", row | deployed(peers.settled(model), data) | results.provenance(0))


# -- what the commands share -----------------------------------------------------------------------------------------


def _epochs(arguments: argparse.Namespace, command: str) -> int:
    return (
        arguments.epochs
        or EPOCHS[command][arguments.budget or ("quick" if results.state().device.type == "cpu" else "full")]
    )


def _writes() -> bool:
    """Whether this process measures and writes: one does, however many ``accelerate launch`` started."""
    return results.state().is_main_process


def _loss_name(arguments: argparse.Namespace) -> str:
    return "distillation" if arguments.distil else "labels"


def _loss(arguments: argparse.Namespace) -> Loss | None:
    return _distilling() if arguments.distil else None


def _distilling(path: Path | None = None) -> Loss:
    return DistillationLoss(models.load(path or TEACHER), temperature=4, alpha=0.9)


def _channel_scan() -> pd.DataFrame:
    scan = results.read("sensitivity")
    scan = scan[(scan["unit"] == "channel") & (scan["weights"] == _digest())]
    if scan.empty:
        raise RuntimeError(
            "data/results/sensitivity.csv has no scan of this teacher: run python -m helpers.benchmark sensitivity first"
        )
    return scan.assign(accuracy=scan["correct"] / scan["total"])


def _counts(network: nn.Module, split: Split) -> dict[str, int]:
    correct = evaluate(network, split, precision="auto").correct
    return {
        "correct": correct,
        "parameters": profiling.count_parameters(network),
        "macs": profiling.count_macs(network),
    }


def _digest(path: Path | None = None) -> str:
    """Return which teacher (or other file) a row stands on: the first digits of the SHA-256 in its file."""
    return models.fingerprint(path or TEACHER)


def _glance(data: Data) -> Data:
    """Return the data with a validation split for a glance per epoch; nothing is chosen by it."""
    return replace(data, validation=data.validation.take(slice(0, 1_000)))


def _train_on(
    model: nn.Module,
    data: Data,
    epochs: int,
    lr: float,
    seed: int,
    name: str,
    callbacks: Sequence[Callback] = (),
    loss: Loss | None = None,
) -> None:
    """Train a compressed teacher further, from its own weights, with the one loop."""
    checkpoint = (
        WORK
        / f"{name}-{len(data.train)}-{epochs}-{lr:g}-{seed}-{_digest().removeprefix('sha256:')}.safetensors"
    )
    options = {
        "batch_size": 128,
        "warmup": 0.05,
        "callbacks": callbacks,
        "loss": loss,
        "seed": seed,
        "checkpoint": checkpoint,
    }
    fit(model, _glance(data), epochs=epochs, lr=lr, **options)


def _measure(name: str, row: dict, model: nn.Module, data: Data, seed: int, file: str | None) -> None:
    """Append what the finished model costs and scores beside the teacher, measured in the same minute; keep its file."""
    if not _writes():
        return
    teacher = models.load(TEACHER)
    storage, size = profiling.smallest_file(model)  # in single precision, as trained
    row |= {"storage": storage, "bytes": size, "teacher_bytes": profiling.file_bytes(teacher)}
    keep = file and seed == 0 and row["train_pictures"] == 45_000  # of many runs, one file
    asked = f"{zlib.crc32(repr(row).encode()):08x}"  # tells this run's file from those of others, measured at the same time
    scratch = WORK / f"{row['model']}_{file or name}-{seed}-{asked}.safetensors"
    path = TEACHER.with_name(f"{row['model']}_{file}.safetensors") if keep else scratch
    models.save(model, path, torch.float16, "bitmask+zip" if storage != "dense" else "dense")
    model = models.load(path)  # what is measured from here on is what is kept, half precision included
    row |= {
        "half_bytes": path.stat().st_size,
        "teacher_half_bytes": profiling.file_bytes(teacher, torch.float16),
    }
    row |= {"teacher_half_zip_bytes": profiling.file_bytes(teacher, torch.float16, "zip")}
    accuracy, before = evaluate(model, data.test), evaluate(teacher, data.test)
    row |= {"correct": accuracy.correct, "teacher_correct": before.correct, "total": accuracy.total}
    row |= {
        "parameters": profiling.count_parameters(model),
        "nonzeros": sum(int(p.count_nonzero()) for p in model.parameters()),
    }
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


# -- the command line ------------------------------------------------------------------------------------------------

COMMANDS = {
    "teacher": teacher,
    "distillation": distillation,
    "distillation_grid": distillation_grid,
    "sensitivity": sensitivity,
    "students": students,
    "pruning": prune,
    "channels": channels,
    "low_rank_curve": low_rank_curve,
    "low_rank": low_rank,
    "combined": combined,
    "orders": orders,
    "peers": compare_peers,
    "shipped": shipped,
    "formats": formats,
    "speed": speed.speed_all,
    "speed_loop": speed.speed,
    "speed_pruning": speed.speed_pruning,
    "speed_low_rank": speed.speed_low_rank,
    "speed_sliders": speed.speed_sliders,
}
ALL = [
    name for name in COMMANDS if not name.startswith("speed_")
]  # what a bare ``python -m helpers.benchmark`` runs, in this order
WAVES = (  # on Ray each waits for those before it, whose rows and files it needs
    ("teacher",),
    ("sensitivity", "distillation_grid", "pruning", "low_rank_curve", "low_rank"),
    ("channels",),
    ("distillation", "students", "combined", "orders", "peers"),
    ("shipped", "formats"),
    tuple(name for name in COMMANDS if name.startswith("speed")),  # a clock wants the machine to itself
)
LISTS = {
    "pruning": ("only",),
    "channels": ("tolerances",),
    "low_rank": ("budgets", "macs"),
}  # a run per entry and seed
SEEDED = (
    "distillation",
    "students",
    "pruning",
    "channels",
    "low_rank",
    "combined",
)  # the others take the first seed alone


def jobs(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the single runs that the command line asks for: one command, one setting, one seed each."""
    found = []
    for what in arguments.what or ALL:
        names = LISTS.get(what, ())
        values = zip(*(getattr(arguments, name) for name in names), strict=True) if names else [()]
        for one in values:
            for seed in arguments.seeds if what in SEEDED else arguments.seeds[:1]:
                settings = {name: [value] for name, value in zip(names, one, strict=True)}
                found.append(
                    argparse.Namespace(**{**vars(arguments), "what": what, "seeds": [seed], **settings})
                )
    return found


def run(job: argparse.Namespace) -> None:
    """Run one job of ``jobs``; its rows and files go under ``job.out``."""
    place(job.out, job.model)
    COMMANDS[job.what](job)
    results.state().wait_for_everyone()


def place(out: str | os.PathLike | None, model: str = "vgg19") -> None:
    """Say where the teacher is and where rows and unfinished runs go: data/ and build/ of the repository, or ``out``."""
    global TEACHER, WORK
    folder = HOME / "data" if out is None else Path(out).resolve()
    results.RESULTS = folder / "results"
    TEACHER = folder / "checkpoints" / f"{model}.safetensors"
    WORK = (HOME / "build" if out is None else folder) / "benchmark"


def run_on_ray(chosen: list[argparse.Namespace], address: str | None) -> None:
    """Run the jobs on a Ray cluster, or on one started here; those that need others' rows or files wait for them.

    The nodes of a cluster must see this checkout under the same path, since rows and checkpoints are files in it.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: a job failed; the others were finished first.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("--engine ray needs Ray: pip install ray") from error

    command = sys.argv

    def work(job: argparse.Namespace) -> None:
        sys.argv = command  # rows say which command made them
        from helpers import benchmark

        benchmark.run(job)

    paths = os.pathsep.join([str(HOME), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    passed_on = {"PYTHONPATH": paths} | (
        {"ACCELERATE_USE_CPU": "true"} if parse_flag_from_env("ACCELERATE_USE_CPU") else {}
    )
    ray.init(
        address=address, runtime_env={"env_vars": passed_on}, log_to_driver=True, include_dashboard=False
    )
    try:
        per_run = {
            "num_cpus": max(1, torch.get_num_threads() // 2),
            "num_gpus": 1 if results.state().device.type == "cuda" else 0,
        }
        remote = ray.remote(max_retries=1, **per_run)(work)
        failed = []
        for wave in WAVES:
            waiting = {remote.remote(job): job for job in chosen if job.what in wave}
            bar = tqdm(total=len(waiting), unit="run", desc="ray")
            left = list(waiting)
            while left:
                done, left = ray.wait(left)
                bar.update()
                try:
                    ray.get(done)
                except ray.exceptions.RayError as error:
                    failed.append(f"{waiting[done[0]].what}: {str(error).strip().splitlines()[-1]}")
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(chosen)} runs failed: {'; '.join(failed)}")
    finally:
        ray.shutdown()


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    line = argparse.ArgumentParser(
        prog="python -m helpers.benchmark", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    line.add_argument(
        "what", nargs="*", metavar="what", help=f"some of: {', '.join(COMMANDS)} (default: all)"
    )
    line.add_argument(
        "--budget",
        choices=("quick", "full"),
        help="epochs for a laptop's night or for a GPU; default: as the machine is",
    )
    line.add_argument("--epochs", type=int, help="instead of the budget's")
    line.add_argument(
        "--device", choices=("auto", "cpu"), default="auto", help="auto: the GPU if there is one"
    )
    line.add_argument(
        "--model", default="vgg19", choices=models.MODELS, help="the teacher, for example resnet50"
    )
    line.add_argument("--data", default="cifar10", choices=("cifar10", "digits"), help="default: cifar10")
    line.add_argument(
        "--out",
        help="folder for rows, checkpoints and unfinished runs; default: this repository's data/ and build/",
    )
    line.add_argument(
        "--engine", choices=("here", "ray"), default="here", help="here: one run after the other"
    )
    line.add_argument("--address", help="of a running Ray cluster; default: one is started here")
    line.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run for each; default: 0 1 2"
    )
    line.add_argument("--train-limit", type=int, help="training pictures; default: all")
    line.add_argument("--lr", type=float, default=0.02, help="for training a compressed teacher further")
    line.add_argument(
        "--distil",
        action="store_true",
        help="train further with the teacher in the loss, temperature 4, alpha 0.9",
    )
    line.add_argument(
        "--restart", action="store_true", help="teacher, students: train what is there for another cycle"
    )
    line.add_argument(
        "--pixels",
        type=int,
        choices=(8, 16, 24),
        help="teacher: train on smaller pictures, as a start for --restart",
    )
    line.add_argument(
        "--cutout",
        type=int,
        default=0,
        help="teacher: hide a square of so many pixels of every training picture",
    )
    line.add_argument(
        "--compile", action="store_true", help="teacher: torch.compile; paid on a CPU with tile units (AMX)"
    )
    line.add_argument(
        "--student", default="tiny_convnet", choices=models.MODELS, help="distillation and students"
    )
    line.add_argument(
        "--only",
        nargs="+",
        choices=ARMS,
        default=list(ARMS),
        metavar="ARM",
        help=f"pruning: some of {', '.join(ARMS)}",
    )
    line.add_argument(
        "--arms",
        nargs="+",
        choices=TRIAL,
        default=list(TRIAL),
        metavar="ARM",
        help=f"distillation: some of {', '.join(TRIAL)}",
    )
    line.add_argument(
        "--end",
        type=float,
        default=0.5,
        help="pruning: where in the run the last weights are given up (0 to 1)",
    )
    line.add_argument(
        "--tolerances",
        type=float,
        nargs="+",
        default=[0.02],
        help="channels: accuracy each layer alone may cost",
    )
    line.add_argument(
        "--budgets", type=float, nargs="+", default=[2, 4, 6, 10], help="low_rank: times fewer parameters"
    )
    line.add_argument(
        "--macs", type=float, nargs="+", help="low_rank: times fewer MACs; default: as --budgets"
    )
    line.add_argument(
        "--sparsity",
        type=float,
        default=0.5,
        help="combined: of the weights that are left after the channels went",
    )
    line.add_argument(
        "--start",
        help="file of data/checkpoints, such as vgg19_rank6: combined goes on from it, students learn from it",
    )
    line.add_argument("--alone", action="store_true", help="students: without a teacher")
    line.add_argument(
        "--point",
        default="combined",
        help="combined: what this model is called in the table, and its file after vgg19_",
    )
    line.add_argument(
        "--steps", type=int, default=12, choices=range(1, 150), metavar="1..149", help="timed by speed"
    )
    return line


def main() -> None:
    """Parse the command line and run what it names."""
    line = parser()
    arguments = line.parse_args()
    for name in arguments.what:
        if name not in COMMANDS:
            line.error(f"what must be some of {', '.join(COMMANDS)}; got {name}")
    if arguments.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    arguments.macs = arguments.macs or arguments.budgets
    chosen = jobs(arguments)
    if arguments.engine == "ray":
        run_on_ray(chosen, arguments.address)
    else:
        for job in tqdm(chosen, unit="run", disable=len(chosen) == 1 or not _writes()):
            run(job)
    if arguments.out is None and _writes():
        results.write_readme()


if __name__ == "__main__":
    main()
