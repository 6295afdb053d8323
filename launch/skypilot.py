"""Write a managed job for SkyPilot.

python -m launch.skypilot --name=… --bucket=… --workdir=/data/run --out=job.yaml
"""

import re
from typing import Any

from absl import flags

from flowley_jax.cli import STOPPED_EARLY, run_main
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import Range
from flowley_jax.errors import FlowleyError
from launch.check import check_devices, check_mounted, read_config
from launch.job import (
    Job,
    check_bucket,
    check_name,
    define_job_flags,
    install_lines,
    job_from_flags,
    newest_step_line,
    shell_script,
)
from launch.output import define_output_flag, to_yaml, write_output
from launch.slices import find_slice

_PORT = 8476
# Stops in a row without a newer checkpoint, after which a training is not started again.
_MAX_STOPS = 5
_TPU = "tpu-"


def main() -> int:
    """Run the command line: print the task, or write it to --out."""
    values = flags.FLAGS
    job = job_from_flags()
    config = read_config(job)
    devices, machines = count_devices(values.accelerators, values.nodes)
    check_devices(config, devices, machines=machines)
    check_mounted(job, config, values.mount)
    task = sky_task(
        job,
        name=check_name(values.name),
        accelerators=values.accelerators,
        nodes=values.nodes,
        bucket=check_bucket(values.bucket, "gs", "s3"),
        mount=values.mount,
        spot=values.spot,
    )
    write_output(to_yaml(task))
    return 0


def sky_task(
    job: Job, *, name: str, accelerators: str, nodes: int, bucket: str, mount: str, spot: bool
) -> dict[str, Any]:
    """Return a SkyPilot task that copies the current folder to its machines as the project.

    After exit code 75 the task starts the command again on the same machines, as long as the run gets newer
    checkpoints. SkyPilot replaces machines that are lost.

    Args:
      job: the training.
      name: name of the task.
      accelerators: accelerators of each node, such as H100:8 or tpu-v5litepod-16.
      nodes: number of nodes.
      bucket: gs://… or s3://… to mount.
      mount: folder at which nodes see the bucket.
      spot: whether to use spot machines.
    """
    is_tpu = accelerators.startswith(_TPU)
    return {
        "name": name,
        "workdir": ".",
        "num_nodes": nodes,
        "resources": {
            "accelerators": accelerators,
            "use_spot": spot,
            "job_recovery": {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 3},
        },
        "file_mounts": {mount: {"source": bucket, "mode": "MOUNT"}},
        "setup": shell_script(["set -eu", *install_lines(".venv", ".", "tpu" if is_tpu else "cuda")]),
        "run": _run_script(job, nodes),
    }


def count_devices(accelerators: str, nodes: int) -> tuple[int, int]:
    """Return the number of accelerators of all nodes, and the number of machines.

    Raises:
      FlowleyError: `accelerators` is not a SkyPilot name, or names a TPU slice for several nodes.
    """
    if accelerators.startswith(_TPU):
        if nodes > 1:
            raise FlowleyError(f"nodes={nodes} must be 1: {accelerators} is a whole slice")
        slice_ = find_slice(accelerators.removeprefix(_TPU))
        return slice_.chips, slice_.hosts
    match = re.fullmatch(r"[A-Za-z][\w.-]*(:([1-9]\d{0,3}))?", accelerators)
    if match is None:
        raise FlowleyError(f"accelerators={accelerators!r} must be a name such as H100:8 or tpu-v5litepod-16")
    return int(match[2] or 1) * nodes, nodes


def _run_script(job: Job, nodes: int) -> str:
    command = job.command()
    if nodes > 1:
        # On GPU machines of a cloud, JAX cannot find the other processes by itself.
        command += (
            f' --coordinator="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{_PORT}"'
            ' --processes="$SKYPILOT_NUM_NODES" --process="$SKYPILOT_NODE_RANK"'
        )
    return shell_script(
        [
            "set -u",
            'export PATH="$PWD/.venv/bin:$PATH"',
            "code=0 newest=0 stops=0",
            f'while [ "$stops" -lt {_MAX_STOPS} ]; do',
            "  code=0",
            f"  {command} || code=$?",
            f'  [ "$code" -eq {STOPPED_EARLY} ] || break',
            f"  {newest_step_line(job.workdir)}",
            '  if [ "$step" -gt "$newest" ]; then newest=$step stops=0; else stops=$((stops + 1)); fi',
            "done",
            'exit "$code"',
        ]
    )


def _define_flags() -> None:
    define_job_flags()
    flags.DEFINE_string(
        "accelerators", "H100:8", "Accelerators of each node, such as H100:8 or tpu-v5litepod-16."
    )
    define_int("nodes", 1, "Number of nodes.", Range(least=1, most=10_000))
    flags.DEFINE_string("bucket", None, "gs://… or s3://… with the records and the run.", required=True)
    flags.DEFINE_string("mount", "/data", "Folder at which nodes see the bucket.")
    flags.DEFINE_bool("spot", True, "Use spot machines: cheaper, but they can be preempted at any time.")
    define_output_flag()


if __name__ == "__main__":
    _define_flags()
    run_main(main)
