"""What must hold for any input: schedules, masks, ranks, energies, budgets, costs."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import business, low_rank, quantization
from helpers.business import Assumptions
from helpers.distillation import distillation_loss, soften, temperature_effect
from helpers.pruning import PolynomialSchedule, masks_for
from helpers.training import learning_rate

NETWORK = business.Network("a", latency_ms=1.0, file_mb=1.0, accuracy=0.9, memory_mb=1.0)
quickly = settings(max_examples=60, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**31)


def drawn(seed, *shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- schedules ---------------------------------------------------------------------------------------------------------


@given(st.floats(-2, 3), st.floats(1e-6, 10), st.sampled_from(("cosine", "one_cycle")), st.floats(0, 0.99))
@quickly
def test_the_learning_rate_stays_within_its_range_and_is_continuous(progress, lr, schedule, warmup):
    here = learning_rate(progress, lr, schedule, warmup)
    assert 0 <= here <= lr * (1 + 1e-12)
    assert learning_rate(warmup, lr, schedule, warmup) == pytest.approx(lr)
    assert learning_rate(1, lr, schedule, warmup) == pytest.approx(0, abs=1e-9 * lr)
    steepest = lr / min(warmup or 1, 1 - warmup) * math.pi
    assert abs(learning_rate(progress + 1e-6, lr, schedule, warmup) - here) <= 1e-6 * steepest * (1 + 1e-6)


@given(
    st.floats(0, 0.999),
    st.floats(0, 1),
    st.floats(0, 0.9),
    st.floats(0.01, 1),
    st.floats(0.05, 8),
    st.floats(-1e9, 1e9),
)
@quickly
def test_the_sparsity_is_exact_before_its_beginning_and_after_its_end(
    final, share, begin, length, power, progress
):
    end = min(1.0, begin + length)
    assume(end > begin)
    schedule = PolynomialSchedule(final, final * share, begin, end, power)
    asked = schedule(progress)
    assert schedule.initial_sparsity <= asked <= final
    if progress <= begin:
        assert asked == schedule.initial_sparsity
    if progress >= end:
        assert asked == final


# -- masks -------------------------------------------------------------------------------------------------------------


@given(seeds, st.floats(0, 1), st.floats(0, 1), st.sampled_from(("global", "layer")), st.booleans())
@quickly
def test_a_larger_sparsity_keeps_a_part_of_what_a_smaller_one_keeps(seed, first, second, scope, rounded):
    saliency = {"a": drawn(seed, 7, 5).abs(), "b": drawn(seed + 1, 40).abs()}
    if rounded:  # many ties
        saliency = {name: (4 * values).round() for name, values in saliency.items()}
    few, many = sorted((first, second))
    loose, tight = (masks_for(saliency, sparsity, scope) for sparsity in (few, many))
    for name in saliency:
        assert tight[name].sum() <= loose[name].sum() or scope == "global"
        if not rounded:
            assert not (tight[name] & ~loose[name]).any()


@given(seeds, st.floats(0, 1), st.floats(1e-3, 1e3))
@quickly
def test_masks_depend_on_the_order_of_the_saliencies_alone(seed, sparsity, factor):
    saliency = {"a": drawn(seed, 30).abs().float()}
    distinct = len(saliency["a"].mul(factor).unique()) == 30
    assume(distinct)
    assert torch.equal(
        masks_for(saliency, sparsity)["a"], masks_for({"a": saliency["a"] * factor}, sparsity)["a"]
    )
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(
        masks_for({"a": saliency["a"][order]}, sparsity)["a"], masks_for(saliency, sparsity)["a"][order]
    )


# -- ranks and energies ------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12), st.floats(1e-6, 1))
@quickly
def test_the_rank_is_the_smallest_that_keeps_the_energy(values, threshold):
    values = sorted(values, reverse=True)
    kept = low_rank.energy(torch.tensor(values, dtype=torch.float64)).tolist()
    assert kept == sorted(kept)
    assert kept[-1] == 1
    rank = low_rank.rank_for_energy(values, threshold)
    assert 1 <= rank <= len(values)
    assert kept[rank - 1] >= threshold - 1e-9
    assert rank == 1 or kept[rank - 2] < threshold
    scaled = [3.7 * value for value in values]
    assert low_rank.energy(scaled).tolist() == pytest.approx(kept)


@given(st.integers(1, 40), st.integers(1, 40), seeds)
@quickly
def test_break_even_is_where_two_layers_stop_being_smaller_than_one(inputs, outputs, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=False)
    rank = low_rank.break_even_rank(layer)
    assert rank == 0 or low_rank.factorized_size(layer, rank) < inputs * outputs
    assert low_rank.factorized_size(layer, rank + 1) >= inputs * outputs


@given(seeds, st.floats(0.05, 1), st.sampled_from(("parameters", "macs")), st.sampled_from((1, 4)))
@quickly
def test_a_budget_is_never_overspent(seed, budget, count, round_to):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 16, bias=False), nn.ReLU(), nn.Linear(16, 9, bias=False))
    options = {"count": count, "round_to": round_to, "input_shape": (1, 12)}
    with pytest.raises(ValueError, match="budget must be at least") as refused:
        low_rank.analyze(model, budget=1e-9, **options)
    lowest = float(str(refused.value).split("at least ")[1].split(",")[0])  # four decimals
    assume(budget > lowest + 1e-4)
    table = low_rank.analyze(model, budget=budget, **options)
    assert (
        table[f"factorized_{count}"].where(table["worthwhile"], table[count]).sum()
        <= budget * table[count].sum() + 1e-9
    )


# -- losses and grids --------------------------------------------------------------------------------------------------


@given(seeds, st.floats(0.01, 1e4), st.floats(0, 1), st.floats(0.1, 30))
@quickly
def test_the_loss_is_never_negative_and_does_not_mind_a_shift_of_the_logits(seed, temperature, alpha, scale):
    student, teacher = drawn(seed, 6, 5, scale=scale), drawn(seed + 1, 6, 5, scale=scale)
    labels = torch.arange(6) % 5
    loss = distillation_loss(student, teacher, labels, temperature, alpha).item()
    noise = 1e-10 * max(1, temperature) ** 2 * alpha
    assert loss >= -noise
    assert distillation_loss(student + 3, teacher - 5, labels, temperature, alpha).item() == pytest.approx(
        loss, rel=1e-6, abs=1e-9 + noise
    )


@given(seeds, st.floats(1e-3, 1e6), st.floats(0, 1e30))
@quickly
def test_soft_targets_are_probabilities_and_a_higher_temperature_flattens(seed, temperature, scale):
    logits = drawn(seed, 8, scale=scale).float()
    assume(logits.isfinite().all())
    soft = soften(logits, temperature)
    assert soft.sum().item() == pytest.approx(1, abs=1e-5)
    assert ((soft >= 0) & (soft <= 1)).all()
    flatter = temperature_effect(logits, min(1e6, 2 * temperature))["entropy"]
    assert -1e-6 <= temperature_effect(logits, temperature)["entropy"] <= flatter + 1e-4
    assert flatter <= 3 + 1e-4


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300), st.integers(1, 16))
@quickly
def test_every_grid_is_finite_holds_zero_and_covers_its_range(first, second, bits):
    low, high = sorted((first, second))
    scale, zero = quantization.affine_grid(low, high, bits)
    assert 0 < scale < math.inf
    assert 0 <= zero <= 2**bits - 1
    assert scale * (0 - zero) <= min(0, low) + scale
    assert scale * (2**bits - 1 - zero) >= max(0, high) - scale


# -- costs -------------------------------------------------------------------------------------------------------------

amounts = st.floats(1e-3, 1e6)


@given(amounts, amounts, st.floats(0.01, 1), amounts, st.floats(0.1, 10))
@quickly
def test_what_one_side_saves_the_other_loses(before, after, utilization, volume, years):
    case = Assumptions(
        inferences_per_day=volume,
        utilization=utilization,
        price_per_kwh=0.3,
        downloads_per_year=100,
        engineer_days=0,
    )
    large, small = (replace(NETWORK, latency_ms=latency, file_mb=latency) for latency in (before, after))
    there, back = business.saving(large, small, case, years), business.saving(small, large, case, years)
    assert there["net"] == pytest.approx(-back["net"])
    assert (there["net"] > 0) == (before > after)
    assert (
        business.saving(large, small, replace(case, engineer_days=1), years)["net"] < there["net"]
        or there["net"] > 1e12
    )
    assert business.processors(large, case) == pytest.approx(
        business.processors(small, case) * before / after
    )


@given(st.lists(st.tuples(amounts, amounts), min_size=1, max_size=3))
@quickly
def test_a_tornado_is_sorted_and_its_swings_are_distances(ranges):
    names = ("inferences_per_day", "price_per_cpu_hour", "engineer_days")
    asked = dict(zip(names, ranges, strict=False))
    value = lambda one: business.cost_per_year(NETWORK, one)["total"]  # noqa: E731
    table = business.tornado(value, Assumptions(), asked)
    assert set(table["assumption"]) == set(asked)
    assert table["swing"].tolist() == sorted(table["swing"], reverse=True)
    assert (table["swing"] == (table["value_high"] - table["value_low"]).abs()).all()
