"""The figures of lesson 02: a mask by hand, patterns of zeros, what breaks, and what depends on a channel."""

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor

from helpers.diagrams.shapes import arrow, canvas, matrix
from helpers.plotting import BLUE, GRAY, ORANGE, bars, grouped_bars, panels


def by_hand(weight: Tensor, mask: Tensor) -> Figure:
    """Draw a small matrix, rows x columns, times its mask, True where a weight stays, and what is left."""
    rows, columns = weight.shape
    step = 0.6 * columns + 0.8
    figure, axes = canvas(3 * step - 0.4, 0.6 * rows + 0.9, scale=0.72)
    for index, (title, values, form) in enumerate(
        (("weights", weight, ".1f"), ("mask", mask.float(), ".0f"), ("what is left", weight * mask, ".1f"))
    ):
        matrix(axes, values, (0.2 + index * step, 0.2), title, cell=0.6, numbers=form)
    for index, sign in enumerate("×="):
        axes.text((index + 1) * step - 0.2, 0.2 + 0.3 * rows, sign, ha="center", va="center", fontsize=16)
    return figure


def patterns(weight: Tensor, masks: Mapping[str, Tensor]) -> Figure:
    """Draw one matrix of weights, a row per output, under several masks: {title: True where one stays}."""
    rows, columns = weight.shape
    step = 0.35 * columns + 0.5
    figure, axes = canvas(len(masks) * step + 0.1, 0.35 * rows + 0.8, scale=0.95)
    for index, (title, mask) in enumerate(masks.items()):
        matrix(axes, weight * mask, (0.3 + index * step, 0.2), title, cell=0.35)
        for four in range(4, columns, 4):  # neighbours in a row belong together by fours
            axes.plot([0.3 + index * step + 0.35 * four] * 2, [0.2, 0.2 + 0.35 * rows], color="black")
    return figure


def what_breaks(table: pd.DataFrame, spreads: Mapping[str, Sequence[float]]) -> Figure:
    """Draw each layer's spread by depth, and accuracy against sparsity, as it is and recalibrated.

    Args:
        table: from ``pruning.sweep``.
        spreads: {name: for each normalisation, the spread that comes in, as a share of the unpruned one's}.
    """
    figure, (spread, accuracy) = panels(
        (9.4, 3.6),
        {
            "xlabel": "normalisation layer, from the first",
            "ylabel": "spread that comes in (unpruned: 1)",
            "yscale": "log",
        },
        {"xlabel": "sparsity (%)", "ylabel": "accuracy (%)", "ylim": (0, 100)},
    )
    look = {"color": BLUE, "markersize": 4}
    accuracy.plot(100 * table["sparsity"], 100 * table["recalibrated"], "o-", label="recalibrated", **look)
    accuracy.plot(100 * table["sparsity"], 100 * table["accuracy"], "o:", label="as it falls out", **look)
    accuracy.legend(loc="lower left")
    shades = sns.color_palette("viridis_r", len(spreads))
    for color, (name, values) in zip(shades, spreads.items(), strict=True):
        spread.plot(range(1, len(values) + 1), values, "o-", color=color, markersize=3, label=name)
    spread.xaxis.get_major_locator().set_params(integer=True)
    spread.axhline(1, color=GRAY, linestyle="--")
    spread.set_yticks([1, 0.5, 0.2, 0.1, 0.05], ["1", "0.5", "0.2", "0.1", "0.05"])
    spread.legend()
    return figure


def bits_per_weight(curves: Mapping[str, Sequence[float]], sparsities: Sequence[float]) -> Figure:
    """Draw what a weight takes in the file, {storage: bits}, against the share of zeros."""
    figure, (axes,) = panels((6, 3.2), {"xlabel": "sparsity (%)", "ylabel": "bits per weight"})
    table = pd.DataFrame(curves, index=[100 * one for one in sparsities])
    table.plot(ax=axes, ylim=(0, None), style=["--", "-", "-.", ":"], linewidth=2)
    return figure


def side_by_side(table: pd.DataFrame) -> Figure:
    """Draw accuracy (%), a group of bars for each row of ``table``, a bar in it for each column."""
    figure, (axes,) = panels(
        (6.4, 3.2), {"xlabel": table.index.name, "ylabel": "accuracy (%)", "ylim": (0, 108)}
    )
    grouped_bars(axes, table, {"fmt": "%.1f"}, rot=0)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def fast_and_right(table: pd.DataFrame) -> Figure:
    """Draw time and accuracy of networks; ``table`` is from ``profiling.compare``, with accuracies."""
    threads = "1 thread" if table.attrs["threads"] == 1 else f"{table.attrs['threads']} threads"
    time = f"latency (ms; {table.attrs['batch']} pictures, {threads})"
    figure, (left, right) = panels(
        (9, 0.9 + 0.4 * len(table)), {"xlabel": time}, {"xlabel": "accuracy (%)"}, sharey=True
    )
    whiskers = table["latency_ms"] - table["latency_low_ms"], table["latency_high_ms"] - table["latency_ms"]
    bars(left, table.index, table["latency_ms"], BLUE, xerr=whiskers)
    bars(right, table.index, table["accuracy"], ORANGE, " {:.1f}")
    right.set_xlim(0, 108)
    return figure


def dependency() -> Figure:
    """Draw what belongs to one channel: a row of one layer, an entry of the next, a column of the third."""
    figure, axes = canvas(9.4, 3.3, scale=0.78)
    channel, parts = 2, (torch.zeros(5, 4), torch.zeros(5, 1), torch.zeros(6, 5))
    parts[0][channel] = parts[1][channel] = parts[2][:, channel] = 0.7
    titles = "convolution", "batch norm", "next convolution"
    words = "its filter, a row", "its scale and shift", "what reads it, a column"
    for values, title, word, x in zip(parts, titles, words, (0.3, 3.8, 6.2), strict=True):
        y, width = 1.6 - 0.2 * len(values), 0.4 * values.shape[1]
        matrix(axes, values, (x, y), title, cell=0.4)
        axes.text(x + width / 2, y - 0.12, word, ha="center", va="top", fontsize=9)
    for start, end in ((2.0, 3.6), (4.3, 6.1)):
        arrow(axes, (start, 1.6), (end, 1.6), "channel 3")
    return figure
