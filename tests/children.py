"""Programs that tests start: each has a time limit, and its whole process group is killed at the end."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Any

LIMIT = 600.0


@contextlib.contextmanager
def started(command: Sequence[object], *, limit: float = LIMIT, **options: Any) -> Iterator[subprocess.Popen]:
    """Start a program in a group of its own, and kill the group after `limit` seconds or with the block.

    A wait for the program within the block therefore ends, even if its own children hold its pipes open.

    Args:
      options: passed to `subprocess.Popen`.
    """
    with subprocess.Popen([str(word) for word in command], start_new_session=True, **options) as process:
        timer = threading.Timer(limit, _kill_group, [process])
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            _kill_group(process)


def run(
    command: Sequence[object], *, limit: float = LIMIT, check: bool = False, **options: Any
) -> subprocess.CompletedProcess:
    """Run a program to its end, and return its exit code, standard output and standard error as text.

    Args:
      check: raise if the exit code is not 0.

    Raises:
      subprocess.CalledProcessError: the exit code is not 0, or the program reached its limit.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command, limit=limit, **pipes | options) as process:
        stdout, stderr = process.communicate()
        result = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    if check or result.returncode == -signal.SIGKILL:
        result.check_returncode()
    return result


def _kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
