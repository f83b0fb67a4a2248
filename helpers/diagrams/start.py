"""Figures of lesson 00: the loop and what changes it, the early win, where bytes and time are, seeds."""

import pandas as pd
from matplotlib.figure import Figure

from helpers.diagrams.shapes import arrow, box, canvas
from helpers.plotting import BLUE, COLORS, GRAY, GREEN, ORANGE, accuracy_bars, bars, panels

CHANGES = (  # where each technique takes hold: the part of the loop, the technique, its lesson, colour
    ("model", "low rank (03)\nsplits its layers", GREEN),
    ("loss", "distillation (01)\nasks a teacher", ORANGE),
    ("step", "pruning (02)\nsets weights to zero", COLORS[3]),
    ("weights", "quantization (04)\nrounds to a grid", COLORS[4]),
)


def one_loop() -> Figure:
    """Draw the training loop, and under each of its parts the technique that changes it."""
    figure, axes = canvas(12.4, 4.0, 0.7)
    box(axes, (0.9, 2.9), "pictures,\nlabels", size=(1.4, 0.9), color=GRAY)
    arrow(axes, (1.6, 2.9), (2.1, 2.9))
    for index, (part, change, color) in enumerate(CHANGES):
        x = 3.1 + 2.6 * index
        box(axes, (x, 2.9), part, size=(1.9, 0.9), color=BLUE, filled=True)
        box(axes, (x, 0.7), change, size=(2.45, 1.0), color=color)
        arrow(axes, (x, 1.2), (x, 2.4), color=color)
        if index < len(CHANGES) - 1:
            arrow(axes, (x + 0.95, 2.9), (x + 1.65, 2.9))
    last = 3.1 + 2.6 * (len(CHANGES) - 1)
    arrow(axes, (last, 3.38), (3.1, 3.38), color=GRAY, bend=0.08)
    axes.text((last + 3.1) / 2, 3.42, "again", ha="center", fontsize=8, color=GRAY)
    return figure


def before_and_after(table: pd.DataFrame) -> Figure:
    """Draw size, latency and accuracy of a few files side by side.

    Args:
        table: a row per file, indexed by name: size_mb, latency_ms, accuracy (%), low and high (the ends of
            its 95% interval).
    """
    titles = "file (MB)", "one picture (ms, 1 thread)", "accuracy (%), 95% interval"
    figure, grid = panels((8.6, 1.2 + 0.3 * len(table)), *({"title": title} for title in titles), sharey=True)
    for axes, column in zip(grid[:2], ("size_mb", "latency_ms"), strict=True):
        bars(axes, table.index, table[column], (BLUE, ORANGE), " {:.3g}")
        axes.margins(x=0.25)
    accuracy_bars(grid[2], table, (BLUE, ORANGE))
    return figure


def convolution_times(nodes: pd.DataFrame) -> list[float]:
    """Return the microseconds of each convolution, with its fused ReLU, in the order in which they run.

    Args:
        nodes: what ``export.onnx_profile`` gave of a VGG, by node: relu, relu_1, relu_2, ...
    """
    times = nodes[nodes["operator"] == "Conv"].set_index("node")["microseconds"]
    order = sorted(times.index, key=lambda name: int(name.partition("_")[2] or 0))
    return times[order].to_list()


def shares(table: pd.DataFrame, columns: dict[str, str]) -> Figure:
    """Draw each layer's share of several costs, a panel per cost, early layers on top.

    Args:
        table: a row per layer, indexed by name.
        columns: {column: title of its panel}.
    """
    titles = ({"title": f"share of the {title}", "xlabel": "%"} for title in columns.values())
    figure, grid = panels((8.6, 1.1 + 0.2 * len(table)), *titles, sharey=True)
    half = len(table) // 2
    for axes, column in zip(grid, columns, strict=True):
        percent = 100 * table[column] / table[column].sum()
        bars(axes, table.index, percent, [BLUE] * half + [ORANGE] * (len(table) - half), " {:.1f}")
        axes.axhline(half - 0.5, color=GRAY, linestyle="--", linewidth=1)
        right = 1.8 * percent.max()
        axes.set_xlim(0, right)
        for place, part in ((half - 0.8, percent[:half]), (len(table) - 0.9, percent[half:])):
            axes.text(
                right, place, f"{part.sum():.0f}%", ha="right", fontsize=13, fontweight="bold", color=GRAY
            )
    return figure


def seeds(table: pd.DataFrame) -> Figure:
    """Draw two arms seed by seed: left the accuracies, a line per seed, right the differences.

    Args:
        table: a row per seed, two columns, in percent.
    """
    first, second = table
    figure, (left, right) = panels(
        (8, 2.9),
        {"ylabel": "validation accuracy (%)", "xlim": (-0.3, 1.3)},
        {"xlabel": f"{second} minus {first} (points)", "title": "the same in pairs (dashed: mean)"},
    )
    left.plot([first, second], table.T, "o-")  # a line per seed, in the colours of its bar
    bars(right, [f"seed {seed}" for seed in table.index], table[second] - table[first], COLORS, "  {:+.1f}")
    right.axvline(0, color="black", linewidth=1)
    right.axvline((table[second] - table[first]).mean(), color=GRAY, linestyle="--")
    return figure
