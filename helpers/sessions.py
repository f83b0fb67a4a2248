"""Exported files opened in their own runtimes, without PyTorch's help: the same callable for every format.

Run as a program (``python -m helpers.sessions FILE``) it prints, as JSON, the memory a process takes that does nothing but load the
file and classify one picture. So nothing here imports torch, unless the runtime does.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

Session = Callable[[np.ndarray], np.ndarray]
_NOWHERE = Path(os.devnull).open("w")  # noqa: SIM115 -- never closed: a library imported in silence may keep it for its log

PACKAGES = {
    "coremltools": "coremltools>=9,<10",
    "executorch": "executorch>=1.5,<2",
    "litert-torch": "litert-torch>=0.10,<0.11",
    "ai-edge-litert": "ai-edge-litert>=2.3,<3",
    "onnxruntime": "onnx>=1.17,<2 onnxscript>=0.5,<1 onnxruntime>=1.20,<2",
    "torch-model-archiver": "torch-model-archiver>=0.12,<1",
    "torchserve": "torchserve>=0.12,<1 torch-model-archiver>=0.12,<1",
}  # what pip is to install, in the versions that were tested together


def onnx_session(path: str | os.PathLike, threads: int | None = None) -> Session:
    """Open an ONNX network in onnxruntime, on the CPU.

    Args:
        path: the file.
        threads: of onnxruntime. Default: as many as PyTorch uses now.

    Returns:
        callable(images) -> logits, both float32 arrays: B x 3 x 32 x 32 to B x classes.

    Raises:
        TypeError: ``path`` is not a path.
        FileNotFoundError: there is no such file.
        ImportError: onnxruntime is not installed; the message says how to.
    """
    existing(path)
    with needs("onnxruntime"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count(threads)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def litert_session(path: str | os.PathLike, threads: int | None = None) -> Session:
    """Open a .tflite file in LiteRT, on the CPU (XNNPACK); pictures are run one at a time, as the file asks.

    A file with int8 inputs and outputs is given rounded pictures, and its answers are scaled back, by the scales that stand in it.

    Args:
        path: the file.
        threads: of LiteRT. Default: as many as PyTorch uses now.

    Returns:
        callable(images) -> logits, both float32 arrays: B x 3 x 32 x 32 to B x classes.

    Raises:
        TypeError: ``path`` is not a path.
        FileNotFoundError: there is no such file.
        ImportError: ai-edge-litert is not installed; the message says how to.
    """
    existing(path)
    with needs("ai-edge-litert"):
        from ai_edge_litert.interpreter import Interpreter
    with quiet():
        interpreter = Interpreter(os.fspath(path), num_threads=thread_count(threads))
        interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def classify(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(taken["index"], _rounded(image, taken))
        interpreter.invoke()
        return _scaled(interpreter.get_tensor(given["index"]), given)

    return lambda images: np.concatenate([classify(images[i : i + 1]) for i in range(len(images))])


def executorch_session(path: str | os.PathLike, threads: int | None = None) -> Session:
    """Open a .pte file in ExecuTorch's runtime, on the CPU (XNNPACK); pictures are run one at a time, as the file asks.

    Args:
        path: the file.
        threads: of ExecuTorch, for every file that this process has open. Default: as many as PyTorch uses now.

    Returns:
        callable(images) -> logits, both float32 arrays: B x 3 x 32 x 32 to B x classes.

    Raises:
        TypeError: ``path`` is not a path.
        FileNotFoundError: there is no such file.
        ImportError: executorch is not installed; the message says how to.
    """
    existing(path)
    with quiet(), needs("executorch"):
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    import torch  # executorch's own tensors are PyTorch's

    threads = thread_count(threads)
    with quiet():
        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(
                threads
            )  # unsafe while another thread runs a network; we have none
        program = Runtime.get().load_program(Path(path))
        method = program.load_method("forward")

    def classify(image: np.ndarray) -> np.ndarray:
        return method.execute([torch.from_numpy(image)])[0].numpy().copy()

    return lambda images: np.concatenate(
        [classify(np.ascontiguousarray(images[i : i + 1])) for i in range(len(images))]
    )


SESSIONS: dict[str, Callable[[str | os.PathLike, int | None], Session]] = {
    ".onnx": onnx_session,
    ".tflite": litert_session,
    ".pte": executorch_session,
}


def open_session(path: str | os.PathLike, threads: int | None = None) -> Session:
    """Open an exported network in the runtime that its suffix names: .onnx, .tflite or .pte.

    Args:
        path: the file.
        threads: of the runtime. Default: as many as PyTorch uses now.

    Returns:
        callable(images) -> logits, both float32 arrays: B x 3 x 32 x 32 to B x classes.

    Raises:
        TypeError: ``path`` is not a path.
        ValueError: another suffix.
        FileNotFoundError: there is no such file.
        ImportError: the runtime is not installed; the message says how to.
    """
    return SESSIONS[existing(path, *SESSIONS).suffix](path, threads)


def litert_scales(path: str | os.PathLike) -> dict[str, tuple[float, int]]:
    """Read by which scale and zero point a .tflite file rounds its pictures ("images") and its answers ("logits").

    integer = round(value / scale) + zero point, and value = (integer - zero point) x scale. A file in single precision has none: 0, 0.

    Args:
        path: the file.

    Raises:
        ValueError: another suffix.
        FileNotFoundError: there is no such file.
        ImportError: ai-edge-litert is not installed; the message says how to.
    """
    existing(path, ".tflite")
    with needs("ai-edge-litert"):
        from ai_edge_litert.interpreter import Interpreter
    with quiet():
        interpreter = Interpreter(os.fspath(path))
    tensors = {"images": interpreter.get_input_details()[0], "logits": interpreter.get_output_details()[0]}
    return {
        name: (float(tensor["quantization"][0]), int(tensor["quantization"][1]))
        for name, tensor in tensors.items()
    }


def existing(path: str | os.PathLike, *suffixes: str, name: str = "path") -> Path:
    """Return ``path`` if it is a file that ends in one of ``suffixes``, where any are given; ``name`` is what the caller calls it.

    Raises:
        TypeError: it is not a path.
        ValueError: it ends otherwise.
        FileNotFoundError: there is no such file.
    """
    if not isinstance(path, (str, os.PathLike)):  # without helpers.checks: see ``thread_count``
        raise TypeError(f"{name} must be a path, got {'' if path is None else 'a '}{type(path).__name__}")
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"{name} must end in {', '.join(suffixes)}, got {str(path)!r}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Way out: export the network first, with helpers.export."
        )
    return path


def thread_count(threads: int | None) -> int:
    """Return ``threads`` if it is a whole number of at least 1, and PyTorch's number of threads if it is None."""
    if type(threads) is int and 1 <= threads <= 1024:
        return threads  # without helpers.checks, which brings torch along: the probe measures a process that has none
    import torch

    from helpers import checks

    return torch.get_num_threads() if threads is None else checks.integer("threads", threads, 1, 1024)


@contextmanager
def needs(package: str) -> Iterator[None]:
    """Say which ``pip install`` mends an import that fails in the block.

    Raises:
        ImportError: the block could not import something.
    """
    try:
        yield
    except ImportError as error:
        wanted = " ".join(f"'{each}'" for each in PACKAGES[package].split())
        raise ImportError(
            f"this needs {package}, which cannot be imported ({error}). Way out: pip install {wanted}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters and runtimes print, from Python or from C++; errors still come through as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    shown = sys.stdout, sys.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            os.dup2(_NOWHERE.fileno(), 1)
            os.dup2(_NOWHERE.fileno(), 2)
            sys.stdout = sys.stderr = _NOWHERE
            yield
        finally:
            sys.stdout, sys.stderr = shown
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            logging.disable(before)


def _rounded(image: np.ndarray, tensor: dict) -> np.ndarray:
    """Round a picture to the integers that ``tensor`` takes: value / scale + zero point (Jacob 2018, equation 1)."""
    if tensor["dtype"] == np.float32:
        return image
    scale, zero = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.round(image / scale) + zero, limits.min, limits.max).astype(tensor["dtype"])


def _scaled(values: np.ndarray, tensor: dict) -> np.ndarray:
    """Turn what ``tensor`` gives into float32: (integer - zero point) x scale."""
    if tensor["dtype"] == np.float32:
        return values.copy()
    scale, zero = tensor["quantization"]
    return (values.astype(np.float32) - zero) * np.float32(scale)


def _resident_peak() -> float:
    """Return the most memory that this process has had resident so far, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory too, on Linux
        kilobytes = next(
            line.split()[1] for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM")
        )
        return int(kilobytes) * 1024 / 1e6
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def _probe(path: str) -> dict[str, float]:
    """Import the runtime, then load the file and run one picture on one thread; the peak after each."""
    with quiet():
        if path.endswith(".onnx"):
            import onnxruntime  # noqa: F401
        elif path.endswith(".tflite"):
            import ai_edge_litert.interpreter  # noqa: F401
        else:
            import executorch.runtime  # noqa: F401
            import torch  # noqa: F401
    baseline = _resident_peak()
    run = open_session(path, threads=1)
    run(np.zeros((1, 3, 32, 32), dtype=np.float32))
    return {"peak_mb": _resident_peak(), "baseline_mb": baseline}


if __name__ == "__main__":
    print(json.dumps(_probe(sys.argv[1])))
