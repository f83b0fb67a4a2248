"""What lesson 04 shows, on digits: it fails where the lesson would stop showing it."""

import copy
from dataclasses import replace

import pytest
import torch

from helpers import low_rank, models, pruning, quantization
from helpers.benchmark import peers
from helpers.data import load_data
from helpers.distillation import DistillationLoss
from helpers.evaluation import evaluate, recalibrate
from helpers.lesson import FAST, Lesson
from helpers.quantization import QuantizationAware
from helpers.training import fit

SETTINGS = FAST | {"batch_size": 50, "progress": False}
SEED = 0


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def net(data):
    model = Lesson("quick", data).student(SEED)
    fit(model, data, epochs=4, label_smoothing=0.1, seed=SEED, **SETTINGS)
    return model


def accuracy(model, data):
    return float(evaluate(recalibrate(model, data.train.take(slice(0, 1_000))), data.validation))


def test_thinned_and_half_of_it_pruned_it_ends_higher_than_it_began(net, data):
    pictures = data.train.take(slice(0, 1_000))
    cut = low_rank.factorize(net, budget=1 / 14, count="both", skip=["features.0"], scheme="auto")
    thin = recalibrate(cut, pictures)
    start = float(evaluate(thin, data.validation))
    pruner = pruning.GradualPruner(pruning.PolynomialSchedule(0.5, end=0.7), skip=["features.0"])
    fit(thin, data, epochs=4, loss=DistillationLoss(net), callbacks=[pruner], **SETTINGS | {"lr": 0.1})
    end = float(evaluate(thin, data.validation))
    print(f"start {start:.3f}, end {end:.3f}")
    assert end > start + 0.05


@pytest.mark.parametrize(
    ("bits", "grid", "margin"), [(3, {"per_channel": False, "clip": False}, 0.3), (2, {"clip": True}, 0.02)]
)
def test_rounding_in_the_loop_is_ahead_and_training_on_alone_is_not(net, data, bits, grid, margin):
    train_on = {"epochs": 2, "label_smoothing": 0.1} | SETTINGS | {"lr": 0.05}
    longer, aware = copy.deepcopy(net), copy.deepcopy(net)
    fit(longer, data, **train_on)
    fit(aware, data, callbacks=[QuantizationAware(bits, **grid)], **train_on)
    ways = {"rounded": quantization.round_weights(net, bits, **grid), "aware": aware}
    ways |= {"trained on": quantization.round_weights(longer, bits, **grid)}
    found = {way: accuracy(model, data) for way, model in ways.items()}
    print(bits, found)
    assert found["aware"] > max(found["rounded"], found["trained on"]) + margin


def test_a_codebook_is_ahead_of_a_grid_at_2_bits(net, data):
    shared, rounded = quantization.codebook(net, 2, per_channel=False), quantization.round_weights(net, 2)
    found = [accuracy(model, data) for model in (shared, rounded)]
    print("codebook, grid", found)
    assert found[0] > found[1] + 0.1


def test_what_undoes_what(data):
    torch.manual_seed(0)
    net = models.build("vgg11", width=0.25)
    ranks = dict.fromkeys(list(low_rank.factorizable(net))[1:-1], 8)
    pruned = copy.deepcopy(net)
    pruning.prune_once(pruned, 0.9)

    def zeros(model):
        weights = [
            weight for name, weight in pruning.prunable(model).items() if name.startswith(tuple(ranks))
        ]
        return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)

    def trained(model):
        model, brief = copy.deepcopy(model), replace(data, train=data.train.take(slice(0, 200)))
        fit(model, brief, epochs=1, **SETTINGS | {"batch_size": 100, "lr": 0.05})
        return model

    rounded = quantization.round_weights(net, 8)
    assert zeros(pruned) > 0.8
    assert zeros(low_rank.factorize(pruned, ranks=ranks)) < 0.01
    assert zeros(quantization.round_weights(pruned, 8)) >= zeros(pruned)
    assert zeros(trained(pruned)) < 0.01
    assert peers.on_grid(rounded) == 1
    assert peers.on_grid(trained(rounded)) < 0.1
