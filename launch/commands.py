"""Running other programs, or telling what would be run."""

import shlex
import subprocess
from collections.abc import Callable, Sequence

from flowley_jax.errors import FlowleyError

# Takes the words of a command and returns what it prints.
Run = Callable[[Sequence[str]], str]


class CommandError(FlowleyError):
    """A program is missing, or has failed; carries the end of what it said."""


def run(command: Sequence[str]) -> str:
    """Runs a command to its end and returns its standard output.

    Raises:
      CommandError: it is not installed, or its exit code is not 0.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CommandError(f"{command[0]} is not installed") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-400:]
        raise CommandError(f"{shlex.join(command[:5])} … failed with code {done.returncode}: {said}")
    return done.stdout


def show(command: Sequence[str]) -> str:
    """Prints a command as a shell takes it, and runs nothing."""
    print(shlex.join(command))
    return ""
