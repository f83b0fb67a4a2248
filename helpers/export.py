"""Out of PyTorch: each function writes a file, runs it in the target's own runtime, and compares with PyTorch on real pictures.

If the answers differ too much, ExportError says by how much and nothing is left behind.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from helpers import checks
from helpers.data import Split, batches
from helpers.evaluation import Accuracy, evaluating

TOLERANCE = 1e-2  # largest difference of a logit that float formats may show
AGREEMENT = 0.9  # share of pictures on which an int8 network must name the same class


class ExportError(RuntimeError):
    """An exported network does not answer as PyTorch does, or cannot be exported; the message gives the figures."""


def to_onnx(model: nn.Module, path: str | os.PathLike, pictures: Split) -> Path:
    """Write ``model`` as ONNX, with any batch size, in single precision, and check it with onnxruntime.

    Args:
        model: maps normalised pictures, B x 3 x 32 x 32, to logits.
        path: ending in .onnx.
        pictures: what to compare on; a few dozen do.

    Returns:
        The path.

    Raises:
        ValueError: ``path`` does not end in .onnx, or ``pictures`` is empty.
        ExportError: a logit differs from PyTorch's by more than 0.01.
    """
    path = _target(path, ".onnx", pictures)
    example = next(batches(pictures, 2))[0].contiguous()
    with evaluating(model), checks.atomic_path(path) as part, _quiet():
        batch = {"images": {0: torch.export.Dim("batch", min=1, max=65_536)}}
        program = torch.onnx.export(
            model.cpu(), (example,), dynamo=True, input_names=["images"], output_names=["logits"], dynamic_shapes=batch, verbose=False
        )
        program.save(part)
        _compare(onnx_logits(part, pictures), model, pictures, path, largest=TOLERANCE)
    return path


def quantize_onnx(source: str | os.PathLike, path: str | os.PathLike, calibration: Split, pictures: Split | None = None) -> Path:
    """Quantize an ONNX network to int8, statically: weights per channel, activations by their range on ``calibration`` (Jacob 2018).

    Args:
        source: written by ``to_onnx``.
        path: ending in .onnx.
        calibration: a few hundred training pictures.
        pictures: what to compare with ``source`` on. Default: ``calibration``.

    Returns:
        The path.

    Raises:
        ValueError: ``path`` does not end in .onnx, or a split is empty.
        ExportError: fewer than 90% of the pictures get the class that ``source`` gives them.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path, pictures = _target(path, ".onnx", calibration), calibration if pictures is None else pictures
    with checks.atomic_path(path) as part, checks.atomic_path(path.with_suffix(".prepared")) as prepared, _quiet():
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            part,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=not _has_vnni(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        _agree(onnx_logits(part, pictures), onnx_logits(source, pictures), path)
    path.with_suffix(".prepared").unlink(missing_ok=True)
    return path


def onnx_logits(path: str | os.PathLike, pictures: Split, *, threads: int | None = None, batch_size: int = 100) -> Tensor:
    """Run an ONNX network with onnxruntime on the CPU, and return its logits: N x classes, float32."""
    run = onnx_session(path, threads)
    return torch.cat([torch.from_numpy(run(images.contiguous().numpy())) for images, _ in batches(pictures, batch_size)])


def onnx_accuracy(path: str | os.PathLike, split: Split) -> Accuracy:
    """Measure top-1 accuracy of an ONNX network on ``split``."""
    return Accuracy(int((onnx_logits(path, split).argmax(1) == split.labels).sum()), len(split))


def onnx_session(path: str | os.PathLike, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Open an ONNX network in onnxruntime, on the CPU; return callable(images) -> logits, both float32 arrays.

    Args:
        path: the file.
        threads: of onnxruntime. Default: as many as PyTorch uses now.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else checks.integer("threads", threads, 1)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def onnx_latency(path: str | os.PathLike, *, threads: int | None = None, batch_size: int = 1, repeats: int = 100) -> dict:
    """Time an ONNX network in onnxruntime on the CPU, after a warm-up, on a random 3 x 32 x 32 picture.

    Args:
        path: the file.
        threads: of onnxruntime. Default: as many as PyTorch uses now.
        batch_size: pictures at a time.
        repeats: timings; at least 3.

    Returns:
        latency_ms (median), latency_low_ms and latency_high_ms (quartiles), batch, threads, repeats.
    """
    checks.integer("repeats", repeats, 3)
    threads = torch.get_num_threads() if threads is None else checks.integer("threads", threads, 1)
    run = onnx_session(path, threads)
    shape = (checks.integer("batch_size", batch_size, 1), 3, 32, 32)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    for _ in range(max(3, repeats // 10)):
        run(images)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run(images)
        times.append(1e3 * (time.perf_counter() - started))
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
    return {
        "latency_ms": median, "latency_low_ms": low, "latency_high_ms": high,
        "batch": batch_size, "threads": threads, "repeats": repeats,
    }  # fmt: skip


def zipped_bytes(path: str | os.PathLike) -> int:
    """Return the bytes of a zip file (deflate) that holds ``path``: what a download of it takes. Really written, then deleted."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file.zip"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            archive.write(path, Path(path).name)
        return target.stat().st_size


# -- inside ----------------------------------------------------------------------------------------------------------


class _Reader:
    """Calibration pictures, one batch at a time, as onnxruntime's quantizer asks for them."""

    def __init__(self, pictures: Split) -> None:
        self.batches = iter(batches(pictures, 50))

    def get_next(self) -> dict[str, np.ndarray] | None:
        images, _ = next(self.batches, (None, None))
        return None if images is None else {"images": images.contiguous().numpy()}


def _target(path: str | os.PathLike, suffix: str, pictures: Split) -> Path:
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"path must end in {suffix}, got {str(path)!r}")
    checks.instance("pictures", pictures, Split)
    if len(pictures) == 0:
        raise ValueError("pictures must hold at least one picture, got none")
    return path


def _compare(logits: Tensor, model: nn.Module, pictures: Split, path: Path, largest: float) -> None:
    """Raise ExportError if any logit is further than ``largest`` from PyTorch's."""
    with evaluating(model):
        expected = torch.cat([model(images) for images, _ in batches(pictures, 100)])
    difference = (logits - expected).abs().max().item()
    same = (logits.argmax(1) == expected.argmax(1)).float().mean().item()
    if not difference <= largest:
        raise ExportError(
            f"{path} differs from PyTorch by {difference:.3g} in a logit (allowed: {largest:g}) and names the same class for "
            f"{same:.1%} of {len(pictures)} pictures; it was not written"
        )


def _agree(logits: Tensor, expected: Tensor, path: Path) -> None:
    """Raise ExportError if too few pictures get the same class."""
    same = (logits.argmax(1) == expected.argmax(1)).float().mean().item()
    if not same >= AGREEMENT:
        difference = (logits - expected).abs().max().item()
        raise ExportError(
            f"{path} names the same class as before for {same:.1%} of {len(logits)} pictures (asked: {AGREEMENT:.0%}); the largest "
            f"difference of a logit is {difference:.3g}; it was not written"
        )


def _has_vnni() -> bool:
    """Whether the processor multiplies int8 without saturating (x86 without VNNI does not; others do)."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return "avx" not in flags or "vnni" in flags


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' progress notes; errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
