"""What lesson 04 shows, on digits: it fails where the lesson would stop showing it."""

import copy
from dataclasses import replace

import pytest
import torch

from helpers import low_rank, pruning, quantization
from helpers.benchmark import peers
from helpers.data import load_data
from helpers.distillation import DistillationLoss
from helpers.evaluation import evaluate, recalibrate
from helpers.lesson import FAST, Lesson
from helpers.quantization import QuantizationAware
from helpers.training import fit

SETTINGS = FAST | {"batch_size": 50, "progress": False}
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module", params=SEEDS)
def net(request, data):
    model = Lesson("quick", data).student(request.param)
    fit(model, data, epochs=4, label_smoothing=0.1, seed=request.param, **SETTINGS)
    return model


def accuracy(model, data):
    return float(evaluate(recalibrate(model, data.train.take(slice(0, 1_000))), data.validation))


def test_from_a_seventh_with_half_of_it_pruned_it_ends_higher_than_it_began(net, data):
    pictures = data.train.take(slice(0, 1_000))
    thin = low_rank.factorize(net, budget=1 / 7, count="both", skip=["features.0"], pictures=pictures)
    start = accuracy(thin, data)
    pruner = pruning.GradualPruner(pruning.PolynomialSchedule(0.5, end=0.7), skip=["features.0"])
    fit(thin, data, epochs=4, loss=DistillationLoss(net), callbacks=[pruner], **SETTINGS | {"lr": 0.1})
    end = float(evaluate(thin, data.validation))
    print(f"seventh: {start:.3f} -> {end:.3f}")
    assert end > start + 0.05


def test_at_few_bits_training_with_rounding_is_ahead_and_training_alone_is_not(net, data):
    longer, found = copy.deepcopy(net), {}
    train_on = {"epochs": 1, "label_smoothing": 0.1} | SETTINGS | {"lr": 0.05}
    fit(longer, data, **train_on)
    for bits in (3, 2):
        aware = copy.deepcopy(net)
        fit(aware, data, callbacks=[QuantizationAware(bits)], **train_on)
        ways = {
            "rounded": quantization.round_weights(net, bits),
            "codebook": quantization.codebook(net, bits),
        }
        ways |= {"trained on": quantization.round_weights(longer, bits), "aware": aware}
        found[bits] = {way: accuracy(model, data) for way, model in ways.items()}
        print(bits, {way: round(value, 3) for way, value in found[bits].items()})
    for bits, margin in ((3, 0.0), (2, 0.2)):
        assert found[bits]["aware"] > found[bits]["rounded"] + margin
        assert found[bits]["aware"] > found[bits]["trained on"] + margin
    assert found[2]["codebook"] > found[2]["rounded"]


def test_what_undoes_what():
    torch.manual_seed(0)
    data = load_data("digits")
    net = Lesson("quick", data).student()
    ranks = {"features.13": 8, "features.20": 8}
    pruned = copy.deepcopy(net)
    pruning.prune_once(pruned, 0.9)

    def zeros(model):
        weights = [w for name, w in pruning.prunable(model).items() if name.startswith(tuple(ranks))]
        return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)

    def trained(model):
        model = copy.deepcopy(model)
        brief = replace(data, train=data.train.take(slice(0, 200)))
        fit(model, brief, epochs=1, **SETTINGS | {"batch_size": 100, "lr": 0.05})
        return model

    rounded = quantization.round_weights(net, 8)
    assert zeros(pruned) > 0.5
    assert zeros(low_rank.factorize(pruned, ranks=ranks)) < 0.01
    assert zeros(quantization.round_weights(pruned, 8)) >= zeros(pruned)
    assert zeros(trained(pruned)) < 0.01
    assert peers.on_grid(rounded) == 1
    assert peers.on_grid(trained(rounded)) < 0.1
