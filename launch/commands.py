"""Run external commands, or only print them."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Sequence
from typing import Protocol

from flowley_jax.errors import FlowleyError

_SHOWN = 400


class Runner(Protocol):
    """Function that runs a command's words, for at most `limit` seconds, and returns its standard output."""

    def __call__(self, command: Sequence[str], *, limit: float = ...) -> str: ...


class CommandError(FlowleyError):
    """Error for a program that failed or took too long; the message ends with the last part of its output."""


class MissingProgramError(CommandError):
    """Error for a program that is not installed."""


def run(command: Sequence[str], *, limit: float = 900.0) -> str:
    """Run a command to its end and return its standard output. It cannot ask questions.

    Args:
      command: its words.
      limit: seconds after which it is killed, with the programs that it started.

    Raises:
      CommandError: the program is not installed, its exit code is not 0, or it reached the limit.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # ssh below gcloud must not outlive it.
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise MissingProgramError(f"{command[0]} is not installed") from error
    try:
        stdout, stderr = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{_shown(command)} did not end within {limit:g} s") from error
    finally:
        _kill_group(process)
    if process.returncode:
        output = _without_passwords(" ".join((stderr or stdout).split()))[-_SHOWN:]
        raise CommandError(f"{_shown(command)} failed with code {process.returncode}: {output}")
    return stdout


def show(command: Sequence[str], *, limit: float = 0.0) -> str:
    """Print a command, quoted for a shell, without running it; return an empty output."""
    del limit
    print(_without_passwords(shlex.join(command)))
    return ""


def _without_passwords(text: str) -> str:
    """Return a text in which addresses have no user names and passwords."""
    return re.sub(r"://[^/\s@]+@", "://…@", text)


def _shown(command: Sequence[str]) -> str:
    return f"{shlex.join(command[:5])} …"


def _kill_group(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
