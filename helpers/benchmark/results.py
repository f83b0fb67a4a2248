"""What was measured: tables of one schema each, each network's answers, and the query that compares.

data/results/networks.csv has a row per network, seed and file format; scans.csv one per layer and ratio;
speed.csv one per race with PyTorch's own loop. Each row says which command made it, where and when.
"""

import datetime
import functools
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
from helpers.files import atomic_path, writable
from helpers.processor import describe_device
from helpers.types import AnyPath, Names, Whole, checked

PUBLISHED = HOME / "data" / "results"
PROVENANCE = ("command", "commit", "device", "threads", "seed", "date", "versions")
SCHEMA = {
    "networks": (
        "network", "format", "data", "start", "teacher", "reference", "epochs", "pictures", "seconds",
        "weights", "parameters", "nonzeros", "macs", "as_is", "recalibrated", "bytes", "zip_bytes",
        "correct", "total", "agreeing", "latency_ms", "latency_low_ms", "latency_high_ms",
        "reference_ms", "memory_mb", *PROVENANCE,
    ),
    "scans": ("weights", "unit", "layer", "ratio", "correct", "recalibrated_correct", "total", *PROVENANCE),
    "speed": ("what", "unit", "ours", "theirs", "ratio", "library", *PROVENANCE),
}  # fmt: skip
AGAINST = ("times_smaller", "times_faster", "reference_correct", "points", "p_value", "largest_loss")
TableName = Annotated[str, Field(pattern=f"^({'|'.join(SCHEMA)})$")]


def state() -> PartialState:
    """Return which process this is, of how many, and on which device ``fit`` trains."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


# -- where a row comes from -------------------------------------------------------------------------------


def provenance(seed: int = 0) -> dict[str, object]:
    """Return the columns that every row ends with; ``device`` names the GPU and the CPU that was timed."""
    device, processor = state().device, describe_device("cpu")
    command = [Path(sys.executable).name.rstrip("0123456789."), "-m", "helpers.benchmark", *sys.argv[1:]]
    return {
        "command": shlex.join(command),
        "commit": commit(),
        "device": processor if device.type == "cpu" else f"{describe_device(device)}, beside {processor}",
        "threads": torch.get_num_threads(),
        "seed": seed,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "versions": f"python {platform.python_version()}, torch {version('torch')}, "
        f"torchvision {version('torchvision')}",
    }


@functools.cache
def commit() -> str:
    """Return the commit checked out when it was first asked for, with a + if helpers had changed since."""
    git = ["git", "-C", str(HOME)]
    options = {"capture_output": True, "text": True, "check": True}
    try:
        name = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], **options).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", "helpers"], **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")


# -- tables -----------------------------------------------------------------------------------------------


@checked
def append(name: TableName, rows: list[dict], folder: AnyPath = PUBLISHED) -> Path:
    """Add rows to a table, all or none; two writers wait for each other. Return the file's path.

    Raises:
        OSError: the folder cannot be written; the file stays as it was.
    """
    for row in rows:
        if set(row) != set(SCHEMA[name]):
            raise ValueError(
                f"rows must have the columns {', '.join(SCHEMA[name])}; not {set(row) ^ {*SCHEMA[name]}}"
            )
    path = folder / f"{name}.csv"
    writable(path)  # a lock would say so without the file's name
    with FileLock(folder / f".{name}.lock"):
        text = path.read_text("utf-8") if path.exists() else ""
        table = pd.DataFrame(rows, columns=SCHEMA[name], dtype=object)
        with atomic_path(path) as part, part.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            table.to_csv(file, index=False, header=not text, lineterminator="\n")
    return path


@checked
def read(name: TableName, folder: AnyPath = PUBLISHED) -> pd.DataFrame:
    """Read a table; one that nobody has written yet has no rows."""
    path = folder / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=SCHEMA[name])


def latest(folder: Path = PUBLISHED) -> pd.DataFrame:
    """Return the last row of each network, seed and format."""
    return read("networks", folder).drop_duplicates(["network", "seed", "format", "data"], keep="last")


def known(folder: Path) -> pd.DataFrame:
    """Return the latest published rows, and behind them those of ``folder`` if it is another one."""
    return latest(PUBLISHED) if folder == PUBLISHED else pd.concat([latest(PUBLISHED), latest(folder)])


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
        raise ValueError(f"name must be of a network that has a row for {format!r}, got {name!r}")
    return own.sort_values("seed").iloc[0]


@checked
def by_seed(folder: AnyPath = PUBLISHED, **arms: str) -> pd.DataFrame:
    """Return accuracies in percent: a row per seed that all have, a column per arm (name=network)."""
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


# -- answers ----------------------------------------------------------------------------------------------


def answers_path(row: Mapping, folder: Path = PUBLISHED) -> Path:
    """Return where a row's answers lie, by network, seed, format and the first digits of the weights."""
    parts = (
        str(row[key]).replace(" ", "_").removeprefix("sha256:")
        for key in ("network", "seed", "format", "weights")
    )
    return folder / "answers" / f"{'-'.join(parts)}.npz"


def keep_answers(row: Mapping, classes: Tensor, folder: Path = PUBLISHED) -> None:
    """Write the class that a network gave each picture, zipped: about half a byte each."""
    with atomic_path(answers_path(row, folder)) as part, part.open("wb") as file:
        np.savez_compressed(file, classes.to(torch.uint8).numpy())


def answers(row: Mapping, folder: Path = PUBLISHED) -> Tensor | None:
    """Return the classes that ``keep_answers`` wrote: N, int64; None where there are none."""
    path = answers_path(row, folder)
    return _classes(path) if path.exists() else None


def _classes(path: Path) -> Tensor:
    with np.load(path, allow_pickle=False) as found:
        return torch.from_numpy(found["arr_0"]).long()


# -- the one query ----------------------------------------------------------------------------------------


@checked
def beside(names: Names = (), folder: AnyPath = PUBLISHED, every_seed: bool = False) -> pd.DataFrame:
    """Put networks beside the network that each is compared with.

    Args:
        names: of recipes. Default: all that have rows.
        folder: where the tables lie.
        every_seed: a row for each; otherwise for the first alone, the network that others are made from.

    Returns:
        The last row of each network and format, and: times_smaller (bytes of the reference in float32
        over those of this file, zipped where it is int8 or holds zeros), times_faster, reference_correct,
        points (ahead of the reference), p_value and largest_loss (of the pairs on the same pictures, see
        ``evaluation.Paired``; NaN where answers were not kept). A reference that is not in ``folder`` is
        looked up among the published ones.
    """
    rows = latest(folder)
    chosen = rows[rows["network"].isin(names)] if names else rows
    if not every_seed:
        chosen = chosen[chosen["seed"] == chosen.groupby("network")["seed"].transform("min")]
    references = known(folder)
    found = [row | _against(row, references, folder) for row in chosen.to_dict("records")]
    return pd.DataFrame(found, columns=[*SCHEMA["networks"], *AGAINST])


def _against(row: dict, rows: pd.DataFrame, folder: Path) -> dict:
    name, _, weights = row["reference"].partition("@")
    own = {
        one["format"]: one
        for one in rows[(rows["network"] == name) & (rows["weights"] == weights)].to_dict("records")
    }
    reference = own.get("torch" if row["format"] == "torch" else "onnx", own.get("torch"))
    if reference is None:
        return dict.fromkeys(AGAINST, float("nan"))
    sparse = row["nonzeros"] < 0.9 * row["parameters"]
    zipped = "int8" in row["format"] or (sparse and row["format"] != "torch")
    found = {
        "times_smaller": reference["bytes"] / row["zip_bytes" if zipped else "bytes"],
        "times_faster": row["reference_ms"] / row["latency_ms"],
        "reference_correct": reference["correct"],
        "points": 100 * (row["correct"] / row["total"] - reference["correct"] / reference["total"]),
        "p_value": float("nan"),
        "largest_loss": float("nan"),
    }
    ours, theirs = answers(row, folder), answers(reference, folder)
    theirs = answers(reference) if theirs is None else theirs
    if ours is not None and theirs is not None and len(ours) == len(theirs) and row["total"] == 10_000:
        pair = paired(ours, theirs, labels())
        found |= {"p_value": pair.p_value, "largest_loss": pair.largest_loss}
    return found


@checked
def compared(names: Names = (), formats: Names = (), folder: AnyPath = PUBLISHED) -> pd.DataFrame:
    """Return ``beside`` for people: a row per network and format, the mean where there are several seeds.

    Args:
        names: of recipes. Default: all that have rows.
        formats: of files. Default: all.
        folder: where the tables lie.

    Returns:
        network, format, epochs, seeds, accuracy (percent; k of n for a single seed), points (against the
        reference), spread (their standard deviation over seeds), paired p (of the first seed), times smaller,
        times faster.
    """
    rows, every = [], beside(names, folder, every_seed=True)
    for (name, form), same in every.groupby(["network", "format"], sort=False):
        same = same.sort_values("seed")
        first, mean, seeds = same.iloc[0], same.mean(numeric_only=True), len(same)
        if formats and form not in formats:
            continue
        counts = f"{first['correct']:,.0f} of {first['total']:,.0f}" if seeds == 1 else f"{seeds} seeds"
        share = 100 * (same["correct"] / same["total"]).mean()
        rows.append({
            "network": name, "format": form, "epochs": first["epochs"], "seeds": seeds,
            "accuracy": f"{share:.1f}% ({counts})" if pd.notna(share) else "", "points": mean["points"],
            "spread": same["points"].std(), "paired p": first["p_value"],
            "times smaller": mean["times_smaller"], "times faster": mean["times_faster"],
        })  # fmt: skip
    return pd.DataFrame(rows)


@checked
def called(network: str) -> str:
    """Return what the lessons call a network: fast_2m for fast_convnet_2m_taught, VGG-19 for teacher."""
    short = network.replace("_convnet", "").removesuffix("_taught").replace("_alone", " alone")
    return {"teacher": "VGG-19"}.get(network, short)


@functools.cache
def labels() -> Tensor:
    """Return the true classes of CIFAR-10's test pictures, from the file beside the answers."""
    path = PUBLISHED / "answers" / "labels.npz"
    return _classes(path) if path.exists() else load_data("cifar10").test.labels
