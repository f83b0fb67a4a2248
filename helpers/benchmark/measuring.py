"""What a kept network costs and scores, in every file format of its recipe: rows of networks.csv."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.benchmark import set_torch_threads

from helpers import export, profiling
from helpers.benchmark import results
from helpers.benchmark.bench import Bench
from helpers.benchmark.recipe import Recipe, opened
from helpers.data import Data, Split
from helpers.evaluation import predict
from helpers.files import fingerprint

AGREEMENT = 0.95  # share of pictures that must keep their class in int8
WRITERS: dict[
    str, tuple[str, Callable]
] = {  # suffix, function of model, path, pictures to compare and to calibrate on
    "onnx": (".onnx", lambda model, path, some, few: export.to_onnx(model, path, some)),
    "litert": (".tflite", lambda model, path, some, few: export.to_litert(model, path, some)),
    "litert int8": (
        ".tflite",
        lambda model, path, some, few: export.to_litert(model, path, some, int8=True, calibration=few),
    ),
    "executorch": (".pte", lambda model, path, some, few: export.to_executorch(model, path, some)),
    "coreml": (".mlpackage", lambda model, path, some, few: export.to_coreml(model, path, some)),
    "coreml int8": (
        ".mlpackage",
        lambda model, path, some, few: export.to_coreml(model, path, some, weights="int8"),
    ),
    "torchserve": (".mar", lambda model, path, some, few: export.to_torchserve(model, path, some)),
}


def record(row: dict, path: Path, recipe: Recipe, data: Data, bench: Bench) -> None:
    """Write a kept network in its formats, measure each file, and append the rows with their answers.

    Args:
        row: what is known of the network already.
        path: where it is kept.
        recipe: its recipe.
        data: its pictures, prepared.
        bench: where the rows go.
    """
    name, split = row["network"], getattr(data, recipe.split)
    model = opened(name, path)
    own_reference = recipe.reference == name
    row["weights"] = fingerprint(path)
    row["reference"] = f"{name}@{row['weights']}" if own_reference else bench.mark(recipe.reference)
    row |= {"parameters": profiling.count_parameters(model), "total": len(split)}
    row["nonzeros"] = sum(int(parameter.count_nonzero()) for parameter in model.parameters())
    row["macs"] = profiling.count_macs(model, (1, *split.images.shape[1:]))
    reference = opened(recipe.reference, path if own_reference else bench.file(recipe.reference))
    expected, rows, files = predict(model.to(results.state().device), split).argmax(1), [], {}
    model.cpu()
    with tempfile.TemporaryDirectory() as folder:
        for form in bench.formats(recipe):
            if form == "torch":
                answers, measured = expected, _torch(model, path, reference, split, bench)
            else:
                files[form] = _write(form, model, Path(folder), files, data, split, bench)
                answers = _answers(files[form], split)
                measured = _file(files[form], reference, row["reference"], split, bench)
            measured |= {"format": form, "correct": int((answers == split.labels).sum())}
            measured["agreeing"] = float((answers == expected).float().mean())
            rows.append(row | measured)
            results.keep_answers(rows[-1], answers, bench.results)
    where = results.provenance(row["seed"])
    results.append("networks", [one | where for one in rows], bench.results)
    said = ", ".join(f"{one['format']} {results.accuracy(pd.Series(one))}" for one in rows)
    print(f"{name}, seed {row['seed']}: {said}")


def _torch(model: nn.Module, path: Path, reference: nn.Module, split: Split, bench: Bench) -> dict:
    runs = {who: _forward(network, split) for who, network in (("own", model), ("reference", reference))}
    sizes = {"bytes": profiling.smallest_file(model)[1], "zip_bytes": path.stat().st_size, "memory_mb": ""}
    return sizes | _latencies(runs, bench)


def _file(path: Path, reference: nn.Module, mark: str, split: Split, bench: Bench) -> dict:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    found = {"bytes": sum(each.stat().st_size for each in files), "zip_bytes": export.zipped_bytes(path)}
    found["memory_mb"], runs = "", {}
    if path.suffix in (".onnx", ".tflite", ".pte"):  # what runs on this machine
        beside = _reference_onnx(reference, mark, split, bench)
        runs = {who: _session(each, split) for who, each in (("own", path), ("reference", beside))}
    if runs and not bench.trial:
        memory = export.peak_memory(path)
        found["memory_mb"] = round(memory["peak_mb"] - memory["baseline_mb"], 1)
    return found | _latencies(runs, bench)


def _write(
    form: str, model: nn.Module, folder: Path, files: dict[str, Path], data: Data, split: Split, bench: Bench
) -> Path:
    some, few = split.take(slice(0, 200)), data.train.take(slice(0, 500))
    if form == "onnx int8":  # from the file that is there; a network trained for seconds rounds badly
        least = 0.0 if bench.trial else AGREEMENT
        return export.quantize_onnx(files["onnx"], folder / "int8.onnx", few, some, agreement=least)
    suffix, write = WRITERS[form]
    return write(model, folder / f"{form.replace(' ', '_')}{suffix}", some, few)


def _answers(path: Path, split: Split) -> Tensor:
    if path.suffix == ".mar":  # its handler answers with a class and a probability, not with logits
        return export.archive_labels(path, split)
    logits = export.coreml_logits if path.suffix == ".mlpackage" else export.logits
    return logits(path, split).argmax(1)


def _reference_onnx(reference: nn.Module, mark: str, split: Split, bench: Bench) -> Path:
    """Return the reference as an ONNX file, written once; ``mark`` is its name and its weights."""
    path = bench.work / "references" / f"{mark.rpartition(':')[2]}-{split.images.shape[-1]}.onnx"
    return path if path.exists() else export.to_onnx(reference, path, split.take(slice(0, 200)))


def _forward(model: nn.Module, split: Split) -> Callable[[], object]:
    example = torch.zeros(1, *split.images.shape[1:]).contiguous(memory_format=torch.channels_last)
    laid_out = model.to(memory_format=torch.channels_last).eval()
    return lambda: laid_out(example)


def _session(path: Path, split: Split) -> Callable[[], object]:
    session, example = export.open_session(path, 1), np.zeros((1, *split.images.shape[1:]), np.float32)
    return lambda: session(example)


def _latencies(runs: dict[str, Callable[[], object]], bench: Bench) -> dict[str, float | str]:
    # a network and its reference in turns, one picture, one thread; empty where nothing runs here
    names = ("latency_ms", "latency_low_ms", "latency_high_ms")
    if not runs:
        return dict.fromkeys((*names, "reference_ms"), "")
    with set_torch_threads(1), torch.no_grad():
        timed = profiling.time_in_turns(runs, 5 if bench.trial else 100)
    found = {name: timed["own"][name] for name in names} | {"reference_ms": timed["reference"]["latency_ms"]}
    return {name: round(value, 4) for name, value in found.items()}
