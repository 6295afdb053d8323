"""SIGTERM and Ctrl-C as a request to stop, in one process or in several."""

import _thread
import contextlib
import itertools
import logging
import os
import signal
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from flowley_jax.common.worker_processes import end_workers

log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Launchers forward signals that the kernel has sent to the whole group already.
_SAME_REQUEST_SECONDS = 1.0
# No signal has the number 0.
_END = b"\0"
# JAX stops all processes at the same number of this count, which must have no gaps.
_checks = itertools.count(1)


class StopSignal:
    """Context in which the first SIGTERM or Ctrl-C asks this run to stop, and a later one ends it at once.

    Signals within a second of the first count as the same request. A thread receives them, so that both take
    effect while the main thread compiles or waits. With several processes, a signal to any of them reaches
    all; JAX makes them stop at the same `check`. There, a second SIGTERM acts only after that.
    """

    def __init__(self):
        self.requested = False
        self._first_at: float | None = None
        self._interrupts_main = False
        self._previous: dict[int, Any] = {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            log.info("not in the main thread: signals will not stop this run")
            return self
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # Python writes the number of a signal here as soon as it arrives, whatever the main thread does.
        earlier = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        # JAX's own handler of SIGTERM tells the other processes.
        for number in _SIGNALS if jax.process_count() == 1 else (signal.SIGINT,):
            self._handle(number)
        receiver = threading.Thread(target=self._receive, args=(reading,), daemon=True)
        receiver.start()
        self._cleanup.callback(os.close, reading)
        self._cleanup.callback(receiver.join)
        # Not by closing the pipe: a process that was forked meanwhile would keep it open.
        self._cleanup.callback(os.close, writing)
        self._cleanup.callback(os.write, writing, _END)
        self._cleanup.callback(signal.set_wakeup_fd, earlier)
        self._cleanup.callback(self._restore)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._cleanup.close()

    def check(self) -> bool:
        """Return whether to stop now. Collective: every process must call this equally often."""
        if (
            jax.process_count() > 1
            and not self.requested
            and multihost_utils.reached_preemption_sync_point(next(_checks))
        ):
            self.requested = True
            self._announce()
            if self._previous:
                self._handle(signal.SIGTERM)
        return self.requested

    def _handle(self, number: int) -> None:
        # Without a handler of its own, Python would not tell the receiver.
        previous = signal.signal(number, self._in_main_thread)
        # Python knows no handler that another library has installed, as JAX does.
        self._previous[number] = signal.SIG_DFL if previous is None else previous

    def _in_main_thread(self, number: int, frame: object) -> None:
        del number, frame
        if self._interrupts_main:
            raise KeyboardInterrupt

    def _receive(self, reading: int) -> None:
        while (numbers := os.read(reading, 1)) != _END:
            number = numbers[0]
            if number not in _SIGNALS or self._interrupts_main:
                continue
            if self._first_at is None:
                self._request(number)
            elif time.monotonic() - self._first_at > _SAME_REQUEST_SECONDS:
                self._abort(number)

    def _request(self, number: int) -> None:
        self._announce()
        if jax.process_count() == 1:
            self.requested = True
        elif number == signal.SIGINT:
            os.kill(os.getpid(), signal.SIGTERM)

    def _announce(self) -> None:
        if self._first_at is None:
            self._first_at = time.monotonic()
            log.info("stopping after the current step; press Ctrl-C again to abort now")

    def _abort(self, number: int) -> None:
        """Give a signal the effect that it had before this context."""
        previous = self._previous[number]
        if previous is signal.default_int_handler:
            self._interrupts_main = True
            _thread.interrupt_main()
        elif callable(previous):
            previous(number, None)
        elif previous == signal.SIG_DFL:
            end_workers()
            os._exit(128 + number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
