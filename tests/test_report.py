"""What is shipped, worked out by hand; the page read back; the slider at its ends."""

import base64
import io
import re

import matplotlib as mpl
import pandas as pd
import pytest
from PIL import Image

mpl.use("Agg")

from helpers import report
from helpers.evaluation import Accuracy

FILES = pd.DataFrame(
    {
        "network": ["whole", "rounded", "half", "student"],
        "bytes": [40_000_000, 10_000_000, 4_000_000, 400_000],
        "correct": [195, 196, 194, 170],
        "total": [200] * 4,
        "latency_ms": [8.0, 3.0, 4.0, 0.5],
    },
    index=[0, 0, 1, 7],  # as tables that were put together come
)


@pytest.mark.parametrize(
    ("budget", "tolerance", "ships"),
    [
        (100, 0, "rounded"),  # the most accurate
        (100, 0.01, "half"),  # two pictures of two hundred are as good
        (100, 0.009, "rounded"),  # ... and are not
        (10, 0, "rounded"),  # to the byte
        (9.99, 0, "half"),
        (3.9, 0.01, "student"),  # as good as the best that fits, not as the best
        (100, 1, "student"),  # anything is as good: the smallest
        (0.39, 0.01, None),
    ],
)
def test_the_smallest_of_those_as_good_as_the_best_that_fits_is_shipped(budget, tolerance, ships):
    found = report.choose(FILES, budget, tolerance)
    assert (None if found is None else found["network"]) == ships


@pytest.mark.parametrize(
    ("budget", "least", "ships"),
    [
        (100, 0.97, "half"),  # to the picture: 194 of 200
        (100, 0.975, "rounded"),  # half is within the tolerance, but below the floor
        (3.9, 0.85, "student"),
        (3.9, 0.851, None),  # it fits, and is not good enough
        (100, 0.99, None),
        (0.39, 0.5, None),
    ],
)
def test_nothing_below_the_floor_is_shipped(budget, least, ships):
    found = report.choose(FILES, budget, least=least)
    assert (None if found is None else found["network"]) == ships


def test_the_verdict_says_whether_nothing_fits_or_nothing_is_good_enough():
    told = report.verdict(FILES, 5, least=0.985)
    assert told == (
        "Nothing within 5 MB is good enough: the best that fits, half, has 194 of 200 pictures right, "
        "and 98.5% must be."
    )
    assert report.verdict(FILES, 0.1, least=0.9) == report.verdict(FILES, 0.1)


def test_the_verdict_compares_with_the_file_to_beat_first():
    told = report.verdict(FILES, 5, beside="rounded")
    assert told == (
        "Within 5 MB ship half. Beside rounded: 4.00 MB instead of 10.00 (2.5 times smaller), "
        "194 of 200 pictures right instead of 196, 4.00 ms instead of 3.00. "
        "Beside whole: 4.00 MB instead of 40.00 (10.0 times smaller), "
        "194 of 200 pictures right instead of 195, 4.00 ms instead of 8.00."
    )
    assert report.verdict(FILES, 5, beside="whole") == report.verdict(FILES, 5)
    with pytest.raises(ValueError, match="beside must be a network of the table"):
        report.verdict(FILES, 5, beside="huge")


def test_the_verdict_says_what_it_costs():
    told = report.verdict(FILES, 5)
    assert told == (
        "Within 5 MB ship half: 4.00 MB instead of 40.00 (10.0 times smaller), "
        "194 of 200 pictures right instead of 195, 4.00 ms instead of 8.00."
    )
    assert report.verdict(FILES.drop(columns="latency_ms"), 5).endswith("right instead of 195.")
    nothing = report.verdict(FILES, 0.1)
    assert nothing == "Nothing fits into 0.1 MB: the smallest, student, takes 0.40 MB."


@pytest.mark.parametrize(("budget", "colors"), [(0.1, "gggg"), (5, "ggob"), (100, "bbob")])
def test_the_figure_marks_what_fits_and_what_ships(budget, colors):
    sizes, right = report.budget_figure(FILES, budget).axes
    assert [bar.get_width() for bar in sizes.patches] == [40, 10, 4, 0.4]
    assert [bar.get_width() for bar in right.patches] == [97.5, 98, 97, 85]
    known = {report.GRAY: "g", report.ORANGE: "o", report.BLUE: "b"}
    drawn = [mpl.colors.to_rgb(bar.get_facecolor()) for bar in sizes.patches]
    names = {tuple(mpl.colors.to_rgb(color)): letter for color, letter in known.items()}
    assert "".join(names[color] for color in drawn) == colors
    assert sizes.get_title().endswith("nothing" if budget == 0.1 else "half")
    ((low, _), (high, _)) = right.collections[0].get_segments()[0]
    assert (low, high) == pytest.approx([100 * end for end in Accuracy(195, 200).interval])
    (key,) = sizes.figure.legends
    assert [text.get_text() for text in key.get_texts()] == ["does not fit", "fits", "ships"]


def test_the_figure_draws_the_floor_and_ships_nothing_below_it():
    sizes, right = report.budget_figure(FILES, 1, least=0.9).axes
    assert sizes.get_title() == "within 1 MB: ship nothing"
    drawn = {mpl.colors.to_rgb(bar.get_facecolor()) for bar in right.patches}
    assert drawn == {mpl.colors.to_rgb(color) for color in (report.GRAY, report.BLUE)}
    assert [list(line.get_xdata()) for line in right.lines] == [[90, 90]]
    assert not report.budget_figure(FILES, 1).axes[1].lines


def test_the_slider_asks_for_the_floor():
    with_floor, without = (report.budget_slider(FILES, start=1, least=least) for least in (0.9, 0.0))
    assert bytes(with_floor.children[1].value) != bytes(without.children[1].value)


def test_the_slider_goes_from_nothing_fits_to_everything_does():
    box = report.budget_slider(FILES, start=3)
    slider, picture, words = box.children
    steps = [value for _, value in slider.options]
    assert (steps[0], steps[-1], slider.value) == (0.2, 50, 3)
    assert steps == sorted(steps)
    before = bytes(picture.value)
    slider.value = 0.2
    assert bytes(picture.value) != before
    assert words.value == "figure: at most 0.2 MB"
    slider.value = 3
    assert bytes(picture.value) == before


@pytest.mark.parametrize("size", [10, 10**11])
def test_the_slider_of_files_smaller_or_larger_than_its_steps(size):
    steps = [value for _, value in report.budget_slider(FILES.assign(bytes=size), 1.0).children[0].options]
    assert steps[0] < size / 1e6 <= steps[-1]


@pytest.mark.parametrize("function", [report.choose, report.verdict, report.budget_figure])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((FILES, 0), "budget"),
        ((FILES[["network"]], 1), "table"),
        ((FILES, 1, 2), "tolerance"),
        ((FILES, 1, 0, 90), "least"),
    ],
)
def test_wrong_arguments_are_named(function, arguments, named):
    with pytest.raises(ValueError, match=named):
        function(*arguments)


def test_the_page_holds_verdict_table_and_figures_and_needs_nothing_beside_it(tmp_path):
    figure = report.budget_figure(FILES, 5)
    file = report.write(
        tmp_path / "new" / "page.html", "A <b> & c", FILES, {"Sizes & so on": figure}, "Ship <half>."
    )
    page = file.read_text("utf-8")
    assert "<title>A &lt;b&gt; &amp; c</title>" in page
    assert "<strong>Ship &lt;half&gt;.</strong>" in page
    cells = re.findall(r"<td>([^<]*)</td>", page)
    assert cells[:5] == ["whole", "40000000", "195", "200", "8.00"]
    assert len(cells) == FILES.size
    (code,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert Image.open(io.BytesIO(base64.b64decode(code))).width > 500
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    with pytest.raises(ValueError, match=r"path must end in \.html"):
        report.write(tmp_path / "page.txt", "t", FILES, {}, "v")


def test_a_larger_file_is_called_larger_and_what_was_not_timed_is_left_out():
    files = pd.DataFrame(
        {"network": ["a", "b"], "bytes": [1_000_000, 2_000_000], "correct": [100, 90], "total": [200, 100]}
    )
    words = report.verdict(files.assign(latency_ms=[3.0, float("nan")]), 5.0)
    assert (
        "2.00 MB instead of 1.00 (2.0 times larger), 90 of 100 pictures right instead of 100 of 200" in words
    )
    assert "nan" not in words
