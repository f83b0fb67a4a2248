"""The frame that every exporter stands in, ONNX, and what is measured of a file."""

import contextlib
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from helpers import export
from helpers.data import HOME, load_data
from helpers.deploy import measures, runtimes, writing
from helpers.evaluation import predict
from tests.small import trained, untrained


@pytest.fixture(scope="module")
def digits_():
    return load_data("digits")


@pytest.fixture(scope="module")
def some(digits_):
    return digits_.validation.take(slice(0, 37))


@pytest.fixture(scope="module")
def network():
    return trained()


@pytest.fixture(scope="module")
def path(network, some, tmp_path_factory):
    """The trained network in ONNX."""
    return export.to_onnx(network, tmp_path_factory.mktemp("onnx") / "model.onnx", some)


# -- the frame, with a format that takes no time: PyTorch's own ------------------------------------------------------


def _write(path, model, pictures, *, change=lambda frozen: None, **options):
    """Export by saving the frozen copy, after ``change``."""

    def run(part, pictures):
        return predict(torch.load(part, weights_only=False), pictures)

    with writing.writing(path, model, pictures, "executorch", **{"run": run} | options) as (frozen, part):
        print("exporters are talkative")
        change(frozen)
        torch.save(frozen, part)


def _shift(by):
    return lambda frozen: frozen[-1].bias.data.add_(by)


def test_a_copy_is_written_in_silence_and_the_model_stays_as_it_is(some, tmp_path, capfd):
    model = untrained().to(memory_format=torch.channels_last).train()
    seen = []
    _write(tmp_path / "folder" / "file", model, some, change=lambda frozen: seen.append(frozen))
    assert capfd.readouterr() == ("", "")
    assert (model.training, seen[0].training, seen[0][0].weight.is_contiguous()) == (True, False, True)
    assert seen[0] is not model
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["file"]


def test_other_answers_are_refused_with_the_figures_and_the_old_file_stays(some, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(export.ExportError, match=r"100\.0% of 37 pictures.* 0\.02 .*100%, within 0\.01"):
        _write(path, untrained(), some, change=_shift(0.02))
    for bad in (_shift(torch.linspace(0, 90, 10)), _shift(float("nan"))):
        with pytest.raises(
            export.ExportError, match=r"file names the same class as before for [\d.]+% of 37"
        ):
            _write(path, untrained(), some, change=bad)
    with pytest.raises(export.ExportError, match=r"0\.005 .*within 0\.001"):
        _write(path, untrained(), some, change=_shift(0.005), largest=0.001)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    _write(path, untrained(), some, change=_shift(0.009))
    assert path.read_bytes() != b"old"


def test_a_rounded_format_may_lose_as_many_classes_as_is_said(some, tmp_path):
    """Of 37 pictures 2 lose their class, which is 5.4%; how far a logit is off does not matter."""

    def run(part, pictures):
        logits = 9 * predict(untrained(), pictures)
        logits[:2] = -logits[:2]
        return logits

    _write(tmp_path / "file", untrained(), some, run=run, share=0.94)
    lower = (
        r"94\.6% of 37 pictures.*asked: 95%\); it was not written\. Way out: agreement= less than 0\.95\.$"
    )
    with pytest.raises(export.ExportError, match=lower):
        _write(tmp_path / "other", untrained(), some, run=run, share=0.95)
    with pytest.raises(
        export.ExportError, match=r"calibration= pictures like .*, or agreement= less than 0\.95\.$"
    ):
        _write(tmp_path / "other", untrained(), some, run=run, share=0.95, calibrated=True)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_refusal_says_how_large_the_answers_are_beside_their_difference(some, tmp_path):
    largest = predict(untrained(), some).abs().max()
    with pytest.raises(
        export.ExportError,
        match=rf"is 0\.02 where the largest answer is {largest:.3g} \(.*it was not written$",
    ):
        _write(tmp_path / "file", untrained(), some, change=_shift(0.02))


def test_what_goes_wrong_in_an_exporter_is_said_and_leaves_nothing(some, tmp_path):
    def fail(error):
        def change(frozen):
            raise error

        _write(tmp_path / "file", untrained(), some, change=change)

    with pytest.raises(
        export.ExportError, match=r"file was not written: executorch does not.*\(KeyError: 'odd'\)"
    ):
        fail(KeyError("odd"))
    with pytest.raises(
        ImportError, match=r"this needs executorch.*\(no such\).*pip install 'executorch>=1\.5,<2'"
    ):
        fail(ImportError("no such"))
    with pytest.raises(OSError, match="disk full"):
        fail(OSError("disk full"))
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_gives_no_logits_is_refused_before_it_is_converted(some, tmp_path):
    with pytest.raises(ValueError, match="model must map pictures to logits"):
        export.to_onnx(nn.Conv2d(3, 3, 3), tmp_path / "model.onnx", some)
    assert list(tmp_path.iterdir()) == []


def test_pictures_default_to_those_of_load_data(digits_, monkeypatch):
    monkeypatch.setattr(writing, "load_data", lambda name: {"auto": digits_}[name])
    writing.default_data.cache_clear()
    assert torch.equal(writing.some(None).images, digits_.test.images[:200])
    assert torch.equal(writing.some(None, "train").images, digits_.train.images[:200])
    compared, calibration = writing.some_pair(None, None)
    assert torch.equal(compared.images, digits_.test.images[:200])
    assert torch.equal(calibration.images, digits_.train.images[:200])
    writing.default_data.cache_clear()


# -- ONNX ------------------------------------------------------------------------------------------------------------


def test_onnx_answers_as_pytorch_does_at_any_batch_size(network, path, some):
    expected = predict(network, some)
    for batch_size in (1, 7, 37):
        logits = export.logits(path, some, batch_size=batch_size, threads=1)
        assert torch.allclose(logits, expected, atol=1e-3)
    assert export.onnx_accuracy(path, some).correct == int((expected.argmax(1) == some.labels).sum())
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_the_exporter_folds_batch_normalisations_and_leaves_relus(network, path):
    names = [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" not in names
    assert names.count("Conv") == sum(isinstance(module, nn.Conv2d) for module in network.modules())


class Sliced(nn.Module):
    """Uses parts of its Sequential on their own, so that the order of these is not free."""

    def __init__(self, layers, head):
        super().__init__()
        self.layers, self.head = layers, head

    def forward(self, images):
        early = self.layers[:2](images)
        return self.head(self.layers[2:](early)) + early.mean()


def pooled(inputs=3, signs=1.0):
    """Convolution, pool, batch normalisation, ReLU; ``signs`` multiply the weights of the normalisation."""
    torch.manual_seed(0)  # made while tests are collected
    layers = nn.Sequential(nn.Conv2d(inputs, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU())
    for numbers in (layers[2].weight, layers[2].bias, layers[2].running_mean, layers[2].running_var):
        nn.init.uniform_(numbers, 0.5, 1.5)
    layers[2].weight.data.mul_(signs)
    return layers


def head():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def test_a_pool_goes_behind_what_only_grows_and_the_normalisation_is_folded(some, tmp_path):
    model = nn.Sequential(pooled(), head()).eval()
    export.to_onnx(model, tmp_path / "model.onnx", some)
    names = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert names[:3] == ["Conv", "Relu", "MaxPool"]
    assert "BatchNormalization" not in names
    assert [type(layer) for layer in model[0]] == [nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.ReLU]
    assert torch.allclose(export.logits(tmp_path / "model.onnx", some), predict(model, some), atol=1e-5)


NEGATIVE = torch.tensor([-1.0] + 7 * [1.0])


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(pooled(signs=NEGATIVE), pooled(8), head()),
        nn.Sequential(pooled(), Sliced(pooled(8), head())),
    ],
    ids=["negative", "sliced"],
)
def test_a_pool_stays_before_a_negative_weight_and_where_parts_are_used_alone(model, some, tmp_path):
    export.to_onnx(model.eval(), tmp_path / "model.onnx", some)
    names = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert names.count("BatchNormalization") == (2 if isinstance(model[1], Sliced) else 1)
    assert torch.allclose(export.logits(tmp_path / "model.onnx", some), predict(model, some), atol=1e-5)


def test_int8_is_smaller_and_agrees_straight_from_a_model_too(network, path, digits_, tmp_path):
    few, some = digits_.train.take(slice(0, 100)), digits_.validation.take(slice(0, 100))
    two = export.quantize_onnx(path, tmp_path / "two_steps.onnx", few, some, agreement=0.9)
    one = export.quantize_onnx(network, tmp_path / "one_step.onnx", few, some, agreement=0.9)
    logits = export.logits(two, some)
    assert torch.equal(export.logits(one, some), logits)
    assert (logits.argmax(1) == export.logits(path, some).argmax(1)).float().mean() >= 0.9
    kinds = [tensor.data_type for tensor in onnx.load(two).graph.initializer if len(tensor.dims) == 4]
    assert set(kinds) == {onnx.TensorProto.INT8}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one_step.onnx", "two_steps.onnx"]


def test_int8_is_compared_with_the_float_file_and_99_of_100_are_asked(path, digits_, tmp_path, monkeypatch):
    some = digits_.validation.take(slice(0, 200))
    logits = export.logits(path, some)
    for changed, verdict in (
        (2, contextlib.nullcontext()),
        (3, pytest.raises(export.ExportError, match=r"98\.5% of 200")),
    ):
        other = logits.clone()
        other[:changed] = -other[:changed]
        monkeypatch.setattr(export, "logits", lambda file, _, other=other: {path: other}[file])
        monkeypatch.setattr(writing, "answers", lambda *_: logits)
        with verdict:
            export.quantize_onnx(path, tmp_path / f"{changed}.onnx", some)
    assert [file.name for file in tmp_path.iterdir()] == ["2.onnx"]


def test_bad_arguments_are_named(network, path, some, tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.onnx"):
        export.to_onnx(network, tmp_path / "model.pt", some)
    with pytest.raises(ValueError, match="pictures must hold at least one picture"):
        export.to_onnx(network, tmp_path / "model.onnx", some.take(slice(0, 0)))
    with pytest.raises(TypeError, match="pictures must be an instance of Split"):
        export.to_onnx(network, tmp_path / "model.onnx", some.images)
    for measure in (
        lambda path: export.logits(path, some),
        export.latency,
        export.peak_memory,
        export.onnx_profile,
    ):
        with pytest.raises(TypeError, match="path must be a path, got 1"):
            measure(1)
    with pytest.raises(TypeError, match="path must be a path, got a int"):
        export.litert_scales(1)
    absent = tmp_path / "absent.onnx"
    for measure in (lambda path: export.logits(path, some), lambda path: export.accuracy(path, some), export.latency,
                    export.peak_memory, export.onnx_profile, export.onnx_session, export.zipped_bytes):  # fmt: skip
        with pytest.raises(FileNotFoundError, match=r"absent\.onnx does not exist. Way out"):
            measure(absent)
    for source, kind, message in (
        (1, TypeError, "source must be"), (tmp_path / "model.tflite", ValueError, r"source must end in \.onnx"),
        (absent, FileNotFoundError, "does not exist"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            export.quantize_onnx(source, tmp_path / "int8.onnx", some)
    with pytest.raises(ValueError, match=r"path must end in \.onnx"):
        export.quantize_onnx(network, tmp_path / "one_step.int8", some)
    with pytest.raises(ValueError, match="threads must be"):
        export.logits(path, some, threads=0)
    for threads in (0, 2000, "1", True, 10**5000):
        with pytest.raises((TypeError, ValueError), match="threads must be"):
            export.open_session(path, threads)
    assert export.open_session(path, np.int64(1)) is not None
    with pytest.raises(ValueError, match=r"path must end in \.onnx, \.tflite, \.pte"):
        export.logits(tmp_path / "model.bin", some)
    assert list(tmp_path.iterdir()) == []


# -- measures --------------------------------------------------------------------------------------------------------


def test_a_network_and_its_reference_are_timed_in_turns(path, monkeypatch):
    """Two that say that they ran: they take turns, on the same batch, and the slow one is found to be slow."""
    ran = []

    def opened(file, threads):
        times = 50 if file == "slow.onnx" else 1

        def run(images):
            return ran.append((file, threads, images.shape)) or [images.sum() for _ in range(times)]

        return runtimes.Session(run, (3, 32, 32))

    monkeypatch.setattr(measures, "existing", measures.Path)
    monkeypatch.setattr(measures, "open_session", lambda file, threads: opened(str(file), threads))
    rows = export.latencies({"one": "slow.onnx", "other": "fast.onnx"}, threads=1, batch_size=4, repeats=5)
    assert set(ran) == {(file, 1, (4, 3, 32, 32)) for file in ("slow.onnx", "fast.onnx")}
    timed = [file for file, _, _ in ran][-10:]
    assert timed.count("slow.onnx") == timed.count("fast.onnx") == 5
    assert not re.search(r"(slow.onnx){3}|(fast.onnx){3}", "".join(timed))
    assert rows["one"]["latency_ms"] > rows["other"]["latency_ms"]
    for row in rows.values():
        assert 0 < row["latency_low_ms"] <= row["latency_ms"] <= row["latency_high_ms"]
        assert (row["batch"], row["threads"], row["repeats"]) == (4, 1, 5)


def test_latency_of_one_file(path):
    row = export.latency(path, batch_size=4, repeats=3)
    assert (row["batch"], row["threads"], row["repeats"]) == (4, torch.get_num_threads(), 3)
    assert row["latency_ms"] > 0
    with pytest.raises(ValueError, match="repeats must be"):
        export.latency(path, repeats=2)


def test_onnx_profile_has_every_operator_once(network, path, tmp_path):
    table = export.onnx_profile(path, repeats=3)
    assert list(table.columns) == ["operator", "calls", "microseconds", "share"]
    assert table["operator"].is_unique
    assert table["share"].sum() == pytest.approx(1)
    assert table["microseconds"].is_monotonic_decreasing
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert table[table["operator"].str.contains("Conv")]["calls"].sum() == convolutions
    nodes = export.onnx_profile(path, repeats=3, by="node")
    assert list(nodes.columns) == ["node", "operator", "input", "microseconds", "share"]
    assert nodes["share"].sum() == pytest.approx(1)
    assert nodes["microseconds"].is_monotonic_decreasing
    assert nodes["operator"].value_counts().to_dict() == table.set_index("operator")["calls"].to_dict()
    assert (nodes["input"] == "1 x 3 x 32 x 32").any()
    assert not nodes["node"].str.contains("_kernel_time|_nchwc|_token_").any()
    with pytest.raises(ValueError, match=r"path must end in \.onnx"):
        export.onnx_profile(tmp_path / "model.tflite")
    with pytest.raises(ValueError, match="by must be 'operator' or 'node'"):
        export.onnx_profile(path, by="layer")


def test_the_memory_of_a_process_is_measured_without_torch():
    """Else the baseline would be PyTorch's: the module that is run may not import it, nor may what it imports."""
    code = f"import sys, {runtimes.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=HOME).returncode == 0


def test_a_file_that_takes_one_picture_at_a_time_is_asked_so(path, some, tmp_path):
    proto = onnx.load(path)
    for value in (proto.graph.input[0], proto.graph.output[0]):  # as torch.onnx.export writes it by default
        value.type.tensor_type.shape.dim[0].dim_value = 1
    single = tmp_path / "single.onnx"
    onnx.save(proto, single)
    torch.testing.assert_close(export.logits(single, some), export.logits(path, some), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="batch_size must be 1, as the file says, got 2"):
        export.latency(single, batch_size=2, repeats=3)


def test_a_file_of_no_set_size_is_not_timed(path, tmp_path):
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(proto, tmp_path / "open.onnx")
    with pytest.raises(
        ValueError, match="path must be a file that says how large its pictures are, got 3 x height x 32"
    ):
        export.latency(tmp_path / "open.onnx", repeats=3)


class Squeezed(nn.Module):
    """Of one picture it forgets that it was a batch."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 32), nn.Linear(8, 10)

    def forward(self, images):
        return self.linear(self.conv(images).squeeze())


def test_a_network_that_squeezes_away_a_single_picture_is_refused(some, tmp_path):
    with pytest.raises(
        export.ExportError, match=r"of one picture the network gives \(10,\), of two \(2, 10\)"
    ):
        export.to_onnx(Squeezed(), tmp_path / "squeezed.onnx", some)


class Kept(nn.Module):
    """What a pool makes goes on twice: at once, and through the rest of its block."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.linear = nn.Linear(8, 10)

    def forward(self, images):
        pooled = self.block[1](self.block[0](images))
        return self.linear((pooled + self.block[3](self.block[2](pooled))).mean((2, 3)))


def test_a_pool_whose_output_is_used_twice_stays_where_it_is(some, tmp_path):
    model = Kept().eval()
    file = export.to_onnx(model, tmp_path / "kept.onnx", some)
    torch.testing.assert_close(export.logits(file, some), predict(model, some), atol=1e-4, rtol=1e-4)


def test_weights_in_a_file_of_their_own_are_counted(tmp_path):
    (tmp_path / "own.onnx").write_bytes(bytes(100))
    alone = export.zipped_bytes(tmp_path / "own.onnx")
    (tmp_path / "own.onnx.data").write_bytes(np.random.default_rng(0).bytes(5_000))
    assert export.zipped_bytes(tmp_path / "own.onnx") > alone + 5_000
