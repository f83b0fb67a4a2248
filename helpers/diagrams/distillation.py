"""The figures of lesson 01: how a student is taught, and what several arms of an experiment reached."""

import pandas as pd
from matplotlib.figure import Figure

from helpers.diagrams.shapes import arrow, box, canvas
from helpers.plotting import BLUE, GRAY, GREEN, ORANGE, panels, rows_down


def teacher_and_student() -> Figure:
    """Draw a training step of distillation: one picture, two networks, two terms, one gradient."""
    figure, axes = canvas(8.6, 4.1)
    for text, middle, size, color in (
        ("picture", (0.8, 2.1), (1.2, 0.8), GRAY),
        ("label", (3.1, 0.35), (1.2, 0.5), GRAY),
        ("KL divergence\nboth softened by T", (5.6, 2.9), (1.9, 0.9), BLUE),
        ("cross-entropy", (5.6, 1.0), (1.9, 0.7), GREEN),
        ("loss", (7.85, 1.95), (1.0, 0.8), ORANGE),
    ):
        box(axes, middle, text, size=size, color=color)
    box(axes, (3.1, 3.3), "teacher\nlarge, frozen", size=(2.0, 1.1), color=BLUE, filled=True)
    box(axes, (3.1, 1.4), "student\nsmall, learns", size=(1.5, 0.8), color=ORANGE, filled=True)
    for start, end in (
        ((1.4, 2.3), (2.1, 3.2)),
        ((1.4, 1.9), (2.35, 1.5)),
        ((4.1, 3.3), (4.65, 3.05)),
        ((3.85, 1.55), (4.65, 2.65)),
        ((3.85, 1.3), (4.65, 1.1)),
        ((3.7, 0.35), (4.65, 0.8)),
        ((6.55, 2.8), (7.35, 2.15)),
        ((6.55, 1.1), (7.35, 1.75)),
    ):
        arrow(axes, start, end)
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
