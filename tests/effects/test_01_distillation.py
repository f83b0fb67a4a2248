"""What lesson 01 shows, on digits: it fails if the lesson stops showing what it says."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import models
from helpers.data import load_data
from helpers.distillation import DistillationLoss, answered, record, shuffle_wrong, soften
from helpers.lesson import FAST, Lesson
from helpers.training import evaluate, fit


class Shuffled(nn.Module):
    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images):
        return shuffle_wrong(self.teacher(images))


class Smoothed(Shuffled):
    def forward(self, images):
        soft = soften(self.teacher(images), 4)
        top = F.one_hot(soft.argmax(1), 10).bool()
        sure = soft.amax(1).mean()
        return 4 * torch.where(top, sure, (1 - sure) / 9).log()


@pytest.fixture(scope="module")
def lesson(digits):
    return Lesson("quick", digits)


@pytest.fixture(scope="module")
def mean(lesson):
    """The mean test accuracy in percent of five students of a hundred labelled pictures."""
    hundred, known, teacher = load_data("digits", train_limit=100), {}, lesson.teacher()
    watched = replace(hundred, validation=hundred.validation.take(slice(0, 10)))
    losses = {
        "alone": None,
        "taught": DistillationLoss(teacher, temperature=4, alpha=0.9),
        "shuffled": DistillationLoss(Shuffled(teacher), temperature=4, alpha=0.9),
        "smoothed": DistillationLoss(Smoothed(teacher), temperature=4, alpha=0.9),
        "cold": DistillationLoss(teacher, temperature=1, alpha=0.9),
    }

    def study(arm):
        total = 0.0
        for seed in range(5):
            torch.manual_seed(seed)
            student = models.build("tiny_convnet", width=0.25)
            fit(student, watched, epochs=40, batch_size=50, loss=losses[arm], seed=seed, progress=False)
            total += 100 * float(evaluate(student, hundred.test)) / 5
        return total

    return lambda arm: known[arm] if arm in known else known.setdefault(arm, study(arm))


def test_a_taught_student_is_ahead_of_the_one_alone(mean):
    assert mean("taught") > mean("alone") + 4


def test_a_teacher_with_shuffled_wrong_classes_is_already_ahead_of_none(mean):
    assert mean("shuffled") > mean("alone")


def test_labels_smoothed_as_strongly_are_already_ahead_of_none(mean):
    assert mean("smoothed") > mean("alone") + 1


def test_a_temperature_of_one_is_too_cold(mean):
    assert mean("taught") > mean("cold") + 1


def test_pictures_without_labels_that_are_new_to_the_teacher_are_worth_far_more_than_few_with_labels(lesson):
    data, answers, loss = lesson.data, lesson.answers(), DistillationLoss(None, temperature=4, alpha=1)

    def learn(split, loss=None):
        student, watched = lesson.student(), replace(data, validation=data.validation.take(slice(-50, None)))
        epochs = 96 * 50 // len(split)
        how = FAST | {"batch_size": 50, "progress": False}
        fit(student, replace(watched, train=split), epochs=epochs, loss=loss, **how)
        return 100 * float(evaluate(student, data.test))

    def join(first, second):
        both = {
            part: torch.cat([getattr(first, part), getattr(second, part)]) for part in ("images", "labels")
        }
        return replace(first, **both)

    few, new = data.train.take(slice(0, 50)), data.validation.take(slice(0, 150))
    taught_few = answered(few, answers[:50])
    taught = learn(join(taught_few, answered(new, record(lesson.teacher(), new))), loss)
    assert taught > learn(few) + 5
    assert taught > learn(taught_few, loss)
    assert taught > learn(join(few, new)) - 6  # one seed
