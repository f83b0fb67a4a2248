"""Networks that nobody here wrote, through every operation: each works, works in part, or is refused in a sentence.

`python -m tests.test_architectures` writes the table of expected outcomes into tests/README.md. A new operation is a
function in OPERATIONS that takes a network, its pictures' side in pixels and a folder, and the exceptions in EXPECTED.
"""

import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torchvision.models as zoo
from torch import nn

import helpers
from helpers import evaluation, low_rank, profiling, pruning, quantization
from helpers.channels import prune_channels
from helpers.data import Data, Split
from helpers.training import fit

# -- networks: what makes one, its pictures' side in pixels ------------------------------------------------------------


class Body(nn.Sequential):
    """Two convolutions, with something between them, and a mean over the picture."""

    def __init__(self, *between, norm=nn.BatchNorm2d):
        layers = (
            nn.Conv2d(3, 16, 3, padding=1),
            norm(16),
            nn.ReLU(),
            *between,
            nn.Conv2d(16, 32, 3, stride=2),
            nn.ReLU(),
        )
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def with_head(body):
    return nn.Sequential(body, nn.Linear(32, 10))


class Attending(nn.Module):
    """PyTorch's own transformer encoder over patches."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, stride=8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 1)
        self.head = nn.Linear(32, 10)

    def forward(self, images):
        return self.head(self.encoder(self.patches(images).flatten(2).mT).mean(1))


class Twice(nn.Module):
    """A layer that is used two times."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared, self.head = (
            nn.Conv2d(3, 16, 3),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Linear(16, 10),
        )

    def forward(self, images):
        features = self.shared(self.stem(images)).relu()
        return self.head(self.shared(features).relu().mean((2, 3)))


class Auxiliary(nn.Module):
    """In train mode there is a second output."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.second = Body(), nn.Linear(32, 10), nn.Linear(32, 10)

    def forward(self, images):
        features = self.body(images)
        return (self.head(features), self.second(features)) if self.training else self.head(features)


class Named(nn.Module):
    """The logits are in a dict."""

    def __init__(self):
        super().__init__()
        self.body, self.head = Body(), nn.Linear(32, 10)

    def forward(self, images):
        features = self.body(images)
        return {"features": features, "logits": self.head(features)}


def frozen():
    model = with_head(Body())
    model[0].requires_grad_(False).eval()
    return model


def densenet():
    return zoo.DenseNet(growth_rate=8, block_config=(2, 2, 2, 2), num_init_features=16, num_classes=10)


def convnext():
    blocks = [(24, 48, 1), (48, 96, 1), (96, None, 1)]
    return zoo.ConvNeXt([zoo.convnext.CNBlockConfig(*one) for one in blocks], num_classes=10)


def vit():
    return zoo.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )


def swin():
    return zoo.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=10)


NETWORKS = {
    "resnet18": (lambda: zoo.resnet18(num_classes=10), 64),
    "resnet50": (lambda: zoo.resnet50(num_classes=10), 64),
    "resnext50_32x4d": (lambda: zoo.resnext50_32x4d(num_classes=10), 64),
    "regnet_y_400mf": (lambda: zoo.regnet_y_400mf(num_classes=10), 64),
    "mobilenet_v2": (lambda: zoo.mobilenet_v2(num_classes=10), 64),
    "mobilenet_v3_small": (lambda: zoo.mobilenet_v3_small(num_classes=10), 64),
    "efficientnet_b0": (lambda: zoo.efficientnet_b0(num_classes=10), 64),
    "densenet121, 2 layers a block": (densenet, 64),
    "convnext_tiny, 3 blocks": (convnext, 64),
    "vit_b_16, 2 blocks": (vit, 64),
    "swin_t, 2 blocks": (swin, 32),
    "shufflenet_v2_x1_0": (lambda: zoo.shufflenet_v2_x1_0(num_classes=10), 64),
    "inception_v3": (lambda: zoo.inception_v3(num_classes=10, init_weights=False), 75),
    "GroupNorm": (
        lambda: with_head(Body(nn.Conv2d(16, 16, 1), norm=lambda width: nn.GroupNorm(4, width))),
        32,
    ),
    "attention": (Attending, 32),
    "shared layer": (Twice, 32),
    "auxiliary output": (Auxiliary, 32),
    "dict output": (Named, 32),
    "half precision": (lambda: with_head(Body()).bfloat16(), 32),
    "frozen part": (frozen, 32),
}

# -- operations: what each must have done ------------------------------------------------------------------------------


def pictures(pixels, count=8):
    images = torch.randint(0, 256, (count, 3, pixels, pixels), dtype=torch.uint8)
    return Split(images, torch.arange(count) % 10, (0.5,) * 3, (0.25,) * 3)


def answers(model, pixels):
    found = evaluation.predict(model, pictures(pixels, 2))
    assert found.shape == (2, 10)
    assert found.isfinite().all()
    return found


def prune_once(model, pixels, folder):
    pruning.prune_once(model, 0.5)
    table = pruning.sparsity_table(model)
    assert table["zeros"].sum() == round(0.5 * table["parameters"].sum())
    answers(model, pixels)


def channels(model, pixels, folder):
    smaller = prune_channels(model, torch.zeros(1, 3, pixels, pixels), 0.5)
    assert profiling.count_parameters(smaller) < profiling.count_parameters(model)
    answers(smaller, pixels)
    assert [one.training for one in smaller.modules()] == [one.training for one in model.modules()]


def factorize(model, pixels, folder):
    layers = low_rank.factorizable(model)  # of those too large to be taken apart within seconds, none
    large = [name for name, layer in layers.items() if layer.weight.numel() > 50_000]
    thinner = low_rank.factorize(model, energy=0.3, skip=large, input_shape=(1, 3, pixels, pixels))
    assert profiling.count_parameters(thinner) < profiling.count_parameters(model)
    answers(thinner, pixels)


def profile(model, pixels, folder):
    table = profiling.profile(model, (1, 3, pixels, pixels))
    assert table["parameters"].sum() == sum(one.numel() for one in model.parameters())
    assert table["macs"].sum() == profiling.count_macs(model, (1, 3, pixels, pixels)) > 0


def train(model, pixels, folder):
    split = pictures(pixels)
    data = Data("pictures", [str(label) for label in range(10)], split.mean, split.std, split, split, split)
    still = {name: one.clone() for name, one in model.state_dict().items() if name.startswith("0.")}
    frozen_part = not any(one.requires_grad for one in list(model.parameters())[:1])
    history = fit(model, data, epochs=1, batch_size=8, precision="fp32", progress=False)
    assert history["loss"].between(0.1, 100).all()
    if frozen_part:  # its statistics, too
        assert all(torch.equal(one, model.state_dict()[name]) for name, one in still.items())


def quantize(model, pixels, folder):
    before = answers(model.eval(), pixels)
    rounded = quantization.round_weights(model, 8)
    weights = zip(pruning.prunable(model).values(), pruning.prunable(rounded).values(), strict=True)
    assert all(
        (a - b).abs().max() <= 0.51 * a.abs().max() / 127 + 0.01 * a.abs().max() * (a.element_size() < 4)
        for a, b in weights
    )
    assert before.shape == answers(rounded, pixels).shape


OPERATIONS = {
    "prune_once": prune_once,
    "prune_channels": channels,
    "factorize": factorize,
    "profile": profile,
    "fit": train,
    "round_weights": quantize,
}

# -- what comes of it: everything works, but ---------------------------------------------------------------------------

HELPERS = Path(helpers.__file__).parent
IN_PART = "in part"  # layers on whose channels more depends are left alone, with a warning that names them
EXPECTED = {
    ("convnext_tiny, 3 blocks", "prune_channels"): IN_PART,  # before a layer normalisation
    ("vit_b_16, 2 blocks", "prune_channels"): IN_PART,
    ("swin_t, 2 blocks", "prune_channels"): IN_PART,
    ("attention", "prune_channels"): IN_PART,
    ("auxiliary output", "prune_channels"): IN_PART,  # both heads keep their outputs
    ("dict output", "prune_channels"): IN_PART,
    ("shufflenet_v2_x1_0", "prune_channels"): "refused: model must be a network whose channels can go",
    ("inception_v3", "prune_channels"): "refused: example must be one for train mode, too",
    ("inception_v3", "fit"): "refused: model must take pictures of 3 x 75 x 75 in train mode, too",
    ("half precision", "fit"): "refused: model must hold float32",
}


def expected(network, operation):
    return EXPECTED.get((network, operation), "works")


def outcome(network, operation, folder):
    torch.manual_seed(0)
    make, pixels = NETWORKS[network]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            OPERATIONS[operation](make(), pixels, folder)
        except (ValueError, TypeError) as refused:
            if not Path(traceback.extract_tb(refused.__traceback__)[-1].filename).is_relative_to(HELPERS):
                raise  # a library's own
            return f"refused: {refused}"
    alone = any(str(one.message).startswith("left alone, since more depends") for one in told)
    return IN_PART if alone else "works"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_what_comes_of_each_network_in_each_operation(network, operation, tmp_path):
    assert outcome(network, operation, tmp_path).startswith(expected(network, operation))


# -- the table in tests/README.md --------------------------------------------------------------------------------------

README = Path(__file__).with_name("README.md")
MARKS = "<!-- architectures -->", "<!-- end of architectures -->"


def table():
    rows = [f"| network | {' | '.join(OPERATIONS)} |", "|---" * (1 + len(OPERATIONS)) + "|"]
    for network, (_, pixels) in NETWORKS.items():
        cells = [expected(network, operation) for operation in OPERATIONS]
        rows.append(f"| {network}, {pixels} px | {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_table_in_the_readme_is_this_one():
    assert table() in README.read_text("utf-8").split(MARKS[0])[1].split(MARKS[1])[0]


def main():
    before, _, rest = README.read_text("utf-8").partition(MARKS[0])
    README.write_text(f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}", "utf-8")


if __name__ == "__main__":
    main()
