"""Every type of an argument, with what it takes and what it refuses: which kind of error, whose name, which value."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from helpers import types
from helpers.types import (
    AnyPath,
    Bits,
    Count,
    Names,
    NotNegative,
    Number,
    Positive,
    PositiveShare,
    Seed,
    Shape,
    Share,
    ShareBelowOne,
    Threads,
    Whole,
    checked,
)


class Strange:
    """Nothing knows what to do with it."""

    def __repr__(self):
        raise RuntimeError("it cannot even be shown")


def taker(hint):
    def take(it):
        return it

    take.__annotations__ = {"it": hint}
    return checked(take)


def refusal(hint, value):
    """The kind of the error; what it says must name the argument and stay short."""
    with pytest.raises((TypeError, ValueError), match=r"^it must (?!Value|Input|Tuple|Field)") as caught:
        taker(hint)(value)
    assert len(str(caught.value)) < 250
    return caught.type


def same(found, expected):
    assert type(found) is type(expected)
    assert found == expected


# -- numbers -----------------------------------------------------------------------------------------------------------

NUMBERS = {  # what each takes as it is, and what is out of its range
    "Whole": (Whole, (0, 1, 2**53), (-1, 2**53 + 1)),
    "Count": (Count, (1, 2**53), (0, -1)),
    "Seed": (Seed, (0, 2**32 - 1), (-1, 2**32)),
    "Threads": (Threads, (1, 1024), (0, 1025)),
    "Bits": (Bits, (2, 16), (1, 17)),
    "Number": (Number, (-1e308, 0.0, 5e-324, 1e308), ()),
    "Positive": (Positive, (5e-324, 1e308), (0, 0.0, -1)),
    "NotNegative": (NotNegative, (0.0, 1e308), (-5e-324,)),
    "Share": (Share, (0.0, 0.5, 1.0), (math.nextafter(1, 2), -5e-324, 2)),
    "PositiveShare": (PositiveShare, (5e-324, 1.0), (0, math.nextafter(1, 2))),
    "ShareBelowOne": (ShareBelowOne, (0.0, math.nextafter(1, 0)), (1, 1.0, -5e-324)),
    "whole": (types.whole(-3, 7), (-3, 7), (-4, 8)),
    "real": (types.real(ge=-0.5, lt=1e6), (-0.5, math.nextafter(1e6, 0)), (math.nextafter(-0.5, -1), 1e6)),
    "one of two": (Count | None, (1, None), (0,)),
}
OTHER_KINDS = (
    True,
    np.True_,
    "3",
    b"3",
    1j,
    [1],
    {"a": 1},
    torch.tensor(1),
    np.array(1),
    nn.Identity,
    Strange(),
)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_have_a_range(name):
    hint, inside, outside = NUMBERS[name]
    for value in inside:
        same(taker(hint)(value), value)
    for value in outside:
        assert refusal(hint, value) is ValueError


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_a_type_error(name):
    hint, inside, _ = NUMBERS[name]
    for value in (*OTHER_KINDS, *(() if None in inside else (None,))):
        assert refusal(hint, value) is TypeError


@pytest.mark.parametrize("name", NUMBERS)
def test_nan_infinities_and_huge_numbers_are_refused(name):
    hint = NUMBERS[name][0]
    whole = isinstance(NUMBERS[name][1][0], int)
    for value in (math.nan, math.inf, -math.inf, np.float32("nan")):
        assert refusal(hint, value) is (TypeError if whole else ValueError)
    for value in (10**400, -(10**400), 10**5_000):
        assert refusal(hint, value) is ValueError


def test_numpys_numbers_arrive_as_pythons():
    for value in (np.int8(3), np.uint64(3), np.int32(3), 3):
        same(taker(Count)(value), 3)
        same(taker(Number)(value), 3.0)
    for value in (np.float16(0.5), np.float32(0.5), np.float64(0.5), 0.5):
        same(taker(Share)(value), 0.5)
    for value in (1.0, np.float64(1)):
        assert refusal(Count, value) is TypeError


# -- collections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [["a", "b"], ("a", "b"), {"a": 1, "b": 2}.keys(), iter("ab"), np.array(["a", "b"])]
)
def test_names_of_any_collection_arrive_as_a_tuple(value):
    same(taker(Names)(value), ("a", "b"))


@pytest.mark.parametrize(
    "value", ["ab", b"ab", 1, None, math.nan, {"a": 1}, [1], [None], ["a", 1], [["a"]], Strange()]
)
def test_a_string_or_a_mapping_is_no_collection_of_names(value):
    assert refusal(Names, value) is TypeError


def test_numbers_in_a_collection_are_held_to_their_range():
    for value in ([0, 1], np.array([0.0, 1.0]), range(2), (0.0, np.int64(1))):
        same(taker(types.several(Share))(value), (0.0, 1.0))
    for value in ([1.5], [0.5, math.nan], [10**400]):
        assert refusal(types.several(Share), value) is ValueError
    for value in ([True], ["1"], [None], "01", [0.5, 1j], 0.5):
        assert refusal(types.several(Share), value) is TypeError
    same(taker(types.several(types.several(Count)))([[1], (2, 3)]), ((1,), (2, 3)))
    same(taker(Shape)(torch.Size([1, 3, 32])), (1, 3, 32))
    assert refusal(Shape, (1, 0)) is ValueError
    assert refusal(Shape, (1.5, 3)) is TypeError


def test_mappings_have_names_as_keys():
    hint = types.by_name(Share)
    same(taker(hint)({"a": 1, "b": np.float32(0.5)}), {"a": 1.0, "b": 0.5})
    for value in ({1: 0.5}, {"a": "x"}, {"a": None}, [], "x", 1, None, pd.Series({"a": 1.0}), Strange()):
        assert refusal(hint, value) is TypeError
    for value in ({"a": 2}, {"a": 0.5, "b": math.nan}):
        assert refusal(hint, value) is ValueError
    given = {"a": 1}
    assert taker(hint)(given) is not given


def test_tuples_of_a_fixed_length():
    same(taker(tuple[Number, Number])((1, 2)), (1.0, 2.0))
    for value in ("12", [1, 2], 1, (1, "2")):
        assert refusal(tuple[Number, Number], value) is TypeError


# -- paths, tensors, tables --------------------------------------------------------------------------------------------


def test_paths_arrive_as_paths_with_their_suffix():
    for value in ("a/x.onnx", Path("a/x.onnx")):
        same(taker(AnyPath)(value), Path("a/x.onnx"))
        same(taker(types.path(".onnx", ".pte"))(value), Path("a/x.onnx"))
    for value in ("x", "x.ONNX", ".onnx", "x.onnx.zip", "", "a\0.onnx"):
        assert refusal(types.path(".onnx"), value) is ValueError
    for value in ("", "a\0"):
        assert refusal(AnyPath, value) is ValueError
    for value in (1, None, b"x.onnx", [], math.nan, True, Strange()):
        assert refusal(types.path(".onnx"), value) is TypeError
        assert refusal(AnyPath, value) is TypeError


def test_tensors_hold_finite_numbers_of_so_many_dimensions():
    for value in (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.uint8), nn.Parameter(torch.ones(1, 1))):
        assert taker(types.tensor(2))(value) is value
        assert taker(types.tensor())(value) is value
    assert taker(types.tensor())(torch.tensor(1.0)) == 1
    for value in (torch.ones(2), torch.ones(0, 2), torch.full((2, 2), math.nan), torch.ones(2, 2) * math.inf):
        assert refusal(types.tensor(2), value) is ValueError
    assert refusal(types.tensor(2), torch.ones(2, 2, dtype=torch.complex64)) is ValueError
    for value in ("x", 1, None, [[1.0]], np.ones((2, 2)), Strange()):
        assert refusal(types.tensor(2), value) is TypeError


def test_tables_have_their_columns_and_a_row():
    table = pd.DataFrame({"b": [1], "c": 1, "a": 1})
    assert taker(types.table("a", "b"))(table) is table
    for value in (table.drop(columns="a"), table[:0], pd.DataFrame()):
        assert refusal(types.table("a", "b"), value) is ValueError
    for value in ({"a": [1], "b": [1]}, [], None, pd.DataFrame, Strange()):
        assert refusal(types.table("a", "b"), value) is TypeError


# -- choices, instances, functions -------------------------------------------------------------------------------------


def test_choices():
    for value in ("a", "b", np.str_("a")):
        assert taker(Literal["a", "b"])(value) == value
    for value in ("", "A", "ab", 1, None, True, math.nan, b"a", [], ["a"], Strange()):
        refusal(Literal["a", "b"], value)
    assert refusal(Literal["a"] | Count, "x") is ValueError
    assert taker(Literal["a"] | Count)(3) == 3
    with pytest.raises(ValueError, match="it must be 'a' or 'b', got 'c'"):
        taker(Literal["a", "b"])("c")


@dataclass
class Pair:
    a: int


def test_instances_are_instances_and_nothing_that_looks_like_one():
    for kind, value in (
        (nn.Module, nn.Identity()),
        (Pair, Pair(1)),
        (Tensor, torch.ones(0)),
        (Path, Path("x")),
    ):
        assert taker(kind)(value) is value
        assert taker(kind | None)(None) is None
        for wrong in ("x", 1, math.nan, True, [], {}, {"a": 1}, (1,), kind, Strange()):
            assert refusal(kind, wrong) is TypeError
    assert taker(torch.dtype | None)(torch.float16) is torch.float16
    assert refusal(torch.dtype, "float16") is TypeError


def test_instances_within_collections_are_handed_on_untouched():
    model, mapping = nn.Identity(), Mapping[str, nn.Module]
    assert taker(types.several(nn.Module))([model])[0] is model
    assert taker(types.by_name(nn.Module))({"a": model})["a"] is model
    assert taker(mapping)({"a": model})["a"] is model
    for hint, wrong in (
        (types.several(nn.Module), [nn.Identity]),
        (types.by_name(Pair), {"a": {"a": 1}}),
        (mapping, {"a": 1}),
    ):
        assert refusal(hint, wrong) is TypeError


def test_functions_are_callable():
    for hint in (Callable, Callable[[float], float]):
        assert taker(hint)(math.sqrt) is math.sqrt
        for wrong in ("x", 1, None, [], Strange()):
            assert refusal(hint, wrong) is TypeError


def test_strings_and_flags():
    assert taker(str)("x") == "x"
    assert taker(bool)(True) is True
    for hint, wrong in (
        (str, 1),
        (str, b"x"),
        (str, None),
        (str, ["x"]),
        (bool, 1),
        (bool, "x"),
        (bool, None),
    ):
        assert refusal(hint, wrong) is TypeError


# -- calls -------------------------------------------------------------------------------------------------------------


@checked
def prune(
    model: nn.Module,
    sparsity: Share,
    *rest: Count,
    every: Count | None = None,
    skip: Names = "none",
    **more: Count,
):
    """Prune."""
    return sparsity, rest, every, skip, more


def test_arguments_are_named_however_they_are_given():
    for call in (lambda: prune(nn.Identity(), 1.5), lambda: prune(nn.Identity(), sparsity=1.5)):
        with pytest.raises(ValueError, match=r"^sparsity must be less than or equal to 1, got 1\.5$"):
            call()
    with pytest.raises(ValueError, match=r"^every must be greater than or equal to 1, got 0$"):
        prune(nn.Identity(), 0.5, every=0)
    with pytest.raises(TypeError, match=r"^model must be an instance of Module, got 3$"):
        prune(3, 0.5)


def test_what_is_converted_arrives_and_defaults_are_left_alone():
    assert prune(nn.Identity(), np.float32(0.5)) == (0.5, (), None, "none", {})
    assert prune(nn.Identity(), 1, every=np.int64(2), skip=["a"])[2:4] == (2, ("a",))


def test_what_python_says_about_a_call_stays():
    for call in (
        prune,
        lambda: prune(nn.Identity()),
        lambda: taker(Count)(1, 2),
        lambda: taker(Count)(other=1),
    ):
        with pytest.raises(TypeError, match="argument"):
            call()
    with pytest.raises(TypeError, match=r"prune\(\) missing a required .*; it takes model, sparsity, rest"):
        prune()
    assert prune(nn.Identity(), 0.5, 1, 2, size=3)[1::3] == ((1, 2), {"size": 3})


def test_a_function_looks_as_it_did():
    assert (prune.__name__, prune.__doc__) == ("prune", "Prune.")
    assert list(prune.__annotations__) == ["model", "sparsity", "rest", "every", "skip", "more"]


def test_methods_and_classes():
    class Pruner:
        @checked
        def __init__(self, sparsity: Share) -> None:
            self.sparsity = sparsity

        @checked
        def step(self, at: Count) -> int:
            return at

        @staticmethod
        @checked
        def still(at: Count) -> int:
            return at

    assert Pruner(np.float64(1)).step(np.int8(3)) == Pruner.still(3) == 3
    for call, name in (
        (lambda: Pruner(2), "sparsity"),
        (lambda: Pruner(1).step(0), "at"),
        (lambda: Pruner.still(0), "at"),
    ):
        with pytest.raises(ValueError, match=f"^{name} must"):
            call()

    @checked
    class Plain:
        def __init__(self, sparsity: Share) -> None:
            self.sparsity = sparsity

    class Below(Plain):
        pass

    for kind in (Plain, Below):
        assert isinstance(kind(1), Plain)
        with pytest.raises(ValueError, match=r"^sparsity must"):
            kind(2)


@checked
@dataclass(frozen=True)
class Case:
    share: Share
    count: Count = 3
    names: Names = ()

    def __post_init__(self) -> None:
        if self.share > self.count / 10:
            raise ValueError(f"share must fit count, got {self.share}")


def test_dataclasses():
    case = Case(np.float32(0.25), names=["a"])
    assert case == Case(0.25, 3, ("a",))
    assert type(case.share) is float
    assert replace(case, count=np.int64(4)).count == 4
    for call in (lambda: Case(1.5), lambda: Case(0.9), lambda: replace(case, share="x")):
        with pytest.raises((ValueError, TypeError), match=r"^share must"):
            call()


def test_a_value_that_cannot_be_shown_and_one_that_is_long():
    with pytest.raises(TypeError, match=r"got a Strange$"):
        taker(Count)(Strange())
    with pytest.raises(TypeError, match=r"\.\.\. \(str\)$") as caught:
        taker(Count)("x" * 10**6)
    assert len(str(caught.value)) < 200
    with pytest.raises(TypeError, match=r"got shape \(1000, 1000\) of torch.float32$"):
        taker(Count)(torch.ones(1000, 1000))


@pytest.mark.parametrize(
    ("hint", "value", "taken"),
    [
        (Any, 1, True),
        (slice | Tensor, slice(1), True),
        (bool, np.True_, True),
        (Literal[1, 2], True, False),
        (tuple[Number, Number], (1, 2, 3), False),
        (tuple[Number, Number], (1,), False),
        (types.tensor(2), torch.empty(2, 2, device="meta"), False),
    ],
    ids=["any", "slice", "flag", "literal", "longer", "shorter", "meta"],
)
def test_corners(hint, value, taken):
    if taken:
        assert taker(hint)(value) == value
    else:
        refusal(hint, value)
