"""What was measured: tables of one schema each, every network's answers to every picture, and the one query that compares them.

data/results/networks.csv has a row per network, seed and file format; scans.csv one per layer and ratio; speed.csv one per race with
another library. Each row says which command made it, with which commit, on which processor, when. In data/results/answers lies the
class that each network gave each picture.
"""

from __future__ import annotations

import csv
import datetime
import functools
import io
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from filelock import FileLock
from pydantic import Field
from torch import Tensor

from helpers.data import HOME, load_data
from helpers.evaluation import Accuracy, paired
from helpers.files import atomic_path
from helpers.types import AnyPath, Names, Whole, checked

PUBLISHED = HOME / "data" / "results"
PROVENANCE = ("command", "commit", "device", "threads", "seed", "date", "versions")
SCHEMA = {
    "networks": (
        "network", "format", "data", "start", "teacher", "reference", "epochs", "pictures", "seconds", "weights", "parameters",
        "nonzeros", "macs", "as_is", "recalibrated", "bytes", "zip_bytes", "correct", "total", "agreeing", "latency_ms",
        "latency_low_ms", "latency_high_ms", "reference_ms", "memory_mb", *PROVENANCE,
    ),
    "scans": ("weights", "unit", "layer", "ratio", "correct", "recalibrated_correct", "total", *PROVENANCE),
    "speed": ("what", "unit", "ours", "theirs", "ratio", "library", *PROVENANCE),
}  # fmt: skip
IMAGENET_VGG19_BYTES = (
    4 * 143_667_240
)  # torchvision's VGG-19 with its 4096-wide classifier: what most claims are made against
MARKS = (
    "<!-- results: written by helpers.benchmark.results from data/results -->",
    "<!-- end of results -->",
)
TableName = Annotated[str, Field(pattern=f"^({'|'.join(SCHEMA)})$")]


def state() -> PartialState:
    """Return which process this is, of how many, and on which device ``fit`` trains; heeds ACCELERATE_USE_CPU before any ``fit``."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


# -- where a row comes from ------------------------------------------------------------------------------------------


def provenance(seed: int = 0) -> dict[str, object]:
    """Return the columns that every row ends with. Where a GPU trains, ``device`` names both: latencies are the CPU's."""
    device, processor = state().device, describe_device("cpu")
    command = [Path(sys.executable).name.rstrip("0123456789."), "-m", "helpers.benchmark", *sys.argv[1:]]
    return {
        "command": shlex.join(command),
        "commit": commit(),
        "device": processor if device.type == "cpu" else f"{describe_device(device)}, beside {processor}",
        "threads": torch.get_num_threads(),
        "seed": seed,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "versions": f"python {platform.python_version()}, torch {version('torch')}, torchvision {version('torchvision')}",
    }


def describe_device(device: str | torch.device = "cpu") -> str:
    """Name the processor that ``device`` stands for, for example "cpu" or "cuda:0", and what it can do with 8-bit numbers."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_name(device)
    if kind != "cpu":
        return f"{platform.processor() or platform.machine()} GPU"
    info, said = Path("/proc/cpuinfo"), {}
    for line in info.read_text("utf-8").splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        said.setdefault(key.strip(), value.strip())
    name = said.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in said:  # a cloud's processors of one name may be years apart
        name += f" (family {said['cpu family']}, model {said.get('model')})"
    units = [unit.upper() for unit in ("vnni", "amx") if unit in said.get("flags", "")]
    return ", ".join([name, f"{os.cpu_count()} cores", *units])


@functools.cache
def commit() -> str:
    """Return the commit that was checked out when it was first asked for, with a + if helpers had changed since."""
    git = ["git", "-C", str(HOME)]
    options = {"capture_output": True, "text": True, "check": True}
    try:
        name = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], **options).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", "helpers"], **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")


# -- tables ----------------------------------------------------------------------------------------------------------


@checked
def append(name: TableName, rows: list[dict], folder: AnyPath = PUBLISHED) -> Path:
    """Add rows to a table, all or none; two writers wait for each other. Return the file's path.

    Raises:
        OSError: the folder cannot be written; the file stays as it was.
    """
    for row in rows:
        if set(row) != set(SCHEMA[name]):
            raise ValueError(
                f"rows must have the columns {', '.join(SCHEMA[name])}; differing: {set(row) ^ set(SCHEMA[name])}"
            )
    path = folder / f"{name}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):
        text = path.read_text("utf-8") if path.exists() else ""
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, SCHEMA[name], lineterminator="\n")
        if not text:
            writer.writeheader()
        writer.writerows(rows)
        with atomic_path(path) as part:
            part.write_text(text + buffer.getvalue(), "utf-8")
    return path


@checked
def read(name: TableName, folder: AnyPath = PUBLISHED) -> pd.DataFrame:
    """Read a table; one that nobody has written yet has no rows."""
    path = folder / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=SCHEMA[name])


def latest(folder: Path = PUBLISHED) -> pd.DataFrame:
    """Return the last row of each network, seed and format."""
    return read("networks", folder).drop_duplicates(["network", "seed", "format"], keep="last")


@checked
def row(
    name: str, format: str = "torch", seed: Whole | None = None, folder: AnyPath = PUBLISHED
) -> pd.Series:
    """Return the last row of one file of a network; ``seed`` None: of its first seed.

    Raises:
        ValueError: there is none.
    """
    rows = latest(folder)
    own = rows[(rows["network"] == name) & (rows["format"] == format)]
    own = own if seed is None else own[own["seed"] == seed]
    if own.empty:
        raise ValueError(
            f"name must be of a network that has a row for {format!r}, got {name!r}: python -m helpers.benchmark {name}"
        )
    return own.sort_values("seed").iloc[0]


@checked
def by_seed(folder: AnyPath = PUBLISHED, **arms: str) -> pd.DataFrame:
    """Return accuracies in percent, a row per seed that every arm has, a column per arm: ``by_seed(alone="micro12_alone", ...)``."""
    rows = latest(folder)
    rows = rows[rows["format"] == "torch"].set_index(["network", "seed"])
    share = 100 * rows["correct"] / rows["total"]
    return pd.DataFrame({arm: share.loc[name] for arm, name in arms.items()}).dropna()


@checked
def accuracy(row: pd.Series) -> Accuracy:
    """Return the accuracy that a row holds."""
    if not {"correct", "total"} <= set(row.index) or row[["correct", "total"]].isna().any():
        raise ValueError(f"row must have correct and total, got {dict(row)}")
    return Accuracy(int(row["correct"]), int(row["total"]))


# -- answers ---------------------------------------------------------------------------------------------------------


def answers_path(row: Mapping, folder: Path = PUBLISHED) -> Path:
    """Return where the answers of a row's network lie: named by network, seed, format and the first digits of its weights."""
    name = f"{row['network']}-{row['seed']}-{str(row['format']).replace(' ', '_')}-{str(row['weights']).removeprefix('sha256:')}"
    return folder / "answers" / f"{name}.npy"


def keep_answers(row: Mapping, classes: Tensor, folder: Path = PUBLISHED) -> None:
    """Write the class that a network gave each picture, a byte each."""
    path = answers_path(row, folder)
    with atomic_path(path) as part, part.open("wb") as file:
        np.save(file, classes.to(torch.uint8).numpy(), allow_pickle=False)


def answers(row: Mapping, folder: Path = PUBLISHED) -> Tensor | None:
    """Return the classes that ``keep_answers`` wrote: N, int64; None where there are none."""
    path = answers_path(row, folder)
    return torch.from_numpy(np.load(path, allow_pickle=False)).long() if path.exists() else None


# -- the one query ---------------------------------------------------------------------------------------------------


@checked
def beside(names: Names = (), folder: AnyPath = PUBLISHED) -> pd.DataFrame:
    """Put networks beside the network that each is compared with.

    Args:
        names: of recipes. Default: all that have rows.
        folder: where the tables lie.

    Returns:
        The last row of each network, seed and format, and: times_smaller (bytes of the reference, in float32, over those of this
        file; zipped where it is int8), times_faster, reference_correct, points (ahead of the reference), and p_value (exact McNemar
        test on the same pictures; NaN where the answers of one were not kept).
    """
    rows = latest(folder)
    chosen = rows[rows["network"].isin(names)] if names else rows
    return pd.DataFrame([row | _against(row, rows, folder) for row in chosen.to_dict("records")])


def _against(row: dict, rows: pd.DataFrame, folder: Path) -> dict:
    name, _, weights = row["reference"].partition("@")
    own = {
        one["format"]: one
        for one in rows[(rows["network"] == name) & (rows["weights"] == weights)].to_dict("records")
    }
    reference = own.get("torch" if row["format"] == "torch" else "onnx", own.get("torch"))
    if reference is None:
        return dict.fromkeys(
            ("times_smaller", "times_faster", "reference_correct", "points", "p_value"), float("nan")
        )
    shipped = row["zip_bytes"] if "int8" in row["format"] else row["bytes"]
    found = {
        "times_smaller": reference["bytes"] / shipped,
        "times_faster": row["reference_ms"] / row["latency_ms"],
        "reference_correct": reference["correct"],
        "points": 100 * (row["correct"] / row["total"] - reference["correct"] / reference["total"]),
        "p_value": float("nan"),
    }
    ours, theirs = answers(row, folder), answers(reference, folder)
    if ours is not None and theirs is not None and len(ours) == len(theirs) and row["total"] == 10_000:
        found["p_value"] = paired(ours, theirs, labels()).p_value
    return found


@functools.cache
def labels() -> Tensor:
    """Return the true classes of CIFAR-10's test pictures, from the file beside the answers: it needs no pictures."""
    path = PUBLISHED / "answers" / "labels.npy"
    return torch.from_numpy(np.load(path)).long() if path.exists() else load_data("cifar10").test.labels


# -- README ----------------------------------------------------------------------------------------------------------

COLUMNS = {  # of README's tables: column, and how its numbers are written
    "times smaller": "{:.1f}", "against 575 MB": "{:.0f}", "points": "{:+.2f}", "paired p": "{:.2g}", "times faster": "{:.1f}",
}  # fmt: skip


@checked
def compared(names: Names = (), formats: Names = (), folder: AnyPath = PUBLISHED) -> pd.DataFrame:
    """Return ``beside`` for people: a row per network and format, the mean where there are several seeds.

    Args:
        names: of recipes. Default: all that have rows.
        formats: of files. Default: all.
        folder: where the tables lie.

    Returns:
        network, format, epochs, seeds, accuracy (percent, and k of n for a single seed), points (against the reference), spread (their
        standard deviation over seeds), paired p (of the first seed), times smaller, times faster.
    """
    every = beside(names, folder)
    rows = []
    for (name, form), same in every.groupby(["network", "format"], sort=False):
        if formats and form not in formats:
            continue
        share = 100 * (same["correct"] / same["total"]).mean()
        counts = (
            f" ({same['correct'].iloc[0]:,.0f} of {same['total'].iloc[0]:,.0f})"
            if len(same) == 1
            else f" ({len(same)} seeds)"
        )
        row = {"network": name, "format": form, "epochs": same["epochs"].iloc[0], "seeds": len(same)}
        row |= {
            "accuracy": f"{share:.1f}%{counts}" if pd.notna(share) else "",
            "points": same["points"].mean(),
        }
        row |= {"spread": same["points"].std(), "paired p": same["p_value"].iloc[0]}
        rows.append(
            row | {"times smaller": same["times_smaller"].mean(), "times faster": same["times_faster"].mean()}
        )
    return pd.DataFrame(rows)


def series_table(folder: Path = PUBLISHED) -> pd.DataFrame:
    """Return README's table: the labelled recipes that have rows, as the file that would be shipped and in int8.

    Returns:
        model, times smaller, against 575 MB (the same file against torchvision's VGG-19 for ImageNet), accuracy, points, paired p,
        times faster, usually claimed.
    """
    from helpers.benchmark.recipes import NETWORKS

    rows, table = [], compared(folder=folder)
    for name, recipe in NETWORKS.items():
        shown = (
            ("torch", "onnx int8") if "pruned" in recipe.label else ("onnx", "onnx int8")
        )  # zeros are stored by PyTorch's file alone
        for form in shown if recipe.label and len(table) else ():
            for row in table[(table["network"] == name) & (table["format"] == form)].to_dict("records"):
                row["model"] = recipe.label + (", int8" if form == "onnx int8" else "")
                row["against 575 MB"] = row["times smaller"] * IMAGENET_VGG19_BYTES / (4 * 20_040_522)
                row["usually claimed"] = (
                    "{:g} x, -{:g} points, {:g} x".format(*recipe.claimed) if recipe.claimed else ""
                )
                rows.append(row)
    return pd.DataFrame(rows, columns=["model", "accuracy", *COLUMNS, "usually claimed"])


def markdown(folder: Path = PUBLISHED) -> str:
    """Return README's results section, made from the tables alone."""
    rows, speed = latest(folder), read("speed", folder)
    lines = []
    for _, row in rows[
        rows["network"].isin(["teacher", "resnet50"]) & (rows["format"] == "torch")
    ].iterrows():
        who = "**Teacher**, VGG-19" if row["network"] == "teacher" else "**Begun**, ResNet-50"
        lines.append(
            f"- {who}, last trained for {row['epochs']} epochs on {row['device']}: {accuracy(row)} on the test split."
        )
    for _, row in speed[speed["what"] == "training VGG-19"].tail(1).iterrows():
        lines.append(
            f"- **The loop** trains VGG-19 at {row['ours']:.1f} pictures/s on {row['device']}, {row['ratio']:.2f} times as fast as "
            f"{row['library']} ({row['theirs']:.1f})."
        )
    every = compared(folder=folder)
    every = every[~every["network"].str.startswith(("curve_", "grid_"))] if len(every) else every
    details = "<details><summary>Every network and every file of it</summary>"
    return "\n".join(
        [*lines, "", _page(series_table(folder)), "", details, "", _page(every), "", "</details>"]
    )


def _page(table: pd.DataFrame) -> str:
    shown = table.copy().astype(object)
    for column, form in {**COLUMNS, "spread": "{:.2f}"}.items():
        if column in shown:
            shown[column] = ["" if pd.isna(value) else form.format(value) for value in table[column]]
    return shown.fillna("").to_markdown(index=False, disable_numparse=True)


@checked
def write_readme(path: AnyPath = HOME / "README.md") -> None:
    """Put ``markdown()`` between the README's two results marks."""
    page = path.read_text("utf-8")
    if page.count(MARKS[0]) != 1 or MARKS[1] not in page.partition(MARKS[0])[2]:
        raise ValueError(f"path must be a page with the two results marks, got {str(path)!r}")
    before, rest = page.split(MARKS[0])
    with atomic_path(path) as part:
        part.write_text(f"{before}{MARKS[0]}\n{markdown()}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", "utf-8")
