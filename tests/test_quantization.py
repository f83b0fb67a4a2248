"""Quantization against numbers worked by hand and PyTorch's own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import models, quantization
from helpers.data import load_data
from helpers.evaluation import evaluate, recalibrate


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
