"""What the model sounds like while it trains: a few validation clips in TensorBoard."""

from itertools import islice
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowley_jax.config import ExperimentConfig
from flowley_jax.data.parts import Parts
from flowley_jax.data.pipeline import eval_batches
from flowley_jax.sampling.keys import item_key
from flowley_jax.sampling.latents import sample_latents
from flowley_jax.training.metrics import MetricWriter
from flowley_jax.training.sharding import Layout
from flowley_jax.training.state import TrainState, weights_of

CLIPS = 2


def write(
    writer: MetricWriter | None,
    step: int,
    graphdef: nnx.GraphDef,
    state: TrainState,
    layout: Layout,
    records: Path,
    parts: Parts,
    config: ExperimentConfig,
) -> None:
    """Samples the first validation clips with the shortest EMA track; sounds and mel pictures, with the
    codec's round trip of the real sound beside them.

    Every process takes part, since the weights are on all devices; the one with a writer goes on alone.
    """
    averaged = weights_of(state, config, state.averages[0])
    variables = layout.on_host((averaged, state.constants))
    if writer is None:
        return
    batch = next(islice(eval_batches(records, "valid", batch_size=CLIPS), 1))
    count, audio_length = batch["audio_mean"].shape[:2]
    solution = sample_latents(
        graphdef,
        variables,
        jnp.stack([item_key(config.seed, f"preview {index}") for index in range(count)]),
        batch["video_features"],
        batch["text_features"],
        batch["text_len"],
        audio_length=audio_length,
        guidance=config.sample.guidance,
        solver=config.sample.solver,
    )
    for name, latents in (("generated", np.asarray(solution.latent)), ("real", batch["audio_mean"])):
        mels, waves = parts.codec.decode(latents), parts.decode_audio(latents)
        for index in range(count):
            writer.picture(step, f"{name}/{index}/mel", mels[index])
            writer.sound(step, f"{name}/{index}/sound", waves[index], parts.sample_rate)
