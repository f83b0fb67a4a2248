"""README's section of results, and the page of every network, written from the tables alone."""

from pathlib import Path

import pandas as pd

from helpers.benchmark.recipes import NETWORKS
from helpers.benchmark.results import PUBLISHED, accuracy, compared, latest, read
from helpers.data import HOME
from helpers.files import keep
from helpers.types import AnyPath, checked

MARKS = ("<!-- results: written by helpers.benchmark.page from data/results -->", "<!-- end of results -->")
BEGINNINGS = {  # what other networks are made from
    "teacher": "**Teacher** of the lessons, VGG-19",
    "baseline": "**VGG-19** by Muon",
    "resnet50_base": "**ResNet-50** by Muon",
}
NETWORKS_PAGE = """# Every network and every file of it

Written by `helpers.benchmark.page` from the tables beside it, as [data/README.md](../README.md) says.

- *epochs* are of the last training only. With a teacher's recorded answers an epoch is all pictures and
  their mirror images, 90,000; of *..._alone*, on labels, 45,000.
- *points*, *paired p* and *times* compare with the network that it was made from or taught by. *spread* is
  the standard deviation over seeds; *paired p* is the first seed's.
- *times smaller* is of zipped files for int8 and for networks with zeros, against the float32 file, not
  zipped. *torch* is the smallest of our own storages; weights are kept in half precision, which
  alone gives about half of a sparse file's factor.
- *times faster*: each file in its own runtime, one picture on one thread (*torch* against PyTorch, the
  others against ONNX Runtime). *coreml* is float16, its answers computed with PyTorch.
"""
COLUMNS = {  # of README's tables: column, and how its numbers are written
    "times smaller": "{:.1f}",
    "points": "{:+.2f}",
    "paired p": "{:.2g}",
    "times faster": "{:.1f}",
}


def series_table(folder: Path = PUBLISHED) -> pd.DataFrame:
    """Return README's table: the labelled recipes that have rows, as the file to be shipped and in int8.

    Returns:
        model, accuracy, times smaller, points, paired p, times faster, usually claimed.
    """
    rows, table = [], compared(folder=folder)
    for name, recipe in NETWORKS.items():
        for form in recipe.shown if recipe.label and len(table) else ():
            for row in table[(table["network"] == name) & (table["format"] == form)].to_dict("records"):
                model = recipe.label + (", int8" if form == "onnx int8" else "")
                claimed = "{:g} x, -{:g} points, {:g} x".format(*recipe.claimed) if recipe.claimed else ""
                rows.append(row | {"model": model, "usually claimed": claimed})
    return pd.DataFrame(rows, columns=["model", "accuracy", *COLUMNS, "usually claimed"])


def markdown(folder: Path = PUBLISHED) -> str:
    """Return README's results section, made from the tables alone."""
    rows, speed = latest(folder), read("speed", folder)
    begun = rows[rows["network"].isin(BEGINNINGS) & (rows["format"] == "torch")]
    lines = [
        f"- {BEGINNINGS[row['network']]}, last trained for {row['epochs']} epochs on {row['device']}: "
        f"{accuracy(row)} of the test split."
        for _, row in begun.iterrows()
    ]
    lines += [
        f"- **The loop** trains VGG-19 at {row['ours']:.1f} pictures/s on {row['device']}, "
        f"{row['ratio']:.2f} times as fast as {row['library']} ({row['theirs']:.1f})."
        for _, row in speed[speed["what"] == "training VGG-19"].tail(1).iterrows()
    ]
    return "\n".join([*lines, "", _page(series_table(folder))])


def _page(table: pd.DataFrame) -> str:
    forms = {column: form for column, form in {**COLUMNS, "spread": "{:.2f}"}.items() if column in table}
    shown = {column: table[column].map(form.format, na_action="ignore") for column, form in forms.items()}
    return table.assign(**shown).astype(object).fillna("").to_markdown(index=False, disable_numparse=True)


@checked
def write_readme(path: AnyPath = HOME / "README.md") -> None:
    """Put ``markdown()`` between the README's two results marks."""
    page = path.read_text("utf-8")
    if page.count(MARKS[0]) != 1 or MARKS[1] not in page.partition(MARKS[0])[2]:
        raise ValueError(f"path must be a page with the two results marks, got {str(path)!r}")
    before, rest = page.split(MARKS[0])
    keep(path, f"{before}{MARKS[0]}\n{markdown()}\n{MARKS[1]}{rest.split(MARKS[1])[1]}".encode())


@checked
def write_networks(path: AnyPath = PUBLISHED / "README.md") -> None:
    """Write the page of every network and every file of it."""
    every = compared()
    keep(path, f"{NETWORKS_PAGE}\n{_page(every[~every['network'].str.startswith('curve_')])}\n".encode())
