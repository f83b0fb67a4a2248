import json

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from helpers import models
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
    strong = moments.diag() > 0.5
    assert strong.sum() >= (10 if data.name == "cifar10" else 2)
    assert torch.allclose(moments[strong][:, strong], torch.eye(int(strong.sum())), atol=0.1)


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
    for position, layer in ((1, nn.Identity()), (1, nn.GroupNorm(4, 24)), (2, nn.GELU())):
        model = models.build("tiny_convnet")
        model.features[position] = layer
        with pytest.raises(ValueError, match=rf"features\.{position} would not come back"):
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
    with pytest.raises(ValueError, match="plain tensors, but mask would not come back"):
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
    net = compressed()
    path = models.save(net, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"net\.safetensors .* into Linear \(.*weights"):
        models.load(path, into=nn.Linear(2, 2))
    net.body["group"] = nn.GroupNorm(1, 3)  # its shape is not in the file
    with pytest.raises(CheckpointError, match=r"does not describe the weights body\.group\.bias"):
        models.load(models.save(net, path), into=Net())
    with pytest.raises((TypeError, ValueError), match="into must"):
        models.load(path, into=Net)


def test_masks_of_other_tools_are_refused(tmp_path):
    model = models.build("tiny_convnet", width=0.1)
    prune.random_unstructured(model.classifier, "weight", 0.5)
    with pytest.raises(ValueError, match=r"classifier\.weight.* would not come back"):
        models.save(model, tmp_path / "x.safetensors")
