"""The cell that every notebook begins with, run as Colab would run it: PyTorch is there, the series and some packages are not."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest

from helpers import colab
from helpers.data import HOME
from helpers.series import notebooks

ABSENT = (
    "seaborn",
    "torch_pruning",
    "nn_compression",
    "__editable__",
)  # what the fresh environment lacks, by the start of its name
BOTH_TIMES = """
import os, sys
cell = sys.stdin.read()
exec(cell)
exec(cell)
import torch, seaborn, torch_pruning
from helpers import models
print("torch", torch.__version__, os.path.dirname(os.path.realpath(torch.__file__)))
print("helpers", models.__file__)
print("parameters", sum(p.numel() for p in models.load(models.__file__.replace("helpers/models.py", "data/checkpoints/vgg19_combined.safetensors")).parameters()))
print("once", sys.path.count(home))
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A virtual environment with the packages of this one, but for some."""
    folder = tmp_path_factory.mktemp("colab") / "venv"
    venv.create(folder, with_pip=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if not each.name.startswith((*ABSENT, "pip")) and not (site / each.name).exists():
            (site / each.name).symlink_to(each)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A bare clone of this checkout's last commit, tagged as the cell asks."""
    bare = tmp_path_factory.mktemp("origin") / "series.git"
    if subprocess.run(
        ["git", "clone", "--quiet", "--bare", str(HOME), str(bare)], capture_output=True
    ).returncode:
        pytest.skip("this is not a git checkout: clone the repository to test what Colab would fetch")
    subprocess.run(
        ["git", "-C", str(bare), "tag", "--force", colab.published()[1]], check=True, capture_output=True
    )
    return bare


def run(python, home, cell, **environment):
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COLAB_", "PYTHON", "VIRTUAL_ENV"))
    }
    return subprocess.run(
        [str(python), "-c", BOTH_TIMES],
        input=cell,
        cwd=home,
        env=kept | {"HOME": str(home)} | environment,
        capture_output=True,
        text=True,
    )


def test_the_cell_fetches_the_series_and_what_is_missing_and_works_twice(fresh, repository, tmp_path):
    reachable = [
        str(fresh),
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(tmp_path / "wheels"),
        "seaborn",
    ]
    if subprocess.run(reachable, capture_output=True).returncode:
        pytest.skip("no package index can be reached: the Colab cell is tested where pip can install")
    done = run(fresh, tmp_path, colab.cell(), COLAB_RELEASE_TAG="release", NNC_REPOSITORY=repository.as_uri())
    assert done.returncode == 0, done.stderr[-2000:]
    said = dict(
        line.split(" ", 1)
        for line in done.stdout.splitlines()
        if line.split()[0] in ("torch", "helpers", "parameters", "once")
    )
    import torch

    assert (
        said["torch"] == f"{torch.__version__} {Path(torch.__file__).parent}"
    )  # Colab's own, not another copy
    assert Path(said["helpers"]) == tmp_path / "nn-compression-tutorials" / "helpers" / "models.py"
    assert int(said["parameters"]) == 2_230_378
    assert said["once"] == "1"
    counts = [line.rpartition("installed: ")[2] for line in done.stdout.splitlines() if "as before" in line]
    assert counts == ["2 packages that were missing", "0 packages that were missing"]


def test_elsewhere_the_cell_does_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", colab.cell()],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("COLAB_")}
        | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_notebook_has_the_badge_and_the_cell(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source.splitlines()[2] == colab.badge(path.relative_to(HOME).as_posix())
    assert [cell.source for cell in cells if "colab" in cell.metadata.get("tags", [])] == [colab.cell()]


def test_a_stamp_is_put_on_once(tmp_path, monkeypatch):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Title\n\nText"), nbformat.v4.new_code_cell("budget = 1")]
    )
    notebook.cells[1].metadata["tags"] = ["parameters"]
    path = tmp_path / "one.ipynb"
    nbformat.write(notebook, path)
    (tmp_path / "pyproject.toml").write_text(
        'version = "1.2.3"\nRepository = "https://github.com/some/body/"\n'
    )
    monkeypatch.setattr(colab, "HOME", tmp_path)
    colab.stamp([path])
    once = path.read_text()
    colab.stamp([path])
    assert path.read_text() == once
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source.startswith("# Title\n\n[![Open in Colab]")
    assert (
        "(https://colab.research.google.com/github/some/body/blob/v1.2.3/one.ipynb)\n\nText"
        in cells[0].source
    )
    assert '"--branch=v1.2.3"' in cells[2].source
    assert '"https://github.com/some/body"' in cells[2].source


def test_what_is_installed_is_not_asked_for_and_pytorch_never():
    needed, export = colab.missing(
        "# Ranges\ntorch>=99\nabsent-package>=1\npandas>=99\njupyterlab\n# export\nalso-absent\n# tests\nnever-mind"
    )
    assert (needed, export) == (["absent-package>=1"], ["also-absent"])


def test_a_project_without_an_address_is_refused(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('version = "1.2.3"\n')
    monkeypatch.setattr(colab, "HOME", tmp_path)
    with pytest.raises(ValueError, match=r"pyproject\.toml must say version and"):
        colab.published()
