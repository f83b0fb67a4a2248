"""Core ML: a .mlpackage for iPhones and Macs. Converting works on any system; only macOS can run the result.

Elsewhere the package is read back from disk, and its operations are computed with PyTorch from the weights that stand in it. That
shows that the file holds the right network, not how Apple's runtime rounds it. The macOS branch was not run by us on a Mac.
"""

from __future__ import annotations

import glob
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers import checks
from helpers.data import Split, batches
from helpers.evaluation import predict
from helpers.fidelity import ExportError, agree, converting, frozen, some, target
from helpers.sessions import needs, quiet

ON_MAC = sys.platform == "darwin"
WEIGHTS = {"float16": 16, "int8": 8, "palettized": 6}  # bits of a stored weight
AGREEMENTS = {
    "float16": 0.99,
    "int8": 0.99,
    "palettized": 0.99,
}  # share of pictures that must keep their class


def to_coreml(
    model: nn.Module,
    path: str | os.PathLike,
    pictures: Split | None = None,
    *,
    weights: str = "float16",
    agreement: float | None = None,
) -> Path:
    """Write ``model`` as a Core ML program (.mlpackage, iOS 16 and later), one picture at a time, and check it.

    On macOS, Core ML's own predictions are compared with PyTorch's. Elsewhere the package is read back from disk: its input and
    output, the number of its convolutions and linear layers and the bytes of its weights must be the model's, and its operations,
    computed with PyTorch in single precision from the stored weights, must give PyTorch's classes.

    Args:
        model: maps normalised pictures, B x 3 x 32 x 32, to logits.
        path: ending in .mlpackage, which is a folder.
        pictures: what to compare on. Default: 200 test pictures of ``load_data("auto")``.
        weights: how they are stored. "float16"; "int8": per channel, symmetric; "palettized": 6-bit indices into 64 values per
            layer, found by k-means (Han 2016, section 3). Layers of up to 2,048 weights stay in float16. Arithmetic is in float16.
        agreement: share of ``pictures`` that must keep their class, in [0, 1]. Default: 0.99.

    Returns:
        The path.

    Raises:
        ValueError: ``path`` does not end in .mlpackage, ``pictures`` is empty, ``weights`` is unknown, or ``agreement`` out of range.
        ImportError: coremltools is not installed; the message says how to.
        ExportError: the file does not hold the model's layers, or fewer of the pictures than ``agreement`` keep their class.
    """
    path, pictures = target(path, ".mlpackage", model, pictures)
    checks.choice("weights", weights, WEIGHTS)
    least = AGREEMENTS[weights] if agreement is None else checks.number("agreement", agreement, 0, 1)
    model = frozen(model)
    with quiet(), needs("coremltools"):
        import coremltools
        import coremltools.optimize.coreml
    with _atomic_folder(path) as part:
        with converting(path, "coremltools"):
            _convert(coremltools, model, weights).save(os.fspath(part))
        _check_contents(part, model, path, WEIGHTS[weights])
        agree(coreml_logits(part, pictures), predict(model, pictures), path, least)
    return path


def coreml_logits(path: str | os.PathLike, pictures: Split) -> Tensor:
    """Run a .mlpackage: with Core ML on macOS; elsewhere its operations are computed with PyTorch from the stored weights.

    Args:
        path: written by ``to_coreml``.
        pictures: what to classify.

    Returns:
        Logits: N x classes, float32.

    Raises:
        ValueError: ``path`` does not end in .mlpackage, or there are no pictures.
        FileNotFoundError: there is no such package.
        ImportError: coremltools is not installed; the message says how to.
        ExportError: the package holds an operation that the networks of this project do not have.
    """
    path, pictures = (
        checks.path("path", path, ".mlpackage"),
        some("pictures", checks.instance("pictures", pictures, Split), "test"),
    )
    _mend(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist. Way out: write it first, with to_coreml.")
    with quiet(), needs("coremltools"):
        from coremltools.models import MLModel
    if ON_MAC:
        package = MLModel(os.fspath(path))
        return _run(
            lambda image: torch.from_numpy(package.predict({"images": image.numpy()})["logits"]), pictures
        )
    with quiet():
        compute = _program(path)
    with torch.no_grad():
        return _run(compute, pictures)


# -- inside ----------------------------------------------------------------------------------------------------------


def _convert(coremltools: object, model: nn.Module, weights: str) -> object:
    """Trace ``model``, convert it to an ML program, and store its weights as asked."""
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.zeros(1, 3, 32, 32))
    program = coremltools.convert(
        traced,
        convert_to="mlprogram",
        inputs=[coremltools.TensorType("images", shape=(1, 3, 32, 32), dtype=np.float32)],
        outputs=[coremltools.TensorType("logits", dtype=np.float32)],
        minimum_deployment_target=coremltools.target.iOS16,
        skip_model_load=True,
    )
    optimize = coremltools.optimize.coreml
    if weights == "int8":
        setting = optimize.OpLinearQuantizerConfig(mode="linear_symmetric")
        return optimize.linear_quantize_weights(program, optimize.OptimizationConfig(global_config=setting))
    if weights == "palettized":
        setting = optimize.OpPalettizerConfig(mode="kmeans", nbits=WEIGHTS[weights])
        return optimize.palettize_weights(program, optimize.OptimizationConfig(global_config=setting))
    return program


def _run(classify: Callable[[Tensor], Tensor], pictures: Split) -> Tensor:
    return torch.cat([classify(images.contiguous()) for images, _ in batches(pictures, 1)])


def _read_back(path: str | os.PathLike) -> object:
    """Load the program that stands in a saved package, weights included."""
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.models import MLModel

    package = MLModel(os.fspath(path), skip_model_load=True)
    spec = package.get_spec()
    return load(
        model_spec=spec, specification_version=spec.specificationVersion, file_weights_dir=package.weights_dir
    )


def _check_contents(part: Path, model: nn.Module, path: Path, bits: int) -> None:
    """Raise ExportError unless the package has the model's input, output, layers and at least the bytes its weights take."""
    with quiet():
        main = _read_back(part).functions["main"]
    found = Counter(operation.op_type for operation in main.operations)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    expected = Counter("linear" if isinstance(layer, nn.Linear) else "conv" for layer in layers)
    least = sum(layer.weight.numel() for layer in layers) * bits // 8
    stored = sum(file.stat().st_size for file in part.rglob("weight*.bin"))
    wanted = {
        "inputs": (
            {name: tuple(value.shape) for name, value in main.inputs.items()},
            {"images": (1, 3, 32, 32)},
        ),
        "outputs": ([value.name for value in main.outputs], ["logits"]),
        "convolutions": (found["conv"], expected["conv"]),
        "linear layers": (found["linear"], expected["linear"]),
        "weights, in bytes, at least": (min(stored, least), least),
    }
    for name, (has, must) in wanted.items():
        if has != must:
            raise ExportError(
                f"{path} does not hold the network it was made from: {name} {has}, not {must}; it was not written"
            )


def _program(path: str | os.PathLike) -> Callable[[Tensor], Tensor]:
    """Turn a saved package into a function of one picture, 1 x 3 x 32 x 32, that PyTorch computes in single precision.

    Raises:
        ExportError: an operation that the networks of this project do not have.
    """
    main = _read_back(path).functions["main"]
    made, steps = set(main.inputs), []
    for operation in main.operations:
        if operation.op_type == "const" or operation.op_type.startswith("constexpr"):
            continue
        if operation.op_type not in _OPERATIONS:
            raise ExportError(f"{path} holds {operation.op_type!r}, which cannot be computed outside Core ML")
        links = {name: variable.name for name, variable in operation.inputs.items() if variable.name in made}
        stored = {name: _stored(variable) for name, variable in operation.inputs.items() if name not in links}
        made.add(operation.outputs[0].name)
        steps.append((_OPERATIONS[operation.op_type], links, stored, operation.outputs[0].name))

    def compute(images: Tensor) -> Tensor:
        values = {"images": images}
        for function, links, stored, output in steps:
            values[output] = function(stored | {name: values[link] for name, link in links.items()})
        return values[main.outputs[0].name]

    return compute


def _stored(variable: object) -> object:
    """Return a constant of the file, unpacked: a tensor if it holds real numbers, else plain Python values."""
    value = np.asarray(variable.op.materialized_val_inference() if variable.val is None else variable.val)
    return torch.from_numpy(value.astype(np.float32)) if value.dtype.kind == "f" else value.tolist()


def _padded(a: dict) -> Tensor:
    """Pad ``x`` as a convolution or pooling says: Core ML lists top, bottom, left, right."""
    top, bottom, left, right = a["pad"] if a.get("pad_type", "custom") == "custom" else (0, 0, 0, 0)
    return functional.pad(a["x"], (left, right, top, bottom))


_OPERATIONS: dict[str, Callable[[dict], Tensor]] = {
    "conv": lambda a: functional.conv2d(
        _padded(a), a["weight"], a.get("bias"), a["strides"], 0, a["dilations"], a["groups"]
    ),
    "linear": lambda a: functional.linear(a["x"], a["weight"], a.get("bias")),
    "relu": lambda a: a["x"].relu(),
    "relu6": lambda a: a["x"].clamp(0, 6),
    "clip": lambda a: a["x"].clamp(float(a["alpha"]), float(a["beta"])),
    "add": lambda a: a["x"] + a["y"],
    "mul": lambda a: a["x"] * a["y"],
    "max_pool": lambda a: functional.max_pool2d(_padded(a), a["kernel_sizes"], a["strides"]),
    "reduce_mean": lambda a: a["x"].mean(a["axes"], keepdim=a["keep_dims"]),
    "reshape": lambda a: a["x"].reshape(a["shape"]),
    "cast": lambda a: a["x"].float(),
}


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder of the same name that takes ``path``'s place when the block ends well.

    A folder cannot replace another in one step. So the older one is first put aside, under a name with this process's number; whoever
    is killed before the second step leaves it there, and ``_mend`` puts it back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _mend(path, os.getpid())  # what bears our own number is left from an earlier process of that number
    outer, older = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "older"))
    try:
        outer.mkdir()
        yield outer / path.name
        if path.exists():
            os.replace(path, older)
        try:
            os.replace(outer / path.name, path)
        except OSError:
            if older.exists():
                os.replace(older, path)
            raise
    finally:
        for folder in (outer, older):
            shutil.rmtree(folder, ignore_errors=True)


def _mend(path: Path, own: int | None = None) -> None:
    """Put back the package that a killed process had put aside, if nothing has taken its place, and clear what else it left.

    Args:
        path: of the package.
        own: a process number whose leftovers are cleared although the process lives.
    """
    for end in ("older", "part"):
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.{end}"):
            writer = left.name.split(".")[-2]
            if writer.isdigit() and (int(writer) == own or not psutil.pid_exists(int(writer))):
                if end == "older" and not path.exists():
                    os.replace(left, path)
                else:
                    shutil.rmtree(left, ignore_errors=True)
