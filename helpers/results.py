"""Rows of data/results/*.csv: each says what was run, where, when, with which versions, and is never half-written."""

from __future__ import annotations

import csv
import datetime
import io
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from filelock import FileLock

from helpers import checks, models
from helpers.data import HOME
from helpers.evaluation import Accuracy

RESULTS = HOME / "data" / "results"
IMAGENET_VGG19_BYTES = (
    4 * 143_667_240
)  # torchvision's VGG-19 with its 4096-wide classifier, in single precision: "the 548 MB model" (MiB)
CLAIMED = {  # times smaller, points of accuracy lost, times faster: what is usually said of these methods, not measured by us
    "distilled TinyConvNet": (20, 1.4, 8.1),
    "pruned": (10, 2.1, 3.0),
    "low rank": (3.3, 0.7, 2.3),
    "combined": (40, 2.8, 10.3),
    "ResNet-50 student": (8.0, 1.3, 5.9),
    "ResNet-50 pruned": (6.7, 0.9, 3.5),
}
EXPERIMENT = [
    "student",
    "teacher",
    "data",
    "train_pictures",
    "epochs",
]  # what rows of one experiment with students share
STUDENTS = {"tiny_convnet": "distilled TinyConvNet", "micro_convnet": "distilled MicroConvNet"}
TEACHER_BYTES = 4 * 20_040_522  # VGG-19 for CIFAR-10, in single precision
MARKS = ("<!-- results: written by helpers.results from data/results -->", "<!-- end of results -->")


def state() -> PartialState:
    """Return which process this is, of how many, and on which device ``fit`` trains: it heeds ACCELERATE_USE_CPU before any ``fit``."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def provenance(seed: int | None = None) -> dict[str, str]:
    """Return the columns that every published row ends with: command, commit, device, threads, seed, date, versions.

    Where the GPU trains, ``device`` names both processors: latencies are always those of the CPU.
    """
    if seed is not None:
        checks.integer("seed", seed, 0)
    device, processor = state().device, describe_device("cpu")
    command = [Path(sys.executable).name.rstrip("0123456789."), "-m", "helpers.benchmark", *sys.argv[1:]]
    return {
        "command": shlex.join(command),
        "commit": COMMIT,
        "device": processor if device.type == "cpu" else f"{describe_device(device)}, beside {processor}",
        "threads": str(torch.get_num_threads()),
        "seed": "" if seed is None else str(seed),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "versions": f"python {platform.python_version()}, torch {version('torch')}, torchvision {version('torchvision')}",
    }


def describe_device(device: str | torch.device = "cpu") -> str:
    """Name the processor that ``device`` stands for: "cpu", "mps", "cuda", or "cuda:" and its number."""
    if not re.fullmatch(
        r"(cpu|mps|cuda)(:\d+)?", str(checks.instance("device", device, (str, torch.device)))
    ):
        raise ValueError(f"device must be cpu, mps, cuda, or cuda: and a number, got {device!r}")
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    if torch.device(device).type == "mps":
        return f"{platform.processor() or platform.machine()} GPU (Metal)"
    info, said = Path("/proc/cpuinfo"), {}
    for line in info.read_text("utf-8").splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        said.setdefault(key.strip(), value.strip())
    name = said.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in said:  # a cloud's processors of one name may be years apart
        name += f" (family {said['cpu family']}, model {said.get('model')})"
    return f"{name}, {os.cpu_count()} cores"


def append(name: str, *new: dict) -> Path:
    """Add rows to data/results/``name``.csv, all or none; new columns are added, nothing is lost, two writers wait for each other.

    Returns:
        The file's path.

    Raises:
        OSError: the folder cannot be written; the file stays as it was.
    """
    path = _file(name)
    for row in new:
        checks.names("new", checks.instance("new", row, dict))
    if not all(new) or not new:
        raise ValueError(f"new must hold at least one row, and none that is empty, got {new!r}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    with FileLock(RESULTS / f".{name}.lock"):
        rows = (
            list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8"), newline="")))
            if path.exists()
            else []
        )
        rows += [dict(row) for row in new]
        columns = list(dict.fromkeys(key for one in rows for key in one))
        with checks.atomic_path(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return path


def _file(name: str) -> Path:
    if not checks.instance("name", name, str).isidentifier():
        raise ValueError(f"name must be letters, digits and underscores, got {name!r}")
    return RESULTS / f"{name}.csv"


def finished(name: str, row: dict) -> bool:
    """Whether data/results/``name``.csv already has a row with all of these values."""
    path = _file(name)
    checks.names("row", checks.instance("row", row, dict))
    if not path.exists():
        return False
    table = pd.read_csv(path)
    same = pd.Series(True, index=table.index)
    for key, value in row.items():
        same &= (table[key] == value) if key in table else False
    return bool(same.any())


def read(name: str) -> pd.DataFrame:
    """Read data/results/``name``.csv.

    Raises:
        FileNotFoundError: it is not there; the message says how it is made.
    """
    path = _file(name)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: python -m helpers.benchmark {name} writes it")
    return pd.read_csv(path)


def accuracy(run: pd.Series, key: str = "correct") -> Accuracy:
    """Return the accuracy that a row holds: ``key`` (correct, teacher_correct) of its total."""
    checks.choice("key", key, checks.instance("run", run, pd.Series).index)
    for column in (key, "total"):
        checks.number(f"run[{column!r}]", run.get(column), 0)
    return Accuracy(int(run[key]), int(run["total"]))


def lineage(runs: pd.DataFrame) -> str:
    """Say which teacher the rows started from, by its accuracy on the test split, and whether it has been trained on since.

    Args:
        runs: rows with the columns weights (of the teacher), teacher_correct and total; those without weights are passed over.

    Returns:
        For example "92.3% (9,228 of 10,000; 91.7 to 92.8), since then trained on to 93.2% (9,320 of 10,000; 92.7 to 93.7)".
    """
    columns = ["weights", "teacher_correct", "total"]
    lacking = [
        name
        for name in columns
        if name not in checks.instance("runs", runs, pd.DataFrame) or runs[name].isna().all()
    ]
    if lacking or runs[columns].dropna().empty:
        raise ValueError(
            f"runs must have rows with {', '.join(columns)}, got {len(runs)} without {', '.join(lacking) or 'all three'}"
        )
    now, latest = _teacher()
    said = []
    for weights, same in runs.dropna(subset=columns).groupby("weights", sort=False):
        start = accuracy(same.iloc[-1], "teacher_correct")
        said.append(f"{start}, since then trained on to {latest}" if now not in ("", weights) else str(start))
    return " or ".join(said)


def _teacher() -> tuple[str, Accuracy | None]:
    """Return which weights the teacher beside these results holds now, and its latest accuracy; "" and None where there is none."""
    file = RESULTS.parent / "checkpoints" / "vgg19.safetensors"
    rows = read("teacher").query("model == 'vgg19'") if (RESULTS / "teacher.csv").exists() else ()
    return (models.fingerprint(file), accuracy(rows.iloc[-1])) if len(rows) and file.exists() else ("", None)


def pairs(runs: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """Return the largest experiment of distillation.csv: its settings, and the percentages of its complete pairs.

    Args:
        runs: what ``read("distillation")`` gave. Of equally large experiments the last counts.

    Returns:
        A row with the settings, and a table with a row per seed and the columns alone and taught, in percent, and smoothed where
        every seed has that arm, too.
    """
    if checks.instance("runs", runs, pd.DataFrame).empty or not {
        *EXPERIMENT,
        "seed",
        "arm",
        "correct",
        "total",
    } <= set(runs):
        raise ValueError(
            f"runs must be rows of distillation.csv, got {len(runs)} with the columns {', '.join(map(str, runs))}"
        )
    found = _experiments(runs)
    if not found:
        raise ValueError(
            f"runs must hold a seed with both arms, alone and taught, got {len(runs)} rows without"
        )
    return max(
        reversed(found), key=lambda one: one[0]["train_pictures"] * one[0]["epochs"]
    )  # max takes the first of equals


def _experiments(runs: pd.DataFrame) -> list[tuple[pd.Series, pd.DataFrame]]:
    """Return each experiment that has a complete pair, as ``pairs`` describes it."""
    found = []
    for _, same in runs.groupby(EXPERIMENT, sort=False):
        same = _of_the_last_teacher(same, same["arm"] == "taught")
        counts = same.pivot_table(index="seed", columns="arm", values="correct", aggfunc="last")
        counts = (
            counts.reindex(columns=["alone", "taught", "smoothed"])
            .dropna(subset=["alone", "taught"])
            .dropna(axis="columns")
        )
        if len(counts):
            found.append((same.iloc[-1], 100 * counts / same.iloc[-1]["total"]))
    return found


def _of_the_last_teacher(runs: pd.DataFrame, taught: pd.Series) -> pd.DataFrame:
    """Leave out the taught rows whose teacher had other weights than that of the last one."""
    if "weights" not in runs or not taught.any():
        return runs
    weights = runs["weights"].fillna("")
    return runs[~taught | (weights == weights[taught].iloc[-1])]


def grid(runs: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame, pd.Series | None]:
    """Return the last experiment of distillation_grid.csv.

    Args:
        runs: what ``read("distillation_grid")`` gave.

    Returns:
        A row with the settings; a table of the right answers, a row per alpha, a column per temperature; and the row of the student
        alone (alpha 0), or None.
    """
    settings = [*EXPERIMENT, "seed"]
    needed = {*settings, "temperature", "alpha", "correct", "total"}
    if checks.instance("runs", runs, pd.DataFrame).empty or not needed <= set(runs):
        raise ValueError(
            f"runs must be rows of distillation_grid.csv, got {len(runs)} with the columns {', '.join(map(str, runs))}"
        )
    row = runs.iloc[-1]
    same = runs[(runs[settings] == row[settings]).all(axis=1)]
    same = _of_the_last_teacher(same, same["alpha"] > 0)
    taught, alone = same[same["alpha"] > 0], same[same["alpha"] == 0]
    table = taught.pivot_table(index="alpha", columns="temperature", values="correct", aggfunc="last")
    return row, table, alone.iloc[-1] if len(alone) else None


def series_table() -> pd.DataFrame:
    """Return the models of the series beside the teacher, from the rows of data/results, and what is usually claimed.

    Size is of the file that would be shipped: the sparse file for the pruned ones, zipped ONNX for int8, ONNX otherwise, against the
    teacher's as float32. Speed is ONNX Runtime's (of the pruned ones PyTorch's), batch 1, 1 thread. An empty cell was not measured.

    Returns:
        A row per model: model, times smaller, against 575 MB (the same file against torchvision's VGG-19 for ImageNet), accuracy (of
        the test split), points (against the teacher it was made from or taught by), times faster, usually claimed; in ``attrs`` the
        ``lineage`` of those whose rows say it.
    """
    rows, used = [], []

    def add(name: str, smaller: float, run: pd.Series, key: str, faster: float, claim: str = "") -> None:
        after, before = accuracy(run, key), accuracy(run, "teacher_correct")
        points = 100 * (float(after) - float(before))
        row = {
            "model": name,
            "times smaller": smaller,
            "against 575 MB": smaller * IMAGENET_VGG19_BYTES / TEACHER_BYTES,
        }
        row |= {
            "accuracy": f"{100 * float(after):.1f}% ({after.correct:,} of {after.total:,})",
            "points": points,
            "times faster": faster,
        }
        rows.append(row | {"usually claimed": claimed(claim)})
        used.append(run)

    def claimed(name: str) -> str:
        return "{:g} x, -{:g} points, {:g} x".format(*CLAIMED[name]) if name else ""

    def speed(run: pd.Series, who: str = "") -> float:
        return run["teacher_latency_ms_1_threads"] / run[f"{who}latency_ms_1_threads"]

    if (RESULTS / "pruning.csv").exists():
        gradual = (
            read("pruning")
            .query("method == 'gradual'")
            .sort_values(["sparsity", "epochs"], kind="stable")
            .groupby("sparsity")
            .tail(1)
        )
        for _, run in gradual.iterrows():
            add(
                f"pruned, {run['sparsity']:.0%} zeros",
                run["teacher_bytes"] / run["bytes"],
                run,
                "correct",
                speed(run),
                "pruned",
            )
    if (RESULTS / "shipped.csv").exists():
        shipped = read("shipped").drop_duplicates("file", keep="last").set_index("file")
        for file, name, claim in (
            ("vgg19_channels20", "fewer channels", ""),
            ("vgg19_rank6", "low rank", "low rank"),
        ):
            if file in shipped.index:
                run = shipped.loc[file]
                add(name, run["teacher_onnx_bytes"] / run["onnx_bytes"], run, "correct", speed(run), claim)
                add(
                    f"{name}, int8",
                    run["teacher_onnx_bytes"] / run["int8_zip_bytes"],
                    run,
                    "int8_correct",
                    speed(run, "int8_"),
                )
        for file, name in (("vgg19_pruned95", "pruned, 95% zeros, int8"), ("vgg19", "teacher, int8")):
            if file not in shipped.index:
                continue
            run = shipped.loc[file]
            add(
                name,
                run["teacher_onnx_bytes"] / run["int8_zip_bytes"],
                run,
                "int8_correct",
                speed(run, "int8_"),
            )
    if (RESULTS / "combined.csv").exists():
        names = {"lossless": "combined, nearly lossless", "combined": "combined, smallest"}
        for _, run in read("combined").query("seed == 0").drop_duplicates("point", keep="last").iterrows():
            name = names.get(run["point"], run["point"])
            add(
                name,
                run["teacher_onnx_bytes"] / run["int8_zip_bytes"],
                run,
                "int8_correct",
                speed(run, "int8_"),
                "combined",
            )
    if (RESULTS / "students.csv").exists():
        taught = (
            read("students")
            .query("taught_by != 'nobody' and seed == 0")
            .drop_duplicates("student", keep="last")
        )
        for _, run in taught.sort_values("parameters", ascending=False).iterrows():
            name = STUDENTS.get(run["student"], f"distilled {run['student']}")
            add(
                name,
                run["teacher_onnx_bytes"] / run["onnx_bytes"],
                run,
                "correct",
                speed(run),
                name if name in CLAIMED else "",
            )
            add(
                f"{name}, int8",
                run["teacher_onnx_bytes"] / run["int8_zip_bytes"],
                run,
                "int8_correct",
                speed(run, "int8_"),
            )
    for name in ("ResNet-50 student", "ResNet-50 pruned"):
        rows.append({"model": name, "accuracy": "", "usually claimed": claimed(name)})
    table, starts = pd.DataFrame(rows), pd.DataFrame(used)
    if "weights" in starts and starts["weights"].notna().any():
        table.attrs["lineage"] = lineage(starts)
    return table


def _table_lines() -> list[str]:
    """Return ``series_table`` as Markdown."""
    table = series_table()
    lines = ["", "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    formats = {
        "times smaller": "{:.1f}",
        "against 575 MB": "{:.0f}",
        "points": "{:+.1f}",
        "times faster": "{:.1f}",
    }
    for _, row in table.iterrows():
        cells = [
            "" if pd.isna(row[name]) else formats.get(name, "{}").format(row[name]) for name in table.columns
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if "lineage" in table.attrs:
        lines += [
            "",
            f"The teacher that these networks were made from or taught by: {table.attrs['lineage']}. Points are against it.",
        ]
    return [*lines, ""]


def markdown() -> str:
    """Return the README's results section, made from the files alone; what has not been measured is not mentioned."""
    lines = []
    if (RESULTS / "teacher.csv").exists():
        for model, cycles in read("teacher").groupby("model", sort=False):
            row = cycles.iloc[-1]
            last = cycles.iloc[-int(row["cycle"]) :]
            sizes = last["pixels"] if "pixels" in last else pd.Series(float("nan"), last.index)
            small = ["" if pd.isna(size) else f" ({size:.0f} x {size:.0f} pixels)" for size in sizes]
            epochs = " + ".join(f"{cycle}{size}" for cycle, size in zip(last["epochs"], small, strict=True))
            who = "**Teacher**, VGG-19" if model == "vgg19" else f"**Begun**, {model}"
            epochs += " epoch" if epochs == "1" else " epochs"
            lines.append(
                f"- {who} on CIFAR-10, {epochs} on {row['device']}: {accuracy(row)} on the test split."
            )
    if (RESULTS / "distillation.csv").exists() and _experiments(read("distillation")):
        row, wide = pairs(read("distillation"))
        gains = wide["taught"] - wide["alone"]
        if len(gains) > 1:
            lines.append(
                f"- **Distillation**: {row['student']} taught by {row['teacher']} on {row['train_pictures']:,} pictures "
                f"for {row['epochs']} epochs "
                f"reaches {wide['taught'].mean():.1f}% on the test split, {wide['alone'].mean():.1f}% alone: a mean gain of "
                f"{gains.mean():.2f} points (standard error {gains.std() / len(gains) ** 0.5:.2f}, {len(gains)} seeds, in pairs)."
            )
            if "smoothed" in wide:
                lines[-1] += f" With smoothed labels instead of a teacher: {wide['smoothed'].mean():.1f}%."
            if gains.mean() <= 2 * gains.std() / len(gains) ** 0.5:
                lines[-1] += " So short a training shows no gain; notebook 01 says what may be behind it."
    if (RESULTS / "students.csv").exists():
        lines += _student_lines(read("students"))
    lines += _table_lines()
    runs = _compressed("pruning", "Pruning", _pruned)
    runs += _compressed(
        "channels", "Channel pruning", lambda run: f"{run['parameters'] / 1e6:.2f}M parameters"
    )
    runs += _compressed("low_rank", "Low rank", lambda run: f"{run['parameters'] / 1e6:.2f}M parameters")
    if runs:
        lines += [
            "<details><summary>Every single run of pruning and factorization, in PyTorch</summary>",
            "",
            *runs,
            "",
            "</details>",
            "",
        ]
    if (RESULTS / "speed.csv").exists():
        row = read("speed").dropna(subset=["ratio"]).iloc[-1]
        lines.append(
            f"- **The loop** trains VGG-19 at {row['fit_images_per_second']:.1f} pictures/s on {row['device']}, {row['ratio']:.2f} times "
            f"as fast as the plain loop of PyTorch's CIFAR-10 tutorial ({row['tutorial_images_per_second']:.1f}), "
            f"in batches of {row['batch_size']:.0f}."
        )
    return "\n".join(lines)


def _student_lines(runs: pd.DataFrame) -> list[str]:
    """Return a line for each student that was trained on all pictures: taught, and where there is such a row, alone."""
    lines = []
    for (student, epochs, seed), same in runs.groupby(["student", "epochs", "seed"], sort=False):
        by = same.drop_duplicates("taught_by", keep="last").set_index("taught_by")
        said = [
            f"{'alone' if who == 'nobody' else f'taught by {who}'} {accuracy(run)}"
            for who, run in by.iterrows()
        ]
        run = by.iloc[0]
        more = f"{epochs} more" if pd.notna(run.get("before")) else epochs
        lines.append(
            f"- **Student**, {student} ({run['parameters'] / 1e6:.2f}M parameters), {run['train_pictures']:,} pictures, {more} epochs, "
            f"seed {seed}: {'; '.join(said)} on the test split."
        )
    return lines


def _pruned(run: pd.Series) -> str:
    if not run["sparsity"]:
        return "dense control, nothing pruned"
    return f"{run['sparsity']:.0%} of the weights zero ({run['method']})"


def _compressed(name: str, title: str, say: Callable[[pd.Series], str]) -> list[str]:
    """Return a line for each trained row of a technique: what was done, accuracy and the teacher's, bytes, milliseconds."""
    if not (RESULTS / f"{name}.csv").exists():
        return []
    lines = []
    runs = read(name)
    for _, run in runs[runs["epochs"] > 0].iterrows():
        after, before = accuracy(run), accuracy(run, "teacher_correct")
        now, was = run["latency_ms_1_threads"], run["teacher_latency_ms_1_threads"]
        lines.append(
            f"- **{title}**, {say(run)}, {run['epochs']:.0f} more epoch{'' if run['epochs'] == 1 else 's'}: {after} on the test split, "
            f"{100 * (float(after) - float(before)):+.1f} points; {run['teacher_bytes'] / run['bytes']:.1f} times smaller on disk "
            f"({run['storage']}; {run['teacher_half_zip_bytes'] / run['half_bytes']:.1f} times, both coded, in half precision); "
            f"{was / now:.1f} times the speed ({now:.1f} ms, PyTorch, batch 1, 1 thread)."
        )
    return lines


def write_readme(path: Path = HOME / "README.md") -> None:
    """Put ``markdown()`` between the README's two results marks."""
    page = checks.path("path", path).read_text("utf-8")
    if page.count(MARKS[0]) != 1 or MARKS[1] not in page.partition(MARKS[0])[2]:
        raise ValueError(f"path must be a page with the two results marks, got {str(path)!r}")
    before, rest = page.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    with checks.atomic_path(path) as part:
        part.write_text(f"{before}{MARKS[0]}\n{markdown()}\n{MARKS[1]}{after}", "utf-8")


def _commit() -> str:
    """Return the checked-out commit, with a + if helpers have changed since."""
    try:
        git = ["git", "-C", str(HOME)]
        commit = subprocess.run(
            [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "helpers"], capture_output=True, text=True, check=True
        ).stdout.strip()
        return commit + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


COMMIT = _commit()  # of the code that was loaded, not of whatever is checked out hours later
