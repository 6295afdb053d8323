"""Flags for numbers with a range: a value outside is refused in one line that names the flag."""

from typing import Any, TypeVar

from absl import flags

from flowley_jax.common.ranges import Range
from flowley_jax.errors import FlowleyError, shown

# --help of a command shows the flags as its own.
flags.disclaim_key_flags()
_NAMES: dict[type, str] = {int: "an int", float: "a number"}
IntOrNone = TypeVar("IntOrNone", bound=int | None)
FloatOrNone = TypeVar("FloatOrNone", bound=float | None)


class NumberParser(flags.ArgumentParser):
    """Parser of a flag's text.

    Attributes:
      range: the numbers that the flag accepts.
    """

    def __init__(self, name: str, kind: type[int] | type[float], numbers: Range):
        self._name, self._kind, self.range = name, kind, numbers
        self.syntactic_help = f"{_NAMES[kind]} {numbers}".strip()

    def parse(self, argument: Any) -> Any:
        """Return the number.

        Raises:
          FlowleyError: the argument is no number of this kind, or is outside the range.
        """
        try:
            value = self._kind(argument)
        except (TypeError, ValueError) as error:
            raise FlowleyError(f"{self._shown(argument)} must be {_NAMES[self._kind]}") from error
        if fault := self.range.fault(value):
            raise FlowleyError(f"{self._shown(argument)} {fault}")
        return value

    def flag_type(self) -> str:
        """Return the type for absl's help in XML."""
        return self._kind.__name__

    def _shown(self, argument: Any) -> str:
        return f"--{self._name.replace('_', '-')}={shown(argument)}"


def define_int(
    name: str, default: IntOrNone, help_text: str, numbers: Range, **options: Any
) -> flags.FlagHolder[int | IntOrNone]:
    """Define a flag for an int.

    Args:
      name: name of the flag, with underscores.
      default: value without the flag; None if there is none.
      help_text: sentence for --help, which adds the range.
      numbers: the numbers that the flag accepts.
      options: passed to `absl.flags.DEFINE`.
    """
    return flags.DEFINE(NumberParser(name, int, numbers), name, default, help_text, **options)


def define_float(
    name: str, default: FloatOrNone, help_text: str, numbers: Range, **options: Any
) -> flags.FlagHolder[float | FloatOrNone]:
    """Define a flag for a finite float; the arguments are those of `define_int`."""
    return flags.DEFINE(NumberParser(name, float, numbers), name, default, help_text, **options)


def define_floats(name: str, help_text: str, numbers: Range) -> flags.FlagHolder[list[float] | None]:
    """Define a flag for a finite float that may be given several times; it is None if it is not given."""
    parser, serializer = NumberParser(name, float, numbers), flags.ArgumentSerializer()
    return flags.DEFINE_multi(parser, serializer, name, None, help_text)
