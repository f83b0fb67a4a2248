"""Argument checks and atomic files: what every other helper leans on, and nothing about compression.

A wrong argument raises an error that names it, shows the value it got and says what is allowed.
A file is either there and complete, or not there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path

import psutil


def number(name: str, value: object, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False) -> float:
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
        raise TypeError(f"{name} must be {allowed}, got {value!r} of type {type(value).__name__}")
    value = float(value)
    if not math.isfinite(value) or value > high or value < low or (open_low and value == low):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return value


def integer(name: str, value: object, low: int, high: float = math.inf) -> int:
    """Return ``value`` as an int if it is a whole number in [low, high].

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: ``value`` is out of range.
    """
    allowed = f"an integer of at least {low}" if high == math.inf else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be {allowed}, got {value!r} of type {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return int(value)


def choice(name: str, value: object, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``allowed``.

    Raises:
        ValueError: it is not; the message lists what is.
    """
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value


def instance(name: str, value: object, kind: type | tuple[type, ...]) -> object:
    """Return ``value`` if it is an instance of ``kind``.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        shown = f" ({value!r})" if isinstance(value, (str, int, float)) and len(str(value)) < 80 else ""
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}{shown}")
    return value


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends well.

    The file is flushed to disk before the rename, so a crash, a kill or a full disk leaves either the
    old file or the new one, never half of one.

    Raises:
        OSError: the folder cannot be created or written; the message names it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.part"):  # by a process that was killed while it wrote
        writer = left.name.split(".")[-2]
        if writer.isdigit() and not psutil.pid_exists(int(writer)):
            left.unlink(missing_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
