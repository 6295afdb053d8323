"""Processes that `multiprocessing` starts: they ignore signals to their group, and end with their parent."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def signals_kept_from_children() -> Iterator[None]:
    """Start processes in this block that SIGTERM and Ctrl-C to the process group do not reach.

    They inherit the mask of this thread. The process itself receives the signals after the block.
    """
    # When it starts, it unblocks both signals in this thread.
    resource_tracker.ensure_running()
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def end_with_parent() -> None:
    """Let this process end when the one that started it is gone; nothing happens in a first process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_for_end, args=(parent.sentinel,), daemon=True).start()


def _wait_for_end(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(0)


def end_workers() -> None:
    """Kill the processes that this one started, for an exit that runs no clean-up."""
    for worker in multiprocessing.active_children():
        worker.kill()
