"""What lesson 05 shows, on digits: graphs shrink, int8 is smaller and answers alike, a bad calibration does not."""

import functools
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from helpers import export
from helpers.data import load_data
from helpers.diagrams import deployment
from helpers.lesson import FAST, Lesson
from helpers.training import fit


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """A function of a seed: the data, the small network trained for four epochs, its ONNX file, a folder."""
    lesson = Lesson("quick", load_data("digits"))

    @functools.cache
    def written(seed):
        network, folder = lesson.student(seed), tmp_path_factory.mktemp("files")
        fit(network, lesson.data, epochs=4, seed=seed, progress=False, **FAST)
        file = export.to_onnx(network, folder / "float.onnx", lesson.data.test)
        return lesson.data, network.eval(), file, folder

    return written


@pytest.fixture(scope="module")
def written(write):
    return write(0)


def _norms(names):
    return sum(name.startswith("BatchNorm") for name in names)


def test_the_exporter_folds_and_the_runtime_fuses(written):
    _, network, file, _ = written
    layers, stored, run = deployment.layers(network), deployment.operators(file), deployment.as_it_runs(file)
    assert (_norms(layers), _norms(stored), _norms(run)) == (6, 0, 0)  # three stood behind a pool
    assert len(layers) > len(stored) >= len(run)


@pytest.mark.parametrize("seed", range(3))
def test_int8_is_smaller_and_a_bad_calibration_loses_pictures(write, seed):
    data, _, file, folder = write(seed)
    few = data.train.take(slice(0, 200))
    raw = replace(few, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    choices = {"ordinary": few, "dark": replace(few, images=few.images // 30), "raw": raw}
    rights, ranges = {"float": float(export.accuracy(file, data.test))}, {}
    for name, split in choices.items():
        path = export.quantize_onnx(file, folder / f"{name}.onnx", split, data.test, agreement=0)
        assert file.stat().st_size > 3 * path.stat().st_size
        rights[name], ranges[name] = (
            float(export.accuracy(path, data.test)),
            deployment.int8_range(path, "images"),
        )
    assert rights["ordinary"] > rights["float"] - 0.05
    assert max(rights["dark"], rights["raw"]) < rights["ordinary"] - 0.4
    assert ranges["dark"][1] < 0.5 * ranges["ordinary"][1] < 0.05 * ranges["raw"][1]
    for name in ("dark", "raw"):
        with pytest.raises(export.ExportError, match="was not written"):
            export.quantize_onnx(file, folder / "checked.onnx", choices[name], data.test)
    assert not (folder / "checked.onnx").exists()


def test_activations_outgrow_weights_with_the_picture(written):
    network = written[1]
    small, large = (4 * deployment.activations(network, side) for side in (32, 64))
    assert large == pytest.approx(4 * small, rel=0.1)


def test_layers_of_two_runs_are_put_beside_each_other_in_the_files_order(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    tiny, few = nn.Sequential(*layers, nn.Linear(4, 10)), load_data("digits").train.take(slice(0, 50))
    file = export.to_onnx(tiny, tmp_path / "tiny.onnx", few)
    int8 = export.quantize_onnx(file, tmp_path / "int8.onnx", few, agreement=0)
    profiles = {
        name: export.onnx_profile(path, by="node") for name, path in (("float", file), ("int8", int8))
    }
    table = deployment.layer_times(profiles, file)
    names = ["1: conv 3 to 8, 32 x 32", "2: conv 8 to 4, 30 x 30", "3: linear 4 to 10", "all else"]
    assert list(table.index) == names
    assert (table.iloc[:3] > 0).all(axis=None)
    for name, profile in profiles.items():
        assert table[name].sum() == pytest.approx(profile["microseconds"].sum())
    assert len(deployment.profile_bars(table).axes[0].patches) == 2 * len(table)
    assert deployment.activations(tiny) == 2 * 8 * 30 * 30


def test_diagrams_say_how_many_steps_there_are():
    (axes,) = deployment.graphs({"in PyTorch": ["Conv2d", "ReLU"], "as it runs": ["Conv + Relu"]}).axes
    words = [text.get_text() for text in axes.texts if text.get_text()]
    assert words == ["in PyTorch\n2 steps", "Conv2d", "ReLU", "as it runs\n1 steps", "Conv + Relu"]


def test_histograms_say_what_is_clipped_and_how_many_integers_are_used():
    seen = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    figure = deployment.calibrations(
        {"x": seen}, {"narrow": {"x": (0.0, 1.0)}, "wide": {"x": (-255.0, 255.0)}}
    )
    narrow, wide = (axes.get_xlabel() for axes in figure.axes)
    assert narrow == "x: 50% clipped,\n2 of 256 integers used"
    assert wide == "x: 0% clipped,\n2 of 256 integers used"  # in steps of 2: -0.5, 0 and 0.5 are 0, and 1


def test_histograms_are_shares_and_a_bar_twice_as_tall_as_any_other_is_cut():
    seen = {"relu": torch.tensor([0.0] * 60 + [1.0] * 10 + [2.0] * 20 + [3.0] * 10)}
    (axes,) = deployment.calibrations(seen, {"narrow": {"relu": (0.0, 2.5)}}).axes
    held, clipped = ([bar.get_height() for bar in drawn if bar.get_height()] for drawn in axes.containers[:2])
    assert (held, clipped) == ([60, 10, 20], [10])
    assert axes.get_ylim() == pytest.approx((0, 23))
    assert [text.get_text() for text in axes.texts] == ["cut: 60%"]
    seen = {"even": torch.tensor([0.0, 1.0, 1.0])}
    (axes,) = deployment.calibrations(seen, {"narrow": {"even": (0.0, 1.0)}}).axes
    assert axes.get_ylim()[1] == pytest.approx(1.15 * 200 / 3)
    assert not axes.texts


def test_memory_is_stacked_part_by_part():
    table = pd.DataFrame({"runtime": [50.0, 40.0], "weights": [9.0, 2.0]}, index=["float", "int8"])
    growth = pd.DataFrame({"weights": [9.0, 9.0], "activations": [1.0, 4.0]}, index=[32, 64])
    left, right = deployment.memory(table, growth).axes
    assert [(bar.get_x(), bar.get_width()) for bar in left.patches] == [(0, 50), (0, 40), (50, 9), (40, 2)]
    assert list(right.lines[1].get_ydata()) == [1, 4]


def test_python_alone_is_a_part_of_what_a_process_takes_before_it_loads_a_file(written):
    assert 5 < deployment.python_alone() < export.peak_memory(written[2])["baseline_mb"]
