"""What to ship: chosen from a table of measured files, moved by a slider, written on one page.

The table has a row per file, the network as it was first: network (its name), bytes, correct and total
(pictures), and latency_ms if it was timed.
"""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from helpers.evaluation import Accuracy
from helpers.files import keep
from helpers.plotting import BLUE, GRAY, ORANGE, accuracy_bars, bars, panels
from helpers.types import Positive, Share, checked, path, table
from helpers.widgets import figure_sliders, png

Files, HtmlPath = table("network", "bytes", "correct", "total"), path(".html")
STEPS = tuple(digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5))  # megabytes
STYLE = """body { max-width: 50em; margin: 2em auto; padding: 0 1em; font-family: sans-serif; color: black; background: white }
img { max-width: 100% } th, td { padding: 0.2em 0.8em; text-align: right } table { border-collapse: collapse }"""  # noqa: E501


@checked
def choose(table: Files, budget: Positive, tolerance: Share = 0.01, least: Share = 0.0) -> pd.Series | None:
    """Return the row to ship: of the files that fit, the smallest of those about as good as the best.

    The best that fits may still be too poor for the product. So nothing below ``least`` ships.

    Args:
        table: a row per file.
        budget: what the file may take, in MB, 10^6 bytes.
        tolerance: "about as good" is at most this share of the pictures worse than the best that fits.
        least: the share of pictures that must be right, whatever fits.

    Returns:
        The row, or None where nothing fits, or nothing that fits is good enough.
    """
    right = table["correct"] / table["total"]
    fits = table["bytes"] <= 1e6 * budget
    good = table[fits & (right >= right[fits].max() - tolerance - 1e-12) & (right >= least - 1e-12)]
    return None if good.empty else good.sort_values("bytes").iloc[0]


@checked
def verdict(
    table: Files, budget: Positive, tolerance: Share = 0.01, least: Share = 0.0, beside: str | None = None
) -> str:
    """Say what ``choose`` ships, and how it compares with the first row.

    Args:
        table, budget, tolerance, least: as in ``choose``.
        beside: the file to beat, such as the first network's int8 file: compared with before the first row.
    """
    first, ships = table.iloc[0], choose(table, budget, tolerance, least)
    if beside is not None and beside not in set(table["network"]):
        raise ValueError(
            f"beside must be a network of the table, {', '.join(table['network'])}, got {beside!r}"
        )
    if ships is None:
        return _nothing(table, budget, least)
    if beside is None or beside == first["network"]:
        return f"Within {budget:g} MB ship {ships['network']}: {_compared(ships, first)}."
    other = table[table["network"] == beside].iloc[0]
    told = [f"Beside {row['network']}: {_compared(ships, row)}." for row in (other, first)]
    return f"Within {budget:g} MB ship {ships['network']}. {' '.join(told)}"


@checked
def budget_figure(table: Files, budget: Positive, tolerance: Share = 0.01, least: Share = 0.0) -> Figure:
    """Draw every file's size, and its accuracy with its 95% interval.

    What does not fit ``budget`` (MB) is gray, what fits blue, what ships orange. A dashed line in either
    panel is its limit: the budget, and ``least`` if it is above 0.
    """
    ships = choose(table, budget, tolerance, least)
    name = "nothing" if ships is None else ships["network"]
    colors = [
        GRAY if row.bytes > 1e6 * budget else ORANGE if row.network == name else BLUE
        for row in table.itertuples()
    ]
    figure, (left, right) = panels(
        (9.6, 1.6 + 0.34 * len(table)),
        {"title": f"within {budget:g} MB: ship {name}", "xlabel": "file (MB)", "xscale": "log"},
        {"title": "pictures right, with 95% interval", "xlabel": "accuracy (%)"},
        sharey=True,
    )
    bars(left, table["network"], table["bytes"] / 1e6, colors, " {:.2f}")
    found = [Accuracy(int(row.correct), int(row.total)) for row in table.itertuples()]
    shares = [(float(one), *one.interval) for one in found]
    percent = 100 * pd.DataFrame(shares, table["network"], ["accuracy", "low", "high"])
    accuracy_bars(right, percent, colors, capsize=0)
    left.axvline(budget, color="black", linestyle="--")
    if least > 0:
        right.axvline(100 * least, color="black", linestyle="--")
    left.set_xlim(table["bytes"].min() / 3e6, 4 * table["bytes"].max() / 1e6)
    kinds = {"does not fit": GRAY, "fits": BLUE, "ships": ORANGE}
    key = [Patch(color=color, label=label) for label, color in kinds.items()]
    figure.legend(handles=key, loc="outside lower center", ncols=3)
    return figure


@checked
def budget_slider(
    table: Files, start: Positive = 1.0, tolerance: Share = 0.01, least: Share = 0.0
) -> ipywidgets.Widget:
    """Return the slider of notebook 07: from a budget that nothing fits to one that everything does."""
    smallest, largest = table["bytes"].min() / 1e6, table["bytes"].max() / 1e6
    low = max((step for step in STEPS if step < smallest), default=smallest / 2)
    high = min((step for step in STEPS if step >= largest), default=largest)
    steps = sorted({low, *(step for step in STEPS if low < step < high), high, start})
    slider = ipywidgets.SelectionSlider(
        options=[(f"{step:g} MB", step) for step in steps],
        value=start,
        description="at most",
        layout={"width": "28em"},
    )
    return figure_sliders({"value": slider}, lambda value: budget_figure(table, value, tolerance, least))


@checked
def write(path: HtmlPath, title: str, table: Files, figures: Mapping[str, Figure], verdict: str) -> Path:
    """Write a page that needs nothing beside it: verdict, table, and figures, {caption: figure}.

    Raises:
        OSError: the file cannot be written.
    """
    drawn = {caption: base64.b64encode(png(figure)).decode() for caption, figure in figures.items()}
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{STYLE}</style><h1>{escape(title)}</h1><p><strong>{escape(verdict)}</strong></p>",
        table.to_html(index=False, border=0, float_format="{:,.2f}".format),
        *(
            f'<h2>{escape(caption)}</h2><img alt="{escape(caption)}" src="data:image/png;base64,{code}">'
            for caption, code in drawn.items()
        ),
    ]
    keep(path, "\n".join(parts).encode())
    return path


# -- inside --------------------------------------------------------------------------------------------------


def _compared(ships: pd.Series, other: pd.Series) -> str:
    times = other["bytes"] / ships["bytes"]
    parts = [
        f"{ships['bytes'] / 1e6:.2f} MB instead of {other['bytes'] / 1e6:.2f} "
        f"({max(times, 1 / times):.1f} times {'smaller' if times >= 1 else 'larger'})",
        f"{ships['correct']:,} of {ships['total']:,} pictures right instead of {other['correct']:,}"
        + (f" of {other['total']:,}" if other["total"] != ships["total"] else ""),
    ]
    if "latency_ms" in ships and pd.notna(ships["latency_ms"]) and pd.notna(other["latency_ms"]):
        parts += [f"{ships['latency_ms']:.2f} ms instead of {other['latency_ms']:.2f}"]
    return ", ".join(parts)


def _nothing(table: pd.DataFrame, budget: float, least: float) -> str:
    fits = table[table["bytes"] <= 1e6 * budget]
    if fits.empty:
        row = table.sort_values("bytes").iloc[0]
        size = f"{row['bytes'] / 1e6:.2f} MB"
        return f"Nothing fits into {budget:g} MB: the smallest, {row['network']}, takes {size}."
    best = fits.iloc[(fits["correct"] / fits["total"]).to_numpy().argmax()]
    return (
        f"Nothing within {budget:g} MB is good enough: the best that fits, {best['network']}, has "
        f"{best['correct']:,} of {best['total']:,} pictures right, and {100 * least:g}% must be."
    )
