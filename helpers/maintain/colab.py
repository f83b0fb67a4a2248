"""The series in Google Colab: the badge and the cell that each notebook begins with, and what that cell runs.

``python -m helpers.maintain.colab`` is what the cell calls in Colab: it installs what is missing there, and
never touches PyTorch. With ``--stamp https://github.com/OWNER/NAME``, whoever publishes the series there puts
the badge into every notebook; ``--stamp ""`` takes it out again.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
COLAB = "https://colab.research.google.com"
NEVER = (
    "torch",
    "torchvision",
    "numpy",
)  # Colab's own, loaded perhaps: another version would break the kernel
NEEDLESS = ("jupyterlab", "papermill")  # Colab is the notebook

CELL = r"""# In Colab only: fetch the series from the repository this notebook was opened from, and install what Colab lacks.
import os
import re
import subprocess
import sys
from urllib.parse import unquote

if any(name.startswith("COLAB_") for name in os.environ):
    home, given = os.path.expanduser("~/nn-compression-tutorials"), os.environ.get("NNC_REPOSITORY")
    if not os.path.isdir(home):
        asked = ["bash", "-c", "curl --silent http://$(hostname):9000/api/sessions"]  # Colab knows what it has opened
        opened = unquote(subprocess.run(asked, capture_output=True, text=True).stdout)
        found = {*re.findall(r'"fileId=(https://github\.com/[\w.-]+/[\w.-]+)/blob/([^"]+)/notebooks/', opened)}
        if not given and len(found) != 1:
            sys.exit("Colab does not say which repository this notebook is from: run %env NNC_REPOSITORY=ADDRESS, one you trust, first.")
        source = [given] if given else [part for address, ref in found for part in (f"--branch={ref}", address)]
        subprocess.run(["git", "clone", "--quiet", "--depth=1", *source, home], check=True)
    subprocess.run([sys.executable, "-m", "helpers.maintain.colab"], cwd=home, check=True)
    sys.path[:] = [home, *(path for path in sys.path if path != home)]"""  # noqa: E501


def stamp(paths: list[Path], address: str = "") -> None:
    """Write an address into pyproject.toml, and badge and cell into notebooks; without one, no badge."""
    import nbformat

    # not above: what installs PyTorch's friends cannot import them
    from helpers.files import atomic_path, keep

    if address and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise ValueError(f"address must be https://github.com/OWNER/NAME, which Colab opens, got {address!r}")
    project = HOME / "pyproject.toml"
    urls = f'[project.urls]\nRepository = "{address}"\n\n' if address else ""
    text = re.sub(r"\[project\.urls\]\nRepository = .*\n\n", "", project.read_text("utf-8"))
    keep(project, text.replace("[tool.", f"{urls}[tool.", 1).encode())
    tag = "v" + re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1]
    page = f"{COLAB}/github/{address.removeprefix('https://github.com/')}/blob/{tag}"
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        title, _, rest = re.sub(r"\[!\[Open in Colab\].*", "", notebook.cells[0].source).partition("\n")
        badge = (
            f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({page}/{path.relative_to(HOME).as_posix()})"
        )
        notebook.cells[0].source = "\n\n".join([title, *[badge][: bool(address)], rest.strip()])
        next(cell for cell in notebook.cells if cell.metadata.get("tags") == ["colab"]).source = CELL
        with atomic_path(path) as part:
            nbformat.write(notebook, part)


def missing(requirements: str) -> list[list[str]]:
    """Return the requirements of packages that are not here at all, of every notebook and of export.

    A package that is here in an older version stays as it is: the running kernel may have loaded it. Comments
    divide ``requirements``, the text of requirements.txt, into these two parts and more.
    """
    here = {*NEVER, *NEEDLESS, *_installed()}
    parts = re.split(r"^#.*\n", requirements, flags=re.MULTILINE)[1:3]
    return [[one for one in part.split() if re.match(r"[\w-]+", one)[0] not in here] for part in parts]


def _installed() -> dict[str, str]:
    return {one.name.replace("_", "-").lower(): one.version for one in distributions()}


def install() -> None:
    """Install what is missing, beside the PyTorch and NumPy that are here."""
    needed, export = missing((HOME / "requirements.txt").read_text("utf-8"))
    here = _installed()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        print(*(f"{name}=={here[name]}" for name in NEVER if name in here), sep="\n", file=pins, flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", pins.name]
        if needed and subprocess.run([*pip, *needed]).returncode:
            raise RuntimeError(
                f"pip could not install {', '.join(needed)}: see above. Way out: run this cell again."
            )
        refused = [one for one in export if subprocess.run([*pip, one], capture_output=True).returncode]
    count = len(needed) + len(export) - len(refused)
    print(f"torch {here['torch']} as before; installed: {count} packages that were missing")
    if refused:
        print(f"cannot be had beside it, so the cells of 05 that need them fail: {', '.join(refused)}")


def main() -> None:
    """Parse the command line."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    line.add_argument("--stamp", metavar="ADDRESS")
    address = line.parse_args().stamp
    if address is None:
        install()
    else:
        stamp(sorted((HOME / "notebooks").rglob("*.ipynb")), address.removesuffix("/"))


if __name__ == "__main__":
    main()
