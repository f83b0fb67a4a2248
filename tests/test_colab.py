"""The cell that every notebook begins with, run as Colab would run it: PyTorch is there, the series and some packages are not."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import venv
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest

from helpers.data import HOME
from helpers.maintain import colab
from helpers.maintain.series import notebooks

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
print("parameters", sum(p.numel() for p in models.load(models.__file__.replace("helpers/models.py", "data/checkpoints/vgg19_fast_convnet.safetensors")).parameters()))
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
    """A bare clone of this checkout's last commit, with a tag."""
    bare = tmp_path_factory.mktemp("origin") / "series.git"
    if subprocess.run(
        ["git", "clone", "--quiet", "--bare", str(HOME), str(bare)], capture_output=True
    ).returncode:
        pytest.skip("this is not a git checkout: clone the repository to test what Colab would fetch")
    subprocess.run(["git", "-C", str(bare), "tag", "--force", "v9"], check=True, capture_output=True)
    return bare


@pytest.fixture
def session(tmp_path):
    """Colab's session, as its kernel sees it: a server behind a curl that finds no other; returns what sets the answer."""
    answer = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            said = json.dumps([{"name": "x", "path": path} for path in answer["paths"]]).encode()
            self.send_response(200 if self.path == "/api/sessions" else 404)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "bin").mkdir()
    curl, real = tmp_path / "bin" / "curl", shutil.which("curl")
    if real is None:
        pytest.skip("curl is not installed, which the Colab cell calls: apt install curl")
    curl.write_text(
        f'#!/bin/sh\nexec {real} --silent "$(echo "$2" | sed s,//[^/]*:9000,//127.0.0.1:{server.server_port},)"\n'
    )
    curl.chmod(0o755)

    def opened(*paths):
        answer["paths"] = paths
        return {"PATH": f"{curl.parent}:{os.environ['PATH']}", "COLAB_RELEASE_TAG": "release"}

    yield opened
    server.shutdown()


def github(ref="v9", file="notebooks/00_start_here.ipynb", owner="some"):
    """What Colab names a notebook that was opened from GitHub."""
    return "fileId=" + quote(f"https://github.com/{owner}/body/blob/{ref}/{file}", safe="")


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


def test_the_cell_fetches_the_series_and_what_is_missing_and_works_twice(
    fresh, repository, session, tmp_path
):
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
    address = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf"}
    address |= {"GIT_CONFIG_VALUE_0": "https://github.com/some/body"}
    done = run(fresh, tmp_path, colab.CELL, **session(github()) | address)
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
    assert int(said["parameters"]) == 294_786
    assert said["once"] == "1"
    counts = [line.rpartition("installed: ")[2] for line in done.stdout.splitlines() if "as before" in line]
    assert counts == ["2 packages that were missing", "0 packages that were missing"]


def asked_of_git(tmp_path, environment):
    """Run the cell with a git that only writes down what it was asked for; return that, and what the cell said."""
    git = tmp_path / "bin" / "git"
    git.parent.mkdir(exist_ok=True)
    git.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit 1\n')
    git.chmod(0o755)
    done = run(sys.executable, tmp_path, colab.CELL, **environment)
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    return asked, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("ref", ["main", "feature/x", "v1.2.3"])
def test_it_fetches_what_colab_has_opened(session, tmp_path, ref):
    opened = github(ref), github(ref, "notebooks/solutions/00_start_here.ipynb")  # two tabs of one series
    asked, _ = asked_of_git(tmp_path, session(*opened))
    home = tmp_path / "nn-compression-tutorials"
    assert asked == f"clone --quiet --depth=1 --branch={ref} https://github.com/some/body {home}\n"


@pytest.mark.parametrize(
    "paths",
    [
        (),
        ("fileId=1AbCdEfG",),  # a copy in Google Drive
        (github(), github(owner="another")),
        ("fileId=" + quote("https://evil.example/some/body/blob/main/notebooks/x.ipynb", safe=""),),
        (
            "fileId="
            + quote("https://github.com.evil.example/some/body/blob/main/notebooks/x.ipynb", safe=""),
        ),
    ],
)
def test_it_fetches_nothing_from_where_nobody_said(session, tmp_path, paths):
    asked, said = asked_of_git(tmp_path, session(*paths))
    assert asked == ""
    assert "NNC_REPOSITORY" in said


def test_an_address_of_the_reader_s_own_comes_first(session, tmp_path):
    asked, _ = asked_of_git(tmp_path, session(github()) | {"NNC_REPOSITORY": "https://example.org/mine"})
    assert asked.split()[:4] == ["clone", "--quiet", "--depth=1", "https://example.org/mine"]


def test_elsewhere_the_cell_does_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", colab.CELL],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("COLAB_")}
        | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_notebook_has_the_cell_and_the_badge_of_whoever_published_it(path):
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.source for cell in cells if "colab" in cell.metadata.get("tags", [])] == [colab.CELL]
    address = re.search(r'^Repository = "(.+)"$', (HOME / "pyproject.toml").read_text(), re.MULTILINE)
    badges = [line for line in cells[0].source.splitlines() if "colab.research" in line]
    if address is None:
        assert badges == []
    else:
        owned = address[1].removeprefix("https://github.com/")
        assert len(badges) == 1
        assert f"/github/{owned}/blob/v" in badges[0]
        assert badges[0].endswith(f"/{path.relative_to(HOME).as_posix()})")


def test_a_stamp_is_put_on_once_and_taken_off(tmp_path, monkeypatch):
    cells = [
        nbformat.v4.new_markdown_cell("# Title\n\nText\n\nMore"),
        nbformat.v4.new_code_cell("budget = 1"),
    ]
    cells.append(nbformat.v4.new_code_cell("old", metadata={"tags": ["colab"]}))
    path = tmp_path / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nversion = "1.2.3"\n\n[tool.x]\n')
    monkeypatch.setattr(colab, "HOME", tmp_path)
    colab.stamp([path])
    bare = path.read_text(), project.read_text()
    assert nbformat.read(path, as_version=4).cells[0].source == "# Title\n\nText\n\nMore"
    assert nbformat.read(path, as_version=4).cells[2].source == colab.CELL
    for address in (
        "https://github.com/other/body",
        "https://github.com/some/body",
        "https://github.com/some/body",
    ):
        colab.stamp([path], address)
    text = nbformat.read(path, as_version=4).cells[0].source
    assert re.fullmatch(r"# Title\n\n\[!\[Open in Colab\]\(\S+\)\]\(\S+\)\n\nText\n\nMore", text)
    assert "(https://colab.research.google.com/github/some/body/blob/v1.2.3/one.ipynb)" in text
    assert project.read_text().count('Repository = "https://github.com/some/body"\n') == 1
    assert "other" not in project.read_text()
    colab.stamp([path])
    assert (path.read_text(), project.read_text()) == bare


@pytest.mark.parametrize(
    "address", ["github.com/some/body", "https://gitlab.com/a/b", "https://github.com/a", "x"]
)
def test_an_address_that_colab_cannot_open_is_refused(address):
    with pytest.raises(ValueError, match=r"address must be https://github\.com/OWNER/NAME"):
        colab.stamp([], address)


def test_what_is_installed_is_not_asked_for_and_pytorch_never():
    needed, export = colab.missing(
        "# Ranges\ntorch>=99\nabsent-package>=1\npandas>=99\njupyterlab\n# export\nalso-absent\n# tests\nnever-mind"
    )
    assert (needed, export) == (["absent-package>=1"], ["also-absent"])
