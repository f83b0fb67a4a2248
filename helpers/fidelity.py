"""Does an exported network still answer as PyTorch does? The comparison behind every exporter, and what they check first."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers import checks
from helpers.data import Data, Split, load_data
from helpers.evaluation import predict
from helpers.sessions import quiet

PICTURES = 200  # how many a comparison or a calibration takes when the caller names none


class ExportError(RuntimeError):
    """An exported network does not answer as PyTorch does, or cannot be exported; the message gives the figures."""


@functools.cache
def default_data() -> Data:
    """Return ``load_data("auto")``, loaded once: whose pictures serve when the caller names none."""
    return load_data("auto")


def target(
    path: str | os.PathLike, suffix: str, model: nn.Module | None, pictures: Split | None
) -> tuple[Path, Split]:
    """Check what every exporter takes.

    Args:
        path: where to write.
        suffix: what ``path`` must end in.
        model: what to export, or None where that is a file.
        pictures: what to compare on. Default: 200 test pictures of ``load_data("auto")``.

    Returns:
        The path, and the pictures.

    Raises:
        ValueError: ``path`` does not end in ``suffix``, or ``pictures`` is empty.
        TypeError: ``path`` is not a path, ``model`` not a module, or ``pictures`` not a Split.
    """
    path = checks.path("path", path, suffix)
    if model is not None:
        checks.instance("model", model, nn.Module)
    return path, some("pictures", pictures, "test")


def some(name: str, pictures: Split | None, default: str) -> Split:
    """Return ``pictures``, checked; if None, 200 of the split ``default`` of ``load_data("auto")``.

    Raises:
        TypeError: not a Split.
        ValueError: an empty one.
    """
    if pictures is None:
        return getattr(default_data(), default).take(slice(0, PICTURES))
    checks.instance(name, pictures, Split)
    if len(pictures) == 0:
        raise ValueError(f"{name} must hold at least one picture, got none")
    return pictures.to("cpu")


def frozen(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` on the CPU, in eval mode, its weights in the plain order: the caller's own is left as it is.

    ``training.fit`` leaves weights channels last, and litert-torch 0.10 may read such weights in the order of memory
    (https://github.com/google-ai-edge/litert-torch/issues/1238).
    """
    return (
        copy.deepcopy(checks.instance("model", model, nn.Module))
        .cpu()
        .to(memory_format=torch.contiguous_format)
        .eval()
    )


@contextmanager
def converting(path: Path, exporter: str) -> Iterator[None]:
    """Run an exporter in silence, and say so if it cannot convert the network.

    Raises:
        ExportError: the block raised anything but an OSError.
    """
    try:
        with quiet():
            yield
    except OSError:  # a full disk says nothing about the network
        raise
    except Exception as error:  # exporters raise whatever they like
        reason = str(error).strip().splitlines()
        message = f"{path} cannot be made: {exporter} does not convert this network ({type(error).__name__}: {reason[0] if reason else ''})"
        raise ExportError(f"{message}; it was not written") from error


def same_class(logits: Tensor, expected: Tensor) -> float:
    """Return the share of pictures, in [0, 1], that both give the same class; each N x classes."""
    return (logits.argmax(1) == expected.argmax(1)).float().mean().item()


def compare(logits: Tensor, model: nn.Module, pictures: Split, path: Path, largest: float) -> None:
    """Hold a float format to PyTorch's answers: every logit within ``largest``, and every class the same.

    Raises:
        ExportError: it is off; the message gives the largest difference and the share of equal classes.
    """
    expected = predict(model, pictures)
    difference = (logits - expected).abs().max().item()
    same = same_class(logits, expected)
    if not (difference <= largest and same == 1):
        raise ExportError(
            f"{path} differs from PyTorch by {difference:.3g} in a logit (allowed: {largest:g}) and names the same class for "
            f"{same:.1%} of {len(pictures)} pictures (asked: 100%); it was not written"
        )


def agree(logits: Tensor, expected: Tensor, path: Path, least: float) -> None:
    """Hold a rounded format to the original's classes: the same for a share of at least ``least`` of the pictures.

    Raises:
        ExportError: too few; the message gives the share and the largest difference of a logit.
    """
    same = same_class(logits, expected)
    if not same >= least:
        difference = (logits - expected).abs().max().item()
        raise ExportError(
            f"{path} names the same class as before for {same:.1%} of {len(logits)} pictures (asked: {least:.0%}); the largest "
            f"difference of a logit is {difference:.3g}; it was not written"
        )
