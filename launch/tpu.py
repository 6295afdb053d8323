"""Train on a Cloud TPU slice.

python -m launch.tpu --do=watch --name=… --project=… --zone=… --workdir=/mnt/flowley/run

`create` requests the slice. `run` installs the project on it and starts the training. `watch` does both, as
often as needed, until the training is finished. `delete` releases the slice. With --dry_run, commands are
printed and not run.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable

from absl import flags

from flowley_jax.cli import STOPPED_EARLY, run_main
from flowley_jax.errors import FlowleyError
from launch import commands
from launch.check import check_devices, check_mounted, read_config
from launch.commands import CommandError, Runner
from launch.job import Job, check_name, define_job_flags, job_from_flags
from launch.queued import STATUS, SliceRequest, setup_script, start_script, status_script, tail_script

# Not __name__, which is __main__ when this module is the program.
log = logging.getLogger("launch.tpu")
# States of a queued resource; Google Cloud has no MISSING, which means that there is no such resource.
LOST = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING")
READY = "ACTIVE"
MISSING = "NONE"


def main() -> int:
    """Run the command line; return 0 when the requested action is done."""
    values = flags.FLAGS
    request = SliceRequest(
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
        run(request.delete_command())
        return 0
    job = job_from_flags()
    check(job, request)
    if values.do == "create":
        run(request.create_command())
    elif values.do == "run":
        start(job, request, run)
    elif values.dry_run:
        run(request.describe_command())
        run(request.create_command())
        start(job, request, run)
        run(request.on_all_machines(status_script(job)))
    else:
        watch(job, request, run, every=values.every, patience=values.patience)
    return 0


def check(job: Job, request: SliceRequest) -> None:
    """Check that the job would start on the slice.

    Raises:
      FlowleyError: it would not.
    """
    config = read_config(job)
    check_devices(config, request.slice.chips)
    if request.bucket:
        check_mounted(job, config, request.mount)


def start(job: Job, request: SliceRequest, run: Runner) -> None:
    """Install the project on all machines, then start the training on all of them."""
    run(request.on_all_machines(setup_script(job, request)))
    run(request.on_all_machines(start_script(job)))


def watch(
    job: Job,
    request: SliceRequest,
    run: Runner,
    *,
    every: float,
    patience: int,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Get the slice and train on it; request another slice after each preemption until the run is finished.

    Args:
      job: the training.
      request: the slice.
      run: runs a command and returns its output.
      every: seconds between two checks.
      patience: give up after this many attempts in a row (slices or starts) without a newer checkpoint.
      sleep: waits for a number of seconds.

    Raises:
      FlowleyError: the training failed, or too many attempts brought no newer checkpoint. The slice is kept.
    """
    attempts, newest = 0, 0
    try:
        while True:
            state = queued_state(request, run)
            log.info("%s: %s", request.name, state)
            if state == MISSING or state in LOST:
                attempts += 1
                _check_patience(attempts, patience, newest, request)
                if state != MISSING:
                    run(request.delete_command())
                run(request.create_command())
            elif state == READY:
                training, step = training_state(job, request, run)
                log.info("training: %s, newest checkpoint %d", training, step)
                if step > newest:
                    attempts, newest = 0, step
                if training == "0":
                    log.info("finished; --do=delete releases the slice (billed until then)")
                    return
                if training in ("none", str(STOPPED_EARLY)):
                    attempts += 1
                    _check_patience(attempts, patience, newest, request)
                    start(job, request, run)
                elif training not in ("running", "unknown"):
                    raise FlowleyError(
                        f"the training failed with code {training}; the end of its log on {request.name}:\n"
                        + run(request.on_all_machines(tail_script(20)))
                    )
            sleep(every)
    except KeyboardInterrupt:
        log.info(
            "%s keeps running, and billing, unattended; --do=watch resumes watching; --do=delete deletes it",
            request.name,
        )
        raise


def queued_state(request: SliceRequest, run: Runner) -> str:
    """Return the state of the queued resource, or `MISSING` if there is none."""
    try:
        return run(request.describe_command()).strip() or MISSING
    except CommandError as error:
        if "NOT_FOUND" in str(error) or "not found" in str(error):
            return MISSING
        raise


def training_state(job: Job, request: SliceRequest, run: Runner) -> tuple[str, int]:
    """Return the state of the training over all machines, and the step of the newest checkpoint.

    The state is "none", "running", an exit code, or "unknown" if not all machines answer.
    """
    try:
        output = run(request.on_all_machines(status_script(job)))
    except CommandError as error:
        # A slice that is being preempted stops answering before its state says so.
        log.info("no answer (%s)", error)
        return "unknown", 0
    rows = [line.split() for line in output.splitlines() if line.startswith(STATUS)]
    if len(rows) < request.slice.hosts:
        return "unknown", 0
    states = Counter(row[1] for row in rows)
    step = max(int(row[2]) for row in rows)
    failed = [state for state in states if state not in ("none", "running", "0", str(STOPPED_EARLY))]
    if failed:
        return failed[0], step
    # Machines end within seconds of each other: wait for the last one.
    if states["running"]:
        return "running", step
    return next(iter(states)) if len(states) == 1 else "none", step


def _check_patience(attempts: int, patience: int, newest: int, request: SliceRequest) -> None:
    if attempts > patience:
        raise FlowleyError(
            f"{patience} attempts on {request.name} have brought no checkpoint newer than step {newest}; see "
            "the log on the machines, or lower train.checkpoint_minutes if slices are preempted that soon"
        )


def _define_flags() -> None:
    define_job_flags()
    flags.DEFINE_enum(
        "do",
        None,
        ["create", "run", "watch", "delete"],
        "create requests the slice, run starts the training on it, watch does both until the training is "
        "finished, delete releases the slice.",
        required=True,
    )
    flags.DEFINE_string("project", None, "Google Cloud project.", required=True)
    flags.DEFINE_string("zone", None, "Zone that has such slices.", required=True)
    flags.DEFINE_string("accelerator", "v5litepod-16", "Generation and size of the slice.")
    flags.DEFINE_bool("spot", False, "Request a spot slice: cheaper, but it can be preempted at any time.")
    flags.DEFINE_bool("reserved", False, "Use a reservation of the project.")
    flags.DEFINE_string("bucket", "", "gs://… to mount on all machines.")
    flags.DEFINE_string("mount", "/mnt/flowley", "Folder at which machines see the bucket.")
    flags.DEFINE_float("every", 60.0, "Seconds between two checks of --do=watch.", lower_bound=1.0)
    flags.DEFINE_integer(
        "patience", 3, "Attempts without a newer checkpoint before --do=watch gives up.", lower_bound=1
    )
    flags.DEFINE_bool("dry_run", False, "Print the commands without running them.")


if __name__ == "__main__":
    _define_flags()
    run_main(main)
