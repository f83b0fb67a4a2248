"""One function per figure. Each takes numbers, returns a matplotlib Figure, and computes nothing about compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

COLORS = sns.color_palette("colorblind")
BLUE, ORANGE, GREEN, GRAY = COLORS[0], COLORS[1], COLORS[2], "0.55"


def theme() -> None:
    """Set the look of every figure: a white ground that also reads in a dark theme, colour-blind-safe colours."""
    sns.set_theme(style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams.update({"figure.facecolor": "white", "figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False})


def where_it_goes(layers: pd.DataFrame) -> Figure:
    """Draw, for each layer with weights, its share of the network's bytes (left) and of its time (right).

    Args:
        layers: from ``profiling.profile(..., latency=True)``: layer, type, bytes, macs, latency_ms.
    """
    shown = layers[layers["type"].isin(["Conv2d", "Linear"])]
    positions = range(len(shown))
    labels = [
        f"{kind.removesuffix('2d').lower()} {tuple(shape[1:])}" for kind, shape in zip(shown["type"], shown["output_shape"], strict=True)
    ]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.6), sharey=True, layout="constrained")
    for axes, column, color, title in ((left, "bytes", BLUE, "share of the bytes"), (right, "latency_ms", ORANGE, "share of the time")):
        share = 100 * shown[column] / layers[column].sum()
        axes.barh(positions, share, color=color)
        axes.set(title=title, xlabel="% of the whole network")
        axes.grid(axis="y", visible=False)
        for position, value in zip(positions, share, strict=True):
            axes.text(value, position, f" {value:.1f}", va="center", fontsize=8)
        axes.margins(x=0.12)
    left.set_yticks(positions, labels, fontsize=8)
    left.invert_yaxis()
    return figure


def pictures(images: Tensor, titles: Sequence[str], columns: int = 8) -> Figure:
    """Draw uint8 pictures, N x 3 x H x W, in rows of ``columns``, each with its title."""
    rows = -(-len(images) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(1.15 * columns, 1.45 * rows), squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(image.permute(1, 2, 0).numpy())
        axes.set_title(title, fontsize=8)
    return figure


def soft_targets(images: Tensor, probabilities: Tensor, classes: Sequence[str], labels: Tensor) -> Figure:
    """Draw each picture above the probabilities a teacher gives it; the true class in another colour.

    Args:
        images: uint8, N x 3 x H x W.
        probabilities: N x C.
        classes: C names.
        labels: N.
    """
    count = len(images)
    figure, grid = plt.subplots(2, count, figsize=(2.1 * count, 4.4), height_ratios=[1, 1.5], layout="constrained", squeeze=False)
    for column in range(count):
        top, bottom = grid[:, column]
        top.imshow(images[column].permute(1, 2, 0).numpy(), interpolation="bilinear")
        top.axis("off")
        _probability_bars(bottom, probabilities[column], classes, int(labels[column]))
        if column:
            bottom.set_yticklabels([])
    return figure


def temperature(effects: Mapping[float, Mapping[str, float | Tensor]], chosen: float, classes: Sequence[str], label: int) -> Figure:
    """Draw what the slider of notebook 01 shows: probabilities at the chosen temperature, entropy and gradients over all.

    Args:
        effects: {temperature: what ``distillation.temperature_effect`` returned}, ``chosen`` among them.
        chosen: the temperature to mark.
        classes: C names.
        label: the true class.
    """
    grid = sorted(effects)
    here = effects[chosen]
    figure, (bars, entropy, gradient) = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    _probability_bars(bars, here["probabilities"], classes, label)
    bars.set_title(f"soft targets at T = {chosen:g}")
    entropy.plot(grid, [effects[t]["entropy"] for t in grid], color=BLUE)
    entropy.plot(chosen, here["entropy"], "o", color=ORANGE, markersize=9)
    entropy.set(title=f"entropy: {here['entropy']:.2f} bits", xlabel="temperature", xscale="log", ylim=(0, None))
    for key, style, name in (("gradient_scale", "-", "soft term"), ("scaled_gradient", "--", "soft term x T²")):
        gradient.plot(grid, [effects[t][key] for t in grid], style, color=BLUE if style == "-" else GREEN, label=name)
        gradient.plot(chosen, here[key], "o", color=ORANGE, markersize=9)
    gradient.set(title="size of the gradient (T = 1 is 1)", xlabel="temperature", xscale="log", yscale="log")
    gradient.legend(fontsize=8)
    for axes in (entropy, gradient):
        axes.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        axes.minorticks_off()
    return figure


def learning_curves(histories: Mapping[str, pd.DataFrame], teacher: float | None = None) -> Figure:
    """Draw training loss and validation accuracy by epoch, a colour per run.

    Args:
        histories: {name: what ``fit`` returned}.
        teacher: the teacher's validation accuracy, in [0, 1], drawn as a line.
    """
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for color, (name, history) in zip(COLORS, histories.items(), strict=False):
        loss.plot(history["epoch"], history["loss"], "o-", color=color, label=name)
        accuracy.plot(history["epoch"], 100 * history["validation_accuracy"], "o-", color=color, label=name)
    if teacher is not None:
        accuracy.axhline(100 * teacher, color=GRAY, linestyle="--", label="teacher")
    loss.set(title="training loss (each its own)", xlabel="epoch", yscale="log")
    accuracy.set(title="validation accuracy (%)", xlabel="epoch")
    accuracy.legend(fontsize=8)
    for axes in (loss, accuracy):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def paired(table: pd.DataFrame, before: str, after: str) -> Figure:
    """Draw one line per seed from its result without to its result with a teacher, and the mean in bold.

    Args:
        table: a row per seed; columns ``before`` and ``after`` in percent.
        before: the left column's name.
        after: the right column's name.
    """
    figure, axes = plt.subplots(figsize=(4.2, 3.2), layout="constrained")
    for seed, row in table.iterrows():
        axes.plot([0, 1], [row[before], row[after]], "o-", color=GRAY, alpha=0.7)
        axes.text(1.04, row[after], f"seed {seed}", fontsize=8, va="center")
    axes.plot([0, 1], [table[before].mean(), table[after].mean()], "o-", color=ORANGE, linewidth=3, label="mean")
    axes.set_xticks([0, 1], [before, after])
    axes.set(xlim=(-0.25, 1.4), ylabel="test accuracy (%)")
    axes.legend(fontsize=8)
    return figure


def heat_map(table: pd.DataFrame, title: str, unit: str = "") -> Figure:
    """Draw a table of numbers as a heat map with the numbers in it; its index and column names label the axes."""
    figure, axes = plt.subplots(figsize=(1.1 + 0.85 * table.shape[1], 1.2 + 0.55 * table.shape[0]), layout="constrained")
    sns.heatmap(table, annot=True, fmt=".1f", cmap="viridis", ax=axes, cbar_kws={"label": unit})
    axes.set_title(title)
    axes.grid(visible=False)
    return figure


def costs(table: pd.DataFrame, column: str, label: str) -> Figure:
    """Draw one bar per network, with its value; ``column`` of what ``profiling.compare`` gave."""
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.36 * len(table)), layout="constrained")
    axes.barh(table.index, table[column], color=BLUE)
    axes.set(xlabel=label)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    for position, value in enumerate(table[column]):
        axes.text(value, position, f" {value:,.3g}", va="center", fontsize=8)
    axes.margins(x=0.15)
    return figure


def _probability_bars(axes: Axes, probabilities: Tensor, classes: Sequence[str], label: int) -> None:
    colors = [ORANGE if index == label else BLUE for index in range(len(classes))]
    axes.barh(classes, probabilities.numpy(), color=colors)
    axes.set(xlim=(0, 1), xlabel="probability")
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", visible=False)
