"""TorchServe: a network packed with the code that reads pictures and names classes, and a server to try it.

Source: https://docs.pytorch.org/serve (0.12): custom handlers, batch inference, token authorization.
"""

import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchvision.io import encode_png

from helpers.data import Split
from helpers.deploy import handler
from helpers.deploy.runtimes import existing, needs, quiet
from helpers.deploy.writing import ExportError, Pictures, default_data, example, shape_of, some, writing
from helpers.evaluation import predict
from helpers.types import AnyPath, Names, Positive, checked, path

BATCH = 16  # pictures that TorchServe gathers before it calls the handler; it waits for more up to 50 ms
WORKERS = f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {BATCH}\nmaxBatchDelay: 50\nresponseTimeout: 60\n"
PROBABILITY = 1e-4  # largest difference of a probability that the served network may show
Archive = path(".mar")


@checked
def to_torchserve(
    model: nn.Module, path: Archive, pictures: Pictures | None = None, *, classes: Names | None = None
) -> Path:
    """Pack ``model`` for TorchServe (.mar): TorchScript, and a handler that turns PNG or JPEG into classes.

    The archive holds ``model.pt`` (traced), ``handler.py`` (a copy of ``helpers/deploy/handler.py``, which
    says what it answers and refuses), ``settings.json`` (classes, and the mean, std and size of
    ``pictures``) and ``model-config.yaml`` (one worker, batches of 16). To check it, it is unpacked, and its
    own handler classifies the pictures, as PNG files.

    Args:
        model: maps normalised pictures, B x 3 x H x W, to logits.
        path: ending in .mar; the part before is the model's name in URLs.
        pictures: what to compare on; their mean, std and size go into the file. Default: 200 test pictures of
            ``load_data("auto")``.
        classes: a name for each logit: ``classes=data.classes``. Default: without ``pictures`` those of
            ``load_data("auto")``; with them "0", "1", ..., for pictures do not say what they show.

    Returns:
        The path.

    Raises:
        ExportError: a class differs from PyTorch's, or a probability by more than 0.0001.
        ValueError: there are more or fewer ``classes`` than logits.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", path.stem, re.ASCII):
        allowed = "letters, digits, '_', '-' and '.', since the name goes into URLs"
        raise ValueError(f"path must name the file by {allowed}; got {str(path)!r}")
    if classes is None and pictures is None:
        classes = default_data().classes
    pictures = some(pictures)

    def probabilities(model: nn.Module, pictures: Split) -> Tensor:
        nonlocal classes
        expected = _probabilities(model, pictures)
        count = expected.shape[1]
        if classes is None:
            classes = tuple(map(str, range(count)))
        if len(classes) != count:
            wrong = f"classes must name each of the {count} logits, got {len(classes)} names"
            raise ValueError(f"{wrong}. Way out: classes=data.classes, of the data it was trained on.")
        return expected

    frame = writing(
        path, model, pictures, "torch-model-archiver", run=_told, expect=probabilities, largest=PROBABILITY
    )
    with frame as (frozen, part), tempfile.TemporaryDirectory() as folder:
        packed = _pack(frozen, classes, pictures, path.stem, Path(folder))
        shutil.copyfile(packed, part)  # the folder may be on another disk
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

    @checked
    def post(self, picture: bytes, token: str | None = None) -> tuple[int, dict]:
        """Send one picture; return the HTTP status and the answer.

        Args:
            picture: the bytes of a PNG or JPEG file.
            token: Default: the server's own; "" sends none.
        """
        return _sent(self.url, self.token if token is None else token, picture)


@contextmanager
@checked
def serving(path: Archive, *, seconds: Positive = 120) -> Iterator[Server]:
    """Run TorchServe with one archive on 127.0.0.1, on free ports, with token authorization; then end it.

    Args:
        path: a .mar file, written by ``to_torchserve``.
        seconds: how long to wait for it to start.

    Yields:
        Server: its URL and token.

    Raises:
        ImportError: TorchServe is not installed; the message says how to.
        RuntimeError: there is no Java, or TorchServe does not start; the message ends with its log.
    """
    existing(path)
    if shutil.which("java") is None:
        raise RuntimeError(
            "TorchServe needs Java 11 or newer. Way out: apt install default-jre-headless (Debian, Ubuntu)"
        )
    with needs("torchserve"):
        import ts  # noqa: F401
    with tempfile.TemporaryDirectory() as name, (Path(name) / "server.log").open("w") as log:
        folder = Path(name)
        url = _configure(path, folder)
        environment = os.environ | {
            "TMPDIR": name,
            "LOG_LOCATION": name,
            "METRICS_LOCATION": name,
            "TEMP": os.fspath(
                folder / "java"
            ),  # where Java unpacks the archive: two servers must not share it
        }
        environment.pop("TS_CONFIG_FILE", None)  # it would come before --ts-config
        command = [
            *(sys.executable, "-m", "ts.model_server", "--start", "--ncs", "--foreground"),
            *("--ts-config", "config.properties", "--model-store", "store"),
            *("--models", f"{path.stem}={path.name}"),
        ]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield Server(f"{url}/predictions/{path.stem}", _started(process, folder, url, seconds))
        finally:
            _end(process)


@checked
def archive_labels(path: Archive, pictures: Pictures) -> Tensor:
    """Unpack an archive, and classify pictures with its own handler, as PNG files.

    Args:
        path: written by ``to_torchserve``.
        pictures: what to classify.

    Returns:
        The label of each picture: N, int64.

    Raises:
        ExportError: the handler refuses a picture; the message says why.
    """
    return _told(existing(path), pictures).argmax(1)


@checked
def png(image: Tensor) -> bytes:
    """Encode a picture, uint8, 3 x H x W, as a PNG file, which loses nothing."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise ValueError(f"image must be uint8, 3 x H x W, got {image.dtype}, {tuple(image.shape)}")
    return encode_png(image).numpy().tobytes()


@contextmanager
@checked
def unpacked_handler(path: AnyPath) -> Iterator[tuple[Any, Any]]:
    """Unpack an archive, and yield its own handler, ready to be called, with a context such as TorchServe's.

    The context's ``statuses`` has the HTTP status and the reason of each request that was refused, by its
    place.
    """
    statuses: dict[int, tuple[int, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(path, folder, "zip")
        worker = runpy.run_path(os.path.join(folder, "handler.py"))["PictureHandler"]()
        context = SimpleNamespace(
            system_properties={"model_dir": folder},
            set_response_status=lambda code, phrase, idx: statuses.update({idx: (code, phrase)}),
            statuses=statuses,
        )
        with quiet():  # PyTorch says that TorchScript is deprecated; TorchServe has nothing newer
            worker.initialize(context)
        yield worker, context


# -- inside --------------------------------------------------------------------------------------------------


def _pack(model: nn.Module, classes: Sequence[str], pictures: Split, name: str, folder: Path) -> Path:
    from model_archiver.model_archiver_config import ModelArchiverConfig
    from model_archiver.model_packaging import package_model
    from model_archiver.model_packaging_utils import ModelExportUtils

    files = {each: os.fspath(folder / each) for each in ("model.pt", "settings.json", "model-config.yaml")}
    with torch.no_grad():
        torch.jit.trace(model, example(2, shape_of(pictures))).save(files["model.pt"])
    settings = {
        "classes": classes,
        "mean": pictures.mean,
        "std": pictures.std,
        "size": shape_of(pictures)[1:],
    }
    (folder / "settings.json").write_text(json.dumps(settings), "utf-8")
    (folder / "model-config.yaml").write_text(WORKERS, "utf-8")
    config = ModelArchiverConfig(
        model_name=name,
        handler=handler.__file__,
        version="1.0",
        serialized_file=files["model.pt"],
        extra_files=files["settings.json"],
        config_file=files["model-config.yaml"],
        export_path=os.fspath(folder),
    )
    package_model(config, manifest=ModelExportUtils.generate_manifest_json(config))
    return folder / f"{name}.mar"


# What the handler tells of pictures, and what it should: N x classes, the probability at the class, else 0.
def _probabilities(model: nn.Module, pictures: Split) -> Tensor:
    probabilities = predict(model, pictures).softmax(1)
    return probabilities * one_hot(probabilities.argmax(1), probabilities.shape[1])


def _told(path: Path, pictures: Split) -> Tensor:
    requests = [{"body": png(image)} for image in pictures.images]
    with unpacked_handler(path) as (worker, context):
        starts = range(0, len(requests), BATCH)
        answers = [
            each for start in starts for each in worker.handle(requests[start : start + BATCH], context)
        ]
    if context.statuses:
        raise ExportError(
            f"the handler of {path.name} refuses pictures: {next(iter(context.statuses.values()))}"
        )
    labels, probabilities = (
        torch.tensor([each[key] for each in answers]) for key in ("label", "probability")
    )
    return one_hot(labels, len(worker.settings["classes"])) * probabilities[:, None]


def _configure(path: Path, folder: Path) -> str:
    for name in ("java", "store"):
        (folder / name).mkdir()
    shutil.copy(path, folder / "store" / path.name)
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
        http, management, metrics, grpc, grpc_management = (each.getsockname()[1] for each in sockets)
    settings = {
        "inference_address": f"http://127.0.0.1:{http}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_inference_port": grpc,
        "grpc_management_address": "127.0.0.1",
        "grpc_management_port": grpc_management,
        "disable_token_authorization": "false",
        "disable_system_metrics": "true",
    }
    text = "".join(f"{name}={value}\n" for name, value in settings.items())
    (folder / "config.properties").write_text(text, "utf-8")
    return f"http://127.0.0.1:{http}"


def _started(process: subprocess.Popen, folder: Path, url: str, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError, ValueError, KeyError):
            token = json.loads((folder / "key_file.json").read_text("utf-8"))["inference"]["key"]
            if _sent(f"{url}/ping", token)[1].get("status") == "Healthy":
                return token
        time.sleep(0.25)
    log = (folder / "server.log").read_text("utf-8")
    raise RuntimeError(f"TorchServe did not start within {seconds:g} s: {log[-1500:]}")


def _sent(url: str, token: str, data: bytes | None = None) -> tuple[int, dict]:
    headers = {"Content-Type": "application/octet-stream"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def _end(process: subprocess.Popen) -> None:
    family = []  # Python, Java, the workers
    for step in (psutil.Process.suspend, psutil.Process.kill):  # halted first, so that none starts another
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            family = [parent, *parent.children(recursive=True)]
        for each in family:
            with suppress(psutil.Error):
                step(each)
    process.wait(timeout=60)
    psutil.wait_procs(family, timeout=60)  # only then are its ports free
