"""The sliders. Each is a thin skin over a plain function that takes a number and returns a figure."""

import io
from collections.abc import Callable
from dataclasses import replace

import ipywidgets
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from torch import Tensor

from helpers.business import DAYS_PER_YEAR, Assumptions, Network, Years, cost_per_year, saving, upkeep
from helpers.distillation import temperature_effect
from helpers.plotting import BLUE, COLORS, GRAY, GREEN, ORANGE, bars, panels, probability_bars, stacked_bars
from helpers.quantization import round_to_grid
from helpers.types import Bits, Names, NotNegative, Share, Whole, by_name, checked, real, table, tensor

Temperature, Weight, Logits, Ranks = real(ge=1, le=20), tensor(), tensor(1), by_name(Whole)
Sparsities, Energies, Widths = table("sparsity"), table("energy"), table("bits")
Rival = tuple[Network, NotNegative] | tuple[Network, NotNegative, NotNegative]
SWEPT = {
    "sparsity": ("sparsity (%)", 100),
    "energy": ("energy kept (%)", 100),
    "bits": ("bits per weight", 1),
}
TEMPERATURES = tuple(round(10 ** (step / 20), 3) for step in range(27))  # 1 to 20, even in the logarithm
COST_STEPS = {  # {assumption, or years: (what stands beside its slider, where it can stand)}
    "inferences_per_day": (
        "inferences a day",
        (*(digit * 10**power for power in range(3, 9) for digit in (1, 2, 5)), 10**9),
    ),
    "price_per_cpu_hour": ("price per CPU hour", (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)),
    "utilization": ("utilization", (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)),
    "price_per_gb": ("download price per GB", (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)),
    "engineer_days": ("engineer days, once", (0, 1, 2, 5, 10, 20, 40, 60, 100)),
    "days_per_release": ("days per release", (0, 1, 2, 5, 10, 20)),
    "releases_per_year": ("releases a year", (0, 1, 2, 4, 6, 12, 24)),
    "years": ("years", (1, 2, 3, 5, 10)),
}


@checked
def temperature_figure(logits: Logits, temperature: Temperature, classes: Names, label: Whole) -> Figure:
    """Draw one picture's soft targets at ``temperature``, their entropy and the gradient's size at all.

    Args:
        logits: C, a teacher's, of one picture.
        temperature: from 1 to 20.
        classes: C names.
        label: the true class.
    """
    if len(classes) != len(logits) or label >= len(logits):
        raise ValueError(f"classes and label must fit {len(logits)} logits, got {classes} and {label}")
    effects = {each: temperature_effect(logits, each) for each in sorted({*TEMPERATURES, temperature})}
    here, log = effects[temperature], {"xlabel": "temperature", "xscale": "log"}
    figure, (left, middle, right) = panels(
        (10, 3.2),
        {"title": f"soft targets at T = {temperature:g}"},
        {"title": f"entropy: {here['entropy']:.2f} bits"} | log,
        {"title": "gradient at the logits (T = 1 is 1)", "yscale": "log"} | log,
        fixed=(0.09, 0.16, 0.99, 0.89, 0.24),
    )
    probability_bars(left, here["probabilities"], classes, label)
    for axes, key, style, color, name in (
        (middle, "entropy", "-", BLUE, None),
        (right, "gradient_scale", "-", BLUE, "soft term"),
        (right, "scaled_gradient", "--", GREEN, "soft term x T²"),
    ):
        axes.plot(list(effects), [one[key] for one in effects.values()], style, color=color, label=name)
        axes.plot(temperature, here[key], "o", color=ORANGE, markersize=9)
    middle.set_ylim(bottom=0)
    right.legend()
    return figure


@checked
def temperature_slider(
    logits: Logits, classes: Names, label: Whole, start: Temperature = 4.0
) -> ipywidgets.Widget:
    """Return the temperature slider of notebook 01 (arguments as in ``temperature_figure``)."""
    look = {"layout": {"width": "28em"}, "style": {"description_width": "initial"}, "readout_format": ".1f"}
    slider = ipywidgets.FloatSlider(start, min=1, max=20, step=0.5, description="temperature", **look)
    return figure_sliders({"value": slider}, lambda value: temperature_figure(logits, value, classes, label))


@checked
def sparsity_figure(weight: Weight, table: Sparsities, sparsity: Share) -> Figure:
    """Draw one layer's weights and mask, and the network's accuracy and file, at ``sparsity``.

    ``table`` is from ``pruning.sweep``.
    """
    row, weight = _row(table, "sparsity", sparsity), _drawable(weight, 2)
    kept = weight.flatten(1)[:64, :72].abs() > row["threshold"]
    limit = float(weight.flatten()[:1_000_000].abs().quantile(0.999))
    figure, (left, middle, right) = panels(
        (10.5, 3.3),
        {"title": "weights of the layer", "xlabel": "value", "ylabel": "how many", "xlim": (-limit, limit)},
        {"title": f"mask ({len(kept)} x {kept.shape[1]} of it): {kept.float().mean():.0%} kept, blue"},
        {"title": f"{sparsity:.0%} zeros: {row['recalibrated']:.1%} ({row['accuracy']:.1%})"},
        fixed=(0.07, 0.16, 0.94, 0.9, 0.28),
        width_ratios=(1, 0.9, 1.1),
    )
    left.hist(weight.flatten(), bins=81, range=(-limit, limit), color=BLUE, log=True)
    left.axvspan(-row["threshold"], row["threshold"], color=ORANGE, alpha=0.35, label="given up")
    left.legend(loc="upper right")
    middle.imshow(kept, cmap="Blues", vmin=0, vmax=1.3, interpolation="nearest", aspect="auto")
    middle.set(xticks=[], yticks=[])
    _two_scales(right, table, "sparsity", "bytes", "file (MB)", row)
    return figure


@checked
def sparsity_slider(weight: Weight, table: Sparsities, start: Share = 0.9) -> ipywidgets.Widget:
    """Return the sparsity slider of notebook 02: it moves through the rows of ``table``."""
    return _row_slider(table, "sparsity", start, lambda value: sparsity_figure(weight, table, value))


@checked
def energy_figure(table: Energies, full: Ranks, break_even: Ranks, energy: Share) -> Figure:
    """Draw every layer's rank, and the network's parameters, MACs and accuracy, at ``energy``.

    Args:
        table: from ``low_rank.sweep``.
        full: {layer: full rank}.
        break_even: {layer: the largest rank that still saves weights}.
        energy: share of each layer's squared weights that is kept.
    """
    row = _row(table, "energy", energy)
    names, rank = list(row["ranks"]), row["ranks"]
    if not {*names} <= {*full} & {*break_even}:
        raise ValueError(f"full and break_even must have each of {names}, got {full} and {break_even}")
    figure, (left, middle, right) = panels(
        (11.4, 3.9),
        {"title": "rank (dark gray: left whole)", "xlabel": "rank"},
        {"title": f"energy {energy:.0%}: {row['recalibrated']:.1%}, {row['parameters'] / 1e6:.1f}M"},
        {"title": f"{row['macs'] / 1e6:.0f}M MACs"},
        fixed=(0.085, 0.13, 0.94, 0.91, 0.62),
        width_ratios=(1.2, 1, 1),
    )
    bars(left, names, [full[name] for name in names], "0.88", label="full rank")
    colors = [BLUE if rank[name] else GRAY for name in names]
    bars(left, names, [rank[name] or full[name] for name in names], colors)
    marks = {"markersize": 9, "markeredgewidth": 2, "label": "break-even"}
    left.plot([break_even[name] for name in names], range(len(names)), "|k", **marks)
    left.legend()
    _two_scales(middle, table, "energy", "parameters", "parameters (millions)", row)
    _two_scales(right, table, "energy", "macs", "MACs (millions)", row)
    return figure


@checked
def energy_slider(table: Energies, full: Ranks, break_even: Ranks, start: Share = 0.9) -> ipywidgets.Widget:
    """Return the energy slider of notebook 03: it moves through the rows of ``table``."""
    return _row_slider(table, "energy", start, lambda value: energy_figure(table, full, break_even, value))


@checked
def bits_figure(weight: Weight, table: Widths, bits: Bits) -> Figure:
    """Draw one output channel's weights rounded to ``bits`` bits, and what rounding all costs and saves.

    ``table`` is from ``quantization.sweep``.
    """
    row, weight = _row(table, "bits", bits), _drawable(weight, 1)
    values, order = round_to_grid(weight[None], bits).flatten(), weight.flatten().argsort()
    figure, (left, right) = panels(
        (9, 3.3),
        {
            "title": f"{bits} bits: {len(values.unique())} levels used",
            "ylabel": "value",
            "xlabel": "weights of one channel, sorted",
        },
        {"title": f"{row['recalibrated']:.1%}, {row['bytes'] / 1e6:.2f} MB"},
        fixed=(0.08, 0.16, 0.92, 0.9, 0.25),
    )
    left.plot(weight.flatten()[order], color=GRAY, linewidth=3, label="as trained")
    left.step(range(len(order)), values[order], color=ORANGE, where="mid", label="rounded")
    left.legend()
    _two_scales(right, table, "bits", "bytes", "weights (MB)", row)
    return figure


@checked
def bits_slider(weight: Weight, table: Widths, start: Bits = 4) -> ipywidgets.Widget:
    """Return the bit-width slider of notebook 04: it moves through the rows of ``table``."""
    return _row_slider(table, "bits", start, lambda value: bits_figure(weight, table, value), "{}")


def _row(table: pd.DataFrame, column: str, value: float, argument: str = "") -> pd.Series:
    close = (table[column] - value).abs() < 1e-9
    if not close.any():
        known = ", ".join(f"{one:g}" for one in table[column])
        raise ValueError(f"{argument or column} must be one of {known}; got {value!r}")
    return table[close].iloc[0]


def _row_slider(
    table: pd.DataFrame, column: str, start: float, draw: Callable[[float], Figure], form: str = "{:.1%}"
) -> ipywidgets.Widget:
    slider = ipywidgets.SelectionSlider(
        options=[(form.format(value), value) for value in table[column]],
        value=_row(table, column, start, "start")[column],
        description=column,
        layout={"width": "28em"},
    )
    return figure_sliders({"value": slider}, draw)


def _drawable(weight: Tensor, dimensions: int) -> Tensor:
    if weight.ndim < dimensions:
        raise ValueError(
            f"weight must have {dimensions} dimension(s) or more, got shape {tuple(weight.shape)}"
        )
    return weight.detach().float().cpu()


def _two_scales(axes: Axes, table: pd.DataFrame, x: str, cost: str, what: str, row: pd.Series) -> None:
    # a sweep over column x: accuracies on the left scale, the cost in millions on the right; row is marked
    label, scale = SWEPT[x]
    shown = pd.DataFrame(
        {
            "recalibrated": 100 * table["recalibrated"],
            "as it is": 100 * table["accuracy"],
            "cost": table[cost] / 1e6,
        }
    ).set_axis(scale * table[x])
    style = {"style": ["o-", "o:", "s--"], "color": [BLUE, BLUE, ORANGE], "markersize": 3, "legend": False}
    shown.plot(ax=axes, secondary_y="cost", xlabel=label, **style)
    axes.axvline(scale * row[x], color=GRAY)
    axes.plot(scale * row[x], 100 * row["recalibrated"], "o", color=BLUE, markersize=9)
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy (%); dotted: not recalibrated", color=BLUE, fontsize=8)
    axes.right_ax.plot(scale * row[x], row[cost] / 1e6, "s", color=ORANGE, markersize=9)
    axes.right_ax.set_ylabel(f"{what}, dashed", color=ORANGE)
    axes.right_ax.set_ylim(0, 1.05 * shown["cost"].max())
    axes.right_ax.grid(visible=False)


@checked
def figure_sliders(sliders: by_name(ipywidgets.Widget), draw: Callable[..., Figure]) -> ipywidgets.Widget:
    """Put sliders above the one figure that ``draw`` makes of all their values, each handed over by its name.

    The figure is one picture whose bytes are exchanged, so it does not flicker while a slider moves.
    """
    picture, words = ipywidgets.Image(format="png"), ipywidgets.Label()

    def redraw(_change: dict | None = None) -> None:
        picture.value = png(draw(**{name: slider.value for name, slider in sliders.items()}))
        said = (f"{slider.description} {_readout(slider)}" for slider in sliders.values())
        words.value = "figure: " + ", ".join(said)  # for whoever hears the page instead of seeing it

    redraw()
    for slider in sliders.values():
        slider.observe(redraw, names="value")
    return ipywidgets.VBox([*sliders.values(), picture, words])


def _readout(slider: ipywidgets.Widget) -> str:
    chosen = isinstance(slider, ipywidgets.SelectionSlider)
    return slider.label if chosen else format(slider.value, slider.readout_format)


@checked
def png(figure: Figure) -> bytes:
    """Return the figure as a PNG, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


@checked
def cost_figure(
    before: Network,
    after: Network,
    assumptions: Assumptions,
    years: Years = 3,
    other: Rival | None = None,
    **chosen: float,
) -> Figure:
    """Draw what a year costs with one network and with another, and what has been spent since the start.

    Args:
        before: what runs now.
        after: what would run.
        assumptions: of the service.
        years: to look ahead.
        other: what could run instead of ``after``, and the engineer days it takes, once and at a release; no
            slider moves these.
        **chosen: assumptions to change, by name, such as inferences_per_day.
    """
    if not chosen.keys() <= vars(assumptions).keys():
        raise TypeError(f"chosen must be assumptions, got {', '.join(chosen)}")
    here = replace(assumptions, **chosen)
    network, once, release = (*(other or (before, 0)), 0)[:3]
    rival = {network: replace(here, engineer_days=once, days_per_release=release)} if other else {}
    plans = {before: replace(here, engineer_days=0, days_per_release=0)} | rival | {after: here}
    costs = pd.DataFrame({network.name: cost_per_year(network, here) for network in plans}).T
    total, millions = costs.pop("total"), here.inferences_per_day * DAYS_PER_YEAR / 1e6
    if any(upkeeps := [upkeep(plan) for plan in plans.values()]):
        costs["engineers"] = upkeeps
    each = ", ".join(f"{name} {cost / millions if millions else 0:,.2f}" for name, cost in total.items())
    figure, (left, right) = panels(
        (9.6, 3.9),
        {"title": "what a year costs, releases included", "xlabel": "dollars a year"},
        {"title": "spent since the start, all days included", "xlabel": "years", "ylabel": "dollars spent"},
        fixed=(0.13, 0.14, 0.98, 0.76, 0.28),
    )
    lines = [f"Per million inferences, downloads included: {each} dollars."]
    styles = ("-", GRAY), ("--", COLORS[4]), (":", COLORS[3])
    for (network, plan), (style, color) in zip(plans.items(), styles, strict=False):
        found = saving(before, network, plan, years)
        spent = [found["investment"], found["investment"] + years * costs.loc[network.name].sum()]
        right.plot([0, years], spent, style, color=color, linewidth=2, label=network.name)
        if network != before:
            lines += [f"Over {years:g} year{'' if years == 1 else 's'}, {network.name}: {_in_words(found)}."]
    figure.suptitle("\n".join(lines), fontsize=10, x=0.02, ha="left")
    stacked_bars(left, costs, COLORS, room=1.6)
    right.yaxis.set_major_formatter(EngFormatter(sep=""))
    right.set(xlim=(0, years), ylim=(0, 1.3 * (right.dataLim.y1 or 1)))  # room for the legend
    left.legend(loc="lower right")
    right.legend(loc="upper left", ncols=3, columnspacing=1, handlelength=1.6)
    return figure


def _in_words(found: dict[str, float]) -> str:
    returned = f"{found['return_on_investment']:+,.0%}" if found["investment"] else "none (nothing is spent)"
    back = f"paid back in {found['payback_days']:,.0f} days" if found["net"] > 0 else "not paid back"
    return f"net {found['net']:+,.0f} dollars, return on the days spent once {returned}, {back}"


@checked
def cost_sliders(
    before: Network, after: Network, assumptions: Assumptions, years: Years = 3, other: Rival | None = None
) -> ipywidgets.Widget:
    """Return the sliders of notebook 06 (arguments as in ``cost_figure``); they start at ``assumptions``."""
    sliders, starts = {}, vars(assumptions) | {"years": years}
    for name, (label, steps) in COST_STEPS.items():
        sliders[name] = ipywidgets.SelectionSlider(
            options=[(f"{value:,.10g}", value) for value in sorted({*steps, starts[name]})],
            value=starts[name],
            description=label,
            layout={"width": "34em"},
            style={"description_width": "12em"},
        )
    return figure_sliders(
        sliders, lambda **moved: cost_figure(before, after, assumptions, other=other, **moved)
    )
