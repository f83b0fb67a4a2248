"""Exported files opened in their own runtimes, without PyTorch's help: the same callable for every format.

Run as a program (``python -m helpers.deploy.runtimes FILE``) it prints, as JSON, the memory a process takes
that does nothing but load the file and classify one picture. So nothing here imports torch, or
``helpers.types``, before it must.
"""

import importlib
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

_NOWHERE = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 -- never closed: a library may keep it for its log

PACKAGES = {
    "coremltools": "coremltools>=9,<10 numpy>=2.0,<2.4",
    "executorch": "executorch>=1.5,<2",
    "litert-torch": "litert-torch>=0.10,<0.11",
    "ai-edge-litert": "ai-edge-litert>=2.3,<3",
    "onnxruntime": "onnx>=1.17,<2 onnxscript>=0.5,<1 onnxruntime>=1.20,<2",
    "torch-model-archiver": "torch-model-archiver>=0.12,<0.13",
    "torchserve": "torchserve>=0.12,<0.13 torch-model-archiver>=0.12,<0.13",
}  # what pip is to install, as in requirements.txt


@dataclass(frozen=True)
class Session:
    """An open network: callable(pictures) -> logits, both float32 arrays: B x 3 x H x W to B x classes.

    Attributes:
        run: the runtime's own call.
        shape: of one picture, 3 x H x W, as the file says; a name where an .onnx file leaves one open.
    """

    run: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int | str, ...]
    batch: int | str = "any"

    def example(self, batch_size: int) -> np.ndarray:
        """Return random pictures to time the file with; ValueError if it takes no such batch."""
        if isinstance(self.batch, int) and self.batch != batch_size:
            raise ValueError(f"batch_size must be {self.batch}, as the file says, got {batch_size}")
        if not all(isinstance(side, int) for side in self.shape):
            shape = " x ".join(map(str, self.shape))
            raise ValueError(f"path must be a file that says how large its pictures are, got {shape}")
        return np.random.default_rng(0).standard_normal((batch_size, *self.shape), dtype=np.float32)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Classify pictures; ValueError if they are not of the file's shape."""
        pictures = np.asarray(pictures, dtype=np.float32)
        if any(isinstance(a, int) and a != b for a, b in zip(self.shape, pictures.shape[1:], strict=True)):
            shapes = (" x ".join(map(str, shape)) for shape in (self.shape, pictures.shape[1:]))
            raise ValueError("pictures must be {}, as the file says, got {}".format(*shapes))
        return self.run(pictures)


def open_session(path: str | os.PathLike, threads: int | None = None, *, suffix: str = "") -> Session:
    """Open an exported network in the runtime that its suffix names (.onnx, .tflite or .pte), on the CPU.

    Args:
        path: the file.
        threads: of the runtime; of ExecuTorch's for every file that is open. Default: as many as PyTorch uses
            now.
        suffix: what to take the file for, where its name ends otherwise.

    Returns:
        Session: callable(pictures) -> logits, both float32 arrays: B x 3 x H x W to B x classes.

    Raises:
        ImportError: the runtime is not installed; the message says how to.
        ValueError: the runtime cannot read the file.
    """
    path, threads = existing(path, *(() if suffix else RUNTIMES)), thread_count(threads)
    package, _, opened = RUNTIMES[suffix or path.suffix]
    with quiet(), needs(package):
        try:
            return opened(path, threads)
        except ImportError:
            raise
        except Exception as error:  # each runtime has its own kinds
            said = str(error).partition("\n")[0][:200]
            raise ValueError(
                f"{path} cannot be read by {package} ({said}). Way out: write it anew, with helpers.export."
            ) from error


onnx_session = open_session


def onnx_inference(path: Path | bytes, threads: int, **settings: object) -> object:
    """Open an ONNX network, a file or its bytes, in onnxruntime; ``settings`` go into its SessionOptions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for name, value in {"intra_op_num_threads": threads, "log_severity_level": 3, **settings}.items():
        setattr(options, name, value)
    options.add_session_config_entry(
        "session.force_spinning_stop", "1"
    )  # or idle ones slow the one that is timed
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def _onnx(path: Path, threads: int) -> Session:
    session = onnx_inference(path, threads)
    taken = session.get_inputs()[0]

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {taken.name: images})[0]

    batch, *shape = taken.shape
    return Session(_one_at_a_time(run) if batch == 1 else run, tuple(shape), batch)


def _litert(path: Path, threads: int) -> Session:
    interpreter, taken, given = _interpreter(path, threads)

    def classify(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(taken["index"], _rounded(image, taken))
        interpreter.invoke()
        return _scaled(interpreter.get_tensor(given["index"]), given)

    return Session(_one_at_a_time(classify), tuple(taken["shape"][1:].tolist()))


def _executorch(path: Path, threads: int) -> Session:
    import torch  # executorch's own tensors are PyTorch's
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(
            threads
        )  # unsafe while another thread runs a network; none does
    program = Runtime.get().load_program(path)
    method = program.load_method("forward")

    def classify(image: np.ndarray) -> np.ndarray:
        return method.execute([torch.from_numpy(np.ascontiguousarray(image))])[0].numpy().copy()

    return Session(_one_at_a_time(classify), tuple(method.metadata.input_tensor_meta(0).sizes()[1:]))


RUNTIMES: dict[str, tuple[str, tuple[str, ...], Callable[[Path, int], Session]]] = {
    ".onnx": ("onnxruntime", ("onnxruntime",), _onnx),
    ".tflite": ("ai-edge-litert", ("ai_edge_litert.interpreter",), _litert),
    ".pte": ("executorch", ("torch", "executorch.runtime"), _executorch),
}  # of each format: what pip installs, what Python imports, and what opens a file


def litert_scales(path: str | os.PathLike) -> dict[str, tuple[float, int]]:
    """Read by which scale and zero point a .tflite file rounds its "images" and its "logits".

    integer = round(value / scale) + zero point, and value = (integer - zero point) x scale (Jacob 2018,
    equation 1). A file in single precision has none: 0, 0.
    """
    with quiet(), needs("ai-edge-litert"):
        _, *tensors = _interpreter(existing(path, ".tflite"), 1)
    scales = zip(("images", "logits"), (tensor["quantization"] for tensor in tensors), strict=True)
    return {name: (float(scale), int(zero)) for name, (scale, zero) in scales}


def existing(path: str | os.PathLike, *suffixes: str, name: str = "path") -> Path:
    """Return ``path`` if it is there and ends in one of ``suffixes``, if any; ``name`` is the argument's."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got a {type(path).__name__}")
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"{name} must end in {', '.join(suffixes)}, got {str(path)!r}")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Way out: write it first, with helpers.export.")
    return path


def thread_count(threads: int | None) -> int:
    """Return ``threads`` if it is a whole number from 1 to 1024; PyTorch's number if it is None."""
    if type(threads) is int and 1 <= threads <= 1024:
        return threads
    import torch

    from helpers.types import Threads, validated

    return torch.get_num_threads() if threads is None else validated("threads", threads, Threads)


@contextmanager
def needs(package: str) -> Iterator[None]:
    """Say which ``pip install`` mends an import that fails in the block."""
    try:
        yield
    except ImportError as error:
        wanted = " ".join(f"'{each}'" for each in PACKAGES[package].split())
        text = f"this needs {package}, which cannot be imported ({error}). Way out: pip install {wanted}"
        raise ImportError(text) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters and runtimes print, from Python or from C++; errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    try:
        with warnings.catch_warnings(), redirect_stdout(_NOWHERE), redirect_stderr(_NOWHERE):
            warnings.simplefilter("ignore")
            for number in kept:
                os.dup2(_NOWHERE.fileno(), number)
            yield
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
        logging.disable(before)


def _one_at_a_time(classify: Callable) -> Callable:
    return lambda images: np.concatenate([classify(images[i : i + 1]) for i in range(len(images))])


# A .tflite file, and what it says of the pictures it takes and the logits it gives.
def _interpreter(path: Path, threads: int) -> tuple[Any, dict, dict]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(os.fspath(path), num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter, interpreter.get_input_details()[0], interpreter.get_output_details()[0]


def _rounded(image: np.ndarray, tensor: dict) -> np.ndarray:
    kind, (scale, zero) = tensor["dtype"], tensor["quantization"]
    if kind == np.float32:
        return image
    return np.clip(np.round(image / scale) + zero, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)


def _scaled(values: np.ndarray, tensor: dict) -> np.ndarray:
    scale, zero = tensor["quantization"]  # 0 and 0 of a file in single precision
    return (values.astype(np.float32) - zero) * np.float32(scale or 1)


# The most memory that this process has had resident so far, in MB (10^6 bytes).
def _resident_peak() -> float:
    if sys.platform == "linux":  # getrusage would count the parent's memory too
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text("utf-8"))[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


# Imports the runtime, then loads the file and runs one picture on one thread; the peak after each.
def _probe(path: str) -> dict[str, float]:
    with quiet():
        for module in RUNTIMES[Path(path).suffix][1]:
            importlib.import_module(module)
    baseline = _resident_peak()
    session = open_session(path, threads=1)
    session(session.example(1))
    return {"peak_mb": _resident_peak(), "baseline_mb": baseline}


if __name__ == "__main__":
    print(json.dumps(_probe(sys.argv[1])))
