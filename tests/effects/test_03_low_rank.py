"""What lesson 03 shows is so: on digits where pictures are needed, on the shipped VGG-19 where weights are enough."""

import copy
import warnings

import pytest
import torch

from helpers import low_rank, models
from helpers.data import batches, load_data
from helpers.evaluation import recalibrate
from helpers.lesson import TEACHER, Lesson
from helpers.profiling import count_macs, count_parameters
from helpers.training import evaluate, fit

warnings.filterwarnings("ignore", message="left alone")
SEED = 0
THIRD = {"budget": 1 / 3, "count": "both"}


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def some(data):
    return data.train.take(slice(0, 300))


@pytest.fixture(scope="module")
def trained(data):
    return Lesson("quick", data).teacher()  # trained on digits once, for all that ask for it


@pytest.fixture(scope="module")
def vgg():
    return models.load(TEACHER)


@pytest.fixture(scope="module")
def third(trained):
    return low_rank.factorize(trained, **THIRD)


def right(model, data):
    return float(evaluate(model, data.validation))


def test_a_third_of_the_cost_is_gone_and_the_answers_are_as_good(trained, data, some):
    smaller = low_rank.factorize(trained, budget=2 / 3, count="both")
    was, now = right(trained, data), right(recalibrate(smaller, some), data)
    print(f"whole {was:.3f}, two thirds of the cost {now:.3f}")
    assert count_parameters(smaller) < 0.7 * count_parameters(trained)
    assert count_macs(smaller) < 0.7 * count_macs(trained)
    assert now > was - 0.05


def test_recalibration_repairs_a_strong_cut_and_training_the_rest(third, data, some):
    as_is, recalibrated, after = (
        right(third, data),
        right(recalibrate(third, some), data),
        copy.deepcopy(third),
    )
    fit(after, data, epochs=3, batch_size=32, lr=0.01, seed=SEED, progress=False)
    print(f"as it is {as_is:.3f}, recalibrated {recalibrated:.3f}, trained {right(after, data):.3f}")
    assert recalibrated > as_is + 0.2
    assert right(after, data) > recalibrated + 0.05


def test_pictures_choose_directions_with_smaller_errors_of_the_outputs(trained, data, some):
    whole, at = trained.features[3], 3
    with torch.no_grad():
        inputs = trained.features[:at](next(batches(data.validation, 200))[0])
    wrong, off = {}, {}
    for name, options in {"weights": {}, "pictures": {"pictures": some}}.items():
        rank = {f"features.{at}": len(whole.weight) // 4}
        first, second = low_rank.factorize(trained, ranks=rank, **options).features[at]
        with torch.no_grad():
            wrong[name] = (second(first(inputs)) - whole(inputs)).square().sum()
            off[name] = (second.weight.flatten(1) @ first.weight.flatten(1) - whole.weight.flatten(1)).norm()
    print(
        f"outputs {wrong['pictures'] / wrong['weights']:.2f}, weights {off['pictures'] / off['weights']:.2f}"
    )
    assert wrong["pictures"] < 0.8 * wrong["weights"]
    assert off["pictures"] > off["weights"]


def test_ranks_and_directions_of_pictures_beat_those_of_the_weights(third, trained, data, some):
    chosen = low_rank.factorize(trained, **THIRD, pictures=some)
    ours, theirs = (right(recalibrate(model, some), data) for model in (chosen, third))
    print(f"pictures {ours:.3f}, weights {theirs:.3f}")
    assert ours > theirs + 0.05


def test_training_gathers_energy_most_of_all_in_the_late_layer(vgg):
    shares = {}
    torch.manual_seed(SEED)
    untrained = models.build("vgg19")
    for name in ("features.3", "features.17", "features.43"):
        for model in (untrained, vgg):
            values = low_rank.singular_values(model.get_submodule(name))
            shares[name, model is vgg] = low_rank.rank_for_energy(values, 0.9) / len(values)
        assert shares[name, True] < shares[name, False] - 0.1
    assert shares["features.43", True] < 0.5 * shares["features.43", False]


def test_middle_layers_cross_break_even_first(vgg):
    over = {}
    for name in ("features.14", "features.49"):
        layer = vgg.get_submodule(name)
        rank = low_rank.rank_for_energy(low_rank.singular_values(layer), 0.98)
        over[name] = low_rank.factorized_size(layer, rank) / layer.weight.numel()
    assert over["features.14"] > 1 > over["features.49"]


def test_for_the_same_weights_the_spatial_scheme_keeps_more_energy(vgg):
    for name in ("features.3", "features.17"):
        layer, kept = vgg.get_submodule(name), {}
        for scheme in ("channel", "spatial"):
            rank = layer.weight.numel() // 7 // low_rank.factorized_size(layer, 1, scheme)
            kept[scheme] = low_rank.energy(low_rank.singular_values(layer, scheme))[rank - 1]
        assert kept["spatial"] > kept["channel"] + 0.1
