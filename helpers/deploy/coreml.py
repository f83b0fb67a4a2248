"""Core ML: a .mlpackage for iPhones and Macs. Converting works on any system; only macOS can run the result.

Elsewhere the package is read back from disk, and its operations are computed with PyTorch from the weights
that stand in it. That shows that the file holds the right network, not how Apple's runtime rounds it. The
macOS branch was not run by us on a Mac.
"""

from __future__ import annotations

import glob
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, max_pool2d, pad

from helpers.data import Split, batches
from helpers.deploy.runtimes import existing, needs, quiet
from helpers.deploy.writing import AGREEMENT, ExportError, Pictures, writing
from helpers.types import Share, checked, path

ON_MAC = sys.platform == "darwin"
Package = path(".mlpackage")


@checked
def to_coreml(
    model: nn.Module,
    path: Package,
    pictures: Pictures | None = None,
    *,
    weights: Literal["float16", "int8", "palettized"] = "float16",
    agreement: Share | None = None,
) -> Path:
    """Write ``model`` as a Core ML program (.mlpackage, iOS 16 and later), one picture at a time; check it.

    On macOS, Core ML's own predictions are compared with PyTorch's. Elsewhere the package is read back from
    disk, and its operations, computed with PyTorch in single precision from the stored weights, must give
    PyTorch's classes.

    Args:
        model: maps normalised pictures, B x 3 x 32 x 32, to logits.
        path: ending in .mlpackage, which is a folder.
        pictures: what to compare on. Default: 200 test pictures of ``load_data("auto")``.
        weights: how they are stored. "float16"; "int8": per channel, symmetric; "palettized": 6-bit indices
            into 64 values per layer, found by k-means (Han 2016, section 3). Layers of up to 2,048 weights
            stay in float16. Arithmetic is in float16.
        agreement: share of ``pictures`` that must keep their class. Default: 0.99.

    Returns:
        The path.

    Raises:
        ExportError: fewer of the pictures than ``agreement`` keep their class.
    """
    share = AGREEMENT if agreement is None else agreement
    frame = writing(path, model, pictures, "coremltools", run=_answers, share=share, place=_atomic_folder)
    with frame as (frozen, part), torch.no_grad():
        import coremltools

        program = coremltools.convert(
            torch.jit.trace(frozen, torch.zeros(1, 3, 32, 32)),
            convert_to="mlprogram",
            inputs=[coremltools.TensorType("images", shape=(1, 3, 32, 32), dtype=np.float32)],
            outputs=[coremltools.TensorType("logits", dtype=np.float32)],
            minimum_deployment_target=coremltools.target.iOS16,
            skip_model_load=True,
        )
        _stored_as(weights, program).save(os.fspath(part))
    return path


@checked
def coreml_logits(path: Package, pictures: Pictures) -> Tensor:
    """Run a .mlpackage: with Core ML on macOS; elsewhere its operations are computed with PyTorch.

    Args:
        path: written by ``to_coreml``.
        pictures: what to classify.

    Returns:
        Logits: N x classes, float32.

    Raises:
        ExportError: the package holds an operation that the networks of this project do not have.
    """
    _mend(path)
    return _answers(existing(path), pictures)


# -- inside --------------------------------------------------------------------------------------------------


def _stored_as(weights: str, program: Any) -> Any:
    import coremltools.optimize.coreml as optimize

    if weights == "float16":
        return program
    if weights == "int8":
        shrink, setting = (
            optimize.linear_quantize_weights,
            optimize.OpLinearQuantizerConfig(mode="linear_symmetric"),
        )
    else:
        shrink, setting = optimize.palettize_weights, optimize.OpPalettizerConfig(mode="kmeans", nbits=6)
    return shrink(program, optimize.OptimizationConfig(global_config=setting))


def _answers(path: Path, pictures: Split) -> Tensor:
    with quiet(), needs("coremltools"):
        from coremltools.models import MLModel

        package = MLModel(os.fspath(path), skip_model_load=not ON_MAC)
        compute = None if ON_MAC else _program(package, path)

    def predict(image: Tensor) -> Tensor:
        return torch.from_numpy(package.predict({"images": image.contiguous().numpy()})["logits"])

    with torch.no_grad():
        return torch.cat(
            [(compute or predict)(images) for images, _ in batches(pictures, 1 if ON_MAC else 25)]
        )


# The program in a package, as a function of pictures that PyTorch computes in single precision.
def _program(package: Any, path: Path) -> Callable[[Tensor], Tensor]:
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = package.get_spec()
    main = load(spec, spec.specificationVersion, package.weights_dir).functions["main"]
    constants = {"const", "constexpr_affine_dequantize", "constexpr_lut_to_dense"}
    operations = [each for each in main.operations if each.op_type not in constants]
    made = {*main.inputs, *(each.outputs[0].name for each in operations)}
    stored = {
        variable.name: _stored(variable)
        for each in operations
        for variable in each.inputs.values()
        if variable.name not in made
    }
    for kind in {each.op_type for each in operations} - {*_OPERATIONS}:
        raise ExportError(f"{path.name} holds {kind!r}, which cannot be computed outside Core ML")

    def compute(images: Tensor) -> Tensor:
        values = stored | {"images": images}
        for each in operations:
            given = {name: values[variable.name] for name, variable in each.inputs.items()}
            values[each.outputs[0].name] = _OPERATIONS[each.op_type](given)
        return values[main.outputs[0].name]

    return compute


# A constant of the file, unpacked: a tensor if it holds real numbers, else plain Python values.
def _stored(variable: Any) -> Any:
    value = np.asarray(variable.op.materialized_val_inference() if variable.val is None else variable.val)
    return torch.from_numpy(value.astype(np.float32)) if value.dtype.kind == "f" else value.tolist()


def _padded(a: dict) -> Tensor:
    top, bottom, left, right = a["pad"] if a.get("pad_type", "custom") == "custom" else (0, 0, 0, 0)
    return pad(a["x"], (left, right, top, bottom))


_OPERATIONS: dict[str, Callable[[dict], Tensor]] = {
    "conv": lambda a: conv2d(
        _padded(a), a["weight"], a.get("bias"), a["strides"], 0, a["dilations"], a["groups"]
    ),
    "linear": lambda a: linear(a["x"], a["weight"], a.get("bias")),
    "relu": lambda a: a["x"].relu(),
    "relu6": lambda a: a["x"].clamp(0, 6),
    "clip": lambda a: a["x"].clamp(float(a["alpha"]), float(a["beta"])),
    "add": lambda a: a["x"] + a["y"],
    "mul": lambda a: a["x"] * a["y"],
    "max_pool": lambda a: max_pool2d(_padded(a), a["kernel_sizes"], a["strides"]),
    "reduce_mean": lambda a: a["x"].mean(a["axes"], keepdim=a["keep_dims"]),
    "reshape": lambda a: a["x"].reshape(-1, *a["shape"][1:]),  # the file says one picture
    "cast": lambda a: a["x"].float(),
}


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder of the same name that takes ``path``'s place when the block ends well.

    A folder cannot replace another in one step. So the older one is first put aside, under a name with this
    process's number; whoever is killed before the second step leaves it there, and ``_mend`` puts it back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _mend(path, os.getpid())  # what bears our own number is left from an earlier process of that number
    outer, older = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "older"))
    outer.mkdir()
    try:
        yield outer / path.name
        if path.exists():
            os.replace(path, older)
        os.replace(outer / path.name, path)
    finally:
        _mend(path, os.getpid())


# Puts back a package that was put aside, if nothing has taken its place, and clears what is left of writers
# that no longer live, or have the process number ``own``.
def _mend(path: Path, own: int | None = None) -> None:
    for left in sorted(path.parent.glob(f".{glob.escape(path.name)}.*")):  # .older comes before .part
        *_, writer, end = left.name.split(".")
        if end not in ("older", "part") or not writer.isdigit():
            continue
        if int(writer) == own or not psutil.pid_exists(int(writer)):
            if end == "older" and not path.exists():
                os.replace(left, path)
            shutil.rmtree(left, ignore_errors=True)
