"""What lesson 02 shows, on digits: it fails if the lesson stops showing what it says."""

import copy

import pytest
import torch

from helpers import models, profiling, pruning
from helpers.data import batches, load_data
from helpers.evaluation import evaluate, predict, recalibrate
from helpers.pruning import GradualPruner, PolynomialSchedule
from helpers.training import fit


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(data):
    torch.manual_seed(0)
    model = models.build("vgg11", width=0.125)
    fit(model, data, epochs=10, batch_size=64, progress=False)
    return model


def sparser(model, sparsity):
    copied = copy.deepcopy(model)
    pruning.prune_once(copied, sparsity)
    return copied


def trained_on(model, data, sparsity, begin):
    copied = copy.deepcopy(model)
    pruner = GradualPruner(PolynomialSchedule(sparsity, initial_sparsity=begin, end=0.7), every=1)
    fit(copied, data, epochs=10, batch_size=64, lr=0.05, callbacks=[pruner], progress=False)
    return evaluate(recalibrate(copied, data.train.take(slice(0, 300))), data.validation)


def spreads(model, pictures):
    found = []

    def note(name, layer, inputs, named, output):
        found.append(inputs[0].var((0, 2, 3)).mean())

    norms = {n: layer for n, layer in model.named_modules() if isinstance(layer, torch.nn.BatchNorm2d)}
    with torch.no_grad(), profiling.hooked(norms, note):
        model(pictures)
    return torch.stack(found).sqrt()


def test_recalibrated_is_above_as_it_falls_out(trained, data):
    pruned = sparser(trained, 0.9)
    as_is = evaluate(pruned, data.validation)
    again = evaluate(recalibrate(pruned, data.train.take(slice(0, 300))), data.validation)
    assert float(again) > float(as_is) + 0.2


def test_the_spread_shrinks_with_depth(trained, data):
    pictures, _ = next(batches(data.train, 200))
    left = spreads(sparser(trained, 0.9), pictures) / spreads(trained, pictures)
    assert left[0] > 0.9
    assert left[-1] < 0.5


def test_gradual_is_above_at_once_at_the_extreme_and_level_with_it_before(trained, data):
    once, gradual = (trained_on(trained, data, 0.993, begin) for begin in (0.993, 0.0))
    assert float(gradual) > float(once) + 0.2
    once, gradual = (trained_on(trained, data, 0.95, begin) for begin in (0.95, 0.0))
    assert abs(float(gradual) - float(once)) < 0.04


def test_size_is_a_better_guide_than_the_gradient_without_training(trained, data):
    weights, few = pruning.prunable(trained), data.train.take(slice(0, 300))
    by_size = {name: weight.detach().abs() for name, weight in weights.items()}
    by_gradient = dict.fromkeys(weights, 0)
    for images, labels in batches(few, 100):
        trained.zero_grad()
        torch.nn.functional.cross_entropy(trained(images), labels).backward()
        by_gradient = {n: by_gradient[n] + (w * w.grad).detach().abs() for n, w in weights.items()}
    found = []
    for importance in (by_size, by_gradient):
        copied, masks = copy.deepcopy(trained), pruning.masks_for(importance, 0.9)
        for name, weight in pruning.prunable(copied).items():
            weight.data *= masks[name]
        found.append(float(evaluate(recalibrate(copied, few), data.validation)))
    assert found[0] > found[1] + 0.05


def test_zeros_leave_the_work_as_it_was_and_channels_take_it_away_and_learn_again(trained, data):
    macs = profiling.count_macs(trained)
    assert profiling.count_macs(sparser(trained, 0.9)) == macs
    thin = pruning.prune_channels(trained, data.train.images[:1].float(), 0.5, round_to=1)
    assert profiling.count_macs(thin) < 0.3 * macs
    few = data.train.take(slice(0, 300))
    as_is, again = (evaluate(one, data.validation) for one in (thin, recalibrate(thin, few)))
    fit(thin, data, epochs=5, batch_size=64, lr=0.05, progress=False)
    assert float(again) > float(as_is) + 0.05
    assert float(evaluate(thin, data.validation)) > float(again) + 0.05
    assert float(evaluate(thin, data.validation)) > float(evaluate(trained, data.validation)) - 0.03


def test_a_filter_of_zeros_still_speaks_and_a_dead_channel_goes_unnoticed(trained, data):
    dead = copy.deepcopy(trained)
    pictures, _ = next(batches(data.train, 50))
    filters, norm = dead.features[0], dead.features[1]
    channel = int((norm.bias - norm.weight * norm.running_mean / norm.running_var.sqrt()).argmax())
    with torch.no_grad():
        filters.weight[channel] = filters.bias[channel] = 0
        assert dead.features[:3](pictures)[:, channel].max() > 0.01
        norm.weight[channel] = norm.bias[channel] = 0
        assert dead.features[:3](pictures)[:, channel].max() == 0
    share = 1 / filters.out_channels
    removed = pruning.prune_channels(dead, pictures[:1], {"features.0": share}, round_to=1)
    assert removed.features[0].out_channels == filters.out_channels - 1
    assert predict(removed, data.validation) == pytest.approx(predict(dead, data.validation), abs=1e-4)
