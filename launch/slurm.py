"""A batch script for GPU nodes under Slurm: python -m launch.slurm --name=… --workdir=… --nodes=4 | sbatch"""

from absl import flags

from flowley_jax.cli import run_main
from launch.check import check_devices, configuration
from launch.job import RUN_AGAIN, Job, check_name, define_job_flags, job_from_flags, shell_script
from launch.output import define_output_flag, deliver


def main() -> int:
    """Command line; prints the script, or writes it to --out."""
    values = flags.FLAGS
    job = job_from_flags()
    check_devices(configuration(job), values.nodes * values.gpus)
    text = batch_script(
        job,
        name=check_name(values.name),
        nodes=values.nodes,
        gpus=values.gpus,
        hours=values.hours,
        grace=values.grace,
        partition=values.partition,
        setup=tuple(values.setup),
    )
    deliver(text)
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
    """The script: one process on each node, which JAX tells of each other.

    Slurm sends SIGTERM `grace` seconds before the time is up; the training stores its state and exits with
    75, and the job puts itself into the queue again. So does Slurm after a node failure or a preemption.

    Args:
      gpus: of each node.
      setup: lines that make `python` the right one, such as `module load` or the activation of a venv.
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
            f'if [ "$code" -eq {RUN_AGAIN} ]; then',
            '  scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$code"',
        ]
    )


def _define_flags() -> None:
    define_job_flags()
    flags.DEFINE_integer("nodes", 1, "Nodes.", lower_bound=1)
    flags.DEFINE_integer("gpus", 8, "GPUs of each node.", lower_bound=1)
    flags.DEFINE_float("hours", 24.0, "Longest time of one start.", lower_bound=0.1)
    flags.DEFINE_integer("grace", 180, "Seconds before the end in which to store the state.", lower_bound=10)
    flags.DEFINE_string("partition", "", "Partition, if not the default one.")
    flags.DEFINE_multi_string("setup", [], "A line to run first, such as '. venv/bin/activate'.")
    define_output_flag()


if __name__ == "__main__":
    _define_flags()
    run_main(main)
