"""Stopping a run by a signal, after a finished step."""

import logging
import signal

import jax

from flowley_jax.training import processes

log = logging.getLogger(__name__)


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a request; a second one acts as usual.

    Of several processes JAX has taken SIGTERM over, and makes all of them stop after the same step.
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
            log.info("not in the main thread: signals do not stop this run")
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def requested_at(self, step: int) -> bool:
        """Whether to stop now that `step` steps are done; asked after every step, by all processes."""
        self.requested = self.requested or processes.preempted(step)
        return self.requested

    def _request(self, number, frame) -> None:
        del frame
        self.requested = True
        signal.signal(number, self._previous[number])  # type: ignore[arg-type]
        log.info("stopping after this step, once it is compiled; once more to stop at once")
