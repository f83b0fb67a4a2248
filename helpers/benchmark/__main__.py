"""Make the published rows: ``python -m helpers.benchmark`` all that are missing, ``... zeros95 rank7`` some.

``--list`` says what is there. ``--data digits --out somewhere`` tries everything out in minutes.
``--engine ray`` spreads the runs over a Ray cluster, ``accelerate launch -m helpers.benchmark ...`` one run
over several processes.
"""

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env

from helpers.benchmark import page, results, speed
from helpers.benchmark.bench import Bench, Job, finished, plan, run_all, run_beside
from helpers.benchmark.recipe import EVERYWHERE
from helpers.benchmark.recipes import NETWORKS
from helpers.benchmark.run import remeasure, run, scan
from helpers.data import HOME

MORE = {
    "scans": "weights and channels taken from one layer at a time",
    "speed": "the loop beside that of PyTorch's tutorial, on the CPU",
}


def attempt(job: Job, bench: Bench, again: bool = False) -> str:
    """Run one job; return what went wrong, or an empty text."""
    try:
        (remeasure if again else run)(*job, bench)
    except Exception as error:  # the others go on; the command fails at its end
        return f"{type(error).__name__}: {error}"
    return ""


def on_ray(bench: Bench, address: str | None) -> Callable[[Job], str]:
    """Return what runs a job on a Ray cluster, whose nodes must see this folder, and waits for it."""
    import ray

    if not ray.is_initialized():
        paths = os.pathsep.join([str(HOME), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        passed = {"PYTHONPATH": paths} | (
            {"ACCELERATE_USE_CPU": "true"} if parse_flag_from_env("ACCELERATE_USE_CPU") else {}
        )
        ray.init(address=address, runtime_env={"env_vars": passed}, include_dashboard=False)
    gpus = int(results.state().device.type == "cuda")
    remote = ray.remote(num_cpus=max(1, torch.get_num_threads() // 2), num_gpus=gpus)(_named)
    return lambda job: ray.get(remote.remote(sys.argv, job, bench))


def _named(command: list[str], job: Job, bench: Bench) -> str:
    sys.argv = command  # rows say which command made them
    return attempt(job, bench)


def in_a_process(job: Job, arguments: Sequence[str]) -> str:
    """Run one job by a command of its own; return the end of what it said if it failed, or an empty text."""
    name, seed = job
    command = [sys.executable, "-m", "helpers.benchmark", name, "--seeds", str(seed), *arguments]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    print(done.stdout, end="", flush=True)
    return "" if done.returncode == 0 else done.stderr.strip()[-500:] or f"ended with {done.returncode}"


def listed(names: Sequence[str], bench: Bench) -> str:
    """Return a line per recipe: parents, rows that are there, and what it takes."""
    lines, rows = [], results.latest(bench.results)
    for name in names:
        recipe = NETWORKS[name]
        there = [seed for seed in recipe.seeds if finished((name, seed), bench)]
        took = rows[(rows["network"] == name) & (rows["epochs"] == recipe.epochs)]["seconds"].dropna()
        each = (1 + recipe.recorded) * (recipe.pictures or 45_000)  # recorded: mirrored as well
        takes = f"{recipe.epochs} epochs of {each:,}" if recipe.epochs else "no training"
        takes += f", {took.iloc[-1] / 60:.0f} min" if len(took) and took.iloc[-1] else ""
        state = "there" if len(there) == len(recipe.seeds) else f"{len(there)} of {len(recipe.seeds)} seeds"
        beginnings = ", taught by ".join(dict.fromkeys(filter(None, (recipe.start, recipe.teacher))))
        lines.append(f"{name:<28} {state:<14} {takes:<30} from {beginnings}")
    return "\n".join(lines)


OPTIONS: dict[str, dict] = {  # of the command line, as argparse takes them
    "--list": {"action": "store_true", "help": "say what there is and what it takes; run nothing"},
    "--measure": {"action": "store_true", "help": "measure the networks that are there anew, untrained"},
    "--seeds": {"type": int, "nargs": "+", "help": "default: the recipe's"},
    "--epochs": {"type": int, "help": "default: the recipe's; asks for --out"},
    "--budget": {
        "choices": ("cpu", "gpu"),
        "default": "cpu",
        "help": "gpu: recipes that say how long a GPU can train them",
    },
    "--formats": {"nargs": "+", "choices": EVERYWHERE, "default": (), "help": "these alone; the rest later"},
    "--data": {
        "choices": ("cifar10", "digits"),
        "default": "cifar10",
        "help": "digits is a trial; asks for --out",
    },
    "--out": {"type": Path, "help": "folder for rows and networks; default: data/ and build/ here"},
    "--device": {"choices": ("auto", "cpu"), "default": "auto", "help": "auto: the GPU if there is one"},
    "--workers": {"type": int, "default": 1, "help": "runs side by side, each in a process"},
    "--engine": {"choices": ("here", "ray"), "default": "here"},
    "--address": {"help": "of a running Ray cluster; default: one is started here"},
}


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    line = argparse.ArgumentParser(
        "python -m helpers.benchmark", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    line.add_argument("names", nargs="*", metavar="name", help=f"recipes (see --list) or {', '.join(MORE)}")
    for option, settings in OPTIONS.items():
        line.add_argument(option, **settings)
    return line


def main() -> None:
    """Parse the command line and run what it names."""
    results.commit()  # of the code that is loaded now, not of what is checked out hours later
    line = parser()
    chosen = line.parse_args()
    long = [name for name, recipe in NETWORKS.items() if recipe.gpu]
    names = chosen.names or (long if chosen.budget == "gpu" else [*NETWORKS, *MORE])
    for name in names:
        if name not in NETWORKS and name not in MORE:
            line.error(f"name must be a recipe of --list, {' or '.join(MORE)}; got {name}")
    if chosen.workers < 1 or (chosen.workers > 1 and (chosen.measure or chosen.engine == "ray")):
        line.error(f"workers must be 1 or more, and 1 with --measure or --engine ray; got {chosen.workers}")
    if chosen.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        out = chosen.out and chosen.out.resolve()
        bench = Bench(out, chosen.data, chosen.epochs, chosen.budget, tuple(chosen.formats))
        recipes = [name for name in names if name in NETWORKS]
        if chosen.list:
            print(listed(recipes, bench))
            return
        again = {(name, seed): set() for name in recipes for seed in chosen.seeds or NETWORKS[name].seeds}
        graph = again if chosen.measure else plan(recipes, bench, chosen.seeds)
    except ValueError as error:
        line.error(str(error))
    if chosen.workers > 1:
        asked, passed_on = vars(chosen) | {"out": out}, ("budget", "data", "device", "epochs", "out")
        given = [f"--{name}={asked[name]}" for name in passed_on if asked[name]]
        given += ["--formats", *chosen.formats] if chosen.formats else []
        failed = run_beside(graph, lambda job: in_a_process(job, given), chosen.workers)
    elif chosen.engine == "ray" and not chosen.measure:
        failed = run_beside(graph, on_ray(bench, chosen.address), max(1, len(graph)))
    else:
        failed = run_all(graph, functools.partial(attempt, bench=bench, again=chosen.measure))
    if "scans" in names:
        for unit in ("weight", "channel"):
            scan("teacher", unit, bench)
    if "speed" in names:
        speed.race(bench)
    if bench.out is None and results.state().is_main_process:
        page.write_readme()
        page.write_networks()
    sys.exit("\n".join([f"{len(failed)} runs failed:", *failed]) if failed else 0)


if __name__ == "__main__":
    main()
