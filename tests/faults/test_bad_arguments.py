"""Every argument of every public function, given what it must not be: ValueError or TypeError that names it, from our own code.

What is drawn: wrong types, NaN, infinities, too small, too large, empty, huge. An argument stands in CASES with what it allows, or in
FREE with the reason why anything will do; test_every_argument_is_tried compares both with the functions themselves.
"""

import inspect
import math
import re
import traceback
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import (
    business,
    checks,
    data,
    distillation,
    evaluation,
    low_rank,
    models,
    profiling,
    pruning,
    quantization,
    results,
    storage,
    training,
)  # fmt: skip
from helpers.data import Data, Split

# -- what is bad ------------------------------------------------------------------------------------------------------


class Strange:
    """Nothing knows what to do with it."""

    def __repr__(self):
        raise RuntimeError("it cannot even be shown")


NAN = (math.nan, math.inf, -math.inf)
NONSENSE = st.text("?! Ä_", max_size=6)  # no name of ours is spelled with these alone
TYPES = ("1", b"1", 1j, [1.0], {"a": 1}, torch.ones(2), nn.Identity, Strange())


def _sampled(*values, none=False):
    return st.sampled_from(values if none else (None, *values))


def number(low=-math.inf, high=math.inf, open_low=False, none=False):
    bad = [_sampled(*TYPES, *NAN, True, none=none)]
    if low > -math.inf:
        bad.append(st.floats(max_value=low, exclude_max=not open_low, allow_nan=False))
    if high < math.inf:
        bad.append(st.floats(min_value=high, exclude_min=True, allow_nan=False) | st.just(10**400))
    return st.one_of(bad)


def integer(low, high=math.inf, none=False):
    above = st.integers(min_value=high + 1) if high < math.inf else st.just(10**5_000)
    return st.one_of(_sampled(*TYPES, *NAN, True, 1.5, none=none), st.integers(max_value=low - 1), above)


def choice():
    return st.one_of(NONSENSE, _sampled(1, 1.5, [], Strange()))


def instance(none=False):
    return st.one_of(_sampled("x", 1, 1.5, [], {}, Strange(), nn.Module, none=none), st.text(max_size=3))


def names(none=False):
    return st.one_of(_sampled("features.0", b"x", 1, math.nan, [1], [None], ["nowhere"], [[]], Strange(), none=none))


def numbers(low, high):
    inside = [[value] for value in (*NAN, low - 1, high + 1, "x", None, True, 1j)]
    return _sampled("12", b"1", 1, math.nan, Strange(), *inside)


def shape(none=False):
    bad = (
        "x",
        1,
        math.nan,
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
    return _sampled(*bad, Strange(), none=none)


def path(suffix=False, none=False):
    bad = [1, 1.5, b"x", [], "", "a\0.safetensors", Strange(), *(["model.pt", "model"] if suffix else [])]
    return _sampled(*bad, none=none)


def tensor(*more, none=False):
    return _sampled("x", 1, [1.0], Strange(), torch.empty(0), torch.tensor([math.nan, 1.0]), torch.tensor([math.inf]), *more, none=none)


# -- every function, with arguments that are right --------------------------------------------------------------------


class Good:
    """Arguments that are right, made once."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = models.build("tiny_convnet", width=0.1).eval()
        self.data = data.load_data("digits", train_limit=64)
        self.split = self.data.validation.take(slice(0, 20))
        self.layer = nn.Linear(6, 4)
        self.logits = torch.tensor([1.0, 2.0, 3.0])
        self.scan = pd.DataFrame({"layer": ["a"], "ratio": [0.0], "accuracy": [1.0]})
        self.network = business.Network(**{"name": "a", "latency_ms": 1.0, "file_mb": 1.0, "accuracy": 0.9} | _memory())
        self.assumptions = business.Assumptions()


def _memory():
    return {"memory_mb": 1.0} if "memory_mb" in inspect.signature(business.Network).parameters else {}


good = Good()
MODEL, SPLIT, LAYER = {"model": good.model}, {"split": good.split}, {"module": good.layer}
BATCH = {"student_logits": torch.zeros(2, 3), "teacher_logits": torch.zeros(2, 3), "labels": torch.tensor([0, 2])}
RANGE = {"open_low": True, "low": 0, "high": 1}
wrong_images = _sampled(
    "x", 1, torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
)
wrong_labels = _sampled("x", 1, torch.zeros(20), torch.zeros(3, dtype=torch.int64), torch.full((20,), -100))
pictures = {"images": good.split.images, "labels": good.split.labels, "mean": (0.5,) * 3, "std": (0.5,) * 3}
three = _sampled("abc", 1, (0.5, 0.5), (0.5, 0.5, math.nan), (0.5, 0.5, "x"), (0.5, 0.5, math.inf))
parts = {"name": "mine", "classes": tuple("0123456789"), "mean": (0.5,) * 3, "std": (0.5,) * 3} | dict.fromkeys(
    ("train", "validation", "test"), good.split
)
rank_options = {"scheme": choice(), "skip": names(), "budget": number(**RANGE, none=True), "count": choice(), "round_to": integer(1)}
rank_options |= {"pictures": instance(none=True), "input_shape": shape(none=True)}

CASES = [
    (Split, pictures, {"images": wrong_images, "labels": wrong_labels, "mean": three, "std": st.one_of(three, st.just((0.5, 0.5, 0.0)))}),
    (Data, parts, {
        "name": _sampled(1, []), "classes": _sampled("ab", 1, (1, 2)),
        **dict.fromkeys(("train", "validation", "test"), st.one_of(instance(), st.just(good.split.take(slice(0, 0))))),
    }),
    (data.load_data, {"name": "digits"}, {
        "name": choice(), "root": path(none=True), "train_limit": integer(10, 1297, none=True), "seed": integer(0, 2**32 - 1),
    }),
    (data.normalize, {"images": good.split.images, "source": good.data}, {
        "images": _sampled("x", 1, torch.zeros(3, 4, 4), torch.zeros(2, 1, 4, 4)), "source": instance(),
    }),
    (data.augment, {"images": good.split.images, "generator": torch.Generator()}, {
        "images": _sampled("x", 1, torch.zeros(3, 4)), "generator": instance(), "shift": integer(0, 31),
    }),
    (data.batches, {"split": good.split, "batch_size": 5}, {
        "split": instance(), "batch_size": integer(1), "generator": instance(none=True), "rank": integer(0, 0), "world": integer(1),
    }),
    (models.build, {"name": "tiny_convnet", "width": 0.1}, {
        "name": choice(), "num_classes": integer(1, 10**6), "width": number(0, 16, open_low=True),
    }),
    (models.save, {**MODEL, "path": "x.safetensors"}, {
        "model": instance(), "path": path(suffix=True), "storage": choice(),
        "dtype": _sampled("float16", 1, torch.int8, torch.bool, none=True),
    }),
    (models.load, {"path": "x.safetensors"}, {"path": path()}),
    (training.fit, {**MODEL, "data": good.data, "epochs": 1, "progress": False}, {
        "model": instance(), "data": instance(), "epochs": integer(1), "loss": _sampled("x", 1, [], none=True),
        "callbacks": _sampled("x", 1, [1], [None], [training.Callback]), "lr": number(0, open_low=True), "batch_size": integer(1),
        "momentum": number(0, 0.9999), "weight_decay": number(0), "label_smoothing": number(0, 0.9999), "schedule": choice(),
        "warmup": number(0, 0.9999), "precision": choice(), "seed": integer(0, 2**32 - 1), "checkpoint": path(suffix=True, none=True),
    }),
    (training.learning_rate, {"progress": 0.5, "lr": 0.1}, {
        "progress": number(), "lr": number(0), "schedule": choice(), "warmup": number(0, 0.9999),
    }),
    (evaluation.Accuracy, {"correct": 1, "total": 2}, {"correct": integer(0, 2), "total": integer(1)}),
    *((call, {**MODEL, **SPLIT}, {"model": instance(), "split": instance(), "batch_size": integer(1), "precision": choice()})
      for call in (evaluation.predict, evaluation.evaluate)),
    (evaluation.has_bf16, {}, {"device_type": _sampled(1, b"cpu", Strange())}),
    (evaluation.autocast, {"device": torch.device("cpu"), "precision": "fp32"}, {"device": instance(), "precision": choice()}),
    (evaluation.evaluating, MODEL, {"model": instance()}),
    (distillation.soften, {"logits": good.logits}, {"logits": tensor(torch.tensor(1.0)), "temperature": number(1e-3, 1e6)}),
    (distillation.distillation_loss, BATCH, {
        "student_logits": _sampled("x", 1, torch.zeros(3), torch.zeros(2, 4), torch.zeros(0, 3)),
        "teacher_logits": _sampled("x", 1, torch.zeros(3), torch.zeros(3, 3), torch.zeros(2, 0)),
        "labels": _sampled("x", 1, torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.tensor([0, 3]), torch.tensor([-100, 0])),
        "temperature": number(1e-3, 1e6), "alpha": number(0, 1),
    }),
    (distillation.DistillationLoss, {"teacher": good.model}, {
        "teacher": instance(), "temperature": number(1e-3, 1e6), "alpha": number(0, 1),
    }),
    (distillation.temperature_effect, {"logits": good.logits, "temperature": 2}, {
        "logits": tensor(torch.zeros(2, 2), torch.zeros(1)), "temperature": number(1e-3, 1e6),
    }),
    (pruning.PolynomialSchedule, {"final_sparsity": 0.5}, {
        "final_sparsity": st.one_of(number(0, 1), st.just(1.0)), "initial_sparsity": number(0, 0.5), "begin": number(0, 0.9999),
        "end": number(0, 1, open_low=True), "power": number(0, open_low=True),
    }),
    (pruning.PolynomialSchedule(0.5).__call__, {"progress": 0.5}, {"progress": number()}),
    (pruning.GradualPruner, {"schedule": pruning.PolynomialSchedule(0.5)}, {
        "schedule": _sampled("x", 1, 0.5, []), "importance": choice(), "scope": choice(), "every": integer(1, none=True),
        "skip": _sampled("x", b"x", 1, [1], [None], Strange()),
    }),
    (pruning.prunable, MODEL, {"model": instance(), "skip": names()}),
    (pruning.masks_for, {"saliency": {"a": torch.rand(4)}, "sparsity": 0.5}, {
        "saliency": _sampled("x", 1, [], {"a": 1}, {"a": torch.tensor([math.nan])}), "sparsity": number(0, 1), "scope": choice(),
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
        "scan": st.one_of(instance(), st.just(pd.DataFrame({"layer": []}))), "tolerance": number(0, 1),
    }),
    (pruning.prune_channels, {**MODEL, "example": torch.zeros(1, 3, 32, 32), "ratio": 0.5}, {
        "model": instance(), "example": tensor(torch.zeros(3), torch.zeros(1, 5, 32, 32)),
        "ratio": st.one_of(number(0, 0.9999), st.just({}), st.just({"features.0": math.nan})).filter(lambda bad: bad != {"a": 1}),
        "importance": choice(), "scope": choice(), "round_to": integer(1), "skip": names(),
    }),
    (pruning.sweep, {**MODEL, **SPLIT, "sparsities": [0.5]}, {
        "model": instance(), "split": instance(), "sparsities": numbers(0, 1), "skip": names(), "precision": choice(),
    }),
    (low_rank.matricize, LAYER, {"module": instance(), "scheme": choice()}),
    (low_rank.singular_values, LAYER, {"module": instance(), "scheme": choice()}),
    (low_rank.energy, {"singular_values": good.logits}, {
        "singular_values": _sampled("x", 1, Strange(), torch.empty(0), torch.tensor([math.nan]), torch.ones(2, 2),
        torch.tensor([-1.0]), [1e200]),
    }),
    (low_rank.rank_for_energy, {"singular_values": good.logits, "threshold": 0.5}, {
        "singular_values": _sampled("x", 1, torch.empty(0), torch.tensor([math.inf])), "threshold": number(**RANGE),
    }),
    (low_rank.factorized_size, {**LAYER, "rank": 2}, {"module": instance(), "rank": integer(1), "scheme": choice()}),
    (low_rank.break_even_rank, LAYER, {"module": instance(), "scheme": choice()}),
    (low_rank.decompose, LAYER, {
        "module": instance(), "scheme": choice(), "responses": _sampled("x", 1, (1, 2), (torch.zeros(1, 4), torch.zeros(4)), none=True),
    }),
    (low_rank.responses, {**MODEL, "pictures": good.split}, {"model": instance(), "pictures": instance(), "skip": names()}),
    (low_rank.analyze, MODEL, {"model": instance(), "energy": number(**RANGE), **rank_options}),
    (low_rank.factorizable, MODEL, {"model": instance(), "skip": names()}),
    (low_rank.split, {**LAYER, "rank": 2}, {"module": instance(), "rank": integer(1, 4), "scheme": choice()}),
    (low_rank.factorize, MODEL, {
        "model": instance(), "energy": number(**RANGE), **rank_options, "input_shape": None,
        "ranks": _sampled("x", 1, [], {"nowhere": 1}, {"classifier": 0}, {"classifier": 1.5}, {1: 1}, none=True),
    }),
    (low_rank.sweep, {**MODEL, **SPLIT, "energies": [0.5], "budgets": [0.5]}, {
        "model": instance(), "split": instance(), "energies": numbers(0, 1), "budgets": numbers(0, 1), "count": choice(),
        "scheme": choice(), "skip": names(), "pictures": instance(none=True), "precision": choice(),
    }),
    (profiling.profile, MODEL, {"model": instance(), "input_shape": shape(), "repeats": integer(1)}),
    (profiling.count_parameters, MODEL, {"model": instance()}),
    (profiling.count_macs, MODEL, {"model": instance(), "input_shape": shape()}),
    (profiling.file_bytes, MODEL, {"model": instance(), "dtype": _sampled("float16", torch.int8, none=True), "storage": choice()}),
    (profiling.storage_table, MODEL, {"model": instance(), "dtype": _sampled("float16", torch.int8, none=True)}),
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
        "networks": _sampled("x", 1, [], {}, {"a": 1}, {1: good.model}), "data": instance(none=True),
        "baseline": _sampled("b", 1, [], none=True),
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
    (quantization.huffman_lengths, {"counts": {1: 1}}, {"counts": _sampled("x", 1, [], {}, {1: 0}, {1: 1.5}, {1: math.nan})}),
    (storage.pack, {"tensors": {"a": torch.ones(2)}, "storage": "zip"}, {"storage": choice()}),
    (storage.unpack, {"written": {}, "packed": {}, "storage": "zip"}, {"storage": choice()}),
    (business.Network, vars(good.network), {
        "latency_ms": number(0, 1e15, open_low=True), "file_mb": number(0, 1e15, open_low=True), "accuracy": number(0, 1),
    }),
    (business.Assumptions, {}, {"inferences_per_day": number(0, 1e15), "utilization": number(**RANGE)}),
    *((call, {"network": good.network, "assumptions": good.assumptions}, {"network": instance(), "assumptions": instance()})
      for call in (business.energy_joules, business.cost_per_year, business.processors)),
    (business.saving, {"before": good.network, "after": good.network, "assumptions": good.assumptions}, {
        "before": instance(), "after": instance(), "assumptions": instance(), "years": number(0, 100, open_low=True),
    }),
    (business.worth_it, {"before": good.network, "after": good.network, "assumptions": good.assumptions}, {
        "before": instance(), "after": instance(), "assumptions": instance(), "years": number(0, 100, open_low=True),
        "accuracy_lost": number(0, 1),
    }),
    (results.read, {"name": "table"}, {"name": _sampled(1, [], "", "../table", "a b", "a/b", "table.csv", Strange())}),
    (results.append, {"name": "table"}, {"name": _sampled(1, [], "", "../table", "a\0", Strange())}),
    (results.finished, {"name": "table", "row": {"a": 1}}, {"name": _sampled(1, "", "../table"), "row": _sampled("x", 1, [], {1: 2})}),
]  # fmt: skip

FLAGS = "any value counts as true or false, as everywhere in Python"
FREE = {
    "Split.mirror": FLAGS, "data.augment.mirror": FLAGS, "data.batches.augmented": FLAGS, "training.fit.augment": FLAGS,
    "training.fit.compile": FLAGS, "training.fit.progress": FLAGS, "profiling.profile.latency": FLAGS,
    "quantization.round_weights.per_channel": FLAGS, "quantization.round_to_grid.per_channel": FLAGS,
    "quantization.sweep.per_channel": FLAGS,
    "quantization.symmetric_grid.per_channel": FLAGS,
    "Data.mean": "taken from the data's own pictures", "Data.std": "taken from the data's own pictures",
    "profiling.compare.options": "checked by summarize",
    "storage.pack.tensors": "a model's own", "storage.unpack.written": "from a file: test_hostile_files",
    "storage.unpack.packed": "likewise",
    "models.read_safetensors.path": "checked by its callers", "models.write_safetensors.path": "checked by its callers",
    "models.write_safetensors.tensors": "a model's own", "models.write_safetensors.metadata": "its callers'",
    "models.digest.tensors": "a model's own", "models.digest.text": "its callers'",
}  # fmt: skip
BUILT_BY_US = {"ConvNet", "ResidualBlock", "Run", "Callback", "Factors", "DataError", "CheckpointError"}
WHOLE = (data, models, training, evaluation, distillation, pruning, low_rank, profiling, quantization, storage)


def label(function):
    if inspect.isclass(function):
        return function.__name__
    return f"{function.__module__.removeprefix('helpers.')}.{function.__qualname__}".replace("pruning.PolynomialSchedule.", "")


PAIRS = [(call, right, name, bad) for call, right, arguments in CASES for name, bad in arguments.items() if bad is not None]


def run(call, arguments):
    """Call it, and begin what only begins when it is asked for: a generator, a context."""
    found = call(**arguments)
    if inspect.isgenerator(found):
        next(found)
    elif hasattr(found, "__enter__"):
        with found:
            pass


@pytest.mark.parametrize(("call", "right", "name", "bad"), PAIRS, ids=[f"{label(call)}-{name}" for call, _, name, _ in PAIRS])
@given(drawn=st.data())
@settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_a_bad_argument_is_named(call, right, name, bad, drawn):
    value = drawn.draw(bad)
    with pytest.raises((ValueError, TypeError)) as caught:
        run(call, {**right, name: value})
    assert re.search(rf"\b{name}\b", str(caught.value)), f"{name} is not in {caught.value}"
    frames = traceback.extract_tb(caught.tb)
    assert Path(frames[-1].filename).parent == Path(checks.__file__).parent, f"raised in {frames[-1].filename}: {caught.value}"


@pytest.mark.parametrize(("call", "right"), [(call, right) for call, right, _ in CASES if call is not results.append], ids=lambda one: "")
def test_the_right_arguments_are_right(call, right, tmp_path, monkeypatch):
    """Otherwise the tests above would prove nothing."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    (tmp_path / "table.csv").write_text("a\n1\n")
    if call is models.load:
        models.save(good.model, tmp_path / "x.safetensors")
    monkeypatch.chdir(tmp_path)
    options = {"repeats": 3} if call in (profiling.compare, profiling.summarize) else {}
    run(call, right | options)


def test_every_argument_is_tried():
    tried = {f"{label(call)}.{name}" for call, _, arguments in CASES for name in arguments} | set(FREE)
    missing = []
    for module in WHOLE:
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", "") != module.__name__ or name in BUILT_BY_US:
                continue
            if inspect.isfunction(thing) or inspect.isclass(thing) or hasattr(thing, "__wrapped__"):
                missing += [f"{label(thing)}.{one}" for one in inspect.signature(thing).parameters if f"{label(thing)}.{one}" not in tried]
    assert not missing


@pytest.mark.parametrize("value", [10**400, -(10**5_000), 1e308, -1e308, 2**53 + 1, Strange(), math.nan, "x" * 10**6], ids=range(8))
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
    with pytest.raises(ValueError, match=r"model must put out a logit for each of the 10 classes that data\.train has, got 7"):
        training.fit(models.build("tiny_convnet", num_classes=7, width=0.1), good.data, epochs=1, progress=False)
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
