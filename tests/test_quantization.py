"""Quantization against numbers worked by hand and PyTorch's own."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn

from helpers import models, pruning, quantization
from helpers.callbacks import Callback, Run
from helpers.data import load_data
from helpers.evaluation import evaluate, recalibrate
from helpers.pruning import GradualPruner
from helpers.quantization import QuantizationAware
from helpers.training import fit


def test_the_grid_worked_by_hand():
    scale, zero = quantization.affine_grid(-1.0, 1.55, bits=8)  # 2.55 over 255 steps
    assert (scale, zero) == (pytest.approx(0.01), 100)
    values = torch.tensor([-1.0, 0.0, 0.004, 0.006, 1.55, 9.0])
    integers = quantization.quantize(values, scale, zero)
    assert integers.tolist() == [0, 100, 100, 101, 255, 255]
    assert quantization.dequantize(integers, scale, zero).tolist() == pytest.approx(
        [-1, 0, 0, 0.01, 1.55, 1.55]
    )
    assert quantization.affine_grid(2.0, 3.0, bits=2) == (1.0, 0)  # stretched to hold 0
    assert quantization.affine_grid(0.0, 0.0) == (1.0, 0)


@given(st.floats(-100, 100), st.floats(0.01, 100), st.integers(2, 12), st.integers(0, 2**31))
@settings(deadline=None, max_examples=100)
def test_the_grid_is_pytorchs_and_no_value_inside_is_off_by_more_than_half_a_step(low, width, bits, seed):
    scale, zero = quantization.affine_grid(low, low + width, bits)
    values = torch.rand(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * width + low
    back = quantization.dequantize(quantization.quantize(values, scale, zero, bits), scale, zero)
    assert (back - values).abs().max() <= scale * (
        0.5 + 0.5
    ) + 1e-9  # half a step, and half for a rounded zero point at the ends
    assert quantization.dequantize(torch.tensor(zero), scale, zero) == 0
    theirs = torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, 0, 2**bits - 1)
    assert (
        back.float() - theirs
    ).abs().max() <= scale + 1e-4  # a value in the middle may be rounded either way


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_rounded_as_pytorchs_fake_quantize_does(bits, per_channel):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    rounded = quantization.round_weights(layer, bits, per_channel=per_channel).weight.detach()
    weight, top = layer.weight.detach(), 2 ** (bits - 1) - 1
    if per_channel:
        scales = weight.abs().flatten(1).amax(1) / top
        expected = torch.fake_quantize_per_channel_affine(
            weight, scales, torch.zeros(4, dtype=torch.int32), 0, -top, top
        )
    else:
        expected = torch.fake_quantize_per_tensor_affine(
            weight, float(weight.abs().max() / top), 0, -top, top
        )
    assert torch.allclose(rounded, expected, atol=1e-6)
    assert all(len(channel.unique()) <= 2**bits - 1 for channel in rounded)


def test_sweep_says_what_rounding_and_evaluating_say():
    data = load_data("digits")
    model = models.build("tiny_convnet", width=0.25)
    calibration = data.train.take(slice(0, 100))
    table = quantization.sweep(model, data.validation, (2, 8), calibration=calibration)
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    for row in table.itertuples():
        rounded = quantization.round_weights(model, row.bits)
        assert row.correct == evaluate(rounded, data.validation).correct
        assert (
            row.recalibrated_correct == evaluate(recalibrate(rounded, calibration), data.validation).correct
        )
        assert row.bytes == math.ceil(weights * row.bits / 8)


def test_entropy_and_huffman_worked_by_hand():
    counts = {0: 4, 1: 2, 2: 1, 3: 1}
    assert quantization.huffman_lengths(counts) == {0: 1, 1: 2, 2: 3, 3: 3}
    values = torch.tensor([0] * 4 + [1] * 2 + [2, 3])
    assert quantization.entropy(values) == pytest.approx(1.75)  # 1/2 * 1 + 1/4 * 2 + 2 * 1/8 * 3
    assert quantization.huffman_lengths({7: 3}) == {7: 1}
    assert quantization.entropy(torch.ones(5)) == 0


@given(st.dictionaries(st.integers(), st.integers(1, 1000), min_size=2, max_size=40))
@settings(deadline=None)
def test_huffman_is_a_full_prefix_code_within_a_bit_of_the_entropy(counts):
    lengths = quantization.huffman_lengths(counts)
    assert sum(2.0**-length for length in lengths.values()) == pytest.approx(1)  # Kraft: complete
    total = sum(counts.values())
    average = sum(counts[s] * lengths[s] for s in counts) / total
    bound = -sum(c / total * math.log2(c / total) for c in counts.values())
    assert bound - 1e-9 <= average < bound + 1


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: quantization.affine_grid(1.0, 0.0), "high"),
        (lambda: quantization.affine_grid(math.nan, 1.0), "low"),
        (lambda: quantization.affine_grid(0.0, 1.0, 0), "bits"),
        (lambda: quantization.quantize(torch.ones(2), 0.0, 0), "scale"),
        (lambda: quantization.round_weights(nn.Linear(2, 2), 1), "bits"),
        (lambda: quantization.codebook(nn.Linear(2, 2), 9), "bits"),
        (lambda: quantization.k_means(torch.tensor([1.0, math.nan]), 2), "values"),
        (lambda: QuantizationAware(1), "bits"),
        (lambda: quantization.huffman_lengths({}), "counts"),
        (lambda: quantization.huffman_lengths({1: 0}), "counts"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=f"{name} must"):
        call()


def test_symmetric_grid_by_hand():
    integers, scale = quantization.symmetric_grid(torch.tensor([[0.5, -1.0, 0.26], [0.0, 0.0, 0.0]]), 3)
    assert integers.tolist() == [[2, -3, 1], [0, 0, 0]]  # 0.5 * 3 = 1.5 rounds to the even 2
    assert scale[0].item() == pytest.approx(1 / 3)
    together, one = quantization.symmetric_grid(torch.tensor([[1.0, 0.5], [0.1, 0.0]]), 3, per_channel=False)
    assert together.tolist() == [[3, 2], [0, 0]]
    assert one.unique().numel() == 1


# -- a codebook --------------------------------------------------------------------------------------------


def test_k_means_worked_by_hand():
    # 0 and 6 to start with: 0, 1, 2 are nearer to 0, and 6 is its own mean; 1 and 6 stay
    centers, numbers = quantization.k_means(torch.tensor([2.0, 0.0, 6.0, 1.0]), bits=1)
    assert centers.tolist() == [1.0, 6.0]
    assert numbers.tolist() == [0, 0, 1, 0]


def test_k_means_is_sklearns():
    torch.manual_seed(0)
    weight = nn.Conv2d(16, 32, 3).weight.detach().flatten()
    centers, numbers = quantization.k_means(weight, bits=3)
    start = torch.linspace(float(weight.min()), float(weight.max()), 8).numpy()[:, None]
    theirs = KMeans(8, init=start, n_init=1, max_iter=100, tol=0).fit(weight.numpy()[:, None])
    assert np.allclose(np.sort(theirs.cluster_centers_.ravel()), centers, atol=1e-4)
    assert theirs.inertia_ == pytest.approx(float((centers[numbers] - weight).square().sum()), rel=1e-3)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_codebook_has_few_values_keeps_zeros_and_is_nearer_than_a_grid(per_channel):
    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.25)
    pruning.prune_once(model, 0.5, "layer")
    before = copy.deepcopy(model.state_dict())
    shared = quantization.codebook(model, 2, per_channel=per_channel)
    rounded = quantization.round_weights(model, 2, per_channel=per_channel)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, weight in pruning.prunable(model).items():
        found = pruning.prunable(shared)[name]
        values = [channel[channel != 0].unique() for channel in (found if per_channel else found[None])]
        assert all(len(each) <= 4 for each in values)
        assert torch.equal(found == 0, weight == 0)
        grid = pruning.prunable(rounded)[name]
        assert (found - weight).square().sum() < (grid - weight).square().sum()


def test_a_layer_of_zeros_and_one_of_a_single_value_have_a_codebook():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[1].weight, 0.3)
    shared = quantization.codebook(model, 4)
    assert all(torch.allclose(one.weight, other.weight) for one, other in zip(model, shared, strict=True))


# -- rounding in the loop ----------------------------------------------------------------------------------


def test_the_straight_through_step_by_hand():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.4]])
    run = Run(layer, torch.optim.SGD(layer.parameters(), lr=0.2), steps=2)
    callback = QuantizationAware(2)  # levels -1, 0 and 1, times the largest weight
    callback.on_start(run)
    assert layer.weight.tolist() == [[1.0, 0.0]]
    steps = (  # gradient, exact weight after the step, what the next step computes with
        ([0.0, -1.0], [1.0, 0.6], [1.0, 1.0]),  # 0.6 rounds up: it has got there from 0.4, behind a rounded 0
        ([-2.0, 0.0], [1.4, 0.6], [1.4, 0.0]),  # the grid has grown: 0.6 is nearer to 0 than to 1.4
    )
    for gradient, exact, rounded in steps:
        layer.weight.grad = torch.tensor([gradient])
        callback.on_gradients(run)
        run.optimizer.step()
        assert layer.weight.tolist() == [pytest.approx(exact)]
        run.step += 1
        callback.on_step(run)
        assert layer.weight.tolist() == [pytest.approx(rounded)]


class Watch(Callback):
    """Notes the weights that each gradient was computed with."""

    def on_gradients(self, run):
        self.seen = {name: weight.detach().clone() for name, weight in pruning.prunable(run.model).items()}


def few(pictures=60):
    data = load_data("digits")
    return replace(
        data, train=data.train.take(slice(0, pictures)), validation=data.validation.take(slice(0, 50))
    )


def short(model, *callbacks, **settings):
    return fit(
        model, few(), callbacks=callbacks, **{"epochs": 2, "batch_size": 20, "progress": False} | settings
    )


def test_gradients_come_from_rounded_weights_and_the_rounded_network_is_left():
    torch.manual_seed(0)
    model, watch = models.build("micro_convnet", width=0.25), Watch()
    start = copy.deepcopy(model)
    callback = QuantizationAware(3)
    table = short(model, watch, callback)
    for name, seen in watch.seen.items():
        assert all(len(channel.unique()) <= 7 for channel in seen), name
    for name, weight in pruning.prunable(model).items():
        exact = callback.exact[name]
        assert torch.equal(weight, quantization.round_to_grid(exact, 3))
        assert not torch.equal(exact, pruning.prunable(start)[name])
    assert table["validation_accuracy"].iloc[-1] == float(evaluate(model, few().validation))


def test_enough_bits_train_as_without():
    torch.manual_seed(0)
    plain = models.build("micro_convnet", width=0.25)
    fine = copy.deepcopy(plain)
    for model, callbacks in ((plain, ()), (fine, (QuantizationAware(16),))):
        short(model, *callbacks, epochs=1, lr=0.01, precision="fp32")
    for one, other in zip(plain.parameters(), fine.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-3)


def test_what_is_pruned_stays_zero_on_the_grid():
    torch.manual_seed(0)
    model = models.build("micro_convnet", width=0.25)
    short(model, GradualPruner(lambda progress: 0.5), QuantizationAware(4))
    weights = pruning.prunable(model).values()
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros >= round(0.5 * sum(weight.numel() for weight in weights))
    assert all(len(channel.unique()) <= 15 for weight in weights for channel in weight.detach())


def test_an_interrupted_run_goes_on_from_the_exact_weights(tmp_path):
    torch.manual_seed(0)
    whole = models.build("micro_convnet", width=0.25)
    parts, file = copy.deepcopy(whole), tmp_path / "run.safetensors"

    class Stop(Callback):
        def on_row(self, run):
            if run.epoch == 1:
                raise KeyboardInterrupt

    short(whole, QuantizationAware(3))
    with pytest.raises(KeyboardInterrupt):
        short(copy.deepcopy(parts), QuantizationAware(3), Stop(), checkpoint=file)
    short(parts, QuantizationAware(3), Stop(), checkpoint=file)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_grid_that_clips_by_hand_and_is_nowhere_worse():
    weight = torch.tensor([[0.45, 0.45, 0.45, 0.5, 1.0]])
    integers, scale = quantization.symmetric_grid(weight, 2, clip=True)  # with scale 1, three would become 0
    assert integers.tolist() == [[1, 1, 1, 1, 1]]
    assert scale.item() == pytest.approx(0.55)  # nearest to the mean, 0.57, of 0.05, 0.1, ... 1
    torch.manual_seed(0)
    for weight in (torch.randn(6, 4, 3, 3), torch.randn(5, 200)):
        for per_channel in (True, False):
            error = {}
            for clip in (True, False):
                back = quantization.round_to_grid(weight, 3, per_channel=per_channel, clip=clip)
                error[clip] = (back - weight).square().flatten(1).sum(1)
            if per_channel:
                assert (error[True] <= error[False] + 1e-6).all()
            assert error[True].sum() < error[False].sum()


def test_a_pruner_behind_it_is_refused():
    data = load_data("digits", train_limit=64)
    model = models.build("tiny_convnet", width=0.2)
    callbacks = [QuantizationAware(4), GradualPruner(lambda progress: 0.9)]
    with pytest.raises(ValueError, match="QuantizationAware behind the pruner"):
        fit(model, data, epochs=1, callbacks=callbacks, progress=False)


def test_a_range_too_narrow_for_float32_has_a_grid():
    scale, zero = quantization.affine_grid(0.0, 1e-45)
    assert quantization.quantize(torch.tensor([0.0, 1e-45]), scale, zero).tolist() == [0, 0]


def test_stored_bytes_are_read_back_as_pytorch_reads_them():
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    scale, zero_point = quantization.affine_grid(-1.0, 1.0)
    stored = quantization.quantize(values, scale, zero_point).to(torch.uint8)  # which has no negative numbers
    wanted = torch.quantize_per_tensor(values, scale, zero_point, torch.quint8).dequantize()
    torch.testing.assert_close(quantization.dequantize(stored, scale, zero_point), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_to_the_nearest_level(dtype):
    values = torch.randn(2_000).to(dtype)
    scale, zero_point = quantization.affine_grid(float(values.min()), float(values.max()), 12)
    wanted = (values.double() / scale + zero_point).round().clamp(0, 4095).long()
    found = quantization.quantize(values, scale, zero_point, 12)
    assert (found - wanted).abs().max() <= 1  # in float32, against float64: ties alone
    assert int((found != wanted).sum()) <= 2


def test_the_means_of_whole_numbers_are_not_rounded():
    centers, numbers = quantization.k_means(torch.tensor([1, 2, 3, 4, 10]), bits=1)
    assert centers.tolist() == [2.5, 10.0]
    assert numbers.tolist() == [0, 0, 0, 0, 1]


def test_one_scale_is_clipped_where_all_channels_together_lose_least():
    weight = torch.cat([torch.randn(3, 200), 0.1 * torch.randn(3, 200)])
    weight[0, 0] = 9.0  # far beyond the others
    levels, scale = quantization.symmetric_grid(weight, 3, per_channel=False, clip=True)
    steps = [share / 20 * 9.0 / 3 for share in range(1, 21)]
    errors = [((weight / step).round().clamp(-3, 3) * step - weight).square().sum() for step in steps]
    torch.testing.assert_close(scale, torch.full((6, 1), steps[int(torch.stack(errors).argmin())]))
    assert int(levels.abs().max()) == 3
