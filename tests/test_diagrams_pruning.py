"""The figures of lesson 02 are drawn from hand-made numbers and asked what they show."""

import matplotlib as mpl
import pandas as pd
import pytest
import torch

mpl.use("Agg")

from helpers.diagrams import pruning as diagrams


def test_a_mask_by_hand_shows_all_weights_and_then_those_that_stay():
    weight = torch.tensor([[1.0, -0.2], [0.3, -2.0]])
    words = [text.get_text() for text in diagrams.by_hand(weight, weight.abs() > 0.5).axes[0].texts]
    assert words.count("-0.2") == 1
    assert words.count("-2.0") == 2
    assert words.count("1") == 2


def test_patterns_draw_one_matrix_under_each_mask():
    weight = torch.ones(4, 4)
    masks = {"all": torch.ones(4, 4, dtype=bool), "rows": torch.eye(4, dtype=bool)[:, :1].expand(4, 4)}
    drawn = [int(image.get_array().sum()) for image in diagrams.patterns(weight, masks).axes[0].images]
    assert drawn == [16, 4]


def test_what_breaks_shows_both_accuracies_and_a_line_per_sparsity():
    table = pd.DataFrame({"sparsity": [0, 0.8], "accuracy": [0.9, 0.1], "recalibrated": [0.9, 0.8]})
    spread, accuracy = diagrams.what_breaks(table, {"50%": [1, 0.5], "80%": [1, 0.1]}).axes
    assert [list(line.get_ydata()) for line in accuracy.lines] == [[90, 80], [90, 10]]
    assert [list(line.get_ydata()) for line in spread.lines] == [[1, 0.5], [1, 0.1], [1, 1]]


def test_bars_and_lines_show_their_numbers():
    axes = diagrams.side_by_side(pd.DataFrame({"once": [90.0, 10.0], "gradual": [91.0, 80.0]})).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [90, 10, 91, 80]
    lines = diagrams.bits_per_weight({"bitmask": [17.0, 4.2]}, [0.5, 0.9]).axes[0].lines
    assert list(lines[0].get_xdata()) == [50, 90]
    rows = {"latency_ms": [2.0, 1.0], "latency_low_ms": [1.9, 0.9], "latency_high_ms": [2.2, 1.1]}
    table = pd.DataFrame(rows | {"accuracy": [90.0, 80.0]}, index=["dense", "thin"])
    table.attrs = {"batch": 1, "threads": 2}
    time, accuracy = diagrams.fast_and_right(table).axes
    assert [bar.get_width() for bar in time.patches] == pytest.approx([2, 1])
    assert [bar.get_width() for bar in accuracy.patches] == [90, 80]
    assert len(diagrams.dependency().axes[0].images) == 3
