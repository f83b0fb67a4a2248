"""The series as a whole: ``python -m helpers.maintain.series run | write | test``.

run      executes every notebook into build/notebooks/, draws the README's figures into build/figures/.
write    the same, then puts outputs back into notebooks/, figures into figures/, and numbers into README.md.
test     ruff, pytest, and nbval over the notebooks: on digits always, on CIFAR-10 where it is on disk.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from helpers.data import CIFAR10_FOLDER, HOME, cifar10_root
from helpers.files import atomic_path
from helpers.lesson import BUILD, Budget
from helpers.types import checked

NOTEBOOKS = HOME / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"


def notebooks() -> list[Path]:
    """Return the notebooks in reading order, the solutions after the lessons."""
    return [*sorted(NOTEBOOKS.glob("*.ipynb")), *sorted(NOTEBOOKS.glob("solutions/*.ipynb"))]


@checked
def run(budget: Budget | None = None, only: str = "", *, write: bool = False) -> int:
    """Execute the notebooks whose name contains ``only``; print minutes and verdicts, return how many failed.

    ``write`` puts each that went well in the place of its original, and figures into figures/. Without a
    ``budget`` it is the notebooks' own.
    """
    chosen = [path for path in notebooks() if only in path.name]
    if not chosen:
        names = ", ".join(path.name for path in notebooks())
        raise ValueError(f"only must be part of a notebook's name, got {only!r}; there are {names}")
    os.environ |= {"NNC_BUDGET": budget} if budget else {}
    os.environ["CIFAR10_ROOT"] = str(cifar10_root().resolve())  # a kernel runs in its notebook's folder
    os.environ["NNC_PUBLISH"] = str(HOME / "figures" if write else BUILD / "figures")
    verdicts = [_execute(path, write=write) for path in chosen]
    if write:
        from helpers.benchmark.page import write_readme

        write_readme()
    return verdicts.count(False)


def _execute(path: Path, *, write: bool) -> bool:
    path, started, verdict = path.resolve(), time.perf_counter(), "ok"
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=None, record_timing=False, store_widget_state=False)
    client.resources = {"metadata": {"path": path.parent}}
    try:
        client.execute()
    except Exception as error:  # of a cell, or of a kernel that died: the other notebooks still run
        verdict = str(error).strip().splitlines()[-1]
    print(
        f"{path.relative_to(HOME)!s:<44}{(time.perf_counter() - started) / 60:5.1f} min  {verdict}",
        flush=True,
    )
    for cell in notebook.cells:  # without what only this run meant: progress bars, and views of live widgets
        if cell.cell_type == "code":
            cell.outputs = [
                one
                for one in cell.outputs
                if WIDGET not in one.get("data", {}) and one.get("name") != "stderr"
            ]
    with atomic_path(path if write and verdict == "ok" else BUILD / path.relative_to(HOME)) as part:
        nbformat.write(notebook, part)
    return verdict == "ok"


def test() -> int:
    """Run every test; return how many of its parts failed, after a list of what was skipped."""
    folder, cores = cifar10_root() / CIFAR10_FOLDER, os.cpu_count() or 1
    workers = min(cores, 4)  # small networks gain more from a second process than from a second thread
    pytest = ["pytest", "-q", "-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    parts = {
        "ruff check": ["ruff", "check", "helpers", "tests", "notebooks"],
        "ruff format": ["ruff", "format", "--check", "helpers", "tests"],
        "helpers": [*pytest, "tests"],  # in the order of tests/conftest.py, the longest first
        "notebooks on digits": [*pytest, "--nbval-lax", "notebooks"],
        # 06 trains nothing, and 07 draws its own pictures: once is enough
        "lessons on cifar10": [
            *(*pytest, "--nbval-lax", "notebooks"),
            *("--ignore=notebooks/solutions", "--ignore-glob=*/0[67]_*"),
        ],
    }
    fixed = {
        "NNC_BUDGET": "quick",  # as published, like the next two
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "CIFAR10_ROOT": str(cifar10_root().resolve()),
        "OMP_NUM_THREADS": str(cores // workers),
    }
    notes, verdicts = BUILD / "skipped.txt", {}
    notes.unlink(missing_ok=True)
    for name, command in parts.items():
        if "cifar10" in name and not folder.exists():
            verdicts[name] = f"skipped: {folder} is not there; make run fetches it where there is a network"
            continue
        print(f"\n== {name}", flush=True)
        started = time.perf_counter()
        # few pictures and short trainings go through the same code as many and long ones
        brief = {"NNC_DATA": name.split()[-1], "NNC_PICTURES": "500", "NNC_BUDGET": "brief"}
        data = brief if " on " in name else {}
        failed = subprocess.run(
            [sys.executable, "-m", *command], cwd=HOME, env=os.environ | fixed | data
        ).returncode
        minutes = (time.perf_counter() - started) / 60
        verdicts[name] = f"{'FAILED' if failed else 'passed'} in {minutes:.1f} min"
    print("", *(f"{name:<24}{verdict}" for name, verdict in verdicts.items()), sep="\n")
    print(
        "\nskipped in helpers, and how to get it:",
        notes.read_text("utf-8") if notes.exists() else "nothing",
        sep="\n",
    )
    return sum(verdict.startswith("FAILED") for verdict in verdicts.values())


def main() -> None:
    """Parse the command line; the exit status says whether anything failed."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    line.add_argument("what", choices=("run", "write", "test"))
    line.add_argument("--budget", choices=("quick", "full"))
    line.add_argument("--only", default="", help="part of a notebook's name")
    given = line.parse_args()
    sys.exit(
        bool(test() if given.what == "test" else run(given.budget, given.only, write=given.what == "write"))
    )


if __name__ == "__main__":
    main()
