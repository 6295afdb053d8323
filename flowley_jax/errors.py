"""The exception that users are meant to read."""


class FlowleyError(ValueError):
    """Bad input or a state of the world that the user can mend.

    The message is one line that names the file or option, the value found and what was expected. Command
    lines print it without a traceback and exit with code 2.
    """
