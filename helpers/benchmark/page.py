"""README's section of results, written from the tables alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from helpers.benchmark.recipes import NETWORKS
from helpers.benchmark.results import PUBLISHED, accuracy, compared, latest, read
from helpers.data import HOME
from helpers.files import keep
from helpers.types import AnyPath, checked

IMAGENET_VGG19_BYTES = (
    4 * 143_667_240
)  # torchvision's VGG-19, 4096-wide classifier: what most claims are made against
MARKS = ("<!-- results: written by helpers.benchmark.page from data/results -->", "<!-- end of results -->")
BEGINNINGS = {  # what other networks are made from
    "teacher": "**Teacher** of the lessons, VGG-19",
    "baseline": "**VGG-19** by Muon",
    "resnet50_base": "**ResNet-50** by Muon",
}
COLUMNS = {  # of README's tables: column, and how its numbers are written
    "times smaller": "{:.1f}",
    "against 575 MB": "{:.0f}",
    "points": "{:+.2f}",
    "paired p": "{:.2g}",
    "times faster": "{:.1f}",
}


def series_table(folder: Path = PUBLISHED) -> pd.DataFrame:
    """Return README's table: the labelled recipes that have rows, as the file to be shipped and in int8.

    Returns:
        model, accuracy, times smaller, against 575 MB (VGG-19 for ImageNet), points, paired p, times faster,
        usually claimed.
    """
    rows, table = [], compared(folder=folder)
    for name, recipe in NETWORKS.items():
        for form in recipe.shown if recipe.label and len(table) else ():
            for row in table[(table["network"] == name) & (table["format"] == form)].to_dict("records"):
                row["model"] = recipe.label + (", int8" if form == "onnx int8" else "")
                row["against 575 MB"] = row["times smaller"] * IMAGENET_VGG19_BYTES / (4 * 20_040_522)
                row["usually claimed"] = (
                    "{:g} x, -{:g} points, {:g} x".format(*recipe.claimed) if recipe.claimed else ""
                )
                rows.append(row)
    return pd.DataFrame(rows, columns=["model", "accuracy", *COLUMNS, "usually claimed"])


def markdown(folder: Path = PUBLISHED) -> str:
    """Return README's results section, made from the tables alone."""
    rows, speed = latest(folder), read("speed", folder)
    lines = []
    for _, row in rows[rows["network"].isin(BEGINNINGS) & (rows["format"] == "torch")].iterrows():
        who = BEGINNINGS[row["network"]]
        lines.append(
            f"- {who}, last trained for {row['epochs']} epochs on {row['device']}: "
            f"{accuracy(row)} of the test split."
        )
    for _, row in speed[speed["what"] == "training VGG-19"].tail(1).iterrows():
        lines.append(
            f"- **The loop** trains VGG-19 at {row['ours']:.1f} pictures/s on {row['device']}, "
            f"{row['ratio']:.2f} times as fast as {row['library']} ({row['theirs']:.1f})."
        )
    every = compared(folder=folder)
    every = every[~every["network"].str.startswith("curve_")] if len(every) else every
    details = "<details><summary>Every network and every file of it</summary>"
    return "\n".join(
        [*lines, "", _page(series_table(folder)), "", details, "", _page(every), "", "</details>"]
    )


def _page(table: pd.DataFrame) -> str:
    shown = table.copy().astype(object)
    for column, form in {**COLUMNS, "spread": "{:.2f}"}.items():
        if column in shown:
            shown[column] = ["" if pd.isna(value) else form.format(value) for value in table[column]]
    return shown.fillna("").to_markdown(index=False, disable_numparse=True)


@checked
def write_readme(path: AnyPath = HOME / "README.md") -> None:
    """Put ``markdown()`` between the README's two results marks."""
    page = path.read_text("utf-8")
    if page.count(MARKS[0]) != 1 or MARKS[1] not in page.partition(MARKS[0])[2]:
        raise ValueError(f"path must be a page with the two results marks, got {str(path)!r}")
    before, rest = page.split(MARKS[0])
    keep(path, f"{before}{MARKS[0]}\n{markdown()}\n{MARKS[1]}{rest.split(MARKS[1])[1]}".encode())
