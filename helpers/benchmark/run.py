"""One function runs any recipe: start, change, train, keep, measure, and append the rows. It knows what depends on what.

A finished row is not run again, and a killed run goes on from its last epoch. Parents are found by the fingerprint of their weights.
What is published is never written over: with other settings than the recipe's, ``--out`` is asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers import export, models, profiling, pruning
from helpers.benchmark import results
from helpers.benchmark.recipes import NETWORKS, Lab, Recipe
from helpers.data import HOME, Data, Split, load_data
from helpers.distillation import DistillationLoss
from helpers.evaluation import measure, predict
from helpers.files import atomic_path, fingerprint
from helpers.training import fit

Job = tuple[str, int]  # a recipe's name and a seed
RATIOS = {"weight": (0.5, 0.8, 0.9, 0.95, 0.98), "channel": (0.25, 0.5, 0.75, 0.9)}  # of the scans
AGREEMENT = 0.95  # share of pictures that must keep their class in int8


@dataclass(frozen=True)
class Bench:
    """Where runs read and write, and what they do otherwise than the recipes say.

    Attributes:
        out: folder for rows, networks and unfinished runs. Default: this repository's data/, and build/ for what is not published.
        data: "cifar10", or "digits": a trial, on networks an eighth as wide, 256 pictures and one epoch.
        epochs: instead of the recipe's.
    """

    out: Path | None = None
    data: str = "cifar10"
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.out is None and (self.trial or self.epochs is not None):
            raise ValueError(
                "out must name a folder where data or epochs are not the recipe's: published rows stand on the recipe"
            )

    @property
    def trial(self) -> bool:
        return self.data != "cifar10"

    @property
    def results(self) -> Path:
        return (self.out or HOME / "data") / "results"

    @property
    def work(self) -> Path:
        return (self.out or HOME / "build") / "benchmark"

    def target(self, name: str, seed: int) -> Path:
        """Return where a network is kept: in data/checkpoints what is shipped, in build/ or ``out`` the rest."""
        recipe = NETWORKS[name]
        if self.out is None and recipe.file and seed == recipe.seeds[0]:
            return HOME / "data" / "checkpoints" / f"{recipe.file}.safetensors"
        return self.work / "networks" / f"{name}-{seed}.safetensors"

    def file(self, name: str) -> Path | None:
        """Return the network that others start from or learn from: of the first seed; None where it is not there."""
        recipe = NETWORKS[name]
        places = [self.target(name, recipe.seeds[0])]
        if (
            not self.trial and self.epochs is None and recipe.file
        ):  # a run into ``out`` may stand on what is published
            places.append(HOME / "data" / "checkpoints" / f"{recipe.file}.safetensors")
        return next((place for place in places if place.exists()), None)

    def mark(self, name: str | None) -> str:
        """Return ``name`` and, if it is a recipe, which weights its network has now: "teacher@sha256:567ad552a1"."""
        if name not in NETWORKS:
            return name or "labels"
        file, rows = self.file(name), results.latest(self.results)
        own = rows[(rows["network"] == name) & (rows["seed"] == NETWORKS[name].seeds[0])]["weights"]
        return f"{name}@{fingerprint(file) if file else own.iloc[-1] if len(own) else 'unknown'}"

    def length(self, recipe: Recipe) -> int:
        """Return the epochs to train."""
        wanted = recipe.epochs if self.epochs is None or not recipe.epochs else self.epochs
        return min(1, wanted) if self.trial and self.epochs is None else wanted

    def pictures(self, recipe: Recipe, seed: int) -> Data:
        """Return the pictures that a recipe is trained on and measured with."""
        return load_data(self.data, train_limit=256 if self.trial else recipe.pictures, seed=seed)


# -- what is to be run -----------------------------------------------------------------------------------------------


def finished(job: Job, bench: Bench) -> bool:
    """Whether every row of a job is there, of this recipe and of the parents as they are."""
    name, seed = job
    recipe, rows = NETWORKS[name], results.latest(bench.results)
    own = rows[(rows["network"] == name) & (rows["seed"] == seed) & (rows["data"] == bench.data)]
    own = own[own["epochs"] == bench.length(recipe)]
    for column, parent in (
        ("start", recipe.start),
        ("teacher", recipe.teacher),
        ("reference", recipe.reference),
    ):
        if not (column == "reference" and parent == name):
            own = own[own[column] == bench.mark(parent)]
    return set(recipe.exports) <= set(own["format"])


def plan(names: Iterable[str], bench: Bench, seeds: Sequence[int] | None = None) -> dict[Job, set[Job]]:
    """Return the jobs that are left to run, each with those that must be done before it; parents are added where they are missing."""
    graph: dict[Job, set[Job]] = {}

    def add(job: Job) -> None:
        if job in graph:
            return
        graph[job] = set()
        for parent in NETWORKS[job[0]].parents:
            first = (parent, NETWORKS[parent].seeds[0])
            if bench.file(parent) is None:
                add(first)
            graph[job].add(first)

    for name in names:
        for seed in NETWORKS[name].seeds if seeds is None else seeds:
            if not finished((name, seed), bench):
                add((name, seed))
    for job in graph:
        graph[job] &= graph.keys()
        if (
            bench.out is None
            and (there := bench.target(*job)).exists()
            and there.is_relative_to(HOME / "data")
        ):
            raise ValueError(
                f"out must be given for {job[0]}: {there} is published and would be written over"
            )
    return graph


def run_all(graph: dict[Job, set[Job]], work: Callable[[Sequence[Job]], list[str]]) -> list[str]:
    """Run a plan; ``work`` takes jobs that are ready and returns what failed. What needs a failed job is left out; return all failures."""
    sorter, failed = TopologicalSorter(graph), []
    sorter.prepare()
    lost: set[Job] = set()
    while sorter.is_active():
        ready = sorter.get_ready()
        lost |= {job for job in ready if graph[job] & lost}
        chosen = [job for job in ready if job not in lost]
        for job, said in zip(chosen, work(chosen), strict=True):
            if said:
                failed.append(f"{job[0]}, seed {job[1]}: {said}")
                lost.add(job)
        sorter.done(*ready)
    return failed


# -- one job ---------------------------------------------------------------------------------------------------------


def run(name: str, seed: int, bench: Bench) -> None:
    """Make the network of a recipe and its rows."""
    recipe, epochs = NETWORKS[name], bench.length(NETWORKS[name])
    data = bench.pictures(recipe, seed)
    torch.manual_seed(seed)
    model = _start(recipe, data, bench)
    prepared = recipe.prepare(data, model, seed)
    model = recipe.change(model, Lab(data, lambda: scan(recipe.start, "channel", bench)))
    row = {
        "network": name,
        "seed": seed,
        "data": data.name,
        "epochs": epochs,
        "pictures": len(prepared.train),
    }
    row |= {"start": bench.mark(recipe.start), "teacher": bench.mark(recipe.teacher)}
    if results.state().is_main_process:
        known = measure(
            model,
            prepared.validation.take(slice(0, 1_000)),
            data.train.take(slice(0, 1_000)),
            precision="auto",
        )
        row |= {"as_is": known["accuracy"], "recalibrated": known["recalibrated"]}
    history = _trained(model, recipe, prepared, epochs, seed, bench, f"{name}-{seed}") if epochs else None
    row["seconds"] = 0 if history is None else round(history["seconds"].sum())
    if results.state().is_main_process:
        path = models.save(recipe.finish(model), bench.target(name, seed), torch.float16, _storage(model))
        if history is not None and path.is_relative_to(HOME / "data"):
            with atomic_path(path.with_name(f"{path.stem}_history.csv")) as part:
                history.round(5).to_csv(part, index=False)
        record(row, path, recipe, getattr(prepared, recipe.split), data, bench)
    results.state().wait_for_everyone()


def _start(recipe: Recipe, data: Data, bench: Bench) -> nn.Module:
    if recipe.start in NETWORKS and NETWORKS[recipe.start] is not recipe:
        return models.load(bench.file(recipe.start))
    return models.build(recipe.start, len(data.classes), width=0.125 if bench.trial else 1.0)


def _trained(
    model: nn.Module, recipe: Recipe, data: Data, epochs: int, seed: int, bench: Bench, name: str
) -> pd.DataFrame:
    loss = None
    if recipe.teacher:
        loss = DistillationLoss(models.load(bench.file(recipe.teacher)), recipe.temperature, recipe.alpha)
    glance = replace(data, validation=data.validation.take(slice(0, 1_000)))  # nothing is chosen by it
    settings = {**recipe.fit, **({"batch_size": 32, "compile": False} if bench.trial else {})}
    checkpoint = bench.work / "unfinished" / f"{name}.safetensors"
    settings |= {
        "epochs": epochs,
        "seed": seed,
        "loss": loss,
        "callbacks": recipe.callbacks(model),
        "checkpoint": checkpoint,
    }
    return fit(model, glance, **settings)


def _storage(model: nn.Module) -> str:
    storage, _ = profiling.smallest_file(model)
    return "dense" if storage == "dense" else "bitmask+zip"


def scan(name: str, unit: str, bench: Bench) -> pd.DataFrame:
    """Return what pruning one layer at a time does to a recipe's network; measured where no row says it."""
    weights = bench.mark(name).partition("@")[2]
    rows = results.read("scans", bench.results)
    rows = rows[(rows["weights"] == weights) & (rows["unit"] == unit)]
    if rows.empty:
        data, model = load_data(bench.data), models.load(bench.file(name))
        held_out, calibration = data.validation.take(slice(0, 1_000)), data.train.take(slice(0, 1_000))
        found = pruning.sensitivity(
            model, held_out, RATIOS[unit], unit=unit, calibration=calibration, precision="auto"
        )
        same = {"weights": weights, "unit": unit, **results.provenance()}
        found = found[["layer", "ratio", "correct", "recalibrated_correct", "total"]]
        results.append("scans", [same | row for row in found.to_dict("records")], bench.results)
        rows = results.read("scans", bench.results)
        rows = rows[(rows["weights"] == weights) & (rows["unit"] == unit)]
    return rows.assign(
        accuracy=rows["correct"] / rows["total"], recalibrated=rows["recalibrated_correct"] / rows["total"]
    )


# -- measuring -------------------------------------------------------------------------------------------------------


def record(row: dict, path: Path, recipe: Recipe, split: Split, data: Data, bench: Bench) -> None:
    """Write a kept network in its formats, measure each file beside the reference, and append the rows."""
    model, name = models.load(path), row["network"]
    row |= {"weights": fingerprint(path), "parameters": profiling.count_parameters(model)}
    row |= {"nonzeros": sum(int(p.count_nonzero()) for p in model.parameters())}
    row |= {"macs": profiling.count_macs(model, (1, *split.images.shape[1:])), "total": len(split)}
    row["reference"] = (
        f"{name}@{row['weights']}" if recipe.reference == name else bench.mark(recipe.reference)
    )
    reference = path if recipe.reference == name else bench.file(recipe.reference)
    expected, rows, files = predict(model, split).argmax(1), [], {}
    with tempfile.TemporaryDirectory() as folder:
        for form in recipe.exports:
            own = {"format": form}
            if form == "torch":
                answers = expected
                own |= {
                    "bytes": profiling.smallest_file(model)[1],
                    "zip_bytes": path.stat().st_size,
                    "memory_mb": "",
                }
                runs = {
                    who: _torch_run(one, split)
                    for who, one in (("", model), ("reference_", models.load(reference)))
                }
            else:
                files[form] = _written(form, model, Path(folder), files, split, data, bench)
                answers = _answers(files[form], split)
                own |= {"bytes": _size(files[form]), "zip_bytes": export.zipped_bytes(files[form])}
                runs, own["memory_mb"] = {}, ""
                if files[form].suffix in export.SESSIONS:
                    exported = _reference_onnx(reference, split, bench)
                    runs = {"": _file_run(files[form], split), "reference_": _file_run(exported, split)}
                    own["memory_mb"] = "" if bench.trial else _memory(files[form])
            own |= {
                "correct": int((answers == split.labels).sum()),
                "agreeing": float((answers == expected).float().mean()),
            }
            rows.append(row | own | _latencies(runs, 5 if bench.trial else 100))
            results.keep_answers(rows[-1], answers, bench.results)
    where = results.provenance(row["seed"])
    results.append("networks", [one | where for one in rows], bench.results)
    print(
        f"{name}, seed {row['seed']}: "
        + ", ".join(f"{one['format']} {results.accuracy(pd.Series(one))}" for one in rows)
    )


WRITERS: dict[
    str, tuple[str, Callable]
] = {  # how to write each format: suffix, function of model, path, pictures and calibration
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


def _written(
    form: str, model: nn.Module, folder: Path, files: dict[str, Path], split: Split, data: Data, bench: Bench
) -> Path:
    some, few = split.take(slice(0, 200)), data.train.take(slice(0, 500))
    if form == "onnx int8":  # from the file that is there
        least = 0.0 if bench.trial else AGREEMENT  # a network trained for seconds rounds badly
        return export.quantize_onnx(files["onnx"], folder / "int8.onnx", few, some, agreement=least)
    suffix, write = WRITERS[form]
    return write(model, folder / f"{form.replace(' ', '_')}{suffix}", some, few)


def _answers(path: Path, split: Split) -> Tensor:
    if path.suffix == ".mar":  # its handler answers with a class and a probability, not with logits
        return export.archive_labels(path, split)
    logits = export.coreml_logits if path.suffix == ".mlpackage" else export.logits
    return logits(path, split).argmax(1)


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*")) if path.is_dir() else path.stat().st_size


def _memory(path: Path) -> float:
    found = export.peak_memory(path)
    return round(found["peak_mb"] - found["baseline_mb"], 1)


def _reference_onnx(network: Path, split: Split, bench: Bench) -> Path:
    """Return the reference as an ONNX file, written once."""
    path = (
        bench.work
        / "references"
        / f"{fingerprint(network).removeprefix('sha256:')}-{split.images.shape[-1]}.onnx"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    return path if path.exists() else export.to_onnx(models.load(network), path, split.take(slice(0, 200)))


def _torch_run(model: nn.Module, split: Split) -> Callable[[], object]:
    example = torch.zeros(1, *split.images.shape[1:]).contiguous(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last).eval()
    return lambda: model(example)


def _file_run(path: Path, split: Split) -> Callable[[], object]:
    session, example = export.open_session(path, 1), np.zeros((1, *split.images.shape[1:]), np.float32)
    return lambda: session(example)


def _latencies(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, object]:
    """Time a network and its reference in turns, one picture, one thread, in ms; empty where nothing runs here."""
    with _one_thread(), torch.no_grad():
        timed = profiling.time_in_turns(runs, repeats) if runs else {}
    own = timed.get("", {})
    found = {key: own.get(key, "") for key in ("latency_ms", "latency_low_ms", "latency_high_ms")}
    found |= {"reference_ms": timed.get("reference_", {}).get("latency_ms", "")}
    return {key: round(value, 4) if value != "" else "" for key, value in found.items()}


@contextmanager
def _one_thread() -> Iterable[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def remeasure(name: str, seed: int, bench: Bench) -> None:
    """Measure a network that is there anew: other rows of it, in one go with others on one processor, without training."""
    rows = results.latest(bench.results)
    own = rows[(rows["network"] == name) & (rows["seed"] == seed)]
    path = bench.target(name, seed) if bench.target(name, seed).exists() else bench.file(name)
    if own.empty or path is None:
        raise ValueError(f"name must be of a network that has rows and a file, got {name!r} with seed {seed}")
    keys = (
        "network",
        "seed",
        "data",
        "epochs",
        "pictures",
        "start",
        "teacher",
        "as_is",
        "recalibrated",
        "seconds",
    )
    row = {key: "" if pd.isna(own.iloc[-1][key]) else own.iloc[-1][key] for key in keys}
    recipe, data = NETWORKS[name], bench.pictures(NETWORKS[name], seed)
    record(
        row, path, recipe, getattr(recipe.prepare(data, models.load(path), seed), recipe.split), data, bench
    )
