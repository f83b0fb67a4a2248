"""The series in Google Colab: the badge and the cell that each notebook begins with, and what that cell runs.

``python -m helpers.colab`` installs what is missing here, and never touches PyTorch: that is what the cell calls in Colab.
``python -m helpers.colab --stamp`` writes badge and cell into the notebooks anew, for the repository and version that pyproject.toml
names: whoever publishes the series elsewhere changes the address there, and runs it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
NEVER = (
    "torch",
    "torchvision",
    "numpy",
)  # Colab's own, loaded perhaps already: another version would break the running kernel
NEEDLESS = ("jupyterlab", "papermill")  # Colab is the notebook

CELL = """\
# In Colab only: fetch the series at its tag and install what Colab lacks; its PyTorch stays. Elsewhere this does nothing.
import os
import shutil
import subprocess
import sys

if any(name.startswith("COLAB_") for name in os.environ):
    home = os.path.expanduser("~/nn-compression-tutorials")
    source = os.environ.get("NNC_REPOSITORY", "{repository}")
    if not os.path.isdir(home):
        shutil.rmtree(home + ".part", ignore_errors=True)
        subprocess.run(["git", "clone", "--quiet", "--depth=1", "--branch={tag}", source, home + ".part"], check=True)
        os.rename(home + ".part", home)
    subprocess.run([sys.executable, "-m", "helpers.colab"], cwd=home, check=True)
    if home not in sys.path:
        sys.path.insert(0, home)"""
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"


def published() -> tuple[str, str]:
    """Return the repository's public address and the tag of this version, from pyproject.toml."""
    text = (HOME / "pyproject.toml").read_text("utf-8")
    found = [re.search(rf'^{key} = "([^"]+)"$', text, re.MULTILINE) for key in ("Repository", "version")]
    if None in found:
        raise ValueError("pyproject.toml must say version and, under [project.urls], Repository")
    return found[0][1].removesuffix("/"), f"v{found[1][1]}"


def cell() -> str:
    """Return the source of the Colab cell, the same in every notebook."""
    repository, tag = published()
    return CELL.format(repository=repository, tag=tag)


def badge(notebook: str) -> str:
    """Return the badge that opens ``notebook`` (its path inside the repository) in Colab, as Markdown."""
    repository, tag = published()
    return BADGE.format(
        address=f"https://colab.research.google.com/github/{repository.partition('github.com/')[2]}/blob/{tag}/{notebook}"
    )


def stamp(paths: list[Path]) -> None:
    """Write badge and cell into notebooks: the badge under the title, the cell after the one tagged ``parameters``."""
    import nbformat

    from helpers import checks

    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        title, _, rest = notebook.cells[0].source.partition("\n")
        rest = re.sub(r"^\s*\[!\[Open in Colab\].*\n", "", rest)
        notebook.cells[0].source = f"{title}\n\n{badge(path.relative_to(HOME).as_posix())}\n\n{rest.lstrip()}"
        here = next((one for one in notebook.cells if "colab" in one.metadata.get("tags", [])), None)
        if here is None:
            here = nbformat.v4.new_code_cell(metadata={"tags": ["colab"], "jupyter": {"source_hidden": True}})
            after = next(
                n for n, one in enumerate(notebook.cells) if "parameters" in one.metadata.get("tags", [])
            )
            notebook.cells.insert(after + 1, here)
        here.source = cell()
        with checks.atomic_path(path) as part:
            nbformat.write(notebook, part)


def missing(requirements: str) -> tuple[list[str], list[str]]:
    """Return the requirements of packages that are not installed here at all: what every notebook needs, and what export needs.

    A package that is here in an older version stays as it is: the running kernel may have loaded it.

    Args:
        requirements: the text of requirements.txt; its comments divide it into parts.
    """
    needed, export = [], []
    part = needed
    for line in requirements.splitlines():
        if line.startswith("#"):
            part = needed if line.startswith("# Ranges") else export if line.startswith("# export") else []
        elif line.strip():
            name = re.match(r"[\w-]+", line)[0]
            if name not in NEVER + NEEDLESS and not _installed(name):
                part.append(line.strip())
    return needed, export


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def install() -> None:
    """Install what is missing, beside the PyTorch and NumPy that are here.

    Raises:
        RuntimeError: a package that every notebook needs could not be installed.
    """
    needed, export = missing((HOME / "requirements.txt").read_text("utf-8"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "constraints.txt"
        pins.write_text(
            "".join(f"{name}=={found}\n" for name in NEVER if (found := _installed(name))), "utf-8"
        )
        pip += ["--constraint", str(pins)]
        if needed and subprocess.run([*pip, *needed]).returncode:
            raise RuntimeError(
                f"pip could not install {', '.join(needed)}: see its message above. Way out: run this cell again."
            )
        refused = [one for one in export if subprocess.run([*pip, one], capture_output=True).returncode]
    found = [f"{name} {_installed(name)}" for name in ("torch", "torchvision")]
    print(
        f"{', '.join(found)} as before; installed: {len(needed) + len(export) - len(refused)} packages that were missing"
    )
    if refused:
        print(f"cannot be had beside them, so the cells of 05 that need them fail: {', '.join(refused)}")


def main() -> None:
    """Parse the command line."""
    line = argparse.ArgumentParser(
        prog="python -m helpers.colab", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    line.add_argument("--stamp", action="store_true", help="write badge and cell into the notebooks")
    if line.parse_args().stamp:
        from helpers.series import notebooks

        stamp(notebooks())
    else:
        install()


if __name__ == "__main__":
    main()
