"""Core ML: a .mlpackage for iPhones and Macs. Converting works on any system; only macOS can run the result.

Elsewhere the package is read back from disk, and its operations are computed with PyTorch from the weights
that stand in it. That shows that the file holds the right network, not how Apple's runtime rounds it. The
macOS branch was not run by us on a Mac.
"""

import glob
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from helpers.data import Split, batches
from helpers.deploy.mil import Program, UnknownOperation
from helpers.deploy.runtimes import existing, needs, quiet
from helpers.deploy.writing import AGREEMENT, ExportError, Pictures, example, said, shape_of, some, writing
from helpers.files import writable
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
    PyTorch's classes, each in the shape that the file declares. Where only Core ML can compute one of them,
    the package is written unchecked, and a warning says so.

    Args:
        model: maps normalised pictures, B x 3 x H x W, to logits.
        path: ending in .mlpackage, which is a folder.
        pictures: what to compare on; the file takes their H x W. Default: 200 test pictures of
            ``load_data("auto")``.
        weights: how they are stored. "float16"; "int8": per channel, symmetric; "palettized": 6-bit indices
            into 64 values per layer, found by k-means (Han 2016, section 3). Layers of up to 2,048 weights
            stay in float16. Arithmetic is in float16.
        agreement: share of ``pictures`` that must keep their class. Default: 0.99.

    Returns:
        The path.

    Raises:
        ExportError: fewer of the pictures than ``agreement`` keep their class.
    """
    share, pictures = AGREEMENT if agreement is None else agreement, some(pictures)
    images = example(1, shape_of(pictures))
    frame = writing(
        path, model, pictures, "coremltools", run=_answers_if_known, share=share, place=_atomic_folder
    )
    with frame as (frozen, part), torch.no_grad():
        import coremltools

        with _numpy_said(path):
            program = coremltools.convert(
                torch.jit.trace(frozen, images),
                convert_to="mlprogram",
                inputs=[coremltools.TensorType("images", shape=images.shape, dtype=np.float32)],
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
        ExportError: the package holds an operation that only Core ML computes, or declares another shape.
    """
    _mend(path)
    return _answers(existing(path), pictures)


# -- inside --------------------------------------------------------------------------------------------------


# coremltools 9 makes Python numbers of arrays with one element, which NumPy refuses since 2.4.
@contextmanager
def _numpy_said(path: Path) -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        if "0-dimensional arrays" not in str(error):
            raise
        text = f"coremltools 9 needs a NumPy before 2.4 for this network, and this is {np.__version__}"
        raise ExportError(f"{path} was not written: {text}. Way out: pip install 'numpy<2.4'") from error


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


def _answers_if_known(path: Path, pictures: Split) -> Tensor | None:
    try:
        return _answers(path, pictures)
    except UnknownOperation as unknown:
        warnings.warn(f"{unknown}: the package is written, but not checked. Run it on a Mac.", stacklevel=2)
        return None


def _answers(path: Path, pictures: Split) -> Tensor:
    with (
        said(f"{path} cannot be read by coremltools", "write it anew, with helpers.export"),
        quiet(),
        needs("coremltools"),
    ):
        from coremltools.models import MLModel

        package = MLModel(os.fspath(path), skip_model_load=not ON_MAC)
        compute = None if ON_MAC else Program(_main(package), path.name)

    def predict(image: Tensor) -> Tensor:
        return torch.from_numpy(package.predict({"images": image.contiguous().numpy()})["logits"])

    with torch.no_grad():
        return torch.cat([(compute or predict)(images) for images, _ in batches(pictures, 1)])


def _main(package: Any) -> Any:
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = package.get_spec()
    return load(spec, spec.specificationVersion, package.weights_dir).functions["main"]


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder of the same name that takes ``path``'s place when the block ends well.

    A folder cannot replace another in one step. So the older one is first put aside, under a name with this
    process's number; whoever is killed before the second step leaves it there, and ``_mend`` puts it back.
    """
    writable(path)
    if path.is_file():
        raise FileExistsError(f"{path} is a file, and a package is a folder; it was left as it is")
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
