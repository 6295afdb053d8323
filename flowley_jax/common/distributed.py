"""Several processes that train one model: start-up, collectives on the host, and signals."""

import logging
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)


def initialize(*, coordinator: str | None, count: int | None, index: int | None) -> None:
    """Connect to the other processes of this run, if there are any. Call it before any other use of JAX.

    Cloud TPU, GKE, Slurm and MPI tell JAX about the other processes. Elsewhere, give all three arguments.

    Args:
      coordinator: host:port of the first process.
      count, index: number of processes, and the index of this one.

    Raises:
      FlowleyError: only some of the three are given, or the index is not below the count.
    """
    named = (coordinator, count, index)
    if named == (None, None, None):
        try:
            jax.distributed.initialize()
        except ValueError as error:
            # JAX found no cluster: this process runs by itself.
            if "coordinator_address" not in str(error):
                raise
            return
    else:
        if coordinator is None or count is None or index is None:
            given = dict(zip(("coordinator", "processes", "process"), named, strict=True))
            missing = [f"--{name}" for name, value in given.items() if value is None]
            raise FlowleyError(
                f"--coordinator, --processes and --process belong together; missing: {', '.join(missing)}"
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


def broadcast_from_first(value: bool) -> bool:
    """Return the first process's value. Collective: every process must call this."""
    if jax.process_count() == 1:
        return value
    with jax.transfer_guard("allow"):
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


class StopSignal:
    """Context that turns the first SIGTERM or SIGINT into a request to stop; the second one acts as usual.

    With several processes, JAX handles SIGTERM itself and makes all of them stop after the same step. SIGINT
    then has its usual effect at once.
    """

    def __init__(self):
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if jax.process_count() > 1:
            return self
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._request)
        except ValueError:
            log.info("not in the main thread: signals will not stop this run")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._restore()

    def requested_at(self, step: int) -> bool:
        """Return whether to stop now that `step` steps are done.

        Collective: every process must call this after every step.
        """
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.requested = True
        return self.requested

    def _request(self, number: int, frame: object) -> None:
        del number, frame
        self.requested = True
        self._restore()
        log.info("stopping after the current step; press Ctrl-C again to abort now")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
