"""The series as a whole: what a notebook's set-up cell calls, and ``python -m helpers.series run | write | test``.

run      executes every notebook into build/notebooks/, draws the README's figures into build/figures/, and ends with a table.
write    the same, then puts the outputs back into notebooks/ and the figures into figures/ (for maintainers).
test     ruff, pytest, and nbval over the notebooks: on digits always, on CIFAR-10 where it is on disk.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from helpers import checks, models, results
from helpers.data import CIFAR10_FOLDER, HOME, Data, cifar10_root, load_data
from helpers.training import fit

T = TypeVar("T")
NOTEBOOKS = HOME / "notebooks"
BUILD = HOME / "build"
TEACHER = HOME / "data" / "checkpoints" / "vgg19.safetensors"
FIGURES = HOME / "figures"
BUDGETS = ("quick", "full")


@dataclass(frozen=True)
class Lesson:
    """What every notebook starts from.

    Attributes:
        budget: "quick" (a laptop, minutes) or "full" (far longer, on a GPU).
        data: CIFAR-10, or digits where it cannot be had.
    """

    budget: str
    data: Data

    def __post_init__(self) -> None:
        checks.choice("budget", self.budget, BUDGETS)
        checks.instance("data", self.data, Data)

    def pick(self, *, digits: T, quick: T, full: T) -> T:
        """Return the value for this data set and budget; digits is the same in both."""
        return digits if self.data.name == "digits" else quick if self.budget == "quick" else full

    def publish(self, figure: Figure, name: str) -> None:
        """Write a figure to a folder on CIFAR-10: to build/figures when ``run`` runs the series, to figures/ when ``write`` does."""
        checks.instance("figure", figure, Figure)
        if not checks.instance("name", name, str).isidentifier():
            raise ValueError(f"name must be letters, digits and underscores, got {name!r}")
        folder = Path(os.environ.get("NNC_PUBLISH", ""))
        if self.data.name == "cifar10" and folder.name:
            folder.mkdir(parents=True, exist_ok=True)
            with checks.atomic_path(folder / f"{name}.png") as part, io.BytesIO() as drawn:
                figure.savefig(drawn, format="png")
                few = (
                    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
                )  # plenty for a chart, a third of the bytes
                few.save(part, format="png", optimize=True)

    def teacher(self) -> nn.Module:
        """Return the series' baseline, in eval mode: the VGG-19 in data/checkpoints, trained on CIFAR-10.

        Without CIFAR-10, a VGG-19 an eighth as wide is trained on digits instead, once: the next call finds it in build/.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        if self.data.name == "cifar10":
            return models.load(TEACHER)
        checkpoint = BUILD / "vgg19_digits.safetensors"
        try:
            return _digits_teacher(self.data, checkpoint)
        except ValueError:  # the file in build/ is damaged, or of another version of this code: make it anew
            checkpoint.unlink(missing_ok=True)
            return _digits_teacher(self.data, checkpoint)


def _digits_teacher(data: Data, checkpoint: Path) -> nn.Module:
    torch.manual_seed(0)
    model = models.build("vgg19", width=0.125)
    fit(model, data, epochs=20, batch_size=64, checkpoint=checkpoint, progress=False)
    return model.cpu().eval()


def open_lesson(budget: str = "quick") -> Lesson:
    """Set a notebook up: seed, figures, data; print what it will run on.

    Args:
        budget: "quick" or "full"; the environment variable ``NNC_BUDGET`` overrides it, ``NNC_DATA`` the data set.

    Raises:
        ValueError: neither quick nor full.
    """
    from helpers import plotting

    budget = checks.choice("budget", os.environ.get("NNC_BUDGET") or budget, BUDGETS)
    torch.manual_seed(0)
    plotting.theme()
    lesson = Lesson(budget, load_data(os.environ.get("NNC_DATA") or "auto"))
    device = results.state().device
    where = (
        f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else results.describe_device(device)
    )
    print(f"{lesson.data}\nbudget {budget}, on {where}")
    return lesson


# -- running all of it -----------------------------------------------------------------------------------------------


def notebooks() -> list[Path]:
    """Return the notebooks in reading order, the solutions after the lessons."""
    return [*sorted(NOTEBOOKS.glob("*.ipynb")), *sorted(NOTEBOOKS.glob("solutions/*.ipynb"))]


def run(budget: str | None = None, only: str = "", *, write: bool = False) -> int:
    """Execute the notebooks whose name contains ``only``; return how many failed.

    Args:
        budget: as in ``open_lesson``. Default: what the notebooks say.
        only: part of a file name.
        write: put each executed notebook, tidied, in the place of its original if it went well, and its figures in figures/.
    """
    import papermill

    table, failures = [], 0
    chosen = [path for path in notebooks() if checks.instance("only", only, str) in path.name]
    if not chosen:
        raise ValueError(
            f"only must be part of a notebook's name, got {only!r}; there are {', '.join(p.name for p in notebooks())}"
        )
    if budget is not None:
        os.environ["NNC_BUDGET"] = checks.choice("budget", budget, BUDGETS)
    os.environ["CIFAR10_ROOT"] = str(cifar10_root().resolve())  # a kernel runs in its notebook's folder
    os.environ["NNC_PUBLISH"] = str(FIGURES if write else BUILD / "figures")
    for number, path in enumerate(chosen, 1):
        target = BUILD / "notebooks" / path.relative_to(NOTEBOOKS)
        target.parent.mkdir(parents=True, exist_ok=True)
        print(f"[{number}/{len(chosen)}] {path.relative_to(HOME)} ...", end=" ", flush=True)
        started, verdict = time.perf_counter(), "ok"
        try:
            papermill.execute_notebook(
                path, target, cwd=path.parent, progress_bar=False, kernel_name="python3"
            )
        except papermill.PapermillExecutionError as error:
            verdict, failures = f"{error.ename}: {error.evalue}".splitlines()[0], failures + 1
        except Exception as error:  # a kernel that died or did not start: the other notebooks still run
            verdict, failures = f"{type(error).__name__}: {error}".splitlines()[0], failures + 1
        minutes = (time.perf_counter() - started) / 60
        print(f"{minutes:.1f} min, {verdict}", flush=True)
        table.append((path.name, minutes, verdict))
        if write and verdict == "ok":
            _write_back(target, path)
    if write:
        results.write_readme()
    print(f"\n{'notebook':<40}{'minutes':>8}  verdict")
    for name, minutes, verdict in table:
        print(f"{name:<40}{minutes:>8.1f}  {verdict}")
    return failures


def _write_back(executed: Path, path: Path) -> None:
    """Keep an executed notebook, without what only its own run meant: progress bars, widget state, papermill's notes."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = [
        cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
    with checks.atomic_path(path) as part:
        nbformat.write(notebook, part)


def _is_noise(output: dict) -> bool:
    return (
        "application/vnd.jupyter.widget-view+json" in output.get("data", {}) or output.get("name") == "stderr"
    )


def test() -> int:
    """Run every test; return how many of its parts failed, after a list of what was skipped."""
    python = [sys.executable, "-m"]
    nbval = [*python, "pytest", "-q", "--nbval-lax", str(NOTEBOOKS)]
    folder = cifar10_root() / CIFAR10_FOLDER
    cores = os.cpu_count() or 1
    workers = min(cores, 4)  # small networks gain more from a second process than from a second thread
    (BUILD / "skipped.txt").unlink(missing_ok=True)
    parts = {
        "ruff check": [*python, "ruff", "check", "helpers", "tests", "notebooks"],
        "ruff format": [*python, "ruff", "format", "--check", "helpers", "tests"],
        "helpers": [*python, "pytest", "-q", "-n", str(workers), "--dist", "loadfile", "tests"],
        "notebooks on digits": nbval,
        "notebooks on cifar10": nbval,
    }
    verdicts = {}
    for name, command in parts.items():
        _, on, data = name.partition(" on ")
        if data == "cifar10" and not folder.exists():
            verdicts[name] = f"skipped: {folder} is not there; make run fetches it where there is a network"
            continue
        print(f"\n== {name}", flush=True)
        started = time.perf_counter()
        environment = {**os.environ, "NNC_BUDGET": "quick", "CIFAR10_ROOT": str(cifar10_root().resolve())}
        environment |= {
            "CUDA_VISIBLE_DEVICES": "",
            "ACCELERATE_USE_CPU": "true",
        }  # outputs and bounds are those of a CPU
        environment |= {"NNC_DATA": data} if on else {}
        environment |= {"OMP_NUM_THREADS": str(cores // workers)} if name == "helpers" else {}
        failed = subprocess.run(command, cwd=HOME, env=environment).returncode
        verdicts[name] = (
            f"{'FAILED' if failed else 'passed'} in {(time.perf_counter() - started) / 60:.1f} min"
        )
    print("\n" + "\n".join(f"{name:<24}{verdict}" for name, verdict in verdicts.items()))
    skipped = (BUILD / "skipped.txt").read_text("utf-8") if (BUILD / "skipped.txt").exists() else ""
    print(
        "\nskipped in helpers, and how to get it:\n" + skipped
        if skipped
        else "\nnothing was skipped in helpers"
    )
    return sum(verdict.startswith("FAILED") for verdict in verdicts.values())


def main() -> None:
    """Parse the command line; the exit status says whether anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.series", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("run", "write", "test"))
    parser.add_argument("--budget", choices=("quick", "full"))
    parser.add_argument("--only", default="", help="part of a notebook's name")
    arguments = parser.parse_args()
    failures = (
        test()
        if arguments.what == "test"
        else run(arguments.budget, arguments.only, write=arguments.what == "write")
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
