"""What no change to the helpers may change: names and arguments that lessons use, shapes, ranks, masks, bytes, bits.

The numbers were written down from version 0.1.0. A change that means to alter one of them alters it here, and says so.
"""

import ast
import hashlib
import importlib
import inspect
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from helpers import data, low_rank, models, profiling, pruning, storage
from helpers.data import HOME, load_data
from helpers.distillation import DistillationLoss, distillation_loss
from helpers.training import Callback, fit

CHECKPOINTS = HOME / "data" / "checkpoints"

# -- names -------------------------------------------------------------------------------------------------------------

NAMES = """
business.Assumptions(inferences_per_day, price_per_cpu_hour, utilization, downloads_per_year, price_per_gb,
    watts, price_per_kwh, engineer_days, price_per_engineer_day)
business.Network(name, latency_ms, file_mb, accuracy, memory_mb, process_mb)
business.UseCase(times_slower, watts, devices, inferences_per_device_per_day, updates_per_year, latency_ms,
    memory_mb, update_mb, joules_per_day)
business.break_even(value, assumptions, name)
business.budgets(candidates, uses)
business.cost_per_year(network, assumptions)
business.energy_joules(network, assumptions)
business.misses(network, use)
business.needs(network, use)
business.network(rows, name, format)
business.on_device(network, times_slower)
business.processors(network, assumptions)
business.saving(before, after, assumptions, years)
business.tornado(value, assumptions, ranges)
business.worth_it(before, after, assumptions, years, accuracy_lost)
data.Data(name, classes, mean, std, train, validation, test)
data.Split(images, labels, mean, std, mirror)
data.augment(images, generator, *, shift, mirror)
data.batches(split, batch_size, *, generator, augmented, hole, rank, world)
data.load_data(name, root, train_limit, seed)
data.normalize(images, source)
distillation.DistillationLoss(teacher, temperature, alpha)
distillation.distillation_loss(student_logits, teacher_logits, labels, temperature, alpha)
distillation.soften(logits, temperature)
distillation.temperature_effect(logits, temperature)
evaluation.Accuracy(correct, total)
evaluation.evaluate(model, split, *, batch_size, precision)
evaluation.measure(model, split, calibration, *, precision)
evaluation.paired(answers_a, answers_b, labels)
evaluation.predict(model, split, *, batch_size, precision)
evaluation.recalibrate(model, split, *, batch_size)
export.ExportError()
export.archive_labels(path, pictures)
export.coreml_logits(path, pictures)
export.latency(path, *, threads, batch_size, repeats)
export.litert_scales(path)
export.logits(path, pictures, *, threads, batch_size)
export.onnx_accuracy(path, split)
export.onnx_latency(path, *, threads, batch_size, repeats)
export.onnx_profile(path, *, threads, batch_size, repeats, by)
export.peak_memory(path)
export.quantize_onnx(source, path, calibration, pictures, *, agreement)
export.serving(path, *, seconds)
export.to_coreml(model, path, pictures, *, weights, agreement)
export.to_executorch(model, path, pictures)
export.to_litert(model, path, pictures, *, int8, calibration, agreement)
export.to_onnx(model, path, pictures)
export.to_torchserve(model, path, pictures, *, classes)
export.zipped_bytes(path)
low_rank.analyze(model, energy, *, scheme, skip, budget, count, round_to, pictures, input_shape)
low_rank.break_even_rank(module, scheme)
low_rank.energy(singular_values)
low_rank.factorizable(model, skip)
low_rank.factorize(model, energy, ranks, skip, *, scheme, budget, count, round_to, pictures, input_shape)
low_rank.factorized_size(module, rank, scheme)
low_rank.matricize(module, scheme)
low_rank.rank_for_energy(singular_values, threshold)
low_rank.singular_values(module, scheme)
low_rank.split(module, rank, scheme)
low_rank.sweep(model, split, energies, *, calibration, budgets, count, scheme, skip, pictures, precision)
models.build(name, num_classes, width)
models.load(path, into)
models.save(model, path, dtype, storage)
plotting.budget_shares(table)
plotting.differences(pairs, xlabel)
plotting.formats(table)
plotting.front(table, x, y, labels, xlabel, ylabel, low, high)
plotting.heat_map(table, title, unit)
plotting.learning_curves(histories, teacher)
plotting.pictures(images, titles, columns)
plotting.schedules(curves)
plotting.sensitivity(scan)
plotting.soft_targets(images, probabilities, classes, labels)
plotting.tornado(cases, xlabel)
plotting.trade_off(curves, xlabel, ylabel, level)
plotting.waterfall(table)
plotting.where_it_goes(layers)
profiling.compare(networks, data, *, baseline, input_shape, threads, repeats)
profiling.count_macs(model, input_shape)
profiling.count_parameters(model)
profiling.file_bytes(model, dtype, storage)
profiling.measure_latency(model, input_shape, *, threads, repeats)
profiling.profile(model, input_shape, *, latency, repeats)
profiling.smallest_file(model)
profiling.storage_table(model, dtype)
profiling.summarize(model, data, *, input_shape, threads, repeats)
pruning.GradualPruner(schedule, importance, scope, skip, every)
pruning.PolynomialSchedule(final_sparsity, initial_sparsity, begin, end, power)
pruning.masks_for(saliency, sparsity, scope)
pruning.prunable(model, skip)
pruning.prune_channels(model, example, ratio, importance, *, scope, round_to, skip)
pruning.prune_once(model, sparsity, scope, skip)
pruning.prune_two_of_four(model, skip)
pruning.ratios_by_sensitivity(scan, tolerance)
pruning.sensitivity(model, split, ratios, *, calibration, unit, only, precision)
pruning.sparsity_table(model)
pruning.sweep(model, split, sparsities, *, calibration, skip, precision)
quantization.affine_grid(low, high, bits)
quantization.dequantize(integers, scale, zero_point)
quantization.entropy(values)
quantization.huffman_lengths(counts)
quantization.quantize(values, scale, zero_point, bits)
quantization.round_to_grid(weight, bits, *, per_channel)
quantization.round_weights(model, bits, *, per_channel)
quantization.sweep(model, split, bits, *, calibration, per_channel, precision)
quantization.symmetric_grid(weight, bits, *, per_channel)
report.budget_figure(table, budget, tolerance, least)
report.budget_slider(table, start, tolerance, least)
report.choose(table, budget, tolerance, least)
report.verdict(table, budget, tolerance, least, beside)
report.write(path, title, table, figures, verdict)
training.Accuracy(correct, total)
training.Callback()
training.evaluate(model, split, *, batch_size, precision)
training.fit(model, data, *, epochs, loss, callbacks, lr, batch_size, momentum, weight_decay,
    label_smoothing, schedule, warmup, optimizer, augment, cutout, precision, compile, seed, checkpoint, progress)
training.learning_rate(progress, lr, schedule, warmup)
training.predict(model, split, *, batch_size, precision)
widgets.bits_figure(weight, table, bits)
widgets.bits_slider(weight, table, start)
widgets.cost_figure(before, after, assumptions, years, other, **chosen)
widgets.cost_sliders(before, after, assumptions, years, other)
widgets.energy_figure(table, full, break_even, energy)
widgets.energy_slider(table, full, break_even, start)
widgets.sparsity_figure(weight, table, sparsity)
widgets.sparsity_slider(weight, table, start)
widgets.temperature_figure(logits, temperature, classes, label)
widgets.temperature_slider(logits, classes, label, start)
"""


@pytest.mark.parametrize(
    "line", NAMES.replace("\n    ", " ").strip().splitlines(), ids=lambda line: line.split("(")[0]
)
def test_names_and_arguments_are_there(line):
    """Arguments by position keep their place; those by name are there; new ones may come after them."""
    name, _, arguments = line.partition("(")
    module, _, attribute = name.rpartition(".")
    thing = getattr(importlib.import_module(f"helpers.{module}"), attribute)
    if arguments == ")":
        return
    wanted = ast.parse(f"def f({arguments}: pass").body[0].args
    found = inspect.signature(thing).parameters.values()
    by_place = [one.name for one in found if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert by_place[: len(wanted.args)] == [one.arg for one in wanted.args]
    assert {one.arg for one in wanted.kwonlyargs} <= {one.name for one in found}
    assert not wanted.kwarg or any(one.kind is one.VAR_KEYWORD for one in found)


def lessons():
    """The code of each notebook, and README's."""
    for path in sorted((HOME / "notebooks").rglob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        lines = [line for line in code.splitlines() if not line.lstrip().startswith(("!", "%"))]
        yield f"{path.parent.name}/{path.stem}", "\n".join(lines)
    readme = (HOME / "README.md").read_text("utf-8")
    yield "README", "\n".join(re.findall(r"```python\n(.*?)```", readme, re.DOTALL))


def imported(tree):
    """What the code imports from helpers: {its name there: the thing}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            for one in node.names:
                try:
                    found[one.asname or one.name] = importlib.import_module(f"{node.module}.{one.name}")
                except ModuleNotFoundError:
                    found[one.asname or one.name] = getattr(importlib.import_module(node.module), one.name)
    return found


@pytest.mark.parametrize(("name", "code"), lessons(), ids=[name for name, _ in lessons()])
def test_lessons_call_what_is_there(name, code):
    """Every name that a lesson takes from helpers is there, and takes the arguments that are given by name."""
    tree = ast.parse(code)
    there = imported(tree)

    def thing(node):
        if isinstance(node, ast.Name):
            return there.get(node.id)
        above = thing(node.value) if isinstance(node, ast.Attribute) else None
        return getattr(above, node.attr) if inspect.ismodule(above) else None

    for node in ast.walk(tree):
        called = thing(node.func) if isinstance(node, ast.Call) else thing(node)
        if isinstance(node, ast.Call) and (inspect.isroutine(called) or inspect.isclass(called)):
            given = dict.fromkeys(word.arg for word in node.keywords if word.arg)
            inspect.signature(called).bind_partial(**given)


# -- networks ----------------------------------------------------------------------------------------------------------


def shapes(model):
    """A digest of names and shapes."""
    listed = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:12]


def weights(model):
    """A digest of every bit."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


ARCHITECTURES = {  # parameters, MACs, tensors, names and shapes
    "vgg11": (9_231_114, 152_769_536, 58, "12268d0f0cca"),
    "vgg13": (9_416_010, 228_267_008, 72, "6f3646546060"),
    "vgg16": (14_728_266, 313_201_664, 93, "14de2b3d95c5"),
    "vgg19": (20_040_522, 398_136_320, 114, "3bc7a8bcee64"),
    "resnet18": (11_173_962, 555_422_720, 122, "c07bd9ddb560"),
    "resnet34": (21_282_122, 1_159_402_496, 218, "513551710786"),
    "resnet50": (23_520_842, 1_297_829_888, 320, "a917b6bb7a39"),
    "small_convnet": (1_941_546, 71_666_176, 62, "13bd87f62027"),
    "tiny_convnet": (1_032_098, 39_501_616, 62, "cfa056374498"),
    "micro_convnet": (246_554, 31_113_856, 92, "365d610c0097"),
    "mobilenet_student": (151_914, 7_266_944, 140, "b54b1a712180"),
    "vgg19_imagenet": (139_611_210, 517_709_824, 38, "103e64288e93"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_have_the_same_layers(name):
    model = models.build(name)
    counts = profiling.count_parameters(model), profiling.count_macs(model), len(model.state_dict())
    assert (*counts, shapes(model)) == ARCHITECTURES[name]


def test_the_same_seed_draws_the_same_weights():
    for name, last in (("vgg11", (-0.078108, 0.113482)), ("resnet18", (-0.001218, -0.006811))):
        torch.manual_seed(0)
        drawn = [tensor for tensor in models.build(name, width=0.1).state_dict().values() if tensor.ndim > 1]
        assert drawn[0].flatten()[:2].tolist() == pytest.approx((-0.216668, -0.221772), abs=1e-5)
        assert drawn[5 if name == "vgg11" else 20].flatten()[:2].tolist() == pytest.approx(last, abs=1e-5)


SHIPPED = {  # parameters, MACs, names and shapes, bits
    "vgg19": (20_040_522, 398_136_320, "3bc7a8bcee64", "82a74acae78a"),
    "vgg19_zeros95": (20_040_522, 398_136_320, "3bc7a8bcee64", "fde330e0cbde"),
    "vgg19_tiny_convnet": (1_032_098, 39_501_616, "cfa056374498", "c39a469aac17"),
    "vgg19_fast_convnet": (294_786, 24_089_568, "a74854d519d4", "cd3191312049"),
    "vgg19_fast_convnet_2m": (1_972_802, 118_147_360, "7cf8d85e247d", "c1841681961e"),
    "vgg19_fast_convnet_2m_zeros70": (1_972_802, 118_147_360, "7cf8d85e247d", "e1fe54d094aa"),
    "vgg19_fast_convnet_2m_thin_zeros75": (1_161_378, 77_228_320, "79ed3f41d6d5", "0c7c2691a94f"),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_networks_load_to_the_same_bits(name):
    model = models.load(CHECKPOINTS / f"{name}.safetensors")
    counts = profiling.count_parameters(model), profiling.count_macs(model)
    assert (*counts, shapes(model), weights(model)) == SHIPPED[name]


def test_a_file_of_version_0_1_0_comes_back():
    """A VGG-11 with channels pruned, two layers and the classifier factorized, 80% zeros; half precision, packed."""
    model = models.load(HOME / "tests" / "golden.safetensors")
    assert weights(model) == "8c9531dab270"
    assert (profiling.count_parameters(model), profiling.count_macs(model)) == (17_252, 363_736)
    logits = model(torch.linspace(-2, 2, 2 * 3072).view(2, 3, 32, 32))[0, :4]
    assert logits.tolist() == pytest.approx([0.263073, -0.083285, 0.049053, -0.030318], abs=1e-4)


# -- low rank ----------------------------------------------------------------------------------------------------------

RANKS = {  # of the shipped VGG-19
    0.9: (10, 30, 61, 87, 147, 160, 145, 147, 150, 157, 135, 179, 144, 158, 133, 89, 8),
    0.8: (8, 20, 40, 63, 101, 112, 33, 7),
}
LARGE = [f"features.{index}" for index in (20, 23, 27, 30, 33, 36, 40, 43, 46)]  # a second each


@pytest.mark.parametrize(("energy", "skip"), [(0.9, ()), (0.8, LARGE)])
def test_the_same_ranks_are_chosen(energy, skip):
    table = low_rank.analyze(models.load(CHECKPOINTS / "vgg19.safetensors"), energy=energy, skip=skip)
    assert tuple(table["rank"]) == RANKS[energy]


# -- files -------------------------------------------------------------------------------------------------------------

BYTES = {  # of a tiny_convnet of half the width with 2:4 and 90% zeros, in float32
    "dense": 1_050_400,
    "zip": 232_472,
    "bitmask": 155_092,
    "bitmask+zip": 127_471,
    "csr": 177_524,
    "2:4": 568_643,
}


def test_storages_take_the_same_bytes_and_give_the_same_bits_back(tmp_path):
    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.5)
    pruning.prune_two_of_four(model)
    pruning.prune_once(model, 0.9)
    assert tuple(BYTES) == tuple(storage.STORAGES)
    for kind, expected in BYTES.items():
        path = models.save(model, tmp_path / "model.safetensors", storage=kind)
        zipped = 0.02 if "zip" in kind else 0  # zlib has versions
        assert path.stat().st_size == pytest.approx(expected, rel=zipped, abs=0)
        assert weights(models.load(path)) == weights(model)


def test_networks_with_small_kernels_are_stored_as_fit_leaves_them(tmp_path):
    model = models.build("mobilenet_student", width=0.25)
    pruning.prune_once(model, 0.8)
    model.to(memory_format=torch.channels_last)
    for kind in BYTES:
        loaded = models.load(models.save(model, tmp_path / "model.safetensors", storage=kind))
        assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values())), kind


# -- masks -------------------------------------------------------------------------------------------------------------


def network(ties):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 16), nn.Linear(16, 10))
    with torch.no_grad():
        for layer in layers(model):
            layer.weight.normal_()
            if ties:
                layer.weight.mul_(2).round_()
    return model


def layers(model):
    return [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]


def give_up(model, sparsity, scope):
    """PyTorch's own pruning until this share has gone, of all or of each layer; what had gone before counts."""
    gone = {layer: int((getattr(layer, "weight_mask", torch.ones(1)) == 0).sum()) for layer in layers(model)}
    if scope == "global":
        total = sum(layer.weight.numel() for layer in gone)
        weights = [(layer, "weight") for layer in gone]
        more = round(sparsity * total) - sum(gone.values())
        prune.global_unstructured(weights, prune.L1Unstructured, amount=more)
    else:
        for layer, before in gone.items():
            prune.l1_unstructured(layer, "weight", round(sparsity * layer.weight.numel()) - before)
    return [layer.weight_mask.bool() for layer in gone]


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_masks_are_pytorchs(scope, ties):
    for sparsity in (0.3, 0.5, 0.9):
        masks = pruning.prune_once(network(ties), sparsity, scope)
        expected = give_up(network(ties), sparsity, scope)
        assert all(torch.equal(mask, other) for mask, other in zip(masks.values(), expected, strict=True))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_gradual_pruners_masks_are_pytorchs_drawn_again_and_again(scope):
    ours, theirs = network(ties=False), network(ties=False)
    schedule = pruning.PolynomialSchedule(0.9, 0.2)
    pruner = pruning.GradualPruner(schedule, scope=scope, every=1)
    run = SimpleNamespace(
        model=ours, optimizer=torch.optim.SGD(ours.parameters(), 0.1), step=0, steps=5, progress=0
    )
    pruner.on_start(run)
    for step in range(6):
        expected = give_up(theirs, schedule(step / 5), scope)
        masks = list(pruner.masks.values())
        assert all(torch.equal(mask, other) for mask, other in zip(masks, expected, strict=True))
        for layer, other, mask in zip(layers(ours), layers(theirs), masks, strict=True):  # a step of training
            moved = torch.randn(mask.shape) * mask
            layer.weight.data += moved
            other.weight_orig.data += moved
            other.weight = (
                other.weight_orig * other.weight_mask
            )  # what PyTorch's hook does before a forward pass
        run.step, run.progress = step + 1, (step + 1) / 5
        pruner.on_step(run)


# -- training ----------------------------------------------------------------------------------------------------------


class Interrupt(Callback):
    def __init__(self, step):
        self.step, self.seen = step, 0

    def on_step(self, run):
        self.seen += 1
        if run.step == self.step:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    few = load_data("digits", train_limit=256)

    def train(interrupt, **options):
        torch.manual_seed(0)
        model, teacher = (models.build("tiny_convnet", width=0.2) for _ in range(2))
        pruner = pruning.GradualPruner(pruning.PolynomialSchedule(0.8), every=1)
        options |= {"loss": DistillationLoss(teacher), "callbacks": [interrupt, pruner]}
        fit(model, few, epochs=2, batch_size=64, progress=False, **options)
        return weights(model)

    never, path = Interrupt(None), tmp_path / "run.safetensors"
    whole = train(never)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupt(6), checkpoint=path)  # of 8 steps, in the second epoch
    again = Interrupt(None)
    assert train(again, checkpoint=path) == whole
    assert (never.seen, again.seen) == (8, 4)


OTHER = {
    "seed": 1,
    "schedule": "one_cycle",
    "label_smoothing": 0.1,
    "cutout": 8,
    "momentum": 0.5,
    "weight_decay": 0.01,
}


@pytest.mark.parametrize(
    ("options", "losses", "rates", "ends"),
    [
        ({}, (2.946806, 3.900673, 2.322639), (0.01866025, 0.0081625, 0.000118345), (0.00034631, -0.00615363)),
        (
            OTHER,
            (2.745326, 2.386768, 1.360431),
            (0.01666667, 0.00882353, 0.00098039),
            (0.00532919, -0.00122088),
        ),
    ],
    ids=["defaults", "other"],
)
def test_a_linear_layer_takes_the_same_steps(options, losses, rates, ends):
    """Order, augmentation, rates, momentum, decay: no rounding is amplified here, so the numbers hold on every machine.

    Since 0.1.0 each step has the rate of its middle, no longer of its beginning; with that put back the old numbers return.
    """
    torch.manual_seed(0)
    model, few = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), load_data("digits", train_limit=256)
    history = fit(model, few, epochs=3, lr=0.02, batch_size=64, precision="fp32", progress=False, **options)
    assert history["loss"].tolist() == pytest.approx(losses, rel=1e-4)
    assert history["lr"].tolist() == pytest.approx(rates, rel=1e-4)
    assert model[1].weight[3, 1500:1502].tolist() == pytest.approx(ends, abs=2e-6)


def test_the_splits_hold_the_same_pictures():
    digits = load_data("digits")
    assert [len(part) for part in (digits.train, digits.validation, digits.test)] == [1297, 200, 300]
    assert digits.train.labels[:10].tolist() == list(range(10))
    assert int(digits.validation.images.long().sum()) == 48_102_930
    assert int(load_data("digits", train_limit=100, seed=1).train.images.long().sum()) == 23_772_555
    some = torch.Generator().manual_seed(3)
    images, labels = next(iter(data.batches(digits.train, 32, generator=some, augmented=True)))
    assert labels[:12].tolist() == [2, 3, 2, 9, 7, 0, 6, 5, 5, 0, 3, 6]
    assert images.sum().item() == pytest.approx(995.864, abs=0.1)


def test_the_distillation_loss_worked_by_hand():
    """At T = 2 the teacher says 3/4 and 1/4, the student 1/2 and 1/2."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    soft = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    expected = 0.9 * 2**2 * soft + 0.1 * math.log(2)
    loss = distillation_loss(student, teacher, torch.tensor([0]), temperature=2, alpha=0.9)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(0.5402380, abs=1e-6)
    assert DistillationLoss(nn.Identity()).temperature == 4
    assert DistillationLoss(nn.Identity()).alpha == 0.9
