"""What a notebook's set-up cell hands out besides the data."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from helpers import lesson as module
from helpers import models
from helpers.distillation import record
from helpers.files import CheckpointError, fingerprint
from helpers.lesson import Lesson
from helpers.maintain import answers
from tests.conftest import CIFAR10


def test_a_student_is_whitened_and_the_seed_decides_about_the_rest(digits):
    lesson = Lesson("quick", digits)
    first, again, other = (lesson.student(seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert torch.equal(first.features[0].weight, other.features[0].weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_digits_are_trained_on_as_long_in_every_budget_and_all_pictures_are_when_brief(digits):
    pictures = replace(digits, name="cifar10")
    length = {"digits": 1, "quick": 2, "full": 3}
    assert [Lesson(budget, digits).pick(**length) for budget in ("brief", "quick", "full")] == [1, 1, 1]
    assert [Lesson(budget, pictures).pick(**length) for budget in ("brief", "quick", "full")] == [1, 2, 3]


def test_on_digits_the_answers_are_the_teachers(digits, monkeypatch):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    monkeypatch.setattr(Lesson, "teacher", lambda self: teacher)
    assert torch.equal(Lesson("quick", digits).answers(), record(teacher, digits.train))


def test_published_answers_are_the_frozen_teachers_within_one_step_of_255(cifar10):
    few = cifar10.train.take(slice(0, 8))
    with np.load(module.ANSWERS) as found:
        low, high = found["range"]
    ours = Lesson("quick", cifar10).answers()
    assert ours.shape == (45_000, 2, 10)
    live = record(models.load(module.TEACHER), few)
    assert (ours[:8] - live).abs().max() <= (high - low) / 255


def test_answers_of_another_teacher_are_refused(cifar10, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ANSWERS", tmp_path / "a.npz")
    monkeypatch.setattr(answers, "ANSWERS", tmp_path / "a.npz")
    answers.write(torch.tensor([[[-1.0, 3.0]]]), fingerprint(module.TEACHER))
    assert Lesson("quick", cifar10).answers().tolist() == [[[-1.0, 3.0]]]
    answers.write(torch.tensor([[[-1.0, 3.0]]]), "another")
    with pytest.raises(CheckpointError, match="holds another teacher's answers"):
        Lesson("quick", cifar10).answers()


def test_few_pictures_come_with_their_own_answers(cifar10, monkeypatch):
    monkeypatch.setattr(module.plotting, "theme", lambda: None)
    for name, value in {"NNC_DATA": "cifar10", "NNC_PICTURES": "100", "CIFAR10_ROOT": str(CIFAR10)}.items():
        monkeypatch.setenv(name, value)
    lesson = module.open_lesson()
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(lesson.data, part).images, getattr(cifar10, part).images[:100])
    assert torch.equal(lesson.answers(), Lesson("quick", cifar10).answers()[:100])
