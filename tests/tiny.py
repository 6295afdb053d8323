"""A run that takes seconds: a tiny model on generated records."""

import dataclasses
from pathlib import Path

from flowley_jax.config import (
    DataConfig,
    EmaConfig,
    ExperimentConfig,
    LoraConfig,
    OptimConfig,
    SampleConfig,
    StartConfig,
    TrainConfig,
)
from flowley_jax.data.generated import write_generated_records
from flowley_jax.data.record import TEXT_FIELDS, Example
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.model.config import ModelConfig
from flowley_jax.training import state
from flowley_jax.training.sharding import Layout, make_layout

FPS = 12.0
MODEL = ModelConfig(
    audio_dim=6,
    video_dim=10,
    text_dim=8,
    width=16,
    num_heads=2,
    multi_depth=1,
    single_depth=2,
    video_fps=FPS,
)
# Latents and frames of a clip of `write_records`.
AUDIO, VIDEO = 25, 10
LORA = LoraConfig(rank=3, alpha=6.0)


def texts_of(example: Example) -> dict[str, str]:
    """Return the fields id, caption and label of a stored example as text."""
    return {field: example[field].decode() for field in TEXT_FIELDS}


def write_records(folder: Path, *, count: int = 10) -> Path:
    """Write records of `count` training clips of 0.8 seconds: 25 latents, 10 frames."""
    write_generated_records(
        folder,
        audio_length=AUDIO,
        audio_dim=MODEL.audio_dim,
        video_fps=FPS,
        video_dim=MODEL.video_dim,
        text_length=9,
        text_dim=MODEL.text_dim,
        count=count,
        seed=0,
    )
    return folder


def experiment(records: Path, *, steps: int = 6, **changes) -> ExperimentConfig:
    """Return a run of `steps` steps that logs every step."""
    config = ExperimentConfig(
        model=MODEL,
        data=DataConfig(records=str(records), batch_size=4),
        optim=OptimConfig(learning_rate=5e-3, warmup_steps=2),
        ema=EmaConfig(snapshot_every=3),
        train=TrainConfig(
            steps=steps,
            log_every=1,
            valid_every=4,
            preview_every=1000,
            checkpoint_every=2,
            keep_checkpoints=2,
        ),
        sample=SampleConfig(solver=SolverConfig(steps=2), guidance=1.5),
    )
    return dataclasses.replace(config, **changes)


def fine_tuning(records: Path, source: Path, **changes) -> ExperimentConfig:
    """Return a run of four steps that starts from the weights of another run, or of a file."""
    return experiment(records, **{"steps": 4, "start": StartConfig(weights=str(source)), **changes})


def layout(config: ExperimentConfig) -> Layout:
    """Return the layout of a run over all devices of this process."""
    return make_layout(config.mesh, config.model, batch_size=config.data.batch_size)


def abstract_state(config: ExperimentConfig) -> state.TrainState:
    """Return the shapes of a run's state."""
    return state.abstract_state(state.StepConfig.from_experiment(config), layout(config))
