import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from helpers import evaluation, models
from helpers.data import load_data, normalize
from helpers.evaluation import (
    Accuracy,
    Paired,
    evaluate,
    measure,
    paired,
    picture_shape,
    predict,
    recalibrate,
)


class Mixed(nn.Module):
    """Two batch normalisations in a row of layers, and a dropout that must not disturb the second."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(4, momentum=0.3), nn.BatchNorm1d(10, momentum=None)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 5, stride=5), self.first, nn.ReLU(), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(144, 10), self.second)

    def forward(self, images):
        return self.head(self.body(images))


def states(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# -- accuracy ----------------------------------------------------------------------------------------------


def test_accuracy_prints_percent_count_and_interval():
    accuracy = Accuracy(9421, 10_000)
    assert str(accuracy) == "94.2% (9,421 of 10,000; 93.7 to 94.7)"
    assert float(accuracy) == 0.9421
    assert Accuracy(np.int64(1), 2) == Accuracy(1, 2)
    for correct, total, name in ((6, 5, "correct"), (-1, 5, "correct"), (0, 0, "total"), (1.0, 5, "correct")):
        with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
            Accuracy(correct, total)


@pytest.mark.parametrize("total", [1, 10, 300, 10_000])
def test_the_interval_is_wilsons_formula(total):
    z = 1.959963984540054
    for correct in {0, 1, total // 3, total // 2, total - 1, total}:
        p, scale = correct / total, 1 + z * z / total
        middle = p + z * z / (2 * total)
        half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
        expected = max(0, (middle - half) / scale), min(1, (middle + half) / scale)
        found = Accuracy(correct, total).interval
        assert found == pytest.approx(expected, abs=1e-14)
        assert all(type(end) is float for end in found)
    # By hand, z^2 = 3.8415; for 8 of 10: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half-width 0.22659.
    assert Accuracy(8, 10).interval == pytest.approx((0.49015, 0.94333), abs=1e-4)


def test_evaluate_counts_what_a_plain_loop_counts(digits):
    model = Mixed()
    evaluating = model(normalize(digits.train.images, digits))  # statistics, and modes of their own
    assert len(evaluating) == len(digits.train)
    model.first.eval()
    modes = [module.training for module in model.modules()]
    found = evaluate(model, digits.test, batch_size=7)
    assert [module.training for module in model.modules()] == modes
    with torch.no_grad():
        plain = model.eval()(normalize(digits.test.images, digits)).argmax(1)
    assert found == Accuracy(int((plain == digits.test.labels).sum()), 300)
    assert 0 < found.correct < 300
    logits = predict(model, digits.test)
    assert logits.shape == (300, 10)
    assert not logits.requires_grad


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_of_other_precisions_are_measured_as_they_are(digits, kind):
    some, model = digits.test.take(slice(0, 40)), models.build("tiny_convnet", width=0.2)
    expected = predict(model, some)
    found = predict(model.to(kind), some)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5 if kind == torch.float64 else 0.05)


def test_a_network_without_weights_is_measured(digits):
    with pytest.raises(ValueError, match="model must map pictures to logits"):
        evaluate(nn.Identity(), digits.test)
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    assert predict(flat, digits.test).shape == (300, 12)


def test_bf16_is_found_where_the_processor_has_it():
    assert isinstance(evaluation.has_bf16(), bool)
    for precision, enabled in (("fp32", False), ("bf16", True), ("auto", evaluation.has_bf16())):
        with evaluation.autocast(torch.device("cpu"), precision):
            assert torch.is_autocast_enabled("cpu") is enabled
    with pytest.raises(ValueError, match="precision"):  # when it is called, not when the block begins
        evaluation.autocast(torch.device("cpu"), "fp8")


# -- batch normalisation taken anew ------------------------------------------------------------------------


def test_statistics_of_one_batch_are_those_of_the_pictures(digits):
    """Against mean and variance written out; what lies behind the first layer sees it normalised by them."""
    some, model = digits.train.take(slice(0, 60)), Mixed().double()
    fresh, images = recalibrate(model, some), normalize(some.images, digits).double()
    with torch.no_grad():
        maps = model.body[0](images)
        mean, variance = maps.mean((0, 2, 3)), maps.var((0, 2, 3), unbiased=False)
        shown = (maps - mean[:, None, None]) / (variance[:, None, None] + model.first.eps).sqrt()
        logits = model.head[1](shown.relu().flatten(1))  # no dropout
    assert torch.allclose(fresh.first.running_mean, mean)
    assert torch.allclose(fresh.first.running_var, maps.var((0, 2, 3)))
    assert torch.allclose(fresh.second.running_mean, logits.mean(0))
    assert torch.allclose(fresh.second.running_var, logits.var(0))


def test_of_several_batches_they_are_the_plain_average_and_a_smaller_last_one_is_left_out(digits):
    model = Mixed()
    fresh = recalibrate(model, digits.train.take(slice(0, 70)), batch_size=20)
    parts = [recalibrate(model, digits.train.take(slice(start, start + 20))) for start in (0, 20, 40)]
    for layer in ("first", "second"):
        for name in ("running_mean", "running_var"):
            mean = torch.stack([getattr(getattr(part, layer), name) for part in parts]).mean(0)
            assert torch.allclose(getattr(getattr(fresh, layer), name), mean, atol=1e-6)
        assert getattr(fresh, layer).num_batches_tracked == 3


def test_they_are_torchs_own_cumulative_average(digits):
    some, model = digits.train.take(slice(0, 64)), models.build("tiny_convnet", width=0.2)
    loader = normalize(some.images, digits).split(16)
    reference = models.build("tiny_convnet", width=0.2)
    reference.load_state_dict(model.state_dict())
    torch.optim.swa_utils.update_bn(loader, reference)
    fresh = recalibrate(model, some, batch_size=16)
    for name, tensor in reference.state_dict().items():
        assert torch.allclose(fresh.state_dict()[name], tensor, atol=1e-6), name


def test_the_model_stays_as_it_is_and_the_copy_keeps_modes_and_momenta(digits):
    some, model = digits.train.take(slice(0, 30)), Mixed().train()
    model.first.eval()
    model.head[1].weight.requires_grad_(False)
    before, modes = states(model), [module.training for module in model.modules()]
    fresh = recalibrate(model, some, batch_size=10)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for network in (model, fresh):
        assert [module.training for module in network.modules()] == modes
        assert (network.first.momentum, network.second.momentum) == (0.3, None)
        assert not network.head[1].weight.requires_grad
        assert all(weight.grad is None for weight in network.parameters())
    assert not torch.equal(fresh.first.running_mean, model.first.running_mean)
    assert torch.equal(fresh.body[0].weight, model.body[0].weight)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_other_precisions_keep_theirs(digits, kind):
    some, model = digits.train.take(slice(0, 50)), models.build("tiny_convnet", width=0.2)
    expected = recalibrate(model, some)
    fresh = recalibrate(model.to(kind), some)
    for name, tensor in fresh.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dtype == kind
            assert torch.allclose(tensor.float(), expected.state_dict()[name], rtol=0.02, atol=0.02), name


def test_without_batch_normalisation_or_statistics_the_copy_equals_the_model(digits):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.BatchNorm1d(10, track_running_stats=False))
    for split in (digits.train, digits.train.take(slice(0, 0))):
        fresh = recalibrate(plain, split)
        assert fresh is not plain
        assert all(
            torch.equal(a, b) for a, b in zip(states(fresh).values(), states(plain).values(), strict=True)
        )


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pictures_are_refused(digits, count):
    with pytest.raises(ValueError, match="split must hold at least two pictures"):
        recalibrate(models.build("tiny_convnet", width=0.2), digits.train.take(slice(0, count)))


def test_measure_counts_both_and_repairs_stale_statistics(digits):
    model, some = Mixed(), digits.validation
    with torch.no_grad():
        model.train()(normalize(digits.train.images, digits))
        model.first.running_mean += 3  # as of another network
    found = measure(model, some, digits.train)
    as_is, fresh = evaluate(model, some), evaluate(recalibrate(model, digits.train), some)
    assert found == {
        "correct": as_is.correct,
        "recalibrated_correct": fresh.correct,
        "total": 200,
        "accuracy": as_is.correct / 200,
        "recalibrated": fresh.correct / 200,
    }
    assert as_is != fresh


def test_a_picture_has_the_shape_of_the_datas_and_else_the_default():
    data = load_data("digits")
    assert picture_shape(data, (1, 3, 8, 8)) == picture_shape(data.train, (1, 3, 8, 8)) == (1, 3, 32, 32)
    assert picture_shape(None, (1, 3, 8, 8)) == (1, 3, 8, 8)


# -- pairs -------------------------------------------------------------------------------------------------


def test_pairs_are_counted_whatever_holds_them():
    first, second, labels = [0, 1, 2, 3, 4, 5], [0, 1, 0, 0, 4, 0], [0, 0, 2, 3, 0, 0]
    for kind in (torch.tensor, np.array, lambda values: np.array(values, dtype=np.uint8)):
        found = paired(kind(first), torch.tensor(second), kind(labels))
        assert found == Paired(2, 1, 6)
        assert found.points == pytest.approx(100 / 6)
    assert str(Paired(62, 73, 10_000)) == "-0.11 points (62 against 73 of 10,000; p 0.39)"
    half = 1.96 * math.sqrt(401) / 100  # of 400 pictures that differ, and one
    assert Paired(300, 100, 10_000).interval == pytest.approx((2 - half, 2 + half))
    assert Paired(0, 99, 10_000).largest_loss == pytest.approx(0.99 + 0.196)  # 99 lost; 1.96 times 10 more
    assert Paired(0, 0, 100).largest_loss == pytest.approx(1.96)  # none differs: one more might


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (0, 5), (5, 5), (3, 9), (9, 3), (62, 73), (400, 300)])
def test_p_is_mcnemars_exact_test(a, b):
    """Twice the smaller tail of a fair coin's a + b throws, at most 1: worked out, and scipy's."""
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1))
    found = Paired(a, b, 10_000).p_value
    assert found == pytest.approx(float(min(1, 2 * tail / 2 ** (a + b))), rel=1e-9)
    assert found == pytest.approx(min(1, 2 * stats.binom.cdf(min(a, b), a + b, 0.5)), rel=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [torch.tensor([1, 2]), torch.zeros(3, 10), torch.tensor(1), np.zeros((3, 1)), [1, 2, 3], "abc", None],
    ids=range(7),
)
def test_answers_that_do_not_fit_are_named(wrong):
    good = torch.tensor([0, 1, 2])
    for position, name in enumerate(("answers_a", "answers_b", "labels")):
        arguments = [wrong if place == position else good for place in range(3)]
        with pytest.raises((TypeError, ValueError), match=name):
            paired(*arguments)
    with pytest.raises(ValueError, match="answers_a"):
        paired(*[torch.zeros(0)] * 3)


def test_a_network_without_batch_normalisation_is_recalibrated_by_being_copied():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(4, 10)).eval()
    some = load_data("digits").train.take(slice(0, 20))
    copied = recalibrate(model, some)
    assert copied is not model
    torch.testing.assert_close(predict(copied, some), predict(model, some), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("logits", "hint"), [(3, "got 3$"), (1, r"got 1: of one logit z, .*torch.cat\(\[0 \* z, z\]")]
)
def test_a_network_with_fewer_logits_than_classes_is_not_counted_as_wrong(logits, hint):
    pictures = load_data("digits").test.take(slice(0, 60))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, logits))
    with pytest.raises(ValueError, match=f"model must give a logit for each class, 0 to 9, {hint}"):
        evaluation.evaluate(model, pictures)


def test_more_differing_pictures_than_pictures_are_refused():
    with pytest.raises(
        ValueError, match="only_first and only_second must be at most total, 3, together, got 10"
    ):
        evaluation.Paired(5, 5, 3)


def test_what_cannot_be_recalibrated_is_said_of_the_model():
    pictures = load_data("digits").test.take(slice(0, 4))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="model must take pictures of 1 x 3 x 32 x 32 in train mode"):
        evaluation.recalibrate(model, pictures, batch_size=1)  # there is no spread of one number


def test_a_view_that_needs_channels_first_is_named_with_its_way_out():
    class View(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4 * 30 * 30, 10)

        def forward(self, images):
            return self.linear(self.conv(images).view(len(images), -1))

    with pytest.raises(ValueError, match=r"model must call \.reshape where it calls \.view"):
        evaluation.evaluate(View(), load_data("digits").test.take(slice(0, 8)))
