"""The cost model against cases worked by hand."""

import math
from dataclasses import fields, replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import business, waiting
from helpers.business import Assumptions, Network, UseCase

BEFORE = Network("large", latency_ms=36.0, file_mb=80.0, accuracy=0.93, memory_mb=85.0)
AFTER = Network("small", latency_ms=3.6, file_mb=2.0, accuracy=0.92, memory_mb=4.0)
# a million inferences of 36 ms are 10 busy hours; at half utilization 20 rented hours a day, 7,300 a year
CASE = Assumptions(
    inferences_per_day=1_000_000, price_per_cpu_hour=0.1, utilization=0.5, downloads_per_year=1_000, price_per_gb=0.5, watts=100,
    price_per_kwh=0.25, engineer_days=5, price_per_engineer_day=100,
)  # fmt: skip


def test_costs_worked_by_hand():
    assert business.energy_joules(BEFORE, CASE) == pytest.approx(3.6)
    cost = business.cost_per_year(BEFORE, CASE)
    assert cost["compute"] == pytest.approx(730)
    assert cost["downloads"] == pytest.approx(40)  # 80 GB at 0.5
    assert cost["electricity"] == pytest.approx(91.25)  # a million times 3.6 J is one kWh a day
    assert cost["total"] == pytest.approx(861.25)
    assert business.processors(BEFORE, CASE) == pytest.approx(20 / 24)


def test_the_saving_worked_by_hand():
    found = business.saving(BEFORE, AFTER, CASE, years=2)
    per_year = 861.25 - (73 + 1 + 9.125)
    assert found["per_year"] == pytest.approx(per_year)
    assert found["investment"] == 500
    assert found["net"] == pytest.approx(2 * per_year - 500)
    assert found["return_on_investment"] == pytest.approx((2 * per_year - 500) / 500)
    assert found["payback_days"] == pytest.approx(365 * 500 / per_year)


def test_it_says_when_compression_is_not_worth_it():
    yes, why = business.worth_it(BEFORE, AFTER, CASE, accuracy_lost=0.02)
    assert yes
    assert "235 days" in why  # 365 * 500 / 778.125
    no, why = business.worth_it(BEFORE, AFTER, CASE, accuracy_lost=0.005)
    assert not no
    assert "1.0 points" in why
    no, why = business.worth_it(BEFORE, AFTER, replace(CASE, inferences_per_day=1_000), accuracy_lost=0.02)
    assert not no
    assert "costs 500 to do" in why
    idle = business.saving(BEFORE, BEFORE, replace(CASE, engineer_days=0))
    assert (idle["net"], idle["return_on_investment"], idle["payback_days"]) == (0, 0, math.inf)
    free = business.saving(BEFORE, AFTER, replace(CASE, engineer_days=0))
    assert (free["return_on_investment"], free["payback_days"]) == (math.inf, 0)


def test_the_tornado_puts_the_most_decisive_first():
    ranges = {
        "inferences_per_day": (500_000, 2_000_000),
        "price_per_gb": (0.25, 1.0),
        "engineer_days": (5, 5),
    }
    table = business.tornado(lambda one: business.cost_per_year(BEFORE, one)["total"], CASE, ranges)
    assert list(table["assumption"]) == ["inferences_per_day", "price_per_gb", "engineer_days"]
    assert table["swing"].tolist() == pytest.approx([1.5 * 821.25, 60, 0])
    with pytest.raises(ValueError, match="ranges must give"):
        business.tornado(lambda one: 0.0, CASE, {"weather": (0, 1)})


positive = st.floats(1e-6, 1e6)


@given(positive, positive, positive, st.floats(0.01, 1))
def test_costs_scale_as_they_should(latency, file, volume, utilization):
    network, case = (
        Network("a", latency, file, 0.9, file),
        Assumptions(inferences_per_day=volume, utilization=utilization),
    )
    cost = business.cost_per_year(network, case)
    assert cost["total"] == pytest.approx(sum(cost[key] for key in ("compute", "downloads", "electricity")))
    twice = business.cost_per_year(replace(network, latency_ms=2 * latency), case)
    assert twice["compute"] == pytest.approx(2 * cost["compute"])
    assert twice["downloads"] == cost["downloads"]


@pytest.mark.parametrize("field", [field.name for field in fields(Assumptions)])
@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, 1e16, "many"])
def test_bad_assumptions_are_named(field, bad):
    with pytest.raises((ValueError, TypeError), match=field):
        Assumptions(**{field: bad})


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("latency_ms", 0),
        ("file_mb", -1),
        ("accuracy", 1.1),
        ("accuracy", math.nan),
        ("memory_mb", 0),
        ("process_mb", 0),
    ],
)
def test_bad_networks_are_named(field, bad):
    with pytest.raises(ValueError, match=field):
        replace(BEFORE, **{field: bad})


def test_other_bad_arguments_are_named():
    with pytest.raises(ValueError, match="utilization"):
        Assumptions(utilization=0)
    with pytest.raises(ValueError, match="years"):
        business.saving(BEFORE, AFTER, CASE, years=0)
    with pytest.raises(ValueError, match="accuracy_lost"):
        business.worth_it(BEFORE, AFTER, CASE, accuracy_lost=2)


COLUMNS = ["network", "seed", "format", "bytes", "zip_bytes", "correct", "total", "latency_ms"]
COLUMNS += ["reference_ms", "memory_mb"]
ROWS = pd.DataFrame(
    [
        ("teacher", 0, "onnx", 80e6, 74e6, 900, 1_000, 10.0, 10.0, 200.0),
        ("a", 0, "torch", 9e6, 5e6, 890, 1_000, 6.0, 10.0, math.nan),
        ("a", 0, "onnx", 1, 1, 1, 1_000, 9.0, 10.0, 1.0),
        ("a", 0, "onnx", 8e6, 5e6, 890, 1_000, 4.0, 10.0, 40.0),
        ("a", 0, "onnx int8", 2e6, 1.5e6, 880, 1_000, 2.0, 10.0, math.nan),
        ("a", 1, "onnx", 3, 3, 3, 1_000, 7.0, 10.0, 3.0),
        ("b", 1, "onnx", 3, 3, 3, 1_000, 7.0, 10.0, 3.0),
    ],
    columns=COLUMNS,
)


def test_a_network_is_the_last_row_of_its_first_seed_in_its_format():
    assert business.network(ROWS, "teacher") == Network("teacher", 10, 74, 0.9, 80, 200)
    assert business.network(ROWS, "a") == Network("a", 4, 5, 0.89, 8, 40)
    assert business.network(ROWS, "a", "onnx int8") == Network("a int8", 2, 1.5, 0.88, 2)
    assert business.network(ROWS, "a", "torch") == Network("a torch", 6, 5, 0.89, 9)


def test_a_network_without_row_or_measurement_is_named():
    for name, kind in (("c", "onnx"), ("a", "tflite")):
        with pytest.raises(ValueError, match=f"name and format must be one of a, onnx; .*got {name}, {kind}"):
            business.network(ROWS, name, kind)
    with pytest.raises(
        ValueError, match="rows must have all measurements of a, onnx, but zip_bytes is empty"
    ):
        business.network(ROWS.assign(zip_bytes=math.nan), "a")
    with pytest.raises(ValueError, match=r"rows must have the columns .*zip_bytes"):
        business.network(ROWS.drop(columns="zip_bytes"), "a")


@pytest.mark.parametrize("name", [field.name for field in fields(Assumptions) if field.name != "utilization"])
def test_at_break_even_the_value_is_zero(name):
    def net(one):
        return business.saving(BEFORE, AFTER, one)["net"]

    case = replace(CASE, releases_per_year=1, days_per_release=1) if "release" in name else CASE
    there = business.break_even(net, case, name)
    if math.isfinite(there):
        assert net(replace(case, **{name: there})) == pytest.approx(0, abs=1e-6)
    else:  # the case pays at any value: every one of them only adds to the saving
        assert name in ("downloads_per_year", "price_per_gb", "watts", "price_per_kwh")
        assert net(replace(CASE, **{name: 0})) > 0


def test_break_even_worked_by_hand():
    def net(one):
        return business.saving(BEFORE, AFTER, one)["net"]

    # 32.4 ms less, at a half of utilization and 0.1 an hour: 657 a year for a million; electricity 82.125; transfer 39 fixed
    volume = business.break_even(net, CASE, "inferences_per_day")
    assert volume == pytest.approx(1e6 * (500 - 39) / (657 + 82.125))
    assert business.break_even(net, CASE, "engineer_days") == pytest.approx(778.125 / 100)
    assert business.break_even(lambda one: 7.0, CASE, "watts") == math.inf
    with pytest.raises(ValueError, match="name must be one of"):
        business.break_even(net, CASE, "utilization")


USE = UseCase(
    times_slower=3, watts=2, devices=1_000, inferences_per_device_per_day=50, updates_per_year=4, latency_ms=54, memory_mb=8,
    update_mb=4, joules_per_day=5.4,
)  # fmt: skip


def test_a_device_s_needs_worked_by_hand():
    # 36 ms take 108 ms there, at 2 W 0.216 J; fifty of them 10.8 J
    expected = {"latency_ms": 108, "memory_mb": 85, "update_mb": 80, "joules_per_day": 10.8}
    assert business.needs(BEFORE, USE) == pytest.approx(expected)
    table = business.budgets({"large": BEFORE, "small": AFTER}, {"one": USE})
    assert list(table.columns) == ["use", "budget", "network", "needed", "allowed", "share"]
    assert table["share"].tolist() == pytest.approx([2, 85 / 8, 20, 2, 0.2, 0.5, 0.5, 0.2])
    service = USE.service(price_per_gb=0.5)
    assert (service.inferences_per_day, service.downloads_per_year, service.price_per_cpu_hour) == (
        50_000,
        4_000,
        0,
    )
    assert business.cost_per_year(BEFORE, service)["total"] == pytest.approx(160)  # 320 GB at 0.5
    assert USE.service(price_per_cpu_hour=0.1).price_per_cpu_hour == 0.1


def test_memory_is_a_process_s_where_one_was_measured():
    assert business.needs(replace(BEFORE, process_mb=200.0), USE)["memory_mb"] == 200
    assert business.misses(AFTER, USE) == []
    assert business.misses(replace(AFTER, process_mb=8.5), USE) == [
        "memory_mb"
    ]  # 4 MB of weights would have fitted into 8
    assert business.misses(BEFORE, USE) == ["latency_ms", "memory_mb", "update_mb", "joules_per_day"]


def test_a_device_and_a_service_are_not_taken_for_each_other():
    service = USE.service(price_per_gb=0.5)
    with pytest.raises(TypeError, match="use must be an instance of UseCase"):
        business.misses(BEFORE, service)
    with pytest.raises(TypeError, match="network must be an instance of Network"):
        business.needs(service, USE)


@pytest.mark.parametrize("field", [field.name for field in fields(UseCase)])
@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "many"])
def test_bad_use_cases_are_named(field, bad):
    with pytest.raises((ValueError, TypeError), match=field):
        replace(USE, **{field: bad})
    with pytest.raises(ValueError, match="times_slower"):
        business.on_device(BEFORE, 0)


def test_releases_cost_days_every_year_and_are_not_charged_to_what_runs_now():
    case = replace(CASE, releases_per_year=4, days_per_release=2, price_per_engineer_day=100)
    assert business.upkeep(case) == 800
    plain = replace(case, days_per_release=0)
    there, free = (business.saving(BEFORE, AFTER, one, years=3) for one in (case, plain))
    assert there["per_year"] == pytest.approx(free["per_year"] - 800)
    assert there["net"] == pytest.approx(free["net"] - 3 * 800)
    assert there["investment"] == free["investment"]


def test_a_line_waits_as_the_theory_of_queues_says():
    network = replace(BEFORE, latency_ms=100.0)
    calm = waiting.waiting(network, per_second=0.01)
    assert calm["p99_ms"] == pytest.approx(100)
    found = waiting.waiting(network, per_second=5, requests=200_000)
    assert found["busy"] == pytest.approx(0.5)
    assert found["p50_ms"] == pytest.approx(100, abs=30)  # half of them find the processor free
    more = waiting.waiting(network, per_second=5, workers=2, requests=200_000)
    assert 100 <= more["p50_ms"] < more["p99_ms"] < found["p99_ms"]
    assert waiting.waiting(network, per_second=5) == waiting.waiting(network, per_second=5)
    with pytest.raises(ValueError, match="workers"):
        waiting.waiting(network, per_second=5, workers=0)


def test_the_mean_wait_of_one_processor_is_pollaczeks_and_khinchines(monkeypatch):
    """With a fixed time s and a share b busy, a request waits b s / (2 (1 - b)) on average."""
    times = {}
    monkeypatch.setattr(
        waiting.np, "percentile", lambda took, _: (times.update(mean=sum(took) / len(took)), [0, 0])[1]
    )
    waiting.waiting(replace(BEFORE, latency_ms=100.0), per_second=8, requests=200_000)
    assert times["mean"] == pytest.approx(100 + 0.8 * 100 / (2 * 0.2), rel=0.05)
