"""The exception that users are meant to read, and how it shows values."""

_LONGEST_SHOWN = 60


class FlowleyError(ValueError):
    """Bad input or a state of the world that the user can mend.

    The message is one line that names the file or option, the value found and what was expected. Command
    lines print it without a traceback and exit with code 2.
    """


def shown(value: object) -> str:
    """Return a value as an error message shows it: its `repr`, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
