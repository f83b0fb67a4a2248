"""What an exported file gives and costs, in its own runtime on the CPU: accuracy, latency, memory, bytes."""

import functools
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

import pandas as pd
from torch import Tensor

from helpers.data import HOME
from helpers.deploy.runtimes import existing, needs, onnx_inference, open_session, thread_count
from helpers.deploy.writing import Pictures, answers
from helpers.evaluation import Accuracy, right
from helpers.profiling import time_in_turns
from helpers.types import AnyPath, Count, Threads, by_name, checked, whole

Files, Repeats = by_name(AnyPath), whole(3)


@checked
def logits(
    path: AnyPath, pictures: Pictures, *, threads: Threads | None = None, batch_size: Count = 100
) -> Tensor:
    """Run an exported network in its own runtime on the CPU.

    Args:
        path: ending in .onnx, .tflite or .pte.
        pictures: what to classify.
        threads: of the runtime. Default: as many as PyTorch uses now.
        batch_size: pictures at a time, for .onnx; the other files take one.

    Returns:
        Logits: N x classes, float32.
    """
    return answers(open_session(path, threads), pictures, batch_size)


@checked
def accuracy(path: AnyPath, split: Pictures) -> Accuracy:
    """Measure top-1 accuracy of an exported network (.onnx, .tflite or .pte) on ``split``: see ``logits``."""
    return right(logits(path, split), split)


@checked
def latencies(
    paths: Files, *, threads: Threads | None = None, batch_size: Count = 1, repeats: Repeats = 100
) -> dict[str, dict]:
    """Time exported networks in their own runtimes on the CPU, in turns, after a warm-up, on random pictures.

    In turns, what else the machine does falls on all of them alike: time a network and its reference in one
    call.

    Args:
        paths: the files by name, ending in .onnx, .tflite or .pte.
        threads: of the runtimes. Default: as many as PyTorch uses now.
        batch_size: pictures at a time, of the size that each file takes; more than 1 only for .onnx.
        repeats: timings of each.

    Returns:
        By name: latency_ms (median), latency_low_ms and latency_high_ms (quartiles), batch, threads, repeats.
    """
    for file in paths.values():
        if existing(file).suffix != ".onnx" and batch_size != 1:
            raise ValueError(
                f"batch_size must be 1 for {file}, which takes one picture at a time; got {batch_size}"
            )
    facts = {"batch": batch_size, "threads": thread_count(threads), "repeats": repeats}
    sessions = {name: open_session(file, threads) for name, file in paths.items()}
    runs = {
        name: functools.partial(session, session.example(batch_size)) for name, session in sessions.items()
    }
    return {name: timed | facts for name, timed in time_in_turns(runs, repeats).items()}


@checked
def latency(
    path: AnyPath, *, threads: Threads | None = None, batch_size: Count = 1, repeats: Repeats = 100
) -> dict:
    """Time one exported network: see ``latencies``."""
    return latencies({"path": path}, threads=threads, batch_size=batch_size, repeats=repeats)["path"]


@checked
def peak_memory(path: AnyPath) -> dict[str, float]:
    """Measure the memory of a fresh process that loads an exported network and classifies one picture.

    Args:
        path: ending in .onnx, .tflite or .pte.

    Returns:
        peak_mb: the most MB (10^6 bytes) the process had resident, Python and the runtime included.
        baseline_mb: the same, just after it had imported the runtime (for .pte that is PyTorch too, which
        ExecuTorch's module needs).

    Raises:
        RuntimeError: the process failed; the message ends with what it printed.
    """
    open_session(path, threads=1).example(1)  # says at once what is wrong, in this process
    command = [sys.executable, "-m", "helpers.deploy.runtimes", os.fspath(path.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HOME, check=False)
    if done.returncode:
        raise RuntimeError(f"{path} cannot be loaded in a process of its own: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


@checked
def onnx_profile(
    path: AnyPath,
    *,
    threads: Threads | None = 1,
    batch_size: Count = 1,
    repeats: Count = 20,
    by: Literal["operator", "node"] = "operator",
) -> pd.DataFrame:
    """Ask onnxruntime's profiler where an ONNX network's time goes.

    Args:
        path: ending in .onnx.
        threads: of onnxruntime.
        batch_size: pictures at a time.
        repeats: runs, after one that is not counted.
        by: "operator", a row per type; or "node", a row per place in the graph.

    Returns:
        DataFrame, the slowest first. By operator: operator, calls (per run), microseconds (in all its calls;
        of each the median over the runs), share (of the operators' time, in [0, 1]). By node: node, operator,
        input (the shape of its first input), microseconds, share. Operators and names are onnxruntime's,
        after it has fused what it can.
    """
    path = existing(path, ".onnx")
    images = open_session(path, threads).example(batch_size)
    with tempfile.TemporaryDirectory() as folder, needs("onnxruntime"):
        prefix = os.fspath(Path(folder) / "profile")
        session = onnx_inference(
            path, thread_count(threads), enable_profiling=True, profile_file_prefix=prefix
        )
        taken = session.get_inputs()[0]
        for _ in range(1 + repeats):
            session.run(None, {taken.name: images})
        events = pd.DataFrame(json.loads(Path(session.end_profiling()).read_text("utf-8")))
    second_run = events.loc[events["name"] == "model_run", "ts"].nsmallest(2).iloc[-1]
    calls = events[events["name"].str.endswith("_kernel_time") & (events["ts"] >= second_run)]
    marks = r"(_nchwc|_token_\d+)*_kernel_time$"  # of fusion, too
    facts = pd.DataFrame(
        {
            "name": calls["name"],
            "node": calls["name"].str.replace(marks, "", regex=True),
            "operator": [one["op_name"] for one in calls["args"]],
            "input": [_first_shape(one) for one in calls["args"]],
            "microseconds": calls["dur"],
        }
    )
    places = facts.groupby(["name", "node", "operator", "input"], sort=False)["microseconds"]
    table = places.median().reset_index()  # of a mean, one interruption could be the largest part
    if by == "operator":
        table = table.groupby("operator")["microseconds"].agg(calls="size", microseconds="sum").reset_index()
    table["share"] = table["microseconds"] / table["microseconds"].sum()
    table = table.drop(columns="name", errors="ignore")
    return table.sort_values("microseconds", ascending=False, ignore_index=True)


@checked
def zipped_bytes(path: AnyPath) -> int:
    """Return the bytes of a zip file (deflate) that holds ``path``, a file or a folder such as a .mlpackage.

    It is what a download takes. Really written, then deleted.
    """
    weights = path.with_name(f"{path.name}.data")  # where torch.onnx.export puts them by default
    files = sorted(each for each in [existing(path), weights, *path.rglob("*")] if each.is_file())
    with tempfile.TemporaryDirectory() as folder:
        zipped = Path(folder) / "file.zip"
        with zipfile.ZipFile(
            zipped, "w", zipfile.ZIP_DEFLATED, compresslevel=9, strict_timestamps=False
        ) as archive:
            for each in files:
                archive.write(each, each.relative_to(path.parent))
        return zipped.stat().st_size


def _first_shape(arguments: dict) -> str:
    first = next(iter(arguments.get("input_type_shape", ())), {})
    return "".join(" x ".join(map(str, shape)) for shape in first.values())
