import copy
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from helpers import models, profiling, pruning
from helpers.data import load_data
from helpers.evaluation import predict, recalibrate
from helpers.lesson import TEACHER
from helpers.pruning import GradualPruner, PolynomialSchedule, masks_for, prunable, prune_once, sparsity_table
from helpers.training import Callback, Run, evaluate, fit


@pytest.fixture(scope="module")
def few():
    return load_data("digits", train_limit=256)


def small():
    torch.manual_seed(0)
    return models.build("tiny_convnet", width=0.2)


def magnitudes(model):
    return {name: weight.detach().abs() for name, weight in prunable(model).items()}


# -- the schedule ----------------------------------------------------------------------------------------------------


def test_schedule_worked_by_hand():
    schedule = PolynomialSchedule(0.8)
    # Zhu and Gupta, eq. 1, at t = 1/2: 0.8 - 0.8 * (1/2)^3 = 0.7.
    assert [schedule(t) for t in (0, 0.5, 1)] == pytest.approx([0, 0.7, 0.8])
    assert PolynomialSchedule(0.9, 0.1, begin=0.2, end=0.6, power=1)(0.4) == pytest.approx(0.5)


@given(
    st.floats(0, 0.999), st.floats(0, 1), st.floats(0, 0.9), st.floats(0.01, 10),
    st.floats(-3, 4), st.floats(-3, 4),
)  # fmt: skip
@settings(deadline=None)
def test_schedule_never_leaves_its_range_and_never_falls(final, share, begin, power, first, second):
    schedule = PolynomialSchedule(final, final * share, begin, 1.0, power)
    low, high = sorted((first, second))
    assert final * share <= schedule(low) + 1e-12
    assert schedule(low) <= schedule(high) + 1e-12
    assert schedule(high) <= final + 1e-12


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"final_sparsity": 1.0}, "final_sparsity"), ({"final_sparsity": -0.1}, "final_sparsity"),
        ({"final_sparsity": float("nan")}, "final_sparsity"), ({"initial_sparsity": 0.9}, "initial_sparsity"),
        ({"begin": 1.0}, "begin"), ({"end": 0.0}, "end"), ({"end": 1.1}, "end"), ({"power": 0}, "power"), ({"power": "3"}, "power"),
    ],
)  # fmt: skip
def test_schedule_names_a_bad_argument(arguments, name):
    with pytest.raises((ValueError, TypeError), match=f"^{name} must be"):
        PolynomialSchedule(**{"final_sparsity": 0.5, **arguments})


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "sparsity"), itertools.product(("vgg19", "resnet18"), (0.5, 0.9)))
def test_global_masks_equal_pytorchs_to_the_weight(name, sparsity):
    model = models.build(name)
    masks = masks_for(magnitudes(model), sparsity)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    prune.global_unstructured(
        [(layer, "weight") for layer in layers.values()], prune.L1Unstructured, amount=sparsity
    )
    assert all(torch.equal(masks[n], layer.weight_mask.bool()) for n, layer in layers.items())


@pytest.mark.parametrize("sparsity", [0.5, 0.95])
def test_global_masks_equal_pytorchs_on_the_teacher_whose_half_precision_weights_have_many_ties(sparsity):
    model = models.load(TEACHER)
    masks = masks_for(magnitudes(model), sparsity)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    prune.global_unstructured(
        [(layer, "weight") for layer in layers.values()], prune.L1Unstructured, amount=sparsity
    )
    assert all(torch.equal(masks[n], layer.weight_mask.bool()) for n, layer in layers.items())


def test_layer_masks_equal_pytorchs_to_the_weight():
    model = models.build("vgg11")
    masks = masks_for(magnitudes(model), 0.7, "layer")
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            assert torch.equal(masks[name], prune.l1_unstructured(layer, "weight", 0.7).weight_mask.bool())


@given(
    st.integers(0, 60),
    st.integers(0, 40),
    st.floats(0, 1),
    st.sampled_from(("global", "layer")),
    st.booleans(),
)
@settings(deadline=None)
def test_the_asked_sparsity_is_reached_to_a_single_weight(first, second, sparsity, scope, ties):
    saliency = {"a": torch.rand(first), "b": torch.rand(second)}
    if ties:
        saliency = {name: torch.ones_like(values) for name, values in saliency.items()}
    masks = masks_for(saliency, sparsity, scope)
    given_up = {name: int((~mask).sum()) for name, mask in masks.items()}
    if scope == "global":
        assert sum(given_up.values()) == round(sparsity * (first + second))
    else:
        assert given_up == {"a": round(sparsity * first), "b": round(sparsity * second)}
    for name, mask in masks.items():
        if mask.any() and not mask.all():
            assert saliency[name][mask].min() >= saliency[name][~mask].max()


def test_masks_name_what_is_wrong():
    with pytest.raises(ValueError, match="saliency of layer a must not be NaN"):
        masks_for({"a": torch.tensor([1.0, float("nan")])}, 0.5)
    with pytest.raises(ValueError, match=r"scope must be.*'channel'"):
        masks_for({}, 0.5, "channel")
    with pytest.raises(ValueError, match="sparsity"):
        masks_for({}, 1.5)
    with pytest.raises(ValueError, match="skip must be one of"):
        prunable(small(), skip=["features.1"])
    with pytest.raises(TypeError, match="skip"):
        prunable(small(), skip="classifier")


@pytest.mark.parametrize("act", [lambda net: prune_once(net, 0.5), sparsity_table, prunable])
def test_a_network_without_layers_to_prune_is_refused_and_not_left_as_it_is_in_silence(act):
    with pytest.raises(ValueError, match="must have a Conv2d or Linear layer"):
        act(nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2)))


def test_prune_once_leaves_skipped_layers_biases_and_norms_alone():
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prune_once(model, 0.9, skip=["classifier"])
    table = sparsity_table(model).set_index("layer")
    assert table.loc["classifier", "zeros"] == 0
    rest = table.drop("classifier")
    assert rest["zeros"].sum() == round(0.9 * rest["parameters"].sum())
    for name, tensor in model.state_dict().items():
        kept = (
            tensor != 0
            if name.removesuffix(".weight") in rest.index
            else torch.ones_like(tensor, dtype=torch.bool)
        )
        assert torch.equal(tensor[kept], before[name][kept])


# -- while training --------------------------------------------------------------------------------------------------


class Watch(Callback):
    """After every step: weights and momentum outside the masks are zero, and no mask has opened again."""

    def __init__(self, pruner):
        self.pruner, self.before = pruner, {}

    def on_step(self, run):
        for name, mask in self.pruner.masks.items():
            weight = self.pruner.weights[name]
            assert not weight[~mask].any()
            assert not weight[~mask].signbit().any()
            assert not run.optimizer.state[weight]["momentum_buffer"][~mask].any()
            if name in self.before:
                assert not (mask & ~self.before[name]).any()
        self.before = dict(self.pruner.masks)


@pytest.mark.parametrize(
    ("importance", "scope"), itertools.product(("magnitude", "gradient"), ("global", "layer"))
)
def test_gradual_pruning_reaches_its_sparsity_and_keeps_it(few, importance, scope):
    pruner = GradualPruner(PolynomialSchedule(0.8, end=0.6), importance, scope, skip=["classifier"], every=2)
    model = small()
    history = fit(model, few, epochs=3, batch_size=32, callbacks=[pruner, Watch(pruner)], progress=False)
    table = sparsity_table(model).set_index("layer").drop("classifier")
    if scope == "global":
        assert table["zeros"].sum() == round(0.8 * table["parameters"].sum())
    else:
        assert (table["zeros"] == (0.8 * table["parameters"]).round()).all()
    assert history["sparsity"].is_monotonic_increasing
    assert type(model.features[0]) is nn.Conv2d
    assert not hasattr(model.features[0], "weight_mask")


def test_gradient_importance_is_the_mean_first_order_term(few):
    """Two batches to a mask: the saliency is the sum of their |w * dL/dw|, and begins anew after the mask."""
    pruner = GradualPruner(lambda progress: 0.5 if progress > 0.6 else 0.0, "gradient", every=2)
    collected = {}

    class Peek(Callback):
        def on_gradients(self, run):
            for n, w in prunable(run.model).items():
                before = collected[n] if run.step == 3 else 0  # steps 2 and 3 make the second mask
                collected[n] = before + (w.detach() * w.grad).abs()

    model = small()
    fit(model, few, epochs=1, batch_size=64, precision="fp32", callbacks=[Peek(), pruner], progress=False)
    assert all(torch.equal(pruner.masks[n], mask) for n, mask in masks_for(collected, 0.5).items())


@pytest.mark.parametrize("importance", ["magnitude", "gradient"])
def test_an_interrupted_pruning_ends_with_the_same_bits(few, tmp_path, importance):
    def run(checkpoint, *callbacks):
        model = small()
        pruner = GradualPruner(PolynomialSchedule(0.9), importance, every=3)
        fit(
            model,
            few,
            epochs=3,
            batch_size=32,
            checkpoint=checkpoint,
            callbacks=[pruner, *callbacks],
            progress=False,
        )
        return model

    class Stop(Callback):
        def on_step(self, run):
            if run.step == 13:
                raise KeyboardInterrupt

    whole, path = run(None), tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(path, Stop())
    resumed = run(path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_pruned_model_saves_and_loads_like_any_other(tmp_path):
    model = small()
    prune_once(model, 0.9)
    back = models.load(models.save(model, tmp_path / "m.safetensors"))
    assert sparsity_table(back).equals(sparsity_table(model))


def test_bad_arguments_of_the_pruner_are_named():
    for arguments, name in (
        ({"schedule": 0.9}, "schedule"),
        ({"importance": "random"}, "importance"),
        ({"scope": "all"}, "scope"),
        ({"every": 0}, "every"),
    ):
        with pytest.raises((ValueError, TypeError), match=name):
            GradualPruner(**{"schedule": PolynomialSchedule(0.5), **arguments})


def test_a_resumed_run_must_have_the_same_pruner(few, tmp_path):
    path = tmp_path / "run.safetensors"
    fit(
        small(),
        few,
        epochs=1,
        batch_size=64,
        checkpoint=path,
        callbacks=[GradualPruner(PolynomialSchedule(0.9))],
        progress=False,
    )
    for callbacks in (
        [],
        [GradualPruner(PolynomialSchedule(0.95))],
        [GradualPruner(PolynomialSchedule(0.9), "gradient")],
    ):
        with pytest.raises(ValueError, match="belongs to a run with callbacks"):
            fit(small(), few, epochs=1, batch_size=64, checkpoint=path, callbacks=callbacks, progress=False)


def test_a_pruner_used_again_starts_with_open_masks(few):
    pruner = GradualPruner(PolynomialSchedule(0.9), every=4)
    runs = []
    for _ in range(2):
        model = small()
        fit(model, few, epochs=1, batch_size=64, callbacks=[pruner], progress=False)
        runs.append(model)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True))


def test_frozen_layers_must_be_skipped_and_skip_may_be_any_iterable(few):
    model = small()
    model.classifier.requires_grad_(False)
    with pytest.raises(ValueError, match="skip must name classifier"):
        fit(
            model,
            few,
            epochs=1,
            batch_size=64,
            callbacks=[GradualPruner(PolynomialSchedule(0.5))],
            progress=False,
        )
    assert "classifier" not in prunable(model, skip=(name for name in ["classifier"]))


def stepping(pruner, model, steps):
    """Let a pruner see every step of a run that moves no weight; return the steps at which it drew masks."""
    run, drawn = Run(model, torch.optim.SGD(model.parameters(), lr=0.0), steps), []
    draw = pruner._draw
    pruner._draw = lambda run: (drawn.append(run.step), draw(run))
    pruner.on_start(run)
    for run.step in range(1, steps + 1):
        pruner.on_step(run)
    return drawn


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (5_000, None, range(100, 5_001, 100)),  # a fiftieth of the run
        (600, None, range(30, 601, 30)),  # but 30 from 300 steps on
        (100, None, range(10, 101, 10)),  # and a tenth before that
        (5, None, range(1, 6)),
        (23, 5, [5, 10, 15, 20, 23]),  # the last step always, so that the asked sparsity is reached
    ],
)
def test_masks_are_drawn_as_often_as_said(steps, every, expected):
    assert stepping(GradualPruner(PolynomialSchedule(0.5), every=every), nn.Linear(4, 2), steps) == list(
        expected
    )


def test_by_gradient_what_was_pruned_before_stays_so_only_if_the_schedule_begins_there():
    for begins, expected in ((0.5, {"": torch.tensor([[True, False, True, False]])}), (0.0, {})):
        layer = nn.Linear(4, 1, bias=False)
        layer.weight.data = torch.tensor([[1.0, 0.0, -2.0, 0.0]])
        pruner = GradualPruner(PolynomialSchedule(0.75, begins), "gradient")
        run = Run(layer, torch.optim.SGD(layer.parameters(), lr=0.1), 10)
        pruner.on_start(run)
        assert {name: mask.tolist() for name, mask in pruner.masks.items()} == {
            name: mask.tolist() for name, mask in expected.items()
        }
        layer.weight.grad = torch.ones(1, 4)
        pruner.on_gradients(run)
        assert layer.weight.grad.tolist() == ([[1, 0, 1, 0]] if begins else [[1, 1, 1, 1]])


# -- two of four, sweep ----------------------------------------------------------------------------------------------


def test_two_of_four_keeps_the_two_largest_of_every_four_inputs():
    layer = torch.nn.Linear(8, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.5, 0.1, -0.2, 0.3]])
    masks = pruning.prune_two_of_four(layer)
    assert layer.weight.tolist() == [pytest.approx([0, -4, 3, 0, 0.5, 0, 0, 0.3])]
    assert masks[""].tolist() == [[False, True, True, False, True, False, False, True]]
    model = models.build("tiny_convnet")
    masks = pruning.prune_two_of_four(model)
    assert set(pruning.prunable(model)) - set(masks) == {"features.0"}  # three inputs: not a multiple of four
    table = pruning.sparsity_table(model).set_index("layer")
    assert (table.loc[list(masks), "sparsity"] == 0.5).all()


def test_sweep_is_what_prune_once_and_the_file_say(few):
    model, held_out, calibration = small(), few.validation.take(slice(0, 100)), few.train.take(slice(0, 100))
    table = pruning.sweep(model, held_out, (0.0, 0.5, 0.9), calibration=calibration)
    for row in table.itertuples():
        sparser = copy.deepcopy(model)
        pruning.prune_once(sparser, row.sparsity)
        assert row.correct == evaluate(sparser, held_out).correct
        assert row.recalibrated_correct == evaluate(recalibrate(sparser, calibration), held_out).correct
        assert row.bytes == profiling.file_bytes(sparser, storage="bitmask")
        gone = torch.cat(
            [
                w.detach().flatten()[w.detach().flatten().abs() <= row.threshold]
                for w in pruning.prunable(model).values()
            ]
        )
        total = sum(w.numel() for w in pruning.prunable(model).values())
        assert abs(len(gone) - round(row.sparsity * total)) <= (0 if row.sparsity else total)


def test_one_shot_in_a_run_keeps_the_masks_of_prune_once(few):
    model, other = small(), small()
    masks = prune_once(other, 0.8)
    pruner = GradualPruner(PolynomialSchedule(0.8, 0.8))
    seen = []

    class Watch(Callback):
        def on_gradients(self, run):
            seen.append(all(torch.equal(pruner.masks[name], mask) for name, mask in masks.items()))

    fit(model, few, epochs=1, batch_size=64, callbacks=[pruner, Watch()], progress=False)
    assert seen
    assert all(seen)


def test_a_layer_that_a_batch_does_not_use_is_pruned_all_the_same(few):
    class Spare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = small(), nn.Linear(10, 10)

        def forward(self, images):
            return self.used(images)

    for importance in ("magnitude", "gradient"):
        model = Spare()
        fit(
            model,
            few,
            epochs=1,
            batch_size=64,
            callbacks=[GradualPruner(PolynomialSchedule(0.9), importance)],
            progress=False,
        )
        table = sparsity_table(model)
        assert table["zeros"].sum() == round(0.9 * table["parameters"].sum())


def test_a_weight_that_two_layers_share_is_pruned_once_or_skipped_by_either_name():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    model[1].weight = model[0].weight
    assert list(prunable(model)) == ["0", "2"]
    assert list(prunable(model, ["0"])) == list(prunable(model, ["1"])) == ["2"]


def test_weights_that_are_made_of_others_are_refused():
    model = nn.Sequential(nn.Linear(8, 8))
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ValueError, match="model must have plain weights"):
        prune_once(model, 0.9)
    prune.remove(model[0], "weight")
    assert prune_once(model, 0.75)["0"].sum() == 16


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Muon])
def test_what_is_given_up_stays_zero_whatever_the_optimizer(kind):
    """AdamW's momentum and Muon's orthogonalised update move weights that have no gradient."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 16, bias=False)
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(layer.parameters(), lr=0.1, weight_decay=0.1, **options)
    run, pruner = Run(layer, optimizer, 12), GradualPruner(PolynomialSchedule(0.75), every=4)
    pruner.on_start(run)
    moved = False
    for run.step in range(1, 13):
        optimizer.zero_grad()
        layer(torch.randn(8, 16)).square().sum().backward()
        pruner.on_gradients(run)
        optimizer.step()
        gone = ~pruner.masks.get("", torch.ones(16, 16, dtype=torch.bool))
        moved |= bool(layer.weight[gone].any())
        pruner.on_step(run)
        assert not layer.weight[gone].any()
    assert moved == (kind is not torch.optim.SGD)  # the others had something to be held back
    assert (layer.weight == 0).sum() == 192


def test_a_weight_given_up_stays_so_under_a_schedule_that_falls():
    layer = nn.Linear(8, 1, bias=False)
    pruner = GradualPruner(lambda progress: 0.75 - progress / 2, every=1)
    run = Run(layer, torch.optim.SGD(layer.parameters(), lr=0.1), 2)
    pruner.on_start(run)
    gone = ~pruner.masks[""]
    for run.step in (1, 2):
        pruner.on_step(run)
    assert gone.sum() == 6
    assert torch.equal(~pruner.masks[""], gone)


def test_a_layer_that_pruning_empties_is_named(few):
    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.1)
    first = next(iter(prunable(model)))
    prunable(model)[first].data *= 1e-6
    with pytest.warns(UserWarning, match=rf"no weight is left in .*{first}.*: scope"):
        fit(model, few, epochs=1, lr=1e-4, progress=False, callbacks=[GradualPruner(lambda progress: 0.9)])


def test_a_channel_that_no_longer_varies_answers_the_same_in_every_precision(digits):
    model, few = models.build("vgg11", width=0.05), digits.train.take(slice(0, 200))
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = 0.9  # so that a few steps are enough
    data = replace(digits, train=few, validation=few)
    pruner = GradualPruner(lambda progress: 0.985, skip=["classifier"])
    fit(model, data, epochs=2, batch_size=20, lr=0.01, callbacks=[pruner])
    before = predict(model, few)
    still = [layer.running_var < 1e-8 for layer in norms]
    assert sum(int(one.sum()) for one in still) >= 5
    for layer, constant in zip(norms, still, strict=True):
        assert (layer.weight[constant] == 0).all()
        assert (layer.weight[~constant] != 0).all()
        layer.running_mean[constant] += 1e-3
    torch.testing.assert_close(predict(model, few), before)


def test_a_channel_that_hardly_varies_keeps_its_scale(few):
    class Narrow(Callback):
        def on_step(self, run):
            run.model.features[1].running_var[:2] = run.model.features[1].eps * torch.tensor([0.5, 1e-4])

    model = models.build("vgg11", width=0.05)
    pruner = GradualPruner(PolynomialSchedule(0.1))
    fit(model, few, epochs=1, batch_size=64, callbacks=[Narrow(), pruner], progress=False)
    assert model.features[1].weight[0] != 0
    assert model.features[1].weight[1] == 0
