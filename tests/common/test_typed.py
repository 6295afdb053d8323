"""Typed dataclasses from nested mappings: conversion, and errors that name the value."""

import dataclasses
import math
import re
from typing import Annotated, Literal

import pytest

from flowley_jax.common.ranges import Range
from flowley_jax.common.typed import check_values, typed_from
from flowley_jax.errors import FlowleyError


@dataclasses.dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"] = "a"
    rate: float = 1.0


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    count: int = 1
    flag: bool = False
    name: str = ""
    share: float | None = None
    sizes: tuple[int, ...] = ()
    pairs: tuple[tuple[int, ...], ...] = ()


def test_values_are_converted_to_the_types_of_the_fields():
    tree = {"inner": {"rate": 2}, "share": 1, "sizes": [1, 2], "pairs": [[1], [2, 3]]}
    value = typed_from(Outer, tree)
    assert value == Outer(inner=Inner(rate=2.0), share=1.0, sizes=(1, 2), pairs=((1,), (2, 3)))
    assert isinstance(value.inner.rate, float) and isinstance(value.share, float) and hash(value)
    assert typed_from(Outer, {"share": None}) == Outer()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"colour": 1}, "unknown key file.colour; file has count, flag, inner, name, pairs, share, sizes"),
        ({"inner": {"rat": 1}}, "unknown key file.inner.rat; file.inner has kind, rate"),
        ({"inner": 1}, "file.inner=1 must be a section with the values kind, rate"),
        ({"inner": {"kind": "c"}}, "file.inner.kind='c' must be one of a, b"),
        ({"count": 1.5}, "file.count=1.5 must be an int"),
        ({"count": True}, "file.count=True must be an int"),
        ({"flag": 1}, "file.flag=1 must be true or false"),
        ({"name": 1}, "file.name=1 must be text"),
        ({"share": "half"}, "file.share='half' must be a number"),
        ({"sizes": 1}, "file.sizes=1 must be a tuple"),
        ({"sizes": ["x"]}, "file.sizes='x' must be an int"),
    ],
)
def test_wrong_keys_and_values_are_named(tree, message):
    with pytest.raises(FlowleyError, match=re.escape(message)):
        typed_from(Outer, tree, "file")


def test_check_values_names_the_field_of_a_literal():
    check_values(Inner(), "inner")
    with pytest.raises(FlowleyError, match=r"inner\.kind='c' must be one of a, b"):
        check_values(Inner(kind="c"), "inner")  # pyright: ignore


@dataclasses.dataclass(frozen=True)
class Numbers:
    any: float = 0.0
    some: Annotated[int, Range(least=1, most=9)] = 1
    shares: tuple[Annotated[float, Range(above=0, below=1)], ...] = ()
    positive: Annotated[float, Range(above=0)] | None = None


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"any": math.nan}, "any=nan must be a finite number"),
        ({"any": -math.inf}, "any=-inf must be a finite number"),
        ({"any": 10**400}, "any=inf must be a finite number"),
        ({"any": -1e39}, "any=-1e+39 must be at least -3.4e+38"),
        ({"some": 0}, "some=0 must be at least 1 and at most 9"),
        ({"some": 10**20}, f"some={10**20} must be at least 1 and at most 9"),
        ({"shares": [0.5, 1.0]}, "shares=1.0 must be between 0 and 1"),
        ({"positive": 0}, "positive=0.0 must be above 0"),
        ({"positive": math.nan}, "positive=nan must be a finite number"),
    ],
)
def test_numbers_are_within_their_ranges(tree, message):
    with pytest.raises(FlowleyError, match=f"^{re.escape(message)}$"):
        typed_from(Numbers, tree)
    with pytest.raises(FlowleyError, match=f"^{re.escape(message)}$"):
        check_values(Numbers(**{name: tuple(v) if name == "shares" else v for name, v in tree.items()}), "")


def test_the_ends_of_a_range_belong_to_it_or_not():
    for some, positive in ((1, 1e-30), (9, 3e38)):
        check_values(Numbers(some=some, shares=(1e-9, 0.999), positive=positive), "")
    assert Range(least=0).fault(10**20) == "must be at most 2147483647"
    assert Range().fault(-(10**20)) == "must be at least -2147483647"
    assert not Range(most=10**21).fault(10**20)
