"""Choosing ranks: against integer programming, and by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from helpers import low_rank, ranks


def options(*layers, positions=(1, 1), schemes=("channel",)):
    """The options of layers, called a, b, c, with the energies of their own weights."""
    return pd.concat(
        [
            ranks.options(name, layer, one, low_rank.energy(low_rank.singular_values(layer, one)), positions)
            for name, layer in zip("abcdefgh", layers, strict=False)
            for one in (schemes if isinstance(layer, nn.Conv2d) else ("channel",))
        ],
        ignore_index=True,
    )


def best_sum(table, shares):
    """The largest sum of energies that costs at most these shares: one choice a layer, by scipy's integer programming."""
    whole = table.drop_duplicates("layer").assign(energy=1.0)
    for one in ("parameters", "macs"):
        whole[f"factorized_{one}"] = whole[one]
    every = pd.concat([whole, table], ignore_index=True)
    one_each = pd.get_dummies(every["layer"]).T.to_numpy(dtype=float)
    rules = [LinearConstraint(one_each, 1, 1)]
    for one, share in shares.items():
        rules.append(
            LinearConstraint(every[f"factorized_{one}"].to_numpy()[None], 0, share * whole[one].sum())
        )
    found = milp(
        -every["energy"],
        constraints=rules,
        bounds=Bounds(0, 1),
        integrality=np.ones(len(every)),
        options={"mip_rel_gap": 0},
    )
    return -found.fun


def left(plan, count):
    return plan[f"factorized_{count}"].where(plan["worthwhile"], plan[count]).sum() / plan[count].sum()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", ["parameters", "macs", "both"])
@pytest.mark.parametrize("budget", [0.15, 0.4, 0.8])
def test_a_budget_buys_nearly_what_integer_programming_buys(count, budget, seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(8, 16, 3), nn.Linear(40, 30), nn.Conv2d(16, 24, 3), nn.Linear(24, 60)]
    for layer in layers:  # some directions matter more, as in trained layers
        layer.weight.data *= torch.rand(len(layer.weight)).pow(3).view(-1, *[1] * (layer.weight.ndim - 1))
    table = options(*layers, schemes=("channel", "spatial"))
    where = table["layer"] == "a"  # early layers have more positions
    table.loc[where, ["macs", "factorized_macs"]] *= 50
    counted = ("parameters", "macs") if count == "both" else (count,)
    plan = ranks.plan(table, 1.0, budget, count, 1)
    assert list(plan["layer"]) == list("abcd")
    assert all(left(plan, one) <= budget for one in counted)
    ours = plan["energy"].where(plan["worthwhile"], 1.0).sum()
    best = best_sum(table, dict.fromkeys(counted, budget))
    assert 0.98 * best <= ours <= best + 1e-6


def test_a_pair_of_budgets_is_spent_and_not_only_kept():
    torch.manual_seed(0)
    table = options(nn.Linear(60, 60), nn.Linear(60, 60))
    table.loc[table["layer"] == "b", ["macs", "factorized_macs"]] *= 9  # b works for nine positions
    tight_macs, tight_parameters = (
        ranks.plan(table, 1.0, pair, "both", 1) for pair in ((0.9, 0.3), (0.3, 0.9))
    )
    assert 0.27 < left(tight_macs, "macs") <= 0.3
    assert 0.27 < left(tight_parameters, "parameters") <= 0.3
    for name, tight in (("macs", tight_macs), ("parameters", tight_parameters)):  # the other does not bind
        assert tight["rank"].tolist() == ranks.plan(table, 1.0, 0.3, name, 1)["rank"].tolist()


def by_hand(energies, whole):
    """A layer of ``whole`` weights in which each rank costs 10 weights and, at one position, 10 MACs."""
    return pd.DataFrame({
        "layer": "a", "shape": [(1,)] * len(energies), "scheme": "channel", "full_rank": len(energies),
        "rank": range(1, len(energies) + 1), "energy": energies, "parameters": whole, "macs": whole,
        "factorized_parameters": [10 * (rank + 1) for rank in range(len(energies))],
        "factorized_macs": [10 * (rank + 1) for rank in range(len(energies))], "break_even_rank": 0,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "a", "b"),
    [
        (20, (1, True), (1, True)),  # the least
        (30, (1, True), (2, True)),  # b's second rank gives 0.2, a's 0.1; b whole would cost 35
        (35, (1, True), (4, False)),  # b whole gives 0.5 more for 15
        (45, (2, True), (4, False)),
        (60, (4, False), (4, False)),
    ],
)
def test_steps_worked_by_hand(budget, a, b):
    table = pd.concat(
        [by_hand([0.7, 0.8, 0.9, 1.0], 35), by_hand([0.5, 0.7, 0.9, 1.0], 25).assign(layer="b")]
    )
    plan = ranks.plan(table.reset_index(drop=True), 1.0, budget / 60, "parameters", 1)
    assert list(zip(plan["rank"], plan["worthwhile"], strict=True)) == [a, b]


def test_a_budget_below_the_lowest_ranks_says_what_they_cost():
    table = pd.concat([by_hand([0.7, 1.0], 60), by_hand([0.5, 1.0], 40).assign(layer="b")], ignore_index=True)
    with pytest.raises(
        ValueError, match=r"budget must be at least 0\.2000, what the lowest ranks cost, got 0\.1"
    ):
        ranks.plan(table, 1.0, 0.1, "parameters", 1)
    with pytest.raises(
        ValueError, match=r"budget must be at least 0\.2000 and 0\.2000, .* got \(0\.5, 0\.1\)"
    ):
        ranks.plan(table, 1.0, (0.5, 0.1), "both", 1)
    with pytest.raises(ValueError, match="budget must be one number, or a pair"):
        ranks.plan(table, 1.0, (0.5, 0.1), "macs", 1)


def test_by_energy_each_layer_gets_the_rank_of_its_own_singular_values():
    torch.manual_seed(0)
    layers = {"a": nn.Linear(30, 20), "b": nn.Conv2d(8, 12, 3), "c": nn.Linear(5, 90)}
    for threshold in (0.2, 0.5, 0.9, 1.0):
        plan = ranks.plan(options(*layers.values()), threshold, None, "parameters", 1).set_index("layer")
        for name, layer in layers.items():
            rank = low_rank.rank_for_energy(low_rank.singular_values(layer), threshold)
            assert plan.loc[name, "rank"] == rank
            assert plan.loc[name, "worthwhile"] == (rank <= low_rank.break_even_rank(layer))
        rounded = ranks.plan(options(*layers.values()), threshold, None, "parameters", 8).set_index("layer")
        assert ((rounded["rank"] % 8 == 0) | (rounded["rank"] == rounded["full_rank"])).all()
        assert (rounded["rank"] - plan["rank"]).between(0, 7).all()


def test_ranks_by_hand_take_the_scheme_with_fewer_weights():
    table = options(nn.Conv2d(4, 64, 3), nn.Conv2d(64, 64, 3), schemes=("channel", "spatial"))
    table["energy"] = -table["factorized_parameters"]  # which is not asked
    plan = ranks.by_hand(table, {"b": 5, "a": 2})
    assert plan[["layer", "scheme", "rank", "worthwhile"]].values.tolist() == [
        ["a", "channel", 2, True],  # 2 x (64 + 36) against 2 x (12 + 192)
        ["b", "spatial", 5, True],  # 5 x (64 + 576) against 5 x (192 + 192)
    ]
    with pytest.raises(ValueError, match=r"ranks\['b'\] must be from 1 to 192, the full rank, got 200"):
        ranks.by_hand(table, {"b": 200})


def test_positions_worked_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=(1, 2)), nn.Flatten(), nn.Linear(4 * 6 * 4, 5))
    layers = low_rank.factorizable(model)
    # 8 x 10 becomes 6 x 4; the k x 1 part in the spatial scheme keeps the width, 6 x 10; two pictures
    assert ranks.positions(model, layers, (2, 3, 8, 10)) == {"0": (2 * 6 * 10, 2 * 6 * 4), "2": (2, 2)}
    assert ranks.positions(model, layers, None) == {"0": (2, 1), "2": (1, 1)}
    row = ranks.options("0", model[0], "spatial", torch.tensor([0.5, 1.0]), (60, 24)).iloc[1]
    assert (row["macs"], row["factorized_macs"]) == (108 * 24, 2 * (9 * 60 + 12 * 24))


def test_a_model_without_layers_to_split_is_refused():
    with pytest.raises(ValueError, match="model must have a Conv2d or Linear besides those in skip"):
        low_rank.factorize(nn.Sequential(nn.Linear(4, 4)), skip=["0"])


def test_weights_are_searched_for_nan_once_per_layer_and_scheme(monkeypatch):
    searched = []
    finite = torch.Tensor.isfinite
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda self: searched.append(self.ndim) or finite(self))
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3))
    low_rank.analyze(model, budget=0.6, scheme="auto", input_shape=(1, 4, 9, 9))
    assert searched.count(4) <= 2 * 3
