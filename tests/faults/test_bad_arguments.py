"""Every argument of every public function, given what it must not be: ValueError or TypeError that names it, from our own code.

Wrong types, NaN, infinities, too small, too large, empty, huge: fixed values, each of which is tried, and a few drawn from the
ranges. An argument stands in CASES with what it must not be, or in FREE with the reason why anything will do;
test_every_argument_is_tried compares both with the functions themselves.
"""

import contextlib
import functools
import inspect
import math
import re
import traceback
from dataclasses import dataclass, fields, replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ipywidgets import FloatSlider
from torch import nn

from helpers import (
    business,
    checks,
    convolution,
    coreml,
    data,
    distillation,
    evaluation,
    export,
    low_rank,
    models,
    peers,
    phone,
    profiling,
    pruning,
    quantization,
    ranks,
    results,
    series,
    serving,
    sessions,
    storage,
    training,
    widgets,
)  # fmt: skip
from helpers.data import Data, Split

# -- what is bad ------------------------------------------------------------------------------------------------------


class Strange:
    """Nothing knows what to do with it."""

    def __repr__(self):
        raise RuntimeError("it cannot even be shown")


@dataclass(frozen=True)
class Bad:
    """What an argument must not be: each of ``fixed`` is tried, and some that hypothesis draws."""

    fixed: tuple
    drawn: st.SearchStrategy | None = None

    def without(self, value):
        return replace(
            self, fixed=tuple(each for each in self.fixed if type(each) is not type(value) or each != value)
        )

    def plus(self, *values):
        return replace(self, fixed=(*self.fixed, *values))


NAN = (math.nan, math.inf, -math.inf)
NONSENSE = st.text("?! Ä_", max_size=6)  # no name of ours is spelled with these alone
TYPES = ("1", b"1", 1j, [1.0], {"a": 1}, torch.ones(2), nn.Identity, Strange())


def bad(*values, none=False):
    """These values, and None where the argument may not be that."""
    return Bad(values if none else (None, *values))


def number(low=-math.inf, high=math.inf, open_low=False, none=False):
    found = bad(*TYPES, *NAN, True, 10**400, -(10**400), none=none)
    drawn = []
    if low > -math.inf:
        found = found.plus(-1e308, low if open_low else math.nextafter(low, -math.inf))
        drawn.append(st.floats(max_value=low, exclude_max=not open_low, allow_nan=False))
    if high < math.inf:
        found = found.plus(1e308, math.nextafter(high, math.inf))
        drawn.append(st.floats(min_value=high, exclude_min=True, allow_nan=False))
    return replace(found, drawn=st.one_of(drawn) if drawn else None)


def integer(low, high=math.inf, none=False):
    found = bad(*TYPES, *NAN, True, 1.5, 1.0, low - 1, 10**5_000, -(10**5_000), none=none)
    drawn = st.integers(max_value=low - 1)
    return (
        replace(found.plus(high + 1), drawn=drawn | st.integers(min_value=high + 1))
        if high < math.inf
        else replace(found, drawn=drawn)
    )


def choice():
    return replace(bad("", 1, 1.5, math.nan, True, b"x", [], ["x"], Strange()), drawn=NONSENSE)


def instance(none=False):
    return replace(
        bad("x", 1, 1.5, math.nan, True, [], {}, Strange(), nn.Module, none=none), drawn=st.text(max_size=3)
    )


def function():
    return bad("x", 1, math.nan, True, [], {}, Strange())


def names(none=False):
    return bad("features.0", b"x", 1, math.nan, True, [1], [None], ["nowhere"], [[]], Strange(), none=none)


def text():
    return bad(1, 1.5, math.nan, True, b"x", [], ["x"], Strange())


def numbers(low, high):
    return bad(
        "12",
        b"1",
        1,
        math.nan,
        Strange(),
        *([value] for value in (*NAN, low - 1, high + 1, "x", None, True, 1j)),
    )


def shape(none=False):
    sizes = (
        [],
        (0, 3, 32, 32),
        (-1, 3, 32, 32),
        (1.5, 3),
        (1, "3"),
        (2**40, 3, 32, 32),
        (10**400,),
        (None,),
        (1, 7, 32, 32),
    )
    return bad("x", 1, math.nan, *sizes, Strange(), none=none)


def path(suffix=False, none=False):
    return bad(
        1,
        1.5,
        math.nan,
        True,
        b"x",
        [],
        "",
        "a\0.safetensors",
        Strange(),
        *(["model.pt", "model"] if suffix else []),
        none=none,
    )


def tensor(*more, none=False):
    wrong = torch.empty(0), torch.tensor([math.nan, 1.0]), torch.tensor([math.inf])
    return bad("x", 1, [1.0], Strange(), *wrong, *more, none=none)


def table(*columns, none=False):
    """Of a table that must have these columns: no table, and tables that lack one."""
    lacking = [pd.DataFrame({column: [0.5] for column in columns if column != left}) for left in columns]
    return bad("x", 1, [], {}, {"a": [1]}, Strange(), pd.DataFrame, pd.DataFrame(), *lacking, none=none)


# -- every function, with arguments that are right --------------------------------------------------------------------


class Good:
    """Arguments that are right, made once."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = models.build("tiny_convnet", width=0.1).eval()
        self.teacher = models.build("tiny_convnet", width=0.1)
        self.larger = models.build("vgg11", width=0.25)
        self.data = data.load_data("digits", train_limit=64)
        self.split = self.data.validation.take(slice(0, 20))
        self.layer = nn.Linear(6, 4)
        self.logits = torch.tensor([1.0, 2.0, 3.0])
        self.scan = pd.DataFrame({"layer": ["a"], "ratio": [0.0], "accuracy": [1.0]})
        self.network = business.Network("a", latency_ms=1.0, file_mb=1.0, accuracy=0.9, memory_mb=1.0)
        self.assumptions = business.Assumptions()
        self.use = business.UseCase(**dict.fromkeys((field.name for field in fields(business.UseCase)), 1.0))
        columns = ("latency_ms_1_threads", "zip_bytes", "onnx_bytes", "correct")
        measured = {f"{key}{column}": [1.0] for key in ("", "teacher_", "int8_") for column in columns}
        self.runs = pd.DataFrame(
            measured | {"weights": "sha256:0", "seed": 0, "point": "combined", "total": 2, "file": "vgg19"}
        )
        self.formats = pd.DataFrame({"file": ["vgg19"], "format": "ONNX", "peak_mb": 2.0, "baseline_mb": 1.0})
        settings = dict.fromkeys(("student", "teacher", "data"), "a") | {
            "train_pictures": 1,
            "epochs": 1,
            "total": 2,
        }
        self.pairs = pd.DataFrame(
            [settings | {"seed": 0, "arm": arm, "correct": 1} for arm in ("alone", "taught")]
        )
        self.grid = pd.DataFrame([settings | {"seed": 0, "correct": 1, "temperature": 1.0, "alpha": 0.5}])
        scores = {
            "accuracy": [0.5, 0.6],
            "bytes": 1e6,
            "threshold": 0.1,
            "parameters": 1e6,
            "macs": 1e6,
            "ranks": [{"a": 1}, {"a": 2}],
        }
        self.swept = {name: pd.DataFrame({name: steps, **scores}) for name, steps in STEPS.items()}
        self.lesson = series.Lesson("quick", self.data)


STEPS = {"sparsity": [0.5, 0.9], "energy": [0.5, 0.9], "bits": [2, 4]}  # where the sliders can stand


def pictured(value=0.0):
    return plt.figure(figsize=(1, 1))


good = Good()
MODEL, SPLIT, LAYER = {"model": good.model}, {"split": good.split}, {"module": good.layer}
BATCH = {
    "student_logits": torch.zeros(2, 3),
    "teacher_logits": torch.zeros(2, 3),
    "labels": torch.tensor([0, 2]),
}
RANGE = {"open_low": True, "low": 0, "high": 1}
wrong_images = bad(
    "x",
    1,
    torch.zeros(2, 3, 4, 4),
    torch.zeros(3, 4, 4, dtype=torch.uint8),
    torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
)
wrong_labels = bad("x", 1, torch.zeros(20), torch.zeros(3, dtype=torch.int64), torch.full((20,), -100))
pictures = {"images": good.split.images, "labels": good.split.labels, "mean": (0.5,) * 3, "std": (0.5,) * 3}
three = bad("abc", 1, (0.5, 0.5), (0.5, 0.5, math.nan), (0.5, 0.5, "x"), (0.5, 0.5, math.inf))
parts = {
    "name": "mine",
    "classes": tuple("0123456789"),
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
} | dict.fromkeys(("train", "validation", "test"), good.split)
COMBINED = {"runs": good.runs, "point": "combined", "folder": "."}
CHANGE = {"before": good.network, "after": good.network, "assumptions": good.assumptions}
YEARS, FILE = (
    number(0, 100, open_low=True),
    bad(1, [], "", "../table", "a b", "a/b", "table.csv", "a\0", Strange()),
)
OTHER = bad(
    "x",
    1,
    (),
    good.network,
    (good.network,),
    ("a", 1),
    *((good.network, days) for days in (*NAN, -1, "1", None, True)),
    none=True,
)
PICTURE = {"logits": good.logits, "classes": ("a", "b", "c"), "label": 0}
CLASSES = bad("abc", 1, (), ("a", "b"), ("a", "b", 3), Strange())
RANKS = {"table": good.swept["energy"], "full": {"a": 3}, "break_even": {"a": 2}}
LAYERS = bad("x", 1, [], {}, {"b": 1}, {"a": "1"}, {"a": math.nan}, {"a": -1}, Strange())
TAUGHT = {"data": good.data, "loss": distillation.DistillationLoss(good.teacher), "epochs": 1, "lr": 0.1}
FOUND = (
    path().without("").without("a\0.safetensors")
)  # of a file that must be there: those are FileNotFoundErrors
SOME = instance(none=True).plus(good.split.take(slice(0, 0)))
LARGER = {"model": good.larger, "data": good.data, "ratios": {}}
TIMED = "Inference timings in us: Init: 1, First inference: 2.5, Warmup (avg): 3, Inference (avg): 4"
RAN = "Model executed successfully {} time(s) in {} ms."
BUDGET = number(**RANGE, none=True).without([1.0]).plus((0.5, 0.5), [math.nan], [])
rank_options = {
    "scheme": choice(),
    "skip": names(),
    "budget": BUDGET,
    "count": choice(),
    "round_to": integer(1),
}
rank_options |= {"pictures": instance(none=True), "input_shape": shape(none=True)}

OPTIONS = ranks.options("a", good.layer, "channel", torch.ones(4), (1, 1))

CASES = [
    (Split, pictures, {"images": wrong_images, "labels": wrong_labels, "mean": three, "std": three.plus((0.5, 0.5, 0.0))}),
    (Data, parts, {
        "name": bad(1, []), "classes": bad("ab", 1, (1, 2)),
        **dict.fromkeys(("train", "validation", "test"), instance().plus(good.split.take(slice(0, 0)))),
    }),
    (data.load_data, {"name": "digits"}, {
        "name": choice(), "root": path(none=True), "train_limit": integer(10, 1297, none=True), "seed": integer(0, 2**32 - 1),
    }),
    (good.split.take, {"index": slice(0, 2)}, {
        "index": bad("x", 1.5, math.nan, {}, Strange(), torch.tensor([0.5]), torch.tensor([99]), slice("a"), slice(1.5)),
    }),
    (data.normalize, {"images": good.split.images, "source": good.data}, {
        "images": bad("x", 1, torch.zeros(3, 4, 4), torch.zeros(2, 1, 4, 4)), "source": instance(),
    }),
    (data.augment, {"images": good.split.images, "generator": torch.Generator()}, {
        "images": bad("x", 1, torch.zeros(3, 4)), "generator": instance(), "shift": integer(0, 31),
    }),
    (data.cutout, {"images": torch.zeros(2, 3, 8, 6), "generator": torch.Generator(), "size": 2}, {
        "images": bad("x", 1, torch.zeros(3, 4)), "generator": instance(), "size": integer(0, 6),
    }),
    (data.batches, {"split": good.split, "batch_size": 5}, {
        "split": instance(), "batch_size": integer(1), "generator": instance(none=True), "rank": integer(0, 0), "world": integer(1),
        "hole": integer(0, 32),
    }),
    (models.build, {"name": "tiny_convnet", "width": 0.1}, {
        "name": choice(), "num_classes": integer(1, 10**6), "width": number(0, 16, open_low=True),
    }),
    (models.save, {**MODEL, "path": "x.safetensors"}, {
        "model": instance(), "path": path(suffix=True), "storage": choice(),
        "dtype": bad("float16", 1, torch.int8, torch.bool, none=True),
    }),
    (models.load, {"path": "x.safetensors"}, {"path": path()}),
    (training.fit, {**MODEL, "data": good.data, "epochs": 1, "progress": False}, {
        "model": instance(), "data": instance(), "epochs": integer(1), "loss": bad("x", 1, [], none=True),
        "callbacks": bad("x", 1, [1], [None], [training.Callback]), "lr": number(0, open_low=True), "batch_size": integer(1),
        "momentum": number(0, 0.9999), "weight_decay": number(0), "label_smoothing": number(0, 0.9999), "schedule": choice(),
        "warmup": number(0, 0.9999), "precision": choice(), "seed": integer(0, 2**32 - 1), "checkpoint": path(suffix=True, none=True),
        "cutout": integer(0, 32),
    }),
    (training.learning_rate, {"progress": 0.5, "lr": 0.1}, {
        "progress": number(), "lr": number(0), "schedule": choice(), "warmup": number(0, 0.9999),
    }),
    (evaluation.Accuracy, {"correct": 1, "total": 2}, {"correct": integer(0, 2), "total": integer(1)}),
    *((call, {**MODEL, **SPLIT}, {"model": instance(), "split": instance(), "batch_size": integer(1), "precision": choice()})
      for call in (evaluation.predict, evaluation.evaluate)),
    (evaluation.has_bf16, {}, {"device_type": bad(1, b"cpu", Strange())}),
    (evaluation.autocast, {"device": torch.device("cpu"), "precision": "fp32"}, {"device": instance(), "precision": choice()}),
    (convolution.has_tiles, {}, {"device_type": bad(1, b"cpu", Strange())}),
    (convolution.convolve, {"images": torch.zeros(2, 3, 4, 4), "weight": torch.zeros(5, 3, 3, 3)}, {
        "images": bad("x", 1, torch.zeros(3, 4, 4), torch.zeros(2, 3, 2, 2)),
        "weight": bad("x", 1, torch.zeros(5, 3, 3), torch.zeros(5, 2, 3, 3), torch.zeros(5, 3, 5, 5)),
        "bias": bad("x", 1, torch.zeros(4), none=True),
        **{name: bad("ab", 1, (1,), (1, 1, 1), (1, -1), (1, 0.5), (1, math.nan), [1, 1], Strange()) for name in ("stride", "padding")},
    }),
    (evaluation.evaluating, MODEL, {"model": instance()}),
    (distillation.soften, {"logits": good.logits}, {"logits": tensor(torch.tensor(1.0)), "temperature": number(1e-3, 1e6)}),
    (distillation.distillation_loss, BATCH, {
        "student_logits": bad("x", 1, torch.zeros(3), torch.zeros(2, 4), torch.zeros(0, 3)),
        "teacher_logits": bad("x", 1, torch.zeros(3), torch.zeros(3, 3), torch.zeros(2, 0)),
        "labels": bad("x", 1, torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.tensor([0, 3]), torch.tensor([-100, 0])),
        "temperature": number(1e-3, 1e6), "alpha": number(0, 1),
    }),
    (distillation.DistillationLoss, {"teacher": good.teacher}, {
        "teacher": instance(), "temperature": number(1e-3, 1e6), "alpha": number(0, 1),
    }),
    (distillation.temperature_effect, {"logits": good.logits, "temperature": 2}, {
        "logits": tensor(torch.zeros(2, 2), torch.zeros(1)), "temperature": number(1e-3, 1e6),
    }),
    (pruning.PolynomialSchedule, {"final_sparsity": 0.5}, {
        "final_sparsity": number(0, 1).plus(1.0), "initial_sparsity": number(0, 0.5), "begin": number(0, 0.9999),
        "end": number(0, 1, open_low=True), "power": number(0, open_low=True),
    }),
    (pruning.PolynomialSchedule(0.5).__call__, {"progress": 0.5}, {"progress": number()}),
    (pruning.GradualPruner, {"schedule": pruning.PolynomialSchedule(0.5)}, {
        "schedule": bad("x", 1, 0.5, []), "importance": choice(), "scope": choice(), "every": integer(1, none=True),
        "skip": bad("x", b"x", 1, [1], [None], Strange()),
    }),
    (pruning.prunable, MODEL, {"model": instance(), "skip": names()}),
    (pruning.masks_for, {"saliency": {"a": torch.rand(4)}, "sparsity": 0.5}, {
        "saliency": bad("x", 1, [], {"a": 1}, {"a": torch.tensor([math.nan])}), "sparsity": number(0, 1), "scope": choice(),
    }),
    (pruning.prune_once, {"model": nn.Linear(4, 4), "sparsity": 0.5}, {
        "model": instance(), "sparsity": number(0, 1), "scope": choice(), "skip": names(),
    }),
    (pruning.sparsity_table, MODEL, {"model": instance()}),
    (pruning.prune_two_of_four, {"model": nn.Linear(4, 4)}, {"model": instance(), "skip": names()}),
    (pruning.sensitivity, {**MODEL, **SPLIT}, {
        "model": instance(), "split": instance(), "ratios": numbers(0, 1), "unit": choice(), "only": names(none=True),
        "precision": choice(),
    }),
    (pruning.ratios_by_sensitivity, {"scan": good.scan, "tolerance": 0.1}, {
        "scan": table("layer", "ratio", "accuracy"), "tolerance": number(0, 1),
    }),
    (pruning.prune_channels, {**MODEL, "example": torch.zeros(1, 3, 32, 32), "ratio": 0.5}, {
        "model": instance(), "example": tensor(torch.zeros(3), torch.zeros(1, 5, 32, 32)),
        "ratio": number(0, 0.9999).plus({}, {"features.0": math.nan}),
        "importance": choice(), "scope": choice(), "round_to": integer(1), "skip": names(),
    }),
    (pruning.sweep, {**MODEL, **SPLIT, "sparsities": [0.5]}, {
        "model": instance(), "split": instance(), "sparsities": numbers(0, 1), "skip": names(), "precision": choice(),
    }),
    (low_rank.matricize, LAYER, {"module": instance(), "scheme": choice()}),
    (low_rank.singular_values, LAYER, {"module": instance(), "scheme": choice()}),
    (low_rank.energy, {"singular_values": good.logits}, {
        "singular_values": bad("x", 1, Strange(), torch.empty(0), torch.tensor([math.nan]), torch.ones(2, 2),
        torch.tensor([-1.0]), [1e200]),
    }),
    (low_rank.rank_for_energy, {"singular_values": good.logits, "threshold": 0.5}, {
        "singular_values": bad("x", 1, torch.empty(0), torch.tensor([math.inf])), "threshold": number(**RANGE),
    }),
    (low_rank.factorized_size, {**LAYER, "rank": 2}, {"module": instance(), "rank": integer(1), "scheme": choice()}),
    (low_rank.break_even_rank, LAYER, {"module": instance(), "scheme": choice()}),
    (low_rank.decompose, LAYER, {
        "module": instance(), "scheme": choice(), "responses": bad("x", 1, (1, 2), (torch.zeros(1, 4), torch.zeros(4)), none=True),
    }),
    (low_rank.responses, {**MODEL, "pictures": good.split}, {"model": instance(), "pictures": instance(), "skip": names()}),
    (low_rank.analyze, MODEL, {"model": instance(), "energy": number(**RANGE), **rank_options}),
    (low_rank.factorizable, MODEL, {"model": instance(), "skip": names()}),
    (low_rank.split, {**LAYER, "rank": 2}, {"module": instance(), "rank": integer(1, 4), "scheme": choice()}),
    (low_rank.factorize, MODEL, {
        "model": instance(), "energy": number(**RANGE), **rank_options, "input_shape": None,
        "ranks": bad("x", 1, [], {"nowhere": 1}, {"classifier": 0}, {"classifier": 1.5}, {1: 1}, none=True),
    }),
    (low_rank.sweep, {**MODEL, **SPLIT, "calibration": good.split, "energies": [0.5], "budgets": [0.5]}, {
        "model": instance(), "split": instance(), "calibration": instance(), "energies": numbers(0, 1), "budgets": numbers(0, 1), "count": choice(),
        "scheme": choice(), "skip": names(), "pictures": instance(none=True), "precision": choice(),
    }),
    (profiling.profile, MODEL, {"model": instance(), "input_shape": shape(), "repeats": integer(1)}),
    (profiling.count_parameters, MODEL, {"model": instance()}),
    (profiling.count_macs, MODEL, {"model": instance(), "input_shape": shape()}),
    (profiling.file_bytes, MODEL, {"model": instance(), "dtype": bad("float16", torch.int8, none=True), "storage": choice()}),
    (profiling.storage_table, MODEL, {"model": instance(), "dtype": bad("float16", torch.int8, none=True)}),
    (profiling.smallest_file, MODEL, {"model": instance()}),
    (profiling.measure_latency, MODEL, {
        "model": instance(), "input_shape": shape(), "threads": integer(1, 1024, none=True), "repeats": integer(3),
    }),
    (profiling.peak_memory, MODEL, {"model": instance(), "input_shape": shape()}),
    (profiling.summarize, MODEL, {
        "model": instance(), "data": instance(none=True), "input_shape": shape(), "threads": integer(1, 1024, none=True),
        "repeats": integer(3),
    }),
    (profiling.compare_layers, {"before": good.model, "after": good.model, "names": ["classifier"]}, {
        "before": instance(), "after": instance(), "names": names(), "input_shape": shape(),
    }),
    (profiling.compare, {"networks": {"a": good.model}}, {
        "networks": bad("x", 1, [], {}, {"a": 1}, {1: good.model}), "data": instance(none=True),
        "baseline": bad("b", 1, [], none=True), "input_shape": shape(), "threads": integer(1, 1024, none=True),
        "repeats": integer(3),
    }),
    (profiling.time_in_turns, {"runs": {"a": list}}, {"runs": bad("x", 1, [], {"a": 1}, {1: list}), "repeats": integer(1)}),
    (profiling.calls, MODEL, {"model": instance(), "input_shape": shape()}),
    (profiling.hooked, {"layers": {"a": good.layer}, "hook": print}, {"layers": bad("x", 1, [], {"a": 1}), "hook": function()}),
    (ranks.positions, {**MODEL, "layers": low_rank.factorizable(good.model), "input_shape": None}, {
        "model": instance(), "layers": bad("x", 1, [], {"a": 1}), "input_shape": shape(none=True),
    }),
    (ranks.options, {"name": "a", **LAYER, "scheme": "channel", "kept": torch.ones(4), "positions": (1, 1)}, {
        "name": text(), "module": instance(), "scheme": choice(), "kept": tensor(torch.ones(2, 2)), "positions": bad("x", 1, (1,)),
    }),
    (ranks.plan, {"options": OPTIONS, "energy": 0.5, "budget": None, "count": "parameters", "round_to": 1}, {
        "options": instance(), "energy": number(**RANGE),
        **{name: rank_options[name] for name in ("budget", "count", "round_to")},
    }),
    (ranks.by_hand, {"options": OPTIONS, "ranks": {"a": 2}}, {
        "options": instance(), "ranks": bad("x", 1, [], {"nowhere": 1}, {"a": 0}, {"a": 1.5}, {"a": 5}, {1: 1}),
    }),
    (quantization.affine_grid, {"low": 0.0, "high": 1.0}, {
        "low": number(-1e300, 1e300), "high": number(0, 1e300), "bits": integer(1, 16),
    }),
    (quantization.quantize, {"values": good.logits, "scale": 1.0, "zero_point": 0}, {
        "values": tensor(), "scale": number(0, open_low=True), "zero_point": integer(0, 255), "bits": integer(1, 16),
    }),
    (quantization.dequantize, {"integers": torch.tensor([1]), "scale": 1.0, "zero_point": 0}, {
        "integers": tensor(), "scale": number(0, open_low=True), "zero_point": integer(0),
    }),
    (quantization.round_weights, {**MODEL, "bits": 4}, {"model": instance(), "bits": integer(2, 16)}),
    (quantization.round_to_grid, {"weight": torch.ones(2, 2), "bits": 4}, {
        "weight": tensor(torch.tensor(1.0), torch.ones(2, 2, dtype=torch.int64)), "bits": integer(2, 16),
    }),
    (quantization.symmetric_grid, {"weight": torch.ones(2, 2)}, {
        "weight": tensor(torch.tensor(1.0), torch.ones(2, 2, dtype=torch.int64)), "bits": integer(2, 16),
    }),
    (quantization.sweep, {**MODEL, **SPLIT, "bits": [4]}, {
        "model": instance(), "split": instance(), "bits": numbers(2, 16), "precision": choice(),
    }),
    (quantization.entropy, {"values": good.logits}, {"values": tensor()}),
    (quantization.huffman_lengths, {"counts": {1: 1}}, {"counts": bad("x", 1, [], {}, {1: 0}, {1: 1.5}, {1: math.nan})}),
    (storage.pack, {"tensors": {"a": torch.ones(2)}, "storage": "zip"}, {"storage": choice()}),
    (storage.unpack, {"written": {}, "packed": {}, "storage": "zip"}, {"storage": choice()}),
    (business.Network, vars(good.network), {
        "name": text(), "latency_ms": number(0, 1e15, open_low=True), "file_mb": number(0, 1e15, open_low=True), "accuracy": number(0, 1),
        "memory_mb": number(0, open_low=True), "process_mb": number(0, open_low=True, none=True),
    }),
    (business.measured, COMBINED, {"runs": table("seed", "point"), "point": choice(), "folder": path()}),
    (business.process_mb, {"formats": good.formats, "file": "vgg19"}, {
        "formats": table("file", "format", "peak_mb", "baseline_mb"), "file": text(), "kind": text(),
    }),
    (business.networks, COMBINED, {
        "runs": table("seed", "point"), "point": choice(), "formats": table("file", "format", "peak_mb", "baseline_mb", none=True),
        "folder": path(),
    }),
    (business.teacher_int8, {"shipped": good.runs}, {
        "shipped": table("file"), "formats": table("file", "format", "peak_mb", "baseline_mb", none=True),
    }),
    (business.Assumptions, {}, {
        field.name: number(**RANGE) if field.name == "utilization" else number(0, 1e15) for field in fields(business.Assumptions)
    }),
    *((call, {"network": good.network, "assumptions": good.assumptions}, {"network": instance(), "assumptions": instance()})
      for call in (business.energy_joules, business.cost_per_year, business.processors)),
    *((call, CHANGE, {"before": instance(), "after": instance(), "assumptions": instance(), "years": YEARS} | more)
      for call, more in ((business.saving, {}), (business.worth_it, {"accuracy_lost": number(0, 1)}))),
    (business.tornado, {"value": lambda one: one.watts, "assumptions": good.assumptions, "ranges": {"watts": (1, 2)}}, {
        "value": function(), "assumptions": instance(),
        "ranges": bad("x", 1, [], Strange(), *({"watts": ends} for ends in ("12", 1, (), (1,), (1, 2, 3), (1, math.nan), (1, "2"))),
        {"weather": (1, 2)}, {1: (1, 2)}),
    }),
    (business.break_even, {"value": lambda one: one.watts - 1, "assumptions": good.assumptions, "name": "watts"}, {
        "value": function(), "assumptions": instance(), "name": choice().plus("utilization"),
    }),
    (business.UseCase, vars(good.use), {
        field.name: number(0, 1e15, open_low=field.name not in ("watts", "inferences_per_device_per_day", "updates_per_year"))
        for field in fields(business.UseCase)
    }),
    (good.use.service, {}, {"others": bad(1), "utilization": number(**RANGE)}),
    (business.on_device, {"network": good.network, "times_slower": 2}, {
        "network": instance(), "times_slower": number(0, open_low=True),
    }),
    *((call, {"network": good.network, "use": good.use}, {"network": instance(), "use": instance()})
      for call in (business.needs, business.misses)),
    (business.verdict, CHANGE | {"use": good.use}, {
        "before": instance(), "after": instance(), "use": instance(), "assumptions": instance(), "years": YEARS,
        "accuracy_lost": number(0, 1),
    }),
    (business.budgets, {"candidates": {"a": good.network}, "uses": {"b": good.use}}, {
        "candidates": bad("x", 1, [], {"a": 1}, {"a": good.use}, Strange()), "uses": bad("x", 1, [], {"a": 1}, Strange()),
    }),
    (results.provenance, {}, {"seed": integer(0, none=True)}),
    (results.describe_device, {}, {"device": bad(1, "", "x", "gpu", "cpu:x", b"cpu", [], math.nan, Strange())}),
    (results.read, {"name": "table"}, {"name": FILE}),
    (results.append, {"name": "table", "new": {"a": 1}}, {"name": FILE, "new": bad("x", 1, [], {}, {1: 2}, Strange())}),
    (results.finished, {"name": "table", "row": {"a": 1}}, {"name": FILE, "row": bad("x", 1, [], {1: 2})}),
    (results.accuracy, {"run": good.runs.iloc[0]}, {
        "run": bad("x", 1, [], {}, {"correct": 1, "total": 2}, *(pd.Series(one) for one in (
            {"correct": 1}, {"correct": math.nan, "total": 2}, {"correct": 1, "total": math.inf}, {"correct": "1", "total": 2},
        ))), "key": choice(),
    }),
    (results.lineage, {"runs": good.runs}, {"runs": table("weights", "teacher_correct", "total")}),
    (results.grid, {"runs": good.grid}, {"runs": table(*good.grid).plus(good.grid[:0])}),
    (models.fingerprint, {"path": "x.safetensors"}, {"path": path()}),
    (results.pairs, {"runs": good.pairs}, {"runs": table(*good.pairs).plus(good.pairs[:0])}),
    (results.write_readme, {"path": "page.md"}, {"path": path().plus("table.csv")}),
    (widgets.temperature_figure, PICTURE | {"temperature": 2.0}, {
        "logits": tensor(torch.zeros(2, 2), torch.zeros(1)), "temperature": number(1, 20), "classes": CLASSES, "label": integer(0, 2),
    }),
    (widgets.temperature_slider, PICTURE, {
        "logits": tensor(torch.zeros(2, 2), torch.zeros(1)), "classes": CLASSES, "label": integer(0, 2), "start": number(1, 20),
    }),
    (widgets.sparsity_figure, {"weight": torch.ones(2, 2), "table": good.swept["sparsity"], "sparsity": 0.5}, {
        "weight": tensor(torch.tensor(1.0), torch.ones(2)), "table": table("sparsity"), "sparsity": number(0, 1).plus(0.6),
    }),
    (widgets.sparsity_slider, {"weight": torch.ones(2, 2), "table": good.swept["sparsity"]}, {
        "weight": tensor(torch.tensor(1.0), torch.ones(2)), "table": table("sparsity"), "start": number(0, 1).plus(0.6),
    }),
    (widgets.energy_figure, RANKS | {"energy": 0.5}, {
        "table": table("energy"), "full": LAYERS, "break_even": LAYERS, "energy": number(0, 1).plus(0.6),
    }),
    (widgets.energy_slider, RANKS, {
        "table": table("energy"), "full": LAYERS, "break_even": LAYERS, "start": number(0, 1).plus(0.6),
    }),
    (widgets.bits_figure, {"weight": torch.ones(4), "table": good.swept["bits"], "bits": 4}, {
        "weight": tensor(torch.tensor(1.0)), "table": table("bits"), "bits": integer(2, 16).plus(3),
    }),
    (widgets.bits_slider, {"weight": torch.ones(4), "table": good.swept["bits"]}, {
        "weight": tensor(torch.tensor(1.0)), "table": table("bits"), "start": integer(2, 16).plus(3),
    }),
    (widgets.figure_slider, {"slider": FloatSlider(), "draw": pictured}, {"slider": instance(), "draw": function()}),
    (widgets.figure_sliders, {"sliders": {"value": FloatSlider()}, "draw": pictured}, {
        "sliders": bad("x", 1, [], [FloatSlider()], {"a": 1}, {1: FloatSlider()}, Strange()), "draw": function(),
    }),
    (widgets.png, {"figure": pictured()}, {"figure": instance()}),
    (widgets.cost_figure, CHANGE, {
        "before": instance(), "after": instance(), "assumptions": instance(), "years": YEARS, "other": OTHER, "chosen": bad(1),
        "utilization": number(**RANGE), "price_per_gb": number(0, 1e15),
    }),
    (widgets.cost_sliders, CHANGE, {
        "before": instance(), "after": instance(), "assumptions": instance(), "years": YEARS, "other": OTHER,
    }),
    (series.Lesson, {"budget": "quick", "data": good.data}, {"budget": choice(), "data": instance()}),
    (good.lesson.publish, {"figure": pictured(), "name": "x"}, {"figure": instance(), "name": FILE}),
    (series.open_lesson, {}, {"budget": bad(1, 1.5, "x", "QUICK", b"quick", ["quick"], math.nan, Strange(), none=True)}),
    (series.run, {"only": "00"}, {"budget": choice().without(None), "only": text().plus("?")}),
    (peers.train, MODEL | TAUGHT, {
        "model": instance(), "data": instance(), "loss": bad("x", 1, [], none=True), "epochs": integer(1),
        "lr": number(0, open_low=True), "callbacks": bad("x", 1, [1], [None], [training.Callback]),
    }),
    (peers.in_order, {"order": peers.ORDERS[0], "model": good.larger} | TAUGHT, {
        "order": choice().plus("factorize", "prune, prune"), "model": instance(), "data": instance(), "loss": function(),
        "epochs": integer(1), "lr": number(0, open_low=True),
    }),
    (peers.on_grid, MODEL, {"model": instance(), "bits": integer(2, 16)}),
    (peers.settled, {"model": nn.Linear(2, 2)}, {"model": instance()}),
    *((call, {"model": nn.Sequential(nn.Linear(2, 2)), "data": good.data, "ratios": {}}, {"model": instance()})
      for call in (peers.torch_prune, peers.gradual_pruner)),
    *((call, {"model": good.model, "data": good.data, "ratios": {"features.0": 0.5}}, {
        "model": instance(), "ratios": bad("x", 1, [], 0.5, {"nowhere": 0.5}, {1: 0.5},
            *({"features.0": share} for share in (*NAN, -0.1, 1.1, "x"))),
      }) for call in (peers.channels_by_sensitivity, peers.torch_pruning_uniform)),
    (peers.low_rank_by_pictures, LARGER, {"model": instance(), "data": instance()}),
    (peers.tensorly_tucker, LARGER, {"model": instance().plus(nn.Linear(4, 4))}),
    *((call, {"path": "x.tflite", "runner": "benchmark_model"}, {
        "path": path(suffix=True), "runner": path(), "threads": integer(1), "repeats": integer(1),
        "device": bad(1, b"x", [], Strange(), none=True),
      }) for call in (phone.phone_commands, phone.run_on_phone)),
    (sessions.thread_count, {"threads": 1}, {"threads": integer(1, none=True)}),
    *((call, {"path": name}, {"path": FOUND, "threads": integer(1, none=True)}) for call, name in (
        (sessions.onnx_session, "x.onnx"), (sessions.litert_session, "x.tflite"), (sessions.executorch_session, "x.pte"),
    )),
    (sessions.open_session, {"path": "x.onnx"}, {"path": FOUND.plus("x.mar", "x", ""), "threads": integer(1, none=True)}),
    (sessions.litert_scales, {"path": "x.tflite"}, {"path": FOUND.plus("x.onnx", "x", "")}),
    (sessions.existing, {"path": "x.onnx"}, {"path": FOUND}),
    *((call, {**MODEL, "path": f"y.{end}", "pictures": good.split}, {
        "model": instance(), "path": path(suffix=True), "pictures": SOME, **more,
      }) for call, end, more in (
        (export.to_onnx, "onnx", {}), (export.to_executorch, "pte", {}), (export.to_litert, "tflite", {"calibration": SOME}),
        (coreml.to_coreml, "mlpackage", {"weights": choice(), "agreement": number(0, 1, none=True)}),
        (serving.to_torchserve, "mar", {"classes": names(none=True).plus((), ("a",), "ten digits")}),
    )),
    (export.quantize_onnx, {"source": "x.onnx", "path": "y.onnx", "calibration": good.split}, {
        "source": FOUND.plus("x.pte", "x", ""), "path": path(suffix=True), "calibration": SOME, "pictures": SOME,
        "agreement": number(0, 1, none=True),
    }),
    (export.to_litert, {**MODEL, "path": "y.tflite", "pictures": good.split, "int8": True}, {
        "calibration": SOME, "agreement": number(0, 1, none=True),
    }),
    (export.zipped_bytes, {"path": "x.onnx"}, {"path": path()}),
    *((call, {"path": "x.onnx", "pictures": good.split}, {
        "path": FOUND, "pictures": SOME.plus(None), "threads": integer(1, none=True), "batch_size": integer(1),
      }) for call in (export.logits, export.onnx_logits)),
    *((call, {"path": "x.onnx", "split": good.split}, {"path": FOUND, "split": SOME.plus(None)})
      for call in (export.accuracy, export.onnx_accuracy)),
    *((call, {"path": "x.onnx", "repeats": 3}, {
        "path": FOUND, "threads": integer(1, none=True), "batch_size": integer(1), "repeats": integer(3),
      }) for call in (export.latency, export.onnx_latency)),
    (export.peak_memory, {"path": "x.onnx"}, {"path": FOUND.plus("x.mar", "x", "")}),
    (export.onnx_profile, {"path": "x.onnx", "repeats": 2}, {
        "path": FOUND.plus("x.pte", "x", ""), "threads": integer(1, none=True), "batch_size": integer(1), "repeats": integer(1),
        "by": choice(),
    }),
    (coreml.coreml_logits, {"path": "y.mlpackage", "pictures": good.split}, {"path": path(suffix=True), "pictures": SOME.plus(None)}),
    (serving.serving, {"path": "x.mar"}, {"path": path(suffix=True), "seconds": number(0, open_low=True)}),
    (serving.archive_labels, {"path": "x.mar", "pictures": good.split}, {"path": path(suffix=True), "pictures": SOME.plus(None)}),
    (serving.unpacked_handler, {"path": "x.mar"}, {"path": path()}),
    (serving.png, {"image": good.split.images[0]}, {
        "image": bad("x", 1, [], Strange(), torch.zeros(3, 4, 4), good.split.images, good.split.images[0, 0], good.split.images[0, :2]),
    }),
    (serving.Server("http://127.0.0.1:9/predictions/x", "secret").post, {"picture": b"x"}, {
        "picture": bad("x", 1, [], Strange()), "token": bad(1, b"x", [], Strange(), none=True),
    }),
    (phone.parse_benchmark_model, {"printed": TIMED}, {
        "printed": text().plus("", "x" * 10**6, TIMED.replace("2.5", "2.5.1"), TIMED.replace("2.5", "-"), TIMED.replace("2.5", "nan"),
        *(TIMED.replace(": 4", f": {more}") for more in ("4.1.2", "4e100", "4e", "4" * 400))),
    }),
    (phone.parse_executor_runner, {"printed": RAN.format(2, 2.5)}, {
        "printed": text().plus("", "x" * 10**6, RAN.format(0, 2.5), RAN.format(-1, 2.5), RAN.format(2, "1.2.3"),
                               RAN.format("9" * 5_000, 1), RAN.format(2, "9" * 400)),
    }),
]  # fmt: skip

FLAGS = "any value counts as true or false, as everywhere in Python"
FREE = {
    "Split.mirror": FLAGS, "data.augment.mirror": FLAGS, "data.batches.augmented": FLAGS, "training.fit.augment": FLAGS,
    "training.fit.compile": FLAGS, "training.fit.progress": FLAGS, "profiling.profile.latency": FLAGS,
    "quantization.round_weights.per_channel": FLAGS, "quantization.round_to_grid.per_channel": FLAGS,
    "quantization.sweep.per_channel": FLAGS,
    "quantization.symmetric_grid.per_channel": FLAGS,
    "Data.mean": "taken from the data's own pictures", "Data.std": "taken from the data's own pictures",
    **dict.fromkeys(("ranks.sides.module", "ranks.sides.scheme", "ranks.known.argument", "ranks.known.names", "ranks.known.layers"),
                    "checked by its callers"),
    "storage.pack.tensors": "a model's own", "storage.unpack.written": "from a file: test_hostile_files",
    "storage.unpack.packed": "likewise",
    "models.read_safetensors.path": "checked by its callers", "models.write_safetensors.path": "checked by its callers",
    "models.write_safetensors.tensors": "a model's own", "models.write_safetensors.metadata": "its callers'",
    "models.digest.tensors": "a model's own", "models.digest.text": "its callers'",
    "sessions.needs.package": "one of PACKAGES, its callers'", "sessions.existing.suffixes": "its callers'",
    "sessions.existing.name": "its callers'", "export.to_litert.int8": FLAGS,
    "series.run.write": FLAGS, "series.Lesson.pick": "returns one of its arguments as it is",
    **dict.fromkeys(
        ("peers.torch_prune.data", "peers.torch_prune.ratios", "peers.gradual_pruner.data", "peers.gradual_pruner.ratios",
         "peers.channels_by_sensitivity.data", "peers.torch_pruning_uniform.data", "peers.low_rank_by_pictures.ratios",
         "peers.tensorly_tucker.data", "peers.tensorly_tucker.ratios"), "not used: all of TASKS are called alike",
    ),
}  # fmt: skip
BUILT_BY_US = {
    "Server",
    "ConvNet",
    "ResidualBlock",
    "Run",
    "Callback",
    "Factors",
    "DataError",
    "CheckpointError",
    "SmallMaps",
}
WHOLE = (
    data, models, training, evaluation, convolution, distillation, pruning, low_rank, ranks, profiling, quantization, storage, business, results,
    widgets, series, peers, phone, sessions, export, coreml, serving,
)  # fmt: skip
# plotting is not here: its functions draw tables that our own functions made
ELSEWHERE = {  # slow, or in need of a phone or of an exported file: other tests call them with what is right
    series.run, phone.run_on_phone, sessions.litert_session, sessions.litert_scales, sessions.executorch_session, export.to_onnx,
    export.to_executorch, export.to_litert, export.quantize_onnx, export.peak_memory, coreml.to_coreml, coreml.coreml_logits,
    serving.to_torchserve, serving.serving, serving.archive_labels, serving.unpacked_handler,
    serving.Server.post,
}  # fmt: skip


def label(function):
    if inspect.isclass(function):
        return function.__name__
    return f"{function.__module__.removeprefix('helpers.')}.{function.__qualname__}".replace(
        "pruning.PolynomialSchedule.", ""
    )


PAIRS = [
    (call, right, name, wrong)
    for call, right, arguments in CASES
    for name, wrong in arguments.items()
    if wrong is not None
]
DRAWN = [pair for pair in PAIRS if pair[-1].drawn is not None]


def named(pairs):
    return {
        "argnames": ("call", "right", "name", "wrong"),
        "argvalues": pairs,
        "ids": [f"{label(one[0])}-{one[2]}" for one in pairs],
    }


def run(call, arguments):
    """Call it, and begin what only begins when it is asked for: a generator, a context."""
    try:
        found = call(arguments["name"], arguments["new"]) if call is results.append else call(**arguments)
    except ImportError as error:  # a package that one target needs
        pytest.skip(str(error))
    if inspect.isgenerator(found):
        next(found)
    elif hasattr(found, "__enter__"):
        with found:
            pass


def complaint(call, right, name, value):
    """Run it with a bad value; return "" if our own code says which argument is bad, else what happened."""
    try:
        run(call, {**right, name: value})
    except (ValueError, TypeError) as error:
        place = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if place.parent != Path(checks.__file__).parent:
            return f"raised in {place}: {error}"
        return "" if re.search(rf"\b{name}\b", str(error)) else f"{name} is not in: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "was taken"


@pytest.fixture(autouse=True)
def _nothing_begins(request, tmp_path, monkeypatch):
    """Files are looked for and written in a folder of the test's own; and what is refused has begun no export and no process."""
    (tmp_path / "table.csv").write_text("a\n1\n")
    (tmp_path / "teacher.csv").write_text("model,epochs,cycle,device,correct,total\nvgg19,1,1,a,1,2\n")
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setenv("NNC_DATA", "digits")
    monkeypatch.delenv("NNC_BUDGET", raising=False)
    for name in ("vgg19_combined.safetensors", "x.tflite", "x.pte", "x.mar"):
        (tmp_path / name).touch()
    with contextlib.suppress(ImportError):
        (tmp_path / "x.onnx").write_bytes(flattening())
    monkeypatch.chdir(tmp_path)
    if "refused" in request.node.name:
        for place in ("subprocess.Popen", "torch.onnx.export", "torch.export.export", "torch.jit.trace"):
            monkeypatch.setattr(place, began)


@functools.cache
def flattening():
    """The smallest network in ONNX: it hands on the pixels."""
    import onnx

    images, logits = (
        onnx.helper.make_tensor_value_info(name, 1, ["batch", *sizes])
        for name, sizes in (("images", (3, 32, 32)), ("logits", (3072,)))
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Flatten", ["images"], ["logits"])], "flattening", [images], [logits]
    )
    return onnx.helper.make_model(
        graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]
    ).SerializeToString()


def began(*arguments, **options):
    raise AssertionError("it began its work, with a bad argument")


@pytest.mark.parametrize(**named(PAIRS))
def test_each_bad_value_is_refused(call, right, name, wrong):
    said = [(checks._shown(value), complaint(call, right, name, value)) for value in wrong.fixed]
    assert not [one for one in said if one[1]]


@pytest.mark.parametrize(**named(DRAWN))
@given(drawn=st.data())
@settings(
    max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
def test_what_is_drawn_is_refused(call, right, name, wrong, drawn):
    assert not complaint(call, right, name, drawn.draw(wrong.drawn))


RIGHT = [(call, right) for call, right, _ in CASES if getattr(call, "__func__", call) not in ELSEWHERE]


@pytest.mark.parametrize(("call", "right"), RIGHT, ids=[label(call) for call, _ in RIGHT])
def test_the_right_arguments_are_right(call, right, tmp_path):
    """Otherwise the tests above would prove nothing."""
    (tmp_path / "page.md").write_text("\n".join(results.MARKS))
    if call in (models.load, models.fingerprint):
        models.save(good.model, tmp_path / "x.safetensors")
    options = {"repeats": 3} if call in (profiling.compare, profiling.summarize) else {}
    run(call, right | options)
    plt.close("all")


def test_every_argument_is_tried():
    tried = {f"{label(call)}.{name}" for call, _, arguments in CASES for name in arguments} | set(FREE)
    missing = []
    for module in WHOLE:
        for name, thing in vars(module).items():
            if (
                name.startswith("_")
                or getattr(thing, "__module__", "") != module.__name__
                or name in BUILT_BY_US
            ):
                continue
            if inspect.isfunction(thing) or inspect.isclass(thing) or hasattr(thing, "__wrapped__"):
                missing += [
                    f"{label(thing)}.{one}"
                    for one in inspect.signature(thing).parameters
                    if f"{label(thing)}.{one}" not in tried
                ]
    assert not missing


@pytest.mark.parametrize(
    "value", [10**400, -(10**5_000), 1e308, -1e308, 2**53 + 1, Strange(), math.nan, "x" * 10**6], ids=range(8)
)
def test_the_checks_themselves_survive_anything(value):
    for check in (
        lambda: checks.number("it", value, 0, 1), lambda: checks.integer("it", value, 0, 1), lambda: checks.choice("it", value, "ab"),
        lambda: checks.names("it", value), lambda: checks.shape("it", [value]),
        lambda: checks.tensor("it", value), lambda: checks.instance("it", value, bytes), lambda: checks.numbers("it", [value], 0, 1),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match="it must") as caught:
            check()
        assert len(str(caught.value)) < 300


def test_a_model_with_too_few_logits_and_one_without_logits(tmp_path):
    with pytest.raises(
        ValueError, match=r"model must put out a logit for each of the 10 classes that data\.train has, got 7"
    ):
        training.fit(
            models.build("tiny_convnet", num_classes=7, width=0.1), good.data, epochs=1, progress=False
        )
    for wrong in (nn.Identity(), nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.Flatten(0))):
        with pytest.raises(ValueError, match="model must map pictures to logits"):
            evaluation.evaluate(wrong, good.split)


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
