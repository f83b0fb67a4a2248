"""Figures of lesson 06: what to try first, times at a real picture size, bills in parts, a queue's tail."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from helpers.diagrams.shapes import arrow, box, canvas
from helpers.plotting import BLUE, COLORS, GRAY, GREEN, ORANGE, grouped_bars, panels, rows_down, stacked_bars

QUESTIONS = (  # what to ask, and what to do where the answer is yes; in order of what it costs
    ("fits as it is,\nbill small?", "leave it alone"),
    ("fits in int8,\nbill small?", "round it:\n2 days"),
    ("fits as a small\nnetwork in int8,\nbill small?", "train that:\n10 days"),
    ("fits after the\nfull pipeline?", "the full pipeline:\n20 days"),
)


def decision_tree() -> Figure:
    """Draw the questions from the cheapest answer to the dearest."""
    figure, axes = canvas(14.6, 3.9, 0.62)
    for index, (question, answer) in enumerate(QUESTIONS):
        x = 1.4 + 2.95 * index
        box(axes, (x, 3.1), question, size=(2.45, 1.2), color=BLUE)
        arrow(axes, (x + 1.225, 3.1), (x + 1.725, 3.1), "no", color=GRAY)
        arrow(axes, (x, 2.5), (x, 1.4), color=GREEN)
        axes.text(x + 0.12, 1.95, "yes", fontsize=8, color=GREEN, va="center")
        box(axes, (x, 0.9), answer, size=(2.45, 1.0), color=GREEN, filled=True)
    box(
        axes,
        (1.4 + 2.95 * len(QUESTIONS), 3.1),
        "change the product\nor the device",
        size=(2.45, 1.2),
        color=GRAY,
    )
    return figure


def speedups(table: pd.DataFrame) -> Figure:
    """Draw how many times faster networks are than one that all are compared with.

    Args:
        table: a row per network; a column of ratios per size of the pictures, drawn as a bar each.
    """
    figure, (axes,) = panels((7.6, 1.0 + 0.5 * len(table)), {"xlabel": "times faster than VGG-19 in float32"})
    grouped_bars(axes, table, {"fmt": " %.1f"}, "barh", color=(GRAY, BLUE))
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.margins(x=0.1)
    rows_down(axes, table.index)
    return figure


def tails(tables: Mapping[str, pd.DataFrame], limit_ms: float) -> Figure:
    """Draw median and 99th percentile of the time to an answer against the number of processors.

    Args:
        tables: {network: a row per number of processors, its index: p50_ms, p99_ms}.
        limit_ms: what the product allows, drawn as a line.
    """
    titles = ({"title": name, "xlabel": "processors", "yscale": "log"} for name in tables)
    figure, grid = panels((4.2 * len(tables), 3.1), *titles, sharey=True)
    for axes, table in zip(grid, tables.values(), strict=True):
        axes.plot(table.index, table["p50_ms"], "o-", color=BLUE, label="median")
        axes.plot(table.index, table["p99_ms"], "s-", color=ORANGE, label="1 in 100 waits longer")
        axes.axhline(limit_ms, color="black", linestyle="--", linewidth=1, label="allowed")
        axes.xaxis.get_major_locator().set_params(integer=True)
    grid[0].set_ylabel("ms from arrival to answer")
    grid[-1].legend()
    return figure


def bills(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw what networks cost, in stacked parts, a panel per case.

    Args:
        tables: {case: a row per network, a column per part of the bill}.
    """
    size = (4.4 * len(tables), 1.5 + 0.34 * max(map(len, tables.values())))
    figure, grid = panels(
        size, *({"title": name, "xlabel": "dollars in the first year"} for name in tables), sharey=True
    )
    for axes, table in zip(grid, tables.values(), strict=True):
        stacked_bars(axes, table, COLORS)
        axes.locator_params(axis="x", nbins=4)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
