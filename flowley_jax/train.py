"""Train a model, or resume a run: python -m flowley_jax.train --config configs/impacts.py --workdir DIR"""

import dataclasses
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from flowley_jax.cli import STOPPED_EARLY, run_main
from flowley_jax.common.compilation_cache import define_compilation_cache, use_compilation_cache
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import Range
from flowley_jax.config import ExperimentConfig
from flowley_jax.config_flag import experiment_flag
from flowley_jax.errors import FlowleyError

if TYPE_CHECKING:
    from flowley_jax.training.loop import Outcome

_CONFIG = experiment_flag("Configuration of the run.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of the first of several processes; not needed on Cloud TPU, GKE and Slurm.",
)
_PROCESSES = define_int(
    "processes", None, "Number of processes, with --coordinator.", Range(least=1, most=65_536)
)
_PROCESS = define_int("process", None, "Index of this process, from 0.", Range(least=0, below=65_536))
_COMPILATION_CACHE = define_compilation_cache("; with several processes, none")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; a run that it holds is resumed.", required=True
)


def main() -> int:
    """Train; return 0 after the last step, and 75 if a signal stopped the run before it."""
    from flowley_jax.common import distributed

    config = _CONFIG.value
    if config.data.generate and config.data.records:
        raise FlowleyError(
            f"data.records={config.data.records} would not be read: data.generate={config.data.generate} "
            "trains on random records; to read them, give --config.data.generate=0"
        )
    distributed.initialize(coordinator=_COORDINATOR.value, count=_PROCESSES.value, index=_PROCESS.value)
    # Many hosts would write to one home folder at the same time.
    if _COMPILATION_CACHE.value is not None or distributed.is_alone():
        use_compilation_cache(_COMPILATION_CACHE.value)
    from flowley_jax.evaluation.during_training import train

    workdir = Path(_WORKDIR.value)
    if config.data.generate:
        config = _with_generated_records(config, workdir / "generated_records")
    outcome = train(config, workdir)
    return STOPPED_EARLY if outcome.interrupted else 0


def _with_generated_records(config: ExperimentConfig, records: Path) -> ExperimentConfig:
    from flowley_jax.common import distributed
    from flowley_jax.data.generated import write_generated_records
    from flowley_jax.data.record import has_records
    from flowley_jax.runs.workdir_lock import locked_workdir

    data, model = config.data, config.model

    def generate() -> None:
        # Another start may have made them meanwhile.
        if has_records(records):
            return
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

    if not distributed.all_processes(has_records(records)):
        with locked_workdir(records.parent):
            distributed.first_does(generate, failure=f"{records}: not written by the first process")
    return dataclasses.replace(config, data=dataclasses.replace(data, records=str(records)))


class _CallableModule(types.ModuleType):
    """This module as the function `train`.

    Once it is imported, it is what `from flowley_jax import train` finds: submodules hide the lazy names.
    """

    def __call__(self, config: ExperimentConfig, workdir: Path) -> "Outcome":
        from flowley_jax.evaluation.during_training import train

        return train(config, workdir)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    run_main(main, _CONFIG)
