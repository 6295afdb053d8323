"""Validation losses, and previews of a few held-out clips."""

import dataclasses
import logging
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowley_jax.config import SampleConfig
from flowley_jax.data.components import Components
from flowley_jax.data.pipeline import eval_batches
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.sampler import SamplingProgram, item_key, sample_latents, whole_clips
from flowley_jax.model.flowley import abstract_model
from flowley_jax.training.metrics import MetricWriter
from flowley_jax.training.sharding import Layout
from flowley_jax.training.state import StepConfig, TrainState, model_weights
from flowley_jax.training.step import valid_step

log = logging.getLogger(__name__)
PREVIEW_CLIPS = 2


class ValidationStopped(Exception):
    """A signal asked the run to stop before its validation was finished."""


def validation_losses(
    parameters: Any,
    constants: Any,
    records: Path,
    *,
    config: StepConfig,
    layout: Layout,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Return the mean losses over the valid split, named `valid/…`. Every call draws the same noise.

    Args:
      parameters: the network's weights on the layout's devices, with LoRA merged; or `FlowMapWeights`.
      constants: the network's constants there.
      stop: asked before every batch whether to end; must answer the same in all processes.

    Raises:
      ValidationStopped: `stop` said so.
    """
    sums: dict[str, float] = {}
    clips = 0
    for index, batch in enumerate(eval_batches(records, "valid", batch_size=batch_size)):
        if stop():
            raise ValidationStopped
        size = len(batch["text_len"])
        losses = valid_step(
            parameters, constants, layout.shard_batch(batch), index, config=config, layout=layout
        )
        for name, value in jax.device_get(losses).items():
            sums[name] = sums.get(name, 0.0) + float(value) * size
        clips += size
    return _mean_losses(sums, clips)


def _mean_losses(sums: dict[str, float], clips: int) -> dict[str, float]:
    return {f"valid/{name}": value / clips for name, value in sums.items()}


def write_previews(
    writer: MetricWriter | None,
    step: int,
    state: TrainState,
    records: Path,
    components: Components,
    *,
    config: StepConfig,
    layout: Layout,
    sample: SampleConfig,
) -> None:
    """Sample the first validation clips, and write their sounds and mel pictures to TensorBoard.

    The weights are the first EMA track's. For comparison, the real sound is written after its round trip
    through codec and vocoder. A solver that does not finish costs the preview only. Collective, since the
    weights are on all devices; the process with a writer samples.
    """
    averaged = model_weights(state, config.lora, trained=state.averages[0])
    variables = layout.to_host((averaged, state.constants))
    if writer is None:
        return
    batch = next(islice(eval_batches(records, "valid", batch_size=PREVIEW_CLIPS), 1))
    clips, audio_length = batch["audio_mean"].shape[:2]
    windows = whole_clips(
        jnp.stack([item_key(config.seed, f"preview {index}") for index in range(clips)]),
        *(jnp.asarray(batch[name]) for name in ("video_features", "text_features", "text_len")),
        audio_length=audio_length,
    )
    program = SamplingProgram(
        video_length=batch["video_features"].shape[1],
        # A run that trains keeps no earlier weights in memory for autoguidance.
        guidance=dataclasses.replace(sample.guidance_form, bad_model=False),
        solver=sample.solver,
        at_once=clips,
    )
    try:
        solution = sample_latents(abstract_model(config.model)[0], variables, windows, program=program)
    except FlowleyError as error:
        # Early weights can be too stiff for an adaptive solver, and the training is worth more.
        log.warning("step %d: no preview: %s", step, error)
        return
    for name, latents in (("generated", np.asarray(solution.latent)), ("real", batch["audio_mean"])):
        mels, waves = components.decode_latents(latents), components.decode_audio(latents)
        for index in range(clips):
            writer.picture(step, f"{name}/{index}/mel", mels[index])
            writer.sound(step, f"{name}/{index}/sound", waves[index], components.sample_rate)
