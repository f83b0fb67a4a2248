"""One function per figure, from numbers to a Figure; what sliders move is in ``helpers.widgets``."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from torch import Tensor

from helpers.evaluation import Paired

COLORS = sns.color_palette("colorblind")
BLUE, ORANGE, GREEN, GRAY = COLORS[0], COLORS[1], COLORS[2], "0.55"
LOOK = {
    "figure.facecolor": "white",
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
ON_WHITE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}  # behind words on lines
LEADER = {"arrowstyle": "-", "color": GRAY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}  # name to point
ON_THE_LEFT = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8, "bbox": ON_WHITE}
HATCHES = ("", "//", "..", "xx")  # tell parts of a bar apart without their colours
UNITS = {"ms": "(ms)", "mb": "(MB)", "gb": "GB", "cpu": "CPU", "kwh": "kWh"}


def theme() -> None:
    """Set the look of every figure: a white ground, in a dark theme too, and colours for the colour-blind."""
    sns.set_theme(style="whitegrid", palette="colorblind", font_scale=0.9, rc=LOOK)


def panels(
    size: tuple[float, float], *properties: dict, rows: int = 1, fixed: tuple = (), **options: object
) -> tuple[Figure, list[Axes]]:
    """Make axes with these properties, in rows; ``fixed`` margins where there is no time to find a layout."""
    options |= {"figsize": size, "squeeze": False, "layout": None if fixed else "constrained"}
    figure, grid = plt.subplots(rows, len(properties) // rows, **options)
    if fixed:  # left, bottom, right, top, between
        figure.subplots_adjust(*fixed)
    for axes, wanted in zip(grid.flat, properties, strict=True):
        axes.set(**wanted)
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":  # labelled 1, 2, 5, 10, ... instead of by powers
                axis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:,g}")
                axis.set_minor_formatter(NullFormatter())
    return figure, list(grid.flat)


def bars(
    axes: Axes, names: Sequence[str], values: Iterable, color: object, form: str = "", **style: object
) -> None:
    """Draw horizontal bars that are read from the top, their values behind them if ``form`` is given."""
    drawn = axes.barh(range(len(names)), values, color=color, **style)
    if form:
        axes.bar_label(drawn, fmt=form, padding=1, fontsize=8, bbox=ON_WHITE)
    axes.margins(x=0.12)
    rows_down(axes, names)


def accuracy_bars(axes: Axes, table: pd.DataFrame, color: object, capsize: float = 3) -> None:
    """Draw accuracies in percent as bars from the top, their numbers in them, with their 95% intervals.
    ``table`` has a row per bar, indexed by name: accuracy, low, high."""
    ends = [table["accuracy"] - table["low"], table["high"] - table["accuracy"]]
    bars(axes, table.index, table["accuracy"], color, xerr=ends, ecolor="black", capsize=capsize)
    for place, value in enumerate(table["accuracy"]):
        axes.text(1.5, place, f"{value:.1f}", va="center", fontsize=8, bbox=ON_WHITE)
    axes.set_xlim(0, 100)


def stacked_bars(
    axes: Axes, table: pd.DataFrame, colors: Sequence, room: float = 1.3, hatches: Sequence[str] = HATCHES
) -> None:
    """Draw a bar per row of a table, from the top, its columns behind one another and their sum at the end;
    the axis is ``room`` times as long as the longest bar."""
    total, starts = table.sum(axis=1), table.cumsum(axis=1) - table
    for (part, values), color, hatch in zip(table.items(), colors, cycle(hatches), strict=False):
        bars(axes, table.index, values, color, left=starts[part], hatch=hatch, edgecolor="white", label=part)
    axes.bar_label(axes.containers[-1], [f" {value:,.0f}" for value in total], fontsize=8)
    axes.set_xlim(0, room * total.max() or 1)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, 3M


def grouped_bars(axes: Axes, table: pd.DataFrame, labels: dict, kind: str = "bar", **look: object) -> None:
    """Draw a group of bars per row of a table, a bar per column, with its number (``labels``: its look)."""
    table.plot(kind=kind, ax=axes, width=0.8, xlabel=axes.get_xlabel(), **look)
    for drawn in axes.containers:
        axes.bar_label(drawn, **{"fontsize": 8} | labels)


def rows_down(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows 0, 1, ... of an axes, from the top."""
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def probability_bars(axes: Axes, probabilities: Tensor, classes: Sequence[str], label: int) -> None:
    """Draw a bar per class, the true one in another colour."""
    bars(axes, classes, probabilities, [ORANGE if index == label else BLUE for index in range(len(classes))])
    axes.set(xlim=(0, 1), xlabel="probability")


def _spelled(column: str) -> str:
    return " ".join(UNITS.get(word, word) for word in column.split("_"))


def where_it_goes(layers: pd.DataFrame) -> Figure:
    """Draw each layer's share of the network's bytes and time; ``layers`` is a profile with latencies."""
    shown = layers[layers["macs"] > 0]
    titles = [{"title": f"share of the {what}", "xlabel": "% of the network"} for what in ("bytes", "time")]
    figure, grid = panels((9, 4.6), *titles, sharey=True)
    for axes, column, color in zip(grid, ("bytes", "latency_ms"), (BLUE, ORANGE), strict=True):
        bars(axes, shown["layer"], 100 * shown[column] / layers[column].sum(), color, " {:.1f}")
    return figure


def pictures(images: Tensor, titles: Sequence[str], columns: int = 8) -> Figure:
    """Draw uint8 pictures, N x 3 x H x W, in rows of ``columns``, each with its title."""
    rows, bare = -(-len(images) // columns), {"frame_on": False, "xticks": [], "yticks": []}
    figure, grid = panels((1.15 * columns, 1.45 * rows), *[bare] * rows * columns, rows=rows)
    for axes, image, title in zip(grid, images, titles, strict=False):
        axes.imshow(image.permute(1, 2, 0))
        axes.set_title(title, fontsize=8)
    return figure


def soft_targets(images: Tensor, probabilities: Tensor, classes: Sequence[str], labels: Tensor) -> Figure:
    """Draw each picture above the probabilities a teacher gives it, the true class in another colour.
    ``images`` are uint8, N x 3 x H x W, ``probabilities`` N x C, ``classes`` C names, ``labels`` N."""
    n = len(images)
    figure, grid = panels((2.1 * n, 4.4), *[{}] * 2 * n, rows=2, height_ratios=(1, 1.5), sharey="row")
    for index in range(n):
        grid[index].imshow(images[index].permute(1, 2, 0), interpolation="bilinear")
        grid[index].axis("off")
        probability_bars(grid[n + index], probabilities[index], classes, int(labels[index]))
    return figure


def learning_curves(histories: Mapping[str, pd.DataFrame], teacher: float | None = None) -> Figure:
    """Draw loss and validation accuracy by epoch, a line per run: {name: what ``fit`` returned}.
    ``teacher`` is the teacher's validation accuracy, in [0, 1], drawn as a line."""
    figure, (loss, accuracy) = panels(
        (9, 3.2),
        {"title": "training loss", "xlabel": "epoch", "yscale": "log"},
        {"title": "validation accuracy (%)", "xlabel": "epoch"},
    )
    for name, history in histories.items():
        loss.plot(history["epoch"], history["loss"], "o-")
        accuracy.plot(history["epoch"], 100 * history["validation_accuracy"], "o-", label=name)
    if teacher is not None:
        accuracy.axhline(100 * teacher, color=GRAY, linestyle="--", label="teacher")
    accuracy.legend()
    for axes in (loss, accuracy):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def differences(pairs: Mapping[str, Paired], xlabel: str) -> Figure:
    """Draw by how many points the first of each pair is ahead, with its 95% interval, a row for each."""
    figure, (axes,) = panels((6.4, 0.9 + 0.42 * len(pairs)), {"xlabel": xlabel})
    for place, pair in enumerate(pairs.values()):
        axes.errorbar(pair.points, place, xerr=pair.points - pair.interval[0], fmt="o", color=BLUE, capsize=3)
        look = {"fontsize": 8, "ha": "center", "va": "bottom", "bbox": ON_WHITE}
        axes.annotate(f"{pair.points:+.2f}", (pair.points, place - 0.16), **look)
    axes.axvline(0, color="black", linewidth=1, zorder=1)
    rows_down(axes, list(pairs))
    return figure


def heat_map(table: pd.DataFrame, title: str, unit: str = "") -> Figure:
    """Draw a table of numbers as a heat map with the numbers in it; its index and columns label the axes."""
    width = 1.5 + 0.07 * max(len(str(name)) for name in table.index) + 0.75 * table.shape[1]
    figure, (axes,) = panels((width, 1.2 + min(0.55 * len(table), 5)), {"title": title})
    sns.heatmap(table, annot=True, fmt=".1f", cmap="viridis", ax=axes, cbar_kws={"label": unit})
    axes.tick_params(axis="x", rotation=20)
    return figure


def schedules(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw sparsity over a run, a line per schedule: values evenly spaced from begin to end, equally many."""
    table = 100 * pd.DataFrame(curves)
    table.index *= 100 / max(len(table) - 1, 1)
    figure, (axes,) = panels((6, 3), {"xlabel": "progress of the run (%)", "ylabel": "sparsity (%)"})
    table.plot(ax=axes, ylim=(-3, 103))
    return figure


def sensitivity(scan: pd.DataFrame) -> Figure:
    """Draw how many points each layer's pruning alone costs, right after it and recalibrated, as heat maps.
    ``scan`` is from ``pruning.sensitivity``: layer, ratio, total, correct, recalibrated_correct."""
    titles = {"correct": "right after the cut", "recalibrated_correct": "recalibrated"}
    size = 8.4, 1.1 + 0.26 * scan["layer"].nunique()
    figure, grid = panels(size, *({"title": f"points lost, {when}"} for when in titles.values()), sharey=True)
    for axes, column in zip(grid, titles, strict=True):
        percent = scan.assign(taken=100 * scan["ratio"], percent=100 * scan[column] / scan["total"])
        wide = percent.pivot_table("percent", "layer", "taken", sort=False)
        lost = wide.iloc[:, 1:].rsub(wide.iloc[:, 0], axis=0).round() + 0.0  # without -0
        sns.heatmap(lost, annot=True, fmt=".0f", cmap="rocket_r", vmin=0, vmax=80, cbar=False, ax=axes)
        axes.set(xlabel="taken from this layer alone (%)", ylabel="")
        axes.set_xticklabels([f"{taken:g}" for taken in lost.columns])
    return figure


def front(
    table: pd.DataFrame, x: str, y: str, labels: str, xlabel: str, ylabel: str, low: str = "", high: str = ""
) -> Figure:
    """Draw models as points, less to the left, better to the top, and join those that no other beats in both.
    ``x`` is the column of the cost, ``y`` of the accuracy in percent, ``labels`` of the names, ``low`` and
    ``high`` of the ends of the accuracy's 95% interval."""
    ordered = table.sort_values([x, y], ascending=[True, False])
    best = ordered[ordered[y] > ordered[y].cummax().shift(fill_value=float("-inf"))]
    figure, (axes,) = panels((7.6, 4.8), {"xscale": "log", "xlabel": xlabel, "ylabel": ylabel})
    axes.plot(best[x], best[y], color=ORANGE, drawstyle="steps-post", label="Pareto front: beaten by none")
    axes.plot(ordered[x], ordered[y], "o", color=BLUE)
    if low and high:
        look = {"color": BLUE, "linewidth": 1, "alpha": 0.5, "label": "95% interval"}
        axes.vlines(ordered[x], ordered[low], ordered[high], **look)
    axes.margins(x=0.3, y=0.05)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    corners = list(zip(best[x].repeat(2)[1:], best[y].repeat(2)[:-1], strict=True))
    points = list(zip(ordered[labels], ordered[x], ordered[y], ordered.index.isin(best.index), strict=True))
    _name_points(axes, points, Path(corners))
    return figure


def _name_points(axes: Axes, points: Sequence[tuple[str, float, float, bool]], line: Path) -> None:
    # each name at the nearest place that touches neither the line, nor a point, nor another name: first, and
    # to the left, where nothing can lie, those on the line; from the top, so that leaders do not cross
    axes.figure.draw_without_rendering()  # settles the layout: places are compared in pixels
    line = axes.transData.transform_path(line)
    taken = [Bbox([dot, dot]).padded(5) for dot in axes.transData.transform([place[1:3] for place in points])]
    for name, *point, best in sorted(points, key=lambda named: (not named[3], -named[2])):
        text = axes.annotate(
            name, point, (0, 0), textcoords="offset pixels", fontsize=9, bbox=ON_WHITE, arrowprops=LEADER
        )
        box, found = text.get_window_extent(), []
        ups = [up for far in range(2, 36, 3) for up in (far, -far - box.height)]
        sides = (-8 - box.width, 8) if best else (8, -8 - box.width)
        for move in ((side, up) for up in ups for side in sides):
            there = box.translated(*move).padded(3)
            outside = axes.bbox.count_contains(there.corners()) < 4  # worse than anything within
            hits = there.count_overlaps(taken) + line.intersects_bbox(there, filled=False) + 9 * outside
            found.append((hits, len(found), move, there))
        _, _, move, there = min(found)
        text.set_position(move)
        taken.append(there)


def waterfall(table: pd.DataFrame) -> Figure:
    """Draw the steps of a chain: what each leaves of the file, a dot, and what it takes away, a bar.
    ``table`` has a row per step, in order: step (its name), bytes, right (correct answers)."""
    left = table["bytes"] / 1e3
    before, limits = left.shift(fill_value=left.iloc[0]), (left.min() / 1.5, 6 * left.max())
    figure, (axes,) = panels((7.6, 2.9), {"xscale": "log", "xlabel": "file (kB, log)", "xlim": limits})
    bars(axes, table["step"], before - left, ORANGE, left=left, height=0.5, label="taken away by this step")
    axes.plot(left, range(len(left)), "o", color=BLUE, label="left after it")
    words = [f"{size:,.0f} kB, {right:,} right" for size, right in zip(left, table["right"], strict=True)]
    axes.bar_label(axes.containers[0], words, padding=8, fontsize=9, bbox=ON_WHITE)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    return figure


def trade_off(
    curves: Mapping[str, tuple[Sequence, Sequence]], xlabel: str, ylabel: str, level: float | None = None
) -> Figure:
    """Draw a line per method, {name: (times smaller or faster, accuracy)}, and the uncompressed ``level``."""
    figure, (axes,) = panels((6.4, 3.8), {"xscale": "log", "xlabel": xlabel, "ylabel": ylabel})
    for marker, (name, (x, y)) in zip(cycle("os^Dv*"), curves.items(), strict=False):
        axes.plot(x, y, f"{marker}-", label=name)
    if level is not None:
        axes.axhline(level, color=GRAY, linestyle="--", label="uncompressed")
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.legend()
    return figure


def formats(table: pd.DataFrame) -> Figure:
    """Draw size, latency with quartiles, and agreement of networks in several formats.
    ``table`` has a row per network and format: network, format, bytes, latency_ms, latency_low_ms,
    latency_high_ms, agreeing (pictures in PyTorch's class), total, note (optional); NaN: not measured."""
    figure, grid = panels(
        (11, 3.8),
        {"xscale": "log", "xlabel": "file (MB, log)"},
        {"xscale": "log", "xlabel": "latency (ms, log; batch 1, 1 thread)"},
        {"xlabel": f"same class as PyTorch (of {table['total'].max():,.0f} pictures)"},
        sharey=True,
    )
    names = list(dict.fromkeys(table["format"]))
    count = table["network"].nunique()
    for number, (network, rows) in enumerate(table.groupby("network", sort=False)):
        color, shift = COLORS[number % len(COLORS)], 0.24 * (number - (count - 1) / 2) / max(1, count - 1)
        place, middle = rows["format"].map(names.index) + shift, rows["latency_ms"]
        whiskers = [middle - rows["latency_low_ms"], rows["latency_high_ms"] - middle]
        grid[0].plot(rows["bytes"] / 1e6, place, "o", color=color, label=network)
        grid[1].errorbar(middle, place, xerr=whiskers, fmt="o", color=color, capsize=2)
        grid[2].plot(rows["agreeing"], place, "o", color=color)
        for at, row, words in zip(middle, place, rows.get("note", ""), strict=False):
            beside = {"xytext": (-7, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
            grid[1].annotate(words, (at, row), fontsize=8, bbox=ON_WHITE, **beside)
    for axes, column in zip(grid[1:], ("latency_ms", "agreeing"), strict=True):
        known = table.groupby("format", sort=False)[column].count()
        for name in known.index[known == 0]:
            axes.annotate("not measured here", (0.03, names.index(name)), color=GRAY, **ON_THE_LEFT)
    rows_down(grid[0], names)
    most, fewest = table["total"].max(), table["agreeing"].min()
    grid[2].set_xlim(fewest - 0.2 * (most - fewest) - 0.1, most + 0.05 * (most - fewest) + 0.1)
    grid[2].xaxis.get_major_locator().set_params(integer=True)
    figure.get_layout_engine().set(wspace=0.06)  # the last number of an axis beside the first of the next
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def tornado(cases: Mapping[str, tuple[pd.DataFrame, float]], xlabel: str) -> Figure:
    """Draw what each assumption alone does to a value, the most decisive on top, a panel per case.
    ``cases`` is {title: (what ``business.tornado`` gave, the value with every assumption in the middle)}."""
    size = 5.2 * len(cases), 1.3 + 0.42 * max(len(table) for table, _ in cases.values())
    figure, grid = panels(size, *({"title": title, "xlabel": xlabel} for title in cases))
    for axes, (table, middle) in zip(grid, cases.values(), strict=True):
        rows = table.itertuples()
        names = [f"{_spelled(row.assumption)}\n{row.low:,.10g} to {row.high:,.10g}" for row in rows]
        for end, color in (("low", BLUE), ("high", ORANGE)):
            bars(axes, names, table[f"value_{end}"] - middle, color, left=middle, label=f"at the {end} end")
        axes.axvline(middle, color=GRAY)
        axes.axvline(0, color="black", linestyle="--", linewidth=1, label="break-even")
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, 3M
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def budget_shares(table: pd.DataFrame) -> Figure:
    """Draw how much of each budget each network takes, as a table: up to 1 it fits, blue; above it, orange.
    ``table`` is from ``business.budgets``: use, budget, network, share."""
    rows = table["use"] + ": " + table["budget"].map(_spelled)
    wide = table.assign(row=rows).pivot_table("share", "row", "network", sort=False)
    words = wide.map(lambda share: f"{share:.2f}" if share >= 0.01 else "< 0.01")
    title = {"title": "share of the budget that is needed: up to 1 it fits (blue)"}
    figure, (axes,) = panels((2.2 + 1.1 * wide.shape[1], 1.1 + 0.34 * len(wide)), title)
    look = {"fmt": "", "annot_kws": {"color": "black"}, "cbar": False, "linewidths": 2, "alpha": 0.45}
    sns.heatmap(wide > 1, annot=words, cmap=[BLUE, ORANGE], vmin=0, vmax=1, ax=axes, **look)
    axes.set(xlabel="", ylabel="")
    axes.grid(visible=False)
    return figure
