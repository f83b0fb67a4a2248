"""What every diagram is made of: a canvas, boxes, arrows, and matrices as coloured cells."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from helpers.plotting import BLUE, GRAY


def canvas(width: float, height: float, scale: float = 0.8) -> tuple[Figure, Axes]:
    """Return a white figure whose axes run from 0 to ``width`` and ``height``; ``scale``: inches per unit."""
    figure = plt.figure(figsize=(width * scale, height * scale), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes,
    middle: tuple[float, float],
    text: str,
    *,
    size: tuple[float, float] = (2.0, 0.8),
    color: Sequence[float] | str = BLUE,
    filled: bool = False,
) -> None:
    """Draw a rounded box around ``middle`` with words in it; filled, the words are white."""
    (x, y), (width, height) = middle, size
    outline = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.12",
        linewidth=1.5,
        edgecolor=color,
        facecolor=color if filled else "white",
    )
    axes.add_patch(outline)
    axes.text(x, y, text, ha="center", va="center", fontsize=9, color="white" if filled else "black")


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    *,
    color: Sequence[float] | str = GRAY,
    bend: float = 0.0,
) -> None:
    """Draw an arrow, with words above its middle; ``bend`` curves it."""
    style = {"arrowstyle": "-|>", "mutation_scale": 12, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=color, connectionstyle=f"arc3,rad={bend}", **style))
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    axes.text(middle[0], middle[1] + 0.12, text, ha="center", va="bottom", fontsize=8)


def matrix(
    axes: Axes,
    values: Tensor,
    corner: tuple[float, float],
    title: str = "",
    *,
    cell: float = 0.5,
    numbers: str = "",
) -> None:
    """Draw a matrix as coloured cells, blue below 0 and red above, its lower left at ``corner``.

    Args:
        axes: of ``canvas``.
        values: rows x columns.
        corner: x and y.
        title: words above it.
        cell: side of a cell, in the canvas's units.
        numbers: format of the number in each cell, as ".1f"; empty: none. Zeros are left white and empty.
    """
    (rows, columns), (x, y) = values.shape, corner
    limit = float(values.abs().max()) or 1.0
    extent = (x, x + columns * cell, y, y + rows * cell)
    axes.imshow(
        values, extent=extent, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", zorder=1
    )
    for row in range(rows):
        for column in range(columns):
            place = (x + column * cell, y + (rows - 1 - row) * cell)
            axes.add_patch(plt.Rectangle(place, cell, cell, fill=False, edgecolor=GRAY, lw=0.5))
            value = float(values[row, column])
            if numbers and value:
                shade = "white" if abs(value) > 0.7 * limit else "black"
                middle = (place[0] + cell / 2, place[1] + cell / 2)
                axes.text(*middle, f"{value:{numbers}}", ha="center", va="center", fontsize=8, color=shade)
    axes.text(x + columns * cell / 2, y + rows * cell + 0.1, title, ha="center", va="bottom", fontsize=9)
