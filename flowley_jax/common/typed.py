"""Typed dataclasses from nested mappings, such as a ConfigDict or parsed JSON.

dacite and tyro build dataclasses too, but neither takes its values from the flags of a ConfigDict, and
their errors do not name the value in one line.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from flowley_jax.common.ranges import Range
from flowley_jax.errors import FlowleyError, shown

T = TypeVar("T")
_FREE_ON_RESUME = "free_on_resume"
_ANY_NUMBER = Range()
_EXPECTED = {int: "an int", float: "a number", bool: "true or false", str: "text"}


def free_on_resume(default: T) -> T:
    """Return a dataclass field whose value, or whole section, may change when a run resumes."""
    return dataclasses.field(default=default, metadata={_FREE_ON_RESUME: True})


def is_free_on_resume(field: dataclasses.Field) -> bool:
    """Return whether a field was declared with `free_on_resume`."""
    return field.metadata.get(_FREE_ON_RESUME, False)


def typed_from(kind: type[T], tree: Mapping[str, Any], path: str = "") -> T:
    """Build a dataclass, and the dataclasses within it, from nested mappings.

    Args:
      kind: class of the result.
      tree: values by field name, such as a ConfigDict or parsed JSON.
      path: name of the mapping in error messages; empty for the outermost.

    Raises:
      FlowleyError: a key does not exist, or a value has the wrong type or is outside its range.
    """
    hints = hints_of(kind)
    unknown = sorted(set(tree) - set(hints))
    if unknown:
        name = path or "the configuration"
        raise FlowleyError(f"unknown key {_join(path, unknown[0])}; {name} has {', '.join(sorted(hints))}")
    return kind(**{name: _convert(hints[name], value, _join(path, name)) for name, value in tree.items()})


def check_values(config: Any, path: str) -> None:
    """Check the type, and the choices or the range, of every field of a dataclass.

    A field `rate: Annotated[float, Range(above=0)]` has this range; without one, a number must be finite.

    Args:
      config: the dataclass.
      path: its name in error messages; empty for the outermost.

    Raises:
      FlowleyError: a value is none of the choices, or is outside the range.
    """
    for name, hint in hints_of(type(config)).items():
        if not dataclasses.is_dataclass(hint):
            _convert(hint, getattr(config, name), _join(path, name))


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """Return the annotations of a dataclass's fields, with their ranges."""
    return typing.get_type_hints(kind, include_extras=True)


def _convert(hint: Any, value: Any, path: str, numbers: Range = _ANY_NUMBER) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _convert(arguments[0], value, path, arguments[1])
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            names = ", ".join(field.name for field in dataclasses.fields(hint))
            raise FlowleyError(f"{path}={shown(value)} must be a section with the values {names}")
        return typed_from(typing.cast(type, hint), value, path)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _convert(arguments[0], value, path)
    if origin is Literal and value not in arguments:
        raise FlowleyError(f"{path}={shown(value)} must be one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise FlowleyError(f"{path}={shown(value)} must be a tuple")
        repeated = arguments[-1] is Ellipsis
        hints = arguments[:1] * len(value) if repeated else arguments
        if len(hints) != len(value):
            raise FlowleyError(f"{path}={shown(value)} must have {len(hints)} elements")
        return tuple(_convert(hint, item, path) for hint, item in zip(hints, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        # Python raises where a huge int becomes a float.
        value = float(value) if abs(value) < 2**1000 else math.inf
    if hint in _EXPECTED and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise FlowleyError(f"{path}={shown(value)} must be {_EXPECTED[hint]}")
    if hint in (int, float) and (fault := numbers.fault(value)):
        raise FlowleyError(f"{path}={shown(value)} {fault}")
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
