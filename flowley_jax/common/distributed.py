"""Several processes that train one model: start-up, and collectives on the host."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from flowley_jax.common.cluster_tasks import visible_devices
from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)
_DEVICE_OPTIONS = ("jax_cuda_visible_devices", "jax_rocm_visible_devices")
_SHOWN_CHARACTERS = 200
# What JAX's errors name when a collective does not reach another process: the libraries of collectives on
# CPUs and GPUs, and the service that watches all processes.
_UNREACHED = ("Gloo", "ncclRemoteError", "ncclSystemError", "coordination service", "heartbeat")
# How long the first process waits for the others to print their errors and end.
_LAST_SECONDS = 5.0
_Result = TypeVar("_Result")


def initialize(*, coordinator: str | None, count: int | None, index: int | None) -> None:
    """Connect to the other processes of this run, if there are any. Call it before any other use of JAX.

    Cloud TPU, GKE, Slurm and MPI tell JAX about the other processes. Elsewhere, give all three arguments.

    Args:
      coordinator: host:port of the first process.
      count, index: number of processes, and the index of this one.

    Raises:
      FlowleyError: only some of the three are given, or the index is not below the count; or the launcher's
        variables or the other processes do not answer.
    """
    named = (coordinator, count, index)
    if named != (None, None, None):
        _check_arguments(coordinator, count, index)
    try:
        chosen = visible_devices(os.environ)
        jax.distributed.initialize(coordinator, count, index)
    except (KeyError, RuntimeError, ValueError) as error:
        if "coordinator_address" in str(error):
            # JAX found no launcher: this process runs by itself.
            _check_alone(os.environ)
            return
        reason = " ".join(str(error).split())
        raise FlowleyError(
            f"the processes of this run cannot connect ({reason[:_SHOWN_CHARACTERS]}); "
            "check the launcher, or name the first process: --coordinator, --processes, --process"
        ) from error
    if chosen is not None:
        for name in _DEVICE_OPTIONS:
            # JAX has set one GPU by now. What the user sets holds.
            jax.config.update(name, os.environ.get(name.upper(), chosen))
    log.info(
        "process %d of %d, with %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


def _check_arguments(coordinator: str | None, count: int | None, index: int | None) -> None:
    if coordinator is None or count is None or index is None:
        given = {"coordinator": coordinator, "processes": count, "process": index}
        missing = [f"--{name}" for name, value in given.items() if value is None]
        raise FlowleyError(
            f"--coordinator, --processes and --process belong together; missing: {', '.join(missing)}"
        )
    if not 0 <= index < count:
        raise FlowleyError(f"process={index} must be in 0 … {count - 1}, with processes={count}")


def _check_alone(environment: Mapping[str, str]) -> None:
    """Refuse a task of several that JAX took for a single process; Open MPI 5 no longer tells the address."""
    count = environment.get("OMPI_COMM_WORLD_SIZE", "1")
    if count != "1":
        raise FlowleyError(
            f"Open MPI started {count} processes without the address of the first one: add --coordinator "
            f'HOST:PORT --processes {count} --process "$OMPI_COMM_WORLD_RANK"'
        )


@contextlib.contextmanager
def processes_of_run() -> Iterator[None]:
    """Run a block that several processes run together, so that each can say why it failed.

    An error of a collective that does not reach another process becomes one line that says so. After an
    error, the first process ends last: JAX's coordination service runs in it, and aborts the others when it
    is gone.

    Raises:
      FlowleyError: another process has ended, or cannot be reached.
    """
    try:
        with _named_lost_process():
            yield
    except Exception:
        if is_first() and jax.process_count() > 1:
            time.sleep(_LAST_SECONDS)
        raise


@contextlib.contextmanager
def _named_lost_process() -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        if jax.process_count() == 1 or not any(name in reason for name in _UNREACHED):
            raise
        raise FlowleyError(
            "another process of this run has ended or cannot be reached; its own output says why. Start all "
            f"processes again: the run resumes from its newest checkpoint ({reason[:_SHOWN_CHARACTERS]})"
        ) from error


def is_alone() -> bool:
    """Return whether this process is the only one of the run."""
    return jax.process_count() == 1


def is_first() -> bool:
    """Return whether this is the process that writes files and shows progress."""
    return jax.process_index() == 0


def wait_for_all(barrier: str) -> None:
    """Block until every process has reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(barrier)


def all_processes(holds: bool) -> bool:
    """Return whether `holds` is true in every process. Collective: every process must call this."""
    if jax.process_count() == 1:
        return holds
    with jax.transfer_guard("allow"):
        return bool(multihost_utils.process_allgather(np.asarray(holds)).all())


def broadcast_from_first(value: int) -> int:
    """Return the first process's value, below 2³¹. Collective: every process must call this."""
    if jax.process_count() == 1:
        return value
    with jax.transfer_guard("allow"):
        return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


def all_do(action: Callable[[], _Result], *, failure: str) -> _Result:
    """Run an action in every process, and let none of them go on if it fails in one.

    Collective: every process must call this. No process returns before the action has ended everywhere.

    Args:
      failure: the error in processes where the action succeeds.

    Raises:
      FlowleyError: the action failed.
    """
    result, problem = None, None
    try:
        result = action()
    except (FlowleyError, OSError) as error:
        problem = error
    if not all_processes(problem is None):
        raise problem or FlowleyError(f"{failure}; another process says why")
    return cast(_Result, result)


def first_does(action: Callable[[], object], *, failure: str) -> None:
    """Run an action in the first process only; otherwise like `all_do`."""
    all_do(lambda: action() if is_first() else None, failure=failure)
