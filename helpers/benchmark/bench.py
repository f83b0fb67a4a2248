"""Where runs read and write, and what depends on what: the jobs that are left, in an order that works.

Parents are found by the fingerprint of their weights. What is published is never written over: with other
settings than the recipe's, ``out`` is asked for.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Literal

from helpers.benchmark import results
from helpers.benchmark.recipes import DEPLOYED, NETWORKS, Recipe
from helpers.data import HOME, Data, load_data
from helpers.files import fingerprint
from helpers.types import Count, Names, checked

Job = tuple[str, int]  # a recipe's name and a seed
SHIPPED = HOME / "data" / "checkpoints"


@checked
@dataclass(frozen=True)
class Bench:
    """Where runs read and write, and what they do otherwise than the recipes say.

    Attributes:
        out: folder for rows, networks and unfinished runs. Default: data/, and build/ for the rest.
        data: "cifar10", or "digits": a trial, on networks a quarter as wide, 256 pictures and one epoch, in
            PyTorch and ONNX alone.
        epochs: instead of the recipe's.
        budget: "gpu": as many epochs as a recipe has for a GPU.
        only: the file formats that are measured now, of those that a recipe has. Default: all.
    """

    out: Path | None = None
    data: Literal["cifar10", "digits"] = "cifar10"
    epochs: Count | None = None
    budget: Literal["cpu", "gpu"] = "cpu"
    only: Names = ()

    def __post_init__(self) -> None:
        if self.out is None and (self.trial or self.epochs):
            raise ValueError(
                "out must name a folder where data or epochs are not the recipe's: rows stand on the recipe"
            )

    @property
    def trial(self) -> bool:
        """Whether this is a trial on digits."""
        return self.data == "digits"

    @property
    def repeats(self) -> int:
        """Return how often each latency is timed."""
        return 5 if self.trial else 100

    @property
    def results(self) -> Path:
        """Return the folder of the tables."""
        return (self.out or HOME / "data") / "results"

    @property
    def work(self) -> Path:
        """Return the folder of unfinished runs and of networks not shipped; trials have their own."""
        trial = ["digits"] * self.trial + [f"{self.epochs}_epochs"] * bool(self.epochs)
        return (self.out or HOME / "build") / "-".join(["benchmark", *trial])

    def target(self, name: str, seed: int) -> Path:
        """Return where the network of a recipe and a seed is kept."""
        recipe = NETWORKS[name]
        if self.out is None and recipe.file and seed == recipe.seeds[0]:
            return SHIPPED / f"{recipe.file}.safetensors"
        return self.work / "networks" / f"{name}-{seed}.safetensors"

    def file(self, name: str) -> Path | None:
        """Return the network that others start or learn from, of the first seed; None if it is not there."""
        recipe = NETWORKS[name]
        places = [self.target(name, recipe.seeds[0])]
        if (
            recipe.file and not self.trial and not self.epochs
        ):  # a run into ``out`` may stand on what is shipped
            places.append(SHIPPED / f"{recipe.file}.safetensors")
        return next((place for place in places if place.exists()), None)

    def mark(self, name: str | None) -> str:
        """Return ``name`` and, if it is a recipe's, its weights: "teacher@sha256:567ad552a1"."""
        if name not in NETWORKS:
            return name or "labels"
        file, rows = self.file(name), results.latest(self.results)
        own = rows[(rows["network"] == name) & (rows["seed"] == NETWORKS[name].seeds[0])]["weights"]
        return f"{name}@{fingerprint(file) if file else own.iloc[-1] if len(own) else 'unknown'}"

    def length(self, recipe: Recipe) -> int:
        """Return the epochs to train."""
        if not recipe.epochs:
            return 0
        return self.epochs or (1 if self.trial else (self.budget == "gpu" and recipe.gpu) or recipe.epochs)

    def formats(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the file formats that are written and measured."""
        wanted = [form for form in recipe.exports if not self.trial or form in DEPLOYED]
        return tuple(form for form in wanted if not self.only or form in self.only)

    def pictures(self, recipe: Recipe, seed: int) -> Data:
        """Return the pictures that a recipe is trained on and measured with."""
        return load_data(self.data, train_limit=256 if self.trial else recipe.pictures, seed=seed)


def finished(job: Job, bench: Bench) -> bool:
    """Whether every row of a job is there, of this recipe and of the parents as they are."""
    name, seed = job
    recipe, rows = NETWORKS[name], results.latest(bench.results)
    own = rows[(rows["network"] == name) & (rows["seed"] == seed) & (rows["data"] == bench.data)]
    own = own[own["epochs"] >= bench.length(recipe)]
    for column, parent in (
        ("start", recipe.start),
        ("teacher", recipe.teacher),
        ("reference", recipe.reference),
    ):
        if parent != name:
            own = own[own[column] == bench.mark(parent)]
    return set(bench.formats(recipe)) <= set(own["format"])


def plan(names: Iterable[str], bench: Bench, seeds: Sequence[int] | None = None) -> dict[Job, set[Job]]:
    """Return the jobs that are left, each with those before it; parents are added where they are missing."""
    graph: dict[Job, set[Job]] = {}

    def add(job: Job) -> None:
        if job in graph:
            return
        graph[job] = {(parent, NETWORKS[parent].seeds[0]) for parent in NETWORKS[job[0]].parents}
        for parent, seed in sorted(graph[job]):
            if bench.file(parent) is None:
                add((parent, seed))

    for name in names:
        for seed in NETWORKS[name].seeds if seeds is None else seeds:
            if not finished((name, seed), bench):
                add((name, seed))
    for job in graph:
        graph[job] &= graph.keys()
        target = bench.target(*job)
        if target.exists() and target.parent == SHIPPED:
            raise ValueError(
                f"out must be given for {job[0]}: {target} is published and would be written over"
            )
    return graph


def run_all(graph: dict[Job, set[Job]], work: Callable[[Job], str]) -> list[str]:
    """Run a plan, one job after the other; return what failed. What needs a failed job is left out.

    Args:
        graph: what ``plan`` returned.
        work: takes a job whose parents are done; returns what went wrong, or an empty text.
    """

    def here(job: Job) -> Future:  # in this thread: an interrupt stops the job
        done = Future()
        done.set_result(work(job))
        return done

    return _run(graph, here, 1)


def run_beside(graph: dict[Job, set[Job]], work: Callable[[Job], str], workers: int) -> list[str]:
    """Run a plan like ``run_all``, up to ``workers`` jobs side by side, the first of the plan first.

    Args:
        graph, work: as there; a job is worked on in a thread of its own.
        workers: how many.
    """
    with ThreadPoolExecutor(workers) as pool:
        return _run(graph, functools.partial(pool.submit, work), workers)


def _run(graph: dict[Job, set[Job]], begin: Callable[[Job], Future], workers: int) -> list[str]:
    TopologicalSorter(graph).prepare()  # refuses jobs that need each other in a circle
    waiting, running, made, failed = list(graph), {}, set(), []
    while True:
        ready = [job for job in waiting if graph[job] <= made]
        for job in ready[: workers - len(running)]:
            waiting.remove(job)
            running[begin(job)] = job
        if not running:  # what still waits needs a failed job
            return failed
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            job, said = running.pop(done), done.result()
            if said:
                failed.append(f"{job[0]}, seed {job[1]}: {said}")
            else:
                made.add(job)
