"""The exception that users are meant to read, and how it shows values."""

import unicodedata

_LONGEST_SHOWN = 60


class FlowleyError(ValueError):
    """Bad input or a state of the world that the user can mend.

    The message is one line that names the file or option, the value found and what was expected. Command
    lines print it without a traceback and exit with code 2.
    """


def plain(text: str) -> str:
    """Return text with escapes for control characters, such as line ends, which a terminal would obey."""
    return "".join(mark if unicodedata.category(mark) != "Cc" else repr(mark)[1:-1] for mark in text)


def shown(value: object) -> str:
    """Return a value as an error message shows it: its `repr`, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
