"""A real TorchServe on 127.0.0.1, and the handler it runs: pictures in, classes out, and everything else refused for itself."""

import ast
import io
import shutil
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import handler, models, serving
from helpers.data import load_data
from helpers.evaluation import predict
from helpers.training import fit

pytest.importorskip("model_archiver", reason="torch-model-archiver is not installed: pip install -r requirements.txt")

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
    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.5)
    fit(model, load_data("digits"), epochs=3, batch_size=64, progress=False)
    return model


@pytest.fixture(scope="module")
def archive(model, some, tmp_path_factory):
    return serving.to_torchserve(model, tmp_path_factory.mktemp("archive") / "digits.mar", some, classes=NAMES)


@pytest.fixture
def worker(archive):
    with serving.unpacked_handler(archive) as (worker, context):
        yield lambda *files: (worker.handle([{"body": file} for file in files], context), context.statuses)


@pytest.fixture(scope="module")
def server(archive):
    if shutil.which("java") is None:
        pytest.skip("TorchServe needs Java: apt install default-jre-headless")
    pytest.importorskip("ts", reason="TorchServe is not installed: pip install -r requirements.txt")
    with serving.serving(archive) as server:
        yield server


# -- the handler in this process -------------------------------------------------------------------------------------


def test_the_handler_stands_alone():
    tree = ast.parse(Path(handler.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names) | {"torch", "PIL"}
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == ["PictureHandler"]  # TorchServe wants one class


def test_probabilities_are_pytorchs(worker, model, some):
    answers, statuses = worker(*(serving.png(image) for image in some.images))
    expected = predict(model, some).softmax(1)
    assert statuses == {}
    assert [answer["label"] for answer in answers] == expected.argmax(1).tolist()
    assert [answer["class"] for answer in answers] == [NAMES[label] for label in expected.argmax(1)]
    assert np.allclose([answer["probability"] for answer in answers], expected.max(1).values, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_other_colours_and_sizes_are_read(worker, some, mode):
    image = Image.open(io.BytesIO(serving.png(some.images[0])))
    large = image.resize((100, 60)).convert(mode)
    answers, statuses = worker(_file(large, "JPEG" if mode == "CMYK" else "PNG"), _file(image, "JPEG", quality=95))
    assert statuses == {}
    assert all(0.1 <= answer["probability"] <= 1 for answer in answers)
    assert answers[1]["label"] == worker(serving.png(some.images[0]))[0][0]["label"]


def test_what_is_no_picture_is_refused_and_the_others_are_answered(worker, some):
    good = serving.png(some.images[0])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8))
    bad = {
        "empty": (b"", 400), "text": (b"hello", 400), "cut off": (good[: len(good) // 2], 400), "GIF": (_file(noise, "GIF")[:5000], 400),
        "too many bytes": (_file(noise), 413), "too many pixels": (_file(Image.new("1", (3000, 3000))), 413),
        "bomb": (_file(Image.new("1", (20_000, 20_000))), 413), "altered": (good[:40] + bytes(20) + good[60:], 400),
    }  # fmt: skip
    files = [good, *(file for file, _ in bad.values()), good]
    answers, statuses = worker(*files)
    assert {place: code for place, (code, _) in statuses.items()} == dict(enumerate((code for _, code in bad.values()), start=1))
    assert all(answers[place]["error"] == reason for place, (_, reason) in statuses.items())
    assert answers[0] == answers[-1]
    assert set(answers[0]) == {"class", "label", "probability"}


def test_a_body_that_is_not_bytes_and_a_batch_that_is_too_long_are_refused(archive, some):
    with serving.unpacked_handler(archive) as (worker, context):
        answers = worker.handle([{"body": {"picture": 1}}, {}, {"data": serving.png(some.images[0])}], context)
        assert ([code for code, _ in context.statuses.values()], "class" in answers[2]) == ([400, 400], True)
        context.statuses.clear()
        answers = worker.handle([{"body": serving.png(some.images[0])}] * (handler.MAX_BATCH + 2), context)
        assert [place for place, (code, _) in context.statuses.items() if code == 503] == [handler.MAX_BATCH, handler.MAX_BATCH + 1]
        assert sum("class" in answer for answer in answers) == handler.MAX_BATCH
        assert worker.handle([], context) == []


def test_classes_must_be_as_many_as_logits(model, some, tmp_path):
    with pytest.raises(ValueError, match="classes must name each of the 10 logits, got 2"):
        serving.to_torchserve(model, tmp_path / "digits.mar", some, classes=("one", "two"))
    with pytest.raises(TypeError, match="classes must be a collection of names"):
        serving.to_torchserve(model, tmp_path / "digits.mar", some, classes="0123456789")
    assert list(tmp_path.iterdir()) == []


# -- a real server ---------------------------------------------------------------------------------------------------


def test_single_pictures(server, model, some):
    expected = predict(model, some).softmax(1)
    for image, probabilities in zip(some.images[:4], expected[:4], strict=True):
        status, answer = server.post(serving.png(image))
        label = int(probabilities.argmax())
        assert (status, answer["class"], answer["label"]) == (200, NAMES[label], label)
        assert answer["probability"] == pytest.approx(float(probabilities.max()), abs=1e-4)


def test_sixteen_at_a_time_and_a_broken_one_among_them(server, model, some):
    files = [serving.png(image) for image in some.images[:16]]
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
    assert server.post(serving.png(some.images[0]))[0] == 200


@pytest.mark.parametrize("token", ["", "wrong"])
def test_without_the_token_nobody_is_served(server, some, token):
    status, answer = server.post(serving.png(some.images[0]), token=token)
    assert 400 <= status < 500
    assert "class" not in answer


def test_the_server_stops_with_its_block(archive):
    if shutil.which("java") is None:
        pytest.skip("TorchServe needs Java: apt install default-jre-headless")
    urls = []

    def interrupted():
        with serving.serving(archive) as server:
            urls.append(server.url.rsplit("/", 2)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{urls[0]}/ping", timeout=5)


def test_no_archive_no_java_no_server(archive, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"path must end in \.mar"), serving.serving(tmp_path / "model.pt"):
        pass
    with pytest.raises(FileNotFoundError, match="does not exist"), serving.serving(tmp_path / "absent.mar"):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="needs Java"), serving.serving(archive):
        pass
