"""Locks of folders, between processes."""

import resource
import subprocess
import sys

import pytest
from children import started

from flowley_jax.common.locks import lock_folder
from flowley_jax.errors import FlowleyError

_HOLD = """
import sys
from pathlib import Path
from flowley_jax.common.locks import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Return a process that holds the lock of `tmp_path` until it gets a line or is killed."""
    command = [sys.executable, "-c", _HOLD, tmp_path]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process


def test_a_locked_folder_is_refused_with_the_holder(tmp_path, holder):
    message = rf"another process is writing to it \(process {holder.pid} on "
    with pytest.raises(FlowleyError, match=message), lock_folder(tmp_path):
        pytest.fail("both processes hold the lock")


def test_a_lock_ends_with_its_process(tmp_path, holder):
    holder.kill()
    holder.wait(timeout=60)
    with lock_folder(tmp_path):
        pass


def test_a_disk_that_takes_nothing_does_not_stop_the_holder(tmp_path):
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, earlier[1]))
    try:
        with lock_folder(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


def test_a_process_waits_for_the_lock(tmp_path, holder):
    holder.stdin.write("go\n")
    holder.stdin.flush()
    with lock_folder(tmp_path, wait=60):
        pass
