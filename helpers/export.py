"""Out of PyTorch: each function writes a file, runs it in the target's own runtime, and compares with PyTorch on real pictures.

If the answers differ too much, ExportError says by how much and nothing is left behind. ``logits``, ``accuracy``, ``latency`` and
``peak_memory`` then measure any .onnx, .tflite or .pte file in the same way.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers import checks
from helpers.coreml import coreml_logits, to_coreml
from helpers.data import Split, batches
from helpers.evaluation import Accuracy, predict
from helpers.fidelity import ExportError, agree, compare, converting, frozen, some, target
from helpers.phone import parse_benchmark_model, parse_executor_runner, phone_commands, run_on_phone
from helpers.serving import archive_labels, serving, to_torchserve
from helpers.sessions import (
    SESSIONS,
    Session,
    executorch_session,
    existing,
    litert_scales,
    litert_session,
    needs,
    onnx_session,
    open_session,
    quiet,
    thread_count,
)

__all__ = [
    "AGREEMENT", "TOLERANCE", "ExportError", "accuracy", "archive_labels", "coreml_logits", "latency", "litert_scales", "logits",
    "onnx_accuracy", "onnx_latency",
    "onnx_logits", "onnx_profile", "onnx_session", "open_session", "parse_benchmark_model", "parse_executor_runner", "peak_memory",
    "phone_commands", "quantize_onnx", "run_on_phone", "serving", "to_coreml", "to_executorch", "to_litert", "to_onnx", "to_torchserve",
    "zipped_bytes",
]  # fmt: skip

TOLERANCE = 1e-2  # largest difference of a logit that float formats may show
AGREEMENT = 0.99  # share of pictures on which an int8 network must name the same class


# -- files -----------------------------------------------------------------------------------------------------------


def to_onnx(model: nn.Module, path: str | os.PathLike, pictures: Split | None = None) -> Path:
    """Write ``model`` as ONNX, with any batch size, in single precision, and check it with onnxruntime.

    Args:
        model: maps normalised pictures, B x 3 x 32 x 32, to logits.
        path: ending in .onnx.
        pictures: what to compare on; a few dozen do. Default: 200 test pictures of ``load_data("auto")``.

    Returns:
        The path.

    Raises:
        ValueError: ``path`` does not end in .onnx, or ``pictures`` is empty.
        ImportError: onnx, onnxscript or onnxruntime is not installed; the message says how to.
        ExportError: a logit differs from PyTorch's by more than 0.01, or a class differs.
    """
    path, pictures = target(path, ".onnx", model, pictures)
    model = frozen(model)
    with needs("onnxruntime"):
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    with checks.atomic_path(path) as part:
        with converting(path, "torch.onnx"):
            batch = ({0: torch.export.Dim("batch", min=1, max=65_536)},)
            program = torch.onnx.export(
                model,
                (_example(2),),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=batch,
                verbose=False,
            )
            program.save(part)
        compare(onnx_logits(part, pictures), model, pictures, path, TOLERANCE)
    return path


def quantize_onnx(
    source: nn.Module | str | os.PathLike,
    path: str | os.PathLike,
    calibration: Split | None = None,
    pictures: Split | None = None,
    *,
    agreement: float | None = None,
) -> Path:
    """Quantize an ONNX network to int8, statically: weights per channel, activations by their range on ``calibration`` (Jacob 2018).

    Args:
        source: a file written by ``to_onnx``, or a model, which is written so first.
        path: ending in .onnx.
        calibration: a few hundred training pictures. Default: 200 of ``load_data("auto")``.
        pictures: what to compare with ``source`` on. Default: ``calibration`` if given, else 200 test pictures of
            ``load_data("auto")``.
        agreement: share of ``pictures`` that must keep their class, in [0, 1]. Default: 0.99.

    Returns:
        The path.

    Raises:
        ValueError: ``source`` or ``path`` does not end in .onnx, a split is empty, or ``agreement`` is out of range.
        FileNotFoundError: there is no file ``source``.
        ImportError: onnxruntime is not installed; the message says how to.
        ExportError: fewer of the pictures than ``agreement`` get the class that ``source`` gives them.
    """
    given, calibration = calibration, some("calibration", calibration, "train")
    if isinstance(source, nn.Module):
        checks.path("path", path, ".onnx")
        with tempfile.TemporaryDirectory() as folder:
            written = to_onnx(source, Path(folder) / "float.onnx", given if pictures is None else pictures)
            return quantize_onnx(written, path, given, pictures, agreement=agreement)
    source = existing(source, ".onnx", name="source")
    path, pictures = target(path, ".onnx", None, given if pictures is None else pictures)
    least = AGREEMENT if agreement is None else checks.number("agreement", agreement, 0, 1)
    with needs("onnxruntime"):
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    with checks.atomic_path(path) as part, tempfile.TemporaryDirectory() as folder:
        with converting(path, "onnxruntime"):
            prepared = Path(folder) / "prepared.onnx"
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
        agree(onnx_logits(part, pictures), onnx_logits(source, pictures), path, least)
    return path


def to_litert(
    model: nn.Module,
    path: str | os.PathLike,
    pictures: Split | None = None,
    *,
    int8: bool = False,
    calibration: Split | None = None,
    agreement: float | None = None,
) -> Path:
    """Write ``model`` for LiteRT (formerly TensorFlow Lite), one picture at a time, and check it with ai-edge-litert.

    With ``int8`` everything in the file is an integer, pictures and logits included: weights per channel, activations by their
    range on ``calibration`` (static quantization by litert-torch's PT2E flow; Jacob 2018). The file says by which scale its inputs
    and outputs are rounded, and ``logits`` heeds that.

    Args:
        model: maps normalised pictures, B x 3 x 32 x 32, to logits.
        path: ending in .tflite.
        pictures: what to compare on. Default: 200 test pictures of ``load_data("auto")``.
        int8: quantize.
        calibration: a few hundred training pictures, for ``int8``. Default: 200 of ``load_data("auto")``.
        agreement: share of ``pictures`` that must keep their class in ``int8``, in [0, 1]. Default: 0.99; the smaller a network, the
            more of them are close calls.

    Returns:
        The path.

    Raises:
        ValueError: ``path`` does not end in .tflite, a split is empty, ``agreement`` is out of range, or it or ``calibration`` is
            given without ``int8``.
        ImportError: litert-torch or ai-edge-litert is not installed; the message says how to.
        ExportError: a logit differs from PyTorch's by more than 0.01, or a class differs; with ``int8``, fewer of the
            pictures than ``agreement`` get PyTorch's class.
    """
    path, pictures = target(path, ".tflite", model, pictures)
    if calibration is not None and not int8:
        raise ValueError("calibration is for int8=True; got it with int8=False")
    if agreement is not None and not int8:
        raise ValueError(f"agreement is for int8=True; got {agreement!r} with int8=False")
    least = AGREEMENT if agreement is None else checks.number("agreement", agreement, 0, 1)
    calibration = some("calibration", calibration, "train") if int8 else None
    model = frozen(model)
    with quiet(), needs("litert-torch"):
        import litert_torch
        import litert_torch.progress
    litert_torch.progress.console.quiet = True  # in a notebook it prints past any redirection
    with checks.atomic_path(path) as part:
        with converting(path, "litert-torch"):
            settings = {}
            if int8:
                model_, settings["quant_config"] = _calibrated(model, calibration)
            litert_torch.convert(model_ if int8 else model, (_example(1),), **settings).export(
                os.fspath(part)
            )
        answers = _answers(litert_session(part), pictures)
        if int8:
            agree(answers, predict(model, pictures), path, least)
        else:
            compare(answers, model, pictures, path, TOLERANCE)
    return path


def to_executorch(model: nn.Module, path: str | os.PathLike, pictures: Split | None = None) -> Path:
    """Write ``model`` for ExecuTorch with XNNPACK's CPU kernels, one picture at a time, and check it with ExecuTorch's runtime.

    Args:
        model: maps normalised pictures, B x 3 x 32 x 32, to logits.
        path: ending in .pte.
        pictures: what to compare on. Default: 200 test pictures of ``load_data("auto")``.

    Returns:
        The path.

    Raises:
        ValueError: ``path`` does not end in .pte, or ``pictures`` is empty.
        ImportError: executorch is not installed; the message says how to.
        ExportError: a logit differs from PyTorch's by more than 0.01, or a class differs.
    """
    path, pictures = target(path, ".pte", model, pictures)
    model = frozen(model)
    with quiet(), needs("executorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    with checks.atomic_path(path) as part:
        with converting(path, "executorch"):
            program = torch.export.export(model, (_example(1),))
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            part.write_bytes(lowered.to_executorch().buffer)
        compare(_answers(executorch_session(part), pictures), model, pictures, path, TOLERANCE)
    return path


def zipped_bytes(path: str | os.PathLike) -> int:
    """Return the bytes of a zip file (deflate) that holds ``path``: what a download of it takes. Really written, then deleted.

    Args:
        path: a file, or a folder such as a .mlpackage.
    """
    path = checks.path("path", path)
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    with tempfile.TemporaryDirectory() as folder:
        zipped = Path(folder) / "file.zip"
        with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for each in files:
                archive.write(each, each.relative_to(path.parent))
        return zipped.stat().st_size


# -- measures --------------------------------------------------------------------------------------------------------


def logits(
    path: str | os.PathLike, pictures: Split, *, threads: int | None = None, batch_size: int = 100
) -> Tensor:
    """Run an exported network in its own runtime on the CPU.

    Args:
        path: ending in .onnx, .tflite or .pte.
        pictures: what to classify.
        threads: of the runtime. Default: as many as PyTorch uses now.
        batch_size: pictures at a time, for .onnx; the other files take one.

    Returns:
        Logits: N x classes, float32.

    Raises:
        TypeError: ``path`` is not a path.
        ValueError: another suffix, or no pictures.
        FileNotFoundError: there is no such file.
        ImportError: the runtime is not installed; the message says how to.
    """
    pictures = some("pictures", checks.instance("pictures", pictures, Split), "test")
    return _answers(open_session(path, threads), pictures, checks.integer("batch_size", batch_size, 1))


def accuracy(path: str | os.PathLike, split: Split) -> Accuracy:
    """Measure top-1 accuracy of an exported network (.onnx, .tflite or .pte) on ``split``, in its own runtime."""
    split = some("split", checks.instance("split", split, Split), "test")
    return Accuracy(int((logits(path, split).argmax(1) == split.labels.cpu()).sum()), len(split))


def latency(
    path: str | os.PathLike, *, threads: int | None = None, batch_size: int = 1, repeats: int = 100
) -> dict:
    """Time an exported network in its own runtime on the CPU, after a warm-up, on a random 3 x 32 x 32 picture.

    Args:
        path: ending in .onnx, .tflite or .pte.
        threads: of the runtime. Default: as many as PyTorch uses now.
        batch_size: pictures at a time; more than 1 only for .onnx.
        repeats: timings; at least 3.

    Returns:
        latency_ms (median), latency_low_ms and latency_high_ms (quartiles), batch, threads, repeats.

    Raises:
        TypeError: ``path`` is not a path.
        ValueError: another suffix, a number out of range, or a batch that the file does not take.
        FileNotFoundError: there is no such file.
        ImportError: the runtime is not installed; the message says how to.
    """
    checks.integer("repeats", repeats, 3)
    if existing(path, *SESSIONS).suffix != ".onnx" and checks.integer("batch_size", batch_size, 1) != 1:
        raise ValueError(
            f"batch_size must be 1 for {path}, which takes one picture at a time; got {batch_size}"
        )
    threads = thread_count(threads)
    run = open_session(path, threads)
    images = _example(checks.integer("batch_size", batch_size, 1)).numpy()
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


def peak_memory(path: str | os.PathLike) -> dict[str, float]:
    """Measure the memory of a fresh process that loads an exported network and classifies one picture on one thread.

    Args:
        path: ending in .onnx, .tflite or .pte.

    Returns:
        peak_mb: the most MB (10^6 bytes) the process had resident, Python and the runtime included. baseline_mb: the same,
        just after it had imported the runtime (for .pte that is PyTorch too, which ExecuTorch's Python module needs).

    Raises:
        TypeError: ``path`` is not a path.
        ValueError: another suffix.
        FileNotFoundError: there is no such file.
        RuntimeError: the process failed; the message ends with what it printed.
    """
    open_session(path, threads=1)  # says at once what is wrong, in this process
    command = [sys.executable, "-m", "helpers.sessions", os.fspath(Path(path).resolve())]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{path} could not be loaded in a process of its own: {done.stderr.strip()[-500:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def onnx_logits(
    path: str | os.PathLike, pictures: Split, *, threads: int | None = None, batch_size: int = 100
) -> Tensor:
    """Run an ONNX network with onnxruntime on the CPU: see ``logits``."""
    pictures = some("pictures", checks.instance("pictures", pictures, Split), "test")
    return _answers(onnx_session(path, threads), pictures, checks.integer("batch_size", batch_size, 1))


def onnx_accuracy(path: str | os.PathLike, split: Split) -> Accuracy:
    """Measure top-1 accuracy of an ONNX network on ``split``."""
    return accuracy(path, split)


def onnx_latency(
    path: str | os.PathLike, *, threads: int | None = None, batch_size: int = 1, repeats: int = 100
) -> dict:
    """Time an ONNX network in onnxruntime on the CPU: see ``latency``."""
    return latency(path, threads=threads, batch_size=batch_size, repeats=repeats)


def onnx_profile(
    path: str | os.PathLike,
    *,
    threads: int | None = 1,
    batch_size: int = 1,
    repeats: int = 20,
    by: str = "operator",
) -> pd.DataFrame:
    """Ask onnxruntime's profiler where an ONNX network's time goes.

    Args:
        path: ending in .onnx.
        threads: of onnxruntime.
        batch_size: pictures at a time.
        repeats: runs, after one that is not counted.
        by: "operator", a row per type; or "node", a row per place in the graph.

    Returns:
        DataFrame, the slowest first. By operator: operator, calls (per run), microseconds (in all its calls; of each the median over
        the runs), share (of the operators' time, in [0, 1]). By node: node, operator, input (the shape of its first input),
        microseconds, share. Operators and names are onnxruntime's, after it has fused what it can.

    Raises:
        ValueError: ``path`` does not end in .onnx, ``by`` is unknown, or a number is out of range.
        FileNotFoundError: there is no such file.
        ImportError: onnxruntime is not installed; the message says how to.
    """
    path = existing(path, ".onnx")
    checks.integer("repeats", repeats, 1)
    checks.choice("by", by, ("operator", "node"))
    with needs("onnxruntime"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count(threads)
    options.log_severity_level = 3
    images = _example(checks.integer("batch_size", batch_size, 1)).numpy()
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        for _ in range(1 + repeats):
            session.run(None, {session.get_inputs()[0].name: images})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    nodes = [event for event in events if event["name"].endswith("_kernel_time") and event["ts"] >= runs[1]]
    places = pd.DataFrame([_as_row(node) for node in nodes]).groupby(
        ["name", "node", "operator", "input"], as_index=False, sort=False
    )
    table = places[
        "microseconds"
    ].median()  # of a mean, a single interruption by another program could be the largest part
    if by == "operator":
        table = table.groupby("operator", as_index=False).agg(
            calls=("microseconds", "size"), microseconds=("microseconds", "sum")
        )
    table["share"] = table["microseconds"] / table["microseconds"].sum()
    return table.drop(columns="name", errors="ignore").sort_values(
        "microseconds", ascending=False, ignore_index=True
    )


# -- inside ----------------------------------------------------------------------------------------------------------


def _as_row(node: dict) -> dict[str, str | int]:
    """Return what onnxruntime's profiler says of one call of a node, without the marks that it hangs on a fused node's name."""
    name = re.sub(r"(_nchwc|_token_\d+)+$", "", node["name"].removesuffix("_kernel_time"))
    shapes = [
        " x ".join(map(str, shape))
        for kind in node["args"].get("input_type_shape", ())[:1]
        for shape in kind.values()
    ]
    row = {"name": node["name"], "node": name, "operator": node["args"]["op_name"]}
    return row | {"input": "".join(shapes), "microseconds": node["dur"]}


class _Reader:
    """Calibration pictures, one batch at a time, as onnxruntime's quantizer asks for them."""

    def __init__(self, pictures: Split) -> None:
        self.batches = iter(batches(pictures, 50))

    def get_next(self) -> dict[str, np.ndarray] | None:
        images, _ = next(self.batches, (None, None))
        return None if images is None else {"images": images.contiguous().numpy()}


def _example(batch_size: int) -> Tensor:
    """Return random pictures, B x 3 x 32 x 32: the values do not matter to a trace or a clock."""
    return torch.from_numpy(
        np.random.default_rng(0).standard_normal((batch_size, 3, 32, 32), dtype=np.float32)
    )


def _answers(run: Session, pictures: Split, batch_size: int = 100) -> Tensor:
    """Return the logits that ``run`` gives for every picture: N x classes, float32."""
    return torch.cat(
        [torch.from_numpy(run(images.contiguous().numpy())) for images, _ in batches(pictures, batch_size)]
    )


def _calibrated(model: nn.Module, calibration: Split) -> tuple[nn.Module, object]:
    """Round ``model`` to int8 by litert-torch's PT2E flow; return it, and the setting its converter wants."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    observed = prepare_pt2e(torch.export.export(model, (_example(1),)).module(), quantizer)
    with torch.no_grad():
        for images, _ in batches(calibration, 1):
            observed(images.contiguous())
    return convert_pt2e(observed, fold_quantize=False), QuantConfig(pt2e_quantizer=quantizer)


def _has_vnni() -> bool:
    """Whether the processor multiplies int8 without saturating (x86 without VNNI does not; others do)."""
    info = Path("/proc/cpuinfo")
    if not info.exists():  # Windows, macOS: nobody to ask, so an x86 counts as one without
        return platform.machine().lower() not in ("x86_64", "amd64", "x86", "i386", "i686")
    flags = info.read_text("utf-8")
    return "avx" not in flags or "vnni" in flags
