"""Argument checks and atomic files: what every other helper leans on, and nothing about compression.

A wrong argument raises an error that names it, shows the value it got and says what is allowed.
A file is either there and complete, or not there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor

from helpers.files import atomic_path, writable

__all__ = ["atomic_path", "writable"]  # they have moved to helpers.files

LARGEST = 2**53  # of integers: beyond it a float cannot count


def number(
    name: str, value: object, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> float:
    """Return ``value`` as a float if it is a finite real number in [low, high].

    Args:
        name: the argument's name, for the message.
        value: what the caller passed.
        low: the smallest value allowed.
        high: the largest value allowed.
        open_low: exclude ``low`` itself.

    Raises:
        TypeError: ``value`` is not a real number.
        ValueError: ``value`` is NaN, infinite or out of range.
    """
    allowed = f"a number in {'(' if open_low or low == -math.inf else '['}{low:g}, {high:g}{')' if high == math.inf else ']'}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {allowed}, got {_shown(value)} of type {type(value).__name__}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found) or found > high or found < low or (open_low and found == low):
        raise ValueError(f"{name} must be {allowed}, got {_shown(value)}")
    return found


def numbers(
    name: str, values: object, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> list[float]:
    """Return ``values`` as a list of floats if it is a collection of finite real numbers in [low, high].

    Raises:
        TypeError: ``values`` is not a collection, or one of them is not a real number.
        ValueError: one of them is NaN, infinite or out of range.
    """
    return [
        number(name, value, low, high, open_low=open_low) for value in collection(name, values, "numbers")
    ]


def integer(name: str, value: object, low: int, high: float = math.inf) -> int:
    """Return ``value`` as an int if it is a whole number in [low, high].

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: ``value`` is out of range.
    """
    allowed = f"an integer of at least {low}" if high == math.inf else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be {allowed}, got {_shown(value)} of type {type(value).__name__}")
    if not low <= value <= min(high, LARGEST):
        raise ValueError(f"{name} must be {allowed}, got {_shown(value)}")
    return int(value)


def choice(name: str, value: object, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``allowed``.

    Raises:
        ValueError: it is not; the message lists what is.
    """
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {_shown(value)}")
    return value


def names(name: str, values: object) -> tuple[str, ...]:
    """Return ``values`` as a tuple if it is a collection of strings.

    Raises:
        TypeError: it is not, or it is itself a string.
    """
    values = tuple(collection(name, values, "names"))
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a collection of names, got {_shown(value)} in it")
    return values


def shape(name: str, value: object) -> tuple[int, ...]:
    """Return ``value`` as a tuple if it is the shape of a tensor of at most 2^31 numbers.

    Raises:
        TypeError: it is not a collection of integers.
        ValueError: it is empty, a size is below 1, or the tensor would not fit in memory.
    """
    sizes = tuple(integer(name, size, 1) for size in collection(name, value, "sizes"))
    if not sizes or math.prod(sizes) > 2**31:
        raise ValueError(f"{name} must be the sizes of a tensor of 1 to 2^31 numbers, got {_shown(sizes)}")
    return sizes


def tensor(name: str, value: object) -> Tensor:
    """Return ``value`` if it is a tensor of at least one number, all of them real and finite.

    Raises:
        TypeError: it is not a tensor of real numbers.
        ValueError: it is empty, or a number is NaN or infinite.
    """
    if not isinstance(value, Tensor) or value.is_complex():
        raise TypeError(f"{name} must be a Tensor of real numbers, got {_shown(value)}")
    if not value.numel() or not torch.isfinite(value).all():
        raise ValueError(
            f"{name} must be finite numbers, at least one, got shape {tuple(value.shape)} with NaN, infinity or nothing"
        )
    return value


def instance(name: str, value: object, kind: type | tuple[type, ...]) -> object:
    """Return ``value`` if it is an instance of ``kind``.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        shown = f" ({_shown(value)})" if isinstance(value, (str, int, float)) else ""
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}{shown}")
    return value


def path(name: str, value: object, suffix: str = "") -> Path:
    """Return ``value`` as a Path if it can be one, ending in ``suffix``.

    Raises:
        TypeError: it is neither a string nor a path.
        ValueError: it is empty, holds a NUL, or ends otherwise.
    """
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"{name} must be a path, got {_shown(value)} of type {type(value).__name__}")
    text = os.fspath(value)
    if not text or "\0" in text or Path(text).suffix != (suffix or Path(text).suffix):
        raise ValueError(f"{name} must {f'end in {suffix}' if suffix else 'be a path'}, got {_shown(text)}")
    return Path(text)


def collection(name: str, value: object, of: str) -> list:
    """Return the items of ``value``, which is not a string.

    Raises:
        TypeError: it is a string, or cannot be iterated over; the message says what it must be a collection ``of``.
    """
    if (
        isinstance(value, (str, bytes))
        or not isinstance(value, Iterable)
        or (isinstance(value, Tensor) and not value.ndim)
    ):
        what = "the string " if isinstance(value, str) else ""
        raise TypeError(f"{name} must be a collection of {of}, got {what}{_shown(value)}")
    return value.tolist() if isinstance(value, Tensor) else list(value)


def _shown(value: object) -> str:
    """What an error message shows of a value, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # an integer of too many digits, or an object that cannot say what it is
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
