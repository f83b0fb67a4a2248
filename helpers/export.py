"""Out of PyTorch: each function writes a file, runs it in its own runtime, and compares on real pictures.

If the answers differ too much, ExportError says by how much and nothing is left behind. ``logits``,
``accuracy``, ``latency`` and ``peak_memory`` then measure any .onnx, .tflite or .pte file in the same way.
``helpers.deploy`` has what stands behind; ``helpers.deploy.writing`` says what a new format takes.
"""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from helpers.data import Split, batches
from helpers.deploy.coreml import coreml_logits, to_coreml
from helpers.deploy.measures import (
    accuracy,
    latencies,
    latency,
    logits,
    onnx_profile,
    peak_memory,
    zipped_bytes,
)
from helpers.deploy.phone import parse_benchmark_model, parse_executor_runner, phone_commands, run_on_phone
from helpers.deploy.runtimes import existing, litert_scales, onnx_session, open_session
from helpers.deploy.torchserve import archive_labels, serving, to_torchserve
from helpers.deploy.writing import (
    AGREEMENT,
    TOLERANCE,
    ExportError,
    Pictures,
    example,
    shape_of,
    some,
    some_pair,
    writing,
)
from helpers.processor import multiplies_int8
from helpers.types import AnyPath, Share, checked, path

__all__ = [
    "AGREEMENT", "TOLERANCE", "ExportError", "accuracy", "archive_labels", "coreml_logits", "latencies",
    "latency", "litert_scales", "logits", "onnx_accuracy", "onnx_latency", "onnx_logits", "onnx_profile",
    "onnx_session", "open_session", "parse_benchmark_model", "parse_executor_runner", "peak_memory",
    "phone_commands", "quantize_onnx", "run_on_phone", "serving", "to_coreml", "to_executorch",
    "to_litert", "to_onnx", "to_torchserve", "zipped_bytes",
]  # fmt: skip

OnnxPath, LitertPath, ExecutorchPath = path(".onnx"), path(".tflite"), path(".pte")
LARGEST_ONNX = 2**31 - 2**24  # bytes of weights: protobuf's limit for a file, less what describes the graph
onnx_logits, onnx_accuracy, onnx_latency = logits, accuracy, latency


@checked
def to_onnx(model: nn.Module, path: OnnxPath, pictures: Pictures | None = None) -> Path:
    """Write ``model`` as ONNX, with any batch size, in single precision, and check it with onnxruntime.

    Args:
        model: maps normalised pictures, B x 3 x H x W, to logits.
        path: ending in .onnx.
        pictures: what to compare on; a few dozen do, and the file takes their H x W. Default: 200 test
            pictures of ``load_data("auto")``.

    Returns:
        The path.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed; the message says how to. So with each
            format.
        ExportError: a logit differs from PyTorch's by more than 0.01, or a class differs; or the weights are
            larger than one file can hold, 2 GB.
    """
    pictures = some(pictures)
    with writing(path, model, pictures, "onnxruntime") as (frozen, part):
        size = sum(tensor.nbytes for tensor in (*frozen.parameters(), *frozen.buffers()))
        if size > LARGEST_ONNX:
            held = f"its weights are {size / 1e9:.3g} GB, and an ONNX file holds {LARGEST_ONNX / 1e9:.3g} GB"
            raise ExportError(f"{path} was not written: {held}. Way out: to_executorch or to_coreml.")
        program = torch.onnx.export(
            frozen,
            (example(2, shape_of(pictures)),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65_536)},),
            verbose=False,
        )
        import onnx_ir

        onnx_ir.save(program.model, part)  # program.save puts the weights of large networks beside it
    return path


@checked
def quantize_onnx(
    source: nn.Module | AnyPath,
    path: OnnxPath,
    calibration: Pictures | None = None,
    pictures: Pictures | None = None,
    *,
    agreement: Share | None = None,
) -> Path:
    """Quantize an ONNX network to int8: weights per channel, activations by their range (static; Jacob 2018).

    Args:
        source: a file written by ``to_onnx``, or a model, which is written so first.
        path: ending in .onnx.
        calibration: a few hundred training pictures, like those it will see. Default: ``pictures`` if given,
            else 200 training pictures of ``load_data("auto")``.
        pictures: what to compare with ``source`` on. Default: ``calibration`` if given, else 200 test
            pictures of ``load_data("auto")``.
        agreement: share of ``pictures`` that must keep their class. Default: 0.99.

    Returns:
        The path.

    Raises:
        ExportError: fewer of the pictures than ``agreement`` get the class that ``source`` gives them.
        ValueError: ``calibration`` and ``pictures`` are not of one size.
    """
    pictures, calibration = some_pair(pictures, calibration)
    share = AGREEMENT if agreement is None else agreement
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(source, nn.Module):
            source = to_onnx(source, Path(folder) / path.name, pictures)
        existing(source, ".onnx", name="source")
        feeds = ({"images": images.contiguous().numpy()} for images, _ in batches(calibration, 50))
        frame = writing(path, source, pictures, "onnxruntime", expect=logits, share=share, calibrated=True)
        with frame as (original, part):
            from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
            from onnxruntime.quantization.shape_inference import quant_pre_process

            prepared = Path(folder) / f"prepared_{path.name}"
            quant_pre_process(original, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                part,
                SimpleNamespace(get_next=lambda: next(feeds, None)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=not multiplies_int8(),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
    return path


@checked
def to_litert(
    model: nn.Module,
    path: LitertPath,
    pictures: Pictures | None = None,
    *,
    int8: bool = False,
    calibration: Pictures | None = None,
    agreement: Share | None = None,
) -> Path:
    """Write ``model`` for LiteRT (formerly TensorFlow Lite), one picture at a time; check it likewise.

    With ``int8`` everything in the file is an integer, pictures and logits included: weights per channel,
    activations by their range on ``calibration`` (static quantization by litert-torch's PT2E flow; Jacob
    2018). The file says by which scale its inputs and outputs are rounded, and ``logits`` heeds that.

    Args:
        model: maps normalised pictures, B x 3 x H x W, to logits.
        path: ending in .tflite.
        pictures: what to compare on; the file takes their H x W. Default: ``calibration`` if given, else 200
            test pictures of ``load_data("auto")``.
        int8: quantize.
        calibration: a few hundred training pictures, for ``int8``, like those it will see. Default:
            ``pictures`` if given, else 200 training pictures of ``load_data("auto")``.
        agreement: share of ``pictures`` that must keep their class in ``int8``. Default: 0.99; the smaller a
            network, the more of them are close calls.

    Returns:
        The path.

    Raises:
        ExportError: a logit differs from PyTorch's by more than 0.01, or a class differs; with ``int8``,
            fewer of the pictures than ``agreement`` get PyTorch's class.
        ValueError: ``calibration`` and ``pictures`` are not of one size, or something for ``int8`` without.
    """
    for name, value in {"calibration": calibration, "agreement": agreement}.items():
        if value is not None and not int8:
            raise ValueError(f"{name} is for int8=True; got it with int8=False")
    pictures, calibration = some_pair(pictures, calibration)
    share = (AGREEMENT if agreement is None else agreement) if int8 else None
    with writing(path, model, pictures, "litert-torch", share=share, calibrated=int8) as (frozen, part):
        import litert_torch
        import litert_torch.progress

        litert_torch.progress.console.quiet = True  # in a notebook it prints past any redirection
        settings = {}
        if int8:
            frozen, settings["quant_config"] = _calibrated(frozen, calibration)
        litert_torch.convert(frozen, (example(1, shape_of(pictures)),), **settings).export(os.fspath(part))
    return path


@checked
def to_executorch(model: nn.Module, path: ExecutorchPath, pictures: Pictures | None = None) -> Path:
    """Write ``model`` for ExecuTorch with XNNPACK's CPU kernels, one picture at a time; check it likewise.

    Args:
        model: maps normalised pictures, B x 3 x H x W, to logits.
        path: ending in .pte.
        pictures: what to compare on; the file takes their H x W. Default: 200 test pictures of
            ``load_data("auto")``.

    Returns:
        The path.

    Raises:
        ExportError: a logit differs from PyTorch's by more than 0.01, or a class differs.
    """
    pictures = some(pictures)
    with writing(path, model, pictures, "executorch") as (frozen, part):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(frozen, (example(1, shape_of(pictures)),))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        part.write_bytes(lowered.to_executorch().buffer)
    return path


# -- inside --------------------------------------------------------------------------------------------------


# The network rounded to int8 by litert-torch's PT2E flow, and the setting its converter wants.
def _calibrated(model: nn.Module, calibration: Split) -> tuple[nn.Module, object]:
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    observed = prepare_pt2e(
        torch.export.export(model, (example(1, shape_of(calibration)),)).module(), quantizer
    )
    with torch.no_grad():
        for images, _ in batches(calibration, 1):
            observed(images.contiguous())
    return convert_pt2e(observed, fold_quantize=False), QuantConfig(pt2e_quantizer=quantizer)
