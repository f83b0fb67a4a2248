"""The cost model against cases worked by hand."""

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import business
from helpers.business import Assumptions, Network

BEFORE = Network("large", latency_ms=36.0, file_mb=80.0, accuracy=0.93)
AFTER = Network("small", latency_ms=3.6, file_mb=2.0, accuracy=0.92)
# a million inferences of 36 ms are 10 busy hours; at half utilization 20 rented hours a day, 7,300 a year
CASE = Assumptions(
    inferences_per_day=1_000_000, price_per_cpu_hour=0.1, utilization=0.5, downloads_per_year=1_000, price_per_gb=0.5, watts=100,
    price_per_kwh=0.25, engineer_days=5, price_per_engineer_day=100,
)  # fmt: skip


def test_costs_worked_by_hand():
    assert business.energy_joules(BEFORE, CASE) == pytest.approx(3.6)
    cost = business.cost_per_year(BEFORE, CASE)
    assert cost["compute"] == pytest.approx(730)
    assert cost["transfer"] == pytest.approx(40)  # 80 GB at 0.5
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
    ranges = {"inferences_per_day": (500_000, 2_000_000), "price_per_gb": (0.25, 1.0), "engineer_days": (5, 5)}
    table = business.tornado(lambda one: business.cost_per_year(BEFORE, one)["total"], CASE, ranges)
    assert list(table["assumption"]) == ["inferences_per_day", "price_per_gb", "engineer_days"]
    assert table["swing"].tolist() == pytest.approx([1.5 * 821.25, 60, 0])
    with pytest.raises(ValueError, match="ranges must be one of"):
        business.tornado(lambda one: 0.0, CASE, {"weather": (0, 1)})


positive = st.floats(1e-6, 1e6)


@given(positive, positive, positive, st.floats(0.01, 1))
def test_costs_scale_as_they_should(latency, file, volume, utilization):
    network, case = Network("a", latency, file, 0.9), Assumptions(inferences_per_day=volume, utilization=utilization)
    cost = business.cost_per_year(network, case)
    assert cost["total"] == pytest.approx(sum(cost[key] for key in ("compute", "transfer", "electricity")))
    twice = business.cost_per_year(replace(network, latency_ms=2 * latency), case)
    assert twice["compute"] == pytest.approx(2 * cost["compute"])
    assert twice["transfer"] == cost["transfer"]


@pytest.mark.parametrize("field", [field.name for field in fields(Assumptions)])
@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, 1e16, "many"])
def test_bad_assumptions_are_named(field, bad):
    with pytest.raises((ValueError, TypeError), match=field):
        Assumptions(**{field: bad})


@pytest.mark.parametrize(("field", "bad"), [("latency_ms", 0), ("file_mb", -1), ("accuracy", 1.1), ("accuracy", math.nan)])
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
