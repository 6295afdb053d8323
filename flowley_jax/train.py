"""Trains a model, or goes on: python -m flowley_jax.train --config configs/impacts.py --workdir DIR"""

import dataclasses
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from flowley_jax.cli import run_main
from flowley_jax.config import ExperimentConfig, experiment_from

# What job schedulers take as "run me again".
STOPPED_EARLY = 75

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Configuration file, with its options behind a colon (`:debug` for a few steps on generated records). "
    "Every value (flowley_jax/config.py) is a flag: --config.data.records=DIR --config.train.steps=1000.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of the first of several processes; not needed on Cloud TPU, GKE and Slurm.",
)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "Number of processes, with --coordinator.", lower_bound=1
)
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.", lower_bound=0)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; a run that is there already is resumed.", required=True
)


def main() -> int:
    """Command line; returns 0 at the end of the training and 75 when a signal stopped it earlier."""
    from flowley_jax.training import processes

    processes.join(coordinator=_COORDINATOR.value, count=_PROCESSES.value, index=_PROCESS.value)
    from flowley_jax.training.loop import train

    workdir = Path(_WORKDIR.value)
    config = experiment_from(_CONFIG.value.to_dict())
    if config.data.generate:
        config = _with_generated_records(config, workdir / "generated_records")
    outcome = train(config, workdir)
    return STOPPED_EARLY if outcome.interrupted else 0


def _with_generated_records(config: ExperimentConfig, records: Path) -> ExperimentConfig:
    from flowley_jax.data.generated import write_generated_records
    from flowley_jax.data.record import has_records
    from flowley_jax.training import processes

    model, seconds = config.model, config.data.generate_seconds
    if processes.is_first() and not has_records(records):
        write_generated_records(
            records,
            audio_length=round(seconds * config.data.latent_rate),
            audio_dim=model.audio_dim,
            video_fps=model.video_fps,
            video_dim=model.video_dim,
            text_length=config.data.generate_text_length,
            text_dim=model.text_dim,
            count=config.data.generate,
            seed=config.seed,
            sample_rate=config.data.generate_sample_rate,
        )
    processes.wait_for_all("generated records")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, records=str(records)))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    run_main(main)
