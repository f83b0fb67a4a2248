"""Mutation check: ``python -m tests.mutants pruning`` makes small errors in a helper, one at a time, and counts those the tests notice.

A mutant is the helper with one thing changed: a comparison or an arithmetic operator, a constant, a ``not``, ``min`` for ``max``, a
boolean, a condition, a missing statement, an early return. Docstrings, annotations and error texts are left alone. The package is copied
to a temporary folder, where each mutant replaces its module; PyTorch is imported once, and the module's tests run in a fork of that
process until the first fails. Not a part of the test command: it takes minutes. Linux and macOS only.
"""

import argparse
import ast
import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
TESTS = {  # of each module: the files that test it, beside the properties and the bad arguments
    "distillation": ("distillation",),
    "pruning": ("pruning",),
    "channels": ("channels",),
    "low_rank": ("low_rank",),
    "ranks": ("ranks", "low_rank"),
    "quantization": ("quantization",),
    "evaluation": ("evaluation", "training"),
    "profiling": ("profiling", "storage"),
}
QUICK = "not vgg19 and not resnet and not mobilenet and not on_the_teacher"  # what they show, smaller networks show as well
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMES = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "amax": "amin",
    "ceil": "floor",
    "floor": "ceil",
}


def mutants(tree: ast.Module):
    """Yield (line, what was changed, the changed tree), one change at a time."""
    parents = {below: node for node in ast.walk(tree) for below in ast.iter_child_nodes(node)}
    nodes = [node for node in ast.walk(tree) if not skipped(node, parents)]
    for index, node in enumerate(nodes):
        for what, change in changes(node):
            twin = copy.deepcopy(tree)
            other_parents = {
                below: above for above in ast.walk(twin) for below in ast.iter_child_nodes(above)
            }
            other = [one for one in ast.walk(twin) if not skipped(one, other_parents)][index]
            change(other, other_parents.get(other))
            yield node.lineno, what, ast.fix_missing_locations(twin)


def skipped(node, parents) -> bool:
    """Whether a node is no code that runs and decides: a docstring, an annotation, an error, an f-string, a decorator, an import."""
    if not hasattr(node, "lineno"):
        return True
    while node in parents:
        above = parents[node]
        if isinstance(above, (ast.Raise, ast.JoinedStr, ast.arg, ast.AnnAssign)) or isinstance(
            node, (ast.Raise, ast.Import, ast.ImportFrom)
        ):
            return True
        if isinstance(above, (ast.FunctionDef, ast.ClassDef)) and (
            node in above.decorator_list or node is getattr(above, "returns", None)
        ):
            return True
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return True
        node = above
    return False


def changes(node):
    """Yield (description, function that makes the change in a node of a copied tree)."""

    def put(field, value):
        return lambda twin, _: setattr(twin, field, value)

    def wrap(make):
        def change(twin, above):
            for name, value in ast.iter_fields(above):
                if value is twin:
                    setattr(above, name, make(twin))
                elif isinstance(value, list) and twin in value:
                    value[value.index(twin)] = make(twin)

        return change

    text = ast.unparse(node).splitlines()[0]
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield (
            f"{text}: {type(node.ops[0]).__name__} swapped",
            put("ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]]),
        )
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in SWAPS:
        yield f"{text}: {type(node.op).__name__} swapped", put("op", SWAPS[type(node.op)]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield f"{text}: {type(node.op).__name__} dropped", wrap(lambda twin: twin.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{text} flipped", put("value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield f"{text} plus 1", put("value", node.value + 1)
    if isinstance(node, ast.Name) and node.id in NAMES:
        yield f"{text} for {NAMES[node.id]}", put("id", NAMES[node.id])
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield f"{text} for {NAMES[node.attr]}", put("attr", NAMES[node.attr])
    if isinstance(node, (ast.If, ast.IfExp)):
        yield f"{text} always", put("test", ast.Constant(True))
        yield f"{text} never", put("test", ast.Constant(False))
    if isinstance(node, (ast.Expr, ast.Assign, ast.AugAssign)):
        yield f"{text} dropped", wrap(lambda twin: ast.copy_location(ast.Pass(), twin))
    if isinstance(node, ast.Return) and node.value is not None:
        yield f"{text}: None returned", put("value", ast.Constant(None))
    if isinstance(node, ast.FunctionDef) and len(node.body) > 2:
        yield f"{node.name} does nothing", lambda twin, _: twin.body.insert(0, ast.Return(ast.Constant(None)))


def chosen(module: str) -> list[str]:
    """Return pytest's arguments: the files of a module's tests, and what chooses among them."""
    own = [file for name in TESTS[module] if (file := Path("tests", f"test_{name}.py")).exists()]
    faults = [Path("tests", "faults", f"test_{name}.py") for name in ("properties", "bad_arguments")]
    names = " or ".join((*(file.stem for file in own), "properties", f"{module}."))
    return ["-k", f"({names}) and {QUICK}", *map(str, (*own, *faults))]


def caught(module: str, source: str, limit: float) -> str:
    """Run the module's tests on a mutant in a fork; return "failed" or "slow" where they notice, "" where they pass."""
    Path("helpers", f"{module}.py").write_text(source, "utf-8")
    child = os.fork()
    if child == 0:
        os.setsid()
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        code = 3
        try:
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *chosen(module)])
        finally:
            os._exit(int(code))
    started = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "" if os.waitstatus_to_exitcode(status) == 0 else "failed"
        if time.monotonic() - started > limit:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "slow"
        time.sleep(0.02)


def run(module: str, sample: int, seed: int, start: int, again: bool, seconds: float, out: Path) -> None:
    """Try the sampled mutants from number ``start`` on, or those that survived, for so many seconds; append a line for each to ``out``."""
    began = time.monotonic()
    import accelerate  # noqa: F401  (each fork would import these again)
    import hypothesis  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import torch_pruning  # noqa: F401

    torch.set_num_threads(1)  # a fork must not inherit a pool of threads
    source = Path("helpers", f"{module}.py").read_text("utf-8")
    every = list(mutants(ast.parse(source)))
    drawn = random.Random(seed).sample(range(len(every)), min(sample, len(every)))
    todo = (
        [row["number"] for row in latest(out, module) if not row["caught"]]
        if again
        else range(start, len(drawn))
    )
    clean = time.monotonic()
    if (start == 0 or again) and caught(module, source, 600):
        raise SystemExit(f"the tests of {module} fail without any mutant")
    limit = max(30.0, 3 * (time.monotonic() - clean))
    with out.open("a", encoding="utf-8") as file:
        for number in todo:
            if time.monotonic() - began > seconds:
                return
            line, what, tree = every[drawn[number]]
            row = {"module": module, "number": number, "line": line, "what": what}
            row["caught"] = caught(module, ast.unparse(tree), limit)
            file.write(json.dumps(row) + "\n")
            file.flush()


def latest(out: Path, module: str) -> list[dict]:
    """Return the last line about each mutant of a module."""
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out.exists() else []
    return list({row["number"]: row for row in rows if row["module"] == module}.values())


def table(out: Path) -> str:
    """Return the counts per module and the survivors."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        for module in TESTS:
            own = latest(out, module)
            if own:
                lost = [row for row in own if not row["caught"]]
                print(
                    f"{module}: {len(own) - len(lost)} of {len(own)} caught ({1 - len(lost) / len(own):.0%})"
                )
                for row in lost:
                    print(f"    line {row['line']}: {row['what']}")
    return text.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("module", choices=(*TESTS, "table"))
    parser.add_argument("--sample", type=int, default=60, help="mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first one to try")
    parser.add_argument(
        "--again", action="store_true", help="only those that survived, after the tests have got better"
    )
    parser.add_argument("--seconds", type=float, default=3600, help="stop after so long; go on with --start")
    parser.add_argument("--out", type=Path, default=HOME / "build" / "mutants.jsonl")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if arguments.module == "table":
        print(table(arguments.out))
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in ("helpers", "tests"):
            shutil.copytree(HOME / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__"))
        for name in (
            "data",
            "notebooks",
            "figures",
            "Makefile",
            "README.md",
            "requirements.txt",
            "pyproject.toml",
            ".ci",
        ):
            Path(folder, name).symlink_to(HOME / name)
        os.chdir(folder)
        sys.path.insert(0, folder)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        sys.dont_write_bytecode = True  # two mutants in one second would share it
        for name in [name for name in sys.modules if name.partition(".")[0] in ("helpers", "tests")]:
            del sys.modules[name]
        run(
            arguments.module,
            arguments.sample,
            arguments.seed,
            arguments.start,
            arguments.again,
            arguments.seconds,
            arguments.out.resolve(),
        )


if __name__ == "__main__":
    main()
