import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import low_rank, models
from helpers.data import batches, load_data
from helpers.evaluation import recalibrate
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
from helpers.training import evaluate, fit


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


layers = st.one_of(
    convolutions(), st.builds(nn.Linear, st.integers(1, 12), st.integers(1, 12), bias=st.booleans())
)


def example(layer):
    return (
        torch.randn(2, layer.in_features)
        if isinstance(layer, nn.Linear)
        else torch.randn(2, layer.in_channels, 11, 12)
    )


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
    assert error.square().sum().item() == pytest.approx(
        values[rank:].square().sum().item(), rel=1e-4, abs=1e-8
    )
    assert 1 - energy(values)[rank - 1].item() == pytest.approx(
        (error.norm() / layer.weight.norm()).item() ** 2, abs=1e-6
    )
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
    for linear in (nn.Linear(7, 4), nn.Linear(4, 7)):  # the shorter side is taken apart
        assert torch.allclose(singular_values(linear), torch.linalg.svdvals(linear.weight.detach().double()))


def test_energy_and_rank_worked_by_hand():
    values = torch.tensor([3.0, 2.0, 1.0])  # squares 9, 4, 1 of 14
    assert energy(values).tolist() == pytest.approx([9 / 14, 13 / 14, 1])
    assert [rank_for_energy(values, t) for t in (0.01, 9 / 14, 0.65, 13 / 14, 0.93, 1.0)] == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
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
    saved = (
        table.loc[table["worthwhile"], "parameters"].sum()
        - table.loc[table["worthwhile"], "factorized_parameters"].sum()
    )
    assert count_parameters(model) - count_parameters(small) == saved


def test_the_original_is_untouched_and_the_copy_saves_and_trains(tmp_path):
    model = models.build("tiny_convnet", width=0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = factorize(model, 0.6)
    fit(small, load_data("digits", train_limit=128), epochs=1, batch_size=64, progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    back = models.load(models.save(small, tmp_path / "m.safetensors"))
    assert list(back.state_dict()) == list(small.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(back.state_dict().values(), small.state_dict().values(), strict=True)
    )
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(back(x), small.eval()(x), atol=1e-6)


def test_ranks_by_hand_are_honoured_with_a_warning():
    model = models.build("tiny_convnet", width=0.3)
    with pytest.warns(
        UserWarning, match=r"layer classifier grows from 550 to 650 weights at rank 10"
    ) as warned:
        larger = factorize(model, ranks={"classifier": 10})
    assert warned[0].filename == __file__
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
        ({"classifier": 0}, "ranks must be greater than or equal to 1"),
        ({"classifier": 11}, r"ranks\['classifier'\] must be"),
        ({"nowhere": 1}, "ranks must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            factorize(model, ranks=ranks)
    with pytest.raises(ValueError, match="skip must be one of"):
        factorize(model, skip=["nowhere"])
    with pytest.raises(ValueError, match="scheme must be 'channel', 'spatial' or 'auto'"):
        factorize(model, scheme="tucker")
    with pytest.raises(ValueError, match="singular_values must hold"):
        energy(torch.tensor([1.0, math.nan]))
    with pytest.raises(TypeError, match="module must be an instance of Conv2d or be an instance of Linear"):
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
    layer = nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect").to(
        torch.bfloat16, memory_format=torch.channels_last
    )
    layer.requires_grad_(False).eval()
    for scheme in ("channel", "spatial"):
        for part in split(layer, 3, scheme):
            assert part.weight.dtype == torch.bfloat16
            assert part.weight.is_contiguous(memory_format=torch.channels_last)
            assert not part.weight.requires_grad
            assert not part.training
        x = torch.randn(1, 8, 9, 9)
        assert torch.allclose(
            split(layer.float(), 8 if scheme == "channel" else 24, scheme)(x), layer(x), atol=1e-4
        )
        layer.bfloat16()


# -- schemes, budgets, rounding, pictures ----------------------------------------------------------------------------


def test_macs_in_the_table_are_those_that_are_counted():
    model = models.build("resnet18", width=0.25)
    for scheme in ("channel", "spatial", "auto"):
        table = analyze(model, 0.8, scheme=scheme)
        small = _quietly(factorize, model, 0.8, scheme=scheme)
        split_ = table[table["worthwhile"]]
        saved = split_["macs"].sum() - split_["factorized_macs"].sum()
        assert count_macs(model) - count_macs(small) == saved
        assert table["macs"].sum() == count_macs(model)


def _quietly(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


def test_auto_takes_the_scheme_with_fewer_macs():
    model = models.build("resnet18", width=0.25)
    tables = {
        scheme: analyze(model, 0.9, scheme=scheme).set_index("layer")["factorized_macs"]
        for scheme in ("channel", "spatial", "auto")
    }
    convolutions = [name for name in tables["auto"].index if name != "fc"]
    for name in convolutions:
        assert tables["auto"][name] == min(tables["channel"][name], tables["spatial"][name])
    assert set(analyze(model, 0.9, scheme="auto")["scheme"]) == {"channel", "spatial"}


@pytest.mark.parametrize("count", ["parameters", "macs"])
@pytest.mark.parametrize("scheme", ["channel", "auto"])
@pytest.mark.parametrize("budget", [0.5, 0.2, 0.1])
def test_a_budget_is_kept_and_nearly_used_up(count, scheme, budget):
    model = models.build("vgg11", width=0.25)
    table = analyze(model, budget=budget, count=count, scheme=scheme)
    after = table[f"factorized_{count}"].where(table["worthwhile"], table[count]).sum()
    assert 0.9 * budget < after / table[count].sum() <= budget
    small = factorize(model, budget=budget, count=count, scheme=scheme)
    counted = (
        count_macs(small) if count == "macs" else sum(w.numel() for w in small.parameters() if w.ndim > 1)
    )
    assert counted == after


def test_the_budget_buys_the_largest_sum_of_energies():
    """Against every combination of ranks of three small layers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False), nn.Linear(4, 7, bias=False)
    )
    table = analyze(model, budget=0.6, input_shape=None)
    sizes, kept = [], []
    for layer in model:
        options = [(layer.weight.numel(), 1.0)]
        options += [
            (factorized_size(layer, r), energy(singular_values(layer))[r - 1].item())
            for r in range(1, min(layer.weight.shape) + 1)
        ]
        sizes.append([size for size, _ in options])
        kept.append([share for _, share in options])
    total = sum(layer.weight.numel() for layer in model)
    best = max(
        kept[0][i] + kept[1][j] + kept[2][k]
        for i in range(len(sizes[0])) for j in range(len(sizes[1])) for k in range(len(sizes[2]))
        if sizes[0][i] + sizes[1][j] + sizes[2][k] <= 0.6 * total
    )  # fmt: skip
    spent = table["factorized_parameters"].where(table["worthwhile"], table["parameters"]).sum()
    ours = table["energy"].where(table["worthwhile"], 1.0).sum()
    assert spent <= 0.6 * total
    assert 0.97 * best <= ours <= best + 1e-9


@pytest.mark.parametrize("scheme", ["channel", "auto"])
def test_a_budget_for_both_is_kept_by_both(scheme):
    model = models.build("vgg11", width=0.25)
    table = analyze(model, budget=0.3, count="both", scheme=scheme)
    for count in ("parameters", "macs"):
        after = table[f"factorized_{count}"].where(table["worthwhile"], table[count]).sum()
        assert after <= 0.3 * table[count].sum()
    pair = analyze(model, budget=(0.5, 0.3), count="both", scheme=scheme)
    for count, share in (("parameters", 0.5), ("macs", 0.3)):
        assert (
            pair[f"factorized_{count}"].where(pair["worthwhile"], pair[count]).sum()
            <= share * pair[count].sum()
        )
    with pytest.raises(ValueError, match='pair with count "both"'):
        analyze(model, budget=(0.5, 0.3), count="macs")
    small = factorize(model, budget=0.3, count="both", scheme=scheme)
    assert count_macs(small) == table["factorized_macs"].where(table["worthwhile"], table["macs"]).sum()


def test_a_budget_that_cannot_be_met_is_named():
    with pytest.raises(ValueError, match="budget must be at least 0"):
        factorize(models.build("tiny_convnet", width=0.25), budget=0.001)
    with pytest.raises(ValueError, match="budget must be"):
        analyze(models.build("tiny_convnet", width=0.25), budget=1.5)
    with pytest.raises(ValueError, match="count must be"):
        analyze(models.build("tiny_convnet", width=0.25), budget=0.5, count="bytes")
    with pytest.raises(ValueError, match="round_to must be"):
        analyze(models.build("tiny_convnet", width=0.25), round_to=0)


@pytest.mark.parametrize("budget", [None, 0.3])
def test_ranks_are_rounded_where_asked(budget):
    model = models.build("vgg11", width=0.25)
    exact = analyze(model, 0.8, budget=budget)
    rounded = analyze(model, 0.8, budget=budget, round_to=8)
    for row in rounded.itertuples():
        assert row.rank % 8 == 0 or row.rank == row.full_rank
    if budget is None:
        assert (rounded["rank"] >= exact["rank"]).all()
        assert (rounded["rank"] - exact["rank"] < 8).all()


def test_a_layer_that_would_grow_is_left_alone_and_says_so():
    model = models.build("tiny_convnet", width=0.3)
    with pytest.warns(UserWarning, match=r"left alone.*features\.0") as warned:
        whole = factorize(model, 1.0)
    assert warned[0].filename == __file__  # the line that called, not one of ours
    assert count_parameters(whole) == count_parameters(model)


@pytest.mark.parametrize("groups", [1, 2])
def test_principal_responses_are_whitening_by_the_inputs_covariance(groups):
    """The textbook way, on unfolded inputs: W C^(1/2) cut at rank r, then C^(1/2) taken out again."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, padding=1, groups=groups).double()
    inputs = torch.randn(50, 4, 5, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 0.3
    outputs = layer(inputs).detach()
    rows = (
        (outputs - layer.bias.view(1, -1, 1, 1))
        .detach()
        .movedim(1, -1)
        .reshape(-1, groups, 8 // groups)
        .transpose(0, 1)
    )
    mean = rows.mean(1)
    covariance = rows.mT @ rows / rows.shape[1] - mean[:, :, None] * mean[:, None]
    factors = low_rank.decompose(layer, "channel", (mean, covariance))
    rank = 2
    parts = low_rank._build(layer, factors, rank, "channel")
    patches = (
        torch.nn.functional.unfold(inputs, 3, padding=1)
        .movedim(1, -1)
        .reshape(-1, groups, 4 // groups * 9)
        .transpose(0, 1)
    )
    centred = patches - patches.mean(1, keepdim=True)
    for group in range(groups):
        root = torch.linalg.cholesky(
            centred[group].T @ centred[group] / len(centred[group]) + 1e-12 * torch.eye(centred.shape[2])
        )
        u, s, v = torch.linalg.svd(matricize(layer)[group] @ root, full_matrices=False)
        expected = (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.inv(root)
        assert torch.allclose(_product(layer, parts, "channel")[group], expected, atol=1e-6)
        assert torch.allclose(factors.values.square().sum(), (outputs.var((0, 2, 3), correction=0)).sum())
    # the mean of the responses is kept exactly
    assert torch.allclose(parts(inputs).mean((0, 2, 3)), outputs.mean((0, 2, 3)), atol=1e-9)


def test_pictures_keep_more_of_the_responses_at_the_same_ranks():
    data = load_data("digits")
    torch.manual_seed(0)
    model = models.build("vgg11", width=0.25)
    fit(model, data, epochs=4, batch_size=64, progress=False)
    some = data.train.take(slice(0, 300))
    ranks = {
        name: layer.weight.shape[0] // 4
        for name, layer in low_rank.factorizable(model).items()
        if name not in ("classifier", "features.0")
    }
    images = next(iter(batches(data.validation, 100)))[0]
    model.eval()
    errors = {}
    for name, pictures in (("weights", None), ("pictures", some)):
        errors[name] = (
            (factorize(model, ranks=ranks, pictures=pictures).eval()(images) - model(images)).norm().item()
        )
    assert errors["pictures"] < 0.9 * errors["weights"]
    full = {name: min(matricize(layer).shape[1:]) for name, layer in low_rank.factorizable(model).items()}
    whole = _quietly(factorize, model, ranks=full, pictures=some).eval()
    assert torch.allclose(whole(images), model(images), atol=1e-3)
    with pytest.raises(ValueError, match=r'scheme must be "channel" with pictures'):
        factorize(model, scheme="auto", pictures=some)


def test_sweep_is_what_factorize_and_evaluate_say():
    data = load_data("digits")
    model = models.build("tiny_convnet", width=0.5)
    some = data.train.take(slice(0, 200))
    table = low_rank.sweep(model, data.validation, (0.3, 0.7), calibration=some, scheme="auto")
    for row in table.itertuples():
        small = _quietly(factorize, model, row.energy, scheme="auto")
        assert row.parameters == count_parameters(small)
        assert row.macs == count_macs(small)
        assert row.correct == evaluate(small, data.validation).correct
        assert row.recalibrated_correct == evaluate(recalibrate(small, some), data.validation).correct
        for name, rank in row.ranks.items():
            assert (small.get_submodule(name)[0].weight.shape[0] if rank else 0) == rank


def test_sweep_by_budget_is_what_factorize_says():
    data = load_data("digits")
    model = models.build("tiny_convnet", width=0.5)
    some = data.train.take(slice(0, 50))
    table = low_rank.sweep(
        model, data.validation, calibration=some, budgets=(0.5, 0.2), count="both", pictures=some
    )
    for row in table.itertuples():
        small = factorize(model, budget=row.budget, count="both", pictures=some)
        assert (row.parameters, row.macs) == (count_parameters(small), count_macs(small))
        assert row.correct == evaluate(small, data.validation).correct


@given(
    st.sampled_from(["zeros", "reflect", "circular", "replicate"]), st.booleans(), st.sampled_from([torch.float32, torch.float64]),
    st.booleans(), st.sampled_from(["channel", "spatial"]), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_padding_modes_types_and_memory_formats(mode, same, dtype, channels_last, scheme, seed):
    torch.manual_seed(seed)
    layer = nn.Conv2d(4, 6, 3, padding="same" if same else (1, 2), padding_mode=mode, dilation=(1, 2)).to(
        dtype
    )
    if channels_last:
        layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 9, 10, dtype=dtype)
    whole = split(layer, len(singular_values(layer, scheme)), scheme)
    assert torch.allclose(whole(x), layer(x), atol=1e-4)
    assert (
        all(part.weight.is_contiguous(memory_format=torch.channels_last) for part in whole)
        or not channels_last
    )


@pytest.mark.parametrize("scheme", ["channel", "spatial", "auto"])
def test_macs_also_without_padding_with_strides_and_dilation(scheme):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3),
        nn.Conv2d(16, 16, (3, 5), stride=(1, 2), dilation=(2, 1)),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
    )
    shape = (2, 8, 19, 23)
    table = analyze(model, 0.6, scheme=scheme, input_shape=shape)
    assert table["macs"].sum() == count_macs(model, shape)
    split_ = table[table["worthwhile"]]
    assert len(split_)
    assert (split_["factorized_macs"] <= split_["macs"]).all()
    small = low_rank._apply(model, table, low_rank._take_apart(model, (), scheme, None, shape)[1])
    assert (
        count_macs(small, shape) == table["factorized_macs"].where(table["worthwhile"], table["macs"]).sum()
    )


def test_responses_of_linear_layers_on_sequences():
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.out = nn.Linear(32, 24), nn.Linear(24, 10)

        def forward(self, images):
            return self.out(self.mix(images[:, 0])).mean(1)

    model, some = Tokens(), load_data("digits").train.take(slice(0, 40))
    mean, covariance = low_rank.responses(model, some)["mix"]
    images = next(iter(batches(some, 40)))[0]
    rows = (model.mix(images[:, 0]) - model.mix.bias).detach().double().reshape(-1, 24)
    assert torch.allclose(mean[0], rows.mean(0), atol=1e-6)
    assert torch.allclose(covariance[0], torch.cov(rows.T, correction=0), atol=1e-5)


def test_a_module_used_under_two_names_is_split_under_both():
    shared = nn.Linear(20, 20)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    small = factorize(model, ranks={"0": 3})
    assert small[0] is small[2]
    assert count_parameters(small) == 3 * 40 + 20
    tied = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="skip must name 1, which shares its weights with 0"):
        factorize(tied, 0.5)
    whole = nn.Sequential(*tied, nn.Linear(20, 20))
    assert list(low_rank.factorizable(whole, ["1"])) == ["2"]  # splitting 0 would keep the weights alive in 1


def test_arguments_that_contradict_each_other():
    model = models.build("tiny_convnet", width=0.3)
    with pytest.raises(ValueError, match="budget must be None"):
        factorize(model, ranks={"features.3": 1}, budget=0.5)
    with pytest.raises(ValueError, match="energy must be"):
        factorize(model, 7, ranks={"features.3": 1})
    with pytest.raises(ValueError, match="input_shape must be one that the model takes"):
        analyze(model, input_shape=(1, 5, 8, 8))


# -- networks that nobody here wrote -------------------------------------------------------------------------------------


class Functional(nn.Module):
    """The weights of one layer are read by another, and one layer runs in train mode only."""

    def __init__(self):
        super().__init__()
        self.stem, self.read = nn.Linear(12, 16), nn.Linear(16, 16)
        self.head, self.second = nn.Linear(16, 10), nn.Linear(16, 10)

    def forward(self, x):
        features = nn.functional.linear(self.stem(x), self.read.weight, self.read.bias)
        return (self.head(features), self.second(features)) if self.training else self.head(features)


def test_layers_that_are_read_instead_of_called_stay_whole():
    thinner = low_rank.factorize(Functional(), energy=0.3, input_shape=(2, 12))
    assert isinstance(thinner.stem, nn.Sequential)
    assert isinstance(thinner.second, nn.Sequential)
    assert type(thinner.read) is nn.Linear
    assert [len(thinner.train(mode)(torch.zeros(2, 12))) for mode in (True, False)] == [2, 2]
    with pytest.raises(ValueError, match="ranks must be one of 'stem', 'head', 'second'; got 'read'"):
        low_rank.factorize(Functional(), ranks={"read": 2}, input_shape=(2, 12))


def test_attention_keeps_the_layers_whose_weights_it_reads():
    model = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    with pytest.warns(UserWarning, match="the result was not run: model does not take input_shape"):
        thinner = low_rank.factorize(model, energy=0.3)
    parts = {name for name, layer in thinner.named_modules() if isinstance(layer, nn.Sequential)}
    assert parts == {"decoder.layers.0.linear1", "decoder.layers.0.linear2"}
    tokens = torch.randn(1, 4, 16)
    for mode in (True, False):
        with torch.no_grad():
            assert thinner.train(mode)(tokens, tokens).shape == (1, 4, 16)


class Reading(nn.Module):
    """A layer that is called, and read as well."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x):
        return self.head(self.layer(x) + self.layer.weight.mean())


def test_a_result_that_does_not_run_is_not_returned():
    with pytest.raises(ValueError, match=r"^skip must name the layers that this network reads"):
        low_rank.factorize(Reading(), ranks={"layer": 2}, input_shape=(2, 12))
    assert low_rank.factorize(Reading(), ranks={"head": 2}, skip=["layer"], input_shape=(2, 12)).training


class Named(nn.Module):
    """Calls its convolutions by keyword; without padding the outputs are fewer than the inputs."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 5), nn.Conv2d(16, 12, 5)

    def forward(self, images):
        return self.two(input=self.one(input=images).relu()).mean((2, 3))


def test_analyze_and_factorize_split_the_same_layers():
    torch.manual_seed(0)
    for share in (0.5, 0.6, 0.7, 0.8):
        asked = {"energy": share, "scheme": "spatial", "input_shape": (1, 3, 10, 10)}
        model = Named()
        plan = analyze(model, **asked)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of those left alone
            split = factorize(model, **asked)
        wanted = set(plan.loc[plan["worthwhile"], "layer"])
        assert {name for name, part in split.named_children() if isinstance(part, nn.Sequential)} == wanted
