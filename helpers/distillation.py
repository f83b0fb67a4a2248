"""Knowledge distillation: the technique that changes the loss, and nothing else."""

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.data import Split
from helpers.evaluation import Precision, predict
from helpers.networks import logits_of
from helpers.types import Network, Share, checked, real, shown, tensor

Temperature = real(ge=1e-3, le=1e6)  # beyond them T^2 magnifies what rounding leaves of the loss


@checked
def soften(logits: tensor(), temperature: Temperature = 1.0) -> Tensor:
    """Return softmax(logits / temperature): the soft targets of Hinton 2015, eq. 1.

    Args:
        logits: any shape, classes last.
        temperature: 1 is the ordinary softmax, larger is flatter.

    Returns:
        Probabilities of the same shape, float32 or better.
    """
    if not logits.ndim:
        raise ValueError("logits must have their classes last, got a single number")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shifted = logits - logits.amax(-1, keepdim=True)  # so that a tiny temperature cannot overflow
    return F.softmax(shifted / temperature, dim=-1)


@checked
def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: Temperature = 4.0,
    alpha: Share = 0.9,
) -> Tensor:
    """alpha * T^2 * KL(teacher || student, both softened by T) + (1 - alpha) * CE(student, labels).

    The mean over the batch of Hinton 2015, section 2. The gradient of the soft term shrinks as 1 / T^2, so
    T^2 keeps the balance that alpha asks for at every temperature.

    Args:
        student_logits: B x C.
        teacher_logits: B x C; no gradient flows into them.
        labels: int64, B.
        temperature: T.
        alpha: weight of the soft term; 0 is ordinary training.

    Returns:
        A scalar, in nats.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape or not student_logits.numel():
        raise ValueError(
            "student_logits and teacher_logits must both be batch x classes with the same number of classes, "
            f"got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    batch, classes = student_logits.shape
    if labels.dtype != torch.int64 or labels.shape != (batch,):
        raise ValueError(f"labels must be int64, one for each of {batch} pictures, got {shown(labels)}")
    # On a GPU nobody looks: every step would wait for it, and cross-entropy stops at such labels itself.
    if labels.device.type == "cpu" and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    # In float64: at a high temperature KL is a small difference of nearly equal numbers, magnified by T^2.
    precise = torch.float32 if student_logits.device.type == "mps" else torch.float64
    student, teacher = student_logits.to(precise), teacher_logits.detach().to(precise)
    soft = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    loss = alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(student, labels)
    return loss.to(torch.promote_types(student_logits.dtype, torch.float32))


class DistillationLoss(nn.Module):
    """The loss that makes ``fit`` distil: ``fit(student, data, epochs=..., loss=DistillationLoss(teacher))``.

    The teacher sees exactly the pictures the student sees, shifts and mirroring included (Beyer 2022, section
    3.1: consistent teaching), in eval mode and without a graph. It is a frozen copy of ``teacher`` as it is
    now: the caller's own may be trained, factorized, or share layers with the student. The price is the
    memory of one more teacher, on the device where training is.

    Args:
        teacher: maps images to logits over the student's classes. None: the labels are a teacher's answers,
            as ``answered`` makes them, and no teacher is asked.
        temperature: T, from 0.001 to 10^6.
        alpha: weight of the soft term, in [0, 1].
    """

    @checked
    def __init__(self, teacher: Network | None, temperature: Temperature = 4.0, alpha: Share = 0.9) -> None:
        super().__init__()
        self.temperature, self.alpha = temperature, alpha
        self.teacher = teacher and copy.deepcopy(teacher).requires_grad_(False)

    def extra_repr(self) -> str:
        """Return temperature and alpha, for printing and for fit's checkpoint."""
        return f"temperature={self.temperature:g}, alpha={self.alpha:g}"

    def forward(self, student_logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return a batch's scalar loss: student_logits B x C, images B x 3 x H x W, labels B or B x C."""
        if self.teacher is None:
            answers, labels = labels.clamp_min(1e-30).log(), labels.argmax(1)
        else:
            with torch.no_grad():
                answers = logits_of(self.teacher.eval()(images))  # whatever mode the loss is in
        return distillation_loss(student_logits, answers, labels, self.temperature, self.alpha)


@checked
def record(teacher: Network, split: Split, precision: Precision = "auto") -> Tensor:
    """Return a teacher's logits for every picture and, where a mirror image means the same, for that.

    Args:
        teacher: maps images to logits.
        split: N pictures.
        precision: "bf16" (autocast), "fp32", or "auto": bf16 where the processor has it.

    Returns:
        float32, N x V x C: of V = 2 views (as it is, mirrored), or of one.
    """
    views = [split, replace(split, images=split.images.flip(3))] if split.mirror else [split]
    return torch.stack([predict(teacher, view, precision=precision) for view in views], dim=1)


@checked
def answered(split: Split, logits: tensor(3)) -> Split:
    """Return pictures whose labels are a teacher's answers, for ``DistillationLoss(None)``.

    No label is needed, and the teacher is asked once, beforehand. Only the pictures are shifted in training.

    Args:
        split: N pictures.
        logits: N x V x C, as ``record`` returns them: two views make a split of 2N pictures.

    Returns:
        V x N pictures, first as they are, then mirrored; labels are probabilities (temperature 1).
    """
    views = logits.shape[1]
    if len(logits) != len(split) or views not in ((1, 2) if split.mirror else (1,)):
        raise ValueError(f"logits must be {len(split)} x views x classes, got {shown(logits)}")
    images = torch.cat([split.images, split.images.flip(3)][:views])
    labels = soften(logits.transpose(0, 1).flatten(0, 1))
    return replace(split, images=images, labels=labels, mirror=split.mirror and views == 1)


@checked
def shuffle_wrong(logits: tensor(2)) -> Tensor:
    """Return a teacher's logits, N x C, whose largest stays while the others change places by chance.

    Each answer is as sure and as soft as before, and says nothing of which wrong classes a picture resembles:
    the control of Furlanello 2018 ("permuted predictions"). torch's global generator shuffles.
    """
    values, classes = logits.sort(dim=1, descending=True)
    chance = torch.rand_like(values)
    chance[:, 0] = -1  # the largest stays first
    return torch.empty_like(values).scatter(1, classes.gather(1, chance.argsort(1)), values)


@checked
def temperature_effect(logits: tensor(1), temperature: Temperature) -> dict[str, float | Tensor]:
    """What a temperature does to one picture's logits: the plain function under notebook 01's slider.

    Args:
        logits: C, of one picture; at least two.
        temperature: T, from 0.001 to 10^6.

    Returns:
        probabilities: C. entropy: in bits, from 0 to log2(C). gradient_scale: the share of the soft term's
        gradient (norm, with respect to the student's logits, for a student that knows nothing) left at this
        temperature, relative to T = 1, without the factor T^2. scaled_gradient: the same with the factor T^2.
    """
    if len(logits) < 2:
        raise ValueError(f"logits must be a vector of at least two, got shape {tuple(logits.shape)}")
    probabilities, uniform = soften(logits, temperature), 1 / len(logits)
    entropy = -(probabilities * probabilities.clamp_min(1e-30).log2()).sum()
    gradient = (probabilities - uniform).norm() / temperature
    reference = (soften(logits, 1.0) - uniform).norm().clamp_min(1e-12)
    scale = float(gradient / reference)
    return {
        "probabilities": probabilities,
        "entropy": float(entropy),
        "gradient_scale": scale,
        "scaled_gradient": scale * temperature**2,
    }
