"""Train on a Cloud TPU slice.

python -m launch.tpu --do=watch --name=… --project=… --zone=… --workdir=/mnt/flowley/run

`create` requests the slice. `run` installs the project on it and starts the training. `watch` does both, as
often as needed, until the training is finished. `delete` releases the slice. With --dry_run, commands are
printed and not run.
"""

import contextlib
import logging
import signal
from collections.abc import Iterator

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import Range
from launch import commands
from launch.check import check_devices, check_mounted, read_config
from launch.commands import CommandError
from launch.job import Job, check_name, define_job_flags, job_from_flags
from launch.queued import SliceRequest, status_script
from launch.watching import start, watch

# Not __name__, which is __main__ when this module is the program.
log = logging.getLogger("launch.tpu")


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
        with _naming_costs(request):
            run(request.delete_command())
        return 0
    job = job_from_flags()
    check(job, request)
    if values.do == "watch" and not values.dry_run:
        # It says what is billed, however it is ended.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        watch(
            job,
            request,
            run,
            every=values.every,
            patience=values.patience,
            retries=values.retries,
            unanswered=values.unanswered,
        )
        return 0
    if values.do == "watch":
        run(request.describe_command())
    with _naming_costs(request):
        if values.do in ("create", "watch"):
            run(request.create_command())
        if values.do in ("run", "watch"):
            start(job, request, run)
    if values.do == "watch":
        run(request.on_all_machines(status_script(job)))
    return 0


@contextlib.contextmanager
def _naming_costs(request: SliceRequest) -> Iterator[None]:
    """Say after an error how to delete a slice that may be there."""
    try:
        yield
    except (CommandError, KeyboardInterrupt):
        log.warning("if %s exists, it is billed until you delete it: %s", request.name, request.deletion)
        raise


def check(job: Job, request: SliceRequest) -> None:
    """Check that the job would start on the slice.

    Raises:
      FlowleyError: it would not.
    """
    config = read_config(job)
    check_devices(config, request.slice.chips, machines=request.slice.hosts)
    if request.bucket:
        check_mounted(job, config, request.mount)


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
    define_float("every", 60.0, "Seconds between two checks of --do=watch.", Range(least=1, most=3600))
    define_int(
        "patience",
        3,
        "Slices and starts in a row without a newer checkpoint before --do=watch gives up.",
        Range(least=1, most=1000),
    )
    define_int(
        "retries",
        10,
        "Failures of gcloud in a row before --do=watch gives up; it waits longer after each.",
        Range(least=0, most=1000),
    )
    define_int(
        "unanswered",
        20,
        "Checks in a row without an answer from all machines before --do=watch replaces the slice.",
        Range(least=1, most=10_000),
    )
    flags.DEFINE_bool("dry_run", False, "Print the commands without running them.")


if __name__ == "__main__":
    _define_flags()
    run_main(main)
