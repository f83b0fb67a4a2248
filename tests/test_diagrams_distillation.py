"""The diagrams of lesson 01 show the numbers they are given."""

import matplotlib as mpl
import pandas as pd

mpl.use("Agg")

from helpers.diagrams import distillation as diagrams


def test_arms_show_a_dot_for_each_seed_and_their_mean():
    axes = diagrams.arms(pd.DataFrame({"alone": [80.0, 90.0], "taught": [95.0, 96.0]}), "accuracy").axes[0]
    assert list(axes.lines[0].get_xdata()) == [80, 90]
    assert [text.get_text() for text in axes.texts] == ["85.0", "95.5"]
    alike = diagrams.arms(pd.DataFrame({"taught": [92.0, 87.0, 92.0, 92.0]}), "accuracy").axes[0].lines[0]
    assert len(set(zip(alike.get_xdata(), alike.get_ydata(), strict=True))) == 4  # none hides another
