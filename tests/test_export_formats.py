"""Every format answers as PyTorch does, in its own runtime: a small network on digits, and the checkpoints on CIFAR-10."""

import functools
import os
import signal
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from helpers import export, models
from helpers.data import HOME, load_data
from helpers.deploy import coreml, phone, torchserve, writing
from helpers.evaluation import predict
from tests.small import trained, untrained

pytest.importorskip("litert_torch", reason="the exporters are not installed: pip install -r requirements.txt")

CHECKPOINTS = HOME / "data" / "checkpoints"
DEPLOYED = "vgg19_fast_convnet_2m_thin_zeros75"  # by lesson 05
OTHERS = sorted(path.stem for path in CHECKPOINTS.glob("vgg19*.safetensors") if path.stem != DEPLOYED)
CLOSE_CALLS = {"vgg19_fast_convnet": 0.96}  # so small that 99% of the pictures is more than rounding leaves
LARGE = ("vgg19", "vgg19_zeros95")  # in 8 bits as sure of their classes as before: few pictures show as much
FORMATS = {  # suffix, bytes of a weight, and how to write it, with which share of equal classes
    "onnx": (".onnx", 4, lambda model, path, some, few, share: export.to_onnx(model, path, some)),
    "onnx int8": (".onnx", 1, lambda model, path, some, few, share: export.quantize_onnx(model, path, few, some, agreement=share)),
    "litert": (".tflite", 4, lambda model, path, some, few, share: export.to_litert(model, path, some)),
    "litert int8": (".tflite", 1, lambda model, path, some, few, share: export.to_litert(
        model, path, some, int8=True, calibration=few, agreement=share)),
    "executorch": (".pte", 4, lambda model, path, some, few, share: export.to_executorch(model, path, some)),
    "coreml": (".mlpackage", 2, lambda model, path, some, few, share: export.to_coreml(model, path, some, agreement=share)),
    "coreml int8": (".mlpackage", 1, lambda model, path, some, few, share: export.to_coreml(
        model, path, some, weights="int8", agreement=share)),
    "coreml palettized": (".mlpackage", 0.75, lambda model, path, some, few, share: export.to_coreml(
        model, path, some, weights="palettized", agreement=share)),
    "torchserve": (".mar", 0, lambda model, path, some, few, share: export.to_torchserve(
        model, path, some, classes=tuple("0123456789"))),
}  # fmt: skip
ROUNDED = [form for form in FORMATS if "int8" in form or "coreml" in form]
MODULES = {
    "onnx": ("onnxruntime", "onnxruntime"),
    "litert": ("litert_torch", "litert-torch"),
    "executorch": ("executorch.exir", "executorch"),
    "coreml": ("coremltools", "coremltools"),
    "torchserve": ("model_archiver.model_packaging", "torch-model-archiver"),
}  # what is not there, and what pip is to install


@pytest.fixture(scope="module")
def digits_():
    return load_data("digits")


@pytest.fixture(scope="module")
def some(digits_):
    return digits_.test.take(slice(0, 100))


@pytest.fixture(scope="module")
def written(digits_, some, tmp_path_factory):
    """A function that writes the small network in a format, once, in a folder of its own."""

    @functools.cache
    def write(form):
        suffix, _, writer = FORMATS[form]
        folder = tmp_path_factory.mktemp(form.replace(" ", "_"))
        return writer(trained(), folder / f"model{suffix}", some, digits_.train.take(slice(0, 100)), 0.9)

    return write


def _classes(path, pictures):
    """The classes that a file gives, in its own runtime."""
    if path.suffix == ".mlpackage":
        return export.coreml_logits(path, pictures).argmax(1)
    return (
        export.archive_labels(path, pictures)
        if path.suffix == ".mar"
        else export.logits(path, pictures).argmax(1)
    )


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_names_pytorchs_classes(written, some, form):
    model = trained().train()
    before = [parameter.clone() for parameter in model.parameters()]
    path = written(form)
    same = (_classes(path, some) == predict(model, some).argmax(1)).float().mean()
    assert same >= (0.9 if form in ROUNDED else 1)
    assert model.training
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.cifar10
@pytest.mark.parametrize("form", FORMATS)
def test_the_deployed_checkpoint_in_every_format(cifar10, form, tmp_path):
    """On 200 real test pictures; and the file has the size it must.

    The exporters compare what is rounded to 8 bits or fewer on 1,000, since of 200 one close call is half a point.
    """
    suffix, bytes_each, write = FORMATS[form]
    model = models.load(CHECKPOINTS / f"{DEPLOYED}.safetensors")
    compared = cifar10.test.take(slice(0, 1000 if bytes_each in (1, 0.75) else 200))
    some, few = compared.take(slice(0, 200)), cifar10.train.take(slice(0, 200))
    path = write(model, tmp_path / f"model{suffix}", compared, few, 0.99)
    assert (_classes(path, some) == predict(model, some).argmax(1)).float().mean() >= 0.99
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
    weights = sum(parameter.numel() for parameter in model.parameters())
    least = 0.9 * bytes_each * weights  # a .mar is zipped, and zeros zip to nothing
    assert (
        least <= size <= 1.1 * (bytes_each or 4) * weights + 100_000
    )  # besides the weights: names, shapes, scales


@pytest.mark.cifar10
@pytest.mark.parametrize("name", OTHERS)
def test_every_checkpoint_in_onnx_and_in_int8(cifar10, name, tmp_path):
    """The exporters compare; that they do is shown elsewhere, so nothing is compared a second time."""
    model, share = models.load(CHECKPOINTS / f"{name}.safetensors"), CLOSE_CALLS.get(name, 0.99)
    compared, calibrating = (200, 100) if name in LARGE else (1000, 200)
    some, few = cifar10.test.take(slice(0, compared)), cifar10.train.take(slice(0, calibrating))
    path = export.to_onnx(model, tmp_path / "model.onnx", some.take(slice(0, 200)))
    small = export.quantize_onnx(path, tmp_path / "int8.onnx", few, some, agreement=share)
    assert small.stat().st_size <= 0.3 * path.stat().st_size + 100_000


@pytest.mark.parametrize("form", ["onnx", "litert", "executorch", "coreml", "coreml int8", "torchserve"])
def test_a_file_that_holds_another_network_is_refused(some, form, tmp_path, monkeypatch):
    """The frame refuses it: tests/test_export.py. Here: each writer hands over what it has really written."""
    import litert_torch

    suffix, _, write = FORMATS[form]
    other = untrained()
    with torch.no_grad():
        other[-1].bias += torch.linspace(0, 9, 10)

    def instead(function):
        def wrapped(model, *arguments, **named):  # what the exporters trace for their own ends stays
            return function(other if isinstance(model, nn.Sequential) else model, *arguments, **named)

        return wrapped

    for module, name in (
        (torch.export, "export"),
        (torch.jit, "trace"),
        (torch.onnx, "export"),
        (litert_torch, "convert"),
    ):
        monkeypatch.setattr(module, name, instead(getattr(module, name)))
    with pytest.raises(
        export.ExportError, match=r"the same class .*[\d.]+% of 100 pictures.* difference .*is [\d.]+ "
    ):
        write(untrained(), tmp_path / f"model{suffix}", some, None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["onnx", "litert", "executorch"])
def test_a_network_that_cannot_be_converted_is_named(form, some, tmp_path):
    class Moody(nn.Module):
        def forward(self, images):
            return images.flatten(1) if images.sum() > 0 else images.flatten(1) * 2

    suffix, _, write = FORMATS[form]
    with pytest.raises(export.ExportError, match="does not convert this network"):
        write(Moody(), tmp_path / f"model{suffix}", some.take(slice(0, 5)), None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", MODULES)
def test_a_missing_package_is_named_with_the_pip_install_that_mends_it(form, some, tmp_path, monkeypatch):
    module, package = MODULES[form]
    monkeypatch.setitem(__import__("sys").modules, module, None)
    suffix, _, write = FORMATS[form]
    with pytest.raises(ImportError, match=rf"pip install .*'{package}[>']"):
        write(untrained(), tmp_path / f"model{suffix}", some.take(slice(0, 5)), None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["litert", "executorch", "coreml", "torchserve"])
def test_bad_arguments_are_named(form, some, tmp_path):
    suffix, _, write = FORMATS[form]
    path = tmp_path / f"model{suffix}"
    for model, place, pictures, kind, message in (
        (untrained(), tmp_path / "model.bin", some, ValueError, rf"path must end in \{suffix}"),
        (untrained(), path, some.take(slice(0, 0)), ValueError, "pictures must hold"),
        (untrained(), path, some.images, TypeError, "pictures must be an instance of Split"),
        ("vgg19", path, some, TypeError, "model must be an instance of Module"),
    ):
        with pytest.raises(kind, match=message):
            write(model, place, pictures, None, None)
    with pytest.raises(ValueError, match="weights must be 'float16', 'int8' or 'palettized'"):
        export.to_coreml(untrained(), tmp_path / "model.mlpackage", some, weights="int4")
    for named in ({"calibration": some}, {"agreement": 0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(named))} is for int8=True"):
            export.to_litert(untrained(), tmp_path / "model.tflite", some, **named)
    assert list(tmp_path.iterdir()) == []


def test_one_loop_measures_every_format(written, some):
    correct = int((predict(trained(), some).argmax(1) == some.labels).sum())
    files = {form: written(form) for form in ("onnx", "litert", "executorch")}
    for path in files.values():
        assert export.accuracy(path, some).correct == correct
        assert torch.allclose(export.logits(path, some, threads=2), predict(trained(), some), atol=1e-3)
    rows = export.latencies(files, threads=1, repeats=5)
    assert list(rows) == list(files)
    for row in rows.values():
        assert 0 < row["latency_low_ms"] <= row["latency_ms"] <= row["latency_high_ms"]
        assert (row["batch"], row["threads"], row["repeats"]) == (1, 1, 5)
    for path in (files["litert"], files["executorch"]):
        with pytest.raises(ValueError, match="batch_size must be 1"):
            export.latency(path, batch_size=2)


@pytest.mark.parametrize("form", ["onnx", "litert", "executorch"])
def test_peak_memory_counts_the_weights_and_nothing_of_this_process(digits_, form, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 6000), nn.ReLU(), nn.Linear(6000, 10))
    suffix, _, write = FORMATS[form]
    ballast = torch.ones(500_000_000 // 4)  # resident here, and to be seen nowhere in the answer
    path = write(model, tmp_path / f"model{suffix}", digits_.test.take(slice(0, 5)), None, None)
    memory = export.peak_memory(path)
    assert ballast.sum() > 0
    weights = 4e-6 * sum(parameter.numel() for parameter in model.parameters())
    assert 0.9 * weights < memory["peak_mb"] - memory["baseline_mb"] < 4 * weights
    most = 1500 if form == "executorch" else 250  # ExecuTorch's Python module needs PyTorch
    assert 10 < memory["baseline_mb"] < most


# -- LiteRT in integers ----------------------------------------------------------------------------------------------


def test_int8_litert_is_integers_throughout_and_scaled_as_the_file_says(written, some):
    from ai_edge_litert.interpreter import Interpreter

    path, some = written("litert int8"), some.take(slice(0, 3))
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert (taken["dtype"], given["dtype"]) == (np.int8, np.int8)
    assert export.litert_scales(path) == {"images": taken["quantization"], "logits": given["quantization"]}
    assert export.litert_scales(written("litert")) == {"images": (0, 0), "logits": (0, 0)}
    kinds = {detail["dtype"] for detail in interpreter.get_tensor_details()}
    assert kinds <= {np.int8, np.int32}  # int32: biases, shapes
    mean, std = (np.array(numbers).reshape(3, 1, 1) for numbers in (some.mean, some.std))
    for image, logits in zip(some.images.numpy(), export.logits(path, some), strict=True):
        normal = (image / 255 - mean) / std
        integers = np.clip(np.rint(normal / taken["quantization"][0]) + taken["quantization"][1], -128, 127)
        interpreter.set_tensor(taken["index"], integers.astype(np.int8)[None])
        interpreter.invoke()
        scale, zero = given["quantization"]
        answer = (interpreter.get_tensor(given["index"])[0].astype(float) - zero) * scale
        assert np.allclose(answer, logits.numpy(), atol=1.01 * scale)


# -- Core ML ---------------------------------------------------------------------------------------------------------


def test_an_older_package_gives_way_whole_or_not_at_all(some, tmp_path, monkeypatch):
    path = tmp_path / "model.mlpackage"
    path.mkdir()
    (path / "weights").write_text("old")
    with monkeypatch.context() as broken:
        broken.setattr(coreml, "_answers", lambda _, pictures: -predict(untrained(), pictures))
        with pytest.raises(export.ExportError, match=r"model\.mlpackage names the same class"):
            export.to_coreml(untrained(), path, some)
    assert [file.name for file in path.rglob("*")] == ["weights"]
    export.to_coreml(untrained(), path, some)
    assert torch.allclose(export.coreml_logits(path, some), predict(untrained(), some), atol=0.01)
    assert [file.name for file in tmp_path.iterdir()] == ["model.mlpackage"]
    assert not (path / "weights").exists()


def _write_and_die(path, moment):
    """Replace a package in another process that is killed after so many of the renames it takes; return its number."""
    number = os.fork()
    if number == 0:
        done, honest = [], os.replace

        def replace(*arguments):
            if len(done) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            honest(*arguments)
            done.append(arguments)

        coreml.os.replace = replace
        with coreml._atomic_folder(path) as part:
            part.mkdir()
            (part / "weights").write_text("new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == -signal.SIGKILL
    return number


@pytest.mark.filterwarnings("ignore:os.fork")  # the child does nothing but rename
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


def test_a_rename_that_fails_leaves_the_older_package(tmp_path, monkeypatch):
    path, honest = tmp_path / "model.mlpackage", os.replace
    path.mkdir()
    (path / "weights").write_text("old")

    def replace(source, destination):
        if ".part" in str(source):
            raise PermissionError("in use")
        honest(source, destination)

    monkeypatch.setattr(coreml.os, "replace", replace)
    with pytest.raises(PermissionError, match="in use"), coreml._atomic_folder(path) as part:
        part.mkdir()
    assert (path / "weights").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.mlpackage"]


@pytest.mark.filterwarnings("ignore:os.fork")
def test_reading_finds_the_package_that_a_kill_had_put_aside_and_leaves_the_living_alone(some, tmp_path):
    path, some = tmp_path / "model.mlpackage", some.take(slice(0, 5))
    export.to_coreml(untrained(), path, some)
    _write_and_die(path, 1)
    mine = tmp_path / f".model.mlpackage.{os.getpid()}.part"
    mine.mkdir()  # to a reader, of a process that is still at work
    assert torch.equal(_classes(path, some), predict(untrained(), some).argmax(1))
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([mine.name, path.name])
    with coreml._atomic_folder(path) as part:  # to a writer, of an earlier process that had our number
        part.mkdir()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(FileNotFoundError, match=r"absent\.mlpackage does not exist"):
        export.coreml_logits(tmp_path / "absent.mlpackage", some)
    with pytest.raises(ValueError, match=r"path must end in \.mlpackage"):
        export.coreml_logits(tmp_path / "model.mlmodel", some)


def test_on_a_mac_core_mls_own_predictions_are_compared(some, tmp_path, monkeypatch):
    import coremltools

    asked, sign = [], 1

    def predicted(package, values):  # stands for Core ML, which only a Mac has
        asked.append(values["images"].shape)
        with torch.no_grad():
            return {"logits": sign * untrained()(torch.from_numpy(values["images"])).numpy()}

    monkeypatch.setattr(coremltools.models.MLModel, "predict", predicted)
    monkeypatch.setattr(coreml, "ON_MAC", True)
    export.to_coreml(untrained(), tmp_path / "model.mlpackage", some)
    assert asked == [(1, 3, 32, 32)] * len(some)
    sign = -1
    with pytest.raises(export.ExportError, match="names the same class"):
        export.to_coreml(untrained(), tmp_path / "other.mlpackage", some)
    assert [file.name for file in tmp_path.iterdir()] == ["model.mlpackage"]


def test_an_archive_has_the_classes_and_the_colours_of_the_data(digits_, tmp_path, monkeypatch):
    named = replace(digits_, classes=[f"digit {name}" for name in digits_.classes])
    for module in (torchserve, writing):
        monkeypatch.setattr(module, "default_data", lambda: named)
    path = export.to_torchserve(untrained(), tmp_path / "model.mar")
    with torchserve.unpacked_handler(path) as (handler, _):
        assert handler.settings == {
            "classes": list(named.classes), "mean": list(digits_.mean), "std": list(digits_.std), "size": [32, 32],
        }  # fmt: skip


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
    with pytest.raises(FileNotFoundError, match="runner does not exist"):
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
    with pytest.raises(ValueError, match=r"path must end in \.tflite, \.pte"):
        phone.phone_commands("model.onnx", runner)


def test_a_file_in_the_place_of_a_package_stays(some, tmp_path):
    (tmp_path / "own.mlpackage").write_text("mine")
    with pytest.raises(FileExistsError, match=r"own\.mlpackage is a file, and a package is a folder"):
        export.to_coreml(untrained(), tmp_path / "own.mlpackage", some)
    assert (tmp_path / "own.mlpackage").read_text() == "mine"
