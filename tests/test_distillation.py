import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from helpers import low_rank, models
from helpers.data import normalize
from helpers.distillation import (
    DistillationLoss,
    answered,
    distillation_loss,
    record,
    shuffle_wrong,
    soften,
    temperature_effect,
)
from helpers.training import fit


def reference(student, teacher, labels, temperature, alpha):
    """Hinton 2015, written out in numpy float64, picture by picture."""
    total = 0.0
    for s, t, label in zip(student.astype(np.float64), teacher.astype(np.float64), labels, strict=True):

        def softmax(logits, temperature):
            shifted = np.exp((logits - logits.max()) / temperature)
            return shifted / shifted.sum()

        p, q = softmax(t, temperature), softmax(s, temperature)
        total += alpha * temperature**2 * np.sum(p * (np.log(p) - np.log(q))) - (1 - alpha) * np.log(
            softmax(s, 1)[label]
        )
    return total / len(labels)


@pytest.mark.parametrize(("temperature", "alpha"), itertools.product((1, 4, 20), (0, 0.5, 1)))
def test_equals_the_float64_reference(temperature, alpha):
    student, teacher = 3 * torch.randn(2, 32, 10)
    labels = torch.randint(0, 10, (32,))
    expected = reference(student.numpy(), teacher.numpy(), labels.numpy(), temperature, alpha)
    assert distillation_loss(
        student.double(), teacher.double(), labels, temperature, alpha
    ).item() == pytest.approx(expected, abs=1e-9)
    assert distillation_loss(student, teacher, labels, temperature, alpha).item() == pytest.approx(
        expected, rel=1e-6, abs=1e-6
    )


def test_a_case_worked_by_hand():
    # Teacher (ln 3, 0) at T = 1: (3/4, 1/4). Student (0, 0): (1/2, 1/2). KL = 3/4 ln(3/2) + 1/4 ln(1/2); CE = ln 2.
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = distillation_loss(
        torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), torch.tensor([0]), temperature=1, alpha=0.5
    )
    assert loss.item() == pytest.approx(0.5 * kl + 0.5 * math.log(2), abs=1e-7)


def test_a_student_that_agrees_has_no_soft_loss():
    logits = torch.randn(8, 10)
    assert distillation_loss(logits, logits, torch.zeros(8, dtype=torch.long), 4, 1).item() == pytest.approx(
        0, abs=1e-6
    )


def test_the_gradient_keeps_its_scale_at_high_temperature():
    teacher, labels = torch.randn(16, 10), torch.zeros(16, dtype=torch.long)
    norms = []
    for temperature in (50.0, 100.0, 200.0):
        student = torch.zeros(16, 10, requires_grad=True)
        distillation_loss(student, teacher, labels, temperature, 1).backward()
        norms.append(student.grad.norm().item())
        # Hinton 2015, eq. 4: T^2 times the gradient tends to (v_student - v_teacher) / N, with zero-mean logits.
        limit = -(teacher - teacher.mean(1, keepdim=True)) / 10 / 16
        assert torch.allclose(student.grad, limit, atol=0.05 * limit.abs().max().item())
    assert max(norms) / min(norms) < 1.05


def test_the_loss_is_a_mean_over_the_batch():
    student, teacher, labels = torch.randn(6, 10), torch.randn(6, 10), torch.arange(6)
    whole = distillation_loss(student, teacher, labels)
    parts = [distillation_loss(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1]) for i in range(6)]
    assert whole.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-6)


def test_bfloat16_logits_are_computed_in_float32():
    student, teacher, labels = torch.randn(6, 10).bfloat16(), torch.randn(6, 10).bfloat16(), torch.arange(6)
    assert distillation_loss(student, teacher, labels).dtype == torch.float32
    assert torch.equal(
        distillation_loss(student, teacher, labels),
        distillation_loss(student.float(), teacher.float(), labels),
    )


def test_soft_targets_are_the_softmax_in_float32_and_what_is_not_said_is_the_default():
    logits, teacher, labels = torch.randn(6, 10), torch.randn(6, 10), torch.arange(6)
    assert torch.allclose(soften(logits), logits.softmax(-1))
    assert soften(logits.bfloat16()).dtype == torch.float32
    assert soften(logits.double(), 3.0).dtype == torch.float64
    assert torch.equal(
        distillation_loss(logits, teacher, labels), distillation_loss(logits, teacher, labels, 4.0, 0.9)
    )
    assert repr(DistillationLoss(nn.Identity())).startswith("DistillationLoss(\n  temperature=4, alpha=0.9\n")


def test_the_bounds_of_the_temperature_are_allowed_and_mean_what_they_should():
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    for temperature in (1e-3, 1e6):
        assert math.isfinite(
            distillation_loss(logits, logits.flip(1), torch.tensor([0]), temperature, 1.0).item()
        )
    assert soften(logits, 1e-3).tolist() == [[0, 0, 1]]
    assert soften(logits, 1e6).tolist() == [pytest.approx([1 / 3] * 3, abs=1e-5)]
    assert soften(torch.tensor([3e38, -3e38]), 1e-3).tolist() == [1, 0]  # nothing overflows on the way
    for temperature in (0.9e-3, 1.1e6):
        with pytest.raises(ValueError, match="temperature must be"):
            soften(logits, temperature)


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, images):
        assert not torch.is_grad_enabled()
        return self.net(images)


@pytest.mark.parametrize("mode", [True, False])
def test_the_teacher_answers_in_eval_mode_and_without_a_graph_and_the_callers_stays_as_it_is(mode):
    teacher = Teacher().train()
    teacher.net[1].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    loss = DistillationLoss(teacher, 2.0, 0.7).train(mode)
    student = torch.randn(5, 4, requires_grad=True)
    images, labels = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 3, 0])
    value = loss(student, images, labels)
    value.backward()
    assert not any(p.requires_grad for p in loss.parameters())
    assert all(module.training for module in teacher.modules())
    assert [p.requires_grad for p in teacher.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    expected = distillation_loss(student, teacher.eval().net(images), labels, 2.0, 0.7)
    assert value.item() == pytest.approx(expected.item())


def test_a_student_may_share_layers_with_its_teacher_or_be_the_teacher_itself(digits):
    """What the student learns changes the shared layers, not the answers it learns from."""
    few = replace(digits, train=digits.train.take(slice(0, 64)))
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(512, 10))
    for student in (nn.Sequential(*teacher[:3], nn.Linear(512, 10)), teacher):
        loss, images = DistillationLoss(teacher), normalize(few.train.images, few)
        first, before = loss(torch.zeros(64, 10), images, few.train.labels), teacher[0].weight.clone()
        fit(student, few, epochs=1, batch_size=32, loss=loss, lr=0.01, progress=False)
        assert not torch.equal(teacher[0].weight, before)
        assert all(p.requires_grad for p in student.parameters())
        assert torch.equal(loss(torch.zeros(64, 10), images, few.train.labels), first)


def test_a_teacher_can_be_factorized_and_trained_after_the_loss_was_made(digits):
    teacher = models.build("tiny_convnet", width=0.2)
    loss = DistillationLoss(teacher)
    small = low_rank.factorize(teacher, energy=0.5)
    few = replace(digits, train=digits.train.take(slice(0, 64)))
    assert math.isfinite(fit(small, few, epochs=1, loss=loss, progress=False)["loss"][0])


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match="alpha must be"):
        DistillationLoss(nn.Identity(), alpha=alpha)
    with pytest.raises(ValueError, match="alpha must be"):
        distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), alpha=alpha)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_temperature_out_of_range(temperature):
    for call in (
        lambda: DistillationLoss(nn.Identity(), temperature=temperature),
        lambda: soften(torch.zeros(2), temperature),
        lambda: temperature_effect(torch.zeros(2), temperature),
    ):
        with pytest.raises(ValueError, match="temperature must be"):
            call()


def test_wrong_types_and_shapes_are_named():
    with pytest.raises(TypeError, match="teacher must be an instance of Module"):
        DistillationLoss("vgg19")
    with pytest.raises(TypeError, match="alpha"):
        DistillationLoss(nn.Identity(), alpha="0.5")
    labels = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"same number of classes, got \(4, 10\) and \(4, 100\)"):
        distillation_loss(torch.zeros(4, 10), torch.zeros(4, 100), labels)
    with pytest.raises(ValueError, match="labels"):
        distillation_loss(torch.zeros(5, 10), torch.zeros(5, 10), labels)


def test_temperature_effect_at_its_lowest_default_and_highest():
    logits = torch.tensor([4.0, 2.0, 0.0, -1.0])
    one, four, twenty = (temperature_effect(logits, t) for t in (1, 4, 20))
    assert torch.allclose(one["probabilities"], torch.softmax(logits, 0))
    assert one["entropy"] < four["entropy"] < twenty["entropy"] < 2.0
    assert twenty["entropy"] == pytest.approx(2.0, abs=0.02)
    assert one["gradient_scale"] == pytest.approx(1)
    # The gradient itself, by autograd, for a student at zero.
    for temperature, effect in ((1, one), (4, four), (20, twenty)):
        student = torch.zeros(1, 4, requires_grad=True)
        distillation_loss(student, logits[None], torch.tensor([0]), temperature, 1).backward()
        start = torch.zeros(1, 4, requires_grad=True)
        distillation_loss(start, logits[None], torch.tensor([0]), 1, 1).backward()
        assert effect["scaled_gradient"] == pytest.approx(
            (student.grad.norm() / start.grad.norm()).item(), rel=1e-4
        )
    with pytest.raises(ValueError, match="logits"):
        temperature_effect(torch.zeros(2, 2), 1)


def test_distillation_trains_through_fit_and_leaves_the_teacher_alone(digits):
    teacher = models.build("tiny_convnet", width=0.3)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    history = fit(
        models.build("tiny_convnet", width=0.2),
        digits,
        epochs=1,
        batch_size=128,
        loss=DistillationLoss(teacher),
        progress=False,
    )
    assert math.isfinite(history["loss"][0])
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_shuffled_wrong_classes_keep_what_is_likeliest_and_every_value_of_an_answer():
    logits = torch.randn(200, 6)
    shuffled = shuffle_wrong(logits)
    assert torch.equal(shuffled.argmax(1), logits.argmax(1))
    assert torch.equal(shuffled.sort(dim=1).values, logits.sort(dim=1).values)
    places = (shuffled[..., None] == logits[:, None]).float().argmax(2)  # where each value stood before
    wrong = places[places[:, 0] != 0][:, 0][logits[places[:, 0] != 0].argmax(1) != 0]
    assert wrong.bincount(minlength=6)[1:].min() > 10  # each of the others comes to the first place


def test_recorded_answers_teach_like_the_teacher_who_gave_them(digits):
    """Views in their order, a mirror image where it means the same, and the same loss as with a live teacher."""
    teacher = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(392, 10))
    mirrored = replace(digits.train.take(slice(0, 20)), mirror=True)
    for split, views in ((mirrored, 2), (replace(mirrored, mirror=False), 1)):
        logits = record(teacher, split, precision="fp32")
        taught = answered(split, logits)
        assert logits.shape == (20, views, 10)
        assert (len(taught), taught.mirror) == (20 * views, False)
        assert torch.equal(taught.images[:20], split.images)
        assert torch.equal(taught.images[20:], split.images.flip(3)[: 20 * (views - 1)])
        seen, student = normalize(taught.images, taught), torch.randn(20 * views, 10)
        live = teacher(seen)
        assert torch.allclose(taught.labels, live.softmax(1), atol=1e-5)
        expected = DistillationLoss(teacher, 3, 0.7)(student, seen, live.argmax(1))
        assert DistillationLoss(None, 3, 0.7)(student, seen, taught.labels).item() == pytest.approx(
            expected.item(), rel=1e-4
        )
    with pytest.raises(ValueError, match="logits must be 20 x views x classes"):
        answered(split, torch.zeros(19, 1, 10))


def test_a_teacher_that_is_certain_does_not_make_the_loss_infinite():
    labels = torch.tensor([[1.0, 0.0, 0.0]])
    assert DistillationLoss(None)(torch.zeros(1, 3), torch.zeros(1), labels).isfinite()
