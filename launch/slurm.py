"""Write a batch script for GPU nodes under Slurm.

python -m launch.slurm --name=… --workdir=/shared/run --nodes=4 | sbatch
"""

from absl import flags

from flowley_jax.cli import STOPPED_EARLY, run_main
from launch.check import check_devices, read_config
from launch.job import Job, check_name, define_job_flags, job_from_flags, shell_script
from launch.output import define_output_flag, write_output


def main() -> int:
    """Run the command line: print the script, or write it to --out."""
    values = flags.FLAGS
    job = job_from_flags()
    check_devices(read_config(job), values.nodes * values.gpus)
    script = batch_script(
        job,
        name=check_name(values.name),
        nodes=values.nodes,
        gpus=values.gpus,
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
    hours: float,
    grace: int,
    partition: str,
    setup: tuple[str, ...],
) -> str:
    """Return a script that runs one process per node; under Slurm, JAX finds the other processes by itself.

    Slurm sends SIGTERM `grace` seconds before the time limit. The training then stores its state and exits
    with code 75, and the job requeues itself. After a node failure or a preemption, Slurm requeues it.

    Args:
      job: the training.
      name: name of the job.
      nodes: number of nodes.
      gpus: GPUs per node.
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
            "code=0",
            f"srun --kill-on-bad-exit=1 {job.command()} || code=$?",
            f'if [ "$code" -eq {STOPPED_EARLY} ]; then',
            '  scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$code"',
        ]
    )


def _define_flags() -> None:
    define_job_flags()
    flags.DEFINE_integer("nodes", 1, "Number of nodes.", lower_bound=1)
    flags.DEFINE_integer("gpus", 8, "GPUs per node.", lower_bound=1)
    flags.DEFINE_float("hours", 24.0, "Time limit of one start, in hours.", lower_bound=0.1)
    flags.DEFINE_integer(
        "grace", 180, "Time reserved for storing the state before the time limit, in seconds.", lower_bound=10
    )
    flags.DEFINE_string("partition", "", "Partition; the default one if not given.")
    flags.DEFINE_multi_string("setup", [], "Shell line to run first, such as '. venv/bin/activate'.")
    define_output_flag()


if __name__ == "__main__":
    _define_flags()
    run_main(main)
