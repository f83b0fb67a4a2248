"""TorchServe: a network packed with the code that reads pictures and names classes, and a server to try it on.

Source: https://docs.pytorch.org/serve (0.12): custom handlers, batch inference, token authorization.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from PIL import Image
from torch import Tensor, nn

from helpers import checks, handler
from helpers.data import Split
from helpers.evaluation import predict
from helpers.fidelity import ExportError, converting, default_data, frozen, some, target
from helpers.sessions import needs, quiet

BATCH = 16  # pictures that TorchServe gathers before it calls the handler
PROBABILITY = 1e-4  # largest difference of a probability that the served network may show


def to_torchserve(
    model: nn.Module,
    path: str | os.PathLike,
    pictures: Split | None = None,
    *,
    classes: Sequence[str] | None = None,
) -> Path:
    """Pack ``model`` for TorchServe (.mar): TorchScript, and a handler that turns PNG or JPEG files into classes.

    The archive holds ``model.pt`` (traced), ``handler.py`` (a copy of ``helpers/handler.py``, which says what it answers and refuses),
    ``settings.json`` (classes, and the mean and std of ``pictures``) and ``model-config.yaml`` (one worker, batches of 16). To check
    it, it is unpacked, and its own handler classifies the pictures, as PNG files.

    Args:
        model: maps normalised pictures, B x 3 x 32 x 32, to logits.
        path: ending in .mar; the part before is the model's name in URLs.
        pictures: what to compare on; their mean and std go into the file. Default: 200 test pictures of ``load_data("auto")``.
        classes: a name for each logit. Default: those of ``load_data("auto")``.

    Returns:
        The path.

    Raises:
        ValueError: ``path`` does not end in .mar or its name cannot stand in a URL, ``pictures`` is empty, or there is not a class
            for each logit.
        ImportError: torch-model-archiver is not installed; the message says how to.
        ExportError: a class differs from PyTorch's, or a probability by more than 0.0001.
    """
    path, pictures = target(path, ".mar", model, pictures)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", path.stem, re.ASCII):
        raise ValueError(
            f"path must name the file by letters, digits, '_', '-' and '.', since the name goes into URLs; got {str(path)!r}"
        )
    model = frozen(model)
    expected = predict(model, pictures).softmax(1)
    classes = default_data().classes if classes is None else checks.names("classes", classes)
    if len(classes) != expected.shape[1]:
        raise ValueError(
            f"classes must name each of the {expected.shape[1]} logits, got {len(classes)} names"
        )
    with needs("torch-model-archiver"):
        import model_archiver  # noqa: F401
    with checks.atomic_path(path) as part, tempfile.TemporaryDirectory() as folder:
        with converting(path, "torch-model-archiver"):
            shutil.copyfile(
                _pack(model, classes, pictures, path.stem, Path(folder)), part
            )  # the folder may be on another disk
        _check(part, expected, pictures, path)
    return path


@dataclass(frozen=True)
class Server:
    """A running TorchServe.

    Attributes:
        url: where pictures are posted: http://127.0.0.1:PORT/predictions/NAME.
        token: what a request must bring in its Authorization header, after "Bearer ".
    """

    url: str
    token: str

    def post(self, picture: bytes, token: str | None = None) -> tuple[int, dict]:
        """Send one picture; return the HTTP status and the answer.

        Args:
            picture: the bytes of a PNG or JPEG file.
            token: Default: the server's own; "" sends none.
        """
        checks.instance("picture", picture, bytes)
        token = self.token if token is None else checks.instance("token", token, str)
        headers = {"Content-Type": "application/octet-stream"} | (
            {"Authorization": f"Bearer {token}"} if token else {}
        )
        request = urllib.request.Request(self.url, data=picture, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")


@contextmanager
def serving(path: str | os.PathLike, *, seconds: float = 120) -> Iterator[Server]:
    """Run TorchServe with one archive on 127.0.0.1 for the block, on free ports, with token authorization on; then stop it.

    Args:
        path: a .mar file, written by ``to_torchserve``.
        seconds: how long to wait for it to start.

    Yields:
        Server: its URL and token.

    Raises:
        ValueError: ``path`` does not end in .mar, or ``seconds`` is out of range.
        FileNotFoundError: there is no such file.
        ImportError: TorchServe is not installed; the message says how to.
        RuntimeError: there is no Java, or TorchServe does not start; the message ends with its log.
    """
    path = checks.path("path", path, ".mar")
    checks.number("seconds", seconds, 0, open_low=True)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Way out: write it first, with to_torchserve.")
    if shutil.which("java") is None:
        raise RuntimeError(
            "TorchServe needs Java 11 or newer. Way out: apt install default-jre-headless (Debian, Ubuntu)"
        )
    with needs("torchserve"):
        import ts  # noqa: F401
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        url = _configure(path, folder)
        log = stack.enter_context((folder / "server.log").open("w", encoding="utf-8"))
        command = [
            sys.executable,
            "-m",
            "ts.model_server",
            "--start",
            "--ncs",
            "--foreground",
            "--ts-config",
            "config.properties",
        ]
        command += ["--model-store", "store", "--models", f"{path.stem}={path.name}"]
        (folder / "java").mkdir()
        environment = {
            key: value for key, value in os.environ.items() if key != "TS_CONFIG_FILE"
        }  # it would come before --ts-config
        environment |= {
            "TMPDIR": name,
            "LOG_LOCATION": name,
            "METRICS_LOCATION": name,
        }  # its process number lies in TMPDIR
        environment["TEMP"] = os.fspath(
            folder / "java"
        )  # where Java unpacks the archive: two servers must not share it
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield _started(process, folder, url, f"{url}/predictions/{path.stem}", seconds)
        finally:
            stop = [sys.executable, "-m", "ts.model_server", "--stop", "--foreground"]
            _end(
                process,
                lambda: subprocess.run(
                    stop, cwd=folder, env=environment, stdout=log, stderr=log, check=False, timeout=60
                ),
            )


def archive_labels(path: str | os.PathLike, pictures: Split) -> Tensor:
    """Unpack an archive, and classify pictures with its own handler, as PNG files.

    Args:
        path: written by ``to_torchserve``.
        pictures: what to classify.

    Returns:
        The label of each picture: N, int64.

    Raises:
        ValueError: ``path`` does not end in .mar.
        FileNotFoundError: there is no such file.
        ExportError: the handler refuses a picture; the message says why.
    """
    path, pictures = (
        checks.path("path", path, ".mar"),
        some("pictures", checks.instance("pictures", pictures, Split), "test"),
    )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Way out: write it first, with to_torchserve.")
    return torch.tensor([answer["label"] for answer in _asked(path, pictures, path)])


def png(image: Tensor) -> bytes:
    """Encode a picture, uint8, 3 x H x W, as a PNG file, which loses nothing."""
    if (
        checks.instance("image", image, Tensor).dtype != torch.uint8
        or image.ndim != 3
        or image.shape[0] != 3
        or not image.numel()
    ):
        raise ValueError(f"image must be uint8, 3 x H x W, got {image.dtype}, {tuple(image.shape)}")
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


# -- inside ----------------------------------------------------------------------------------------------------------


def _pack(model: nn.Module, classes: Sequence[str], pictures: Split, name: str, folder: Path) -> Path:
    """Write the archive ``name``.mar into ``folder``, with torch-model-archiver; return its path."""
    from model_archiver.model_archiver_config import ModelArchiverConfig
    from model_archiver.model_packaging import package_model
    from model_archiver.model_packaging_utils import ModelExportUtils

    size = pictures.images.shape[-1]
    with torch.no_grad():
        torch.jit.trace(model, torch.zeros(2, 3, size, size)).save(os.fspath(folder / "model.pt"))
    settings = {
        "classes": list(classes),
        "mean": list(pictures.mean),
        "std": list(pictures.std),
        "size": size,
    }
    (folder / "settings.json").write_text(json.dumps(settings), "utf-8")
    (folder / "model-config.yaml").write_text(
        f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {BATCH}\nmaxBatchDelay: 50\nresponseTimeout: 60\n", "utf-8"
    )
    config = ModelArchiverConfig(
        model_name=name,
        handler=handler.__file__,
        version="1.0",
        serialized_file=os.fspath(folder / "model.pt"),
        extra_files=os.fspath(folder / "settings.json"),
        config_file=os.fspath(folder / "model-config.yaml"),
        export_path=os.fspath(folder),
    )
    package_model(config, manifest=ModelExportUtils.generate_manifest_json(config))
    return folder / f"{name}.mar"


class _Context:
    """As much of TorchServe's context as the handler uses."""

    def __init__(self, folder: str) -> None:
        self.system_properties = {"model_dir": folder}
        self.statuses: dict[int, tuple[int, str]] = {}

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.statuses[idx] = (code, phrase)


@contextmanager
def unpacked_handler(path: str | os.PathLike) -> Iterator[tuple[object, _Context]]:
    """Unpack an archive, and yield its own handler, ready to be called, with a context such as TorchServe's."""
    path = checks.path("path", path)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        spec = importlib.util.spec_from_file_location("archived_handler", Path(folder) / "handler.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        worker, context = module.PictureHandler(), _Context(folder)
        with quiet():  # PyTorch says that TorchScript is deprecated; TorchServe has nothing newer
            worker.initialize(context)
        yield worker, context


def _asked(part: Path, pictures: Split, path: Path) -> list[dict]:
    """Return what the handler in the archive ``part`` answers to each picture, in batches.

    Raises:
        ExportError: it refuses one; the message calls the archive ``path``.
    """
    requests = [{"body": png(image)} for image in pictures.images.cpu()]
    with unpacked_handler(part) as (worker, context):
        answers = [
            answer
            for start in range(0, len(requests), BATCH)
            for answer in worker.handle(requests[start : start + BATCH], context)
        ]
    if context.statuses or any("error" in answer for answer in answers):
        raise ExportError(f"{path} refuses pictures: {next(iter(context.statuses.values()))}")
    return answers


def _check(part: Path, expected: Tensor, pictures: Split, path: Path) -> None:
    """Raise ExportError if the archive's handler answers otherwise than PyTorch; ``expected`` are its probabilities."""
    answers = _asked(part, pictures, path)
    probabilities, labels = expected.max(1)
    difference = max(
        abs(answer["probability"] - p) for answer, p in zip(answers, probabilities.tolist(), strict=True)
    )
    same = sum(
        answer["label"] == label for answer, label in zip(answers, labels.tolist(), strict=True)
    ) / len(answers)
    if not (difference <= PROBABILITY and same == 1):
        raise ExportError(
            f"{path} differs from PyTorch by {difference:.3g} in a probability (allowed: {PROBABILITY:g}) and names the same class for "
            f"{same:.1%} of {len(answers)} pictures (asked: 100%); it was not written"
        )


def _configure(path: Path, folder: Path) -> str:
    """Lay out TorchServe's folder: the archive in store/, and config.properties with five free ports. Return the server's URL."""
    (folder / "store").mkdir()
    shutil.copy(path, folder / "store" / path.name)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(5)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        inference, management, metrics, grpc, grpc_management = (each.getsockname()[1] for each in sockets)
    lines = [
        f"inference_address=http://127.0.0.1:{inference}",
        f"management_address=http://127.0.0.1:{management}",
        f"metrics_address=http://127.0.0.1:{metrics}",
        "grpc_inference_address=127.0.0.1",
        f"grpc_inference_port={grpc}",
        "grpc_management_address=127.0.0.1",
        f"grpc_management_port={grpc_management}",
        "disable_token_authorization=false",
        "disable_system_metrics=true",
    ]
    (folder / "config.properties").write_text("\n".join(lines) + "\n", "utf-8")
    return f"http://127.0.0.1:{inference}"


def _end(process: subprocess.Popen, stop: Callable[[], object]) -> None:
    """Stop TorchServe by ``stop``; whatever of its processes (Python, Java, the workers) then still lives is killed."""
    family = _descendants(process)
    try:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            stop()
            process.wait(timeout=20)
    finally:
        family += [
            each for each in _descendants(process) if each not in family
        ]  # a worker that was started since
        for each in reversed(family):
            with contextlib.suppress(psutil.Error):
                each.kill()
        process.kill()
        process.wait(timeout=60)
        psutil.wait_procs(family, timeout=60)  # only then are its ports free


def _descendants(process: subprocess.Popen) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def _started(process: subprocess.Popen, folder: Path, url: str, predictions: str, seconds: float) -> Server:
    """Wait until TorchServe says it is healthy, read its token, and return the server.

    Raises:
        RuntimeError: it ended, or took longer than ``seconds``.
    """
    keys = folder / "key_file.json"
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, KeyError):
            token = json.loads(keys.read_text("utf-8"))["inference"]["key"]
            request = urllib.request.Request(f"{url}/ping", headers={"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, timeout=5) as answer:
                if json.loads(answer.read()).get("status") == "Healthy":
                    return Server(predictions, token)
        time.sleep(0.25)
    raise RuntimeError(
        f"TorchServe did not start within {seconds:g} s: {(folder / 'server.log').read_text('utf-8')[-1500:]}"
    )
