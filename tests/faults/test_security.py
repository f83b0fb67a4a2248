"""What could let somebody in: pickles, code in files, open ports, unchecked downloads."""

import ast
import hashlib
import http.server
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import torch

from helpers import data, models
from helpers.data import HOME, DataError, load_data
from helpers.training import fit

SOURCES = [*sorted((HOME / "helpers").rglob("*.py")), *sorted((HOME / "notebooks").rglob("*.ipynb"))]
DANGEROUS = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "eval", "exec", "os.system", "os.popen", "torch.load",
    "torch.jit.load", "torch.hub.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load",
}  # fmt: skip


def code(path):
    """The Python of a module, or of a notebook's cells without IPython's own lines."""
    if path.suffix == ".py":
        return path.read_text("utf-8")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    lines = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("!", "%")))


def called(node):
    """The dotted name of what a call or an import names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call):
        return [ast.unparse(node.func)]
    return []


# TorchServe's worker reads the TorchScript that we packed: PyTorch's C++ reader, which makes no Python object but tensors and its own types
EXEMPT = {
    ("handler.py", "torch.jit.load"),
    ("data.py", "pickle"),  # CIFAR-10's own files, once their MD5 is the published one
    ("data.py", "pickle.loads"),
    ("results.py", "np.load"),  # with allow_pickle=False
    ("lesson.py", "np.load"),  # likewise
    ("run.py", "np.load"),  # likewise
    *(
        ("__main__.py", name)
        for name in ("joblib", "joblib.Parallel", "joblib.delayed", "joblib.parallel_config")
    ),
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_unpickled_evaluated_or_run_through_a_shell(path):
    for node in ast.walk(ast.parse(code(path))):
        for name in called(node):
            found = {name, name.split(".")[0]} & DANGEROUS
            assert not found or (path.name, name) in EXEMPT, f"{path.name}:{node.lineno} {name}"
        if isinstance(node, ast.keyword):
            assert (node.arg, ast.unparse(node.value)) not in {
                ("shell", "True"),
                ("allow_pickle", "True"),
                ("weights_only", "False"),
            }


def test_the_search_finds_what_it_looks_for():
    bad = "import pickle\nfrom torch import load\nx = torch.load('a')\neval('1')\nfrom joblib import dump"
    found = {name for node in ast.walk(ast.parse(bad)) for name in called(node)}
    assert {"pickle", "torch.load", "eval", "joblib"} <= found & DANGEROUS


def test_no_class_is_looked_up_for_a_pickle_while_training_saving_and_loading(tmp_path):
    """By Python's own audit: the event that unpickling a class raises."""
    seen = []
    active = [True]

    def watch(event, arguments):
        if active[0] and event == "pickle.find_class":
            seen.append(arguments)

    sys.addaudithook(watch)
    try:
        model, pictures = models.build("tiny_convnet", width=0.1), load_data("digits", train_limit=64)
        for _ in range(2):  # the second goes on from the checkpoint
            fit(
                model,
                pictures,
                epochs=1,
                batch_size=64,
                checkpoint=tmp_path / "run.safetensors",
                progress=False,
            )
        models.load(models.save(model, tmp_path / "model.safetensors", storage="zip"))
        assert not seen
        torch.save(model, tmp_path / "whole.pt")
        torch.load(tmp_path / "whole.pt", weights_only=False)  # the audit sees what it should
        assert seen
    finally:
        active[0] = False


def test_every_file_is_written_through_atomic_path():
    """A write outside it could be left half done."""
    writes = re.compile(
        r"\.(write_text|write_bytes|to_csv|savefig)$|^(save_file|torch\.save|nbformat\.write)$"
    )
    exempt = {
        ("widgets.py", "png"),
        ("lesson.py", "publish"),
        ("torchserve.py", "_pack"),
        ("torchserve.py", "_configure"),
    }  # into memory; into a folder that is then thrown away
    for path in sorted((HOME / "helpers").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            safe = {
                inner
                for node in ast.walk(function)
                if isinstance(node, ast.With)
                and any(
                    any(safe in ast.unparse(item) for safe in ("atomic_path", "Temporary", "writing("))
                    for item in node.items
                )
                for inner in ast.walk(node)
            }
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and writes.search(ast.unparse(node.func)) and node not in safe:
                    assert (path.name, function.name) in exempt, (
                        f"{path.name}:{node.lineno} {ast.unparse(node)[:60]}"
                    )


# -- ports -------------------------------------------------------------------------------------------------------------


def test_no_address_is_open_to_all_and_no_token_is_switched_off():
    files = [*SOURCES, HOME / "Makefile", HOME / "README.md", *(HOME / ".ci").iterdir()]
    for path in files:
        text = path.read_text("utf-8")
        assert not re.search(r"0\.0\.0\.0|--ip[= ]['\"]?\*|\"::\"", text), path.name
        assert not re.search(
            r"token=(''|\"\")|disable_token_auth\w*\s*=\s*[Tt]rue|--disable-token-auth|allow_unauthenticated",
            text,
        ), path.name


def test_jupyterlab_as_the_makefile_starts_it_listens_on_loopback_only_and_wants_a_token(tmp_path):
    line = next(
        line for line in (HOME / "Makefile").read_text("utf-8").splitlines() if "/jupyter lab" in line
    )
    arguments = [
        word
        for word in shlex.split(line.split("jupyter lab")[1].replace("$(LAB_ARGS)", ""))
        if "default_url" not in word
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    environment |= {
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(tmp_path),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "HOME": str(tmp_path),
    }
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        *arguments,
    ]
    command += ["--allow-root", f"--ServerApp.root_dir={tmp_path}"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        assert _answer(server, f"http://127.0.0.1:{port}/api/status?token={token}", tmp_path / "log") == 200
        assert _answer(server, f"http://127.0.0.1:{port}/api/contents", tmp_path / "log") == 403
        process = psutil.Process(server.pid)
        listening = [
            one for child in (process, *process.children(recursive=True)) for one in _listening(child)
        ]
        assert listening
        assert {one.laddr.ip for one in listening} <= {"127.0.0.1", "::1"}
    finally:
        server.terminate()
        server.wait(20)


def _listening(process):
    try:
        return [one for one in process.net_connections() if one.status == "LISTEN"]
    except psutil.NoSuchProcess:  # a child that has ended since it was listed
        return []


def _answer(server, address, log):
    for _ in range(240):
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(log.read_text())


# -- downloads ---------------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_an_archive_with_another_checksum_is_not_unpacked(tmp_path, monkeypatch):
    """A host that serves something else under CIFAR-10's name, on the loopback address."""
    from torchvision.datasets import CIFAR10

    served, root = tmp_path / "served", tmp_path / "root"
    (served / data.CIFAR10_FOLDER).mkdir(parents=True)
    (served / data.CIFAR10_FOLDER / "data_batch_1").write_bytes(b"anything")
    with tarfile.open(served / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(served / data.CIFAR10_FOLDER, data.CIFAR10_FOLDER)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Quiet(*arguments, directory=served)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
    monkeypatch.setattr(data, "CIFAR10_URL", address)
    monkeypatch.setattr(CIFAR10, "url", address)
    try:
        with pytest.raises(DataError, match=r"could not be fetched .*Way out"):
            load_data("cifar10", root=root)
    finally:
        server.shutdown()
        server.server_close()
    assert [path.name for path in root.iterdir() if path.name != ".cifar10.lock"] == []


def test_torchvision_lists_a_checksum_for_every_file_that_is_unpickled():
    from torchvision.datasets import CIFAR10

    listed = [
        *CIFAR10.train_list,
        *CIFAR10.test_list,
        [CIFAR10.meta["filename"], CIFAR10.meta["md5"]],
        [CIFAR10.filename, CIFAR10.tgz_md5],
    ]
    assert len(listed) == 8
    assert all(re.fullmatch(r"[0-9a-f]{32}", md5) for _, md5 in listed)
    assert hashlib.md5(b"", usedforsecurity=False).hexdigest() not in {md5 for _, md5 in listed}


def test_what_is_installed_is_bounded_above():
    """An unbounded requirement takes whatever is published next; these few cannot break what we rely on."""
    lines = [line.strip() for line in Path(HOME / "requirements.txt").read_text("utf-8").splitlines()]
    loose = {
        re.split(r"[<>=~!;\[ ]", line)[0]
        for line in lines
        if line and not line.startswith("#") and "<" not in line and "==" not in line
    }
    assert loose <= {"filelock", "psutil", "setuptools"}
