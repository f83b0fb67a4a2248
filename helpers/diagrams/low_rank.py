"""The diagrams of lesson 03: a convolution as two, a matrix as a product, spectra, costs, stages, times."""

from collections.abc import Mapping

import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from helpers.diagrams.shapes import arrow, canvas
from helpers.evaluation import Accuracy
from helpers.plotting import BLUE, COLORS, GRAY, ORANGE, accuracy_bars, panels


def two_splits(inputs: int, outputs: int, kernel: int, rank: int) -> Figure:
    """Draw a convolution, and both ways to make it two: bars are channels, grids are kernels."""
    ways = {
        "one layer": [(kernel, kernel, outputs)],
        "channel": [(kernel, kernel, rank), (1, 1, outputs)],
        "spatial": [(kernel, 1, rank), (1, kernel, outputs)],
    }
    figure, axes = canvas(9.4, 6.3, scale=0.75)
    for row, (name, parts) in enumerate(ways.items()):
        middle, channels, terms = 5.4 - 2.1 * row, inputs, []
        _stack(axes, (1.9, middle), inputs, max(inputs, outputs))
        axes.text(0.1, middle, name, va="center", fontsize=10, fontweight="bold")
        for place, (height, width, wanted) in enumerate(parts, start=1):
            end = 1.9 + 5.4 * place / len(parts)
            start = end - 5.4 / len(parts)
            arrow(axes, (start + 0.25, middle - 0.68), (end - 0.25, middle - 0.68))
            _kernel(axes, ((start + end) / 2, middle), height, width)
            _stack(axes, (end, middle), wanted, max(inputs, outputs))
            terms.append(height * width * channels * wanted)
            channels = wanted
        words = " +\n".join(f"{term:,}" for term in terms)
        total = f"\n= {sum(terms):,}" if len(terms) > 1 else ""
        axes.text(7.85, middle, f"{words}{total}\nweights", va="center", fontsize=9)
    return figure


def _stack(axes: Axes, middle: tuple[float, float], channels: int, most: int) -> None:
    (x, y), height = middle, 1.4 * channels / most
    axes.add_patch(Rectangle((x - 0.09, y - height / 2), 0.18, height, color=BLUE))
    axes.text(x, y - 0.9, f"{channels}", ha="center", va="center", fontsize=9)


def _kernel(axes: Axes, middle: tuple[float, float], height: int, width: int, cell: float = 0.26) -> None:
    left, bottom = middle[0] - width * cell / 2, middle[1] - height * cell / 2 + 0.12
    for place in range(height * width):
        corner = left + place % width * cell, bottom + place // width * cell
        axes.add_patch(Rectangle(corner, cell, cell, facecolor=ORANGE, edgecolor="white"))
    axes.text(middle[0], middle[1] - 0.56, f"{height} x {width}", ha="center", va="center", fontsize=9)


def product(matrix: Tensor, rank: int, numbers: str = "") -> Figure:
    """Draw a matrix as column factors times row factors plus what is left, all in one scale of colours.

    Args:
        matrix: rows x columns.
        rank: how many columns and rows the factors get, each with the root of its singular value.
        numbers: format of the number in each cell, as "g"; empty: none.
    """
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    left, right = u[:, :rank] * s[:rank].sqrt(), s[:rank, None].sqrt() * vt[:rank]
    sign = 1 if left[:, 0].sum() >= 0 else -1  # of a pair of vectors it is free: the first is drawn positive
    left, right = left * sign, right * sign
    parts = [("W", matrix, "="), ("U", left, "·"), ("V", right, "+"), ("W - UV", matrix - left @ right, "")]
    (rows, columns), side = matrix.shape, 2.6 / max(matrix.shape)
    figure, axes = canvas((2 * columns + len(s[:rank]) + columns) * side + 3.2, rows * side + 1.1, scale=0.8)
    x, limit = 0.2, float(matrix.abs().max())
    for title, values, sign in parts:
        tall, wide = (side * size for size in values.shape)
        y = 0.2 + (rows * side - tall) / 2
        extent, colors = (x, x + wide, y, y + tall), {"cmap": "vlag", "vmin": -limit, "vmax": limit}
        axes.imshow(values, extent=extent, **colors, interpolation="nearest", aspect="equal")
        axes.add_patch(Rectangle((x, y), wide, tall, fill=False, edgecolor=GRAY))
        sizes = "{} x {}".format(*values.shape)
        axes.text(x + wide / 2, y + tall + 0.1, f"{title}\n{sizes}", ha="center", va="bottom", fontsize=10)
        if numbers:
            _write(axes, values, (x, y + tall), side, numbers)
        axes.text(x + wide + 0.4, 0.2 + rows * side / 2, sign, ha="center", va="center", fontsize=14)
        x += wide + 0.8
    axes.set(xlim=(0, x - 0.6), ylim=(0, rows * side + 1.0))
    return figure


def _write(axes: Axes, values: Tensor, corner: tuple[float, float], side: float, numbers: str) -> None:
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            place = corner[0] + (column + 0.5) * side, corner[1] - (row + 0.5) * side
            shown = f"{round(value, 6) + 0.0:{numbers}}"
            axes.text(*place, shown, ha="center", va="center", fontsize=9)


def spectra(
    trained: Mapping[str, Tensor], untrained: Mapping[str, Tensor], break_even: Mapping[str, int]
) -> Figure:
    """Draw the energy that the first singular values keep, solid trained, dashed untrained.

    Args:
        trained: {layer: energy kept by rank 1, 2, ...}.
        untrained: of the same layers before training.
        break_even: {layer: the largest rank that saves weights}, a dot.
    """
    figure, (axes,) = panels(
        (6.4, 3.8), {"xlabel": "rank (% of full rank)", "ylabel": "energy kept (%)", "ylim": (0, 103)}
    )
    for color, (name, kept) in zip(COLORS, trained.items(), strict=False):
        share = [100 * rank / len(kept) for rank in range(1, len(kept) + 1)]
        axes.plot(share, 100 * untrained[name], "--", color=color, linewidth=1.5)
        dot = {"markevery": [break_even[name] - 1], "markeredgecolor": "black"}
        axes.plot(share, 100 * kept, "o-", color=color, linewidth=2, label=name, **dot)
    axes.axhline(90, color=GRAY, linewidth=1)
    axes.plot([], [], "--", color=GRAY, label="before training")
    axes.plot([], [], "o", color=GRAY, markeredgecolor="black", label="break-even rank")
    axes.legend(loc="lower right")
    return figure


def cost_map(costs: pd.DataFrame) -> Figure:
    """Draw what layers cost once split, in percent of the layer; red, from 100 on: nothing is saved.

    ``costs`` has a row per layer and a column per energy.
    """
    figure, (axes,) = panels(
        (6.2, 0.9 + 0.3 * len(costs)), {"title": "weights of the two parts, in % of the layer's"}
    )
    shades = sns.color_palette("vlag", 256)
    reds = [shades[place] for place in range(176, 256) for _ in range(2)]  # the pale ones are left out
    sns.heatmap(
        costs.rename_axis(columns="energy kept, at least"),
        annot=True,
        fmt=".0f",
        annot_kws={"fontsize": 8},
        cmap=ListedColormap(shades[:128] + reds[:128]),
        vmin=0,
        vmax=200,
        cbar=False,
        linewidths=1,
        ax=axes,
    )
    return figure


def stages(found: Mapping[str, Accuracy], before: Accuracy | None = None) -> Figure:
    """Draw accuracies as bars with their 95% intervals, and that of the network ``before`` as a line."""
    shares = [(float(one), *one.interval) for one in found.values()]
    table = 100 * pd.DataFrame(shares, list(found), ["accuracy", "low", "high"])
    total = next(iter(found.values())).total
    figure, (axes,) = panels(
        (6.4, 1.1 + 0.42 * len(found)), {"xlabel": f"right of {total:,} validation pictures (%)"}
    )
    accuracy_bars(axes, table, BLUE)
    if before is not None:
        axes.axvline(100 * float(before), color=ORANGE, linestyle="--", label="network it was made from")
        figure.legend(loc="outside upper right")
    return figure


def times(measured: pd.DataFrame) -> Figure:
    """Draw time left against multiplications left; on the diagonal both shrink alike.

    Args:
        measured: a row per split, and one for each whole layer, whose macs are 100: layer, and in percent of
            the whole layer's macs, latency (median), low and high (its quartiles).
    """
    figure, (axes,) = panels((6.4, 4), {"xlabel": "MACs left (% of the layer's)", "ylabel": "time left (%)"})
    whole = measured[measured["macs"] == 100]
    axes.axhspan(whole["low"].min(), whole["high"].max(), color=GRAY, alpha=0.2, linewidth=0)
    for color, (name, rows) in zip(
        COLORS, measured.drop(whole.index).groupby("layer", sort=False), strict=False
    ):
        whiskers = [rows["latency"] - rows["low"], rows["high"] - rows["latency"]]
        axes.errorbar(
            rows["macs"], rows["latency"], yerr=whiskers, fmt="o-", color=color, label=name, capsize=2
        )
    axes.plot([0, 100], [0, 100], ":", color=GRAY, label="time shrinks like the MACs")
    axes.axhline(100, color="black", linestyle="--", linewidth=1, label="the layer as it was")
    axes.set(xlim=(0, 103), ylim=(0, None))
    axes.legend()
    return figure
