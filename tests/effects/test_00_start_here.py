"""What lesson 00 shows, on digits: int8 is a quarter and answers alike; bytes are late; pairs and seeds."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from helpers import evaluation, export, models, profiling
from helpers.data import load_data
from helpers.diagrams import start
from helpers.lesson import FAST, Lesson
from helpers.training import fit


@pytest.fixture(scope="module")
def lesson():
    return Lesson("quick", load_data("digits"))


def test_int8_is_a_quarter_of_the_file_and_answers_as_before(lesson, tmp_path):
    network, data = lesson.student(0), lesson.data
    fit(network, data, epochs=6, progress=False, **FAST)
    full = export.to_onnx(network, tmp_path / "full.onnx", data.validation)
    few = data.train.take(slice(0, 200))
    small = export.quantize_onnx(full, tmp_path / "int8.onnx", few, agreement=0.9)
    assert full.stat().st_size > 3 * small.stat().st_size
    answers = [export.logits(file, data.test).argmax(1) for file in (full, small)]
    assert (answers[0] == answers[1]).float().mean() > 0.9
    assert evaluation.paired(*answers, data.test.labels).p_value > 0.05


def test_the_late_half_of_vgg19_holds_the_bytes_and_not_the_arithmetic():
    layers = profiling.profile(models.build("vgg19"))
    late = layers[layers["type"] == "Conv2d"].iloc[8:]
    assert late["parameters"].sum() > 0.85 * layers["parameters"].sum()
    assert late["macs"].sum() < 0.45 * layers["macs"].sum()


def test_each_convolution_of_a_vgg_has_its_time_in_the_order_of_its_layers(tmp_path):
    vgg = models.build("vgg19", width=0.125).eval()
    file = export.to_onnx(vgg, tmp_path / "vgg.onnx", load_data("digits").validation.take(slice(0, 10)))
    nodes = export.onnx_profile(file, by="node", repeats=2)
    times = start.convolution_times(nodes)
    assert len(times) == 16
    assert sum(times) == pytest.approx(nodes.loc[nodes["operator"] == "Conv", "microseconds"].sum())
    assert times[1] == nodes.loc[nodes["node"] == "relu_1", "microseconds"].item()


def test_seeds_move_the_accuracy_and_whitening_moves_it_far_more(lesson):
    """Whitened, three seeds: 59.5, 66.5, 73.0% of 200; drawn at random: 17.0, 17.0, 21.5%."""
    few = replace(lesson.data, train=lesson.data.train.take(slice(0, 600)))

    def trained(network, seed):
        history = fit(network, few, epochs=4, seed=seed, progress=False, **FAST)
        return 100 * history["validation_accuracy"].iloc[-1]

    whitened, drawn = [], []
    for seed in range(3):
        whitened.append(trained(lesson.student(seed), seed))
        torch.manual_seed(seed)
        drawn.append(trained(models.build("fast_convnet"), seed))
    assert max(whitened) - min(whitened) > 1
    assert all(ours > theirs + 15 for ours, theirs in zip(whitened, drawn, strict=True))


def test_figures_show_their_numbers():
    table = pd.DataFrame({"bytes": [1.0, 1.0, 6.0, 8.0]}, index=list("abcd"))
    (axes,) = start.shares(table, {"bytes": "bytes"}).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([6.25, 6.25, 37.5, 50])
    assert [text.get_text() for text in axes.texts][-2:] == ["12%", "88%"]
    pairs = pd.DataFrame({"plain": [60.0, 62.0], "smoothed": [61.0, 64.0]})
    left, right = start.seeds(pairs).axes
    assert [bar.get_width() for bar in right.patches] == [1, 2]
    assert [list(line.get_ydata()) for line in left.lines] == [[60, 61], [62, 64]]
    words = {text.get_text() for text in start.one_loop().axes[0].texts}
    assert {"model", "loss", "step", "weights"} <= words
    files = pd.DataFrame(
        {"size_mb": [4.0, 1], "latency_ms": [2.0, 1], "accuracy": [90.0, 90], "low": 89.0, "high": 91.0}
    )
    size, _, accuracy = start.before_and_after(files).axes
    assert [bar.get_width() for bar in size.patches] == [4, 1]
    assert accuracy.get_xlim() == (0, 100)
