"""Exports of networks unlike ours: pictures of other sizes, operations of other networks, weights too many for one file."""

import io
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from helpers import export
from helpers.data import HOME, Split, load_data
from helpers.deploy import handler, mil, runtimes, torchserve, writing
from helpers.evaluation import predict

pytest.importorskip("litert_torch", reason="the exporters are not installed: pip install -r requirements.txt")

NAMES = tuple("0123456789")
FORMATS = {
    "onnx": (".onnx", export.to_onnx),
    "onnx int8": (".onnx", lambda *given: export.quantize_onnx(*given, agreement=0.8)),
    "litert": (".tflite", export.to_litert),
    "litert int8": (
        ".tflite",
        lambda *given: export.to_litert(*given, int8=True, calibration=given[2], agreement=0.8),
    ),
    "executorch": (".pte", export.to_executorch),
    "coreml": (".mlpackage", export.to_coreml),
    "torchserve": (".mar", lambda *given: export.to_torchserve(*given, classes=NAMES)),
}


def wide(height=48, width=64):
    digits = load_data("digits").test.take(slice(0, 20))
    images = interpolate(digits.images.float(), (height, width), mode="bilinear").round().to(torch.uint8)
    return Split(images, digits.labels, digits.mean, digits.std, mirror=False)


def fixed(height=48, width=64):
    """A network that takes pictures of this size only."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4 * (height // 4) * (width // 4), 10)).eval()


# -- pictures that are not 32 x 32 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_the_file_takes_pictures_of_the_size_it_was_compared_on(form, tmp_path):
    suffix, write = FORMATS[form]
    path = write(fixed(), tmp_path / f"model{suffix}", wide())
    with pytest.raises(
        export.ExportError,
        match=r"other\..* was not written: the network does not classify pictures of 3 x 32 x 48",
    ):
        write(fixed(), tmp_path / f"other{suffix}", wide(32, 48))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if suffix in runtimes.RUNTIMES:
        assert export.open_session(path).shape == (3, 48, 64)
        with pytest.raises(
            ValueError, match="pictures must be 3 x 48 x 64, as the file says, got 3 x 32 x 32"
        ):
            export.logits(path, wide(32, 32))
        assert export.latency(path, repeats=3)["latency_ms"] > 0
    if form in ("onnx", "litert", "executorch"):
        assert torch.allclose(export.logits(path, wide()), predict(fixed(), wide()), atol=1e-3)
        assert export.peak_memory(path)["peak_mb"] > 0
    if form == "onnx":
        assert "1 x 3 x 48 x 64" in set(export.onnx_profile(path, repeats=1, by="node")["input"])


def litert_int8(*given, **named):
    return export.to_litert(*given, int8=True, **named)


ROUNDED = {"model.onnx": export.quantize_onnx, "model.tflite": litert_int8}


@pytest.mark.parametrize("name", ROUNDED)
def test_calibration_and_pictures_stand_in_for_each_other(name, tmp_path, monkeypatch):
    def load(name):
        raise AssertionError(f"the series' own pictures are asked for: {name}")

    monkeypatch.setattr(writing, "load_data", load)
    writing.default_data.cache_clear()
    files = [tmp_path / given / name for given in ("both", "pictures", "calibration")]
    ROUNDED[name](fixed(), files[0], pictures=wide(), calibration=wide(), agreement=0)
    ROUNDED[name](fixed(), files[1], pictures=wide(), agreement=0)
    ROUNDED[name](fixed(), files[2], calibration=wide(), agreement=0)
    both, *others = (export.logits(file, wide()) for file in files)
    assert all(torch.equal(both, other) for other in others)


@pytest.mark.parametrize("name", ROUNDED)
def test_a_refusal_names_the_calibration_pictures_and_the_agreement(name, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "AGREEMENT", 1.01)  # more than any file can give
    with pytest.raises(
        export.ExportError,
        match=r"Way out: calibration= pictures like those it will see, or agreement= less than 1\.01",
    ):
        ROUNDED[name](fixed(), tmp_path / name, pictures=wide().take(slice(0, 3)))
    assert list(tmp_path.iterdir()) == []


def test_without_pictures_a_network_for_another_size_is_told_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "default_data", lambda: load_data("digits"))
    with pytest.raises(
        export.ExportError,
        match=r"pictures of 3 x 32 x 32 \(.*\)\. Way out: pictures= of the size that it takes",
    ):
        export.to_onnx(fixed(), tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ROUNDED)
def test_calibration_is_of_the_same_size(name, tmp_path):
    with pytest.raises(
        ValueError, match="calibration must hold pictures of 3 x 48 x 64, as pictures does, got 3 x 32 x 32"
    ):
        ROUNDED[name](fixed(), tmp_path / name, pictures=wide(), calibration=wide(32, 32))
    assert list(tmp_path.iterdir()) == []


def test_core_ml_declares_the_size_and_holds_pictures_to_it(tmp_path):
    from coremltools.models import MLModel

    path = export.to_coreml(fixed(), tmp_path / "model.mlpackage", wide())
    declared = (
        MLModel(str(path), skip_model_load=True).get_spec().description.input[0].type.multiArrayType.shape
    )
    assert list(declared) == [1, 3, 48, 64]
    with pytest.raises(
        export.ExportError,
        match=r"declares the shape \(1, 3, 48, 64\) for its input, and gets \(1, 3, 64, 48\)",
    ):
        export.coreml_logits(path, wide(64, 48))


def test_the_server_crops_around_the_middle_and_never_squashes():
    """Stripes 16 wide on 40 x 128 pixels: only those in the middle are left, as wide as before in proportion."""
    reader = handler.PictureHandler()
    reader.configure({"classes": NAMES, "mean": [0, 0, 0], "std": [1, 1, 1], "size": [40, 64]})
    stripes = np.repeat(np.arange(8, dtype=np.uint8) * 30, 16)
    pixels = torch.from_numpy(stripes).expand(3, 40, 128).contiguous()
    assert torch.equal(
        (reader.read(torchserve.png(pixels)) * 255).round().to(torch.uint8), pixels[:, :, 32:96]
    )
    large = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((256, 80), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    large.save(buffer, format="PNG")
    got = (reader.read(buffer.getvalue()) * 255).round()
    middles = slice(8, None, 16)
    assert torch.equal(got[:, 20, middles], pixels[:, 20, 32:96][:, middles].float())


# -- what only a network is, and no shape ----------------------------------------------------------------------------


def test_half_precision_and_compiled_networks_are_written_in_single_precision(tmp_path):
    path = export.to_onnx(torch.compile(fixed().half()), tmp_path / "model.onnx", wide())
    assert torch.allclose(export.logits(path, wide()), predict(fixed().half().float(), wide()), atol=1e-3)


@pytest.mark.parametrize("size", [1_000, 3_000])
def test_a_network_too_large_for_one_file_is_refused_and_a_large_one_is_one_file(size, tmp_path, monkeypatch):
    """At lowered thresholds: PyTorch's own, above which it puts weights into a second file, and a file's largest size."""
    program = pytest.importorskip("torch.onnx._internal.exporter._onnx_program")
    monkeypatch.setattr(program, "_LARGE_MODEL_THRESHOLD", 100)
    monkeypatch.setattr(export, "LARGEST_ONNX", 2_000)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, size // 50), nn.Linear(size // 50, 10)
    )
    path = tmp_path / "model.onnx"
    if size > 2_000:
        with pytest.raises(
            export.ExportError,
            match=r"model\.onnx was not written: its weights are .* GB, and an ONNX file holds",
        ):
            export.to_onnx(model, path, wide())
        assert list(tmp_path.iterdir()) == []
    else:
        export.to_onnx(model, path, wide())
        assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_whatever_a_converter_puts_beside_its_file_is_refused(tmp_path):
    with (
        pytest.raises(export.ExportError, match=r"file was not written: executorch .*into a second file"),
        writing.writing(tmp_path / "file", fixed(), wide(), "executorch") as (_, part),
    ):
        part.with_name(f"{part.name}.data").write_text("weights")
    assert list(tmp_path.iterdir()) == []


# -- Core ML's operations, computed by PyTorch -----------------------------------------------------------------------


class Function(nn.Sequential):
    """A convolution, then a function of what it gives."""

    def __init__(self, function):
        super().__init__(nn.Conv2d(3, 8, 8, 8))
        self.function, self.head = function, nn.LazyLinear(10)
        self(torch.zeros(1, 3, 48, 64))

    def forward(self, images):
        return self.head(self.function(self[0](images)).flatten(1))


F = nn.functional
OPERATIONS = {
    "silu": F.silu, "gelu": F.gelu, "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"), "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "relu6": F.relu6, "elu": F.elu, "erf": torch.erf,
    "leaky_relu": F.leaky_relu, "softplus": F.softplus, "hardtanh": F.hardtanh, "clamp": lambda x: x.clamp(-0.5, 0.2),
    "concat": lambda x: torch.cat([x, x.relu()], 1), "stack": lambda x: torch.stack([x, x.relu()], 1),
    "split": lambda x: x.split([3, 5], 1)[1], "chunk": lambda x: x.chunk(2, 1)[0] * 2, "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1), "layer_norm": lambda x: F.layer_norm(x, (8, 6, 8)),
    "group_norm": lambda x: F.group_norm(x, 4), "instance_norm": F.instance_norm, "matmul": lambda x: x @ x.transpose(2, 3),
    "bmm": lambda x: torch.bmm(x.flatten(2).transpose(1, 2), x.flatten(2)), "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)), "reflect": lambda x: F.pad(x, (1, 1, 2, 2), "reflect"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2), "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "mean": lambda x: x.mean((2, 3)), "sum": lambda x: x.sum(1), "amax": lambda x: x.amax((2, 3)), "norm": lambda x: x / x.norm(dim=1, keepdim=True),
    "sub": lambda x: x - 0.5 * x.relu(), "div": lambda x: x / (1 + x.exp()), "sqrt": lambda x: (x.square() + 1).sqrt(),
    "rsqrt": lambda x: (x * x + 1).rsqrt(), "abs, pow": lambda x: x.abs() ** 1.5, "minimum": lambda x: torch.minimum(x, -x),
    "max_pool, ceil": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool, inside": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "slice": lambda x: x[:, 1:, ::2, 1:-1], "select": lambda x: torch.where(x > 0, x, 0.1 * x), "roll": lambda x: x.roll((1, 2), (2, 3)),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2), "permute, squeeze": lambda x: x.permute(0, 2, 3, 1)[..., :1].squeeze(-1),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1) * 2, "attention": lambda x: F.scaled_dot_product_attention(*[x.flatten(2)] * 3),
    "transposed convolution": nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1), "same": nn.Conv2d(8, 4, 3, padding="same"),
    "channel shuffle": lambda x: torch.cat([x, 2 * x], 1).unflatten(1, (2, 8)).transpose(1, 2).flatten(1, 2),
    "prelu": nn.PReLU(8), "batch_norm": nn.BatchNorm2d(8), "1d": lambda x: F.max_pool1d(x.flatten(2), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_usual_operations_stand_in_for_core_ml(name, tmp_path):
    torch.manual_seed(0)
    model, some = Function(OPERATIONS[name]).eval(), wide().take(slice(0, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        path = export.to_coreml(model, tmp_path / "model.mlpackage", some, agreement=0)
    assert torch.allclose(export.coreml_logits(path, some), predict(model, some), atol=0.02, rtol=0.01)


def test_what_only_core_ml_computes_is_written_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.delitem(mil.OPERATIONS, "erf")
    model, some = Function(torch.erf).eval(), wide().take(slice(0, 4))
    with pytest.warns(
        UserWarning, match=r"model\.mlpackage holds erf, which .*the package is written, but not checked"
    ):
        path = export.to_coreml(model, tmp_path / "model.mlpackage", some)
    with pytest.raises(export.ExportError, match="holds erf, which cannot be computed outside Core ML"):
        export.coreml_logits(path, some)


def test_an_operation_that_gives_another_shape_than_declared_is_refused(tmp_path, monkeypatch):
    path = export.to_coreml(fixed(), tmp_path / "model.mlpackage", wide())
    monkeypatch.setitem(mil.OPERATIONS, "relu", lambda a: a["x"][:, :-1].relu())
    with pytest.raises(
        export.ExportError,
        match=r"declares the shape \(1, 4, 12, 16\) for relu .*, and gets \(1, 3, 12, 16\)",
    ):
        export.coreml_logits(path, wide())


# -- versions --------------------------------------------------------------------------------------------------------


def test_what_pip_is_told_to_install_is_what_requirements_say():
    lines = set((HOME / "requirements.txt").read_text().split())
    assert {part for wanted in runtimes.PACKAGES.values() for part in wanted.split()} <= lines
    assert "numpy>=2.0,<2.4" in lines


def test_a_numpy_that_core_mls_converter_cannot_use_is_named(tmp_path, monkeypatch):
    """NumPy 2.4 makes no Python number of an array with one element, as coremltools 9 does; at the change to it, said so here."""

    def convert(*_, **__):
        raise TypeError("only 0-dimensional arrays can be converted to Python scalars")

    monkeypatch.setattr("coremltools.convert", convert)
    with pytest.raises(
        export.ExportError,
        match=re.escape(
            f"a NumPy before 2.4 for this network, and this is {np.__version__}. Way out: pip install 'numpy<2.4'"
        ),
    ):
        export.to_coreml(fixed(), tmp_path / "model.mlpackage", wide())
