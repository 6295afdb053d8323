"""Several processes that train one model together: how they find each other, and what one of them does."""

import logging

import jax
import numpy as np
from jax.experimental import multihost_utils

from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)


def join(*, coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the other processes of this run, if there are any; the first thing that a program does.

    Cloud TPU, GKE, Slurm and MPI tell JAX who the others are; elsewhere they are named.

    Args:
      coordinator: host:port of the first process.
      count, index: number of processes, and which one this is.

    Raises:
      FlowleyError: some of the three are given and others not, or the index is none of the count.
    """
    named = (coordinator, count, index)
    if named == (None, None, None):
        try:
            jax.distributed.initialize()
        except ValueError as error:
            # Nobody started this process together with others.
            if "coordinator_address" not in str(error):
                raise
            return
    else:
        if coordinator is None or count is None or index is None:
            given = dict(zip(("coordinator", "processes", "process"), named, strict=True))
            missing = [f"--{name}" for name, value in given.items() if value is None]
            raise FlowleyError(
                f"--coordinator, --processes and --process belong together; {', '.join(missing)} is missing"
            )
        if not 0 <= index < count:
            raise FlowleyError(f"process={index} must be in 0 … {count - 1}, with processes={count}")
        jax.distributed.initialize(coordinator, count, index)
    log.info(
        "process %d of %d, with %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def everywhere(holds: bool) -> bool:
    """Whether something holds in every process; all of them have to ask."""
    if jax.process_count() == 1:
        return holds
    return bool(multihost_utils.process_allgather(np.asarray(holds)).all())


def first_says(value: bool) -> bool:
    """What the first process says; all of them have to ask."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def preempted(step: int) -> bool:
    """Whether a SIGTERM to any of several processes asks all of them to stop after this step."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
