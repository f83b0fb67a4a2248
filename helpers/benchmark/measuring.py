"""What a kept network costs and scores, in every file format of its recipe: rows of networks.csv."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from torch import Tensor, nn

from helpers import export, profiling
from helpers.benchmark import results
from helpers.benchmark.bench import Bench
from helpers.benchmark.recipe import Recipe, opened
from helpers.data import Data, Split
from helpers.deploy.runtimes import RUNTIMES
from helpers.evaluation import predict
from helpers.files import fingerprint

AGREEMENT = 0.95  # share of pictures that must keep their class in int8
WRITERS: dict[str, tuple[str, Callable, dict]] = {  # suffix, writer, its settings
    "onnx": (".onnx", export.to_onnx, {}),
    "litert": (".tflite", export.to_litert, {}),
    "litert int8": (".tflite", export.to_litert, {"int8": True}),
    "executorch": (".pte", export.to_executorch, {}),
    "coreml": (".mlpackage", export.to_coreml, {}),
    "coreml int8": (".mlpackage", export.to_coreml, {"weights": "int8"}),
    "torchserve": (".mar", export.to_torchserve, {}),
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
    weights = fingerprint(path)
    row |= {
        "weights": weights,
        "reference": f"{name}@{weights}" if own_reference else bench.mark(recipe.reference),
        "parameters": profiling.count_parameters(model),
        "nonzeros": sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        "macs": profiling.count_macs(model, (1, *split.images.shape[1:])),
        "total": len(split),
    }
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
            measured |= {
                "format": form,
                "correct": int((answers == split.labels).sum()),
                "agreeing": float((answers == expected).float().mean()),
            }
            rows.append(row | measured)
            results.keep_answers(rows[-1], answers, bench.results)
    where = results.provenance(row["seed"])
    results.append("networks", [one | where for one in rows], bench.results)
    said = ", ".join(f"{one['format']} {results.accuracy(pd.Series(one))}" for one in rows)
    print(f"{name}, seed {row['seed']}: {said}")


def _torch(model: nn.Module, path: Path, reference: nn.Module, split: Split, bench: Bench) -> dict:
    sizes = {"bytes": profiling.smallest_file(model)[1], "zip_bytes": path.stat().st_size, "memory_mb": ""}
    networks, shape = {"own": model, "reference": reference}, (1, *split.images.shape[1:])
    return sizes | _times(profiling.latencies(networks, shape, threads=1, repeats=bench.repeats))


def _file(path: Path, reference: nn.Module, mark: str, split: Split, bench: Bench) -> dict:
    files = [each for each in (path, *path.rglob("*")) if each.is_file()]
    found = {"bytes": sum(each.stat().st_size for each in files), "zip_bytes": export.zipped_bytes(path)}
    if path.suffix not in RUNTIMES:  # it does not run on this machine
        return found | dict.fromkeys(("memory_mb", *profiling.LATENCY, "reference_ms"), "")
    memory = {} if bench.trial else export.peak_memory(path)
    found["memory_mb"] = round(memory["peak_mb"] - memory["baseline_mb"], 1) if memory else ""
    pair = {"own": path, "reference": _reference_onnx(reference, mark, split, bench)}
    return found | _times(export.latencies(pair, threads=1, repeats=bench.repeats))


def _write(
    form: str, model: nn.Module, folder: Path, files: dict[str, Path], data: Data, split: Split, bench: Bench
) -> Path:
    some, few = split.take(slice(0, 200)), data.train.take(slice(0, 500))
    if form == "onnx int8":  # from the file that is there; a network trained for seconds rounds badly
        least = 0.0 if bench.trial else AGREEMENT
        return export.quantize_onnx(
            files.get("onnx", model), folder / "int8.onnx", few, some, agreement=least
        )
    suffix, write, settings = WRITERS[form]
    settings = settings | ({"calibration": few} if "int8" in settings else {})
    return write(model, folder / f"{form.replace(' ', '_')}{suffix}", some, **settings)


def _answers(path: Path, split: Split) -> Tensor:
    if path.suffix == ".mar":  # its handler answers with a class and a probability, not with logits
        return export.archive_labels(path, split)
    logits = export.coreml_logits if path.suffix == ".mlpackage" else export.logits
    return logits(path, split).argmax(1)


def _reference_onnx(reference: nn.Module, mark: str, split: Split, bench: Bench) -> Path:
    """Return the reference as an ONNX file, written once; ``mark`` is its name and its weights."""
    path = bench.work / "references" / f"{mark.rpartition(':')[2]}-{split.images.shape[-1]}.onnx"
    return path if path.exists() else export.to_onnx(reference, path, split.take(slice(0, 200)))


def _times(timed: dict[str, dict]) -> dict[str, float]:
    own = {name: timed["own"][name] for name in profiling.LATENCY}
    return {k: round(ms, 4) for k, ms in (own | {"reference_ms": timed["reference"]["latency_ms"]}).items()}
