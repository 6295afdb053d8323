"""Keep a training on a TPU slice until it is finished, whatever happens to the slice and to the connection.

Each round reads the state of the slice again and does the one thing that it calls for. A command that fails
therefore does no harm: the next round finds out what it did. What is repeated without success is counted,
and ends the watch.
"""

import dataclasses
import logging
import re
import time
from collections.abc import Callable

from flowley_jax.cli import STOPPED_EARLY, USER_ERROR
from flowley_jax.errors import FlowleyError
from launch.commands import CommandError, MissingProgramError, Runner
from launch.job import Job
from launch.queued import STATUS, SliceRequest, setup_script, start_script, status_script, tail_script

log = logging.getLogger("launch.tpu")
# States of a queued resource. Google Cloud has no MISSING (there is no such resource) and no REQUESTED (its
# creation was requested, and perhaps not heard).
LOST = ("SUSPENDING", "SUSPENDED", "FAILED")
DELETING = "DELETING"
READY = "ACTIVE"
MISSING = "NONE"
REQUESTED = "REQUESTED"
UNKNOWN = "UNKNOWN"
# States of a training beside exit codes.
NOT_STARTED, RUNNING, ENDING, NO_ANSWER = "none", "running", "ending", "unknown"
_MAX_PAUSE = 600.0
_SETUP_LIMIT, _START_LIMIT, _STATUS_LIMIT = 3600.0, 600.0, 180.0
_TAIL_LINES = 20
# Errors that the same command meets again, unless somebody changes something.
_LASTING = re.compile(
    r"PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|RESOURCE_EXHAUSTED|unrecognized arguments|"
    r"active account|required property|auth login",
    re.IGNORECASE,
)


def watch(
    job: Job,
    request: SliceRequest,
    run: Runner,
    *,
    every: float,
    patience: int,
    retries: int = 10,
    unanswered: int = 20,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Get the slice and train on it; request another slice after each preemption until the run is finished.

    Args:
      job: the training.
      request: the slice.
      run: runs a command and returns its output.
      every: seconds between two checks.
      patience: give up after this many attempts in a row without a newer checkpoint (each slice is one
        attempt, and so is each further start on it), or when a start fails more often than this in a row.
      retries: give up when other commands fail more often than this in a row. The pauses between them grow.
      unanswered: checks in a row without an answer from all machines, after which the slice is replaced.
      sleep: waits for a number of seconds.

    Raises:
      FlowleyError: the training failed, attempts or retries are used up, or no command can succeed. Whether
        a slice is left is logged, however the watch ends.
    """
    watcher = _Watcher(job=job, request=request, run=run, patience=patience, unanswered=unanswered)
    failures = 0
    try:
        while True:
            pause = every
            try:
                watcher.round()
            except MissingProgramError:
                raise
            except CommandError as error:
                failures += 1
                if failures > retries or (not watcher.has_seen_slice and _is_lasting(error)):
                    raise
                pause = min(every * 2 ** min(failures - 1, 20), max(every, _MAX_PAUSE))
                log.warning("%s; trying again in %.0f s (%d of %d)", error, pause, failures, retries)
            else:
                if watcher.is_finished:
                    log.info("the training is finished")
                    return
                # Without an answer, nothing shows that the trouble is over.
                if not watcher.silent_checks:
                    failures = 0
            sleep(pause)
    finally:
        watcher.log_what_is_left()


@dataclasses.dataclass(kw_only=True)
class _Watcher:
    """State of a watch.

    Attributes:
      state: state of the slice as far as known.
      attempts: slices and further starts since the newest checkpoint.
      newest: step of the newest checkpoint; None before the first answer of a training.
      silent_checks: checks in a row without a clear answer.
      has_seen_slice: whether there was a slice at any time.
      is_requesting: whether an attempt was counted for a slice that is not requested yet.
      may_start: whether an attempt was counted for the next start.
      failed_starts: starts in a row that failed on this slice.
      is_finished: whether the training has ended with code 0.
    """

    job: Job
    request: SliceRequest
    run: Runner
    patience: int
    unanswered: int
    state: str = UNKNOWN
    attempts: int = 0
    newest: int | None = None
    silent_checks: int = 0
    has_seen_slice: bool = False
    is_requesting: bool = False
    may_start: bool = False
    failed_starts: int = 0
    is_finished: bool = False

    def round(self) -> None:
        """Read the state of slice and training, and do what it calls for."""
        earlier, self.state = self.state, queued_state(self.request, self.run)
        log.info("%s: %s", self.request.name, self.state)
        if self.state == MISSING or self.state in LOST:
            self._replace_slice()
            return
        self.has_seen_slice = True
        if earlier == REQUESTED:
            self.is_requesting = False
        if self.state == DELETING:
            self._wait_for_deletion()
        elif self.state == READY:
            self._attend_training()
        else:
            self.silent_checks = 0

    def log_what_is_left(self) -> None:
        """Say whether a slice is left that costs, and how to delete it."""
        name, state = self.request.name, self.state.lower()
        if self.state == MISSING:
            log.info("there is no slice %s, and nothing is billed", name)
        elif self.state in (UNKNOWN, REQUESTED):
            log.warning(
                "if %s exists (%s), it is billed until you delete it: %s", name, state, self.request.deletion
            )
        else:
            log.warning(
                "%s is kept (%s), and is billed until you delete it: %s", name, state, self.request.deletion
            )

    def _wait_for_deletion(self) -> None:
        self.silent_checks += 1
        if self.silent_checks >= self.unanswered:
            raise FlowleyError(
                f"{self.request.name} has been {DELETING} for {self.silent_checks} checks; look at it in the "
                "console of Google Cloud"
            )

    def _replace_slice(self) -> None:
        if not self.is_requesting:
            self._begin_attempt()
            self.is_requesting = True
        if self.state != MISSING:
            self.run(self.request.delete_command())
        # Before the command: if it is interrupted, the slice may be there.
        self.state = REQUESTED
        try:
            self.run(self.request.create_command())
        except CommandError as error:
            if _is_lasting(error):
                # Refused: nothing was requested.
                self.state = MISSING
            raise
        self.is_requesting = False
        self.silent_checks = self.failed_starts = 0

    def _attend_training(self) -> None:
        training, step = training_state(self.job, self.request, self.run)
        log.info("training: %s, newest checkpoint %d", training, step)
        if training in (NO_ANSWER, ENDING):
            self._wait_for_answer(training)
            return
        self.silent_checks = 0
        self.is_requesting = False
        if training != NOT_STARTED:
            self._note_progress(step)
        if training == "0":
            self.is_finished = True
        elif training == str(USER_ERROR):
            log.warning("the end of the log on %s:\n%s", self.request.name, self._log_tail())
            raise FlowleyError(f"the training failed with code {training}, wrong input; see its log above")
        elif training != RUNNING:
            if training not in (NOT_STARTED, str(STOPPED_EARLY)):
                log.warning("the training failed with code %s:\n%s", training, self._log_tail())
            self._start()

    def _wait_for_answer(self, training: str) -> None:
        self.silent_checks += 1
        checks = self.silent_checks
        if checks < self.unanswered:
            return
        if training == ENDING:
            log.warning("for %d checks, some machines have ended and others have not: starting again", checks)
            self._start()
        else:
            log.warning("for %d checks, not all machines have answered: replacing the slice", checks)
            self._replace_slice()

    def _note_progress(self, step: int) -> None:
        if self.newest is not None and step > self.newest:
            self.attempts = 0
        self.newest = max(step, self.newest or 0)

    def _start(self) -> None:
        if not self.may_start:
            self._begin_attempt()
        try:
            start(self.job, self.request, self.run)
        except CommandError as error:
            self.failed_starts += 1
            if self.failed_starts > self.patience:
                raise FlowleyError(
                    f"{self.failed_starts} starts in a row failed; the last: {error}"
                ) from error
            raise
        self.may_start = False
        self.silent_checks = self.failed_starts = 0

    def _begin_attempt(self) -> None:
        if self.attempts >= self.patience:
            raise FlowleyError(
                f"{self.patience} attempts on {self.request.name} have brought no checkpoint newer than step "
                f"{self.newest or 0}; see the log on the machines, or lower train.checkpoint_minutes if "
                "slices are preempted that soon"
            )
        self.attempts += 1
        self.may_start = True

    def _log_tail(self) -> str:
        try:
            return self.run(
                self.request.on_all_machines(tail_script(_TAIL_LINES)), limit=_STATUS_LIMIT
            ).rstrip()
        except CommandError as error:
            return f"(its log cannot be read: {error})"


def _is_lasting(error: CommandError) -> bool:
    return _LASTING.search(str(error)) is not None


def start(job: Job, request: SliceRequest, run: Runner) -> None:
    """Install the project on all machines, then start the training on all of them."""
    run(request.on_all_machines(setup_script(job, request)), limit=_SETUP_LIMIT)
    run(request.on_all_machines(start_script(job)), limit=_START_LIMIT)


def queued_state(request: SliceRequest, run: Runner) -> str:
    """Return the state of the queued resource, or `MISSING` if there is none.

    Raises:
      CommandError: the command failed, or printed nothing.
    """
    try:
        state = run(request.describe_command()).strip()
    except MissingProgramError:
        raise
    except CommandError as error:
        if "NOT_FOUND" in str(error) or "not found" in str(error):
            return MISSING
        raise
    if not state:
        raise CommandError(f"gcloud printed no state of {request.name}")
    return state


def training_state(job: Job, request: SliceRequest, run: Runner) -> tuple[str, int]:
    """Return the state of the training over all machines, and the step of the newest checkpoint.

    The state is an exit code, or "none" (to be started, on some machines at least), "running" (on all),
    "ending" (on some, and ended on others) or "unknown" (not all machines answer).
    """
    try:
        output = run(request.on_all_machines(status_script(job)), limit=_STATUS_LIMIT)
    except MissingProgramError:
        raise
    except CommandError as error:
        # A slice that is being preempted stops answering before its state says so.
        log.info("no answer (%s)", error)
        return NO_ANSWER, 0
    rows = re.findall(rf"^{STATUS} (none|running|\d{{1,3}}) (\d{{1,18}})$", output, re.MULTILINE)
    if len(rows) < request.slice.hosts:
        return NO_ANSWER, 0
    states = {state for state, _ in rows}
    return _common_state(states), max(int(step) for _, step in rows)


def _common_state(states: set[str]) -> str:
    if str(USER_ERROR) in states:
        return str(USER_ERROR)
    # One machine was rebooted, or a start did not reach it: the others wait for it or have failed.
    if NOT_STARTED in states:
        return NOT_STARTED
    if RUNNING in states:
        return RUNNING if len(states) == 1 else ENDING
    failed = sorted(states - {"0", str(STOPPED_EARLY)})
    if failed:
        return failed[0]
    return "0" if states == {"0"} else str(STOPPED_EARLY)
