"""Every argument of every public function, given what it must not be: ValueError or TypeError that names it, before any work.

What is bad is read from the annotations, so a function is covered as soon as it is there: whatever of POOL and of a type's own
edges does not fit must be refused, and ``fits`` says what fits without the help of ``helpers.types``. RULES is what no
annotation can say.
"""

import importlib
import inspect
import math
import pkgutil
import traceback
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from numbers import Integral, Real
from operator import ge, gt, le, lt
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from unittest.mock import Mock

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from pydantic.fields import FieldInfo
from torch import nn, zeros

import helpers
from helpers import (
    business,
    data,
    distillation,
    evaluation,
    export,
    lesson,
    low_rank,
    models,
    profiling,
    pruning,
    quantization,
    training,
    types,
    widgets,
)
from helpers.data import Data, Split, load_data
from helpers.deploy import phone, torchserve
from helpers.types import shown, validated

HELPERS = Path(helpers.__file__).parent
SLOW = {
    "helpers.export",
    "helpers.deploy.coreml",
    "helpers.deploy.torchserve",
}  # other tests call them with what is right

# -- what is public ----------------------------------------------------------------------------------------------------

NOT_CHECKED = {  # what takes numbers, choices, names or paths unchecked: a pattern, and why
    "architectures.*Net": "made by build",
    "architectures.ResidualBlock": "made by build",
    "augmentation.holes": "behind batches, which checks",
    "benchmark.*": "the command line's own; argparse and the recipes' tests come before it",
    "callbacks.Run": "made by fit",
    "data.Split.to": "takes what PyTorch takes",
    "channel_graph.*": "behind channels, which checks",
    "deploy.handler.*": "runs inside TorchServe, which has none of our packages",
    "deploy.litserver.*": "LitServe calls it, with what a request holds",
    "deploy.mil.Program": "behind deploy.coreml, which checks",
    "deploy.runtimes.*": "behind export and deploy.measures, which check",
    "deploy.torchserve.Server": "made by serving",
    "deploy.writing.*": "behind export, which checks",
    "diagrams.*": "draws the numbers that our own functions return",
    "layers.in_words": "takes whatever a module holds",
    "lesson.open_lesson": "its budget may come from the environment as well: below",
    "maintain.*": "the maintainers' own commands",
    "muon.orthogonalize": "runs in every step",
    "plotting.*": "draws the tables that our own functions return",
    "quantization.round_to_grid": "hands all of it to symmetric_grid",
    "ranks.runs_of": "behind low_rank, which checks",
    "networks.known": "takes a function's own arguments: it is a check itself",
    "ranks.sides": "behind low_rank, which checks",
    "ranks.tried": "behind low_rank, which checks",
    "types.*": "makes the checks",
    "*.load_state_dict": "takes what state_dict gave",
}


def public():
    """Each public function, class and method of the package: {its name: the thing}."""
    found = {}
    for info in pkgutil.walk_packages(helpers.__path__, "helpers."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", "") != module.__name__:
                continue
            label = f"{module.__name__.removeprefix('helpers.')}.{name}"
            if inspect.isclass(thing):
                found[label] = thing
                members = {
                    name: getattr(thing, name) for name in vars(thing) if name == "__call__" or name[0] != "_"
                }
                found |= {f"{label}.{name}": one for name, one in members.items() if function_of(one)}
            elif function_of(thing):
                found[label] = thing
    return found


def function_of(thing):
    """The function that was written, beneath its decorators; None where there is none, as in a class that inherits all."""
    if inspect.isclass(thing):
        thing = vars(thing).get("__init__")
    inner = inspect.unwrap(thing) if callable(thing) else None
    return inner if inspect.isfunction(inner) and inner.__name__ != "<lambda>" else None


def is_checked(thing):
    thing = thing.__init__ if inspect.isclass(thing) else thing
    while thing is not None:
        code = getattr(thing, "__code__", None)
        if code and (code.co_filename, code.co_name) == (types.__file__, "wrapper"):
            return True
        thing = getattr(thing, "__wrapped__", None)
    return False


def parameters(thing):
    """{argument: its annotation, None without one}, without self."""
    function = function_of(thing)
    if function is None:
        return {}
    hints = get_type_hints(function, include_extras=True)
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [one.name for one in inspect.signature(function).parameters.values() if one.kind not in fixed]
    return {name: hints.get(name) for name in names if name not in ("self", "cls")}


EVERYTHING = public()
CHECKED = {label: thing for label, thing in EVERYTHING.items() if is_checked(thing) and parameters(thing)}

# -- what fits an annotation -------------------------------------------------------------------------------------------


class Strange:
    """Nothing knows what to do with it."""

    def __repr__(self):
        raise RuntimeError("it cannot even be shown")


BOUNDS = {"gt": gt, "ge": ge, "lt": lt, "le": le}
WORDS = ("", "x", "1", "?!", "../table", "a\0", b"x", "x" * 10**6)
NUMBERS = (
    True,
    0,
    -1,
    1,
    2,
    1.5,
    1j,
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    -1e308,
    2**53 + 1,
    10**400,
    -(10**5_000),
)
GROUPS = (
    [],
    [1],
    [None],
    ["x"],
    [["x"]],
    [math.nan],
    {},
    {"a": 1},
    {1: 1},
    {"a": None},
    {"a": "x"},
    {"a": math.nan},
)
TENSORS = (torch.empty(0), torch.ones(2), torch.ones(2, 2), torch.tensor([math.nan, 1.0]), torch.tensor(1j))
POOL = (
    None,
    *WORDS,
    *NUMBERS,
    *GROUPS,
    *TENSORS,
    pd.DataFrame(),
    pd.DataFrame({"a": [1]}),
    Strange(),
    nn.Module,
)


def unfolded(hint):
    """An annotation's class, its parts, and what helpers.types wrote into it: bounds, suffixes, dimensions, columns."""
    own = {}
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        for extra in extras:
            if isinstance(extra, FieldInfo):
                own = {
                    name: getattr(one, name)
                    for one in extra.metadata
                    for name in BOUNDS
                    if hasattr(one, name)
                }
            else:
                own |= inspect.getclosurevars(extra.func).nonlocals
    return get_origin(hint) or hint, get_args(hint), own


def union(hint):
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def fits(hint, value):
    """Whether an annotation allows a value."""
    kind, parts, own = unfolded(hint)
    if kind in (Any, type) or isinstance(kind, TypeVar):
        return True
    if kind in (Union, UnionType):
        return any(fits(part, value) for part in parts)
    if kind is Literal:
        return any(type(part) is type(value) and part == value for part in parts)
    if kind is Callable:
        return callable(value)
    if kind in (int, float):
        right = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        right = right and (kind is int or abs(value) < 2e308)
        return right and all(BOUNDS[name](value, limit) for name, limit in own.items() if name in BOUNDS)
    if kind is tuple and parts[1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(fits, parts, value))
    if kind in (dict, Mapping):
        right = isinstance(value, Mapping)
        pairs = value.items() if right and parts else ()
        return right and all(fits(parts[0], key) and fits(parts[1], one) for key, one in pairs)
    if inspect.isclass(kind) and issubclass(kind, Iterable) and parts:
        right = isinstance(value, list if kind is list else Iterable) and not isinstance(
            value, (str, bytes, Mapping)
        )
        return right and getattr(value, "ndim", 1) > 0 and all(fits(parts[0], one) for one in value)
    if "suffixes" in own and isinstance(value, str):
        value = Path(value) if value and "\0" not in value else None
    if value is None or not isinstance(value, kind):
        return value is None and kind is type(None)
    if "suffixes" in own:
        return not own["suffixes"] or value.suffix in own["suffixes"]
    if "dimensions" in own:
        right = own["dimensions"] in (None, value.ndim) and value.numel() and not value.is_complex()
        return bool(right and value.isfinite().all())
    return "columns" not in own or ({*own["columns"]} <= {*value} and not value.empty)


def edges(hint):
    """What lies just beyond an annotation, and some that does not."""
    kind, parts, own = unfolded(hint)
    if kind in (Union, UnionType):
        return [edge for part in parts for edge in edges(part)]
    if kind is Literal:
        return [parts[0].upper(), parts[0] + parts[0]]
    if kind in (int, float):
        limits = [limit for name, limit in own.items() if name in BOUNDS]
        steps = (
            (lambda x: (x - 1, x + 1))
            if kind is int
            else (lambda x: (math.nextafter(x, math.inf), math.nextafter(x, -math.inf)))
        )
        return [near for limit in limits for near in (limit, *steps(limit))]
    if kind in (dict, Mapping) and parts:
        return [{"a": edge} for edge in edges(parts[1])]
    if kind is tuple:
        inner = [edge for part in parts if part is not ... for edge in edges(part)]
        return [(edge,) * count for edge in (1, *inner) for count in (1, 2, 3, 4)]
    if "suffixes" in own:
        return ["model", f"model{own['suffixes'][0]}.old"] if own["suffixes"] else []
    if "dimensions" in own:
        return [torch.ones((2,) * count) for count in range(6)]
    if "columns" in own:
        return [pd.DataFrame({one: [1] for one in own["columns"] if one != left}) for left in own["columns"]]
    return []


DIGITS = load_data("digits", train_limit=64)
KNOWN = {Split: DIGITS.validation, Data: DIGITS, bytes: b"x", dict: {}}


def sample(hint):
    """A value that an annotation allows; of a class that it asks for, something that says it is one."""
    kind, parts, own = unfolded(hint)
    if kind in (Union, UnionType):
        return sample(parts[0])
    if kind is Literal:
        return parts[0]
    if "columns" in own:
        return pd.DataFrame({column: [1] for column in own["columns"]})
    if "dimensions" in own:
        return torch.ones((2,) * (own["dimensions"] or 1))
    if kind in (dict, Mapping) and parts:
        return {sample(parts[0]): sample(parts[1])}
    if inspect.isclass(kind) and issubclass(kind, Iterable) and parts:
        return (list if kind is list else tuple)(sample(part) for part in parts if part is not ...)
    if kind is Callable:
        return len
    chosen = (
        0.5,
        1,
        2,
        *edges(hint),
        "x",
        "speed",
        True,
        *(f"x{suffix}" for suffix in own.get("suffixes", ())),
    )
    return (
        KNOWN[kind]
        if kind in KNOWN
        else next((one for one in chosen if accepted(hint, one)), Mock(spec=kind))
    )


def accepted(hint, value):
    try:
        validated("it", value, hint)
    except (ValueError, TypeError):
        return False
    return True


# -- the tests ---------------------------------------------------------------------------------------------------------


def told(label):
    return next((why for pattern, why in NOT_CHECKED.items() if fnmatch(label, pattern)), None)


def plain(hint):
    """Whether an annotation asks for nothing but objects of a class, or a flag."""
    kind, parts, own = unfolded(hint)
    simple = (
        not own
        and kind not in (int, float, str, Path, Literal)
        and not (inspect.isclass(kind) and issubclass(kind, Iterable) and parts)
    )
    return all(map(plain, parts)) if kind in (Union, UnionType) else simple


@pytest.mark.parametrize("label", EVERYTHING)
def test_every_argument_has_a_type_that_is_checked_and_says_its_range(label):
    hints = parameters(EVERYTHING[label])
    assert all(hints.values()), f"without a type: {[name for name, hint in hints.items() if not hint]}"
    if told(label) is None and not all(plain(hint) for hint in hints.values()):
        assert label in CHECKED, f"not @checked, takes {[*hints]}"
        bare = [name for name, hint in hints.items() if {int, float} & {hint, *union(hint)}]
        assert not bare, "a number without its range"


@pytest.mark.parametrize("label", CHECKED)
def test_what_does_not_fit_is_refused_by_name(label):
    call, hints = EVERYTHING[label], parameters(EVERYTHING[label])
    first = (
        (None,) if "self" in inspect.signature(call).parameters else ()
    )  # nothing gets as far as to ask it
    right = {name: sample(hint) for name, hint in hints.items()}
    for name, hint in hints.items():
        validated(name, right[name], hint)  # else what follows proves nothing
        for value in (*POOL, *edges(hint)):
            if fits(hint, value) or (hasattr(call, "cache_info") and type(value).__hash__ is None):
                continue
            with pytest.raises((ValueError, TypeError), match=f"^{name} must ") as caught:
                call(*first, **right | {name: value})
            assert len(str(caught.value)) < 400, shown(value)


# -- what no annotation says -------------------------------------------------------------------------------------------

MODEL = models.build("tiny_convnet", width=0.1).eval()
PICTURES, NONE = DIGITS.validation.take(slice(0, 20)), DIGITS.validation.take(slice(0, 0))
LAYER, LOGITS, BYTES, MIRROR = nn.Linear(6, 4), torch.tensor([1.0, 2.0, 3.0]), torch.uint8, torch.Generator()
SPLIT = {"images": PICTURES.images, "labels": PICTURES.labels, "mean": (0.5,) * 3, "std": (0.5,) * 3}
PARTS = {"name": "mine", "classes": tuple("0123456789"), "mean": (0.5,) * 3, "std": (0.5,) * 3}
PARTS |= dict.fromkeys(("train", "validation", "test"), PICTURES)
BATCH = {"student_logits": zeros(2, 3), "teacher_logits": zeros(2, 3), "labels": torch.tensor([0, 2])}
WRONG_LOGITS = (zeros(3), zeros(2, 4), zeros(3, 3), zeros(0, 3))
SWEPT = {
    "accuracy": [0.5, 0.6],
    "recalibrated": 0.6,
    "bytes": 1e6,
    "threshold": 0.1,
    "parameters": 1e6,
    "macs": 1e6,
}
SWEPT["ranks"] = [{"a": 1}, {"a": 2}]
TABLES = {
    name: pd.DataFrame({name: steps, **SWEPT})
    for name, steps in {"sparsity": [0.5, 0.9], "energy": [0.5, 0.9], "bits": [2, 4]}.items()
}
PICTURE = {"logits": LOGITS, "classes": ("a", "b", "c"), "label": 0}
RANKS = {"table": TABLES["energy"], "full": {"a": 3}, "break_even": {"a": 2}}
LAYERS, UNKNOWN = [{}, {"b": 1}], {"skip": [["nowhere"]]}
MEASURED = {"model": MODEL, "split": PICTURES, "calibration": PICTURES}
NETWORK = business.Network("a", latency_ms=1.0, file_mb=1.0, accuracy=0.9, memory_mb=1.0)
WATTS = {"value": lambda one: one.watts - 1, "assumptions": business.Assumptions()}
TIMED = "Inference timings in us: Init: 1, First inference: 2.5, Warmup (avg): 3, Inference (avg): 4"
RAN = "Model executed successfully {} time(s) in {} ms."
SHAPES = {"input_shape": [(), (1, 7, 32, 32)]}

RULES = [  # a function, arguments that are right, and what one of them must not be beside the others
    (Split, SPLIT, {
        "images": [zeros(2, 3, 4, 4), zeros(3, 4, 4, dtype=BYTES), zeros(2, 1, 4, 4, dtype=BYTES)],
        "labels": [zeros(20), zeros(3, dtype=torch.int64), torch.full((20,), -100)],
        "mean": [(0.5, 0.5), (0.5, 0.5, math.nan)], "std": [(0.5, 0.5), (0.5, 0.5, 0.0)],
    }),
    (Data, PARTS, {part: [NONE] for part in ("train", "validation", "test")}),
    (load_data, {"name": "digits"}, {"train_limit": [9, 1298]}),
    (PICTURES.take, {"index": slice(0, 2)}, {
        "index": [None, "x", 1.5, {}, Strange(), torch.tensor([0.5]), torch.tensor([99]), slice("a"), slice(1.5)],
    }),
    (data.normalize, {"images": PICTURES.images, "source": DIGITS}, {"images": [zeros(3, 4, 4), zeros(2, 1, 4, 4)]}),
    (data.augment, {"images": PICTURES.images, "generator": MIRROR}, {"images": [zeros(3, 4)], "shift": [32]}),
    (data.batches, {"split": PICTURES, "batch_size": 5}, {"rank": [1], "hole": [33]}),
    (models.save, {"model": MODEL, "path": "x.safetensors"}, {"dtype": [torch.int8, torch.bool]}),
    (profiling.file_bytes, {"model": MODEL}, {"dtype": [torch.int8]}),
    (training.fit, {"model": MODEL, "data": DIGITS, "epochs": 1, "progress": False}, {
        "cutout": [33], "callbacks": [[training.Callback], [None]],
    }),
    (evaluation.Accuracy, {"correct": 1, "total": 2}, {"correct": [3]}),
    (distillation.soften, {"logits": LOGITS}, {"logits": [torch.tensor(1.0)]}),
    (distillation.temperature_effect, {"logits": LOGITS, "temperature": 2}, {"logits": [zeros(1)]}),
    (distillation.distillation_loss, BATCH, {
        "student_logits": WRONG_LOGITS, "teacher_logits": WRONG_LOGITS,
        "labels": [zeros(2), zeros(3, dtype=torch.int64), torch.tensor([0, 3]), torch.tensor([-100, 0])],
    }),
    (pruning.PolynomialSchedule, {"final_sparsity": 0.5}, {"initial_sparsity": [0.6], "end": [0]}),
    (pruning.masks_for, {"saliency": {"a": LOGITS}, "sparsity": 0.5}, {"saliency": [{"a": torch.tensor([math.nan])}]}),
    *((call, {"model": MODEL}, UNKNOWN) for call in (pruning.prunable, pruning.prune_two_of_four, low_rank.factorizable)),
    (pruning.prune_once, {"model": nn.Linear(4, 4), "sparsity": 0.5}, UNKNOWN),
    (pruning.sweep, {**MEASURED, "sparsities": [0.5]}, UNKNOWN),
    (pruning.sensitivity, {**MEASURED, "ratios": [0.5], "only": ["classifier"]}, {"only": [["nowhere"]]}),
    (pruning.prune_channels, {"model": MODEL, "example": zeros(1, 3, 32, 32), "ratio": 0.5}, {
        "example": [zeros(3), zeros(1, 5, 32, 32)], "ratio": [{}, {"nowhere": 0.5}], **UNKNOWN,
    }),
    (low_rank.energy, {"singular_values": LOGITS}, {"singular_values": [torch.ones(2, 2), -LOGITS, [1e200], [], "x"]}),
    (low_rank.rank_for_energy, {"singular_values": LOGITS, "threshold": 0.5}, {"singular_values": [torch.empty(0)]}),
    (low_rank.split, {"module": LAYER, "rank": 2}, {"rank": [5]}),
    (low_rank.decompose, {"module": LAYER}, {"responses": [(1, 2), (zeros(1, 4), zeros(4))]}),
    (low_rank.analyze, {"model": MODEL}, {"budget": [(0.5, 0.5), [], 0], **SHAPES, **UNKNOWN}),
    (low_rank.factorize, {"model": MODEL}, {"budget": [(0.5, 0.5), []], "ranks": [{"nowhere": 1}], **UNKNOWN}),
    (low_rank.sweep, {**MEASURED, "energies": [0.5]}, UNKNOWN),
    *((call, {"model": MODEL, **more}, SHAPES) for call, more in (
        (profiling.profile, {}), (profiling.count_macs, {}), (profiling.peak_memory, {}),
        (profiling.measure_latency, {"repeats": 3}), (profiling.summarize, {"repeats": 3}),
    )),
    (profiling.compare, {"networks": {"a": MODEL}, "repeats": 3}, {"networks": [{}], "baseline": ["b"]}),
    (quantization.affine_grid, {"low": 0.0, "high": 1.0}, {"high": [-5e-324]}),
    (quantization.quantize, {"values": LOGITS, "scale": 1.0, "zero_point": 0}, {"zero_point": [256]}),
    *((call, {"weight": torch.ones(2, 2), "bits": 4}, {"weight": [torch.tensor(1.0), torch.ones(2, 2, dtype=torch.int64)]})
      for call in (quantization.round_to_grid, quantization.symmetric_grid)),
    (quantization.huffman_lengths, {"counts": {1: 1}}, {"counts": [{}, {1: 0}]}),
    (business.tornado, {**WATTS, "ranges": {"watts": (1, 2)}}, {
        "ranges": [{"watts": ends} for ends in ((), (1,), (1, 2, 3))] + [{"weather": (1, 2)}],
    }),
    (business.break_even, {**WATTS, "name": "watts"}, {"name": ["", "utilization"]}),
    (widgets.temperature_figure, {**PICTURE, "temperature": 2}, {"logits": [zeros(1)], "classes": [(), ("a", "b")], "label": [3]}),
    (widgets.sparsity_figure, {"weight": torch.ones(2, 2), "table": TABLES["sparsity"], "sparsity": 0.5}, {
        "weight": [torch.tensor(1.0), torch.ones(2)], "sparsity": [0.6],
    }),
    (widgets.energy_figure, {**RANKS, "energy": 0.5}, {"full": LAYERS, "break_even": LAYERS, "energy": [0.6]}),
    (widgets.bits_figure, {"weight": torch.ones(4), "table": TABLES["bits"], "bits": 4}, {"weight": [torch.tensor(1.0)], "bits": [3]}),
    (lesson.Lesson("quick", DIGITS).publish, {"figure": Figure(), "name": "x"}, {"name": ["", "../table", "a b", "a/b", "a.csv", "a\0"]}),
    *((call, {"model": MODEL, "path": f"x.{end}"}, {"pictures": [NONE]}) for call, end in (
        (export.to_onnx, "onnx"), (export.to_litert, "tflite"), (export.to_executorch, "pte"), (export.to_coreml, "mlpackage"),
    )),
    (export.to_torchserve, {"model": MODEL, "path": "x.mar"}, {"classes": [(), ("a",)], "pictures": [NONE]}),
    (torchserve.png, {"image": PICTURES.images[0]}, {
        "image": [zeros(3, 4, 4), PICTURES.images, PICTURES.images[0, 0], PICTURES.images[0, :2]],
    }),
    (phone.parse_benchmark_model, {"printed": TIMED}, {
        "printed": ["", "x" * 10**6, *(TIMED.replace("2.5", more) for more in ("2.5.1", "-", "nan")),
                    *(TIMED.replace(": 4", f": {more}") for more in ("4.1.2", "4e100", "4e", "4" * 400))],
    }),
    (phone.parse_executor_runner, {"printed": RAN.format(2, 2.5)}, {
        "printed": ["", "x" * 10**6, *(RAN.format(*more) for more in ((0, 2.5), (-1, 2.5), (2, "1.2.3"), ("9" * 5_000, 1), (2, "9" * 400)))],
    }),
]  # fmt: skip


def named(call):
    return f"{call.__module__.removeprefix('helpers.')}.{call.__qualname__}"


@pytest.mark.parametrize(("call", "right", "bad"), RULES, ids=[named(rule[0]) for rule in RULES])
def test_what_no_annotation_says_is_refused_by_name(call, right, bad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if call.__module__ not in SLOW:
        begun(call(**right))  # else what follows proves nothing
    for place in ("subprocess.Popen", "torch.onnx.export", "torch.export.export", "torch.jit.trace"):
        monkeypatch.setattr(place, Mock(side_effect=AssertionError("it began its work")))
    for name, values in bad.items():
        for value in values:
            with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b") as caught:
                begun(call(**right | {name: value}))
            place = traceback.extract_tb(caught.tb)[-1].filename
            assert Path(place).is_relative_to(HELPERS), f"{shown(value)} ends in {place}"
    plt.close("all")


def begun(found):
    """What only begins when it is asked for, a generator, is asked."""
    return next(found) if inspect.isgenerator(found) else found


def test_a_model_with_too_few_logits_and_one_without_logits():
    few = models.build("tiny_convnet", num_classes=7, width=0.1)
    with pytest.raises(ValueError, match=r"model must put out a logit for each of the 10 classes .*, got 7"):
        training.fit(few, DIGITS, epochs=1, progress=False)
    for wrong in (nn.Identity(), nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.Flatten(0))):
        with pytest.raises(ValueError, match="model must map pictures to logits"):
            evaluation.evaluate(wrong, PICTURES)


def test_weights_that_are_not_finite_are_named():
    model = models.build("tiny_convnet", width=0.1)
    with torch.no_grad():
        model.features[3].weight[0, 0, 0, 0] = math.nan
    for call in (low_rank.analyze, low_rank.factorize):
        with pytest.raises(ValueError, match=r"model must have finite weights, but layer features\.3"):
            call(model)
    with pytest.raises(ValueError, match="module must have finite weights"):
        low_rank.singular_values(model.features[3])
    with pytest.raises(ValueError, match=r"saliency of layer features\.3 must not be NaN"):
        pruning.prune_once(model, 0.5)
