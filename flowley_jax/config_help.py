"""Help text for configurations: name, type, default and explanation of every value of the dataclasses."""

import dataclasses
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import docstring_parser

from flowley_jax.common.typed import hints_of

_WIDTH = 100


class Value(NamedTuple):
    """One value of a configuration.

    Attributes:
      path: dotted name.
      hint: type annotation.
      explanation: entry under `Attributes:` in the docstring of its dataclass; empty if there is none.
    """

    path: str
    hint: Any
    explanation: str


class Section(NamedTuple):
    """A dataclass of a configuration.

    Attributes:
      path: dotted name; empty for the outermost.
      summary: first sentence of its docstring.
      values: its fields, without the sections within it.
    """

    path: str
    summary: str
    values: tuple[Value, ...]


def sections(kind: type, path: str = "") -> Iterator[Section]:
    """Yield a configuration dataclass and all dataclasses within it, outermost first."""
    docstring = docstring_parser.parse(kind.__doc__ or "")
    explanations = {entry.arg_name: " ".join((entry.description or "").split()) for entry in docstring.params}
    prefix = f"{path}." if path else ""
    hints = hints_of(kind)
    values = (
        Value(prefix + name, hint, explanations.get(name, ""))
        for name, hint in hints.items()
        if not dataclasses.is_dataclass(hint)
    )
    yield Section(path, docstring.short_description or "", tuple(values))
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            yield from sections(typing.cast(type, hint), prefix + name)


def value_names(kind: type) -> list[str]:
    """Return the dotted names of all values of a configuration dataclass."""
    return [value.path for section in sections(kind) for value in section.values]


def describe(kind: type, defaults: Any) -> str:
    """Return a paragraph for each section, with a line and an explanation for each value.

    Args:
      kind: configuration dataclass.
      defaults: nested object with the default values: a ConfigDict or an instance of `kind`.
    """
    return "\n\n".join(_paragraph(section, defaults) for section in sections(kind) if section.values)


def _paragraph(section: Section, defaults: Any) -> str:
    title = f"{section.path}: {section.summary}" if section.path else section.summary
    lines = textwrap.wrap(title, _WIDTH)
    for value in section.values:
        default = defaults
        for name in value.path.split("."):
            default = getattr(default, name)
        lines.append(f"  {value.path}: {_type_name(value.hint)} = {_default_text(default)}")
        lines += textwrap.wrap(value.explanation, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _type_name(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, arguments))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return f"{_type_name(arguments[0])}, or none"
    if typing.get_origin(hint) is tuple:
        return f"tuple of {_type_name(arguments[0])}"
    if typing.get_origin(hint) is Annotated:
        return f"{_type_name(arguments[0])} {arguments[1]}"
    return hint.__name__


def _default_text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value) if isinstance(value, str) and value else repr(value)
