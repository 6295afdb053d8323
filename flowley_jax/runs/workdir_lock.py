"""The lock that keeps a second training out of a run's folder."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from flowley_jax.common import distributed
from flowley_jax.common.files import name_errors, remove_partials
from flowley_jax.common.locks import FolderInUseError, lock_folder
from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)
# As long as the launchers' jobs may take to store their state.
WAIT_SECONDS = 180.0
_POLL_SECONDS = 2.0
# Orbax's names for checkpoints and snapshots that are not complete.
_HALF_WRITTEN = ("checkpoints/*.orbax-checkpoint-tmp*", "ema/*.orbax-checkpoint-tmp*")


@contextlib.contextmanager
def locked_workdir(workdir: Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder, and remove what killed ones left half-written.

    A job that a scheduler starts again can overlap the one that it replaces: it waits for that one to store
    its state. Collective: the first process holds the lock, and the others learn whether it does.

    Raises:
      FlowleyError: another training still uses the folder, or the folder cannot be written to.
    """
    deadline, announced = time.monotonic() + WAIT_SECONDS, False
    with contextlib.ExitStack() as lock:
        while True:
            held, problem = _try_lock(workdir, lock)
            if distributed.broadcast_from_first(held):
                break
            waiting = isinstance(problem, FolderInUseError) and time.monotonic() < deadline
            # No process may wait for the others longer than some seconds: collectives have time limits.
            if not distributed.broadcast_from_first(waiting):
                raise problem or FlowleyError(f"{workdir}: not available to the first process")
            if problem and not announced:
                log.info("%s; waiting up to %.0f s for it to end", problem, WAIT_SECONDS)
                announced = True
            time.sleep(_POLL_SECONDS)
        distributed.first_does(
            lambda: _remove_half_written(workdir), failure=f"{workdir}: not available to the first process"
        )
        yield


def _try_lock(workdir: Path, lock: contextlib.ExitStack) -> tuple[bool, FlowleyError | None]:
    if distributed.is_first():
        try:
            lock.enter_context(lock_folder(workdir))
        except FlowleyError as error:
            return False, error
    return True, None


def _remove_half_written(workdir: Path) -> None:
    remove_partials(workdir)
    for pattern in _HALF_WRITTEN:
        for path in workdir.glob(pattern):
            log.info("removing %s, which a run that was killed left half-written", path)
            with name_errors(path):
                shutil.rmtree(path)
