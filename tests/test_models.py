import copy
import json
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.convnext import CNBlock, LayerNorm2d

from helpers import low_rank, models, pruning, quantization
from helpers.data import CIFAR10_FOLDER, cifar10_root, normalize
from helpers.models import CheckpointError
from helpers.profiling import count_macs, count_parameters

# Parameters counted by hand or published: VGG-19 with batch normalisation and a 512 x 10 classifier; ResNets of
# torchvision with a 3 x 3 stem and 10 classes.
PARAMETERS = {
    "vgg11": 9_231_114, "vgg13": 9_416_010, "vgg16": 14_728_266, "vgg19": 20_040_522,
    "resnet18": 11_173_962, "resnet34": 21_282_122, "resnet50": 23_520_842,
}  # fmt: skip


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_builds_runs_and_comes_back(name, tmp_path):
    model = models.build(name, width=0.1) if name == "vgg19_imagenet" else models.build(name)
    images = torch.randn(2, 3, 32, 32)
    expected = model.eval()(images)
    assert expected.shape == (2, 10)
    back = models.load(models.save(model, tmp_path / "model.safetensors"))
    assert torch.equal(back(images), expected)
    assert back.recipe == model.recipe
    assert count_parameters(model) == PARAMETERS.get(name, count_parameters(model))


def test_small_models_are_the_promised_share_of_vgg19():
    share = {
        name: count_parameters(models.build(name)) / PARAMETERS["vgg19"]
        for name in ("small_convnet", "tiny_convnet")
    }
    assert share["small_convnet"] == pytest.approx(0.10, abs=0.005)
    assert share["tiny_convnet"] == pytest.approx(0.05, abs=0.005)
    assert count_parameters(models.build("mobilenet_student")) < 270_000


def test_the_548_mib_model_is_torchvisions_own():
    with torch.device("meta"):
        reference = torchvision.models.vgg19()
        mine = models.MODELS["vgg19_imagenet"](1000)
    assert count_parameters(mine) == count_parameters(reference) == 143_667_240
    assert pytest.approx(548.05, abs=0.01) == 143_667_240 * 4 / 2**20
    assert [k for k in mine.state_dict()] == [k for k in reference.state_dict()]


def test_width_scales_every_layer():
    half = models.build("vgg19", width=0.5)
    assert count_macs(half) == pytest.approx(count_macs(models.build("vgg19")) / 4, rel=0.02)
    assert half.classifier.in_features == 256
    assert models.build("resnet50", width=0.25)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert models.build("tiny_convnet", num_classes=3, width=0.001)(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_whitened_answers_are_uncorrelated_and_vary_alike(digits, request):
    """Of the first half of the filters; the other half are the same with the sign changed."""
    folder = cifar10_root() / CIFAR10_FOLDER
    data = request.getfixturevalue("cifar10") if folder.exists() else digits
    model = models.whiten(models.build("fast_convnet"), data.train)
    layer = model.features[0]
    assert torch.equal(layer.weight[:12], -layer.weight[12:])
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    answers = layer(normalize(data.train.images[:2000], data)).transpose(0, 1)[:12].flatten(1)
    moments = answers @ answers.T / answers.shape[1]  # of the filters that are not mere noise
    strong = (moments.diag() > 0.5) & (moments.diag() < 1.1)
    assert strong.sum() >= (10 if data.name == "cifar10" else 2)
    assert (moments - moments.diag().diag()).abs().max() < 0.1


def test_the_fast_convnet_starts_as_identities_and_follows_its_batches(digits):
    model = models.build("fast_convnet")
    assert 280_000 < count_parameters(model) < 300_000
    convolution = model.features[-3]
    images = torch.randn(2, convolution.in_channels, 5, 5)
    assert convolution.weight.shape[:2] == (96, 96)
    assert torch.allclose(convolution(images), images, atol=1e-5)
    assert {norm.momentum for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.4}


def test_initialisation_is_kaiming_fan_out_and_seeded():
    torch.manual_seed(1)
    first = models.build("vgg19")
    torch.manual_seed(1)
    again = models.build("vgg19")
    weight = first.features[40].weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not any(p.is_meta for p in first.parameters())


def test_compressed_shapes_come_back(tmp_path):
    model = models.build("tiny_convnet")
    model.features[3] = nn.Sequential(
        nn.Conv2d(24, 7, 3, 2, 1, bias=False), nn.Conv2d(7, 48, 1)
    )  # factorized
    model.features[4] = nn.BatchNorm2d(48)
    model.classifier = nn.Sequential(nn.Linear(184, 3, bias=False), nn.Linear(3, 10))
    images = torch.randn(2, 3, 32, 32)
    expected = model.eval()(images)
    assert torch.equal(models.load(models.save(model, tmp_path / "m.safetensors"))(images), expected)
    narrow = models.build("vgg11")  # channels of the first layer removed
    narrow.features[0], narrow.features[1] = nn.Conv2d(3, 40, 3, padding=1), nn.BatchNorm2d(40)
    narrow.features[4] = nn.Conv2d(40, 128, 3, padding=1)
    expected = narrow.eval()(images)
    assert torch.equal(models.load(models.save(narrow, tmp_path / "n.safetensors"))(images), expected)


def test_half_precision_halves_the_file_and_overflow_is_refused(tmp_path):
    model = models.build("tiny_convnet")
    whole = models.save(model, tmp_path / "a.safetensors").stat().st_size
    half = models.save(model, tmp_path / "b.safetensors", torch.float16).stat().st_size
    assert half == pytest.approx(whole / 2, rel=0.02)
    assert models.load(tmp_path / "b.safetensors").classifier.weight.dtype == torch.float32
    with torch.no_grad():
        model.classifier.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"classifier\.weight overflows"):
        models.save(model, tmp_path / "b.safetensors", torch.float16)
    assert (tmp_path / "b.safetensors").stat().st_size == half


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg12"}, "name must be 'vgg11'.*got 'vgg12'"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 2.5}, "num_classes"),
        ({"width": 0}, "width"),
        ({"width": float("nan")}, "width"),
        ({"width": "1"}, "width"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        models.build(**{"name": "tiny_convnet", **arguments})


def test_save_refuses_layers_that_would_not_come_back(tmp_path):
    for position, layer in ((1, nn.Identity()), (2, nn.GELU())):
        model = models.build("tiny_convnet")
        model.features[position] = layer
        with pytest.raises(ValueError, match=rf"would not come back: features\.{position} is"):
            models.save(model, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_altered_recipe_is_noticed(saved):
    content = saved.read_bytes()
    altered = content.replace(b'\\"stride\\": [2, 2]', b'\\"stride\\": [3, 3]', 1)
    assert altered != content
    saved.write_bytes(altered)
    with pytest.raises(CheckpointError, match="contents do not match the checksum"):
        models.load(saved)


def test_save_refuses_what_load_could_not_read(tmp_path):
    sparse = nn.Linear(2, 2)
    sparse.register_buffer("mask", torch.eye(2).to_sparse())
    with pytest.raises(
        ValueError, match=r"plain tensors, but mask \(torch\.sparse_coo, cpu\) would not come back"
    ):
        models.save(sparse, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"\.safetensors"):
        models.save(models.build("tiny_convnet"), tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(tmp_path):
    return models.save(models.build("tiny_convnet", width=0.2), tmp_path / "model.safetensors")


def test_damaged_files_are_refused_by_name(saved):
    content = saved.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        b"",
        b"\x80\x02}q\x00.",
        b"\xff" * 8 + content[8:],
        bytes([*content[:-9], content[-9] ^ 4, *content[-8:]]),
    ):
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is (truncated|altered).*Way out"):
            models.load(saved)
    saved.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not exist"):
        models.load(saved)


def test_foreign_and_hostile_recipes_are_refused(saved, tmp_path):
    metadata, tensors = models.read_safetensors(saved)
    foreign = tmp_path / "foreign.safetensors"
    save_file(tensors, foreign, {"format": "pt"})
    with pytest.raises(CheckpointError, match="not a model of this project"):
        models.load(foreign)
    recipe = json.loads(metadata["recipe"])
    for change in (
        {"name": "__import__"},
        {"width": 1e9},
        {"num_classes": 10**15},
        {"layers": {"classifier": {"type": "Linear", "in_features": 10**9, "out_features": 10**9}}},
    ):
        text = json.dumps(recipe | change)
        save_file(tensors, foreign, {**metadata, "recipe": text, "sha256": models.digest(tensors, text)})
        with pytest.raises(
            CheckpointError, match=rf"recipe this version cannot follow \(.*{next(iter(change))[:5]}"
        ):
            models.load(foreign)


def test_a_saved_file_is_as_readable_as_any_other(tmp_path):
    """safetensors alone would make it for its owner only."""
    (tmp_path / "any other").touch()
    path = models.save(models.build("tiny_convnet", width=0.1), tmp_path / "model.safetensors")
    assert path.stat().st_mode == (tmp_path / "any other").stat().st_mode


class Net(nn.Module):
    """Somebody's own: with layers that no recipe describes, a shared one and a buffer that is in no file."""

    def __init__(self, channels=6):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.body = nn.ModuleDict({"norm": nn.BatchNorm2d(channels), "group": nn.GroupNorm(2, 4)})
        self.mix = nn.Conv2d(channels, 4, 1)
        self.again = self.mix2 = nn.Conv1d(4, 4, 1)
        self.head = nn.Linear(4, 5)
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, images):
        x = self.mix(self.body["norm"](self.stem(images)).relu())
        return self.head(self.again(self.mix2(self.body["group"](x).flatten(2))).mean(2)) * self.scale


def compressed():
    """As factorization and channel pruning leave it."""
    net = Net()
    net.stem = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.Conv2d(2, 5, 1))
    net.body["norm"], net.mix = nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1)
    net.head = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 5))
    net(torch.randn(4, 3, 8, 8))
    return net.eval()


@pytest.mark.parametrize("storage", ["dense", "bitmask+zip"])
def test_a_network_of_the_readers_own_comes_back_into_a_fresh_one(storage, tmp_path):
    net, fresh, pictures = compressed(), Net(), torch.randn(2, 3, 8, 8)
    untouched = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    path = models.save(net, tmp_path / "net.safetensors", storage=storage)
    back = models.load(path, into=fresh)
    assert torch.equal(back(pictures), net(pictures))
    assert not back.training
    assert all(parameter.requires_grad for parameter in back.parameters())
    assert all(torch.equal(untouched[name], tensor) for name, tensor in fresh.state_dict().items())
    with pytest.raises(CheckpointError, match=r"net\.safetensors holds a network that build.*into="):
        models.load(path)


def test_what_does_not_fit_into_the_fresh_network_is_refused_by_name(tmp_path):
    path = models.save(compressed(), tmp_path / "net.safetensors")
    with pytest.raises(
        CheckpointError, match=r"net\.safetensors does not fit into Linear: in the file the whole is Net"
    ):
        models.load(path, into=nn.Linear(2, 2))
    with pytest.raises((TypeError, ValueError), match="into must"):
        models.load(path, into=Net)


class Chosen(nn.Module):
    """Nobody here wrote it: transposed and grouped convolutions, group and layer norms, a shared layer, tied weights."""

    def __init__(self, width=12, pool=2, rate=0.1, act=nn.functional.silu):
        super().__init__()
        self.act = act
        self.stem = nn.Conv2d(3, width, 3, padding="same")
        self.norm, self.drop = nn.BatchNorm2d(width), nn.Dropout(rate)
        self.down = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.PReLU(width), nn.MaxPool2d(pool))
        self.once = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(2, width))
        self.twice = self.once
        self.up = nn.ConvTranspose2d(width, width, 2, 2)
        self.scale = nn.Parameter(torch.rand(width, 1, 1))
        self.line, self.last = nn.Conv1d(width, 8, 3), nn.LayerNorm(8)
        self.code, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.again = nn.Linear(8, 8, bias=False)
        self.again.weight = self.code.weight
        self.register_buffer("shift", torch.ones(1), persistent=False)

    def forward(self, images):
        x = self.down(self.act(self.norm(self.stem(images))))
        x = self.up(self.twice(self.act(self.once(x)))) * self.scale
        x = self.last(self.act(self.line(x.flatten(2))).mean(2))
        return self.head(self.again(self.drop(self.act(self.code(x))))) + self.shift


def small_chosen():
    """As channel pruning, factorization, pruning and rounding of weights leave it."""
    net = Chosen()
    net(torch.randn(8, 3, 12, 16))  # statistics of its own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = pruning.prune_channels(net, torch.zeros(1, 3, 12, 16), {"stem": 0.5}, round_to=1)
        net = low_rank.factorize(net, ranks={"once.0": 2, "head": 2}, skip=["again"])
    pruning.prune_once(net, 0.5)
    return quantization.round_weights(net, 8).eval()


@pytest.mark.parametrize("storage", ["dense", "bitmask+zip"])
def test_a_compressed_network_of_the_readers_own_answers_bit_for_bit(storage, tmp_path):
    net, pictures = small_chosen(), torch.randn(3, 3, 12, 16)
    assert net.stem.out_channels == 6
    assert any((weight == 0).any() for weight in net.parameters())
    back = models.load(models.save(net, tmp_path / "net.safetensors", storage=storage), into=Chosen())
    assert torch.equal(back(pictures), net(pictures))
    assert back.once is back.twice
    assert isinstance(back.once[0], nn.Sequential)
    assert back.again.weight is back.code.weight
    once_more = models.load(models.save(back, tmp_path / "again.safetensors"), into=Chosen())
    assert torch.equal(once_more(pictures), net(pictures))


@pytest.mark.parametrize(
    ("fresh", "said"),
    [
        (
            lambda: Chosen(pool=3),
            r"in the file down\.2 is MaxPool2d\(.*kernel_size=2.*\) and not .*kernel_size=3",
        ),
        (lambda: Chosen(rate=0.5), r"drop is Dropout\(p=0\.1\) and not Dropout\(p=0\.5\)"),
        (lambda: Chosen(act=torch.relu), r"the whole is Chosen\(act=silu\) and not Chosen\(act=relu\)"),
        (Net, r"the whole is Chosen\(.*\) and not Net"),
    ],
)
def test_a_fresh_network_that_computes_something_else_is_refused(fresh, said, tmp_path):
    path = models.save(small_chosen(), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=rf"net\.safetensors does not fit into .*: .*{said}.*Way out"):
        models.load(path, into=fresh())
    other = Chosen()
    other.shift += 1  # a constant that is in no file
    with pytest.raises(CheckpointError, match=r"Chosen\(shift=tensor .*\) and not Chosen\(shift=tensor"):
        models.load(path, into=other)


class Optional(nn.Module):
    """What it computes hangs on a private attribute, and on a layer that it may do without."""

    def __init__(self, factor=2.0, aux=False):
        super().__init__()
        self.head, self._factor, self._cache, self._inner = nn.Linear(12, 4), factor, None, {}
        self._same = [self.head]
        self.aux = nn.Sequential(nn.Linear(12, 4), nn.ReLU()) if aux else None

    def forward(self, images):
        self._inner[images.shape] = self._cache = torch.ones(1)
        return self.head(images.flatten(1)) * self._factor


@pytest.mark.parametrize("factor", [2.0, None, (1, 2), torch.sum, {"a": 1}, torch.eye(2).to_sparse()])
def test_private_attributes_must_be_the_same(factor, tmp_path):
    path = models.save(Optional(factor), tmp_path / "net.safetensors")
    models.load(path, into=Optional(factor))
    with pytest.raises(
        CheckpointError, match=r"the whole is Optional\(.*\) and not Optional\(_factor=5\.0\)"
    ):
        models.load(path, into=Optional(5.0))


def test_private_attributes_that_say_nothing_are_no_difference(tmp_path):
    """What a run and a tool leave behind; what earlier versions did not write."""
    net, pictures, path = Optional().eval(), torch.randn(2, 3, 2, 2), tmp_path / "net.safetensors"
    expected, net._is_accelerate_prepared = net(pictures), True
    models.save(net, path)
    assert torch.equal(models.load(path, into=Optional())(pictures), expected)
    metadata, tensors = models.read_safetensors(path)
    recipe = json.loads(metadata["recipe"])
    assert recipe.pop("private")[""]["_factor"] == "2.0"
    text = json.dumps(recipe)
    save_file(tensors, path, {**metadata, "recipe": text, "sha256": models.digest(tensors, text)})
    assert torch.equal(models.load(path, into=Optional())(pictures), expected)


def test_a_recurrent_network_of_the_readers_own_comes_back(tmp_path):
    """torch keeps its weights in a private list as well."""

    class Mine(nn.LSTM):
        pass

    net, rows = Mine(3, 4).eval(), torch.randn(5, 2, 3)
    back = models.load(models.save(net, tmp_path / "net.safetensors"), into=Mine(3, 4))
    assert torch.equal(back(rows)[0], net(rows)[0])


def test_a_layer_that_only_one_has_is_named(tmp_path):
    path, settings = tmp_path / "net.safetensors", r"\(in_features=12, out_features=4, bias=True\)"
    for saved, fresh, said in (
        (True, False, r"aux is Sequential\(\) and not absent"),
        (False, True, rf"aux(\.0)? is absent and not (Sequential\(\)|Linear{settings})"),
    ):
        models.save(Optional(aux=saved), path)
        models.load(path, into=Optional(aux=saved))
        with pytest.raises(
            CheckpointError, match=rf"fit into Optional: in the file {said}\. Way .*same settings"
        ):
            models.load(path, into=Optional(aux=fresh))
    net = Optional()
    net.aux = nn.Linear(12, 4)
    models.save(net, path)
    with pytest.raises(
        CheckpointError, match=rf"in the file aux is Linear{settings} and not absent\. Way out"
    ):
        models.load(path, into=Optional())


def test_ties_are_those_of_the_file(tmp_path):
    net, path, pictures = small_chosen(), tmp_path / "net.safetensors", torch.randn(2, 3, 12, 16)
    other = Chosen()
    other.again.weight = nn.Parameter(other.again.weight.clone())
    back = models.load(models.save(net, path), into=other)
    assert back.again.weight is back.code.weight
    net.again.weight = nn.Parameter(net.again.weight + 1)
    back = models.load(models.save(net, path), into=Chosen())
    assert back.again.weight is not back.code.weight
    assert torch.equal(back(pictures), net(pictures))
    net = Chosen()
    net.twice = copy.deepcopy(net.once)
    with pytest.raises(
        CheckpointError, match=r"once\.0\.weight and twice\.0\.weight are one here and two in"
    ):
        models.load(models.save(net, path), into=Chosen())
    metadata, tensors = models.read_safetensors(models.save(Chosen(), path))
    recipe = json.loads(metadata["recipe"])
    text = json.dumps(recipe | {"ties": [*recipe["ties"], ["head.weight", "head.forward"]]})
    save_file(tensors, path, {**metadata, "recipe": text, "sha256": models.digest(tensors, text)})
    with pytest.raises(CheckpointError, match=r"cannot follow into Chosen \(there is no weight head\.f"):
        models.load(path, into=Chosen())


def test_settings_of_what_is_rebuilt_come_from_the_file(tmp_path):
    """A group norm of other groups, another epsilon: the file's, not the fresh network's."""
    net, pictures = Chosen().eval(), torch.randn(2, 3, 12, 16)
    net.once[1], net.norm.eps, net.down[0].stride = nn.GroupNorm(4, 12), 0.5, (1, 1)
    back = models.load(models.save(net, tmp_path / "net.safetensors"), into=Chosen())
    assert torch.equal(back(pictures), net(pictures))


def test_pooling_that_build_does_not_know_is_refused_or_goes_into_a_fresh_network(tmp_path):
    def mine():
        model = models.build("vgg11", width=0.1)
        model.features[3] = nn.MaxPool2d(3, 2, 1)
        return model

    model, path, pictures = mine().eval(), tmp_path / "m.safetensors", torch.randn(2, 3, 32, 32)
    said = (
        r"features\.3 is MaxPool2d\(kernel_size=3, padding=1\) and not MaxPool2d\(kernel_size=2, padding=0\)"
    )
    with pytest.raises(ValueError, match=rf"model would not come back: {said}.*Way out"):
        models.save(model, path)
    del model.recipe
    models.save(model, path)
    assert torch.equal(models.load(path, into=mine())(pictures), model(pictures))
    with pytest.raises(CheckpointError, match=said):
        models.load(path, into=models.build("vgg11", width=0.1))
    models.save(models.build("vgg11", width=0.1), path)
    with pytest.raises(CheckpointError, match=r"features\.3 is MaxPool2d\(kernel_size=2"):
        models.load(path, into=mine())


def quantized():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})


def of_torchao():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    net = nn.Sequential(nn.Linear(32, 32))
    quantize_(net, Int8WeightOnlyConfig())
    return net


def in_a_list():
    net = nn.Flatten()
    net.layers = [nn.Linear(2, 2)]
    return net


def transposed():
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    net[1].weight.data = net[0].weight.data.t()
    return net


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))), "layer '0' is parametrized"),
        (lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 2))), "layer '0' has weight normalisation"),
        (lambda: nn.utils.spectral_norm(nn.Linear(2, 2)), "has spectral normalisation"),
        (quantized, r"0\.scale|0\._packed_params\..* would not come back.*become quantized"),
        (of_torchao, r"0\.weight \(\w+\) would not come back.*become quantized"),
        (lambda: nn.Linear(2, 2, device="meta"), r"weight \(torch\.strided, meta\)"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), r"0\.weight \(UninitializedParameter\)"),
        (in_a_list, "layers holds layers in a plain list"),
        (transposed, r"0\.weight and 1\.weight share memory"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_no_file_describes_is_refused_by_name(make, said, tmp_path):
    with pytest.raises(ValueError, match=f"model .*{said}"):
        models.save(make(), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "convnext_tiny", "mnasnet0_5", "swin_t", "densenet121"]
)
def test_networks_of_torchvision_come_back(name, tmp_path):
    net, pictures = torchvision.models.get_model(name).eval(), torch.randn(1, 3, 64, 48)
    path = models.save(net, tmp_path / "net.safetensors")
    assert torch.equal(models.load(path, into=torchvision.models.get_model(name))(pictures), net(pictures))


def test_a_pruned_convnext_comes_back(tmp_path):
    """Its norms are a subclass, its scales parameters of no layer."""

    def blocks():
        return nn.Sequential(nn.Conv2d(3, 16, 4, 4), LayerNorm2d(16), CNBlock(16, 1.0, 0.0), nn.Flatten())

    net, pictures = blocks().eval(), torch.randn(2, 3, 8, 8)
    net[0], net[1] = nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8)
    net[2] = CNBlock(8, 0.5, 0.0).eval()
    back = models.load(models.save(net, tmp_path / "net.safetensors"), into=blocks())
    assert torch.equal(back(pictures), net(pictures))


def test_weights_come_back_in_the_type_of_the_fresh_network(tmp_path):
    """Half, but for one norm: as such a network is written, and as a float32 one reads it."""

    def mixed():
        net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)).half()
        net[1].float()
        return net

    net = mixed()
    net[2] = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 2)).half()
    path = models.save(net, tmp_path / "net.safetensors")
    back = models.load(path, into=mixed())
    for name, tensor in net.state_dict().items():
        assert back.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(back.state_dict()[name], tensor)
    whole = models.load(path, into=mixed().float())
    assert {weight.dtype for weight in whole.parameters()} == {torch.float32}


def test_a_compiled_network_is_saved_as_what_it_compiles(tmp_path):
    net = torch.compile(Chosen()).eval()
    back = models.load(models.save(net, tmp_path / "net.safetensors"), into=torch.compile(Chosen()))
    pictures = torch.randn(2, 3, 12, 16)
    assert torch.equal(back(pictures), net._orig_mod(pictures))


def test_masks_of_other_tools_are_refused(tmp_path):
    model = models.build("tiny_convnet", width=0.1)
    prune.random_unstructured(model.classifier, "weight", 0.5)
    with pytest.raises(ValueError, match=r"plain weights, but layer 'classifier' is masked: .*prune\.remove"):
        models.save(model, tmp_path / "x.safetensors")


class Scaled(nn.Module):
    """Its own settings are in what is no number: an array, a set, a data class."""

    def __init__(self, settings):
        super().__init__()
        self.settings, self.linear = settings, nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x)


@dataclass
class Slope:
    value: float


@pytest.mark.parametrize(
    "kind", [lambda x: np.array([x]), np.float32, lambda x: {x}, Slope, lambda x: SimpleNamespace(value=x)]
)
def test_settings_in_arrays_sets_and_data_classes_are_told_apart(kind, tmp_path):
    file = models.save(Scaled(kind(0.1)), tmp_path / "own.safetensors")
    models.load(file, into=Scaled(kind(0.1)))
    with pytest.raises(CheckpointError, match="settings"):
        models.load(file, into=Scaled(kind(0.9)))


def test_a_traced_network_comes_back(tmp_path):
    def traced():
        return torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))

    model = traced()
    back = models.load(models.save(model, tmp_path / "traced.safetensors"), into=traced())
    torch.testing.assert_close(back(torch.ones(2, 4)), model(torch.ones(2, 4)))


def test_types_of_eight_bits_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dtype must be torch\.float16, .*got torch\.float8_e4m3fn"):
        models.save(nn.Linear(4, 2), tmp_path / "eight.safetensors", torch.float8_e4m3fn)
