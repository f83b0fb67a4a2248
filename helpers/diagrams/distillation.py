"""The figures of lesson 01: how a student is taught, and what several arms of an experiment reached."""

import pandas as pd
from matplotlib.figure import Figure

from helpers.diagrams.shapes import arrow, box, canvas
from helpers.plotting import BLUE, GRAY, GREEN, ORANGE, panels, rows_down


def teacher_and_student() -> Figure:
    """Draw a training step of distillation: one picture, two networks, two terms, one gradient."""
    figure, axes = canvas(8.6, 4.1)
    box(axes, (0.8, 2.1), "picture", size=(1.2, 0.8), color=GRAY)
    box(axes, (3.1, 3.3), "teacher\nlarge, frozen", size=(2.0, 1.1), color=BLUE, filled=True)
    box(axes, (3.1, 1.4), "student\nsmall, learns", size=(1.5, 0.8), color=ORANGE, filled=True)
    box(axes, (5.6, 2.9), "KL divergence\nboth softened by T", size=(1.9, 0.9), color=BLUE)
    box(axes, (5.6, 1.0), "cross-entropy", size=(1.9, 0.7), color=GREEN)
    box(axes, (3.1, 0.35), "label", size=(1.2, 0.5), color=GRAY)
    box(axes, (7.85, 1.95), "loss", size=(1.0, 0.8), color=ORANGE)
    arrow(axes, (1.4, 2.3), (2.1, 3.2))
    arrow(axes, (1.4, 1.9), (2.35, 1.5))
    arrow(axes, (4.1, 3.3), (4.65, 3.05))
    arrow(axes, (3.85, 1.55), (4.65, 2.65))
    arrow(axes, (3.85, 1.3), (4.65, 1.1))
    arrow(axes, (3.7, 0.35), (4.65, 0.8))
    arrow(axes, (6.55, 2.8), (7.35, 2.15))
    arrow(axes, (6.55, 1.1), (7.35, 1.75))
    axes.text(7.0, 2.75, "alpha · T²", fontsize=9, ha="left")
    axes.text(7.0, 1.2, "1 − alpha", fontsize=9, ha="left")
    return figure


def arms(table: pd.DataFrame, xlabel: str) -> Figure:
    """Draw what each arm of a column of ``table`` reached: a dot per seed, a row, and the mean.

    Seeds that reached the same stand on one another.
    """
    figure, (axes,) = panels((6.4, 0.9 + 0.42 * table.shape[1]), {"xlabel": xlabel})
    for place, (_, values) in enumerate(table.items()):
        alike = values.groupby(values.round(6)).cumcount()
        axes.plot(values, place + 0.18 * alike, "o", color=BLUE, alpha=0.6)
        axes.plot(values.mean(), place, "|", color=ORANGE, markersize=18, markeredgewidth=3)
        axes.annotate(
            f"{values.mean():.1f}", (values.mean(), place - 0.3), fontsize=8, ha="center", va="bottom"
        )
    rows_down(axes, list(table.columns))
    axes.margins(x=0.08)
    return figure
