import pytest
import torch
from torch import nn

from helpers import evaluation, models
from helpers.channels import prune_channels
from helpers.data import load_data
from helpers.muon import Muon, orthogonalize
from helpers.pruning import GradualPruner, PolynomialSchedule, prunable
from helpers.training import evaluate, fit


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24), (1, 9), (5, 1)])
@pytest.mark.parametrize("exact", [True, False])
def test_it_keeps_the_singular_vectors_and_brings_the_values_near_one(shape, exact, monkeypatch):
    monkeypatch.setattr(evaluation, "has_bf16", lambda *_: not exact)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(1, 0.1, min(shape))  # all above a fiftieth of the norm
    found = orthogonalize(left @ torch.diag(values) @ right)
    turned = left.T @ found @ right.T
    assert found.dtype == torch.float32
    assert turned.diagonal().min() > 0.68 - (0 if exact else 0.03)
    assert turned.diagonal().max() < 1.21 + (0 if exact else 0.03)
    assert (turned - turned.diagonal().diag()).abs().max() < (1e-5 if exact else 0.03)


def test_of_a_matrix_of_zeros_it_makes_zeros():
    assert torch.equal(orthogonalize(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_more_steps_do_not_leave_the_range():
    found = torch.linalg.svdvals(orthogonalize(torch.randn(20, 30).double(), steps=8))
    assert 0.65 < found.min() <= found.max() < 1.25


def test_two_steps_worked_out(monkeypatch):
    """A matrix is held at its norm and moved along U V^T of gradient + momentum * buffer; a bias goes by SGD."""
    monkeypatch.setattr(evaluation, "has_bf16", lambda *_: False)
    layer, twin = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
    twin.load_state_dict(layer.state_dict())
    mine = Muon(layer.parameters(), lr=0.1, momentum=0.6, weight_decay=0.01)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.6, weight_decay=0.01, nesterov=True)
    weight, buffer = layer.weight.detach().clone(), torch.zeros_like(layer.weight)
    for _ in range(2):
        for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        mine.step()
        sgd.step()
        buffer = 0.6 * buffer + layer.weight.grad
        move = orthogonalize((layer.weight.grad + 0.6 * buffer).view(3, 18)).view(3, 2, 3, 3)
        weight = weight * 3**0.5 / weight.norm() - 0.1 * move
        assert torch.allclose(layer.weight, weight, atol=1e-6)
        assert torch.allclose(layer.bias, twin.bias, atol=1e-7)
    assert torch.equal(mine.state[layer.weight]["momentum_buffer"], buffer)


def test_a_group_that_is_not_orthogonal_goes_by_sgd():
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    groups = [{"params": [ours.weight], "orthogonal": False, "weight_decay": 0.1}, {"params": [ours.bias]}]
    mine = Muon(groups, lr=0.2, momentum=0.5)
    twin = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias]}]
    sgd = torch.optim.SGD(twin, lr=0.2, momentum=0.5, nesterov=True)
    images = torch.randn(6, 4)
    for _ in range(3):
        for layer, one in ((ours, mine), (theirs, sgd)):
            one.zero_grad()
            layer(images).square().sum().backward()
            one.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-6)


def test_a_weight_without_gradient_and_one_of_zeros_stay():
    layer = nn.Linear(3, 2)
    mine = Muon(layer.parameters())
    nn.init.zeros_(layer.weight)
    layer.weight.grad = torch.zeros_like(layer.weight)
    before = layer.bias.clone()
    mine.step()
    assert torch.equal(layer.weight, torch.zeros(2, 3))
    assert torch.equal(layer.bias, before)


@pytest.mark.parametrize(
    "wrong", [{"lr": -1}, {"momentum": 1.0}, {"weight_decay": float("nan")}, {"params": 1}]
)
def test_bad_arguments_are_named(wrong):
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(wrong))} must be"):
        Muon(**{"params": nn.Linear(2, 2).parameters(), **wrong})


def test_in_fit_the_classifier_and_what_is_frozen_are_not_held_at_a_norm():
    data = load_data("digits", train_limit=64)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(),
        nn.Linear(384, 16), nn.ReLU(), nn.Linear(16, 10),
    )  # fmt: skip
    model[3].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, data, epochs=1, batch_size=64, optimizer="muon", lr=1e-9, progress=False)  # held, not moved
    for layer, held in ((0, True), (3, False), (5, True), (7, False)):
        weight = model[layer].weight
        assert (weight.norm().item() == pytest.approx(len(weight) ** 0.5, rel=1e-5)) is held
        assert torch.allclose(weight, before[f"{layer}.weight"], atol=1e-6) is not held


class HeadFirst(nn.Module):
    """Defines its head before the layers that run before it."""

    def __init__(self):
        super().__init__()
        self.head, self.neck, self.body = nn.Linear(8, 10), nn.Linear(16, 8), nn.Conv2d(3, 16, 3, stride=4)

    def forward(self, images):
        return self.head(self.neck(self.body(images).relu().mean((2, 3))).relu())


def test_the_classifier_is_what_runs_last():
    data, model = load_data("digits", train_limit=64), HeadFirst()
    head = model.head.weight.detach().clone()
    fit(model, data, epochs=1, batch_size=64, optimizer="muon", lr=1e-9, progress=False)  # held, not moved
    assert torch.allclose(model.head.weight, head, atol=1e-6)
    assert model.neck.weight.norm().item() == pytest.approx(8**0.5, rel=1e-5)
    thin = prune_channels(model, torch.zeros(1, 3, 32, 32), 0.5, round_to=1)
    assert (len(thin.head.weight), len(thin.neck.weight), len(thin.body.weight)) == (10, 4, 8)


def test_a_pruned_weight_is_zero_after_every_step():
    """An orthogonalised step moves it, whatever its gradient: the pruner must have the last word."""
    data, seen = load_data("digits", train_limit=256), []

    class Watched(GradualPruner):
        def on_step(self, run):
            super().on_step(run)
            seen.append(all((self.weights[name][~mask] == 0).all() for name, mask in self.masks.items()))

    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.3)
    pruner = Watched(PolynomialSchedule(0.8, 0.3), every=1)
    options = {"epochs": 2, "batch_size": 32, "optimizer": "muon", "momentum": 0.6, "progress": False}
    history = fit(model, data, callbacks=[pruner], **options)
    assert seen == [True] * 16
    assert history["sparsity"].iloc[-1] == pytest.approx(0.8, abs=0.01)
    assert all(weight.abs().max() > 0 for weight in prunable(model).values())


def test_it_learns_digits_in_fewer_epochs_than_sgd(digits):
    found = {}
    for optimizer, momentum in (("sgd", 0.9), ("muon", 0.6)):
        torch.manual_seed(0)
        model = models.build("tiny_convnet", width=0.3)
        options = {"optimizer": optimizer, "momentum": momentum, "schedule": "one_cycle"}
        fit(model, digits, epochs=2, batch_size=64, warmup=0, label_smoothing=0.2, progress=False, **options)
        found[optimizer] = float(evaluate(model, digits.test))
    assert found["muon"] > max(0.9, found["sgd"])
