"""Exported networks answer as PyTorch does, in the target's own runtime; when they do not, nothing is left behind."""

import warnings

import pytest
import torch

from helpers import export, low_rank, models, pruning
from helpers.data import load_data
from helpers.evaluation import predict
from helpers.training import fit


@pytest.fixture(scope="module")
def digits_():
    return load_data("digits")


@pytest.fixture(scope="module")
def networks(digits_):
    """One of each kind: as built, pruned, with channels gone, factorized, all of it."""
    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.5)
    fit(model, digits_, epochs=5, batch_size=64, progress=False)
    sparse = models.build("tiny_convnet", width=0.5)
    sparse.load_state_dict(model.state_dict())
    pruning.prune_once(sparse, 0.5)
    thin = pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), 0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        low = low_rank.factorize(model, 0.9)
        combined = low_rank.factorize(thin, 0.9, scheme="auto")
    pruning.prune_once(combined, 0.3)
    mobile = models.build("mobilenet_student", width=0.5)
    return {
        "built": model,
        "pruned": sparse,
        "channels": thin,
        "low rank": low,
        "combined": combined,
        "mobilenet": mobile,
    }


@pytest.mark.parametrize("name", ["built", "pruned", "channels", "low rank", "combined", "mobilenet"])
def test_onnx_answers_as_pytorch_does_at_any_batch_size(networks, digits_, name, tmp_path):
    model, some = networks[name], digits_.validation.take(slice(0, 37))
    training = model.training
    path = export.to_onnx(model, tmp_path / "model.onnx", some)
    assert model.training == training
    expected = predict(model, some)
    for batch_size in (1, 7, 37):
        assert torch.allclose(
            export.onnx_logits(path, some, batch_size=batch_size, threads=1), expected, atol=1e-3
        )
    assert export.onnx_accuracy(path, some).correct == int((expected.argmax(1) == some.labels).sum())
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_int8_straight_from_a_model_is_the_same_file(networks, digits_, tmp_path):
    few, some = digits_.train.take(slice(0, 100)), digits_.validation.take(slice(0, 50))
    path = export.to_onnx(networks["built"], tmp_path / "model.onnx", some)
    expected = export.quantize_onnx(path, tmp_path / "two_steps.onnx", few, some, agreement=0.9)
    given = export.quantize_onnx(networks["built"], tmp_path / "one_step.onnx", few, some, agreement=0.9)
    assert torch.equal(export.onnx_logits(given, some), export.onnx_logits(expected, some))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "model.onnx",
        "one_step.onnx",
        "two_steps.onnx",
    ]
    with pytest.raises(ValueError, match=r"path must end in \.onnx"):
        export.quantize_onnx(networks["built"], tmp_path / "one_step.int8", few)


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [("flags: avx2 fma", "x86_64", False), ("flags: avx2 avx512_vnni", "x86_64", True), ("Features: asimd", "aarch64", True),
     (None, "AMD64", False), (None, "arm64", True)],
)  # fmt: skip
def test_int8_is_halved_in_range_where_the_processor_would_saturate(
    flags, machine, expected, tmp_path, monkeypatch
):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(
        export, "Path", lambda _: tmp_path / "cpuinfo"
    )  # missing, as on Windows and macOS, where flags is None
    monkeypatch.setattr(export.platform, "machine", lambda: machine)
    assert export._has_vnni() is expected


def test_int8_is_smaller_and_agrees(networks, digits_, tmp_path, monkeypatch):
    some = digits_.validation
    path = export.to_onnx(networks["built"], tmp_path / "model.onnx", some)
    monkeypatch.setattr(export, "AGREEMENT", 0.95)  # a network of a few thousand weights, trained for seconds
    small = export.quantize_onnx(path, tmp_path / "int8.onnx", digits_.train.take(slice(0, 200)), some)
    assert small.stat().st_size < 0.45 * path.stat().st_size
    same = (
        (export.onnx_logits(small, some).argmax(1) == export.onnx_logits(path, some).argmax(1)).float().mean()
    )
    assert same >= 0.95
    assert sorted(file.name for file in tmp_path.iterdir()) == ["int8.onnx", "model.onnx"]


def test_a_network_that_answers_otherwise_is_not_written(networks, digits_, tmp_path, monkeypatch):
    some = digits_.validation.take(slice(0, 20))
    path = export.to_onnx(networks["built"], tmp_path / "model.onnx", some)
    before = path.read_bytes()
    honest = export.onnx_logits
    monkeypatch.setattr(export, "onnx_logits", lambda *a, **k: honest(*a, **k) + 1)
    with pytest.raises(export.ExportError, match=r"differs from PyTorch by 1.*100\.0% of 20 pictures"):
        export.to_onnx(networks["built"], path, some)
    answers = iter([honest(path, some), -honest(path, some)])
    monkeypatch.setattr(export, "onnx_logits", lambda *a, **k: next(answers))
    with pytest.raises(export.ExportError, match="names the same class"):
        export.quantize_onnx(path, tmp_path / "int8.onnx", some)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == before


def test_bad_arguments_are_named(networks, digits_, tmp_path):
    some = digits_.validation.take(slice(0, 5))
    with pytest.raises(ValueError, match=r"path must end in \.onnx"):
        export.to_onnx(networks["built"], tmp_path / "model.pt", some)
    with pytest.raises(ValueError, match="pictures must hold"):
        export.to_onnx(networks["built"], tmp_path / "model.onnx", some.take(slice(0, 0)))
    with pytest.raises(TypeError, match="pictures must be Split"):
        export.to_onnx(networks["built"], tmp_path / "model.onnx", some.images)
    for measure in (
        lambda path: export.logits(path, some),
        export.latency,
        export.peak_memory,
        export.onnx_profile,
        export.litert_scales,
    ):
        with pytest.raises(TypeError, match="path must be a path, got a int"):
            measure(1)
    for measure in (export.onnx_logits, export.onnx_accuracy, export.logits):
        with pytest.raises(FileNotFoundError, match=r"absent\.onnx does not exist"):
            measure(tmp_path / "absent.onnx", some)
    for measure in (export.onnx_latency, export.peak_memory, export.onnx_profile, export.onnx_session):
        with pytest.raises(FileNotFoundError, match=r"absent\.onnx does not exist"):
            measure(tmp_path / "absent.onnx")
    with pytest.raises(TypeError, match="pictures must be Split"):
        export.onnx_logits(export.to_onnx(networks["built"], tmp_path / "model.onnx", some), some.images)
    with pytest.raises(TypeError, match="source must be a path, got a int"):
        export.quantize_onnx(1, tmp_path / "int8.onnx", some)
    with pytest.raises(ValueError, match=r"source must end in \.onnx"):
        export.quantize_onnx(tmp_path / "model.tflite", tmp_path / "int8.onnx", some)
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx does not exist"):
        export.quantize_onnx(tmp_path / "absent.onnx", tmp_path / "int8.onnx", some)
    with pytest.raises(TypeError, match="path must be a path, got 1"):
        export.zipped_bytes(1)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_int8_is_refused_below_99_of_100(networks, digits_, tmp_path, monkeypatch):
    some = digits_.validation.take(slice(0, 200))
    path = export.to_onnx(networks["built"], tmp_path / "model.onnx", some)
    logits = export.onnx_logits(path, some)
    for changed, allowed in ((2, True), (3, False)):
        other = logits.clone()
        other[:changed] = -other[:changed]
        answers = iter([other, logits])
        monkeypatch.setattr(export, "onnx_logits", lambda *_, answers=answers, **__: next(answers))
        if allowed:
            export.quantize_onnx(path, tmp_path / "int8.onnx", some)
        else:
            with pytest.raises(export.ExportError, match=r"98\.5% of 200 pictures \(asked: 99%\)"):
                export.quantize_onnx(path, tmp_path / "other.onnx", some)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["int8.onnx", "model.onnx"]


def test_the_exporter_folds_batch_normalisations_and_leaves_relus(networks, digits_, tmp_path):
    import onnx

    path = export.to_onnx(
        networks["mobilenet"], tmp_path / "model.onnx", digits_.validation.take(slice(0, 5))
    )
    names = [node.op_type for node in onnx.load(path).graph.node]
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in networks["mobilenet"].modules())
    assert "BatchNormalization" not in names
    assert names.count("Conv") == sum(
        isinstance(module, torch.nn.Conv2d) for module in networks["mobilenet"].modules()
    )
