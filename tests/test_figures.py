"""Every figure is drawn from hand-made numbers and asked what it shows; the sliders' functions at their ends."""

import matplotlib as mpl
import pandas as pd
import pytest
import torch

mpl.use("Agg")

from helpers import models, plotting, profiling, widgets

CLASSES = ("cat", "dog", "ship")


def test_where_it_goes_shows_shares_of_the_whole():
    table = profiling.profile(models.build("vgg11", width=0.1), latency=True, repeats=3)
    left, right = plotting.where_it_goes(table).axes
    bytes_shown = [bar.get_width() for bar in left.patches]
    assert len(bytes_shown) == len(right.patches) == 9  # eight convolutions and the classifier
    assert max(bytes_shown) == pytest.approx(100 * table["bytes"].max() / table["bytes"].sum())
    assert 90 < sum(bytes_shown) <= 100


def test_soft_targets_marks_the_true_class():
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    figure = plotting.soft_targets(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), probabilities, CLASSES, torch.tensor([0, 2]))
    bars = figure.axes[2].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([0.7, 0.2, 0.1])
    assert bars[0].get_facecolor()[:3] == pytest.approx(plotting.ORANGE)
    assert figure.axes[3].patches[2].get_facecolor()[:3] == pytest.approx(plotting.ORANGE)


def test_curves_bars_and_maps_show_their_numbers():
    history = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "validation_accuracy": [0.5, 0.75]})
    loss, accuracy = plotting.learning_curves({"alone": history, "taught": history}, teacher=0.9).axes
    assert list(accuracy.lines[0].get_ydata()) == [50, 75]
    assert list(accuracy.lines[2].get_ydata()) == [90, 90]
    assert len(loss.lines) == 2
    axes = plotting.paired(pd.DataFrame({"alone": [90.0, 91.0], "taught": [91.0, 93.0]}), "alone", "taught").axes[0]
    assert list(axes.lines[-1].get_ydata()) == [90.5, 92.0]
    figure = plotting.heat_map(pd.DataFrame([[1.0, 2.0], [3.0, 4.0]]), "title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.0", "2.0", "3.0", "4.0"]
    figure = plotting.costs(pd.DataFrame({"macs": [4, 1]}, index=["big", "small"]), "macs", "MACs")
    assert [bar.get_width() for bar in figure.axes[0].patches] == [4, 1]
    assert len(plotting.pictures(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), "abcde", columns=4).axes) == 8


@pytest.mark.parametrize("temperature", [1, 4, 20])
def test_temperature_figure_at_its_lowest_default_and_highest(temperature):
    logits = torch.tensor([3.0, 1.0, -1.0])
    bars, entropy, _ = widgets.temperature_figure(logits, temperature, CLASSES, 0).axes
    shown = [bar.get_width() for bar in bars.patches]
    assert shown == pytest.approx(torch.softmax(logits / temperature, 0).tolist())
    assert entropy.lines[1].get_xdata()[0] == temperature


@pytest.mark.parametrize("temperature", [0.5, 21, float("nan")])
def test_temperature_outside_the_slider_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        widgets.temperature_figure(torch.zeros(3), temperature, CLASSES, 0)


def test_moving_the_slider_changes_the_picture():
    box = widgets.temperature_slider(torch.tensor([3.0, 1.0, -1.0]), CLASSES, 0)
    slider, picture = box.children
    assert (slider.min, slider.value, slider.max) == (1, 4, 20)
    before = bytes(picture.value)
    slider.value = 20
    assert bytes(picture.value) != before
    assert bytes(picture.value).startswith(b"\x89PNG")
    slider.value = 4
    assert bytes(picture.value) == before
