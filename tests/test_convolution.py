import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import convolution, evaluation, models
from helpers.convolution import SmallMaps


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
    mine, reference = convolution._convolve(*ours, stride, padding), F.conv2d(*theirs, stride, padding)
    assert mine.shape == reference.shape
    assert mine.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(mine, reference, atol=1e-12)
    weights = torch.randn_like(reference)
    (mine * weights).sum().backward()
    (reference * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-12)
    assert torch.allclose(
        convolution._convolve(*tensors[:2], None, stride, padding),
        F.conv2d(*tensors[:2], None, stride, padding),
        atol=1e-12,
    )


def counted(monkeypatch):
    """Return a list that grows by one width with every convolution that became a product."""
    seen, original = [], convolution._convolve

    def counting(images, *arguments):
        seen.append(images.shape[3])
        return original(images, *arguments)

    monkeypatch.setattr(convolution, "_convolve", counting)
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


class Tiled:
    """Autocast to bfloat16 with SmallMaps inside it."""

    def __enter__(self):
        self.contexts = [torch.autocast("cpu", torch.bfloat16), SmallMaps()]
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *error):
        for context in reversed(self.contexts):
            context.__exit__(*error)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2, padding=2), nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, stride=(1,)), nn.Conv2d(4, 4, (3, 1), padding=(0, 2)),
    ],
    ids=["groups", "dilation", "same", "short stride", "six pixels wide"],
)  # fmt: skip
def test_what_it_does_not_know_is_left_to_pytorch(monkeypatch, layer):
    seen, pictures = counted(monkeypatch), torch.randn(2, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(pictures)
    with Tiled():
        assert torch.equal(layer(pictures), expected)
        assert torch.equal(layer(pictures[0]), expected[0])  # one picture without a batch
    assert not seen


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_padding_of_any_kind(monkeypatch, mode):
    seen, pictures, layer = (
        counted(monkeypatch),
        torch.randn(2, 4, 4, 4),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode),
    )
    with Tiled():
        tiled = layer(pictures)
    assert torch.allclose(tiled.float(), layer(pictures), atol=0.05)
    assert len(seen) == 1


def test_it_takes_conv2d_with_short_arguments_and_an_empty_batch(monkeypatch):
    seen, weight = counted(monkeypatch), torch.randn(5, 4, 3, 3)
    for count in (2, 0):
        pictures = torch.randn(count, 4, 4, 4)
        with Tiled():
            answers = F.conv2d(pictures, weight, None, (1, 1), (1, 1))
        assert answers.shape == (count, 5, 4, 4)
        assert torch.allclose(answers.float(), F.conv2d(pictures, weight, None, 1, 1), atol=0.2)
    assert len(seen) == 2


def test_only_what_autocast_would_compute_in_bfloat16(monkeypatch):
    seen, pictures, layer = counted(monkeypatch), torch.randn(2, 4, 4, 4), nn.Conv2d(4, 4, 3, padding=1)
    with SmallMaps():
        assert layer(pictures).dtype == torch.float32  # no autocast at all
    with Tiled(), torch.autocast("cpu", enabled=False):
        assert layer(pictures).dtype == torch.float32  # a block that is kept out of it
    with Tiled():
        assert layer.double()(pictures.double()).dtype == torch.float64
    assert not seen


def test_gradients_in_bfloat16_are_pytorchs(monkeypatch):
    torch.manual_seed(0)
    pictures, layer = torch.randn(64, 32, 4, 4), nn.Conv2d(32, 48, 3, padding=1)
    gradients, seen = [], counted(monkeypatch)
    for context in (torch.autocast("cpu", torch.bfloat16), Tiled(), torch.autocast("cpu", enabled=False)):
        layer.zero_grad()
        own = pictures.clone().requires_grad_()
        with context:
            layer(own).float().square().sum().backward()
        gradients.append([own.grad, layer.weight.grad.clone(), layer.bias.grad.clone()])
    assert len(seen) == 1
    for plain, tiled, exact in zip(*gradients, strict=True):
        errors = [float((each - exact).norm() / exact.norm()) for each in (plain, tiled)]
        assert errors[1] < max(3 * errors[0], 0.01)


def test_a_compiled_network_is_one_graph_and_the_same(monkeypatch):
    torch.manual_seed(0)
    model = models.build("vgg19", width=0.125).eval()
    pictures = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad(), Tiled():
        assert torch.equal(compiled(pictures), model(pictures))


@pytest.mark.parametrize(
    ("tiles", "precision", "taken"), [(True, "bf16", 8), (True, "fp32", 0), (False, "bf16", 0)]
)
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
