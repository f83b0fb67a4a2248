"""Channels that go: which, how many, and that the rest of the network still means what it meant."""

import copy
import sys
import warnings

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torchvision.models import SwinTransformer

from helpers import channels, models, profiling, pruning
from helpers.channels import prune_channels
from helpers.data import load_data
from helpers.evaluation import evaluate, recalibrate
from helpers.training import fit

PICTURE = torch.zeros(1, 3, 32, 32)


def outputs(model, *names):
    return [len(model.get_submodule(name).weight) for name in names]


# -- dead channels: the bookkeeping, to the weight -------------------------------------------------------------------


class Residual(nn.Module):
    """A sum ties the outputs of two convolutions together."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, images):
        features = self.stem(images)
        return self.head((features + self.body(features).relu()).mean((2, 3)))


class Concatenated(nn.Module):
    """One layer reads the outputs of two, side by side."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 4, 3), nn.Linear(12, 4)

    def forward(self, images):
        return self.head(torch.cat([self.two(images), self.one(images)], 1).mean((2, 3)))


class Shared(nn.Module):
    """One layer is used twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, images):
        return self.head(self.twice(self.twice(self.stem(images)).relu()).mean((2, 3)))


class Gated(nn.Module):
    """Squeeze and excitation: a channel is multiplied by what all channels say."""

    def __init__(self):
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        features = self.stem(images)
        gate = self.up(self.down(features.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head((features * gate).mean((2, 3)))


DEAD = [1, 4, 6]
FLAT = [place for channel in DEAD for place in range(4 * channel, 4 * channel + 4)]  # 2 x 2 places a channel
PLAIN = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
)  # fmt: skip
FLATTENED = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
)
DEPTHWISE = nn.Sequential(
    nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
)  # fmt: skip
TRANSPOSED = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "rows", "columns"),
    [
        (PLAIN, {"0": DEAD, "1": DEAD}, {"3": DEAD}),
        (Residual(), {"stem": DEAD, "body": DEAD}, {"body": DEAD, "head": DEAD}),
        (FLATTENED, {"0": DEAD}, {"4": FLAT}),
        (DEPTHWISE, {"0": DEAD, "1": DEAD, "2": DEAD, "3": DEAD}, {"4": DEAD}),
        (Concatenated(), {"one": DEAD}, {"head": [4 + place for place in DEAD]}),
        (Shared(), {"stem": DEAD, "twice": DEAD}, {"twice": DEAD, "head": DEAD}),
        (Gated(), {"stem": DEAD, "up": DEAD}, {"down": DEAD, "head": DEAD}),
        (TRANSPOSED, {"0": DEAD}, {}),
    ],
    ids=["plain", "residual", "flattened", "depthwise", "concatenated", "shared", "gated", "transposed"],
)
def test_a_network_answers_as_before_once_its_dead_channels_are_pruned_away(model, rows, columns):
    model = model.double().eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
        for name, dead in rows.items():
            model.get_submodule(name).weight[dead] = 0
            model.get_submodule(name).bias[dead] = 0
        for name, dead in columns.items():
            model.get_submodule(name).weight[:, dead] = 0
        for layer in model.modules():
            if isinstance(layer, nn.ConvTranspose2d):
                layer.weight[DEAD] = 0
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    smaller = prune_channels(model, images[:1], {next(iter(rows)): len(DEAD) / 8}, round_to=1)
    assert outputs(smaller, *rows) == [5] * len(rows)
    assert torch.allclose(smaller(images), model(images), rtol=1e-12, atol=0)


class Halves(nn.Module):
    """Half of the channels gate the others."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Linear(8, 4)

    def forward(self, images):
        one, other = self.stem(images).chunk(2, 1)
        return self.head((one * other.sigmoid()).mean((2, 3)))


class Attended(nn.Module):
    """Patches that attend to each other, and a hidden layer."""

    def __init__(self):
        super().__init__()
        self.patches, self.attention = (
            nn.Conv2d(3, 16, 4, stride=4),
            nn.MultiheadAttention(16, 2, batch_first=True),
        )
        self.norm, self.up, self.down, self.head = (
            nn.LayerNorm(16),
            nn.Linear(16, 32),
            nn.Linear(32, 16),
            nn.Linear(16, 4),
        )

    def forward(self, images):
        tokens = self.patches(images).flatten(2).mT
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        return self.head((tokens + self.down(self.up(self.norm(tokens)).relu())).mean(1))


class Functional(nn.Module):
    """A layer whose weights are read instead of calling it."""

    def __init__(self):
        super().__init__()
        self.stem, self.middle, self.last, self.head = (
            nn.Conv2d(3, 16, 3),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 4),
        )

    def forward(self, images):
        features = nn.functional.linear(self.stem(images).mean((2, 3)), self.middle.weight)
        return self.head(self.last(features).relu())


def between(*layers, inputs=16):
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 4)]
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), *layers, *tail)


class Auxiliary(nn.Module):
    """In train mode a second head reads what the first reads."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.second = nn.Conv2d(3, 16, 3), nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, images):
        features = self.stem(images).relu().mean((2, 3))
        return (self.head(features), self.second(features)) if self.training else self.head(features)


DIVIDED = "it keeps its channels"  # as documented, without a word
REFUSED = r"(model must be a network|ratio must name layers) whose channels can go, since more .*: {}; factorize can split"


@pytest.mark.parametrize(
    ("model", "name", "dead", "outcome"),
    [
        (between(), "0", [1, 4, 6], 13),
        (between(nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, groups=16, bias=False)), "0", [1, 4, 6], 13),
        (between(nn.InstanceNorm2d(16), nn.PReLU(16), nn.MaxPool2d(2)), "0", [1, 4, 6], 13),
        (between(nn.Conv2d(16, 4, 3, groups=4), inputs=4), "0", [1, 4, 6], DIVIDED),
        (between(nn.Conv2d(16, 8, 3, groups=4), inputs=8), "0", [1, 4, 6], DIVIDED),
        (between(nn.Conv2d(16, 32, 3, groups=16), inputs=32), "0", [1, 4, 6], DIVIDED),
        (between(nn.ConvTranspose2d(16, 16, 2, groups=4)), "0", [1, 4, 6], DIVIDED),
        (between(nn.GroupNorm(4, 16)), "0", [1, 4, 6], DIVIDED),
        (between(nn.GroupNorm(1, 16)), "0", [1, 4, 6], REFUSED),
        (between(nn.LayerNorm([16, 8, 8])), "0", [1, 4, 6], REFUSED),
        (between(nn.LocalResponseNorm(3)), "0", [1, 4, 6], REFUSED),
        (between(nn.Softmax(1)), "0", [1, 4, 6], REFUSED),
        (between(nn.ChannelShuffle(4)), "0", [1, 4, 6], REFUSED),
        (between(nn.PixelShuffle(2), inputs=4), "0", [4, 5, 6, 7], 12),
        (between(nn.Upsample(scale_factor=2), nn.ZeroPad2d(1), nn.AvgPool2d(2)), "0", [1, 4, 6], 13),
        (between(nn.Flatten(), nn.Unflatten(1, (16, 8, 8))), "0", [1, 4, 6], "skip must name 0, whose channels cannot go"),
        (Halves(), "stem", [3, 11], 14),
        (Attended(), "patches", [1, 4, 6], REFUSED),
        (Attended(), "up", [1, 4, 6], 29),
        (Functional(), "stem", [1, 4, 6], REFUSED),
        (Functional(), "last", [1, 4, 6], 13),
        (Auxiliary(), "stem", [1, 4, 6], 13),
    ],
)  # fmt: skip
def test_whatever_the_topology_dead_channels_go_without_a_trace_or_are_kept(model, name, dead, outcome):
    model, images = model.double().eval(), torch.randn(3, 3, 10, 10).double()
    if isinstance(model, (Attended, Halves)):
        images = torch.randn(3, 3, 12, 12).double()
    layer, whole = model.get_submodule(name), len(model.get_submodule(name).weight)
    with torch.no_grad():
        for other in model.modules():
            if isinstance(other, (nn.Conv2d, nn.Linear)):
                other.weight.copy_(0.1 * other.weight.sign())  # no channel is read more than another
        layer.weight[dead] = 0
        layer.bias[dead] = 0
    if isinstance(outcome, str) and outcome != DIVIDED:
        with pytest.raises(ValueError, match=outcome.format(name)):
            prune_channels(model, images[:1], {name: len(dead) / whole}, round_to=1)
        return
    state = torch.random.get_rng_state()
    smaller = prune_channels(model, images[:1], {name: len(dead) / whole}, round_to=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert outputs(smaller, name) == [whole if outcome == DIVIDED else outcome]
    for mode in (True, False):
        found, wanted = (network.train(mode)(images) for network in (smaller, model))
        assert torch.allclose(torch.cat([*found]), torch.cat([*wanted]), rtol=1e-10, atol=1e-12)


def test_a_head_that_is_still_zero_hides_nothing():
    model = Attended()
    nn.init.zeros_(model.head.weight)
    with pytest.warns(UserWarning, match=r"left alone, since more depends .*: down, patches"):
        smaller = prune_channels(model, torch.randn(1, 3, 12, 12), 0.5)
    assert not smaller.head.weight.any()


def test_of_several_layers_the_one_whose_channels_cannot_go_is_named_and_others_can_be_pruned():
    model = between(nn.Conv2d(16, 16, 1), nn.Flatten(), nn.Unflatten(1, (16, 8, 8)), nn.Conv2d(16, 16, 1))
    example = torch.randn(1, 3, 10, 10)
    with pytest.raises(ValueError, match=r"^skip must name 2, whose channels cannot go"):
        prune_channels(model, example, 0.5)
    assert outputs(prune_channels(model, example, 0.5, skip=["2"]), "0", "2", "5") == [8, 16, 8]


def test_layers_that_keep_their_channels_because_more_depends_on_them_are_named():
    with pytest.warns(UserWarning, match=r"left alone, since more depends .*: down, patches"):
        smaller = prune_channels(Attended(), torch.randn(1, 3, 12, 12), 0.5)
    assert outputs(smaller, "patches", "up", "down") == [16, 16, 16]


def test_in_inference_mode_channels_go_as_well():
    model, example = models.build("tiny_convnet", width=0.25), torch.zeros(1, 3, 32, 32)
    with torch.inference_mode():
        inside = prune_channels(model, example, 0.5)
    outside = prune_channels(model, example, 0.5)
    assert all(
        torch.equal(one, other) for one, other in zip(inside.parameters(), outside.parameters(), strict=True)
    )
    assert not any(one.is_inference() for one in inside.parameters())


def test_layers_that_share_one_weight_are_named():
    model = between(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1))
    model[4].weight = model[2].weight
    with pytest.raises(ValueError, match=r"skip must name .*two layers share its weights"):
        prune_channels(model, torch.randn(1, 3, 10, 10), 0.5)


def test_a_search_that_would_not_end_ends_and_the_rest_is_pruned():
    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=10).eval()
    with pytest.warns(UserWarning, match="left alone, .*features.0.0"):
        smaller = prune_channels(model, PICTURE, 0.5)
    hidden = ["features.1.0.mlp.0", "features.3.0.mlp.0"]
    assert outputs(model, *hidden) == [64, 128]
    assert outputs(smaller, *hidden) == [32, 64]
    assert smaller(PICTURE).shape == (1, 10)


def test_a_network_in_half_precision_loses_the_channels_that_it_loses_in_float32():
    model = models.build("tiny_convnet", width=0.5).half()
    smaller, wanted = (prune_channels(one, PICTURE, 0.5) for one in (model, copy.deepcopy(model).float()))
    assert all(
        torch.equal(a, b.to(a.dtype))
        for a, b in zip(smaller.state_dict().values(), wanted.state_dict().values(), strict=True)
    )
    assert {weight.dtype for weight in smaller.parameters()} == {torch.float16}


# -- how many --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "resnet50", "tiny_convnet", "mobilenet_student"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_channels_really_go_and_the_rest_still_fits(name, scope, tmp_path):
    model = models.build(name, width=0.5).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    smaller = prune_channels(model, PICTURE, 0.5, scope=scope)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert profiling.count_parameters(smaller) < 0.4 * profiling.count_parameters(model)
    images = torch.randn(2, 3, 32, 32)
    assert smaller(images).shape == (2, 10)
    after = pruning.prunable(smaller)
    for layer, weight in pruning.prunable(model).items():
        count = len(weight)
        assert len(after[layer]) % 8 == 0 or layer in ("classifier", "fc") or len(after[layer]) == count, (
            layer
        )
        assert len(after[layer]) >= min(8, count), layer
        if scope == "layer" and layer not in (
            "classifier",
            "fc",
        ):  # half, to the nearest multiple of 8, 8 at least
            assert len(after[layer]) == (max(8, 8 * round(count / 2 / 8)) if count > 8 else count), layer
    back = models.load(models.save(smaller, tmp_path / "smaller.safetensors"))
    assert torch.equal(back(images), smaller(images))


class Gated(nn.Module):
    """One convolution makes both what is let through and the gate."""

    def __init__(self, parts):
        super().__init__()
        self.stem, self.up, self.down = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 64, 1), nn.Conv2d(32, 16, 1)
        self.head, self.parts = nn.Linear(16, 5), parts

    def forward(self, images):
        value, gate = self.parts(self.up(self.stem(images).relu()))
        return self.head(self.down(value * gate.sigmoid()).relu().mean((2, 3)))


def sliced(maps):
    half = maps.shape[1] // 2
    return maps[:, :half], maps[:, half:]


def chunked(maps):
    return maps.chunk(2, 1)


@pytest.mark.parametrize(("ratio", "left"), [(0.25, 48), (0.5, 32), (0.75, 16)])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_channels_that_a_gate_multiplies_go_in_pairs_and_no_more_than_asked(ratio, left, scope):
    for seed, parts in enumerate((chunked, sliced, chunked)):
        torch.manual_seed(seed)
        model = Gated(parts).eval()
        thin = prune_channels(model, torch.zeros(1, 3, 8, 8), ratio, scope=scope, skip=["stem", "down"])
        assert thin.up.out_channels == left
        kept = [int((model.up.weight == row).all(dim=(1, 2, 3)).nonzero()) for row in thin.up.weight]
        assert [one + 32 for one in kept[: left // 2]] == kept[left // 2 :]
        model.down.weight.data[:, sorted({*range(32)} - {*kept})] = 0
        images = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(thin(images), model(images))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5])
def test_ranked_together_exactly_the_share_of_all_channels_goes(ratio):
    torch.manual_seed(0)
    model = models.build("vgg11", width=0.25)
    smaller = prune_channels(model, PICTURE, ratio, scope="global", round_to=1)
    before, after = (
        sum(layer.out_channels for layer in m.modules() if isinstance(layer, nn.Conv2d))
        for m in (model, smaller)
    )
    assert before - after == round(ratio * before)


def test_ranked_together_the_weakest_layer_loses_most_but_keeps_a_few():
    model = models.build("vgg11", width=0.25)
    with torch.no_grad():
        for part in (
            model.features[4].weight[4:],
            model.features[5].weight[4:],
            model.features[8].weight[:, 4:],
        ):
            part *= 1e-6
    smaller = prune_channels(model, PICTURE, 0.04, scope="global", round_to=8)
    assert outputs(smaller, "features.4") == [8]


def test_tied_layers_lose_the_smallest_share_given_and_a_named_one_takes_the_others_along():
    model = models.build("tiny_convnet")  # features.3 and the block behind it are added up
    tied = ["features.3", "features.6.body.3"]
    for ratio, left in (({tied[0]: 0.5}, 24), ({tied[0]: 0.5, tied[1]: 0.25}, 36)):
        smaller = prune_channels(model, PICTURE, ratio, round_to=4)
        assert outputs(smaller, *tied) == [left, left]
    assert outputs(prune_channels(model, PICTURE, 0.5, skip=[tied[0]]), *tied) == [48, 48]


def test_channels_that_cannot_go_one_by_one_stay():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 16, 1), nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 1, groups=16), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    smaller = prune_channels(model, torch.zeros(1, 3, 5, 5), 0.5)
    assert outputs(smaller, "0", "1", "2", "3", "4", "5", "7") == [16, 16, 16, 16, 8, 8, 2]


# -- which -----------------------------------------------------------------------------------------------------------


def test_importance_decides_which_channels_go():
    model = models.build("vgg11", width=0.25)
    convolution, normalisation = model.features[0], model.features[1]
    with torch.no_grad():
        convolution.weight[:8] *= 1e-3  # small weights, small shifts, but large scales
        model.features[4].weight[:, :8] *= 1e-3
        normalisation.weight[:8], normalisation.weight[8:] = 3.0, 1.0
        normalisation.weight[:8] += torch.rand(8)
    with pytest.raises(ValueError, match="gradients"):
        prune_channels(model, PICTURE, 0.5, "gradient")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    convolution.weight.grad[8:] = 0  # only the first eight matter to the loss
    model.features[4].weight.grad[:, 8:] = 0
    normalisation.weight.grad[8:] = 0
    normalisation.bias.grad[8:] = 0
    for importance, left in (("batchnorm", slice(0, 8)), ("gradient", slice(0, 8))):
        smaller = prune_channels(model, PICTURE, {"features.0": 0.5}, importance)
        assert torch.equal(smaller.features[0].weight, convolution.weight[left]), importance
        assert all(parameter.grad is None for parameter in smaller.parameters())
    assert all((parameter.grad.shape == parameter.shape) for parameter in model.parameters())
    with torch.no_grad():
        normalisation.weight[:] = 1.0
    smaller = prune_channels(model, PICTURE, {"features.0": 0.5})
    assert torch.equal(smaller.features[0].weight, convolution.weight[8:])
    assert torch.equal(smaller.features[4].weight, model.features[4].weight[:, 8:])


def test_a_frozen_network_is_pruned_and_stays_frozen():
    model = models.build("vgg11", width=0.25).requires_grad_(False).train()
    model.features[4].eval()
    with torch.no_grad():
        smaller = prune_channels(model, PICTURE, 0.5)
    assert profiling.count_parameters(smaller) < 0.4 * profiling.count_parameters(model)
    assert not any(parameter.requires_grad for parameter in smaller.parameters())
    assert smaller.training
    assert not smaller.features[4].training


def test_a_channel_pruned_file_needs_no_torch_pruning(tmp_path, monkeypatch):
    smaller = pruning.prune_channels(models.build("vgg11", width=0.25), PICTURE, 0.5)  # its old import path
    path = models.save(smaller, tmp_path / "smaller.safetensors")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert models.load(path)(PICTURE).shape == (1, 10)
    with pytest.raises(ImportError, match="pip install torch-pruning"):
        prune_channels(smaller, PICTURE, 0.5)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1.0}, "ratio must"),
        ({"ratio": {"features.99": 0.5}}, "ratio must be one of.*features.99"),
        ({"ratio": {"classifier": 0.5}}, "ratio must be one of"),
        ({"ratio": {}}, "ratio must name"),
        ({"ratio": {"features.0": 0.5}, "scope": "global"}, "scope must be"),
        ({"ratio": 0.5, "importance": "size"}, "importance"),
        ({"ratio": 0.5, "scope": "all"}, "scope"),
        ({"ratio": 0.5, "round_to": 0}, "round_to"),
        ({"ratio": 0.5, "skip": ["nowhere"]}, "skip must be"),
        ({"ratio": 0.5, "example": torch.zeros(1, 5, 32, 32)}, "example must be"),
    ],
)
def test_prune_channels_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        prune_channels(models.build("tiny_convnet", width=0.25), **{"example": PICTURE, **arguments})


class Fixed(nn.Module):
    """Its forward counts on eight channels, of which the first four, the smallest, are added to the others."""

    def __init__(self):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.convolution.weight.data *= torch.arange(1.0, 9).view(8, 1, 1, 1) ** 4

    def forward(self, images):
        return self.head(self.convolution(images).mean((2, 3)).view(-1, 2, 4).sum(1).repeat(1, 2))


@pytest.mark.parametrize(
    ("model", "importance", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16, 2)), "batchnorm", 'model must.*"batchnorm" needs'),
        (nn.Sequential(nn.Conv2d(3, 16, 3)), "magnitude", "model must be a network whose channels can go, .*: 0; factorize"),
        (Fixed(), "magnitude", "model must be a network whose channels can go, .*: convolution; factorize"),
    ],
)  # fmt: skip
def test_prune_channels_refuses_what_it_cannot_do(model, importance, message):
    with pytest.raises(ValueError, match=message):
        prune_channels(model, torch.zeros(1, 3, 3, 3), 0.5, importance, round_to=1)


# -- one layer at a time ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    data = load_data("digits")
    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.5)
    fit(model, data, epochs=4, batch_size=64, progress=False)
    return model, data.validation, data.train.take(slice(0, 200))


def test_sensitivity_prunes_one_layer_at_a_time_and_changes_nothing(trained):
    model, held_out, calibration = trained
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scan = channels.sensitivity(model, held_out, ratios=(0.5, 0.99), calibration=calibration)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert list(scan["layer"].unique()) == list(pruning.prunable(model))
    assert all(list(rows["ratio"]) == [0.0, 0.5, 0.99] for _, rows in scan.groupby("layer"))
    by_hand = models.build("tiny_convnet", width=0.5)
    by_hand.load_state_dict(before)
    prune.l1_unstructured(by_hand.get_submodule("features.0"), "weight", amount=0.99)
    prune.remove(by_hand.get_submodule("features.0"), "weight")
    row = scan[(scan["layer"] == "features.0") & (scan["ratio"] == 0.99)].iloc[0]
    assert row["correct"] == evaluate(by_hand, held_out).correct
    assert row["recalibrated_correct"] == evaluate(recalibrate(by_hand, calibration), held_out).correct
    assert (scan[scan["ratio"] == 0]["correct"] == evaluate(model, held_out).correct).all()


def test_the_ratios_are_the_largest_that_the_recalibrated_network_bears():
    rows = [
        ("a", 0.0, 0.9, 0.9),
        ("a", 0.5, 0.1, 0.9),
        ("a", 0.8, 0.1, 0.85),
        ("b", 0.0, 0.9, 0.9),
        ("b", 0.5, 0.9, 0.7),
    ]
    scan = pd.DataFrame(rows, columns=["layer", "ratio", "accuracy", "recalibrated"])
    assert channels.ratios_by_sensitivity(scan, 0.01) == {"a": 0.5, "b": 0.0}
    assert channels.ratios_by_sensitivity(scan, 0.1) == {"a": 0.8, "b": 0.0}
    assert channels.ratios_by_sensitivity(scan, 1.0) == {"a": 0.8, "b": 0.5}


def test_sensitivity_of_channels_leaves_the_classifier_out_and_takes_exactly_the_share(trained, monkeypatch):
    model, held_out, calibration = trained
    seen, measure = [], channels.measure
    monkeypatch.setattr(
        channels,
        "measure",
        lambda network, *rest, **more: seen.append(network) or measure(network, *rest, **more),
    )
    few = held_out.take(slice(0, 20))
    scan = channels.sensitivity(
        model, few, (0.6,), unit="channel", calibration=calibration.take(slice(0, 20))
    )
    assert list(scan["layer"].unique()) == [name for name in pruning.prunable(model) if name != "classifier"]
    for network, row in zip(seen[1:], scan[scan["ratio"] > 0].itertuples(), strict=True):
        whole, left = outputs(model, row.layer)[0], outputs(network, row.layer)[0]
        assert left == round(whole * 0.4), (
            row.layer
        )  # a residual sum ties layers together: smaller all the same


def test_sensitivity_of_channels_leaves_out_layers_that_must_stay(trained):
    _, held_out, calibration = trained
    few, some = held_out.take(slice(0, 20)), calibration.take(slice(0, 20))
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.LayerNorm((16, 28, 28)))
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(16 * 784, 10))
    scan = channels.sensitivity(model, few, (0.5,), unit="channel", calibration=some)
    assert list(scan["layer"].unique()) == ["0"]


def test_sensitivity_of_named_layers_only(trained):
    model, held_out, calibration = trained
    scan = channels.sensitivity(model, held_out, (0.9,), only=["features.3"], calibration=calibration)
    assert set(scan["layer"]) == {"features.3"}
    for unit, name in (("weight", "features.1"), ("channel", "classifier")):
        with pytest.raises(ValueError, match="only must be one of"):
            channels.sensitivity(model, held_out, (0.9,), unit=unit, only=[name], calibration=calibration)


def test_a_layer_asked_for_by_name_that_keeps_its_channels_is_named():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    with pytest.warns(UserWarning, match=r"^0: kept all channels, which cannot go one by one"):
        smaller = prune_channels(model, torch.zeros(1, 3, 16, 16), {"0": 0.5, "3": 0.5}, round_to=1)
    assert [len(smaller[index].weight) for index in (0, 3)] == [16, 8]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one share for all names no layer
        prune_channels(model, torch.zeros(1, 3, 16, 16), 0.5, round_to=1)


def test_a_scan_leaves_out_layers_on_both_sides_of_a_grouped_one():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    few = load_data("digits", train_limit=100).train.take(slice(0, 50))
    with pytest.warns(UserWarning, match="0"):
        scan = pruning.sensitivity(model, few, (0.5,), calibration=few, unit="channel")
    assert [*scan["layer"].unique()] == ["4"]


def test_warnings_name_the_line_that_called():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3))
    with pytest.warns(UserWarning, match="0") as caught:
        prune_channels(model, PICTURE, {"0": 0.5, "2": 0.5})
    assert {one.filename for one in caught} == {__file__}
