"""Every format answers as PyTorch does, in its own runtime: small networks on digits, and the checkpoints on CIFAR-10."""

import functools
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import benchmark, coreml, export, fidelity, low_rank, models, phone, pruning, serving
from helpers.data import HOME, load_data
from helpers.evaluation import predict
from helpers.training import fit

pytest.importorskip("litert_torch", reason="the exporters are not installed: pip install -r requirements.txt")

CHECKPOINTS = sorted(path.stem for path in (HOME / "data" / "checkpoints").glob("vgg19*.safetensors"))
CLOSE_CALLS = {"vgg19_micro_convnet": 0.96}  # so small that 99% of the pictures is more than rounding leaves
NETWORKS = ("pruned", "channels", "low rank", "resnet18", "mobilenet_student")
MODELS = [*NETWORKS, *(pytest.param(name, marks=pytest.mark.cifar10) for name in CHECKPOINTS)]
FORMATS = {
    "onnx": (".onnx", 1.0, lambda model, path, some, few: export.to_onnx(model, path, some)),
    "onnx int8": (
        ".onnx",
        0.99,
        lambda model, path, some, few: export.quantize_onnx(_onnx(model, path, some), path, few, some),
    ),
    "litert": (".tflite", 1.0, lambda model, path, some, few: export.to_litert(model, path, some)),
    "litert int8": (
        ".tflite",
        0.99,
        lambda model, path, some, few: export.to_litert(model, path, some, int8=True, calibration=few),
    ),
    "executorch": (".pte", 1.0, lambda model, path, some, few: export.to_executorch(model, path, some)),
    "coreml": (".mlpackage", 1.0, lambda model, path, some, few: export.to_coreml(model, path, some)),
    "coreml int8": (
        ".mlpackage",
        0.99,
        lambda model, path, some, few: export.to_coreml(model, path, some, weights="int8"),
    ),
    "coreml palettized": (
        ".mlpackage",
        0.99,
        lambda model, path, some, few: export.to_coreml(model, path, some, weights="palettized"),
    ),
    "torchserve": (
        ".mar",
        1.0,
        lambda model, path, some, few: export.to_torchserve(model, path, some, classes=tuple("0123456789")),
    ),
}
PIP = {
    "onnx": ("onnxruntime", "onnxruntime"),
    "litert": ("litert_torch", "litert-torch"),
    "executorch": ("executorch.exir", "executorch"),
    "coreml": ("coremltools", "coremltools"),
    "torchserve": ("model_archiver", "torch-model-archiver"),
}  # the module that is not there, and what pip is to install


SOURCES, FOLDER = (
    weakref.WeakKeyDictionary(),
    tempfile.TemporaryDirectory(),
)  # what is quantized: exported once for each network


def _onnx(model, path, some):
    if model not in SOURCES:
        SOURCES[model] = export.to_onnx(model, Path(FOLDER.name) / f"{len(SOURCES)}.onnx", some)
    return SOURCES[model]


@functools.lru_cache(maxsize=1)
def _checkpoint(name):
    return models.load(HOME / "data" / "checkpoints" / f"{name}.safetensors")


def _classes(path, pictures):
    """The classes that a file gives, in its own runtime."""
    if path.suffix == ".mlpackage":
        return coreml.coreml_logits(path, pictures).argmax(1)
    if path.suffix == ".mar":
        with serving.unpacked_handler(path) as (handler, context):
            requests = [{"data": serving.png(image)} for image in pictures.images]
            answers = [handler.handle([request], context)[0] for request in requests]
        return torch.tensor([answer["label"] for answer in answers])
    return export.logits(path, pictures).argmax(1)


def _size(path):
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if path.is_dir()
        else path.stat().st_size
    )


@pytest.fixture(scope="module")
def digits_():
    return load_data("digits")


@pytest.fixture(scope="module")
def networks(digits_):
    """A pruned network, one with channels gone, a factorized one, and two more architectures."""
    torch.manual_seed(0)
    built = {}
    for name, width in (
        ("tiny_convnet", 0.5),
        ("vgg11", 0.25),
        ("resnet18", 0.125),
        ("mobilenet_student", 0.5),
    ):
        built[name] = models.build(name, width=width)
        fit(built[name], digits_, epochs=5, batch_size=64, progress=False)
    pruning.prune_once(built["tiny_convnet"], 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built["low rank"] = low_rank.factorize(built["vgg11"], 0.95)
        built["channels"] = pruning.prune_channels(built["vgg11"], torch.zeros(1, 3, 32, 32), 0.1)
    return built | {"pruned": built["tiny_convnet"]}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_every_format_names_pytorchs_classes(request, name, form, tmp_path, monkeypatch):
    """The checkpoints on 200 real test pictures, rounded ones on 1,000, since of 200 one close call is half a point; small networks on
    digits, which round worse than a trained VGG-19."""
    suffix, least, write = FORMATS[form]
    if name in CHECKPOINTS:
        model, data = _checkpoint(name), request.getfixturevalue("cifar10")
        if (
            form == "coreml palettized"
            and sum(parameter.numel() for parameter in model.parameters()) > 10_000_000
        ):
            pytest.skip(
                "k-means on 20 million weights takes minutes: export.to_coreml(model, path, weights='palettized') does it"
            )
        some, few = data.test.take(slice(0, 1_000 if least < 1 else 200)), data.train.take(slice(0, 200))
        asked = CLOSE_CALLS.get(name)
    else:
        model, data = request.getfixturevalue("networks")[name], request.getfixturevalue("digits_")
        some, few = data.test.take(slice(0, 100)), data.train.take(slice(0, 100))
        asked = 0.8
    if asked and least < 1:
        least = asked
        monkeypatch.setattr(export, "AGREEMENT", least)
        monkeypatch.setattr(coreml, "AGREEMENTS", dict.fromkeys(coreml.WEIGHTS, least))
    before = [parameter.clone() for parameter in model.train().parameters()]
    path = write(model, tmp_path / f"model{suffix}", some, few)
    assert (_classes(path, some) == predict(model, some).argmax(1)).float().mean() >= least
    assert model.training
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == [f"model{suffix}"]
    if form == "onnx":
        SOURCES[model] = Path(shutil.copyfile(path, Path(FOLDER.name) / f"{len(SOURCES)}.onnx"))
    weights = sum(parameter.numel() for parameter in model.parameters())
    bytes_each = {"coreml": 2, "coreml palettized": 0.75}.get(form, 1 if "int8" in form else 4)
    least_bytes = (
        0 if form == "torchserve" else 0.9 * bytes_each * weights
    )  # a .mar is zipped, and zeros zip to nothing
    graph = 100_000  # bytes besides the weights: names, shapes, scales
    assert name not in CHECKPOINTS or least_bytes <= _size(path) <= 1.1 * bytes_each * weights + graph


@pytest.mark.parametrize("form", ["onnx int8", "litert int8", "coreml int8"])
def test_how_many_pictures_must_keep_their_class_can_be_asked_for(
    networks, digits_, form, tmp_path, monkeypatch
):
    """One picture in ten loses its class: 0.95 refuses it and leaves no file, 0.85 lets it pass."""
    few, model = digits_.train.take(slice(0, 20)), networks["pruned"]
    suffix, write = {
        "onnx int8": (
            ".onnx",
            functools.partial(
                export.quantize_onnx, _onnx(model, tmp_path / "float.onnx", few), calibration=few
            ),
        ),
        "litert int8": (".tflite", functools.partial(export.to_litert, model, int8=True, calibration=few)),
        "coreml int8": (".mlpackage", functools.partial(export.to_coreml, model, weights="int8")),
    }[form]
    path = tmp_path / f"model{suffix}"
    monkeypatch.setattr(fidelity, "same_class", lambda *_: torch.tensor(0.9))
    with pytest.raises(fidelity.ExportError, match="class as before for 90"):
        write(path, pictures=few, agreement=0.95)
    assert not path.exists()
    assert write(path, pictures=few, agreement=0.85).exists()


def test_int8_litert_is_integers_throughout_and_scaled_as_the_file_says(
    networks, digits_, tmp_path, monkeypatch
):
    from ai_edge_litert.interpreter import Interpreter

    monkeypatch.setattr(export, "AGREEMENT", 0.8)
    some = digits_.test.take(slice(0, 3))
    path = export.to_litert(
        networks["pruned"],
        tmp_path / "model.tflite",
        some,
        int8=True,
        calibration=digits_.train.take(slice(0, 50)),
    )
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert (taken["dtype"], given["dtype"]) == (np.int8, np.int8)
    assert export.litert_scales(path) == {"images": taken["quantization"], "logits": given["quantization"]}
    kinds = {detail["dtype"] for detail in interpreter.get_tensor_details()}
    assert kinds <= {np.int8, np.int32}  # int32: biases, shapes
    mean, std = (np.array(numbers).reshape(3, 1, 1) for numbers in (some.mean, some.std))
    for image, logits in zip(some.images.numpy(), export.logits(path, some), strict=True):
        normal = (image / 255 - mean) / std
        integers = np.clip(np.rint(normal / taken["quantization"][0]) + taken["quantization"][1], -128, 127)
        interpreter.set_tensor(taken["index"], integers.astype(np.int8)[None])
        interpreter.invoke()
        answer = (interpreter.get_tensor(given["index"])[0].astype(float) - given["quantization"][1]) * given[
            "quantization"
        ][0]
        assert np.allclose(answer, logits.numpy(), atol=1.01 * given["quantization"][0])


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_holds_another_network_is_refused(networks, digits_, form, tmp_path, monkeypatch):
    import litert_torch

    suffix, _, write = FORMATS[form]
    some = digits_.test.take(slice(0, 50))
    path = tmp_path / f"model{suffix}"
    other = models.build("tiny_convnet", width=0.5).eval()

    def instead(function):
        def wrapped(model, *arguments, **named):  # what the exporters trace for their own ends stays
            return function(other if isinstance(model, models.ConvNet) else model, *arguments, **named)

        return wrapped

    source = _onnx(networks["pruned"], path, some) if form == "onnx int8" else None
    for module, name in (
        (torch.export, "export"),
        (torch.jit, "trace"),
        (torch.onnx, "export"),
        (litert_torch, "convert"),
    ):
        monkeypatch.setattr(module, name, instead(getattr(module, name)))
    if form == "onnx int8":
        wrong = export.onnx_logits(source, some)
        answers = iter([wrong.flip(1), wrong])
        monkeypatch.setattr(export, "onnx_logits", lambda *_, **__: next(answers))
    figures = r"(differs from PyTorch by [\d.e-]+ in a (logit|probability)|largest difference of a logit is [\d.e-]+)"
    with pytest.raises(export.ExportError, match=figures) as raised:
        write(networks["pruned"], path, some, some)
    assert re.search(r"the same class .*[\d.]+% of 50 pictures", str(raised.value))
    assert list(tmp_path.iterdir()) == []


def test_an_older_package_gives_way_whole_or_not_at_all(networks, digits_, tmp_path, monkeypatch):
    some = digits_.test.take(slice(0, 20))
    path = export.to_coreml(networks["pruned"], tmp_path / "model.mlpackage", some)
    first = {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    monkeypatch.setattr(coreml, "AGREEMENTS", {"float16": 2})
    with pytest.raises(export.ExportError, match="asked: 200%"):
        export.to_coreml(networks["resnet18"], path, some)
    assert first == {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    monkeypatch.undo()
    export.to_coreml(networks["resnet18"], path, some)
    assert torch.equal(_classes(path, some), predict(networks["resnet18"], some).argmax(1))
    assert [file.name for file in tmp_path.iterdir()] == ["model.mlpackage"]


def _write_and_die(path, moment):
    """Replace a package in another process that is killed after so many of the renames it takes; return that process's number."""
    code = f"""
import os, signal
from pathlib import Path
from helpers import coreml
done, honest = [], os.replace
def replace(*arguments):
    if len(done) == {moment}:
        os.kill(os.getpid(), signal.SIGKILL)
    honest(*arguments)
    done.append(arguments)
coreml.os.replace = replace
with coreml._atomic_folder(Path({str(path)!r})) as part:
    part.mkdir()
    (part / "weights").write_text("new")
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    assert process.wait(timeout=120) == -signal.SIGKILL
    return process.pid


@pytest.mark.parametrize("moment", [0, 1])
def test_a_kill_between_the_two_renames_strands_no_package(moment, tmp_path):
    path = tmp_path / "model.mlpackage"
    path.mkdir()
    (path / "weights").write_text("old")
    number = _write_and_die(path, moment)
    assert path.exists() == (moment == 0)
    assert any(str(number) in file.name for file in tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="on purpose"), coreml._atomic_folder(path) as part:
        raise RuntimeError(f"on purpose, before {part} is there")
    assert (path / "weights").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.mlpackage"]


def test_reading_finds_the_package_that_a_kill_had_put_aside_and_leaves_the_living_alone(
    networks, digits_, tmp_path
):
    path, some = tmp_path / "model.mlpackage", digits_.test.take(slice(0, 5))
    export.to_coreml(networks["pruned"], path, some)
    _write_and_die(path, 1)
    mine = tmp_path / f".model.mlpackage.{os.getpid()}.part"
    mine.mkdir()  # to a reader, of a process that is still at work
    assert torch.equal(_classes(path, some), predict(networks["pruned"], some).argmax(1))
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([mine.name, path.name])
    export.to_coreml(networks["pruned"], path, some)  # to a writer, of an earlier process that had our number
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(FileNotFoundError, match=r"absent\.mlpackage does not exist"):
        export.coreml_logits(tmp_path / "absent.mlpackage", some)
    with pytest.raises(ValueError, match=r"path must end in \.mlpackage"):
        export.coreml_logits(tmp_path / "model.mlmodel", some)


def test_the_benchmark_counts_equal_classes_in_every_format(networks, digits_, tmp_path):
    model, some = networks["pruned"], digits_.test.take(slice(0, 20))
    package = export.to_coreml(model, tmp_path / "model.mlpackage", some)
    archive = FORMATS["torchserve"][2](model, tmp_path / "model.mar", some, None)
    wrong = predict(model, some)
    wrong[:3] = -wrong[:3]
    row = benchmark._as_run(package, wrong, some)
    assert (set(row), row["same_class"]) == ({"same_class", "largest_difference"}, 17)
    assert benchmark._as_run(archive, wrong, some) == {"same_class": 17}


def test_a_core_ml_package_without_a_layer_is_refused(networks, digits_, tmp_path, monkeypatch):
    class Extra(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.unused = model, nn.Linear(3, 3)

        def forward(self, images):
            return self.model(images)

    with pytest.raises(export.ExportError, match="linear layers 1, not 2"):
        export.to_coreml(
            Extra(networks["pruned"]), tmp_path / "model.mlpackage", digits_.test.take(slice(0, 5))
        )
    assert list(tmp_path.iterdir()) == []


def test_on_a_mac_core_mls_own_predictions_are_compared(networks, digits_, tmp_path, monkeypatch):
    import coremltools

    some = digits_.test.take(slice(0, 10))
    sign = 1

    def predicted(package, values):  # stands for Core ML, which only a Mac has
        return {"logits": sign * predict_one(values["images"])}

    def predict_one(images):
        with torch.no_grad():
            return networks["pruned"].eval()(torch.from_numpy(images)).numpy()

    monkeypatch.setattr(coremltools.models.MLModel, "predict", predicted)
    monkeypatch.setattr(coreml, "ON_MAC", True)
    export.to_coreml(networks["pruned"], tmp_path / "model.mlpackage", some)
    sign = -1
    with pytest.raises(export.ExportError, match="names the same class"):
        export.to_coreml(networks["pruned"], tmp_path / "other.mlpackage", some)
    assert [file.name for file in tmp_path.iterdir()] == ["model.mlpackage"]


@pytest.mark.parametrize("form", ["onnx", "litert", "executorch"])
def test_a_network_that_cannot_be_converted_is_named(form, digits_, tmp_path):
    class Moody(nn.Module):
        def forward(self, images):
            return images.flatten(1) if images.sum() > 0 else images.flatten(1) * 2

    suffix, _, write = FORMATS[form]
    with pytest.raises(export.ExportError, match="does not convert this network"):
        write(Moody(), tmp_path / f"model{suffix}", digits_.test.take(slice(0, 5)), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", PIP)
def test_a_missing_package_is_named_with_the_pip_install_that_mends_it(
    networks, digits_, form, tmp_path, monkeypatch
):
    module, package = PIP[form]
    monkeypatch.setitem(__import__("sys").modules, module, None)
    suffix, _, write = FORMATS[form]
    with pytest.raises(ImportError, match=rf"pip install .*'{package}[>']"):
        write(networks["pruned"], tmp_path / f"model{suffix}", digits_.test.take(slice(0, 5)), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["litert", "executorch", "coreml", "torchserve"])
def test_bad_arguments_are_named(networks, digits_, form, tmp_path):
    suffix, _, write = FORMATS[form]
    some = digits_.test.take(slice(0, 5))
    with pytest.raises(ValueError, match=rf"path must end in \{suffix}"):
        write(networks["pruned"], tmp_path / "model.bin", some, None)
    with pytest.raises(ValueError, match="pictures must hold"):
        write(networks["pruned"], tmp_path / f"model{suffix}", some.take(slice(0, 0)), None)
    with pytest.raises(TypeError, match="pictures must be Split"):
        write(networks["pruned"], tmp_path / f"model{suffix}", some.images, None)
    with pytest.raises(TypeError, match="model must be Module"):
        write("vgg19", tmp_path / f"model{suffix}", some, None)
    with pytest.raises(ValueError, match="weights must be one of"):
        export.to_coreml(networks["pruned"], tmp_path / "model.mlpackage", some, weights="int4")
    with pytest.raises(ValueError, match="calibration is for int8=True"):
        export.to_litert(networks["pruned"], tmp_path / "model.tflite", some, calibration=some)
    assert list(tmp_path.iterdir()) == []


def test_pictures_default_to_those_of_load_data(networks, digits_, tmp_path, monkeypatch):
    monkeypatch.setattr(fidelity, "default_data", lambda: digits_)
    monkeypatch.setattr(serving, "default_data", lambda: digits_)
    monkeypatch.setattr(export, "AGREEMENT", 0.8)
    asked = []
    monkeypatch.setattr(fidelity, "compare", lambda *_: None)
    monkeypatch.setattr(
        export, "compare", lambda logits, model, pictures, *_: asked.append((len(logits), len(pictures)))
    )
    path = export.to_onnx(networks["pruned"], tmp_path / "model.onnx")
    export.quantize_onnx(path, tmp_path / "int8.onnx")
    export.to_torchserve(networks["pruned"], tmp_path / "model.mar")
    assert asked == [(200, 200)]
    with serving.unpacked_handler(tmp_path / "model.mar") as (handler, _):
        assert handler.settings["classes"] == list(digits_.classes)


def test_one_loop_measures_every_format(networks, digits_, tmp_path):
    model, some = networks["pruned"], digits_.test.take(slice(0, 60))
    correct = int((predict(model, some).argmax(1) == some.labels).sum())
    files = [
        FORMATS[form][2](model, tmp_path / f"model{FORMATS[form][0]}", some, None)
        for form in ("onnx", "litert", "executorch")
    ]
    for path in files:
        assert export.accuracy(path, some).correct == correct
        assert torch.allclose(export.logits(path, some, threads=2), predict(model, some), atol=1e-3)
        row = export.latency(path, threads=1, repeats=5)
        assert 0 < row["latency_low_ms"] <= row["latency_ms"] <= row["latency_high_ms"]
        assert (row["batch"], row["threads"], row["repeats"]) == (1, 1, 5)
    assert export.latency(files[0], batch_size=4, repeats=3)["batch"] == 4
    for path in files[1:]:
        with pytest.raises(ValueError, match="batch_size must be 1"):
            export.latency(path, batch_size=2)
    with pytest.raises(ValueError, match="path must end in"):
        export.logits(tmp_path / "model.bin", some)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        export.latency(tmp_path / "absent.onnx")
    with pytest.raises(ValueError, match="threads must be"):
        export.logits(files[0], some, threads=0)


@pytest.mark.parametrize("form", ["onnx", "litert", "executorch"])
def test_peak_memory_counts_the_weights_and_nothing_of_this_process(digits_, form, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 6000), nn.ReLU(), nn.Linear(6000, 10))
    suffix, _, write = FORMATS[form]
    ballast = torch.ones(500_000_000 // 4)  # resident here, and to be seen nowhere in the answer
    path = write(model, tmp_path / f"model{suffix}", digits_.test.take(slice(0, 20)), None)
    memory = export.peak_memory(path)
    assert ballast.sum() > 0
    weights = 4e-6 * sum(parameter.numel() for parameter in model.parameters())
    assert 0.9 * weights < memory["peak_mb"] - memory["baseline_mb"] < 4 * weights
    assert (
        10 < memory["baseline_mb"] < (1500 if form == "executorch" else 250)
    )  # ExecuTorch's Python module needs PyTorch


def test_onnx_profile_has_every_operator_once(networks, digits_, tmp_path):
    path = export.to_onnx(networks["resnet18"], tmp_path / "model.onnx", digits_.test.take(slice(0, 5)))
    table = export.onnx_profile(path, repeats=3)
    assert list(table.columns) == ["operator", "calls", "microseconds", "share"]
    assert table["operator"].is_unique
    assert table["share"].sum() == pytest.approx(1)
    assert table["microseconds"].is_monotonic_decreasing
    convolutions = sum(isinstance(module, nn.Conv2d) for module in networks["resnet18"].modules())
    assert table[table["operator"].str.contains("Conv")]["calls"].sum() == convolutions
    nodes = export.onnx_profile(path, repeats=3, by="node")
    assert list(nodes.columns) == ["node", "operator", "input", "microseconds", "share"]
    assert nodes["share"].sum() == pytest.approx(1)
    assert nodes["microseconds"].is_monotonic_decreasing
    assert nodes["operator"].value_counts().to_dict() == table.set_index("operator")["calls"].to_dict()
    assert (nodes["input"] == "1 x 3 x 32 x 32").any()
    with pytest.raises(ValueError, match=r"path must end in \.onnx"):
        export.onnx_profile(tmp_path / "model.tflite")
    with pytest.raises(ValueError, match="by must be one of"):
        export.onnx_profile(path, by="layer")


# -- phones ----------------------------------------------------------------------------------------------------------

BENCHMARK_MODEL = """\
INFO: STARTING!
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=154 first=3080 curr=2814 min=2600 max=18080 avg=3243.58 std=2165 p5=2630 median=2761 p95=5331

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=337 first=2881 curr=2703 min=2605 max=20356 avg=2942.27 std=1190 p5=2647 median=2781 p95=3169

INFO: Inference timings in us: Init: 6395, First inference: 2761, Warmup (avg): 3243.58, Inference (avg): 2942.27
INFO: Memory footprint delta from the start of the tool (MB): init=39.4531 overall=40.8281
"""  # the form of the tool's log in published logs
EXECUTOR_RUNNER = """\
I 00:00:05.833558 executorch:executor_runner.cpp:564] Model loaded in 44.5 ms.
I 00:00:06.075611 executorch:executor_runner.cpp:705] Iteration 1 of 4: 24.0 ms
I 00:00:06.075612 executorch:executor_runner.cpp:705] Iteration 2 of 4: 11.0 ms
I 00:00:06.075613 executorch:executor_runner.cpp:705] Iteration 3 of 4: 13.0 ms
I 00:00:06.075614 executorch:executor_runner.cpp:705] Iteration 4 of 4: 12.0 ms
I 00:00:06.075701 executorch:executor_runner.cpp:714] Model executed successfully 4 time(s) in 60.000000 ms.
"""


def test_what_benchmark_model_prints_is_read():
    assert phone.parse_benchmark_model(BENCHMARK_MODEL) == {
        "init_ms": 6.395, "first_ms": 2.761, "warmup_ms": 3.24358, "latency_ms": 2.94227, "repeats": 337,
        "latency_low_ms": 2.605, "latency_high_ms": 20.356, "median_ms": 2.781, "memory_mb": 40.8281,
    }  # fmt: skip
    slow = "count=1 curr=1041765\nInference timings in us: Init: 6418, First inference: 1, Warmup (avg): 1.5e+06, Inference (avg): 971535"
    assert phone.parse_benchmark_model(slow) == {
        "init_ms": 6.418,
        "first_ms": 0.001,
        "warmup_ms": 1500,
        "latency_ms": 971.535,
        "repeats": 1,
    }
    with pytest.raises(ValueError, match="Inference timings in us"):
        phone.parse_benchmark_model("error: device not found")


def test_what_executor_runner_prints_is_read():
    assert phone.parse_executor_runner(EXECUTOR_RUNNER) == {
        "repeats": 4, "latency_ms": 12.0, "load_ms": 44.5, "first_ms": 24.0, "latency_low_ms": 11.0, "latency_high_ms": 13.0,
    }  # fmt: skip
    older = "I 00:00:00.043703 executorch:executor_runner.cpp:379] Model executed successfully 3 time(s) in 15.0 ms."
    assert phone.parse_executor_runner(older) == {"repeats": 3, "latency_ms": 5.0}
    with pytest.raises(ValueError, match="Model executed successfully"):
        phone.parse_executor_runner("Killed")


@pytest.mark.parametrize(("suffix", "printed"), [(".tflite", BENCHMARK_MODEL), (".pte", EXECUTOR_RUNNER)])
def test_the_commands_are_run_in_order_and_the_last_ones_output_is_read(
    suffix, printed, tmp_path, monkeypatch
):
    network, runner, adb = tmp_path / f"my model{suffix}", tmp_path / "runner", tmp_path / "bin" / "adb"
    network.touch()
    with pytest.raises(FileNotFoundError, match="runner must be a file"):
        phone.run_on_phone(network, runner)
    runner.touch()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(RuntimeError, match="adb is not installed"):
        phone.run_on_phone(network, runner)
    adb.parent.mkdir()
    (tmp_path / "printed").write_text(printed)
    adb.write_text(
        f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\nwhile read -r line; do echo "$line"; done < "{tmp_path}/printed"\n'
    )
    adb.chmod(adb.stat().st_mode | stat.S_IEXEC)
    result = phone.run_on_phone(network, runner, threads=2, repeats=4, device="pixel")
    assert result == (phone.parse_benchmark_model if suffix == ".tflite" else phone.parse_executor_runner)(
        printed
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all(call.startswith("-s pixel ") for call in calls)
    assert [call.split()[2] for call in calls[:3]] == ["push", "push", "shell"]
    timed = next(call for call in calls[3:] if call.split()[2] == "shell")
    threads, runs = (
        ("--num_threads=2", "--num_runs=4")
        if suffix == ".tflite"
        else ("--cpu_threads=2", "--num_executions=4")
    )
    assert f"'{phone.FOLDER}/my model{suffix}'" in timed  # quoted for the phone's shell
    assert threads in timed
    assert runs in timed
    adb.write_text("#!/bin/sh\necho no devices\nexit 1\n")
    with pytest.raises(RuntimeError, match=r"adb .*failed \(1\): no devices"):
        phone.run_on_phone(network, runner)
    with pytest.raises(ValueError, match=r"path must end in \.tflite or \.pte"):
        phone.phone_commands("model.onnx", runner)
