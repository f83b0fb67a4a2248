"""The sliders. Each is a thin skin over a plain function that takes a number and returns a figure."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import ipywidgets
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from helpers import business, checks, plotting
from helpers.distillation import temperature_effect
from helpers.quantization import round_to_grid

TEMPERATURES = tuple(
    round(10 ** (step / 20), 3) for step in range(0, 27)
)  # 1 to 20, evenly spaced in the logarithm


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
    if len(checks.names("classes", classes)) != len(checks.tensor("logits", logits)):
        raise ValueError(f"classes must name each of the {len(logits)} logits, got {len(classes)} names")
    checks.integer("label", label, 0, len(classes) - 1)
    effects = {t: temperature_effect(logits, t) for t in (*TEMPERATURES, temperature)}
    return plotting.temperature(effects, temperature, classes, label)


def temperature_slider(
    logits: Tensor, classes: Sequence[str], label: int, start: float = 4.0
) -> ipywidgets.Widget:
    """Return the temperature slider of notebook 01 (arguments as in ``temperature_figure``)."""
    checks.number("start", start, 1, 20)
    slider = ipywidgets.FloatSlider(
        value=start, min=1, max=20, step=0.5, description="temperature", readout_format=".1f", style={"description_width": "initial"}
    )  # fmt: skip
    return figure_slider(slider, lambda value: temperature_figure(logits, value, classes, label))


def sparsity_figure(weight: Tensor, table: pd.DataFrame, sparsity: float) -> Figure:
    """Draw one layer's weights and mask, and the network's accuracy and file, at ``sparsity``.

    Args:
        weight: one layer's.
        table: from ``pruning.sweep``, with a row for ``sparsity``.
        sparsity: share of the network's weights given up.

    Raises:
        ValueError: ``table`` has no such row.
    """
    return plotting.sparsity(_weight(weight, 2), table, _row(table, "sparsity", sparsity))


def sparsity_slider(weight: Tensor, table: pd.DataFrame, start: float = 0.9) -> ipywidgets.Widget:
    """Return the sparsity slider of notebook 02: it moves through the rows of ``table`` (from ``pruning.sweep``)."""
    _row(table, "sparsity", start, "start")
    slider = ipywidgets.SelectionSlider(
        options=[(f"{value:.1%}", value) for value in table["sparsity"]], value=start, description="sparsity"
    )
    return figure_slider(slider, lambda value: sparsity_figure(weight, table, value))


def energy_figure(
    table: pd.DataFrame, full: Mapping[str, int], break_even: Mapping[str, int], energy: float
) -> Figure:
    """Draw every layer's rank, and the network's parameters, MACs and accuracy, at ``energy``.

    Args:
        table: from ``low_rank.sweep``, with a row for ``energy``.
        full: {layer: full rank}.
        break_even: {layer: the largest rank that still saves weights}.
        energy: share of each layer's squared weights that is kept.

    Raises:
        ValueError: ``table`` has no such row.
    """
    row = _row(table, "energy", energy)
    for name, ranks in (("full", full), ("break_even", break_even)):
        for layer in table["ranks"].iloc[row]:
            checks.choice(name, layer, checks.instance(name, ranks, Mapping))
            checks.integer(name, ranks[layer], 0)
    return plotting.ranks(table, full, break_even, row)


def energy_slider(
    table: pd.DataFrame, full: Mapping[str, int], break_even: Mapping[str, int], start: float = 0.9
) -> ipywidgets.Widget:
    """Return the energy slider of notebook 03: it moves through the rows of ``table`` (from ``low_rank.sweep``)."""
    _row(table, "energy", start, "start")
    slider = ipywidgets.SelectionSlider(
        options=[(f"{value:.1%}", value) for value in table["energy"]], value=start, description="energy"
    )
    return figure_slider(slider, lambda value: energy_figure(table, full, break_even, value))


def bits_figure(weight: Tensor, table: pd.DataFrame, bits: int) -> Figure:
    """Draw one output channel's weights rounded to ``bits`` bits, and what rounding all weights costs and saves.

    Args:
        weight: of one output channel.
        table: from ``quantization.sweep``, with a row for ``bits``.
        bits: per weight.

    Raises:
        ValueError: ``table`` has no such row.
    """
    row, weight = _row(table, "bits", bits), _weight(weight, 1)
    return plotting.bits(weight, round_to_grid(weight[None], bits)[0], table, row)


def bits_slider(weight: Tensor, table: pd.DataFrame, start: int = 4) -> ipywidgets.Widget:
    """Return the bit-width slider of notebook 04: it moves through the rows of ``table`` (from ``quantization.sweep``)."""
    _row(table, "bits", start, "start")
    slider = ipywidgets.SelectionSlider(options=table["bits"].tolist(), value=start, description="bits")
    return figure_slider(slider, lambda value: bits_figure(weight, table, value))


def _row(table: pd.DataFrame, column: str, value: float, name: str = "") -> int:
    """Return the position of the row whose ``column`` is ``value``, an argument called ``name`` (if that is not the column's name)."""
    if column not in checks.instance("table", table, pd.DataFrame) or table.empty:
        raise ValueError(
            f"table must have a column {column} and a row, got {len(table)} rows of {', '.join(map(str, table))}"
        )
    value = checks.number(name or column, value)
    close = ((table[column] - value).abs() < 1e-9).tolist()
    if True not in close:
        raise ValueError(
            f"{name or column} must be one of {', '.join(f'{one:g}' for one in table[column])}; got {value!r}"
        )
    return close.index(True)


def _weight(weight: Tensor, dimensions: int) -> Tensor:
    """Return ``weight`` as matplotlib takes it, if it has at least so many dimensions."""
    if checks.tensor("weight", weight).ndim < dimensions:
        raise ValueError(
            f"weight must have at least {dimensions} dimension(s), got shape {tuple(weight.shape)}"
        )
    return weight.detach().float().cpu()


def figure_slider(slider: ipywidgets.Widget, draw: Callable[[float], Figure]) -> ipywidgets.Widget:
    """Put a slider above the figure that ``draw`` makes of its value.

    The figure is one picture whose bytes are exchanged, so it does not flicker while the slider moves.
    """
    checks.instance("slider", slider, ipywidgets.Widget)
    checks.instance("draw", draw, Callable)
    slider.layout.width = "28em"
    return figure_sliders({"value": slider}, lambda value: draw(value))


def figure_sliders(
    sliders: Mapping[str, ipywidgets.Widget], draw: Callable[..., Figure]
) -> ipywidgets.Widget:
    """Put sliders above the one figure that ``draw`` makes of all their values, each handed over by its name (see ``figure_slider``)."""
    for name in checks.names("sliders", checks.instance("sliders", sliders, Mapping)):
        checks.instance("sliders", sliders[name], ipywidgets.Widget)
    checks.instance("draw", draw, Callable)

    def drawn() -> bytes:
        return png(draw(**{name: slider.value for name, slider in sliders.items()}))

    def said() -> str:  # below the picture, for whoever hears the page instead of seeing it
        return "figure: " + ", ".join(
            f"{slider.description} {_readout(slider)}" for slider in sliders.values()
        )

    picture, words = ipywidgets.Image(value=drawn(), format="png"), ipywidgets.Label(said())

    def redraw(_change: dict) -> None:
        picture.value, words.value = drawn(), said()

    for slider in sliders.values():
        slider.observe(redraw, names="value")
    return ipywidgets.VBox([*sliders.values(), picture, words])


def _readout(slider: ipywidgets.Widget) -> str:
    return (
        slider.label
        if isinstance(slider, ipywidgets.SelectionSlider)
        else format(slider.value, slider.readout_format)
    )


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG, and close it."""
    checks.instance("figure", figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


COST_STEPS = {  # {assumption, or years: (what stands beside its slider, where it can stand)}
    "inferences_per_day": (
        "inferences a day",
        (*(digit * 10**power for power in range(3, 9) for digit in (1, 2, 5)), 10**9),
    ),
    "price_per_cpu_hour": ("price per CPU hour", (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)),
    "utilization": ("utilization", (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)),
    "price_per_gb": ("download price per GB", (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)),
    "engineer_days": ("engineer days", (0, 1, 2, 5, 10, 20, 40, 60, 100)),
    "years": ("years", (1, 2, 3, 5, 10)),
}


def cost_figure(
    before: business.Network,
    after: business.Network,
    assumptions: business.Assumptions,
    years: float = 3,
    other: tuple[business.Network, float] | None = None,
    **chosen: float,
) -> Figure:
    """Draw what a service costs with one network and with another, and whether the change pays.

    Args:
        before: what runs now.
        after: what would run.
        assumptions: of the service.
        years: to look ahead, above 0.
        other: what could run instead of ``after``, and the engineer days that it takes; no slider moves these.
        **chosen: assumptions to change, by name, such as inferences_per_day.

    Raises:
        TypeError: ``chosen`` names no assumption, or ``other`` is no such pair.
        ValueError: a value is out of range.
    """
    checks.instance("before", before, business.Network)
    checks.instance("after", after, business.Network)
    known = asdict(checks.instance("assumptions", assumptions, business.Assumptions))
    if not known.keys() >= chosen.keys():
        raise TypeError(
            f"chosen must be of {', '.join(known)}; got {', '.join(chosen.keys() - known.keys())}"
        )
    here = replace(assumptions, **chosen)
    plans = {after.name: (after, here)}
    if other is not None:
        if not isinstance(other, tuple) or len(other) != 2 or not isinstance(other[0], business.Network):
            raise TypeError(f"other must be a Network and its engineer days, got {type(other).__name__}")
        plans = {
            other[0].name: (other[0], replace(here, engineer_days=checks.number("other", other[1], 0, 1e15)))
        } | plans
    costs = {
        network.name: business.cost_per_year(network, here)
        for network in (before, *(network for network, _ in plans.values()))
    }
    per_year = {
        name: {kind: cost for kind, cost in kinds.items() if kind != "total"} for name, kinds in costs.items()
    }
    million = 1e6 / (here.inferences_per_day * business.DAYS_PER_YEAR) if here.inferences_per_day else 0.0
    each = ", ".join(f"{name} {kinds['total'] * million:,.2f}" for name, kinds in costs.items())
    invested, lines = {before.name: 0.0}, [f"Per million inferences, downloads included: {each} dollars."]
    for name, (network, plan) in plans.items():
        found = business.saving(before, network, plan, years)
        invested[name] = found["investment"]
        returned = (
            f"{100 * found['return_on_investment']:+,.0f}%"
            if found["investment"]
            else "none (nothing is spent)"
        )
        back = f"paid back in {found['payback_days']:,.0f} days" if found["net"] > 0 else "not paid back"
        net = f"net {found['net']:+,.0f} dollars, return on the money spent {returned}, {back}"
        lines.append(f"Over {years:g} year{'' if years == 1 else 's'}, {name}: {net}.")
    return plotting.cost_of_an_inference(per_year, invested, years, "\n".join(lines))


def cost_sliders(
    before: business.Network,
    after: business.Network,
    assumptions: business.Assumptions,
    years: float = 3,
    other: tuple[business.Network, float] | None = None,
) -> ipywidgets.Widget:
    """Return the sliders "cost of an inference" of notebook 06 (arguments as in ``cost_figure``); they start at ``assumptions``."""
    checks.instance("assumptions", assumptions, business.Assumptions)
    checks.number("years", years, 0, 100, open_low=True)
    sliders = {}
    for name, (label, steps) in COST_STEPS.items():
        start = years if name == "years" else getattr(assumptions, name)
        options = [(f"{value:,.10g}", value) for value in sorted({*steps, start})]
        layout, style = ipywidgets.Layout(width="34em"), {"description_width": "12em"}
        sliders[name] = ipywidgets.SelectionSlider(
            options=options, value=start, description=label, layout=layout, style=style
        )
    return figure_sliders(
        sliders, lambda **chosen: cost_figure(before, after, assumptions, other=other, **chosen)
    )
