"""One function runs any recipe: start, change, train, keep, measure, and append the rows.

A killed run goes on from its last epoch, and a finished row is not run again.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers import distillation, export, models, profiling, pruning
from helpers.benchmark import results
from helpers.benchmark.bench import SHIPPED, Bench, Job
from helpers.benchmark.changes import Lab
from helpers.benchmark.recipe import NETWORKS, Recipe, fresh, opened
from helpers.checkpoint import Checkpoint
from helpers.data import Data, Split, load_data
from helpers.deploy.runtimes import RUNTIMES
from helpers.distillation import DistillationLoss
from helpers.evaluation import measure, predict
from helpers.files import atomic_path, digest, fingerprint
from helpers.training import fit

KEPT = (  # what a new measurement takes over of the old row
    "network", "seed", "data", "epochs", "pictures", "start", "teacher", "as_is", "recalibrated", "seconds",
)  # fmt: skip
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
RATIOS = {"weight": (0.5, 0.8, 0.9, 0.95, 0.98), "channel": (0.25, 0.5, 0.75, 0.9)}  # of the scans


def run(name: str, seed: int, bench: Bench) -> None:
    """Make the network of a recipe where it is not there yet, and its rows."""
    recipe, path = NETWORKS[name], bench.target(name, seed)
    note = bench.work / "networks" / f"{name}-{seed}.json"
    expected = {
        "network": name,
        "seed": seed,
        "data": bench.data,
        "epochs": bench.length(recipe),
        "start": bench.mark(recipe.start),
        "teacher": bench.mark(recipe.teacher),
    }
    data = bench.pictures(recipe, seed)
    known = json.loads(note.read_text("utf-8")) if note.exists() and path.exists() else {}
    if expected.items() <= known.items() and known["made"] == fingerprint(path):  # another call made it
        data = recipe.prepare(data, opened(name, path), seed)
    else:
        known, data = make(recipe, path, data, seed, bench, expected)
    if results.state().is_main_process:
        with atomic_path(note) as part:
            part.write_text(json.dumps(known), "utf-8")
        record({key: value for key, value in known.items() if key != "made"}, path, recipe, data, bench)
    results.state().wait_for_everyone()


def make(recipe: Recipe, path: Path, data: Data, seed: int, bench: Bench, known: dict) -> tuple[dict, Data]:
    """Build, change, train and keep a network; return what is known of it then, and its pictures."""
    torch.manual_seed(seed)
    if recipe.start in NETWORKS and recipe.start != known["network"]:
        model = opened(recipe.start, bench.file(recipe.start))
    else:
        model = fresh(recipe.start, len(data.classes), 0.25 if bench.trial else 1.0)
    prepared = recipe.prepare(data, model, seed)
    with results.state().main_process_first():  # of several processes one scans, the others read its rows
        model = recipe.change(model, Lab(prepared, lambda: scan(recipe.start, "channel", bench), bench.trial))
    known = known | {"pictures": len(prepared.train), "seconds": 0}
    model.to(results.state().device)
    if results.state().is_main_process:
        held_out, few = prepared.validation.take(slice(0, 1_000)), prepared.train.take(slice(0, 1_000))
        found = measure(model, held_out, few, precision="auto")
        known |= {"as_is": found["accuracy"], "recalibrated": found["recalibrated"]}
    history = None
    if known["epochs"]:
        history = train(model, recipe, prepared, (known["network"], seed), bench)
        known["seconds"] = round(history["seconds"].sum())
    if results.state().is_main_process:
        known["made"] = fingerprint(keep(model.cpu(), path, history))
    return known, prepared


def train(model: nn.Module, recipe: Recipe, data: Data, job: Job, bench: Bench) -> pd.DataFrame:
    """Train ``model`` in place as its recipe says."""
    loss = None
    if recipe.teacher:
        teacher = recipe.told(opened(recipe.teacher, bench.file(recipe.teacher)))
        if recipe.recorded:
            data, teacher = replace(data, train=recorded(recipe, teacher, data.train, bench)), None
        loss = DistillationLoss(teacher, recipe.temperature, recipe.alpha)
    glance = replace(data, validation=data.validation.take(slice(0, 1_000)))  # nothing is chosen by it
    settings = {**recipe.fit, "epochs": bench.length(recipe), "seed": job[1]}
    settings |= {"batch_size": 32, "compile": False} if bench.trial else {}
    unfinished = bench.work / "unfinished" / f"{job[0]}-{job[1]}.safetensors"
    kept = Checkpoint(unfinished, pause=0 if bench.trial else 60)
    return fit(model, glance, loss=loss, callbacks=[kept, *recipe.callbacks(model)], **settings)


def recorded(recipe: Recipe, teacher: nn.Module, split: Split, bench: Bench) -> Split:
    """Return pictures with the teacher's answers; they are kept for the next recipe that asks the same."""
    asked = digest(
        {"images": split.images, "labels": split.labels},
        f"{bench.mark(recipe.teacher)} {recipe.told.__qualname__}",
    )
    path = bench.work / "answers" / f"{asked[:16]}.npy"
    if not path.exists():
        logits = distillation.record(teacher.to(results.state().device), split)
        with atomic_path(path) as part, part.open("wb") as file:
            np.save(file, logits.cpu().numpy())
    return distillation.answered(split, torch.from_numpy(np.load(path, allow_pickle=False)))


def keep(model: nn.Module, path: Path, history: pd.DataFrame | None) -> Path:
    """Write a network in half precision, its zeros packed; if it is shipped, its history beside it."""
    storage = "dense" if profiling.smallest_file(model)[0] == "dense" else "bitmask+zip"
    models.save(model, path, torch.float16, storage)
    if history is not None and path.parent == SHIPPED:
        with atomic_path(path.with_name(f"{path.stem}_history.csv")) as part:
            history.round(5).to_csv(part, index=False)
    return path


def scan(name: str, unit: str, bench: Bench) -> pd.DataFrame:
    """Return what pruning one layer at a time does to a recipe's network; measured where no row says it."""
    weights, rows = bench.mark(name).partition("@")[2], results.read("scans", bench.results)
    rows = rows[(rows["weights"] == weights) & (rows["unit"] == unit)]
    if rows.empty:
        data, model = load_data(bench.data), opened(name, bench.file(name)).to(results.state().device)
        held_out, few = data.validation.take(slice(0, 1_000)), data.train.take(slice(0, 500))
        table = pruning.sensitivity(
            model, held_out, RATIOS[unit], unit=unit, calibration=few, precision="auto"
        )
        measured = table[["layer", "ratio", "correct", "recalibrated_correct", "total"]].to_dict("records")
        same = {"weights": weights, "unit": unit, **results.provenance()}
        results.append("scans", [same | row for row in measured], bench.results)
        return scan(name, unit, bench)
    shares = rows[["correct", "recalibrated_correct"]].div(rows["total"], axis=0)
    return rows.assign(accuracy=shares["correct"], recalibrated=shares["recalibrated_correct"])


def remeasure(name: str, seed: int, bench: Bench) -> None:
    """Measure a network that is there or shipped anew, without training: for times from one processor."""
    rows = results.known(bench.results)
    own = rows[(rows["network"] == name) & (rows["seed"] == seed) & (rows["data"] == bench.data)]
    recipe = NETWORKS[name]
    # the first seed's network may be a shipped one
    path = bench.file(name) if seed == recipe.seeds[0] else bench.target(name, seed)
    if own.empty or path is None or not path.exists():
        raise ValueError(f"name must be of a network that has rows and a file, got {name!r} with seed {seed}")
    row = own.iloc[-1][[*KEPT]].astype(object).fillna("").to_dict()
    data = recipe.prepare(bench.pictures(recipe, seed), opened(name, path), seed)
    if results.state().is_main_process:
        record(row, path, recipe, data, bench)


# -- what a kept network costs and scores, in every file format of its recipe: rows of networks.csv ---------


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
