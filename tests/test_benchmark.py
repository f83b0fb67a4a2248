"""The commands that make the published rows, on digits and a narrow VGG-19: what they write, and that nothing is run twice."""

import argparse

import pytest
import torch

from helpers import benchmark, models, results
from helpers.data import load_data
from helpers.training import fit


@pytest.fixture
def small(tmp_path, monkeypatch):
    data = load_data("digits", train_limit=256)
    torch.manual_seed(0)
    model = models.build("vgg19", width=0.25)
    fit(model, data, epochs=2, batch_size=64, progress=False)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(benchmark, "WORK", tmp_path / "work")
    monkeypatch.setattr(benchmark, "TEACHER", tmp_path / "vgg19.safetensors")
    monkeypatch.setattr(benchmark, "load_data", lambda *_, **__: data)
    models.save(model, benchmark.TEACHER, torch.float16)
    return argparse.Namespace(
        seeds=[0], epochs=1, train_limit=None, lr=0.02, sparsity=0.5, distil=False, only=["dense-0", "gradual-0.9"], tolerances=[0.02],
        budgets=[5.0], macs=[2.0], start=None, point="combined",
    )  # fmt: skip


def test_compression_rows_say_what_was_kept_beside_the_teacher_and_are_not_run_twice(small, monkeypatch):
    results.append("sensitivity", {"unit": "channel", "weights": "of another", "correct": 1, "total": 1})
    with pytest.raises(RuntimeError, match="no scan of this teacher"):
        benchmark.channels(small)
    (results.RESULTS / "sensitivity.csv").unlink()
    for command in (benchmark.sensitivity, benchmark.prune, benchmark.channels, benchmark.low_rank):
        command(small)
    pruned = results.read("pruning").set_index("method")
    kept = models.load(benchmark.WORK / "vgg19_pruned90-measured.safetensors")
    weights = [parameter for parameter in kept.parameters() if parameter.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert zeros == pytest.approx(0.9, abs=0.002)  # half precision may round a tiny weight to zero
    assert pruned.loc["gradual", "half_bytes"] == (benchmark.WORK / "vgg19_pruned90-measured.safetensors").stat().st_size
    assert [path.name for path in benchmark.TEACHER.parent.glob("*.safetensors")] == ["vgg19.safetensors"]  # only full runs are kept
    assert pruned.loc["gradual", "storage"] == "bitmask+zip"
    assert pruned.loc["dense", "storage"] == "dense"
    assert (pruned["teacher_correct"] == pruned["teacher_correct"].iloc[0]).all()
    thin = results.read("channels").iloc[0]
    assert thin["parameters"] < pruned.loc["dense", "parameters"]
    low = results.read("low_rank")
    assert len(low[low["epochs"] == 0]) == 40
    assert low[low["method"] == "weights"]["macs"].tolist() == low[low["method"] == "pictures, ranks of weights"]["macs"].tolist()
    trained = low[low["epochs"] == 1].iloc[0]
    assert trained["parameters"] < 0.25 * pruned.loc["dense", "parameters"]
    assert trained["macs"] < 0.52 * pruned.loc["dense", "macs"]
    assert set(results.read("sensitivity")["unit"]) == {"weight", "channel"}
    before = {path.name: path.read_text() for path in results.RESULTS.glob("*.csv")}
    monkeypatch.setattr(benchmark, "fit", None)
    for command in (benchmark.sensitivity, benchmark.prune, benchmark.channels, benchmark.low_rank):
        command(small)
    assert before == {path.name: path.read_text() for path in results.RESULTS.glob("*.csv")}


def test_the_combined_row_is_measured_in_onnxruntime(small, monkeypatch):
    monkeypatch.setattr(benchmark.export, "AGREEMENT", 0.0)  # a network trained for seconds rounds badly
    benchmark.sensitivity(small)
    benchmark.combined(argparse.Namespace(**{**vars(small), "tolerances": [0.1]}))
    row = results.read("combined").iloc[0]
    assert row["int8_zip_bytes"] < row["int8_onnx_bytes"] < row["onnx_bytes"] < row["teacher_onnx_bytes"]
    assert 0.4 < row["nonzeros"] / row["parameters"] < 0.6
    assert 0 <= row["int8_correct"] <= row["total"] == 300
    assert row["int8_latency_low_ms_1_threads"] <= row["int8_latency_ms_1_threads"] <= row["int8_latency_high_ms_1_threads"]


def test_a_second_cycle_trains_on_what_the_teacher_is_least_sure_of(small, monkeypatch):
    data = benchmark.load_data()
    model = models.load(benchmark.TEACHER)
    chosen = benchmark._least_sure(model, data, 0, hard=100, others=30)
    assert len(chosen) == 130
    sure = benchmark.predict(model, data.train, precision="auto").softmax(1).amax(1)
    images = {image.numpy().tobytes() for image in chosen.images}
    hardest = data.train.images[sure.argsort(stable=True)[:100]]
    assert all(image.numpy().tobytes() in images for image in hardest)
    results.append("teacher", {"model": "vgg19", "cycle": 1})
    benchmark.TEACHER.with_name("vgg19_history.csv").write_text("cycle,epoch\n1,1\n")
    monkeypatch.setattr(benchmark, "_least_sure", lambda *_: chosen)
    before = models.load(benchmark.TEACHER)
    benchmark.teacher(argparse.Namespace(**{**vars(small), "restart": True, "epochs": 2}))
    row = results.read("teacher").iloc[-1]
    assert (row["cycle"], row["train_pictures"], row["total"]) == (2, 130, len(data.test))
    assert not torch.equal(before.classifier.weight, models.load(benchmark.TEACHER).classifier.weight)
    assert (benchmark.TEACHER.with_name("vgg19_history.csv").read_text()).count("\n") == 4
