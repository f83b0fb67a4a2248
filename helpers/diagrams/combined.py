"""The figures of lesson 04: the pipeline, what undoes what, a grid on a number line, fewer bits."""

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor

from helpers.diagrams.shapes import arrow, box, canvas
from helpers.plotting import BLUE, COLORS, GRAY, GREEN, ORANGE, grouped_bars, panels
from helpers.quantization import affine_grid, dequantize, quantize


def pipeline() -> Figure:
    """Draw the five steps from a trained network to a small file, and where ``fit`` takes three of them."""
    figure, axes = canvas(11.2, 3.4, scale=0.72)
    steps = {
        1.0: ("trained\nnetwork", GRAY),
        3.3: ("factorize", BLUE),
        8.0: ("round", ORANGE),
        10.2: ("code", GREEN),
    }
    for x, (word, color) in steps.items():
        box(axes, (x, 1.4), word, color=color, size=(1.7, 0.9), filled=color != GRAY)
    box(axes, (5.7, 1.4), "fit", color=BLUE, size=(1.5, 0.9), filled=True)
    for x, word in ((4.9, "loss:\ndistillation"), (6.6, "step:\npruning")):
        box(axes, (x, 2.8), word, color=BLUE, size=(1.55, 0.8))
        arrow(axes, (x, 2.4), (5.7 + 0.35 * (x > 5.7) - 0.35 * (x < 5.7), 1.87))
    for start, end in ((1.85, 2.45), (4.15, 4.95), (6.45, 7.15), (8.85, 9.35)):
        arrow(axes, (start, 1.4), (end, 1.4))
    for x, words in ((3.3, "the model"), (5.7, "one call"), (8.0, "8 bits"), (10.2, "zip, Huffman")):
        axes.text(x, 0.7, words, ha="center", fontsize=9)
    free = "needs no training"
    for (left, right), words in {(2.4, 4.2): free, (4.9, 6.5): "trained", (7.1, 11.1): free}.items():
        axes.plot([left, right], [0.5, 0.5], color=GRAY, linewidth=1.5)
        axes.text((left + right) / 2, 0.08, words, ha="center", fontsize=9)
    return figure


def undoes(kept: pd.DataFrame) -> Figure:
    """Draw how much of a first step is left after a second: a table of shares of 1, NaN where not asked.

    Args:
        kept: a row per first step, a column per second step.
    """
    figure, (axes,) = panels((1.6 + 1.05 * kept.shape[1], 1.1 + 0.55 * len(kept)), {})
    sns.heatmap(
        kept.add_prefix("then ", axis=1),
        annot=True,
        fmt=".0%",
        cmap=sns.light_palette(BLUE, as_cmap=True),
        vmin=0,
        vmax=1,
        cbar=False,
        linewidths=2,
        ax=axes,
    )
    axes.grid(visible=False)
    axes.set(ylabel="first", title="left of the first step's work")
    axes.tick_params(rotation=0)
    return figure


def number_line(values: Sequence[float] | Tensor, low: float, high: float, bits: int) -> Figure:
    """Draw an unsigned grid over [low, high] on a number line, and where each value lands; orange is clipped.

    Args:
        values: real numbers.
        low: smallest value that the grid covers.
        high: largest.
        bits: the grid has 2^bits points.
    """
    values, grid = torch.as_tensor(values), affine_grid(low, high, bits)
    points = dequantize(torch.arange(2**bits), *grid)
    landed = dequantize(quantize(values, *grid, bits), *grid)
    left, right = min(values.min(), points[0]) - grid[0], max(values.max(), points[-1]) + grid[0]
    figure, (axes,) = panels((7, 2.1), {"xlim": (left, right), "ylim": (-0.75, 1.35), "yticks": []})
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.axhline(0, color=GRAY, linewidth=1)
    half = grid[0] / 2
    for start, end in ((left, points[0] - half), (points[-1] + half, right)):
        axes.axvspan(start, end, color=ORANGE, alpha=0.15)
        if end - start > grid[0]:
            axes.text((start + end) / 2, 1.1, "clipped", ha="center", fontsize=9)
    axes.plot(points, torch.zeros(len(points)), "|", color="black", markersize=16, markeredgewidth=2)
    for number, point in enumerate(points):
        axes.text(point, -0.6, f"q = {number}", ha="center", fontsize=9)
    for value, end in zip(values, landed, strict=True):
        outside = value < points[0] - half or value > points[-1] + half
        color = ORANGE if outside else BLUE
        arrow(axes, (float(value), 0.75), (float(end), 0.08), color=color)
        axes.plot(value, 0.75, "o", color=color)
        axes.text(value, 0.88, f"{value:g}", ha="center", fontsize=9)
    return figure


def levels(weight: Tensor, grids: Mapping[str, Tensor]) -> Figure:
    """Draw how a layer's weights are spread, and below it the values that each way of storing them allows.

    Args:
        weight: any shape.
        grids: {name: the values}.
    """
    figure, (top, bottom) = panels(
        (7, 3.3), {"ylabel": "weights"}, {"xlabel": "value"}, rows=2, sharex=True, height_ratios=(2, 1)
    )
    top.hist(weight.flatten(), bins=101, color="0.75")
    for place, ((name, values), color) in enumerate(zip(grids.items(), COLORS, strict=False)):
        for value in values:
            top.axvline(float(value), color=color, linewidth=1, linestyle=("-", "--")[place % 2])
        bottom.plot(values, [name] * len(values), "o", color=color)
    bottom.set_ylim(len(grids) - 0.4, -0.6)
    return figure


def straight_through(paths: Mapping[str, Sequence[float]], goal: float) -> Figure:
    """Draw how weights move over the steps of a training, a line per way, with the grid behind them.

    Args:
        paths: {name: the weight after 0, 1, 2, ... steps}.
        goal: where the weight should be.
    """
    figure, (axes,) = panels((6, 3), {"xlabel": "steps", "ylabel": "weight"})
    axes.grid(axis="x", visible=False)
    axes.yaxis.get_major_locator().set_params(steps=[1, 10])
    axes.axhline(goal, color=GRAY, linestyle="--", label="goal")
    for (name, values), color, style in zip(
        paths.items(), (ORANGE, GREEN, BLUE), ("-", ":", "-"), strict=False
    ):
        axes.plot(
            values,
            style,
            color=color,
            linewidth=2,
            label=name,
            drawstyle="steps-post" if style == "-" else None,
        )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure


def arms(table: pd.DataFrame, levels: Mapping[str, float]) -> Figure:
    """Draw accuracies as groups of bars: a group per row, a bar per column, in percent.

    Args:
        table: accuracies, shares of 1; its index names the groups.
        levels: {name: an accuracy to compare with, drawn as a line}.
    """
    figure, (axes,) = panels((7, 3.4), {"ylabel": "accuracy (%)", "ylim": (0, 112)})
    inside = {"fmt": "{:.0f}", "color": "white", "padding": -12}
    grouped_bars(axes, 100 * table, inside, rot=0, color=COLORS, legend=False)
    for (name, level), style in zip(levels.items(), ("--", ":"), strict=False):
        label = f"{name}: {100 * level:.1f}"
        axes.axhline(100 * level, color=GRAY, linestyle=style, linewidth=2, label=label)
    axes.grid(axis="x", visible=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure
