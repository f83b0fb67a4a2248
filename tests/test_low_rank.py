import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import models
from helpers.data import load_data
from helpers.low_rank import (
    analyze,
    break_even_rank,
    energy,
    factorize,
    factorized_size,
    matricize,
    rank_for_energy,
    singular_values,
    split,
)  # fmt: skip
from helpers.profiling import count_macs, count_parameters
from helpers.training import fit


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    sizes = st.integers(1, 5)
    padding = draw(st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("valid")))
    return nn.Conv2d(
        groups * draw(sizes), groups * draw(sizes), (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 3))), padding=padding,
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))), groups=groups, bias=draw(st.booleans()),
    )  # fmt: skip


layers = st.one_of(convolutions(), st.builds(nn.Linear, st.integers(1, 12), st.integers(1, 12), bias=st.booleans()))


def example(layer):
    return torch.randn(2, layer.in_features) if isinstance(layer, nn.Linear) else torch.randn(2, layer.in_channels, 11, 12)


@given(layers, st.sampled_from(("channel", "spatial")))
@settings(max_examples=200, deadline=None)
def test_at_full_rank_the_output_is_the_same_and_the_error_is_the_discarded_energy(layer, scheme):
    x = example(layer)
    values = singular_values(layer, scheme)
    whole = split(layer, len(values), scheme)
    assert torch.allclose(whole(x), layer(x), atol=1e-4)
    rank = max(1, len(values) // 2)
    parts = split(layer.double(), rank, scheme)
    # Eckart-Young: the squared error of the product of the two parts is the sum of the discarded squares.
    error = _product(layer, parts, scheme) - matricize(layer, scheme)
    assert error.square().sum().item() == pytest.approx(values[rank:].square().sum().item(), rel=1e-4, abs=1e-8)
    assert 1 - energy(values)[rank - 1].item() == pytest.approx((error.norm() / layer.weight.norm()).item() ** 2, abs=1e-6)
    assert sum(part.weight.numel() for part in parts) == factorized_size(layer, rank, scheme)


def _product(layer, parts, scheme):
    first, second = parts[0].weight.detach(), parts[1].weight.detach()
    if isinstance(layer, nn.Linear):
        return (second @ first)[None]
    groups = layer.groups
    rank = first.shape[0] // groups
    if scheme == "channel":
        return second.reshape(groups, -1, rank) @ first.reshape(groups, rank, -1)
    left = first.reshape(groups, rank, -1).transpose(1, 2)
    right = second.reshape(groups, -1, rank, second.shape[3]).permute(0, 2, 1, 3).reshape(groups, rank, -1)
    return left @ right


def test_singular_values_are_those_of_torch_linalg():
    layer = nn.Conv2d(6, 10, 3)
    expected = torch.linalg.svdvals(layer.weight.detach().double().reshape(10, -1))
    assert torch.allclose(singular_values(layer), expected)
    linear = nn.Linear(7, 4)
    assert torch.allclose(singular_values(linear), torch.linalg.svdvals(linear.weight.detach().double()))


def test_energy_and_rank_worked_by_hand():
    values = torch.tensor([3.0, 2.0, 1.0])  # squares 9, 4, 1 of 14
    assert energy(values).tolist() == pytest.approx([9 / 14, 13 / 14, 1])
    assert [rank_for_energy(values, t) for t in (0.01, 9 / 14, 0.65, 13 / 14, 0.93, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert energy(torch.zeros(3)).tolist() == [1, 1, 1]
    layer = nn.Linear(100, 50, bias=False)  # 5,000 weights; rank r takes 150 r; 33 * 150 = 4,950
    assert break_even_rank(layer) == 33
    assert factorized_size(layer, 33) == 4_950
    assert break_even_rank(nn.Linear(2, 2)) == 0
    assert break_even_rank(nn.Conv2d(8, 8, 3, groups=8)) == 0


def test_a_matrix_of_known_rank_is_found_out():
    layer = nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(30, 5) @ torch.randn(5, 40))
    assert rank_for_energy(singular_values(layer), 0.999999) == 5
    x = torch.randn(3, 40)
    assert torch.allclose(split(layer, 5)(x), layer(x), atol=1e-4)


def test_balanced_factors():
    parts = split(nn.Linear(30, 20), 8)
    assert parts[0].weight.norm().item() == pytest.approx(parts[1].weight.norm().item(), rel=1e-5)


def test_a_network_at_full_energy_computes_the_same_and_none_of_its_layers_grows():
    model = models.build("tiny_convnet").eval()
    x = torch.randn(2, 3, 32, 32)
    full = {row.layer: row.full_rank for row in analyze(model, 1.0).itertuples()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(factorize(model, ranks=full)(x), model(x), atol=1e-4)
    small = factorize(model, 0.5)
    assert count_parameters(small) < count_parameters(model)
    assert count_macs(small) < count_macs(model)
    table = analyze(model, 0.5)
    for row in table.itertuples():
        assert isinstance(small.get_submodule(row.layer), nn.Sequential) == row.worthwhile
        assert row.worthwhile == (row.rank <= row.break_even_rank)
    saved = table.loc[table["worthwhile"], "parameters"].sum() - table.loc[table["worthwhile"], "factorized_parameters"].sum()
    assert count_parameters(model) - count_parameters(small) == saved


def test_the_original_is_untouched_and_the_copy_saves_and_trains(tmp_path):
    model = models.build("tiny_convnet", width=0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = factorize(model, 0.6)
    fit(small, load_data("digits", train_limit=128), epochs=1, batch_size=64, progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    back = models.load(models.save(small, tmp_path / "m.safetensors"))
    assert list(back.state_dict()) == list(small.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), small.state_dict().values(), strict=True))
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(back(x), small.eval()(x), atol=1e-6)


def test_ranks_by_hand_are_honoured_with_a_warning():
    model = models.build("tiny_convnet", width=0.3)
    with pytest.warns(UserWarning, match=r"layer classifier grows from 550 to 650 weights at rank 10"):
        larger = factorize(model, ranks={"classifier": 10})
    assert count_parameters(larger) == count_parameters(model) + 100
    assert isinstance(larger.features[0], nn.Conv2d)


@pytest.mark.parametrize("bad", [0, -0.1, 1.01, math.nan])
def test_energy_out_of_range(bad):
    for call in (factorize, analyze):
        with pytest.raises(ValueError, match="energy must be"):
            call(models.build("tiny_convnet", width=0.1), bad)
    with pytest.raises(ValueError, match="threshold must be"):
        rank_for_energy(torch.ones(3), bad)


def test_other_bad_arguments_are_named():
    model = models.build("tiny_convnet", width=0.3)
    for ranks, message in (
        ({"classifier": 0}, r"ranks\['classifier'\] must be"),
        ({"classifier": 11}, r"ranks\['classifier'\] must be"),
        ({"nowhere": 1}, "ranks must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            factorize(model, ranks=ranks)
    with pytest.raises(ValueError, match="skip must be one of"):
        factorize(model, skip=["nowhere"])
    with pytest.raises(ValueError, match="scheme must be one of"):
        factorize(model, scheme="tucker")
    with pytest.raises(ValueError, match="singular_values must be"):
        energy(torch.tensor([1.0, math.nan]))
    with pytest.raises(TypeError, match="module must be Conv2d or Linear"):
        singular_values(nn.ReLU())


def test_factorizing_twice_and_ranks_from_a_table_still_save(tmp_path):
    model = models.build("tiny_convnet", width=0.5)
    table = analyze(model, 0.5)
    ranks = dict(table[table["worthwhile"]].set_index("layer")["rank"])
    twice = factorize(factorize(model, ranks=ranks), 0.3)
    back = models.load(models.save(twice, tmp_path / "m.safetensors"))
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(back(x), twice.eval()(x), atol=1e-5)


def test_parts_keep_what_the_layer_was():
    layer = nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect").to(torch.bfloat16, memory_format=torch.channels_last)
    layer.requires_grad_(False).eval()
    for scheme in ("channel", "spatial"):
        for part in split(layer, 3, scheme):
            assert part.weight.dtype == torch.bfloat16
            assert part.weight.is_contiguous(memory_format=torch.channels_last)
            assert not part.weight.requires_grad
            assert not part.training
        x = torch.randn(1, 8, 9, 9)
        assert torch.allclose(split(layer.float(), 8 if scheme == "channel" else 24, scheme)(x), layer(x), atol=1e-4)
        layer.bfloat16()
