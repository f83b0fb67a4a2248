"""The figures of lesson 04 show the numbers that they are given."""

import pandas as pd
import pytest
import torch

from helpers.diagrams import combined


def words(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_pipeline_names_its_steps():
    assert {"factorize", "fit", "round", "code"} <= set(words(combined.pipeline()))


def test_what_undoes_what_is_written_in_its_cells():
    kept = pd.DataFrame({"prune": [1.0, float("nan")], "train": [0.99, 0.02]}, index=["factorize", "prune"])
    assert words(combined.undoes(kept)) == ["100%", "99%", "2%"]


def test_a_number_line_has_its_grid_and_says_what_is_clipped():
    figure = combined.number_line([-1.0, 0.4, 5.0], -1.0, 2.0, bits=2)
    assert {"-1", "0.4", "5", "q = 0", "q = 3", "clipped"} <= set(words(figure))
    ticks = next(line for line in figure.axes[0].lines if line.get_marker() == "|")
    assert list(ticks.get_xdata()) == [-1, 0, 1, 2]
    assert "clipped" not in words(combined.number_line([0.0, 1.0], -1.0, 2.0, bits=2))


def test_levels_stand_where_they_are_given():
    grids = {"grid": torch.tensor([-1.0, 0.0, 1.0]), "codebook": torch.tensor([-0.2, 0.2])}
    figure = combined.levels(torch.randn(4, 25), grids)
    assert [line.get_xdata().tolist() for line in figure.axes[1].lines] == [
        pytest.approx(values.tolist()) for values in grids.values()
    ]


def test_paths_and_bars_have_the_given_heights():
    lines = combined.straight_through({"stuck": [0, 0], "free": [0, 1]}, goal=2).axes[0].lines
    assert [list(line.get_ydata()) for line in lines[1:]] == [[0, 0], [0, 1]]
    table = pd.DataFrame({"rounded": [0.8, 0.1], "aware": [0.8, 0.7]}, index=["3 bits", "2 bits"])
    axes = combined.arms(table, {"32 bits": 0.84, "trained on": 0.86}).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([80, 10, 80, 70])
    assert [line.get_ydata()[0] for line in axes.lines] == pytest.approx([84, 86])
