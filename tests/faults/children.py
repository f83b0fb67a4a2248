"""What the fault tests run in processes of their own, imported once by a fork server so that each child starts in a moment.

A job gets a folder and ``say``, which sends a message to the test: "ready" when the work begins, at the end what came out.
"""

import hashlib
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path

import networkx  # noqa: F401  (each child would import these again)
import onnxruntime.quantization  # noqa: F401
import onnxscript  # noqa: F401
import pytest
import sklearn.datasets  # noqa: F401
import torch
from torch import nn

from helpers import export, files, models
from helpers.benchmark import results
from helpers.benchmark.__main__ import main
from helpers.benchmark.recipes import NETWORKS, OWN, Recipe
from helpers.data import load_data
from helpers.training import Callback, fit

EPOCHS = 3
DIGITS = load_data("digits", train_limit=128)
EXPORTER = (  # what an export imports in its first seconds, by the names of today; the server passes over one that is gone
    "torch._inductor.compile_fx",
    "torch.onnx._internal.exporter._core",
    "onnxscript.function_libs.torch_lib.ops",
)


class Child:
    """A job in a process of its own, which can be killed."""

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *EXPORTER])

    def __init__(self, job, folder, *arguments):
        self.messages, theirs = self.context.Pipe(duplex=False)
        self.process = self.context.Process(target=_start, args=(job, folder, theirs, *arguments))
        self.process.start()
        theirs.close()

    def hear(self):
        """The next message; None if the process ended without one."""
        try:
            return self.messages.recv()
        except EOFError:
            return None

    def kill_after(self, seconds):
        """Whether the process was still at work when kill -9 came, so many seconds after it had begun."""
        assert self.hear() == "ready"
        over = self.messages.poll(seconds)
        self.process.kill()
        self.process.join()
        return not over

    def finish(self):
        """What the job said in the end, and how many seconds it took."""
        assert self.hear() == "ready"
        started, said = time.perf_counter(), self.hear()
        self.process.join()
        return said, time.perf_counter() - started


def _start(job, folder, pipe, *arguments):
    torch.set_num_threads(1)
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(
        folder / "tmp"
    )  # what a killed process leaves there goes with the test's folder
    sys.stdout = sys.stderr = (folder / "tmp" / "log").open("a")
    job(folder, pipe.send, *arguments)


# -- the three that are killed ---------------------------------------------------------------------------------------


def train(folder, say, *callbacks):
    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.2)
    say("ready")
    fit(
        model,
        DIGITS,
        epochs=EPOCHS,
        batch_size=32,
        checkpoint=folder / "run [1].safetensors",
        callbacks=callbacks,
        progress=False,
    )
    say(files.digest(model.state_dict()))


def measure(folder, say):
    """A row as it is published: ``python -m helpers.benchmark small``, on digits: checkpoint, network, answers, row."""
    os.chdir(folder)
    NETWORKS["small"] = Recipe(start="micro_convnet", epochs=2, reference="small", **OWN)
    sys.argv = ["benchmark", "small", "--data", "digits", "--out", ".", "--epochs", "2"]
    say("ready")
    with pytest.raises(SystemExit, match="0"):
        main()
    table = results.read("networks", folder / "results")
    table = table.drop(columns=[name for name in table if re.search("latency|_ms|seconds|date|memory", name)])
    networks = {
        path.name: files.digest(files.read_safetensors(path)[1]) for path in kept(folder, "*.safetensors")
    }
    say((table.to_csv(), networks, sorted(path.name for path in kept(folder, "*"))))


def kept(folder, pattern):
    """The files under ``folder`` but for its temporary ones: what a killed child had there is the operating system's to clear away."""
    return [path for path in folder.rglob(pattern) if "tmp" not in path.relative_to(folder).parts]


def small():
    """A network that is traced and written in a moment."""
    layers = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    return nn.Sequential(*layers)


def convert(folder, say):
    torch.manual_seed(0)
    model, some = small().eval(), DIGITS.validation.take(slice(0, 20))
    say("ready")
    path = export.to_onnx(model, folder / "model.onnx", some)
    export.quantize_onnx(
        path, folder / "int8.onnx", some, some, agreement=0
    )  # untrained: classes are close calls
    say({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.onnx")})


# -- killed in the middle of a write ---------------------------------------------------------------------------------


class DieInTheSecondWrite(Callback):
    """Kills fit while it writes its second checkpoint; where, ``moment`` says."""

    def __init__(self, moment):
        self.moment = moment

    def on_epoch(self, run):
        if run.epoch == 2:
            die_while_writing(self.moment)
        return {}


def die_while_writing(moment):
    """Have the kernel end this process in its next write: after that many bytes, or at a step of making it last."""

    def die(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "flush":
        os.fsync = die
    elif moment == "rename":
        Path.replace = die
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (moment, moment))


def rewrite(folder, say, writer, moment):
    """Write a file, say its SHA-256, then die while writing another in its place; with no moment, only write it."""
    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.2)
    some = DIGITS.validation.take(slice(0, 4))
    row, plain = dict.fromkeys(results.SCHEMA["speed"], "x" * 20), small().eval()

    def write():
        if writer == "save":
            path = models.save(model, folder / "file.safetensors")
        elif writer == "append":
            path = results.append("speed", [row] * 30, folder)
        else:
            path = export.to_onnx(plain, folder / "file.onnx", some)
        say(hashlib.sha256(path.read_bytes()).hexdigest())

    say("ready")
    write()
    if moment is not None:
        with torch.no_grad():
            model.classifier.bias += 1
            plain[-1].bias += 1
        die_while_writing(moment)
        write()


def append(folder, say, writer, rows):
    row = dict.fromkeys(results.SCHEMA["speed"], f'a {writer} of, "several"\nlines')
    say("ready")
    for number in range(rows):
        results.append("speed", [row | {"what": writer, "unit": number}], folder)
    say("written")
