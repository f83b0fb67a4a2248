"""Every figure is drawn from hand-made numbers and asked what it shows; the sliders' functions at their ends."""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

mpl.use("Agg")

from helpers import business, models, plotting, profiling, widgets
from helpers.diagrams import decisions
from helpers.evaluation import Paired

CLASSES = ("cat", "dog", "ship")


def test_where_it_goes_shows_shares_of_the_whole():
    table = profiling.profile(models.build("vgg11", width=0.1), latency=True, repeats=3)
    left, right = plotting.where_it_goes(table).axes
    bytes_shown = [bar.get_width() for bar in left.patches]
    assert len(bytes_shown) == len(right.patches) == 9  # eight convolutions and the classifier
    assert max(bytes_shown) == pytest.approx(100 * table["bytes"].max() / table["bytes"].sum())
    assert 90 < sum(bytes_shown) <= 100
    assert [label.get_text() for label in left.get_yticklabels()][-1] == "classifier"


def test_soft_targets_marks_the_true_class():
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    figure = plotting.soft_targets(
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8), probabilities, CLASSES, torch.tensor([0, 2])
    )
    bars = figure.axes[2].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([0.7, 0.2, 0.1])
    assert bars[0].get_facecolor()[:3] == pytest.approx(plotting.ORANGE)
    assert figure.axes[3].patches[2].get_facecolor()[:3] == pytest.approx(plotting.ORANGE)


def test_curves_bars_and_maps_show_their_numbers():
    history = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "validation_accuracy": [0.5, 0.75]})
    loss, accuracy = plotting.learning_curves({"alone": history, "taught": history}, teacher=0.9).axes
    assert list(accuracy.lines[0].get_ydata()) == [50, 75]
    assert list(accuracy.lines[2].get_ydata()) == [90, 90]
    assert len(loss.lines) == 2
    figure = plotting.heat_map(pd.DataFrame([[1.0, 2.0], [3.0, 4.0]]), "title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.0", "2.0", "3.0", "4.0"]
    assert len(plotting.pictures(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), "abcde", columns=4).axes) == 8


@pytest.mark.parametrize("temperature", [1, 4, 20])
def test_temperature_figure_at_its_lowest_default_and_highest(temperature):
    logits = torch.tensor([3.0, 1.0, -1.0])
    bars, entropy, _ = widgets.temperature_figure(logits, temperature, CLASSES, 0).axes
    shown = [bar.get_width() for bar in bars.patches]
    assert shown == pytest.approx(torch.softmax(logits / temperature, 0).tolist())
    assert entropy.lines[1].get_xdata()[0] == temperature


@pytest.mark.parametrize("temperature", [0.5, 21, float("nan")])
def test_temperature_outside_the_slider_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        widgets.temperature_figure(torch.zeros(3), temperature, CLASSES, 0)


def test_moving_the_slider_changes_the_picture():
    box = widgets.temperature_slider(torch.tensor([3.0, 1.0, -1.0]), CLASSES, 0)
    slider, picture, _ = box.children
    assert (slider.min, slider.value, slider.max) == (1, 4, 20)
    before = bytes(picture.value)
    slider.value = 20
    assert bytes(picture.value) != before
    assert bytes(picture.value).startswith(b"\x89PNG")
    slider.value = 4
    assert bytes(picture.value) == before


SWEEP = pd.DataFrame(
    {
        "sparsity": [0.0, 0.5, 0.9],
        "threshold": [0.0, 0.1, 0.3],
        "accuracy": [0.9, 0.8, 0.3],
        "recalibrated": [0.9, 0.85, 0.7],
        "bytes": [4_000_000, 2_200_000, 600_000],
    }
)


@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, 8), (0.5, 6), (0.9, 3)])
def test_sparsity_figure_at_its_lowest_middle_and_highest(sparsity, kept):
    weight = torch.tensor([[0.05, -0.05, 0.2, -0.25], [0.11, 0.31, -0.4, 0.9]])
    left, middle, right, _ = widgets.sparsity_figure(weight, SWEEP, sparsity).axes
    assert int(middle.images[0].get_array().sum()) == kept
    assert (
        sum(bar.get_height() for bar in left.patches[:-1]) >= 7
    )  # every weight but the clipped largest, then the cut
    assert marked(right) == pytest.approx(100 * sparsity)
    shown = SWEEP.loc[SWEEP["sparsity"] == sparsity, "recalibrated"].item()
    fallen = SWEEP.loc[SWEEP["sparsity"] == sparsity, "accuracy"].item()
    assert right.get_title() == f"{sparsity:.0%} zeros: {shown:.1%} ({fallen:.1%})"
    assert list(right.lines[0].get_ydata()) == [90, 85, 70]  # solid
    assert (right.lines[1].get_linestyle(), list(right.lines[1].get_ydata())) == (":", [90, 80, 30])
    assert right.get_ylim() == (0, 100)


def marked(axes):
    """Where the line stands that marks the chosen row."""
    return next(line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1])


RANKED = pd.DataFrame(
    {
        "energy": [0.5, 0.9, 1.0], "accuracy": [0.2, 0.8, 0.9], "recalibrated": [0.4, 0.8, 0.9], "parameters": [1e6, 2e6, 4e6], "macs": [1e7, 2e7, 4e7],
        "ranks": [{"a": 1, "b": 2}, {"a": 3, "b": 0}, {"a": 0, "b": 0}],
    }
)  # fmt: skip


@pytest.mark.parametrize(("energy", "widths"), [(0.5, [1, 2]), (0.9, [3, 8]), (1.0, [4, 8])])
def test_energy_figure_at_its_lowest_middle_and_highest(energy, widths):
    left, middle, _ = widgets.energy_figure(RANKED, {"a": 4, "b": 8}, {"a": 2, "b": 5}, energy).axes[:3]
    assert [bar.get_width() for bar in left.patches] == [4, 8, *widths]
    assert marked(middle) == pytest.approx(100 * energy)


@pytest.mark.parametrize(
    "make",
    [
        lambda v: widgets.sparsity_figure(torch.ones(2, 2), SWEEP, v),
        lambda v: widgets.energy_figure(RANKED, {}, {}, v),
    ],
)
@pytest.mark.parametrize("value", [0.123, -1, float("nan")])
def test_values_the_sliders_do_not_have_are_refused(make, value):
    with pytest.raises(ValueError, match=r"sparsity|energy"):
        make(value)


def test_the_sliders_move_through_the_rows():
    box = widgets.sparsity_slider(torch.randn(8, 8), SWEEP)
    slider, picture, _ = box.children
    assert [value for _, value in slider.options] == [0.0, 0.5, 0.9]
    before = bytes(picture.value)
    slider.value = 0.0
    assert bytes(picture.value) != before
    box = widgets.energy_slider(RANKED, {"a": 4, "b": 8}, {"a": 2, "b": 5})
    slider, picture, _ = box.children
    before = bytes(picture.value)
    slider.value = 1.0
    assert bytes(picture.value) != before


def test_pruning_and_low_rank_figures_show_their_numbers():
    lines = plotting.schedules({"a": [0.0, 0.5, 0.9], "b": [0.9] * 3}).axes[0].lines
    assert list(lines[0].get_xdata()) == [0, 50, 100]
    assert list(lines[0].get_ydata()) == [0, 50, 90]
    scan = pd.DataFrame(
        {"layer": ["a", "a", "b", "b"], "ratio": [0, 0.5] * 2, "correct": [9, 5, 9, 8], "total": 10}
    )
    figure = plotting.sensitivity(scan.assign(recalibrated_correct=[9, 7, 9, 9]))
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["40", "10"], ["20", "0"]]
    axes = plotting.trade_off({"a": ([2, 4], [90, 80])}, "times smaller", "accuracy", level=91).axes[0]
    assert axes.get_xscale() == "log"
    assert list(axes.lines[0].get_ydata()) == [90, 80]


BITS = pd.DataFrame(
    {
        "bits": [2, 4, 8],
        "accuracy": [0.1, 0.8, 0.9],
        "recalibrated": [0.2, 0.8, 0.9],
        "bytes": [1e6, 2e6, 4e6],
    }
)


@pytest.mark.parametrize(("bits", "levels"), [(2, 3), (4, 8), (8, 8)])
def test_bits_figure_at_its_lowest_default_and_highest(bits, levels):
    weight = torch.tensor([-1.0, -0.5, -0.2, 0.0, 0.1, 0.3, 0.6, 1.0])
    left, right, _ = widgets.bits_figure(weight, BITS, bits).axes
    assert len(set(left.lines[1].get_ydata())) == levels
    assert marked(right) == bits
    with pytest.raises(ValueError, match="bits must be one of 2, 4, 8"):
        widgets.bits_figure(weight, BITS, 3)
    slider, picture, words = widgets.bits_slider(weight, BITS).children
    before = bytes_of(picture)
    slider.value = bits if bits != 4 else 2
    assert bytes_of(picture) != before
    assert words.value == f"figure: bits {slider.value}"  # for whoever hears the page


def bytes_of(picture):
    return bytes(picture.value)


def test_the_front_joins_what_nothing_smaller_beats():
    table = pd.DataFrame(
        {"name": list("abcd"), "mb": [1.0, 2.0, 3.0, 4.0], "accuracy": [80.0, 90.0, 85.0, 95.0]}
    )
    line, points = plotting.front(table, "mb", "accuracy", "name", "MB", "%").axes[0].lines
    assert list(line.get_xdata()) == [1, 2, 4]
    assert len(points.get_xdata()) == 4


LARGE = business.Network("large", latency_ms=36.0, file_mb=80.0, accuracy=0.93, memory_mb=85.0)
SMALL = business.Network("small", latency_ms=3.6, file_mb=2.0, accuracy=0.92, memory_mb=4.0)
SERVICE = business.Assumptions(
    inferences_per_day=1_000_000, price_per_cpu_hour=0.1, utilization=0.5, downloads_per_year=1_000, price_per_gb=0.5, engineer_days=5,
    price_per_engineer_day=100,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "compute", "downloads", "spent"),
    [
        ("inferences_per_day", 1_000, 0.73, 40, 500 + 3 * 1.073),
        ("inferences_per_day", 1_000_000, 730, 40, 500 + 3 * 74),
        ("inferences_per_day", 10**9, 730_000, 40, 500 + 3 * 73_001),
        ("price_per_cpu_hour", 0.01, 73, 40, 500 + 3 * 8.3),
        ("price_per_cpu_hour", 1.0, 7_300, 40, 500 + 3 * 731),
        ("utilization", 0.05, 7_300, 40, 500 + 3 * 731),
        ("utilization", 1.0, 365, 40, 500 + 3 * 37.5),
        ("price_per_gb", 0.0, 730, 0, 500 + 3 * 73),
        ("price_per_gb", 0.5, 730, 40, 500 + 3 * 74),
        ("engineer_days", 0, 730, 40, 3 * 74),
        ("engineer_days", 100, 730, 40, 10_000 + 3 * 74),
    ],
)
def test_cost_figure_at_its_lowest_default_and_highest(name, value, compute, downloads, spent):
    assert value in (
        *widgets.COST_STEPS[name][1][:: len(widgets.COST_STEPS[name][1]) - 1],
        getattr(SERVICE, name),
    )
    left, right = widgets.cost_figure(LARGE, SMALL, SERVICE, **{name: value}).axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx(
        [compute, compute / 10, downloads, downloads / 40, 0, 0]
    )
    assert left.patches[2].get_x() == pytest.approx(compute)  # stacked behind
    assert right.lines[0].get_ydata()[[0, -1]] == pytest.approx([0, 3 * (compute + downloads)])
    assert right.lines[1].get_ydata()[[0, -1]] == pytest.approx(
        [value * 100 if name == "engineer_days" else 500, spent]
    )


def test_cost_figure_says_whether_it_pays():
    def title(**chosen):
        return widgets.cost_figure(LARGE, SMALL, SERVICE, **({"years": 1} | chosen)).get_suptitle()

    assert (
        "Per million inferences, downloads included: large 2.11, small 0.20 dollars." in title()
    )  # 770 and 74 over 365 million
    assert (
        "Over 1 year, small: net +196 dollars, return on the days spent once +39%, paid back in 262 days."
        in title()
    )
    assert "net -9,304 dollars, return on the days spent once -93%, not paid back." in title(
        engineer_days=100
    )
    assert "Over 10 years, small: net +6,460 dollars, return on the days spent once +1,292%" in title(
        years=10
    )
    assert "return on the days spent once none (nothing is spent), paid back in 0 days" in title(
        engineer_days=0
    )
    assert "large 0.00, small 0.00" in title(inferences_per_day=0)
    with pytest.raises(ValueError, match="price_per_gb"):
        title(price_per_gb=-1)
    with pytest.raises(TypeError, match="weather"):
        title(weather=1)
    with pytest.raises(ValueError, match="years"):
        title(years=0)


def test_cost_figure_with_another_way_out():
    between = business.Network("between", latency_ms=18.0, file_mb=40.0, accuracy=0.93, memory_mb=40.0)
    figure = widgets.cost_figure(LARGE, SMALL, SERVICE, 1, (between, 2))
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["large", "between", "small"]
    assert left.get_xlabel() == "dollars a year"
    assert right.get_ylabel() == "dollars spent"
    assert [line.get_ydata()[-1] for line in right.lines] == pytest.approx([770, 200 + 385, 500 + 74])
    assert (
        "Over 1 year, between: net +185 dollars, return on the days spent once +92%" in figure.get_suptitle()
    )  # 385 - 200
    for bad in (between, (between,), ("between", 2)):
        with pytest.raises((TypeError, ValueError), match="other must"):
            widgets.cost_figure(LARGE, SMALL, SERVICE, other=bad)
    with pytest.raises(ValueError, match="other must"):
        widgets.cost_figure(LARGE, SMALL, SERVICE, other=(between, -1))


def test_each_cost_slider_moves_the_picture_and_keeps_the_others():
    service = replace(SERVICE, releases_per_year=2, days_per_release=1)
    box = widgets.cost_sliders(LARGE, SMALL, service)
    *sliders, picture, _ = box.children
    assert [slider.description for slider in sliders] == [label for label, _ in widgets.COST_STEPS.values()]
    assert [slider.value for slider in sliders] == [1_000_000, 0.1, 0.5, 0.5, 5, 1, 2, 3]
    start = bytes_of(picture)
    for slider in sliders:
        default = slider.value
        slider.value = slider.options[0][1]
        assert bytes_of(picture) != start
        slider.value = default
        assert bytes_of(picture) == start
    sliders[0].value, sliders[4].value, sliders[7].value = 1_000, 0, 10
    assert bytes_of(picture) == widgets.png(
        widgets.cost_figure(LARGE, SMALL, service, 10, inferences_per_day=1_000, engineer_days=0)
    )


def test_tornado_and_budgets_show_their_numbers():
    ranges = {"price_per_gb": (0.25, 1.0), "inferences_per_day": (500_000, 2_000_000)}
    table = business.tornado(lambda one: business.cost_per_year(LARGE, one)["total"], SERVICE, ranges)
    axes = plotting.tornado({"a year": (table, 770.0)}, "dollars").axes[0]
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == pytest.approx(
        [405, 750, 1_500, 810]
    )  # the low ends, then the high ones; the volume on top
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["inferences per day\n500,000 to 2,000,000", "price per GB\n0.25 to 1"]
    table = pd.DataFrame(
        [
            (use, budget, name, share)
            for use in "xy"
            for budget in ("memory_mb", "b")
            for name, share in (("large", 4.0), ("small", 0.5))
        ],
        columns=["use", "budget", "network", "share"],
    )
    axes = plotting.budget_shares(table).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "x: memory (MB)",
        "x: b",
        "y: memory (MB)",
        "y: b",
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["large", "small"]
    assert [text.get_text() for text in axes.texts] == ["4.00", "0.50"] * 4
    assert axes.collections[0].get_array().flatten().tolist() == [True, False] * 4  # too large, fits


FRONT = pd.DataFrame(  # two points above each other, two close beside each other, and most on the front
    {
        "name": [
            "combined, int8",
            "lossless, int8",
            "channels, int8",
            "combined",
            "rank, int8",
            "lossless",
            "teacher",
        ],
        "mb": [0.7, 1.6, 1.99, 2.0, 2.1, 3.6, 63.0],
        "accuracy": [91.54, 92.17, 91.32, 91.56, 91.97, 92.18, 92.28],
    }
).assign(low=lambda table: table["accuracy"] - 0.6, high=lambda table: table["accuracy"] + 0.5)


def test_the_front_shows_intervals_where_there_are_any():
    figure = plotting.front(FRONT, "mb", "accuracy", "name", "MB", "%", "low", "high")
    bars = figure.axes[0].collections[0].get_segments()
    assert [tuple(bar.ravel()) for bar in bars] == list(
        FRONT[["mb", "low", "mb", "high"]].itertuples(index=False, name=None)
    )
    assert len(plotting.front(FRONT, "mb", "accuracy", "name", "MB", "%").axes[0].collections) == 0
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Pareto front: beaten by none", "95% interval"]


@pytest.mark.parametrize("intervals", [(), ("low", "high")])
def test_names_beside_the_front_touch_neither_it_nor_points_nor_each_other(intervals):
    figure = plotting.front(FRONT, "mb", "accuracy", "name", "MB", "%", *intervals)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    line, points = axes.lines
    boxes = [mpl.text.Text.get_window_extent(text) for text in axes.texts]  # without their leaders
    rows = list(FRONT.itertuples())
    beaten = [any(other.mb < one.mb and other.accuracy > one.accuracy for other in rows) for one in rows]
    first = [named[-1] for named in sorted(zip(beaten, -FRONT["accuracy"], FRONT["name"], strict=True))]
    assert [text.get_text() for text in axes.texts] == first
    assert {text.get_fontsize() for text in axes.texts} == {9}
    corners = list(zip(line.get_xdata().repeat(2)[1:], line.get_ydata().repeat(2)[:-1], strict=True))
    steps = axes.transData.transform_path(mpl.path.Path(corners))
    dots = axes.transData.transform(points.get_xydata())
    for number, box in enumerate(boxes):
        assert not steps.intersects_bbox(box, filled=False)
        assert not any(box.contains(*dot) for dot in dots)
        assert not box.count_overlaps(boxes[:number])
        assert axes.bbox.count_contains(box.corners()) == 4


def test_differences_are_drawn_with_the_interval_of_their_pairs():
    pairs = {"better": Paired(299, 100, 10_000), "worse": Paired(0, 99, 10_000)}
    figure = plotting.differences(pairs, "points")
    (axes,) = figure.axes
    dots = [line for container in axes.containers for line in container.lines[:1]]
    assert [tuple(float(v[0]) for v in dot.get_data()) for dot in dots] == [(1.99, 0.0), (-0.99, 1.0)]
    ends = [container.lines[2][0].get_segments()[0][:, 0] for container in axes.containers]
    np.testing.assert_allclose(
        ends, [[1.99 - 0.392, 1.99 + 0.392], [-0.99 - 0.196, -0.99 + 0.196]]
    )  # 1.96 times 20, 10
    assert [label.get_text() for label in axes.get_yticklabels()] == ["better", "worse"]
    assert [text.get_text() for text in axes.texts] == ["+1.99", "-0.99"]


def test_speed_ups_stand_side_by_side_for_each_size():
    table = pd.DataFrame({"32 pixels": [4.0, 14.0], "224 pixels": [3.0, 10.0]}, index=["int8", "small"])
    axes = decisions.speedups(table).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [4, 14, 3, 10]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["int8", "small"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["32 pixels", "224 pixels"]


def test_the_waterfall_shows_what_each_step_takes_away():
    table = pd.DataFrame(
        {"step": ["whole", "half", "same"], "bytes": [8e6, 4e6, 4e6], "right": [9_000, 8_990, 8_995]}
    )
    axes = plotting.waterfall(table).axes[0]
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [
        (8_000, 0),
        (4_000, 4_000),
        (4_000, 0),
    ]
    assert list(axes.lines[0].get_xdata()) == [8_000, 4_000, 4_000]
    assert [text.get_text() for text in axes.texts] == [
        "8,000 kB, 9,000 right",
        "4,000 kB, 8,990 right",
        "4,000 kB, 8,995 right",
    ]


def test_formats_are_shown_in_three_panels_and_what_was_not_measured_says_so():
    nan = float("nan")
    rows = [
        ("teacher", "ONNX", 80e6, 11, 10, 13, 200),
        ("teacher", "Core ML", 40e6, nan, nan, nan, 200),
        ("teacher", ".mar", 47e6, nan, nan, nan, nan),
    ]
    rows += [
        ("combined", "ONNX", 9e6, 1.5, 1, 2, 199),
        ("combined", "Core ML", 4e6, nan, nan, nan, 198),
        ("combined", ".mar", 1e6, nan, nan, nan, nan),
    ]
    names = ["network", "format", "bytes", "latency_ms", "latency_low_ms", "latency_high_ms", "agreeing"]
    figure = plotting.formats(pd.DataFrame(rows, columns=names).assign(total=200))
    size, time, same = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["teacher", "combined"]
    assert [label.get_text() for label in size.get_yticklabels()] == ["ONNX", "Core ML", ".mar"]
    assert [list(line.get_xdata()) for line in size.lines] == [[80, 40, 47], [9, 4, 1]]
    assert [list(line.get_xdata())[:2] for line in same.lines] == [[200, 200], [199, 198]]
    assert [bars.lines[0].get_xdata()[0] for bars in time.containers] == [11, 1.5]
    spans = [bars.lines[2][0].get_segments()[0][:, 0].tolist() for bars in time.containers]
    assert spans == [[10, 13], [1, 2]]
    assert [(text.get_position()[1], text.get_text()) for text in time.texts] == [
        (1, "not measured here"),
        (2, "not measured here"),
    ]
    assert [text.get_position()[1] for text in same.texts] == [2]
    noted = pd.DataFrame(rows, columns=names).assign(total=200, note=["with decoding", "", "", "", "", ""])
    (words,) = [text for text in plotting.formats(noted).axes[1].texts if text.get_text() == "with decoding"]
    assert words.xy == (11, -0.12)
    assert all(same.get_xlim()[0] < count < same.get_xlim()[1] for count in (198, 200))


def test_formats_of_three_networks_are_all_drawn():
    rows = [(name, 1e6, 1.0, 0.9, 1.1, 99, 100) for name in ("one", "two", "three")]
    names = ["network", "bytes", "latency_ms", "latency_low_ms", "latency_high_ms", "agreeing", "total"]
    figure = plotting.formats(pd.DataFrame(rows, columns=names).assign(format="ONNX"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two", "three"]
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == pytest.approx([-0.12, 0, 0.12])
