"""The tasks that `benchmarks.train_step` times, in JAX: forward pass, training step and guided sample."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowley_jax.config import ExperimentConfig, MeshConfig
from flowley_jax.flow.guidance import Guidance
from flowley_jax.flow.sampler import SamplingProgram, sample_latents, whole_clips
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.model import Flowley
from flowley_jax.model.flowley import Constant
from flowley_jax.training.flops import step_flops, velocity_flops
from flowley_jax.training.sharding import make_layout
from flowley_jax.training.state import StepConfig, create_state
from flowley_jax.training.step import train_step

Inputs = dict[str, np.ndarray]


def prepare(
    task: str, config: ExperimentConfig, inputs: Inputs, *, steps: int, guidance: float
) -> Callable[[], Any]:
    """Return a function that runs the task once and waits for its result.

    Args:
      task: forward, train or sample.
      config: configuration of the network and the training.
      inputs: arrays of one batch.
      steps: solver steps of a sample.
      guidance: guidance scale of a sample.
    """
    if task == "train":
        return _train(config, inputs)
    model = Flowley(config.model, rngs=nnx.Rngs(params=jax.random.key(config.seed)))
    graphdef, *variables = nnx.split(model, nnx.Param, Constant)
    del model
    on_device = jax.device_put(inputs)
    video, text, text_len = (on_device[name] for name in ("video_features", "text_features", "text_len"))
    if task == "forward":
        latent, t = on_device["audio_mean"], on_device["t"]
        program = jax.jit(lambda variables, *args: nnx.merge(graphdef, *variables)(*args))
        return lambda: jax.block_until_ready(program(variables, latent, video, text, text_len, t))
    keys = jax.random.split(jax.random.key(1), len(video))
    solver = SolverConfig(name="euler", steps=steps)
    length = inputs["audio_mean"].shape[1]
    return lambda: jax.block_until_ready(
        sample_latents(
            graphdef,
            tuple(variables),
            whole_clips(keys, video, text, text_len, audio_length=length),
            program=SamplingProgram(
                video_length=video.shape[1],
                guidance=Guidance(scale=guidance),
                solver=solver,
                at_once=len(video),
            ),
        )
    )


def flops(task: str, config: ExperimentConfig, inputs: Inputs, *, steps: int) -> float:
    """Return the FLOPs of a task, without those that a compiler adds or recomputes."""
    audio, video, text = (inputs[name].shape[1] for name in ("audio_mean", "video_features", "text_features"))
    lengths = (audio, video, text)
    if task == "train":
        return step_flops(config, lengths)
    clips = len(inputs["t"])
    if task == "forward":
        return velocity_flops(config.model, clips, lengths)
    # Guidance evaluates the network with and without conditions.
    return steps * velocity_flops(config.model, 2 * clips, lengths)


def matmul_rate(dtype: str, size: int) -> float:
    """Return the FLOPs per second of one product of square matrices."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    program = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=a.dtype))
    jax.block_until_ready(program(a, a))
    started = time.perf_counter()
    jax.block_until_ready(program(a, a))
    return 2 * size**3 / (time.perf_counter() - started)


def device() -> str:
    """Return the name of the device that runs the tasks."""
    first = jax.devices()[0]
    return "cpu" if first.platform == "cpu" else first.device_kind


def peak_memory() -> int | None:
    """Return the peak of bytes in use on an accelerator, or None on a CPU."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


def _train(config: ExperimentConfig, inputs: Inputs) -> Callable[[], Any]:
    layout = make_layout(
        MeshConfig(), config.model, batch_size=config.data.batch_size, devices=jax.devices()[:1]
    )
    step_config = StepConfig.from_experiment(config)
    channels = config.model.audio_dim
    state = create_state(
        step_config,
        layout,
        latent_mean=np.zeros(channels, np.float32),
        latent_std=np.ones(channels, np.float32),
    )
    batch = layout.shard_batch({name: value for name, value in inputs.items() if name != "t"})
    # In a list, so that no other reference keeps the state alive when the step donates it.
    states = [state]
    del state

    def step() -> None:
        states[0], metrics = train_step(states[0], batch, config=step_config, layout=layout)
        jax.block_until_ready((states[0], metrics))

    return step
