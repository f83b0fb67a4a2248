"""Other machines, as far as one machine can play them: without bf16, without AVX, with one core, with another system's defaults."""

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from helpers import evaluation, files, models
from helpers.data import HOME, load_data
from helpers.training import fit

EVERYTHING = """
    import os, sys, warnings
    warnings.simplefilter("ignore", UserWarning)
    from pathlib import Path
    import torch
    if len(sys.argv) > 2:
        torch.set_num_threads(int(sys.argv[2]))
    from helpers import files, low_rank, models, profiling, pruning, quantization
    from helpers.benchmark import results
    from helpers.data import load_data
    from helpers.distillation import DistillationLoss
    from helpers.evaluation import evaluate
    from helpers.training import fit
    folder = Path(sys.argv[1])
    data = load_data("digits", train_limit=128)
    torch.manual_seed(0)
    teacher, student = models.build("vgg11", width=0.1), models.build("tiny_convnet", width=0.3)
    fit(teacher, data, epochs=1, batch_size=64, progress=False)
    small = low_rank.factorize(student, budget=0.5)
    pruner = pruning.GradualPruner(pruning.PolynomialSchedule(0.5, end=0.7))
    options = {"loss": DistillationLoss(teacher), "callbacks": [pruner], "checkpoint": folder / "run.safetensors"}
    history = fit(small, data, epochs=2, batch_size=64, progress=False, **options)
    small = models.load(models.save(small, folder / "small.safetensors", storage="bitmask+zip"))
    thin = pruning.prune_channels(small, torch.zeros(1, 3, 32, 32), 0.25, round_to=1)
    profiling.summarize(thin, data, repeats=3)
    quantization.round_weights(thin, 8)
    row = dict.fromkeys(results.SCHEMA["speed"], results.describe_device()) | {"library": "\\u00e9 \\u2192 \\u4e2d"}
    results.append("speed", [row], folder)
    assert results.read("speed", folder)["library"][0] == "\\u00e9 \\u2192 \\u4e2d"
    print(files.digest(small.state_dict()), history["loss"].iloc[0], float(evaluate(small, data.test)))
"""


def everything(folder, *flags, threads="2", before="", **environment):
    """What comes of it in a process of its own, on such a machine."""
    return run(folder, before + textwrap.dedent(EVERYTHING), *flags, threads=threads, **environment)[-1]


def run(folder, code, *flags, threads, **environment):
    folder.mkdir()
    command = [sys.executable, *flags, "-c", code, str(folder), threads]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines() if len(line.split()) == 3]
    return [(digest, float(loss), float(accuracy)) for digest, loss, accuracy in lines]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("here") / "run")


def test_another_number_of_threads_differs_by_rounding_only(here, tmp_path):
    """Each number of threads repeats itself to the bit; between them sums are added up in another order, which training amplifies."""
    code, bind, free = textwrap.dedent(EVERYTHING), "import os\n", ""
    if hasattr(os, "sched_setaffinity"):
        bind += "cores = os.sched_getaffinity(0)\nos.sched_setaffinity(0, {min(cores)})\n"
        free = "os.sched_setaffinity(0, cores)\n"
    again = "sys.argv[1] = os.path.join(sys.argv[1], 'again')\nos.mkdir(sys.argv[1])\n"
    one_core, one = run(tmp_path / "one", bind + code + free + again + code, threads="1")
    assert one[1] == pytest.approx(here[1], rel=0.02)
    assert one_core == one


def test_a_processor_without_avx_and_bf16(here, tmp_path):
    """oneDNN and PyTorch are told that the processor has nothing beyond SSE4.1, and ours that it computes in no bf16."""
    hidden = (
        "from helpers import evaluation\nevaluation.has_bf16 = lambda *_: False\n"  # /proc/cpuinfo would tell
    )
    found = everything(
        tmp_path / "run",
        before=hidden,
        ATEN_CPU_CAPABILITY="default",
        ONEDNN_MAX_CPU_ISA="SSE41",
        DNNL_MAX_CPU_ISA="SSE41",
    )
    assert found[1] == pytest.approx(here[1], rel=0.05)  # bf16 there, fp32 here


def test_another_systems_defaults(here, tmp_path):
    """Same seed, same bits; and Windows reads text in its own encoding unless told otherwise: none of our files may depend on it."""
    flags = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning:helpers"]
    assert (
        everything(
            tmp_path / "run with a space, \u00e9", *flags, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"
        )
        == here
    )


def test_without_bf16_auto_is_fp32_to_the_bit(monkeypatch):
    data, runs = load_data("digits", train_limit=128), []
    for precision in ("fp32", "auto"):
        monkeypatch.setattr(evaluation, "has_bf16", lambda *_: False)
        torch.manual_seed(0)
        model = models.build("tiny_convnet", width=0.2)
        fit(model, data, epochs=1, batch_size=64, precision=precision, progress=False)
        runs.append(files.digest(model.state_dict()))
    assert runs[0] == runs[1]


def test_a_loaded_file_is_not_held_open(tmp_path):
    """Windows lets nobody replace a file that is open or mapped into memory; a resumed run replaces its own."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("open files are counted on Linux only")
    model, path = models.build("tiny_convnet", width=0.2), tmp_path / "model.safetensors"
    models.save(model, path)
    model = models.load(path)
    data, run = load_data("digits", train_limit=64), tmp_path / "run.safetensors"
    for epochs in (1, 1):
        fit(model, data, epochs=epochs, batch_size=64, checkpoint=run, progress=False)
    for one in (path, run):
        assert str(one) not in maps.read_text()
        assert str(one) not in {
            os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")
        }


def test_paths_are_joined_not_pasted():
    """No helper builds a path with slashes or backslashes of its own, and every name it makes up is allowed on Windows."""
    forbidden = re.compile(r'[<>:"|?*\\]|[. ]$')
    for path in sorted((HOME / "helpers").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                for text in filter(len, literals(node)):
                    assert not forbidden.search(text), f"{path.name}:{node.lineno} {text!r}"
                    assert "/" not in text, f"{path.name}:{node.lineno} {text!r}"


def literals(node):
    """The strings that a path is put together from, an f-string as one; those in arguments of calls left out."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.BinOp):
        for below in ast.iter_child_nodes(node):
            yield from literals(below)
