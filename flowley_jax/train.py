"""Train a model, or resume a run: python -m flowley_jax.train --config configs/impacts.py --workdir DIR"""

import dataclasses
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from flowley_jax.cli import STOPPED_EARLY, run_main
from flowley_jax.config import ExperimentConfig
from flowley_jax.config_flag import experiment_flag

if TYPE_CHECKING:
    from flowley_jax.training.loop import Outcome

_CONFIG = experiment_flag("Configuration of the run.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of the first of several processes; not needed on Cloud TPU, GKE and Slurm.",
)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "Number of processes, with --coordinator.", lower_bound=1
)
_PROCESS = flags.DEFINE_integer("process", None, "Index of this process, from 0.", lower_bound=0)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; a run that it holds is resumed.", required=True
)


def main() -> int:
    """Train; return 0 after the last step, and 75 if a signal stopped the run before it."""
    from flowley_jax.common import distributed

    distributed.initialize(coordinator=_COORDINATOR.value, count=_PROCESSES.value, index=_PROCESS.value)
    from flowley_jax.training.loop import train

    workdir = Path(_WORKDIR.value)
    config = _CONFIG.value
    if config.data.generate:
        config = _with_generated_records(config, workdir / "generated_records")
    outcome = train(config, workdir)
    return STOPPED_EARLY if outcome.interrupted else 0


def _with_generated_records(config: ExperimentConfig, records: Path) -> ExperimentConfig:
    from flowley_jax.common import distributed
    from flowley_jax.data.generated import write_generated_records
    from flowley_jax.data.record import has_records

    data, model = config.data, config.model
    if distributed.is_first() and not has_records(records):
        write_generated_records(
            records,
            audio_length=round(data.generate_seconds * data.latent_rate),
            audio_dim=model.audio_dim,
            video_fps=model.video_fps,
            video_dim=model.video_dim,
            text_length=data.generate_text_length,
            text_dim=model.text_dim,
            count=data.generate,
            seed=config.seed,
            sample_rate=data.generate_sample_rate,
        )
    distributed.wait_for_all("generated records")
    return dataclasses.replace(config, data=dataclasses.replace(data, records=str(records)))


class _CallableModule(types.ModuleType):
    """This module as the function `train`.

    Once it is imported, it is what `from flowley_jax import train` finds: submodules hide the lazy names.
    """

    def __call__(self, config: ExperimentConfig, workdir: Path) -> "Outcome":
        from flowley_jax.training.loop import train

        return train(config, workdir)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    run_main(main, _CONFIG)
