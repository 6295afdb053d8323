"""Training on a Cloud TPU slice: python -m launch.tpu --do=watch --name=… --project=… --zone=…

`create` asks for the slice, `run` installs the project on it and starts the training, `watch` does both as
often as it takes until the training is finished, `delete` gives the slice back. With --dry_run the commands
are printed and nothing is run.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.errors import FlowleyError
from launch import commands
from launch.check import check_devices, check_mounted, configuration
from launch.commands import CommandError, Run
from launch.job import RUN_AGAIN, Job, check_name, define_job_flags, job_from_flags
from launch.queued import STATUS, Request, setup_script, start_script, status_script, tail_script

# As a program, this module has another name.
log = logging.getLogger("launch.tpu")
# Of a queued resource.
LOST = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING")
READY = "ACTIVE"
MISSING = "NONE"


def main() -> int:
    """Command line; returns 0 when what was asked for is done."""
    values = flags.FLAGS
    request = Request(
        name=check_name(values.name),
        project=values.project,
        zone=values.zone,
        accelerator=values.accelerator,
        spot=values.spot,
        reserved=values.reserved,
        bucket=values.bucket,
        mount=values.mount,
    )
    run = commands.show if values.dry_run else commands.run
    if values.do == "delete":
        run(request.delete())
        return 0
    job = job_from_flags()
    check(job, request)
    if values.do == "create":
        run(request.create())
    elif values.do == "run":
        start(job, request, run)
    elif values.dry_run:
        run(request.describe())
        run(request.create())
        start(job, request, run)
        run(request.on_all_machines(status_script(job)))
    else:
        watch(job, request, run, every=values.every, patience=values.patience)
    return 0


def check(job: Job, request: Request) -> None:
    """Raises FlowleyError where the job would not start on the slice."""
    config = configuration(job)
    check_devices(config, request.slice.chips)
    if request.bucket:
        check_mounted(job, config, request.mount)


def start(job: Job, request: Request, run: Run) -> None:
    """Installs the project on all machines and starts the training on all of them."""
    run(request.on_all_machines(setup_script(job, request)))
    run(request.on_all_machines(start_script(job)))


def watch(
    job: Job,
    request: Request,
    run: Run,
    *,
    every: float,
    patience: int,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Gets the slice, trains on it, and begins again after preemptions until the training is finished.

    Args:
      every: seconds between two looks.
      patience: slices or starts in a row without a newer checkpoint, after which it gives up.

    Raises:
      FlowleyError: the training failed, or so many attempts gained nothing; the slice is left as it is.
    """
    attempts, best = 0, 0
    try:
        while True:
            state = queued_state(request, run)
            log.info("%s: %s", request.name, state)
            if state == MISSING or state in LOST:
                attempts += 1
                _check_patience(attempts, patience, best, request)
                if state != MISSING:
                    run(request.delete())
                run(request.create())
            elif state == READY:
                training, step = training_state(job, request, run)
                log.info("training: %s, newest checkpoint %d", training, step)
                if step > best:
                    attempts, best = 0, step
                if training == "0":
                    log.info("finished; --do=delete gives the slice back, which costs until then")
                    return
                if training in ("none", str(RUN_AGAIN)):
                    attempts += 1
                    _check_patience(attempts, patience, best, request)
                    start(job, request, run)
                elif training not in ("running", "unknown"):
                    raise FlowleyError(
                        f"the training failed with code {training}; the end of its log on {request.name}:\n"
                        + run(request.on_all_machines(tail_script(20)))
                    )
            sleep(every)
    except KeyboardInterrupt:
        log.info("%s goes on, and costs, without being watched; --do=delete ends it", request.name)
        raise


def queued_state(request: Request, run: Run) -> str:
    """State of the request, or NONE where there is no such request."""
    try:
        return run(request.describe()).strip() or MISSING
    except CommandError as error:
        if "NOT_FOUND" in str(error) or "not found" in str(error):
            return MISSING
        raise


def training_state(job: Job, request: Request, run: Run) -> tuple[str, int]:
    """What the machines say together: none, running, unknown or an exit code, and the newest checkpoint."""
    try:
        printed = run(request.on_all_machines(status_script(job)))
    except CommandError as error:
        # A slice that is being taken away stops answering before its state says so.
        log.info("no answer (%s)", error)
        return "unknown", 0
    rows = [line.split() for line in printed.splitlines() if line.startswith(STATUS)]
    if len(rows) < request.slice.hosts:
        return "unknown", 0
    states = Counter(row[1] for row in rows)
    step = max(int(row[2]) for row in rows)
    failed = [state for state in states if state not in ("none", "running", "0", str(RUN_AGAIN))]
    if failed:
        return failed[0], step
    # Machines end within seconds of each other.
    return ("running" if states["running"] else next(iter(states)) if len(states) == 1 else "none"), step


def _check_patience(attempts: int, patience: int, best: int, request: Request) -> None:
    if attempts > patience:
        raise FlowleyError(
            f"{patience} attempts on {request.name} have brought no checkpoint newer than step {best}; see "
            "the log on the machines, or train.checkpoint_minutes if slices do not last so long"
        )


def _define_flags() -> None:
    define_job_flags()
    flags.DEFINE_enum("do", None, ["create", "run", "watch", "delete"], "What to do.", required=True)
    flags.DEFINE_string("project", None, "Google Cloud project.", required=True)
    flags.DEFINE_string("zone", None, "Zone that has such slices.", required=True)
    flags.DEFINE_string("accelerator", "v5litepod-16", "Slice to ask for.")
    flags.DEFINE_bool("spot", False, "Cheaper, and taken away at any time.")
    flags.DEFINE_bool("reserved", False, "From a reservation of the project.")
    flags.DEFINE_string("bucket", "", "gs://… to mount on all machines.")
    flags.DEFINE_string("mount", "/mnt/flowley", "Where to mount it.")
    flags.DEFINE_float("every", 60.0, "Seconds between two looks.", lower_bound=1.0)
    flags.DEFINE_integer(
        "patience", 3, "Attempts without a newer checkpoint before giving up.", lower_bound=1
    )
    flags.DEFINE_bool("dry_run", False, "Print the commands and run nothing.")


if __name__ == "__main__":
    _define_flags()
    run_main(main)
