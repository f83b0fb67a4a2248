"""Networks of any make: outputs, weights that are no parameters, modes and types that the caller chose."""

import copy
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from helpers import low_rank, models, networks, profiling, pruning, quantization
from helpers.channels import prune_channels
from helpers.data import load_data
from helpers.distillation import DistillationLoss
from helpers.evaluation import evaluate, predict, recalibrate
from helpers.training import fit

DIGITS = load_data("digits", train_limit=40)
LOGITS = torch.arange(20.0).view(2, 10)

# -- logits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, -LOGITS),
        [LOGITS, -LOGITS],
        namedtuple("Outputs", ["logits", "aux"])(LOGITS, None),
        {"aux": -LOGITS, "logits": LOGITS},
        {"aux": -LOGITS, "out": LOGITS},
    ],
)
def test_logits_are_found_in_what_a_network_puts_out(output):
    assert networks.logits_of(output) is LOGITS


@pytest.mark.parametrize("output", [None, (), {"features": LOGITS}, (None, LOGITS), "logits"])
def test_where_no_logits_are_it_is_said(output):
    with pytest.raises(ValueError, match="model must map pictures to logits"):
        networks.logits_of(output)


class Wrapped(nn.Module):
    """Ten logits, put out as ``wrap`` says."""

    def __init__(self, wrap):
        super().__init__()
        self.body, self.wrap = models.build("tiny_convnet", width=0.25), wrap

    def forward(self, images):
        return self.wrap(self.body(images))


def test_tuples_and_dicts_are_trained_measured_and_distilled_as_their_logits_are():
    rows = []
    for wrap in (lambda logits: logits, lambda logits: (logits, -logits), lambda logits: {"out": logits}):
        torch.manual_seed(0)
        model = Wrapped(wrap)
        loss = DistillationLoss(model)
        rows.append([
            fit(model, DIGITS, epochs=1, batch_size=20, loss=loss, progress=False)["loss"][0],
            evaluate(model, DIGITS.validation).correct,
            predict(model, DIGITS.validation).sum().item(),
        ])  # fmt: skip
    assert rows[0] == rows[1] == rows[2]


# -- weights that are no parameters ------------------------------------------------------------------------------------


def masked():
    model = nn.Sequential(nn.Linear(64, 64))
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def torchao():
    quantize = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 64))
    quantize.quantize_(model, quantize.Int8WeightOnlyConfig())
    return model


NOT_PLAIN = {
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(64, 64))), r"remove_parametrizations\(layer, 'weight'\)"),
    "orthogonal bias": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(64, 64), "bias")), r"remove_parametrizations\(layer, 'bias'\)"),
    "mask": (masked, r"torch.nn.utils.prune.remove\(layer, 'weight'\)"),
    "weight norm by hooks": (lambda: nn.Sequential(weight_norm(nn.Linear(64, 64))), "remove_weight_norm"),
    "spectral norm by hooks": (lambda: nn.Sequential(spectral_norm(nn.Linear(64, 64))), "remove_spectral_norm"),
    "torchao": (torchao, "before quantizing"),
    "dynamically quantized": (
        lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(64, 64)), {nn.Linear}),
        "before quantizing",
    ),
}  # fmt: skip
CALLS = {
    "prune_once": lambda model: pruning.prune_once(model, 0.9),
    "sparsity_table": pruning.sparsity_table,
    "prune_channels": lambda model: prune_channels(model, torch.zeros(1, 64), 0.5),
    "factorize": lambda model: low_rank.factorize(model, 0.5),
    "analyze": lambda model: low_rank.analyze(model, input_shape=None),
    "round_weights": lambda model: quantization.round_weights(model, 4),
    "GradualPruner": lambda model: fit(
        nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 64), *model, nn.Linear(64, 10)), DIGITS, epochs=1,
        callbacks=[pruning.GradualPruner(lambda progress: 0.9)], batch_size=20, precision="fp32", progress=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_weights_that_are_made_of_others_are_refused_with_the_call_that_makes_them_plain(kind, call):
    make, way_out = NOT_PLAIN[kind]
    with pytest.raises(ValueError, match=f"^model must have plain weights, but layer '.*' .*{way_out}"):
        CALLS[call](make())


def test_once_the_named_call_was_made_the_weights_are_pruned():
    model = masked()
    prune.remove(model[0], "weight")
    pruning.prune_once(model, 0.9)
    assert pruning.sparsity_table(model)["zeros"].sum() == round(0.9 * 64 * 64)


# -- compiled ----------------------------------------------------------------------------------------------------------


def test_what_torch_compile_returned_is_taken_for_the_module_in_it():
    model = models.build("tiny_convnet", width=0.25)
    compiled = torch.compile(model, backend="eager")
    assert pruning.prunable(compiled).keys() == pruning.prunable(model).keys()
    assert profiling.profile(compiled).equals(profiling.profile(model))
    assert profiling.count_macs(compiled) == profiling.count_macs(model)
    example = torch.zeros(1, 3, 32, 32)
    for call in (
        lambda one: prune_channels(one, example, 0.5),
        lambda one: low_rank.factorize(one, 0.5),
        lambda one: quantization.round_weights(one, 4),
        lambda one: recalibrate(one, DIGITS.train),
    ):
        mine, theirs = call(compiled).state_dict(), call(model).state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    pruner = pruning.GradualPruner(lambda progress: 0.5)
    history = fit(
        compiled, DIGITS, epochs=1, batch_size=20, callbacks=[pruner], precision="fp32", progress=False
    )
    assert history["sparsity"][0] == pytest.approx(0.5, abs=1e-3)
    assert pruning.sparsity_table(model)["zeros"].sum() == pruning.sparsity_table(compiled)["zeros"].sum() > 0


# -- half precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_recalibrated_pruned_and_rounded_as_its_float32_would_be(dtype):
    half = models.build("tiny_convnet", width=0.5).to(dtype)
    full = copy.deepcopy(half).float()
    fresh, wanted = recalibrate(half, DIGITS.train), recalibrate(full, DIGITS.train)
    for mine, theirs in zip(fresh.state_dict().values(), wanted.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs.to(mine.dtype))
    assert {one.dtype for one in fresh.parameters()} == {dtype}
    rounded = quantization.round_weights(half, 4).classifier.weight
    assert torch.equal(rounded, quantization.round_weights(full, 4).classifier.weight.to(dtype))
    masks = (pruning.prune_once(model, 0.7)["classifier"] for model in (half, full))
    assert torch.equal(*masks)
    assert torch.allclose(predict(half, DIGITS.validation), predict(full, DIGITS.validation), atol=0.05)


def test_half_precision_is_not_trained():
    with pytest.raises(
        ValueError, match=r"model must hold float32: call model.float\(\), .* got torch.float16"
    ):
        fit(models.build("tiny_convnet", width=0.25).half(), DIGITS, epochs=1, progress=False)


# -- modes, statistics, random state -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("came_in", "moves"), [("eval mode", False), ("train mode", True)])
def test_a_frozen_part_that_came_in_eval_mode_keeps_its_statistics_in_fit(came_in, moves):
    model = models.build("tiny_convnet", width=0.25).train()
    model.features[:6].requires_grad_(False).train(came_in == "train mode")
    model.features[6:].eval()  # not frozen: it trains
    before = copy.deepcopy(model.state_dict())
    fit(model, DIGITS, epochs=1, batch_size=20, precision="fp32", progress=False)
    changed = {name for name, one in model.state_dict().items() if not torch.equal(one, before[name])}
    assert ("features.1.running_mean" in changed) == moves
    assert "features.1.weight" not in changed
    assert {"features.6.body.1.running_mean", "features.6.body.1.weight", "classifier.weight"} <= changed


def test_dropout_of_a_network_that_came_in_eval_mode_is_there_when_it_trains():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, 10)).eval()
    assert networks.fixed(model) == []


def test_outputs_runs_both_modes_and_leaves_the_caller_everything():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(0.5))).train()
    model[1].eval()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    found = [networks.outputs(model, torch.ones(2, 3, 8, 8), training=mode)[0] for mode in (True, False)]
    assert torch.equal(*found)
    assert [one.training for one in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_pictures_that_a_network_does_not_take_are_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    with pytest.raises(ValueError, match="model must take pictures of 3 x 32 x 32"):
        predict(model, DIGITS.validation)


# -- losses ------------------------------------------------------------------------------------------------------------


def test_losses_of_logits_and_labels_are_taken_as_well():
    weight = torch.linspace(0.5, 2, 10)
    own = {
        "module": nn.CrossEntropyLoss(weight=weight),
        "function": lambda logits, labels: nn.functional.cross_entropy(logits, labels, weight),
        "three": lambda logits, images, labels: nn.functional.cross_entropy(logits, labels, weight),
        "default third": lambda logits, labels, weight=weight: nn.functional.cross_entropy(
            logits, labels, weight
        ),
    }
    losses = {}
    for name, loss in own.items():
        torch.manual_seed(0)
        model = models.build("tiny_convnet", width=0.25)
        losses[name] = fit(
            model, DIGITS, epochs=1, batch_size=20, loss=loss, precision="fp32", progress=False
        )["loss"][0]
    assert len(set(losses.values())) == 1
    torch.manual_seed(0)
    plain = fit(
        models.build("tiny_convnet", width=0.25),
        DIGITS,
        epochs=1,
        batch_size=20,
        precision="fp32",
        progress=False,
    )
    assert plain["loss"][0] != losses["module"]
