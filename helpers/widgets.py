"""The sliders. Each is a thin skin over a plain function that takes a number and returns a figure."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from helpers import checks, plotting
from helpers.distillation import temperature_effect

TEMPERATURES = tuple(round(10 ** (step / 20), 3) for step in range(0, 27))  # 1 to 20, evenly spaced in the logarithm


def temperature_figure(logits: Tensor, temperature: float, classes: Sequence[str], label: int) -> Figure:
    """Draw one picture's soft targets, their entropy and the gradient's size at ``temperature``.

    Args:
        logits: C, a teacher's, of one picture.
        temperature: from 1 to 20.
        classes: C names.
        label: the true class.

    Raises:
        ValueError: ``temperature`` is outside 1 to 20.
    """
    temperature = checks.number("temperature", temperature, 1, 20)
    effects = {t: temperature_effect(logits, t) for t in (*TEMPERATURES, temperature)}
    return plotting.temperature(effects, temperature, classes, label)


def temperature_slider(logits: Tensor, classes: Sequence[str], label: int, start: float = 4.0) -> ipywidgets.Widget:
    """Return the temperature slider of notebook 01 (arguments as in ``temperature_figure``)."""
    slider = ipywidgets.FloatSlider(
        value=start, min=1, max=20, step=0.5, description="temperature", readout_format=".1f", style={"description_width": "initial"}
    )  # fmt: skip
    return figure_slider(slider, lambda value: temperature_figure(logits, value, classes, label))


def figure_slider(slider: ipywidgets.FloatSlider | ipywidgets.IntSlider, draw: Callable[[float], Figure]) -> ipywidgets.Widget:
    """Put a slider above the figure that ``draw`` makes of its value.

    The figure is one picture whose bytes are exchanged, so it does not flicker while the slider moves.
    """
    slider.layout.width = "28em"
    picture = ipywidgets.Image(value=png(draw(slider.value)), format="png")

    def redraw(change: dict) -> None:
        picture.value = png(draw(change["new"]))

    slider.observe(redraw, names="value")
    return ipywidgets.VBox([slider, picture])


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
