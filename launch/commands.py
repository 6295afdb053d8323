"""Run external commands, or only print them."""

import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO, Protocol

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
    # Not pipes: a program that stays in the background, such as the master of shared ssh connections, can
    # hold them open for ever.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                # ssh below gcloud must not outlive it.
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise MissingProgramError(f"{command[0]} is not installed") from error
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"{_shown(command)} did not end within {limit:g} s") from error
        finally:
            _kill_group(process)
        output = _written(stdout)
        if code:
            reason = _without_passwords(" ".join((_written(stderr) or output).split()))[-_SHOWN:]
            raise CommandError(f"{_shown(command)} failed with code {code}: {reason}")
    return output


def show(command: Sequence[str], *, limit: float = 0.0) -> str:
    """Print a command, quoted for a shell, without running it; return an empty output."""
    del limit
    print(_without_passwords(shlex.join(command)))
    return ""


def _without_passwords(text: str) -> str:
    """Return a text in which addresses have no user names and passwords."""
    return re.sub(r"://[^/\s]+@", "://…@", text)


def _shown(command: Sequence[str]) -> str:
    return f"{shlex.join(command[:5])} …"


def _kill_group(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _written(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
