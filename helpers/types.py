"""What an argument may be, said in the signature, and the decorator that holds each call to it.

``@checked def prune(sparsity: Share, every: Count | None = None)`` refuses 1.5 with "sparsity must be
less than or equal to 1, got 1.5". pydantic does the checking; numpy's numbers count, True and "3" do not.
"""

import functools
import inspect
import math
import os
import types
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError, core_schema
from torch import Tensor, nn

F = TypeVar("F", bound=Callable)
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
PLAIN = (bool, int, float, str, bytes, tuple, list, dict, type(None))  # pydantic's strict mode knows them
LARGEST = 2**53  # of whole numbers: beyond it a float cannot count


def checked(target: F) -> F:
    """Hold every call of a function, or of a class's constructor, to its annotations.

    Raises:
        TypeError: an argument of another kind.
        ValueError: one out of range. Both name the argument, its value and what is allowed.
    """
    function = target.__init__ if isinstance(target, type) else target
    signature = inspect.signature(function)

    @functools.cache  # at the first call, when every name in the annotations is known
    def adapters() -> dict[str, TypeAdapter]:
        hints = get_type_hints(function, include_extras=True)
        single = [one.name for one in signature.parameters.values() if one.kind not in VARIABLE]
        return {name: _adapter(hints[name]) for name in single if name in hints}

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            call = signature.bind(*args, **kwargs)
        except TypeError as error:
            takes = ", ".join(signature.parameters)
            raise TypeError(f"{target.__qualname__}() {error}; it takes {takes}") from None
        for name, value in call.arguments.items():
            if name in adapters():
                call.arguments[name] = _valid(name, value, adapters()[name])
        return function(*call.args, **call.kwargs)

    if isinstance(target, type):
        target.__init__ = wrapper
        return target
    return wrapper


def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(_exact(hint), config=ConfigDict(strict=True))


def validated(name: str, value: Any, hint: Any) -> Any:
    """Return ``value`` as a type takes it, or say what is wrong with the argument ``name``."""
    return _valid(name, value, _adapter(hint))


def _valid(name: str, value: Any, adapter: TypeAdapter) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        said = (one["msg"].removeprefix("Input should ").removeprefix("Value error, ") for one in found)
        other = all(one["type"].endswith(("_type", "instance_of")) for one in found)
        wanted = " or ".join(dict.fromkeys(said))
        raise (TypeError if other else ValueError)(f"{name} must {wanted}, got {shown(value)}") from None


def shown(value: Any) -> str:
    """Return what an error message shows of a value, whatever it is."""
    try:
        text = f"shape {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)
    except Exception:  # an integer of too many digits, or an object that cannot say what it is
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}... ({type(value).__name__})"


def _exact(hint: Any) -> Any:
    # every class in a hint means "an instance of": pydantic would take a dict for a dataclass
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(_exact(parts[0]), *parts[1:])]
    if origin in (Union, types.UnionType):
        return Union[tuple(_exact(part) for part in parts)]  # noqa: UP007 -- of a tuple
    if origin is Callable or hint is Callable:
        return Callable
    if origin is Literal:
        return Annotated[hint, BeforeValidator(functools.partial(_one_of, parts))]
    if parts:
        exact = origin[tuple(part if part is ... else _exact(part) for part in parts)]
        fixed = origin is tuple and ... not in parts
        return Annotated[exact, BeforeValidator(functools.partial(_so_many, len(parts)))] if fixed else exact
    if hint is bool:
        return Annotated[bool, BeforeValidator(lambda value: bool(value) if _is_flag(value) else value)]
    if isinstance(hint, type) and hint not in (Any, *PLAIN):
        return Annotated[Any, GetPydanticSchema(lambda *_: core_schema.is_instance_schema(hint))]
    return hint


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _one_of(allowed: tuple, value: Any) -> Any:
    if _is_flag(value) and not any(_is_flag(one) for one in allowed):  # True == 1, and means something else
        raise PydanticCustomError("literal_error", f"be {' or '.join(map(repr, allowed))}")
    return value


def _so_many(count: int, value: Any) -> Any:
    if isinstance(value, tuple) and len(value) != count:
        raise PydanticCustomError("tuple_length", f"be a tuple of {count}")
    return value


# -- numbers ---------------------------------------------------------------------------------------------


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise PydanticCustomError("int_type", "be a whole number")
    return int(value)


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise PydanticCustomError("float_type", "be a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise PydanticCustomError("finite_number", "be a finite number")
    return found


def whole(low: int, high: int = LARGEST) -> Any:
    """Return the type of whole numbers from ``low`` to ``high``."""
    return Annotated[int, BeforeValidator(_whole), Field(ge=low, le=high)]


def real(**bounds: float) -> Any:
    """Return the type of finite numbers within ``bounds`` (gt, ge, lt, le)."""
    return Annotated[float, BeforeValidator(_real), Field(**bounds)]


Whole, Count, Seed, Threads, Bits = whole(0), whole(1), whole(0, 2**32 - 1), whole(1, 1024), whole(2, 16)
Number, Positive, NotNegative = real(), real(gt=0), real(ge=0)
Share, PositiveShare, ShareBelowOne = real(ge=0, le=1), real(gt=0, le=1), real(ge=0, lt=1)

# -- collections, paths, tensors, tables -----------------------------------------------------------------


def _items(value: Any) -> tuple:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise PydanticCustomError("tuple_type", "be a collection")
    try:
        return tuple(value)
    except TypeError:  # a tensor or array without dimensions
        raise PydanticCustomError("tuple_type", "be a collection") from None


def several(kind: Any) -> Any:
    """Return the type of collections of ``kind``, which arrive as a tuple; a string is none."""
    return Annotated[tuple[kind, ...], BeforeValidator(_items)]


def by_name(kind: Any) -> Any:
    """Return the type of mappings from names to ``kind``, which arrive as a dict."""
    return Annotated[
        dict[str, kind], BeforeValidator(lambda value: dict(value) if isinstance(value, Mapping) else value)
    ]


def path(*suffixes: str) -> Any:
    """Return the type of paths, which arrive as a Path, ending in one of ``suffixes`` if any are given."""

    def check(value: Any) -> Path:
        if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
            raise PydanticCustomError("path_type", "be a path")
        if (
            not os.fspath(value)
            or "\0" in os.fspath(value)
            or (suffixes and Path(value).suffix not in suffixes)
        ):
            raise ValueError(f"end in {', '.join(suffixes)}" if suffixes else "be a path")
        return Path(value)

    return Annotated[Path, BeforeValidator(check)]


def tensor(dimensions: int | None = None) -> Any:
    """Return the type of tensors of real, finite numbers, at least one, of so many dimensions (None: any)."""

    def check(value: Tensor) -> Tensor:
        if dimensions is not None and value.ndim != dimensions:
            raise ValueError(f"have {dimensions} dimensions")
        if value.is_meta or value.is_complex() or not value.numel() or not value.isfinite().all():
            raise ValueError("hold real, finite numbers, at least one")
        return value

    return Annotated[Tensor, AfterValidator(check)]


def table(*columns: str) -> Any:
    """Return the type of DataFrames that have these columns and a row."""

    def check(value: pd.DataFrame) -> pd.DataFrame:
        if not {*columns} <= {*value} or value.empty:
            raise ValueError(f"have the columns {', '.join(columns)} and a row")
        return value

    return Annotated[pd.DataFrame, AfterValidator(check)]


def _uncompiled(model: nn.Module) -> nn.Module:
    return model._orig_mod if type(model).__name__ == "OptimizedModule" else model


Names, AnyPath, Shape = several(str), path(), several(Count)
Network = Annotated[nn.Module, AfterValidator(_uncompiled)]  # the module in what torch.compile returned
