"""A managed job for SkyPilot: python -m launch.skypilot --name=… --bucket=… --workdir=/data/run"""

import re
from typing import Any

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.errors import FlowleyError
from launch.check import check_devices, check_mounted, configuration
from launch.job import (
    RUN_AGAIN,
    Job,
    check_name,
    define_job_flags,
    install_lines,
    job_from_flags,
    shell_script,
)
from launch.output import as_yaml, define_output_flag, deliver
from launch.slices import find_slice

_PORT = 8476
_TPU = "tpu-"


def main() -> int:
    """Command line; prints the task, or writes it to --out."""
    values = flags.FLAGS
    job = job_from_flags()
    config = configuration(job)
    check_devices(config, devices(values.accelerators, values.nodes))
    check_mounted(job, config, values.mount)
    task = sky_task(
        job,
        name=check_name(values.name),
        accelerators=values.accelerators,
        nodes=values.nodes,
        bucket=values.bucket,
        mount=values.mount,
        spot=values.spot,
    )
    deliver(as_yaml(task))
    return 0


def sky_task(
    job: Job, *, name: str, accelerators: str, nodes: int, bucket: str, mount: str, spot: bool
) -> dict[str, Any]:
    """The task; the machines get this folder as their project, and the bucket at `mount`.

    Exit code 75 starts the command again on the same machines; SkyPilot finds new ones when they are lost.

    Args:
      accelerators: of each node, such as H100:8 or tpu-v5litepod-16.
    """
    tpu = accelerators.startswith(_TPU)
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
        "setup": shell_script(["set -eu", *install_lines(".venv", ".", "tpu" if tpu else "cuda")]),
        "run": _run_script(job, nodes),
    }


def devices(accelerators: str, nodes: int) -> int:
    """Accelerators of all nodes together; raises FlowleyError for what SkyPilot does not have."""
    if accelerators.startswith(_TPU):
        if nodes > 1:
            raise FlowleyError(f"nodes={nodes} must be 1: {accelerators} names a whole slice")
        return find_slice(accelerators.removeprefix(_TPU)).chips
    match = re.fullmatch(r"[A-Za-z][\w.-]*(:(\d+))?", accelerators)
    if match is None:
        raise FlowleyError(f"accelerators={accelerators!r} must be as H100:8 or tpu-v5litepod-16")
    return int(match[2] or 1) * nodes


def _run_script(job: Job, nodes: int) -> str:
    command = job.command()
    if nodes > 1:
        # Processes on GPU machines of a cloud are not told of each other by anybody else.
        command += (
            f' --coordinator="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{_PORT}"'
            ' --processes="$SKYPILOT_NUM_NODES" --process="$SKYPILOT_NODE_RANK"'
        )
    return shell_script(
        [
            "set -u",
            'export PATH="$PWD/.venv/bin:$PATH"',
            f"code={RUN_AGAIN}",
            f'while [ "$code" -eq {RUN_AGAIN} ]; do',
            "  code=0",
            f"  {command} || code=$?",
            "done",
            'exit "$code"',
        ]
    )


def _define_flags() -> None:
    define_job_flags()
    flags.DEFINE_string("accelerators", "H100:8", "Accelerators of each node.")
    flags.DEFINE_integer("nodes", 1, "Nodes.", lower_bound=1)
    flags.DEFINE_string("bucket", None, "gs://… or s3://… with records and the run's folder.", required=True)
    flags.DEFINE_string("mount", "/data", "Where nodes see the bucket.")
    flags.DEFINE_bool("spot", True, "Cheaper, and taken away at any time.")
    define_output_flag()


if __name__ == "__main__":
    _define_flags()
    run_main(main)
