import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import convolution, evaluation, models
from helpers.convolution import SmallMaps, convolve


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((2, 5, 4, 4), (3, 3), (1, 1), (1, 1)),
        ((3, 4, 7, 4), (3, 1), (2, 1), (1, 0)),
        ((2, 3, 5, 6), (1, 1), (2, 2), (0, 0)),
        ((1, 2, 9, 8), (5, 3), (3, 2), (2, 1)),
        ((2, 3, 1, 1), (3, 3), (1, 1), (1, 1)),
        ((2, 3, 4, 4), (2, 4), (1, 3), (0, 2)),
    ],
)
def test_it_is_pytorchs_convolution(shape, kernel, stride, padding):
    """In float64, gradients included."""
    torch.manual_seed(0)
    tensors = [torch.randn(size, dtype=torch.float64) for size in (shape, (6, shape[1], *kernel), (6,))]
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in tensors] for _ in range(2))
    mine, reference = convolve(*ours, stride, padding), F.conv2d(*theirs, stride, padding)
    assert mine.shape == reference.shape
    assert mine.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(mine, reference, atol=1e-12)
    weights = torch.randn_like(reference)
    (mine * weights).sum().backward()
    (reference * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-12)
    assert torch.allclose(convolve(*tensors[:2], None, stride, padding), F.conv2d(*tensors[:2], None, stride, padding), atol=1e-12)


def counted(monkeypatch):
    """Return a list that grows by one width with every convolution that became a product."""
    seen, original = [], convolution.convolve

    def counting(images, *arguments):
        seen.append(images.shape[3])
        return original(images, *arguments)

    monkeypatch.setattr(convolution, "convolve", counting)
    return seen


def test_only_small_maps_are_taken_over(monkeypatch):
    seen = counted(monkeypatch)
    model = models.build("vgg19", width=0.125).eval()
    pictures = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(pictures)
        with SmallMaps():
            tiled = model(pictures)
    assert seen == [4, 4, 4, 4, 2, 2, 2, 2]
    assert tiled.dtype == plain.dtype == torch.bfloat16
    assert (tiled - plain).float().abs().max() < 0.02 * plain.float().abs().max()


def test_what_nn_conv2d_does_otherwise_is_left_to_it(monkeypatch):
    seen = counted(monkeypatch)
    pictures = torch.randn(2, 4, 4, 4)
    layers = [
        nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2, padding=2), nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ]  # fmt: skip
    for layer in layers[:3]:
        expected = layer(pictures)
        with SmallMaps():
            assert torch.equal(layer(pictures), expected)
    assert not seen
    for layer in layers[3:]:  # padded first, then an ordinary convolution without padding
        expected = layer(pictures)
        with SmallMaps():
            assert torch.allclose(layer(pictures).float(), expected, atol=0.05)
    with SmallMaps():
        layer = nn.Conv2d(4, 4, 3, padding=1)
        assert layer(torch.randn(1, 4, 5, 5)).dtype == torch.float32  # 5 pixels a row: too wide
        assert layer(torch.randn(4, 4, 4)).ndim == 3  # one picture without a batch
        assert nn.functional.conv2d(pictures, layer.weight, padding=1).dtype == torch.float32  # called with names
    assert len(seen) == 2


@pytest.mark.parametrize(("tiles", "precision", "taken"), [(True, "bf16", 8), (True, "fp32", 0), (False, "bf16", 0)])
def test_products_are_for_bfloat16_on_tiles(monkeypatch, tiles, precision, taken):
    seen = counted(monkeypatch)
    monkeypatch.setattr(evaluation, "has_tiles", lambda device: tiles)
    model = models.build("vgg19", width=0.125).eval()
    for _ in range(2):  # the context leaves nothing behind
        with torch.no_grad(), evaluation.autocast(torch.device("cpu"), precision):
            model(torch.randn(1, 3, 32, 32))
        assert len(seen) == taken
        seen.clear()
        model(torch.randn(1, 3, 32, 32))
        assert not seen


def test_only_cpus_have_tiles():
    assert not convolution.has_tiles("cuda")
