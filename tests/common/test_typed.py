"""Typed dataclasses from nested mappings: conversion, and errors that name the value."""

import dataclasses
import re
from typing import Literal

import pytest

from flowley_jax.common.typed import check_choices, typed_from
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


def test_check_choices_names_the_field_of_a_literal():
    check_choices(Inner(), "inner")
    with pytest.raises(FlowleyError, match=r"inner\.kind='c' must be one of a, b"):
        check_choices(Inner(kind="c"), "inner")  # pyright: ignore
