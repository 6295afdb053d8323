"""Tiny training runs in separate processes, on any number of simulated devices."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import children
import numpy as np

WORKER = Path(__file__).with_name("scale") / "worker.py"
PATH = os.pathsep.join(str(WORKER.parents[up]) for up in (1, 2))
LIMIT = 900.0


@contextlib.contextmanager
def started(records, runs, *, devices, processes=1) -> Iterator[list[subprocess.Popen]]:
    """Start processes that train one run after another (see scale/worker.py); kill them with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"records": str(records), "runs": runs, "processes": processes, "port": port}
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": PATH}
    if processes > 1:
        # On CPUs only the first process finds its programs in the cache. It would then wait for the others to
        # compile, for longer than the 30 seconds that Gloo gives a process to join a collective.
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                children.started(
                    [sys.executable, WORKER, json.dumps({**job, "process": index})],
                    limit=LIMIT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env={**os.environ, **environment},
                )
            )
            for index in range(processes)
        ]


def run_script(source: str, *, devices: int) -> str:
    """Run Python source to its end, and return what it printed."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": PATH,
    }
    result = children.run([sys.executable, "-c", source], limit=300, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def launch(records, runs, *, devices, processes=1) -> None:
    """Run training runs to their end."""
    with (
        started(records, runs, devices=devices, processes=processes) as workers,
        ThreadPoolExecutor() as readers,
    ):
        # All pipes are read at the same time: a process that waits for room in its pipe stops the others.
        outputs = list(readers.map(lambda process: process.communicate()[0], workers))
    # A process that fails ends the others too, and their output only says so.
    codes = [process.returncode for process in workers]
    assert not any(codes), "\n".join([f"exit codes {codes}", *(output[-4000:] for output in outputs)])


def leaves(records, run, *, devices=1, after=()) -> dict[str, np.ndarray]:
    """Return every leaf of a run's newest checkpoint, restored onto a mesh and gathered again.

    Args:
      after: runs that the same process trains first.
    """
    path = Path(run["workdir"]) / f"leaves_{devices}.npz"
    launch(records, [*after, {**run, "dump": str(path)}], devices=devices)
    with np.load(path) as stored:
        return dict(stored)
