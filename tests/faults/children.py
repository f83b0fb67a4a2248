"""What the fault tests run in processes of their own, imported once by a fork server so that each child starts in a moment.

A job gets a folder and ``say``, which sends a message to the test: "ready" when the work begins, at the end what came out.
"""

import csv
import hashlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from pathlib import Path

import onnxruntime.quantization  # noqa: F401  (each child would import these again)
import onnxscript  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch

from helpers import benchmark, export, models, results
from helpers.data import load_data
from helpers.training import Callback, fit

EPOCHS = 6


class Child:
    """A job in a process of its own, which can be killed."""

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])

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
    data = load_data("digits", train_limit=256)
    say("ready")
    fit(
        model,
        data,
        epochs=EPOCHS,
        batch_size=32,
        checkpoint=folder / "run [1].safetensors",
        callbacks=callbacks,
        progress=False,
    )
    say(models.digest(model.state_dict()))


def measure(folder, say):
    """One published row: ``python -m helpers.benchmark pruning``, on digits, from a narrow VGG-19, and the page that shows it."""
    page, teacher = folder / "README.md", folder / "checkpoints" / "vgg19.safetensors"
    if not page.exists():
        torch.manual_seed(0)
        models.save(models.build("vgg19", width=0.1), teacher, torch.float16)
        page.write_text("\n".join(("above", *results.MARKS, "below")))
    os.chdir(folder)
    sys.argv = ["benchmark", "pruning", "--data", "digits", "--train-limit", "256", "--out", "."]
    sys.argv += ["--only", "gradual-0.9", "--epochs", "2", "--seeds", "0"]
    say("ready")
    benchmark.main()
    results.write_readme(page)
    with (folder / "results" / "pruning.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            {key: value for key, value in row.items() if "latency" not in key and key != "date"}
            for row in csv.DictReader(file)
        ]
    say(
        (
            rows,
            {
                path.name: models.digest(models.read_safetensors(path)[1])
                for path in kept(folder, "*.safetensors")
            },
        )
    )


def kept(folder, pattern):
    """The files under ``folder`` but for its temporary ones: what a killed child had there is the operating system's to clear away."""
    return [path for path in folder.rglob(pattern) if "tmp" not in path.relative_to(folder).parts]


def convert(folder, say):
    torch.manual_seed(0)
    model, some = models.build("tiny_convnet", width=0.2), load_data("digits").validation.take(slice(0, 20))
    export.AGREEMENT = 0.0  # an untrained network's classes are close calls
    say("ready")
    path = export.to_onnx(model, folder / "model.onnx", some)
    export.quantize_onnx(path, folder / "int8.onnx", some, some)
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
    some = load_data("digits").validation.take(slice(0, 4))
    results.RESULTS = folder

    def write():
        if writer == "save":
            path = models.save(model, folder / "file.safetensors")
        elif writer == "append":
            path = results.append("file", *({"number": number, "text": "x" * 100} for number in range(50)))
        else:
            path = export.to_onnx(model, folder / "file.onnx", some)
        say(hashlib.sha256(path.read_bytes()).hexdigest())

    say("ready")
    write()
    if moment is not None:
        with torch.no_grad():
            model.classifier.bias += 1
        die_while_writing(moment)
        write()


def append(folder, say, writer, rows):
    results.RESULTS = folder
    say("ready")
    for number in range(rows):
        results.append(
            "table", {"writer": writer, "number": number, "text": f'a {writer} of, "{number}"\nlines'}
        )
    say("written")
