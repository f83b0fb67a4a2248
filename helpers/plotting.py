"""One function per figure. Each takes numbers, returns a matplotlib Figure, and computes nothing about compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from torch import Tensor

COLORS = sns.color_palette("colorblind")
BLUE, ORANGE, GREEN, GRAY = COLORS[0], COLORS[1], COLORS[2], "0.55"


def theme() -> None:
    """Set the look of every figure: a white ground that also reads in a dark theme, colour-blind-safe colours."""
    sns.set_theme(style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams.update(
        {"figure.facecolor": "white", "figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False}
    )


def where_it_goes(layers: pd.DataFrame) -> Figure:
    """Draw, for each layer with weights, its share of the network's bytes (left) and of its time (right).

    Args:
        layers: from ``profiling.profile(..., latency=True)``: layer, type, bytes, macs, latency_ms.
    """
    shown = layers[layers["type"].isin(["Conv2d", "Linear"])]
    positions = range(len(shown))
    labels = [
        f"{kind.removesuffix('2d').lower()} {tuple(shape[1:])}"
        for kind, shape in zip(shown["type"], shown["output_shape"], strict=True)
    ]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.6), sharey=True, layout="constrained")
    for axes, column, color, title in (
        (left, "bytes", BLUE, "share of the bytes"),
        (right, "latency_ms", ORANGE, "share of the time"),
    ):
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
    figure, grid = plt.subplots(
        rows, columns, figsize=(1.15 * columns, 1.45 * rows), squeeze=False, layout="constrained"
    )
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
    figure, grid = plt.subplots(
        2, count, figsize=(2.1 * count, 4.4), height_ratios=[1, 1.5], layout="constrained", squeeze=False
    )
    for column in range(count):
        top, bottom = grid[:, column]
        top.imshow(images[column].permute(1, 2, 0).numpy(), interpolation="bilinear")
        top.axis("off")
        _probability_bars(bottom, probabilities[column], classes, int(labels[column]))
        if column:
            bottom.set_yticklabels([])
    return figure


def temperature(
    effects: Mapping[float, Mapping[str, float | Tensor]], chosen: float, classes: Sequence[str], label: int
) -> Figure:
    """Draw what the slider of notebook 01 shows: probabilities at the chosen temperature, entropy and gradients over all.

    Args:
        effects: {temperature: what ``distillation.temperature_effect`` returned}, ``chosen`` among them.
        chosen: the temperature to mark.
        classes: C names.
        label: the true class.
    """
    grid = sorted(effects)
    here = effects[chosen]
    figure, (bars, entropy, gradient) = plt.subplots(1, 3, figsize=(10, 3.2))
    figure.subplots_adjust(
        left=0.09, right=0.99, top=0.89, bottom=0.16, wspace=0.24
    )  # a fixed layout: a slider has no time to find one
    _probability_bars(bars, here["probabilities"], classes, label)
    bars.set_title(f"soft targets at T = {chosen:g}")
    entropy.plot(grid, [effects[t]["entropy"] for t in grid], color=BLUE)
    entropy.plot(chosen, here["entropy"], "o", color=ORANGE, markersize=9)
    entropy.set(
        title=f"entropy: {here['entropy']:.2f} bits", xlabel="temperature", xscale="log", ylim=(0, None)
    )
    for key, style, name in (
        ("gradient_scale", "-", "soft term"),
        ("scaled_gradient", "--", "soft term x T²"),
    ):
        gradient.plot(
            grid, [effects[t][key] for t in grid], style, color=BLUE if style == "-" else GREEN, label=name
        )
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
    axes.plot(
        [0, 1], [table[before].mean(), table[after].mean()], "o-", color=ORANGE, linewidth=3, label="mean"
    )
    axes.set_xticks([0, 1], [before, after])
    axes.set(xlim=(-0.25, 1.4), ylabel="test accuracy (%)")
    axes.legend(fontsize=8)
    return figure


def heat_map(table: pd.DataFrame, title: str, unit: str = "") -> Figure:
    """Draw a table of numbers as a heat map with the numbers in it; its index and column names label the axes."""
    width = 1.5 + 0.07 * max(len(str(name)) for name in table.index) + 0.75 * table.shape[1]
    figure, axes = plt.subplots(
        figsize=(width, 1.2 + min(0.55, 5 / len(table)) * len(table)), layout="constrained"
    )
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


def matrices(tables: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None) -> Figure:
    """Draw small matrices side by side, each number in its cell; where the mask is False the cell is empty.

    Args:
        tables: {title: rows x columns}.
        masks: {title: of the same shape, True is kept}.
    """
    limit = max(float(table.abs().max()) for table in tables.values())
    figure, grid = plt.subplots(
        1, len(tables), figsize=(3.4 * len(tables), 3.2), squeeze=False, layout="constrained"
    )
    for axes, (title, table) in zip(grid.flat, tables.items(), strict=True):
        hidden = None if masks is None or title not in masks else ~masks[title].numpy()
        style = {
            "cmap": "vlag",
            "vmin": -limit,
            "vmax": limit,
            "annot": True,
            "fmt": ".1f",
            "cbar": False,
            "linewidths": 1,
            "linecolor": "0.85",
        }
        sns.heatmap(
            table.numpy(), mask=hidden, ax=axes, square=True, xticklabels=False, yticklabels=False, **style
        )
        axes.set_title(title)
    return figure


def schedules(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw sparsity over a run, one line per schedule; each a list of values evenly spaced from progress 0 to 1."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for color, (name, values) in zip(COLORS * len(curves), curves.items(), strict=False):
        axes.plot(
            [100 * i / (len(values) - 1) for i in range(len(values))],
            [100 * value for value in values],
            color=color,
            label=name,
        )
    axes.set(xlabel="progress of the run (%)", ylabel="sparsity (%)", ylim=(-3, 103))
    axes.legend(fontsize=8)
    return figure


def sparsity(weight: Tensor, table: pd.DataFrame, chosen: int) -> Figure:
    """Draw what the slider of notebook 02 shows: which weights go, which of one layer's are left, what it costs and saves.

    Args:
        weight: one layer's, any shape.
        table: from ``pruning.sweep``.
        chosen: the row to mark.
    """
    row = table.iloc[chosen]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.5, 3.3), width_ratios=[1, 0.9, 1.1])
    figure.subplots_adjust(
        left=0.07, right=0.94, top=0.9, bottom=0.16, wspace=0.28
    )  # a fixed layout: a slider has no time to find one
    limit = float(weight.abs().quantile(0.999)) if weight.numel() < 10_000_000 else float(weight.abs().max())
    left.hist(weight.flatten().numpy(), bins=81, range=(-limit, limit), color=BLUE, log=True)
    left.axvspan(-row["threshold"], row["threshold"], color=ORANGE, alpha=0.35, label="given up")
    left.set(title="weights of the layer", xlabel="value", ylabel="how many", xlim=(-limit, limit))
    left.legend(fontsize=8, loc="upper right")
    corner = weight.flatten(1)[:64, :72].abs() > row["threshold"]
    middle.imshow(corner.numpy(), cmap="Blues", vmin=0, vmax=1.3, interpolation="nearest", aspect="auto")
    middle.set(
        title=f"mask ({len(corner)} x {corner.shape[1]} of it): {corner.float().mean():.0%} kept",
        xticks=[],
        yticks=[],
    )
    middle.grid(visible=False)
    _two_scales(
        right,
        100 * table["sparsity"],
        100 * table["accuracy"],
        table["bytes"] / 1e6,
        chosen,
        "sparsity (%)",
        "file (MB)",
    )
    right.set_title(f"{row['sparsity']:.0%} zeros: {100 * row['accuracy']:.1f}%, {row['bytes'] / 1e6:.1f} MB")
    return figure


def sensitivity(scan: pd.DataFrame) -> Figure:
    """Draw accuracy against the share taken from one layer alone, a line per layer, early layers dark.

    Args:
        scan: from ``pruning.sensitivity``: layer, ratio, correct, total.
    """
    names = list(dict.fromkeys(scan["layer"]))
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for color, name in zip(sns.color_palette("viridis", len(names)), names, strict=True):
        rows = scan[scan["layer"] == name]
        axes.plot(
            100 * rows["ratio"],
            100 * rows["correct"] / rows["total"],
            "o-",
            color=color,
            label=name,
            markersize=3,
        )
    axes.set(xlabel="taken from this layer alone (%)", ylabel="accuracy (%)")
    axes.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1.01, 0.5), title="layer")
    return figure


def energy_curves(curves: Mapping[str, Tensor], break_even: Mapping[str, int]) -> Figure:
    """Draw the energy that each layer's first singular values keep; a dot marks the break-even rank.

    Args:
        curves: {layer: energy by rank}.
        break_even: {layer: the largest rank that still saves weights, 0 if none}.
    """
    figure, axes = plt.subplots(figsize=(7.4, 4), layout="constrained")
    for color, (name, kept) in zip(sns.color_palette("viridis", len(curves)), curves.items(), strict=True):
        share = [100 * (rank + 1) / len(kept) for rank in range(len(kept))]
        axes.plot(share, 100 * kept.numpy(), color=color, label=name)
        rank = break_even[name]
        if rank:
            axes.plot(
                share[rank - 1],
                100 * float(kept[rank - 1]),
                "o",
                color=color,
                markeredgecolor="black",
                markersize=6,
            )
    axes.set(xlabel="rank (% of full rank)", ylabel="energy kept (%)")
    axes.legend(
        fontsize=7,
        ncols=2,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        title="layer; dot: break-even rank",
    )
    return figure


def ranks(table: pd.DataFrame, full: Mapping[str, int], break_even: Mapping[str, int], chosen: int) -> Figure:
    """Draw what the slider of notebook 03 shows: the rank of every layer, and what the network then costs and scores.

    Args:
        table: from ``low_rank.sweep``.
        full: {layer: full rank}.
        break_even: {layer: the largest rank that still saves weights}.
        chosen: the row to mark.
    """
    row = table.iloc[chosen]
    names = list(row["ranks"])
    positions = range(len(names))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.4, 3.9), width_ratios=[1.2, 1, 1])
    figure.subplots_adjust(left=0.085, right=0.94, top=0.91, bottom=0.13, wspace=0.62)
    left.barh(positions, [full[name] for name in names], color="0.88", label="full rank")
    left.barh(
        positions,
        [row["ranks"][name] or full[name] for name in names],
        color=[BLUE if row["ranks"][n] else GRAY for n in names],
    )
    left.plot(
        [break_even[name] for name in names],
        positions,
        "|",
        color="black",
        markersize=9,
        markeredgewidth=2,
        label="break-even",
    )
    left.set_yticks(positions, names, fontsize=7)
    left.set(title="rank (gray: left whole)", xlabel="rank")
    left.invert_yaxis()
    left.grid(axis="y", visible=False)
    left.legend(fontsize=7)
    for axes, column, label in (
        (middle, "parameters", "parameters (millions)"),
        (right, "macs", "MACs (millions)"),
    ):
        _two_scales(
            axes,
            100 * table["energy"],
            100 * table["accuracy"],
            table[column] / 1e6,
            chosen,
            "energy kept (%)",
            label,
        )
    middle.set_title(
        f"energy {row['energy']:.0%}: {100 * row['accuracy']:.1f}%, {row['parameters'] / 1e6:.1f}M"
    )
    right.set_title(f"{row['macs'] / 1e6:.0f}M MACs")
    return figure


def bits(weight: Tensor, rounded: Tensor, table: pd.DataFrame, chosen: int) -> Figure:
    """Draw what the slider of notebook 04 shows: one channel's weights on their grid, and what all of them then cost and score.

    Args:
        weight: of one output channel, any shape.
        rounded: the same on the grid.
        table: from ``quantization.sweep``.
        chosen: the row to mark.
    """
    row = table.iloc[chosen]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3), width_ratios=[1.1, 1])
    figure.subplots_adjust(left=0.08, right=0.92, top=0.9, bottom=0.16, wspace=0.25)
    order = weight.flatten().argsort()
    left.plot(weight.flatten()[order].numpy(), color=GRAY, linewidth=3, label="as trained")
    left.step(range(len(order)), rounded.flatten()[order].numpy(), color=ORANGE, where="mid", label="rounded")
    left.set(
        title=f"{row['bits']:.0f} bits: {len(rounded.unique())} levels used",
        xlabel="weights of one channel, sorted",
        ylabel="value",
    )
    left.legend(fontsize=8)
    _two_scales(
        right,
        table["bits"],
        100 * table["accuracy"],
        table["bytes"] / 1e6,
        chosen,
        "bits per weight",
        "weights (MB)",
    )
    right.set_title(f"{100 * row['accuracy']:.1f}%, {row['bytes'] / 1e6:.1f} MB")
    return figure


def front(
    table: pd.DataFrame,
    x: str,
    y: str,
    labels: str,
    xlabel: str,
    ylabel: str,
    low: str | None = None,
    high: str | None = None,
) -> Figure:
    """Draw models as points, less to the left and better to the top, and join those that no other beats in both.

    Args:
        table: a row per model.
        x: the column of the cost, on a logarithmic axis.
        y: the column of the accuracy, in percent.
        labels: the column with the names.
        xlabel: with its unit.
        ylabel: with its unit.
        low: the column with the lower end of the accuracy's 95% interval; with ``high``, each point gets an error bar.
        high: the column with its upper end.
    """
    ordered = table.sort_values([x, y], ascending=[True, False])
    best = ordered[ordered[y] > ordered[y].cummax().shift(fill_value=float("-inf"))]
    figure, axes = plt.subplots(figsize=(7.6, 4.8), layout="constrained")
    name = "Pareto front: no other is both cheaper and more accurate"
    axes.plot(best[x], best[y], "-", color=ORANGE, drawstyle="steps-post", label=name)
    axes.plot(ordered[x], ordered[y], "o", color=BLUE)
    steps, bars = Path(list(zip(best[x].repeat(2)[1:], best[y].repeat(2)[:-1], strict=True))), []
    if low and high:
        axes.vlines(
            ordered[x], ordered[low], ordered[high], color=BLUE, linewidth=1, alpha=0.5, label="95% interval"
        )
        bars = [Path([(row[x], row[low]), (row[x], row[high])]) for _, row in ordered.iterrows()]
    axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    _plain_logarithm(axes)
    axes.margins(x=0.12, y=0.05)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    _name_points(axes, list(zip(ordered[labels], ordered[x], ordered[y], strict=True)), steps, bars)
    return figure


def _name_points(
    axes: Axes, points: Sequence[tuple[str, float, float]], line: Path, bars: Sequence[Path]
) -> None:
    """Write each name (name, x, y) near its point, clear of the line, of the points and of other names, and of bars where it can be."""
    axes.figure.draw_without_rendering()  # settles the layout: places are compared in pixels
    line, *bars = (axes.transData.transform_path(path) for path in (line, *bars))
    taken = [
        Bbox([place, place]).padded(5) for place in axes.transData.transform([point[1:] for point in points])
    ]
    for name, *point in points:
        text = axes.annotate(name, point, xytext=(0, 0), textcoords="offset points", fontsize=9)
        tried = []
        for right, up in ((right, up) for far in range(1, 25, 2) for up in (far, -far) for right in (6, -6)):
            text.set(
                position=(right, up), ha="left" if right > 0 else "right", va="bottom" if up > 0 else "top"
            )
            box = text.get_window_extent().padded(3)
            struck = (
                box.count_overlaps(taken)
                + line.intersects_bbox(box, filled=False)
                + (axes.bbox.count_contains(box.corners()) < 4)
            )
            crossed = sum(bar.intersects_bbox(box, filled=False) for bar in bars)
            tried.append(
                (
                    100 * struck + 5 * crossed + abs(up),
                    len(tried),
                    text.get_position(),
                    text.get_ha(),
                    text.get_va(),
                    box,
                )
            )
        _, _, position, ha, va, box = min(tried)
        text.set(
            position=position,
            ha=ha,
            va=va,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )
        taken.append(box)


def waterfall(table: pd.DataFrame) -> Figure:
    """Draw the steps of a chain: what each leaves of the file, a dot, and what it takes away, a bar; equal lengths are equal factors.

    Args:
        table: a row per step, in order: step (its name), bytes, right (correct answers).
    """
    left = table["bytes"] / 1e6
    before = left.shift(fill_value=left.iloc[0])
    figure, axes = plt.subplots(figsize=(7.6, 2.9), layout="constrained")
    axes.barh(
        table["step"], before - left, left=left, height=0.5, color=ORANGE, label="taken away by this step"
    )
    axes.plot(left, table["step"], "o", color=BLUE, label="left after it")
    for place, (size, was, right) in enumerate(zip(left, before, table["right"], strict=True)):
        says = axes.annotate(
            f"{size:.2f} MB, {right:,} right",
            (was, place),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
        )
        says.set(fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.set(xscale="log", xlabel="file (MB)", xlim=(left.min() / 1.5, 6 * left.max()))
    _plain_logarithm(axes)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    return figure


def _two_scales(
    axes: Axes, x: pd.Series, accuracy: pd.Series, cost: pd.Series, chosen: int, xlabel: str, label: str
) -> None:
    """Draw accuracy (left scale) and a cost (right scale) over ``x``, and mark one row."""
    other = axes.twinx()
    axes.plot(x, accuracy, "o-", color=BLUE, markersize=3)
    other.plot(x, cost, "s--", color=ORANGE, markersize=3)
    axes.axvline(x.iloc[chosen], color=GRAY)
    axes.plot(x.iloc[chosen], accuracy.iloc[chosen], "o", color=BLUE, markersize=9)
    other.plot(x.iloc[chosen], cost.iloc[chosen], "s", color=ORANGE, markersize=9)
    axes.set(xlabel=xlabel, ylim=(0, 100))
    axes.set_ylabel("accuracy (%), solid", color=BLUE)
    other.set_ylabel(f"{label}, dashed", color=ORANGE)
    other.set_ylim(bottom=0)
    other.grid(visible=False)


def trade_off(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    level: float | None = None,
) -> Figure:
    """Draw one line per method over a logarithmic axis (times smaller, times faster).

    Args:
        curves: {method: (x, y)}.
        xlabel: with its unit.
        ylabel: with its unit.
        level: a dashed line, the uncompressed network's.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for color, (name, (x, y)), marker in zip(
        COLORS * len(curves), curves.items(), "os^Dv*" * len(curves), strict=False
    ):
        axes.plot(x, y, f"{marker}-", color=color, label=name)
    if level is not None:
        axes.axhline(level, color=GRAY, linestyle="--", label="uncompressed")
    axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))  # more of them would run into each other
    axes.xaxis.set_minor_formatter("{x:g}x")
    axes.legend(fontsize=8)
    return figure


def _probability_bars(axes: Axes, probabilities: Tensor, classes: Sequence[str], label: int) -> None:
    colors = [ORANGE if index == label else BLUE for index in range(len(classes))]
    axes.barh(classes, probabilities.numpy(), color=colors)
    axes.set(xlim=(0, 1), xlabel="probability")
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", visible=False)


def cost_of_an_inference(
    per_year: Mapping[str, Mapping[str, float]], invested: Mapping[str, float], years: float, title: str
) -> Figure:
    """Draw what the sliders of notebook 06 show: what a year costs, and what has been spent since the start.

    Args:
        per_year: {network: {kind of cost: dollars a year}}.
        invested: {network: dollars at the start}.
        years: to look ahead.
        title: over the whole figure.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.9), width_ratios=[1.05, 1])
    figure.subplots_adjust(left=0.13, right=0.98, top=0.76, bottom=0.14, wspace=0.28)
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    kinds, start = list(next(iter(per_year.values()))), dict.fromkeys(per_year, 0.0)
    for kind, color, hatch in zip(kinds, COLORS, ("", "//", ".."), strict=False):
        amounts = [costs[kind] for costs in per_year.values()]
        left.barh(
            list(per_year),
            amounts,
            left=list(start.values()),
            color=color,
            hatch=hatch,
            edgecolor="white",
            label=kind,
        )
        start = {name: start[name] + costs[kind] for name, costs in per_year.items()}
    for position, total in enumerate(start.values()):
        left.text(total, position, f" {total:,.0f}", va="center", fontsize=9)
    left.set(xlabel="dollars a year", xlim=(0, 1.25 * max(start.values()) or 1))
    left.set_title("what a year costs", loc="left", fontsize=10)
    left.invert_yaxis()
    left.grid(axis="y", visible=False)
    left.legend(fontsize=8, loc="lower right")
    for (name, total), style, color in zip(
        start.items(), ("-", "--", ":"), (GRAY, COLORS[4], COLORS[3]), strict=False
    ):
        right.plot(
            [0, years],
            [invested[name], invested[name] + years * total],
            style,
            color=color,
            linewidth=2,
            label=name,
        )
    right.set(
        xlabel="years", ylabel="dollars spent", ylim=(0, 1.3 * (right.dataLim.y1 or 1)), xlim=(0, years)
    )  # room for the legend
    right.set_title("spent since the start, engineers included", loc="left", fontsize=10)
    right.legend(fontsize=8, loc="upper left", ncols=3, columnspacing=1, handlelength=1.6)
    for axes in (left.xaxis, right.yaxis):
        axes.set_major_formatter(_short)
    left.xaxis.get_major_locator().set_params(nbins=5)
    return figure


def tornado(panels: Mapping[str, tuple[pd.DataFrame, float]], xlabel: str) -> Figure:
    """Draw what each assumption alone does to a value, the most decisive on top, a panel per case.

    Args:
        panels: {title: (what ``business.tornado`` gave, the value with every assumption in the middle)}.
        xlabel: with its unit.
    """
    rows = max(len(table) for table, _ in panels.values())
    figure, grid = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 1.3 + 0.42 * rows), squeeze=False, layout="constrained"
    )
    for axes, (title, (table, middle)) in zip(grid.flat, panels.items(), strict=True):
        for end, color in (("low", BLUE), ("high", ORANGE)):
            axes.barh(
                range(len(table)),
                table[f"value_{end}"] - middle,
                left=middle,
                color=color,
                label=f"at the {end} end",
            )
        labels = [
            f"{_spelled(row.assumption)}\n{row.low:,.10g} to {row.high:,.10g}" for row in table.itertuples()
        ]
        axes.set_yticks(range(len(table)), labels, fontsize=8)
        axes.axvline(middle, color=GRAY)
        axes.axvline(0, color="black", linestyle="--", linewidth=1, label="break-even")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(xlabel)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.xaxis.get_major_locator().set_params(nbins=6)
        axes.xaxis.set_major_formatter(_short)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    return figure


def budget_shares(table: pd.DataFrame) -> Figure:
    """Draw how much of each budget each network takes, on a logarithmic axis; what lies right of the line does not fit.

    Args:
        table: from ``business.budgets``: use, budget, network, share.
    """
    wide = table.pivot_table(index=["use", "budget"], columns="network", values="share", sort=False)
    uses = list(dict.fromkeys(table["use"]))
    places = [
        row + 0.8 * uses.index(use) for row, (use, _) in enumerate(wide.index)
    ]  # a gap between the use cases
    figure, axes = plt.subplots(figsize=(8.4, 1.2 + 0.25 * places[-1]), layout="constrained")
    axes.hlines(places, wide.min(axis=1), wide.max(axis=1), color="0.8", linewidth=2)
    for (name, shares), marker, color in zip(wide.items(), "osD^v", COLORS, strict=False):
        axes.plot(shares, places, marker, color=color, label=name, markersize=6)
    axes.axvline(1, color="black", linestyle="--")
    axes.set_yticks(places, [_spelled(budget) for _, budget in wide.index], fontsize=8)
    for use in uses:
        first = places[[name for name, _ in wide.index].index(use)]
        axes.text(
            0.005,
            first - 0.85,
            use,
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            fontweight="bold",
        )
    axes.set(xscale="log", xlabel="share of the budget (1: just fits; to the right: does not fit)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(places[-1] + 0.8, -1.6)
    axes.grid(axis="y", visible=False)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _short(value: float, _position: int | None = None) -> str:
    """Return a tick's number with k or M, short enough not to touch the next."""
    for size, letter in ((1e9, "bn"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _spelled(name: str) -> str:
    """Return a column's name as a label, its unit as it is written."""
    units = {"ms": "(ms)", "mb": "(MB)", "gb": "GB", "cpu": "CPU", "kwh": "kWh"}
    return " ".join(units.get(word, word) for word in name.split("_"))


def formats(table: pd.DataFrame) -> Figure:
    """Draw size, latency and agreement of networks in several formats; whiskers are quartiles, and what was not measured says so.

    Args:
        table: a row per network and format: network, format, bytes, latency_ms_1_threads, latency_low_ms_1_threads,
            latency_high_ms_1_threads, same_class (of the pictures, NaN where not measured, as the latencies) and pictures.
    """
    figure, (size, time, same) = plt.subplots(1, 3, figsize=(11, 3.8), sharey=True, layout="constrained")
    names, total = list(dict.fromkeys(table["format"])), int(table["pictures"].max())
    for (network, rows), colour, shift in zip(
        table.groupby("network", sort=False), (BLUE, ORANGE), (-0.12, 0.12), strict=False
    ):
        y = rows["format"].map(names.index) + shift
        size.plot(rows["bytes"] / 1e6, y, "o", color=colour, label=network)
        timed = rows["latency_ms_1_threads"].notna()
        middle, low, high = (
            rows.loc[timed, f"latency_{which}ms_1_threads"] for which in ("", "low_", "high_")
        )
        time.errorbar(
            middle,
            y[timed],
            xerr=[middle - low, high - middle],
            fmt="o",
            color=colour,
            capsize=2,
            label=network,
        )
        same.plot(rows["same_class"], y, "o", color=colour, label=network)
    size.set(
        xscale="log",
        xlabel="file (MB)",
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(len(names) - 0.5, -0.5),
    )
    time.set(xscale="log", xlabel="latency (ms; batch 1, 1 thread)")
    least = int(min(table["same_class"].min(), 0.985 * total))
    same.set(
        xlabel=f"same class as PyTorch (of {total} pictures)",
        xlim=(least - 0.5, total + 0.5),
        xticks=range(least, total + 1),
    )
    for axes, column in ((time, "latency_ms_1_threads"), (same, "same_class")):
        known = table.groupby("format")[column].count()
        for row, name in enumerate(names):
            if known[name] == 0:
                text = axes.text(
                    0.03,
                    row,
                    "not measured here",
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    fontsize=8,
                    color=GRAY,
                )
                text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    for axes in (size, time):
        _plain_logarithm(axes)
    figure.legend(*size.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure


def _plain_logarithm(axes: Axes) -> None:
    """Label a logarithmic x axis 1, 2, 5, 10, ... instead of by powers."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
