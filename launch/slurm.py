"""Write a batch script for GPU nodes under Slurm.

python -m launch.slurm --name=… --workdir=/shared/run --nodes=4 | sbatch
"""

import re

from absl import flags

from flowley_jax.cli import STOPPED_EARLY, run_main
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import Range
from flowley_jax.errors import FlowleyError
from launch.check import check_devices, read_config
from launch.job import Job, check_name, define_job_flags, job_from_flags, shell_script
from launch.output import define_output_flag, write_output

# Readers of the data pipeline run on them.
_CPUS_PER_GPU = 4


def main() -> int:
    """Run the command line: print the script, or write it to --out."""
    values = flags.FLAGS
    job = job_from_flags()
    check_devices(read_config(job), values.nodes * values.gpus, machines=values.nodes)
    if values.grace >= 3600 * values.hours:
        raise FlowleyError(
            f"grace={values.grace} must be less than the time limit of {3600 * values.hours:.0f} s"
        )
    if not re.fullmatch(r"[\w.,-]*", values.partition):
        raise FlowleyError(f"partition={values.partition!r} must be the name of a partition")
    script = batch_script(
        job,
        name=check_name(values.name),
        nodes=values.nodes,
        gpus=values.gpus,
        cpus=_CPUS_PER_GPU * values.gpus if values.cpus is None else values.cpus,
        hours=values.hours,
        grace=values.grace,
        partition=values.partition,
        setup=tuple(values.setup),
    )
    write_output(script)
    return 0


def batch_script(
    job: Job,
    *,
    name: str,
    nodes: int,
    gpus: int,
    cpus: int,
    hours: float,
    grace: int,
    partition: str,
    setup: tuple[str, ...],
) -> str:
    """Return a script that runs one process per node, with all GPUs and cores of the job on that node.

    Under Slurm, JAX finds the other processes by itself. It would use one GPU per process, unless told which.

    Slurm sends SIGTERM `grace` seconds before the time limit. The training then stores its state and exits
    with code 75, and the job requeues itself. After a node failure or a preemption, Slurm requeues it.

    Args:
      job: the training.
      name: name of the job.
      nodes: number of nodes.
      gpus: GPUs per node.
      cpus: CPU cores per node.
      hours: time limit of one start.
      grace: seconds to store the state in.
      partition: Slurm partition; empty for the default one.
      setup: shell lines that put the right `python` on the path, such as `module load` or activating a venv.
    """
    minutes = round(60 * hours)
    options = [
        f"--job-name={name}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--gpus-per-node={gpus}",
        f"--cpus-per-task={cpus}",
        f"--time={minutes // 60:02d}:{minutes % 60:02d}:00",
        *([f"--partition={partition}"] if partition else []),
        "--requeue",
        f"--signal=TERM@{grace}",
        "--open-mode=append",
        f"--output={name}-%j.log",
    ]
    return shell_script(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in options),
            "set -euo pipefail",
            *setup,
            f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(gpus)))}",
            "code=0",
            # srun takes neither the cores of the job nor, where a cluster binds GPUs to tasks, all its GPUs.
            f"srun --kill-on-bad-exit=1 --cpus-per-task={cpus} --gpus-per-node={gpus} --gpu-bind=none "
            f"{job.command()} || code=$?",
            f'if [ "$code" -eq {STOPPED_EARLY} ]; then',
            '  scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$code"',
        ]
    )


def _define_flags() -> None:
    define_job_flags()
    define_int("nodes", 1, "Number of nodes.", Range(least=1, most=10_000))
    define_int("gpus", 8, "GPUs per node.", Range(least=1, most=1000))
    define_int(
        "cpus",
        None,
        f"CPU cores per node; {_CPUS_PER_GPU} per GPU if not given.",
        Range(least=1, most=10_000),
    )
    define_float("hours", 24.0, "Time limit of one start, in hours.", Range(least=0.1, most=10_000))
    define_int(
        "grace",
        180,
        "Time reserved for storing the state before the time limit, in seconds.",
        # Slurm keeps it in 16 bits.
        Range(least=10, most=65_535),
    )
    flags.DEFINE_string("partition", "", "Partition; the default one if not given.")
    flags.DEFINE_multi_string("setup", [], "Shell line to run first, such as '. venv/bin/activate'.")
    define_output_flag()


if __name__ == "__main__":
    _define_flags()
    run_main(main)
