"""Training in processes of its own, with as many pretended devices as a test wants."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

WORKER = Path(__file__).with_name("scale") / "worker.py"
PATH = os.pathsep.join(str(WORKER.parents[up]) for up in (1, 2))


def start(records, runs, *, devices, processes=1) -> list[subprocess.Popen]:
    """Starts processes that do the runs, one run after the other; see scale/worker.py."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"records": str(records), "runs": runs, "processes": processes, "port": port}
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": PATH}
    if processes > 1:
        # On CPUs the cache knows the first process alone, which would then wait for the others' compilers
        # longer than the 30 seconds that Gloo gives a process to join a collective.
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps({**job, "process": index})],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        for index in range(processes)
    ]


def run_script(source: str, *, devices: int) -> str:
    """Runs Python source to its end, and returns what it printed."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": PATH,
    }
    result = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def launch(records, runs, *, devices, processes=1) -> None:
    """Runs to the end."""
    started = start(records, runs, devices=devices, processes=processes)
    try:
        # At the same time, or one could wait for room in its pipe, and the others for it.
        with ThreadPoolExecutor() as readers:
            outputs = list(readers.map(lambda process: process.communicate(timeout=900)[0], started))
    finally:
        for process in started:
            process.kill()
            process.communicate()
    # One that fails takes the others with it, and these tell of nothing else.
    codes = [process.returncode for process in started]
    assert not any(codes), "\n".join([f"exit codes {codes}", *(output[-4000:] for output in outputs)])


def leaves(records, run, *, devices=1, after=()) -> dict[str, np.ndarray]:
    """Every leaf of a run's newest checkpoint, restored onto a mesh and brought together again.

    Args:
      after: runs that the same process does before.
    """
    path = Path(run["workdir"]) / f"leaves_{devices}.npz"
    launch(records, [*after, {**run, "dump": str(path)}], devices=devices)
    with np.load(path) as stored:
        return dict(stored)
