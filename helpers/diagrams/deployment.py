"""Figures of lesson 05: what becomes of the graph, what a calibration clips, where time and memory go."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor, from_numpy, nn

from helpers import profiling
from helpers.data import HOME, Split, batches
from helpers.deploy.runtimes import onnx_inference
from helpers.diagrams.shapes import arrow, box, canvas
from helpers.plotting import (
    BLUE,
    COLORS,
    GRAY,
    GREEN,
    ON_WHITE,
    ORANGE,
    grouped_bars,
    panels,
    rows_down,
    stacked_bars,
)

MOVES = ("QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderOutput", "ReorderInput")
COMPUTES = ("Conv2d", "Conv", "QLinearConv", "FusedConv", "Linear", "Gemm", "QGemm")
FONT, HEIGHT = 0.55, 0.72  # of a box, and of a row, in the canvas's units


def layers(model: nn.Module) -> list[str]:
    """Return the types of a network's layers, in the order in which they were built."""
    return [type(module).__name__ for module in model.modules() if not [*module.children()]]


def operators(path: Path) -> list[str]:
    """Return the operators of an .onnx file that work on pictures, in the file's order.

    Those that only unpack weights are left out; a convolution with an activation in it is "Conv + Relu".
    """
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [_spelled(node) for node in graph.node if node.input[0] not in weights]


def as_it_runs(path: Path) -> list[str]:
    """Return the operators that onnxruntime makes of an .onnx file on this processor, in order."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        onnx_inference(path, 1, optimized_model_filepath=str(optimized))
        return operators(optimized)


def graphs(columns: Mapping[str, Sequence[str]]) -> Figure:
    """Draw graphs as columns of boxes, {title: operators}, each convolution level with its counterparts."""
    staged = {title: _stages(names) for title, names in columns.items()}
    count = max(len(stages) for stages in staged.values())
    tall = [max(len(stages[index]) for stages in staged.values()) for index in range(count)]
    top = HEIGHT * sum(tall) + 0.3
    figure, axes = canvas(2.5 * len(columns) + 0.2, top + 0.6, 0.72)
    for place, (title, stages) in enumerate(staged.items()):
        x, last, number = 1.35 + 2.5 * place, None, sum(len(stage) for stage in stages)
        axes.text(x, top + 0.15, f"{title}\n{number} steps", ha="center", va="center", fontsize=9)
        for index, stage in enumerate(stages):
            for row, name in enumerate(stage):
                y = top - 0.3 - HEIGHT * (sum(tall[:index]) + row) - FONT / 2
                if last is not None:
                    arrow(axes, (x, last - FONT / 2), (x, y + FONT / 2))
                box(
                    axes,
                    (x, y),
                    name,
                    size=(2.2, FONT),
                    color=_color(name),
                    filled=name.partition(" ")[0] in COMPUTES,
                )
                last = y
    return figure


def values(path: Path, tensor: str, pictures: Split) -> Tensor:
    """Return what a tensor of an .onnx file holds for these pictures, flat, float32."""
    images, model = next(batches(pictures, len(pictures)))[0].numpy(), onnx.load(path)
    if tensor == "images":
        return from_numpy(images).flatten()
    model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    (found,) = onnx_inference(model.SerializeToString(), 1).run([tensor], {"images": images})
    return from_numpy(found).flatten()


def int8_range(path: Path, tensor: str) -> tuple[float, float]:
    """Return the smallest and the largest value that a quantized .onnx file can hold in a tensor."""
    found = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    scale, zero = (float(found[f"{tensor}_{part}"]) for part in ("scale", "zero_point"))
    return -scale * zero, scale * (255 - zero)


def calibrations(
    seen: Mapping[str, Tensor], ranges: Mapping[str, Mapping[str, tuple[float, float]]]
) -> Figure:
    """Draw what ordinary pictures bring, and what of it each int8 file can hold; the rest is clipped.

    A bar more than twice as tall as any other, such as that of a ReLU's zeros, is cut, its height beside it.

    Args:
        seen: {tensor: its values}, a row each.
        ranges: {title of a column: {tensor: lowest and highest value that the file can hold}}.
    """
    titles = [{"title": title} for title in ranges] + [{}] * len(ranges) * (len(seen) - 1)
    size = 3.0 * len(ranges), 1.9 * len(seen) + 0.4
    figure, grid = panels(size, *titles, rows=len(seen), sharex="row", sharey="row")
    for row, (tensor, numbers) in enumerate(seen.items()):
        ends = float(numbers.min()), float(numbers.max())
        margin = 0.1 * (ends[1] - ends[0])
        for axes, held in zip(grid[row * len(ranges) :], ranges.values(), strict=False):
            low, high = held[tensor]
            inside = (numbers >= low) & (numbers <= high)
            parts = [numbers[inside].numpy(), numbers[~inside].numpy()]
            percent = [np.full(len(part), 100 / len(numbers)) for part in parts]  # what each value counts
            shares, edges, _ = axes.hist(
                parts,
                bins=60,
                range=ends,
                weights=percent,
                stacked=True,
                color=(BLUE, ORANGE),
                label=("held", "clipped"),
                linewidth=0,
            )
            second, tallest = np.sort(shares[-1])[-2:]
            cut = tallest > 2 * second > 0
            axes.vlines(held[tensor], 0, 1, GRAY, "--", transform=axes.get_xaxis_transform())
            axes.set(xlim=(ends[0] - margin, ends[1] + margin), ylim=(0, 1.15 * (second if cut else tallest)))
            if cut:
                place = edges[shares[-1].argmax() + 1] + 0.1 * margin, 1.12 * second
                axes.text(*place, f"cut: {tallest:.0f}%", fontsize=8, va="top", bbox=ON_WHITE)
            integers = (numbers[inside] * 255 / (high - low)).round().unique().numel()
            clipped = 100 * float((~inside).float().mean())
            share = "< 0.001" if 0 < clipped < 0.001 else f"{clipped:.2g}"
            axes.set_xlabel(f"{tensor}: {share}% clipped,\n{integers} of 256 integers used", fontsize=9)
        grid[row * len(ranges)].set_ylabel("values (%)", fontsize=9)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def layer_times(profiles: Mapping[str, pd.DataFrame], path: Path) -> pd.DataFrame:
    """Return the microseconds of each layer in several runs of one network.

    Args:
        profiles: {name: what ``export.onnx_profile`` gave by node}, of the float file and of its int8 file.
        path: the float file, an .onnx, which names the layers.

    Returns:
        DataFrame: a row per convolution or classifier, as "conv 3 to 64, 32 x 32", in the file's order, and a
        last one for all else; a column per run.
    """
    graph = onnx.load(path).graph
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    rows = {}
    for node in (node for node in graph.node if node.op_type in COMPUTES):
        names = {
            node.name,
            *node.output,
            *(one.output[0] for one in graph.node if node.output[0] in one.input),
        }
        found = {name: profile[profile["node"].isin(names)] for name, profile in profiles.items()}
        taken = next(iter(found.values()))["input"].iloc[0].split(" x ")[2:]
        outputs, inputs = shapes[node.input[1]][:2]
        kind = "conv" if taken else "linear"
        label = f"{len(rows) + 1}: {kind} {inputs} to {outputs}" + (f", {' x '.join(taken)}" if taken else "")
        rows[label] = {name: each["microseconds"].sum() for name, each in found.items()}
    table = pd.DataFrame(rows).T
    totals = pd.Series({name: profile["microseconds"].sum() for name, profile in profiles.items()})
    table.loc["all else"] = totals - table.sum()
    return table


def profile_bars(table: pd.DataFrame) -> Figure:
    """Draw the microseconds of each layer, the runs beside each other; ``table`` is from ``layer_times``."""
    figure, (axes,) = panels((7.4, 1.1 + 0.3 * len(table)), {"xlabel": "microseconds, one picture, 1 thread"})
    named = table.rename(columns={name: f"{name}: {sum(table[name]):,.0f} in all" for name in table})
    labels = {"fmt": " {:.0f}", "fontsize": 7}
    grouped_bars(axes, named, labels, "barh", color=(BLUE, ORANGE), legend=False)
    rows_down(axes, table.index)
    axes.margins(x=0.12)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def activations(model: nn.Module, side: int = 32) -> int:
    """Return the most numbers that a chain of layers holds at once: input and output of its largest layer.

    Args:
        model: a chain, such as a VGG.
        side: of the picture, 1 x 3 x side x side.
    """
    sizes = [3 * side * side, *map(prod, profiling.profile(model, (1, 3, side, side))["output_shape"])]
    return max(before + after for before, after in pairwise(sizes))


def python_alone() -> float:
    """Return the MB of a process that has imported NumPy and what ``peak_memory`` needs but no runtime."""
    code = "from helpers.deploy import runtimes; print(runtimes._resident_peak())"
    return float(subprocess.check_output([sys.executable, "-c", code], cwd=HOME))


def memory(table: pd.DataFrame, growth: pd.DataFrame) -> Figure:
    """Draw what fills a process, part by part, and how it changes with the picture.

    Args:
        table: a row per file, a column per part, in MB.
        growth: a column per part, in MB, indexed by the picture's side.
    """
    figure, (left, right) = panels(
        (9.4, 1.6 + 0.4 * len(table)),
        {"xlabel": "MB"},
        {"xlabel": "side of the picture (pixels)", "ylabel": "MB", "xscale": "log", "yscale": "log"},
        width_ratios=(1.5, 1),
    )
    stacked_bars(left, table, (GRAY, COLORS[4], BLUE, ORANGE, GREEN), room=1.15, hatches=("",))
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    growth.plot(ax=right, style=["o-", "s-", "D-", "^-"], xticks=growth.index)
    return figure


# -- inside --------------------------------------------------------------------------------------------------


def _spelled(node: object) -> str:
    activation = [each.s.decode() for each in node.attribute if each.name == "activation"]
    return " + ".join([node.op_type.removeprefix("Fused"), *activation])


# Cuts a list of operators in front of every one that computes with weights.
def _stages(names: Sequence[str]) -> list[list[str]]:
    stages = [[]]
    for name in names:
        if name.partition(" ")[0] in COMPUTES:
            stages.append([])
        stages[-1].append(name)
    return stages


def _color(name: str) -> object:
    first = name.partition(" ")[0]
    kinds = {"BatchNorm2d": ORANGE, "ReLU": GREEN, "Relu": GREEN, **dict.fromkeys(MOVES, COLORS[4])}
    return BLUE if first in COMPUTES else kinds.get(first, GRAY)
