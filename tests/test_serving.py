"""A real TorchServe on 127.0.0.1, and the handler it runs: pictures in, classes out, and everything else refused for itself."""

import ast
import base64
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from helpers import export
from helpers.data import HOME, load_data
from helpers.deploy import handler, torchserve
from helpers.evaluation import predict
from tests.small import trained

pytest.importorskip(
    "model_archiver", reason="torch-model-archiver is not installed: pip install -r requirements.txt"
)

NAMES = tuple(f"digit {number}" for number in range(10))


def _file(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def some():
    return load_data("digits").test.take(slice(0, 32))


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def archive(model, some, tmp_path_factory):
    return torchserve.to_torchserve(
        model, tmp_path_factory.mktemp("archive") / "digits.mar", some, classes=NAMES
    )


@pytest.fixture
def worker(archive):
    with torchserve.unpacked_handler(archive) as (worker, context):
        yield lambda *files: (worker.handle([{"body": file} for file in files], context), context.statuses)


@pytest.fixture(scope="module")
def server(archive):
    if shutil.which("java") is None:
        pytest.skip("TorchServe needs Java: apt install default-jre-headless")
    pytest.importorskip("ts", reason="TorchServe is not installed: pip install -r requirements.txt")
    with torchserve.serving(archive) as server:
        yield server


# -- the handler in this process -------------------------------------------------------------------------------------


def test_the_handler_stands_alone():
    tree = ast.parse(Path(handler.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names) | {"torch", "PIL"}
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == [
        "PictureHandler"
    ]  # TorchServe wants one class


def test_probabilities_are_pytorchs(worker, model, some):
    answers, statuses = worker(*(torchserve.png(image) for image in some.images))
    expected = predict(model, some).softmax(1)
    assert statuses == {}
    assert [answer["label"] for answer in answers] == expected.argmax(1).tolist()
    assert [answer["class"] for answer in answers] == [NAMES[label] for label in expected.argmax(1)]
    assert np.allclose([answer["probability"] for answer in answers], expected.max(1).values, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_other_colours_and_sizes_are_read(worker, some, mode):
    image = Image.open(io.BytesIO(torchserve.png(some.images[0])))
    large = image.resize((100, 60)).convert(mode)
    answers, statuses = worker(
        _file(large, "JPEG" if mode == "CMYK" else "PNG"), _file(image, "JPEG", quality=95)
    )
    assert statuses == {}
    assert all(0.1 <= answer["probability"] <= 1 for answer in answers)
    assert answers[1]["label"] == worker(torchserve.png(some.images[0]))[0][0]["label"]


def test_pictures_are_turned_as_their_camera_held_them_and_16_bits_of_grey_are_scaled(worker, some):
    upright = Image.open(io.BytesIO(torchserve.png(some.images[0])))
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    ramp = np.linspace(0, 255, 32 * 32).astype(np.uint16).reshape(32, 32)
    grey, deep = Image.fromarray(ramp.astype(np.uint8)), Image.fromarray(ramp * 257)
    answers, statuses = worker(_file(upright), _file(turned, exif=exif), _file(grey), _file(deep))
    assert statuses == {}
    assert answers[0] == answers[1]
    assert answers[2] == answers[3]


def test_what_is_no_picture_is_refused_and_the_others_are_answered(worker, some):
    good = torchserve.png(some.images[0])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8))
    bad = {
        "empty": (b"", 400), "text": (b"hello", 400), "cut off": (good[: len(good) // 2], 400), "GIF": (_file(noise, "GIF")[:5000], 400),
        "too many bytes": (_file(noise), 413), "too many pixels": (_file(Image.new("1", (3000, 3000))), 413),
        "bomb": (_file(Image.new("1", (20_000, 20_000))), 413), "altered": (good[:40] + bytes(20) + good[60:], 400),
    }  # fmt: skip
    files = [good, *(file for file, _ in bad.values()), good]
    answers, statuses = worker(*files)
    assert {place: code for place, (code, _) in statuses.items()} == dict(
        enumerate((code for _, code in bad.values()), start=1)
    )
    assert all(answers[place]["error"] == reason for place, (_, reason) in statuses.items())
    assert answers[0] == answers[-1]
    assert set(answers[0]) == {"class", "label", "probability"}


def test_whatever_pillow_raises_costs_nobody_else_the_answer(worker, some, monkeypatch):
    """Damaged files, seeded: some still decode, none may raise. And for what none of them triggers, an error of no special kind."""
    draw, good = np.random.default_rng(0), torchserve.png(some.images[0])
    image = Image.open(io.BytesIO(good))
    originals, damaged = (good, _file(image, "JPEG", quality=90), _file(image.convert("P"))), []
    for number in range(300):
        file = bytearray(originals[number % 3])
        if number % 2:
            file = file[: draw.integers(1, len(file))]
        for place in draw.integers(0, len(file), 1 + number % 4):
            file[place] = draw.integers(256)
        damaged.append(bytes(file))
    for start in range(0, len(damaged), 30):
        answers, statuses = worker(good, *damaged[start : start + 30], good)
        alone = worker(good)[0][0]
        for answer in (answers[0], answers[-1]):  # a processor may round another size of batch in another way
            assert answer == alone | {"probability": pytest.approx(alone["probability"], abs=1e-6)}
        assert {place for place, answer in enumerate(answers) if "error" in answer} == set(statuses) - {0}
        assert all(code in (400, 413) for code, _ in statuses.values())
        statuses.clear()
    honest = Image.Image.convert

    def broken(image, *arguments):
        if image.size == (7, 7):
            raise struct.error("unpack requires a buffer of 4 bytes")
        return honest(image, *arguments)

    monkeypatch.setattr(Image.Image, "convert", broken)
    answers, statuses = worker(good, _file(Image.new("RGB", (7, 7))), good)
    assert ("class" in answers[0], statuses[1][0], "class" in answers[2]) == (True, 400, True)
    assert "(error)" in answers[1]["error"]


def test_an_archive_classifies_as_pytorch_does(archive, model, some, tmp_path):
    assert torch.equal(export.archive_labels(archive, some), predict(model, some).argmax(1))
    with pytest.raises(FileNotFoundError, match=r"absent\.mar does not exist"):
        export.archive_labels(tmp_path / "absent.mar", some)
    with pytest.raises(ValueError, match=r"path must end in \.mar"):
        export.archive_labels(tmp_path / "model.pt", some)


def test_a_body_that_is_not_bytes_and_a_batch_that_is_too_long_are_refused(archive, some):
    with torchserve.unpacked_handler(archive) as (worker, context):
        answers = worker.handle(
            [{"body": {"picture": 1}}, {}, {"data": torchserve.png(some.images[0])}], context
        )
        assert ([code for code, _ in context.statuses.values()], "class" in answers[2]) == ([400, 400], True)
        context.statuses.clear()
        answers = worker.handle([{"body": torchserve.png(some.images[0])}] * (handler.MAX_BATCH + 2), context)
        assert [place for place, (code, _) in context.statuses.items() if code == 503] == [
            handler.MAX_BATCH,
            handler.MAX_BATCH + 1,
        ]
        assert sum("class" in answer for answer in answers) == handler.MAX_BATCH
        assert worker.handle([], context) == []


def test_classes_must_be_as_many_as_logits(model, some, tmp_path):
    with pytest.raises(ValueError, match=r"of the 10 logits, got 2 names\. Way out: classes=data"):
        torchserve.to_torchserve(model, tmp_path / "digits.mar", some, classes=("one", "two"))
    with pytest.raises(TypeError, match="classes must be a collection"):
        torchserve.to_torchserve(model, tmp_path / "digits.mar", some, classes="0123456789")
    assert list(tmp_path.iterdir()) == []


def test_pictures_without_classes_are_numbered_and_nobody_elses_names_are_taken(some, tmp_path, monkeypatch):
    monkeypatch.setattr(torchserve, "default_data", lambda: pytest.fail("names of other pictures"))
    four = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(48, 4))
    path = torchserve.to_torchserve(four, tmp_path / "own.mar", some.take(slice(0, 3)))
    with torchserve.unpacked_handler(path) as (handler, _):
        assert handler.settings["classes"] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("name", ["my model.mar", "modèle.mar", "-x.mar", "a&b.mar"])
def test_a_name_that_cannot_stand_in_a_url_is_refused_as_such(model, some, tmp_path, name):
    with pytest.raises(ValueError, match=f"path must name the file by letters, digits.*{re.escape(name)}"):
        torchserve.to_torchserve(model, tmp_path / name, some, classes=NAMES)
    assert list(tmp_path.iterdir()) == []


# -- a real server ---------------------------------------------------------------------------------------------------


def test_single_pictures(server, model, some):
    expected = predict(model, some).softmax(1)
    for image, probabilities in zip(some.images[:4], expected[:4], strict=True):
        status, answer = server.post(torchserve.png(image))
        label = int(probabilities.argmax())
        assert (status, answer["class"], answer["label"]) == (200, NAMES[label], label)
        assert answer["probability"] == pytest.approx(float(probabilities.max()), abs=1e-4)


def test_a_jpeg_is_answered_as_the_handler_answers_it_here(server, worker, some):
    jpeg = _file(Image.open(io.BytesIO(torchserve.png(some.images[0]))).resize((64, 48)), "JPEG", quality=90)
    status, answer = server.post(jpeg)
    here = worker(jpeg)[0][0]
    assert (status, answer["class"], answer["label"]) == (200, here["class"], here["label"])
    assert answer["probability"] == pytest.approx(here["probability"], abs=1e-4)


def test_sixteen_at_a_time_and_a_broken_one_among_them(server, model, some):
    files = [torchserve.png(image) for image in some.images[:16]]
    files[5] = files[5][:60]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(server.post, files))
    expected = predict(model, some).argmax(1).tolist()
    assert [answer.get("label") for _, answer in answers] == [*expected[:5], None, *expected[6:16]]
    assert [status for status, _ in answers] == [200] * 5 + [400] + [200] * 10
    assert "PNG or JPEG" in answers[5][1]["error"]


def test_an_oversized_file_is_refused_and_the_server_lives_on(server, some):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8))
    assert len(_file(noise)) > handler.MAX_BYTES
    status, answer = server.post(_file(noise))
    assert (status, "allowed are 2,000,000" in answer["error"]) == (413, True)
    status, answer = server.post(_file(Image.new("1", (20_000, 20_000))))
    assert (status, "pixels" in answer["error"]) == (413, True)
    assert server.post(torchserve.png(some.images[0]))[0] == 200


@pytest.mark.parametrize("token", ["", "wrong"])
def test_without_the_token_nobody_is_served(server, some, token):
    status, answer = server.post(torchserve.png(some.images[0]), token=token)
    assert 400 <= status < 500
    assert "class" not in answer


def test_a_second_server_stands_beside_the_first_and_stops_with_its_block(
    server, archive, some, tmp_path, monkeypatch
):
    shared, config = tmp_path / "shared", tmp_path / "other.properties"
    shared.mkdir()
    config.write_text("inference_address=http://127.0.0.1:1\n")
    monkeypatch.setenv("TEMP", str(shared))  # where Java would unpack the archives of both
    monkeypatch.setenv("TS_CONFIG_FILE", str(config))  # it would take the place of our settings
    picture, before, family = torchserve.png(some.images[0]), _below(), set()
    with pytest.raises(KeyboardInterrupt), torchserve.serving(archive) as second:  # noqa: PT012
        assert second.url != server.url
        assert second.post(picture) == server.post(picture)
        assert second.post(picture, token=server.token)[0] >= 400
        family |= _below() - before
        bound = [
            each
            for number, _ in family
            for each in psutil.Process(number).net_connections("inet")
            if each.status == psutil.CONN_LISTEN
        ]
        assert len(bound) >= 5  # inference, management, metrics, and twice gRPC
        assert {each.laddr.ip.removeprefix("::ffff:") for each in bound} <= {"127.0.0.1", "::1"}
        assert list(shared.iterdir()) == []
        raise KeyboardInterrupt
    assert {"java"} <= {name for _, name in family}  # so there was something to stop
    assert _is_gone(second.url.rsplit("/", 2)[0])
    assert not family & _below()
    assert not any(psutil.pid_exists(number) for number, _ in family)
    assert server.post(picture)[0] == 200


def _below():
    """The number and name of each process below this one."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add((process.pid, process.name()))
        except psutil.NoSuchProcess:
            continue
    return found


def _is_gone(url):
    """Whether nobody listens any more; a server that answers with an error is a server."""
    try:
        urllib.request.urlopen(f"{url}/ping", timeout=5)
    except urllib.error.HTTPError:
        return False
    except urllib.error.URLError as error:
        return isinstance(error.reason, ConnectionRefusedError)
    return False


def test_no_archive_no_java_no_server(archive, tmp_path, monkeypatch):
    with (
        pytest.raises(ValueError, match=r"path must end in \.mar"),
        torchserve.serving(tmp_path / "model.pt"),
    ):
        pass
    with (
        pytest.raises(FileNotFoundError, match="does not exist"),
        torchserve.serving(tmp_path / "absent.mar"),
    ):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="needs Java"), torchserve.serving(archive):
        pass


# -- LitServe, of which notebook 05 shows two methods ----------------------------------------------------------------


def test_the_notebook_shows_methods_of_the_litserve_server_as_they_are():
    cells = nbformat.read(HOME / "notebooks" / "05_deployment.ipynb", as_version=4).cells
    (block,) = (
        found
        for cell in cells
        for found in re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
        if "decode_request" in found
    )
    server = ast.parse((HOME / "helpers" / "deploy" / "litserver.py").read_text())
    there = {node.name: node for node in ast.walk(server) if isinstance(node, ast.FunctionDef)}
    shown = ast.parse(block).body
    assert [node.name for node in shown] == ["decode_request", "predict"]
    for node in shown:  # but for its docstring
        assert list(map(ast.unparse, node.body)) == list(map(ast.unparse, there[node.name].body[1:]))


def test_the_litserve_server_answers_and_refuses(archive, model, some, tmp_path):
    if importlib.util.find_spec("litserve") is None:
        pytest.skip(
            "LitServe is not installed: pip install litserve (notebook 05 shows how it serves a file; nothing else needs it)"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    export.to_onnx(model, tmp_path / "small.onnx", some)
    shutil.copy(archive, tmp_path / "small.mar")
    address = f"http://127.0.0.1:{port}"

    def post(body):
        request = urllib.request.Request(
            f"{address}/predict", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def in_base64(file):
        return {"picture": base64.b64encode(file).decode()}

    with (tmp_path / "log").open("w") as log:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HOME), os.environ.get("PYTHONPATH", "")])
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "helpers.deploy.litserver", str(tmp_path), f"--port={port}"],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            for _ in range(1_200):  # ends when the server answers: on a busy machine that takes minutes
                assert process.poll() is None, (tmp_path / "log").read_text()
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                except OSError:  # also HTTP 503, while the network is loaded
                    time.sleep(0.25)
            listening = [
                each
                for number, _ in _below()
                for each in psutil.Process(number).net_connections("inet")
                if each.laddr.port == port
            ]
            assert {each.laddr.ip for each in listening} == {"127.0.0.1"}
            bodies = [in_base64(torchserve.png(image)) for image in some.images[:16]]
            bodies[5], bodies[6] = in_base64(b"this is a text"), {"image": 1}
            with ThreadPoolExecutor(16) as pool:
                answers = list(pool.map(post, bodies))
            expected = [{"class": NAMES[label]} for label in predict(model, some).argmax(1)[:16]]
            assert answers[:5] + answers[7:] == expected[:5] + expected[7:]
            assert "PNG or JPEG" in answers[5]["error"]
            assert "base64" in answers[6]["error"]
            with pytest.raises(urllib.error.HTTPError, match="413"):
                post(
                    in_base64(bytes(2_250_000))
                )  # 15 bytes above 3,000,000: all is read before the answer, else the connection is reset
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            psutil.wait_procs([process, *family], timeout=5)
            for each in family:
                if each.is_running():
                    each.kill()
