"""Run external commands, or only print them."""

import shlex
import subprocess
from collections.abc import Callable, Sequence

from flowley_jax.errors import FlowleyError

# Takes a command's words and returns its standard output.
Runner = Callable[[Sequence[str]], str]


class CommandError(FlowleyError):
    """Error for a program that is missing or failed; the message ends with the last part of its output."""


def run(command: Sequence[str]) -> str:
    """Run a command to its end and return its standard output.

    Raises:
      CommandError: the program is not installed, or its exit code is not 0.
    """
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CommandError(f"{command[0]} is not installed") from error
    if result.returncode:
        output = " ".join((result.stderr or result.stdout).split())[-400:]
        raise CommandError(f"{shlex.join(command[:5])} … failed with code {result.returncode}: {output}")
    return result.stdout


def show(command: Sequence[str]) -> str:
    """Print a command, quoted for a shell, without running it; return an empty output."""
    print(shlex.join(command))
    return ""
