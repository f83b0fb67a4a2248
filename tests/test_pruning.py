import copy
import itertools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from helpers import models, profiling, pruning
from helpers.data import load_data
from helpers.pruning import GradualPruner, PolynomialSchedule, masks_for, prunable, prune_once, sparsity_table
from helpers.lesson import TEACHER
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
    with pytest.raises(ValueError, match="scope must be one of 'global', 'layer'"):
        masks_for({}, 0.5, "channel")
    with pytest.raises(ValueError, match="sparsity"):
        masks_for({}, 1.5)
    with pytest.raises(ValueError, match="skip must be one of"):
        prunable(small(), skip=["features.1"])
    with pytest.raises(TypeError, match="skip"):
        prunable(small(), skip="classifier")


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
    pruner._draw = lambda run, saliency: (drawn.append(run.step), draw(run, saliency))
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


# -- two of four, sensitivity, channels, sweep -----------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def trained():
    data = load_data("digits")
    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.5)
    fit(model, data, epochs=4, batch_size=64, progress=False)
    return model, data


def test_sensitivity_prunes_one_layer_at_a_time_and_changes_nothing(trained):
    model, data = trained
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scan = pruning.sensitivity(model, data.validation, ratios=(0.5, 0.99))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert list(scan["layer"].unique()) == list(pruning.prunable(model))
    assert all(list(rows["ratio"]) == [0.0, 0.5, 0.99] for _, rows in scan.groupby("layer"))
    by_hand = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # torch's own pruning needs that
    layer = by_hand.get_submodule("features.0")
    torch.nn.utils.prune.l1_unstructured(layer, "weight", amount=0.99)
    row = scan[(scan["layer"] == "features.0") & (scan["ratio"] == 0.99)].iloc[0]
    assert row["correct"] == evaluate(by_hand, data.validation).correct
    whole = evaluate(model, data.validation).correct
    assert (scan[scan["ratio"] == 0]["correct"] == whole).all()
    ratios = pruning.ratios_by_sensitivity(scan, 0.0)
    assert set(ratios) == set(pruning.prunable(model))
    assert all(
        scan[(scan["layer"] == n) & (scan["ratio"] == r)]["correct"].item() >= whole
        for n, r in ratios.items()
    )
    assert set(pruning.ratios_by_sensitivity(scan, 1.0).values()) == {0.99}


def test_sensitivity_of_channels_leaves_the_classifier_out(trained):
    model, data = trained
    scan = pruning.sensitivity(model, data.validation.take(slice(0, 50)), ratios=(0.5,), unit="channel")
    assert "classifier" not in set(scan["layer"])
    assert len(scan) == 2 * (len(pruning.prunable(model)) - 1)
    for name in set(scan["layer"]):  # a residual sum ties layers together: each copy is smaller all the same
        thinner = pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), {name: 0.5}, round_to=1)
        assert profiling.count_parameters(thinner) < profiling.count_parameters(model), name


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "resnet50", "tiny_convnet", "mobilenet_student"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_channels_really_go_and_the_rest_still_fits(name, scope, tmp_path):
    model = models.build(name, width=0.5).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    smaller = pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), 0.5, scope=scope)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert profiling.count_parameters(smaller) < 0.4 * profiling.count_parameters(model)
    images = torch.randn(2, 3, 32, 32)
    assert smaller(images).shape == (2, 10)
    for (layer, before_), after in zip(
        pruning.prunable(model).items(), pruning.prunable(smaller).values(), strict=True
    ):
        if scope == "layer" and layer not in (
            "classifier",
            "fc",
        ):  # half of the channels, to the nearest multiple of 8, 8 at least
            count = before_.shape[0]
            assert after.shape[0] == (max(8, 8 * round(count / 2 / 8)) if count > 8 else count), layer
    back = models.load(models.save(smaller, tmp_path / "smaller.safetensors"))
    assert torch.equal(back(images), smaller(images))


def test_a_scan_of_channels_takes_exactly_the_share_it_names(trained, monkeypatch):
    model, data = trained
    seen = []
    monkeypatch.setattr(
        pruning,
        "evaluate",
        lambda network, split, precision: seen.append(network) or evaluate(network, split),
    )
    pruning.sensitivity(
        model, data.validation.take(slice(0, 20)), ratios=(0.25, 0.6), unit="channel", only=["features.0"]
    )
    assert [network.get_submodule("features.0").out_channels for network in seen] == [
        12,
        9,
        5,
    ]  # round(12 * 0.4) is 5


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_ranked_together_exactly_the_share_of_all_channels_goes(ratio):
    torch.manual_seed(0)
    model = models.build("vgg11", width=0.25)
    smaller = pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), ratio, scope="global", round_to=1)
    before, after = (
        sum(layer.out_channels for layer in m.modules() if isinstance(layer, nn.Conv2d))
        for m in (model, smaller)
    )
    assert before - after == round(ratio * before)


def test_the_channels_with_the_smallest_weights_go():
    model = models.build("vgg11", width=0.25).eval()
    first = model.get_submodule("features.0")
    weak = [1, 5, 6, 9]
    with torch.no_grad():
        first.weight[weak] *= 1e-3
        for index in (1, 4):  # its normalisation and the next layer's share of these channels
            other = model.get_submodule(f"features.{index}").weight
            (other[weak] if index == 1 else other[:, weak]).mul_(1)
            if index == 1:
                other[weak] *= 1e-3
            else:
                other[:, weak] *= 1e-3
    smaller = pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), {"features.0": 0.25}, round_to=1)
    kept = [channel for channel in range(16) if channel not in weak]
    assert torch.equal(smaller.get_submodule("features.0").weight, first.weight[kept])
    assert torch.equal(
        smaller.get_submodule("features.4").weight, model.get_submodule("features.4").weight[:, kept]
    )
    images = torch.randn(4, 3, 32, 32)  # what went had next to no influence
    assert torch.allclose(smaller(images), model(images), atol=1e-3)


def test_channels_by_gradient_and_by_batchnorm():
    model = models.build("tiny_convnet", width=0.5)
    with pytest.raises(ValueError, match="gradients"):
        pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), 0.5, importance="gradient")
    model(torch.randn(8, 3, 32, 32)).square().sum().backward()
    for importance in ("gradient", "batchnorm"):
        smaller = pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), 0.5, importance=importance)
        assert smaller.training
        assert profiling.count_parameters(smaller) < 0.3 * profiling.count_parameters(model)
        assert all(parameter.grad is None for parameter in smaller.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1.0}, "ratio"),
        ({"ratio": -0.1}, "ratio"),
        ({"ratio": {"features.99": 0.5}}, "features.99"),
        ({"ratio": 0.5, "importance": "size"}, "importance"),
        ({"ratio": 0.5, "scope": "all"}, "scope"),
        ({"ratio": 0.5, "round_to": 0}, "round_to"),
    ],
)
def test_prune_channels_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        pruning.prune_channels(
            models.build("tiny_convnet", width=0.25), torch.zeros(1, 3, 32, 32), **arguments
        )


def test_sweep_is_what_prune_once_and_the_file_say(trained):
    model, data = trained
    table = pruning.sweep(model, data.validation, (0.0, 0.5, 0.9))
    for row in table.itertuples():
        sparser = copy.deepcopy(model)
        pruning.prune_once(sparser, row.sparsity)
        assert row.correct == evaluate(sparser, data.validation).correct
        assert row.bytes == profiling.file_bytes(sparser, storage="bitmask")
        gone = torch.cat(
            [
                w.detach().flatten()[w.detach().flatten().abs() <= row.threshold]
                for w in pruning.prunable(model).values()
            ]
        )
        total = sum(w.numel() for w in pruning.prunable(model).values())
        assert abs(len(gone) - round(row.sparsity * total)) <= (0 if row.sparsity else total)


def test_sensitivity_of_named_layers_only(trained):
    model, data = trained
    scan = pruning.sensitivity(model, data.validation, (0.9,), only=["features.3"])
    assert set(scan["layer"]) == {"features.3"}
    for unit, name in (("weight", "features.1"), ("channel", "classifier")):
        with pytest.raises(ValueError, match="only must be one of"):
            pruning.sensitivity(model, data.validation, (0.9,), unit=unit, only=[name])


def test_tied_layers_lose_the_smallest_share_given_and_a_named_one_takes_the_others_along():
    model = models.build("tiny_convnet")  # features.3 and the block behind it are added up
    tied = ["features.3", "features.6.body.3"]
    for ratio, left in (({tied[0]: 0.5}, 24), ({tied[0]: 0.5, tied[1]: 0.25}, 36)):
        smaller = pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), ratio, round_to=4)
        assert [smaller.get_submodule(name).out_channels for name in tied] == [left, left]
    kept = pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), 0.5, skip=[tied[0]])
    assert [kept.get_submodule(name).out_channels for name in tied] == [48, 48]


def test_a_frozen_network_is_pruned_and_stays_frozen():
    model = models.build("vgg11", width=0.25).requires_grad_(False).train()
    model.features[4].eval()
    with torch.no_grad():
        smaller = pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), 0.5)
    assert profiling.count_parameters(smaller) < 0.4 * profiling.count_parameters(model)
    assert not any(parameter.requires_grad for parameter in smaller.parameters())
    assert smaller.training
    assert not smaller.features[4].training


def test_a_channel_pruned_file_needs_no_torch_pruning(tmp_path, monkeypatch):
    smaller = pruning.prune_channels(models.build("vgg11", width=0.25), torch.zeros(1, 3, 32, 32), 0.5)
    path = models.save(smaller, tmp_path / "smaller.safetensors")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert models.load(path)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(ImportError, match="pip install torch-pruning"):
        pruning.prune_channels(smaller, torch.zeros(1, 3, 32, 32), 0.5)


def test_importance_decides_which_channels_go():
    model = models.build("vgg11", width=0.25)
    convolution, normalisation = model.features[0], model.features[1]
    with torch.no_grad():
        convolution.weight[:8] *= 1e-3  # small weights, small shifts, but large scales
        model.features[4].weight[:, :8] *= 1e-3
        normalisation.weight[:8], normalisation.weight[8:] = 3.0, 1.0
        normalisation.weight[:8] += torch.rand(8)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    convolution.weight.grad[8:] = 0  # only the first eight matter to the loss
    model.features[4].weight.grad[:, 8:] = 0
    normalisation.weight.grad[8:] = 0
    normalisation.bias.grad[8:] = 0
    for importance, left in (("batchnorm", slice(0, 8)), ("gradient", slice(0, 8))):
        smaller = pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), {"features.0": 0.5}, importance)
        assert torch.equal(smaller.features[0].weight, convolution.weight[left]), importance


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


def test_finalize_gives_the_plain_model_back(few):
    pruner = GradualPruner(PolynomialSchedule(0.7))
    with pytest.raises(RuntimeError, match="after fit"):
        pruner.finalize()
    model = small()
    fit(model, few, epochs=1, batch_size=64, callbacks=[pruner], progress=False)
    final = pruner.finalize()
    assert final is model
    assert not pruner.masks
    table = sparsity_table(final)
    assert abs(table["zeros"].sum() - 0.7 * table["parameters"].sum()) <= 0.5


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


def test_a_weight_that_two_layers_share_is_pruned_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    assert list(prunable(model)) == ["0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": {}}, "ratio must name"),
        ({"ratio": {"classifier": 0.5}}, "ratio must be one of"),
        ({"ratio": {"features.0": 0.5}, "scope": "global"}, "scope must be"),
        ({"ratio": 0.5, "skip": ["nowhere"]}, "skip must be"),
        ({"ratio": 0.5, "example": torch.zeros(1, 5, 32, 32)}, "example must be"),
    ],
)
def test_prune_channels_names_what_does_not_fit(arguments, message):
    arguments = {"example": torch.zeros(1, 3, 32, 32), **arguments}
    with pytest.raises(ValueError, match=message):
        pruning.prune_channels(models.build("tiny_convnet", width=0.25), **arguments)


def test_prune_channels_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="batchnorm"):
        pruning.prune_channels(
            nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16, 2)),
            torch.zeros(1, 3, 3, 3),
            0.5,
            "batchnorm",
        )
    with pytest.raises(ValueError, match="skip must name"):
        pruning.prune_channels(
            nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)), torch.zeros(1, 3, 8, 8), 0.5
        )
