"""Networks that nobody here wrote, times formats: each is exported and passes its own check, or is refused in one sentence.

``NNC_ALL_ARCHITECTURES=1`` tries all of them; else a few. ``python -m tests.test_architectures_export`` tries all and writes
the table in tests/README.md.
"""

import functools
import os
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate
from torchvision import models as torchvision

from helpers import export
from helpers.data import HOME, Split, batches, load_data
from helpers.evaluation import recalibrate
from helpers.files import atomic_path

FORMATS = {
    "onnx": lambda model, path, some: export.to_onnx(model, path.with_suffix(".onnx"), some),
    "onnx int8": lambda model, path, some: export.quantize_onnx(
        model, path.with_suffix(".onnx"), some, agreement=0.75
    ),
    "litert": lambda model, path, some: export.to_litert(model, path.with_suffix(".tflite"), some),
    "executorch": lambda model, path, some: export.to_executorch(model, path.with_suffix(".pte"), some),
    "coreml": lambda model, path, some: export.to_coreml(
        model, path.with_suffix(".mlpackage"), some, agreement=0.75
    ),
}  # after a dozen steps of training answers are close calls, so rounding may change a quarter of the classes

# -- networks --------------------------------------------------------------------------------------------------------


class Grouped(nn.Sequential):
    """GroupNorm, InstanceNorm, SiLU, GELU, nearest and bilinear upsampling."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(16, 16, 3, 2, 1),
            nn.InstanceNorm2d(16, affine=True), nn.GELU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip


class Attention(nn.Module):
    """Patches, attention over them by PyTorch's own module, LayerNorm."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 32, 8, 8), nn.LayerNorm(32)
        self.attention, self.head = nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 10)

    def forward(self, images):
        tokens = self.norm(self.patches(images).flatten(2).transpose(1, 2))
        return self.head(tokens.add(self.attention(tokens, tokens, tokens, need_weights=False)[0]).mean(1))


class Shared(nn.Module):
    """One convolution that is run three times."""

    def __init__(self):
        super().__init__()
        self.stem, self.again, self.head = (
            nn.Conv2d(3, 16, 4, 4),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Linear(16, 10),
        )

    def forward(self, images):
        x = self.stem(images)
        for _ in range(3):
            x = x + self.again(x).relu()
        return self.head(x.mean((2, 3)))


class Auxiliary(Shared):
    """A second head, in training only."""

    def forward(self, images):
        logits = super().forward(images)
        return (logits, logits.flip(1)) if self.training else logits


class Unusual(Shared):
    """An operation that hardly any runtime has."""

    def forward(self, images):
        return super().forward(images) + torch.linalg.svdvals(self.stem(images).mean(1))[:, :1]


class Dictionary(Shared):
    def forward(self, images):
        return {"logits": super().forward(images)}


def five_blocks():
    """What mobilenet_v3_small begins with: squeeze and excitation, hard swish, ReLU, strides, and blocks that are added to."""
    model = torchvision.mobilenet_v3_small(num_classes=10)
    model.features, model.classifier[0] = model.features[:6], nn.Linear(40, 1024)
    return model


def _torchvision(name, **settings):
    return lambda: getattr(torchvision, name)(num_classes=10, **settings)


NETWORKS = {
    name: (_torchvision(name), (32, 32))
    for name in ("resnet18", "resnet50", "resnext50_32x4d", "regnet_y_400mf", "mobilenet_v2", "mobilenet_v3_small",
                 "efficientnet_b0", "densenet121", "convnext_tiny", "swin_t", "shufflenet_v2_x1_0")
} | {
    "vit_b_16": (_torchvision("vit_b_16", image_size=32), (32, 32)),
    "inception_v3": (_torchvision("inception_v3", aux_logits=False, init_weights=False), (75, 75)),
    "mobilenet_v3_small, 5 blocks": (five_blocks, (32, 32)),
    "GroupNorm, upsampling": (Grouped, (32, 48)), "attention": (Attention, (32, 32)), "shared layer": (Shared, (32, 32)),
    "auxiliary output": (Auxiliary, (32, 32)), "dict output": (Dictionary, (32, 32)),
    "singular values": (Unusual, (32, 32)), "half precision": (lambda: Shared().half(), (32, 32)),
}  # fmt: skip
FEW = [name for name in NETWORKS if name[0].isupper() or " " in name or name == "attention"]
TRIED = list(NETWORKS) if os.environ.get("NNC_ALL_ARCHITECTURES") else FEW

# -- outcomes --------------------------------------------------------------------------------------------------------

DICT = "gives a dict, not logits"
NUMPY = "needs a NumPy before 2.4"  # under which the file is written: requirements.txt
SVD = "does not convert this network .*linalg_svd"
REFUSED = {  # and the sentence that says why; whatever is not here works
    **{("dict output", form): DICT for form in FORMATS},
    **{("singular values", form): SVD for form in FORMATS},
    **{
        (name, "litert"): "does not convert this network .*tfl.batch_matmul"
        for name in ("convnext_tiny", "swin_t")
    },
}
if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    REFUSED |= {(name, "coreml"): NUMPY for name in ("attention", "shufflenet_v2_x1_0", "swin_t", "vit_b_16")}


@functools.cache
def pictures(height, width):
    digits = load_data("digits").train.take(slice(0, 16))
    images = interpolate(digits.images.float(), (height, width), mode="bilinear").round().to(torch.uint8)
    return Split(images, digits.labels, digits.mean, digits.std, mirror=False)


@functools.cache
def network(name):
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    model = make().float()
    if isinstance(model, Dictionary):
        return model
    some, optimizer = pictures(*size), torch.optim.Adam(model.parameters())
    for images, labels in [next(batches(some, 16))] * 12:
        output = model.train()(images)
        cross_entropy(output if isinstance(output, torch.Tensor) else output[0], labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    if any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        model = recalibrate(model, some, batch_size=16)
    return model.to(next(make().parameters()).dtype)


def outcome(name, form):
    """What becomes of it: "works", or the sentence that refuses it. Whatever else is raised is a fault."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "written, but not checked" is another outcome
        try:
            path = FORMATS[form](network(name), Path(folder) / "model", pictures(*NETWORKS[name][1]))
        except export.ExportError as error:
            assert not [*Path(folder).iterdir()]
            return re.sub(r"(?<!\S)\(?/\S*/", "", str(error))
        assert [each.name for each in Path(folder).iterdir()] == [path.name]
        return "works"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", TRIED)
def test_it_works_or_is_refused_in_one_sentence(name, form):
    found = outcome(name, form)
    assert "\n" not in found
    assert re.search(REFUSED.get((name, form), "^works$"), found), found


# -- the table -------------------------------------------------------------------------------------------------------

MARKS = "<!-- architectures: exports -->", "<!-- /architectures: exports -->"


def table(outcomes):
    """Markdown: a row per network, a column per format; reasons below, by number."""
    outcomes = {key: re.sub(r"^\S+ was not written: ", "", one) for key, one in outcomes.items()}
    reasons = list(dict.fromkeys(one for one in outcomes.values() if one != "works"))
    lines = [f"| network, pixels | {' | '.join(FORMATS)} |", "|---" * (1 + len(FORMATS)) + "|"]
    for name, (_, (height, width)) in NETWORKS.items():
        cells = (outcomes[name, form] for form in FORMATS)
        told = ("works" if one == "works" else f"refused ({1 + reasons.index(one)})" for one in cells)
        lines.append(f"| {name}, {height} x {width} | {' | '.join(told)} |")
    return "\n".join([*lines, "", *(f"{place}. {one}" for place, one in enumerate(reasons, 1))])


def write_table(path=HOME / "tests" / "README.md"):
    """Try all, and put the table between its marks in tests/README.md."""
    outcomes = {}
    for name in NETWORKS:
        for form in FORMATS:
            outcomes[name, form] = outcome(name, form)
            print(f"{name}, {form}: {outcomes[name, form]}", flush=True)
        network.cache_clear()
    before, rest = path.read_text("utf-8").split(MARKS[0])
    with atomic_path(path) as part:
        part.write_text(
            f"{before}{MARKS[0]}\n{table(outcomes)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", "utf-8"
        )


if __name__ == "__main__":
    write_table()
