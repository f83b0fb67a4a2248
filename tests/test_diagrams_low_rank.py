"""The diagrams of lesson 03 show the numbers they are given."""

import pandas as pd
import pytest
import torch

from helpers.diagrams import low_rank as diagrams
from helpers.evaluation import Accuracy


def test_two_splits_count_the_weights_of_both_ways():
    words = [text.get_text() for text in diagrams.two_splits(8, 6, kernel=3, rank=2).axes[0].texts]
    assert {"432\nweights", "144 +\n12\n= 156\nweights", "48 +\n36\n= 84\nweights"} <= {*words}
    assert {"3 x 3", "1 x 1", "3 x 1", "1 x 3"} <= {*words}


def test_a_product_shows_the_matrix_its_factors_and_the_rest():
    matrix = torch.tensor([[6.0, 6, 2, 2], [6, 6, 2, 2], [2, 2, 6, 6], [2, 2, 6, 6]])
    axes = diagrams.product(matrix, rank=1, numbers="g").axes[0]
    w, u, v, rest = (torch.as_tensor(image.get_array().filled()) for image in axes.images)
    assert torch.allclose(u, torch.full((4, 1), 2.0).double())
    assert torch.allclose(u @ v + rest, w.double())
    assert len({image.get_clim() for image in axes.images}) == 1  # one scale: a pale rest is a small one
    assert {"-2", "U\n4 x 1", "V\n1 x 4"} <= {text.get_text() for text in axes.texts}


def test_spectra_mark_break_even():
    kept = torch.tensor([0.5, 0.75, 1.0])
    axes = diagrams.spectra({"a": kept}, {"a": kept / 2}, {"a": 2}).axes[0]
    before, after = axes.lines[:2]
    assert (list(before.get_ydata()), list(after.get_ydata())) == ([25, 37.5, 50], [50, 75, 100])
    assert after.get_markevery() == [1]


def test_costs_stages_and_times_show_their_rows():
    axes = diagrams.cost_map(pd.DataFrame({"50%": [40.0, 120.0]}, index=["a", "b"])).axes[0]
    assert [text.get_text() for text in axes.texts] == ["40", "120"]
    blue, red = axes.collections[0].to_rgba([99.0, 100.0])[:, :3]
    assert red[0] - red[2] > 0.1 > blue[0] - blue[2]  # red starts at 100, and can be seen there
    found = {"as it is": Accuracy(1, 10), "trained": Accuracy(8, 10)}
    axes = diagrams.stages(found, Accuracy(9, 10)).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([10, 80])
    rows = [
        ("a", 50, 80, 70, 90),
        ("a", 90, 120, 110, 130),
        ("a", 100, 100, 95, 104),
    ]  # the last is the whole
    axes = diagrams.times(pd.DataFrame(rows, columns=["layer", "macs", "latency", "low", "high"])).axes[0]
    assert list(axes.lines[0].get_ydata()) == [80, 120]
    assert axes.patches[0].get_y() == 95
    assert axes.patches[0].get_height() == pytest.approx(9)
