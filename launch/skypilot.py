"""A managed job for SkyPilot: python -m launch.skypilot --name=… --bucket=… --workdir=/data/run"""

from pathlib import Path
from typing import Any

import yaml
from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import write_text
from launch.job import (
    RUN_AGAIN,
    Job,
    check_name,
    define_job_flags,
    environment_lines,
    job_from_flags,
    shell_script,
)

_PORT = 8476


def main() -> int:
    """Command line; prints the task, or writes it to --out."""
    values = flags.FLAGS
    task = sky_task(
        job_from_flags(),
        name=check_name(values.name),
        accelerators=values.accelerators,
        nodes=values.nodes,
        bucket=values.bucket,
        mount=values.mount,
        spot=values.spot,
    )
    text = yaml.safe_dump(task, sort_keys=False)
    if values.out:
        write_text(Path(values.out), text)
    else:
        print(text, end="")
    return 0


def sky_task(
    job: Job, *, name: str, accelerators: str, nodes: int, bucket: str, mount: str, spot: bool
) -> dict[str, Any]:
    """The task; the machines get this folder as their project, and the bucket at `mount`.

    Exit code 75 starts the command again on the same machines; SkyPilot finds new ones when they are lost.

    Args:
      accelerators: of each node, such as H100:8 or tpu-v5litepod-16.

    Raises:
      FlowleyError: the run's folder is not on the mounted bucket.
    """
    if not job.workdir.startswith(mount.rstrip("/") + "/"):
        raise FlowleyError(
            f"workdir={job.workdir!r} must be below mount={mount!r}: nothing else outlives a node"
        )
    tpu = accelerators.startswith("tpu-")
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
        "setup": shell_script(
            [
                "set -eu",
                *environment_lines(".venv"),
                f".venv/bin/pip install --quiet -e '.[{'tpu' if tpu else 'cuda'}]'",
            ]
        ),
        "run": _run_script(job, nodes if not tpu else 1),
    }


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
    flags.DEFINE_string("out", None, "File for the task.")


if __name__ == "__main__":
    _define_flags()
    run_main(main)
