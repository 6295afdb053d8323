"""Forward pass, training step and guided sample of this project, as `benchmarks.train_step` times them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowley_jax.config import ExperimentConfig, MeshConfig
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.model import Flowley
from flowley_jax.model.flowley import Constant
from flowley_jax.sampling.latents import sample_latents
from flowley_jax.training.ahead import step_flops, velocity_flops
from flowley_jax.training.optimizer import make_optimizer
from flowley_jax.training.sharding import make_layout
from flowley_jax.training.state import create_state
from flowley_jax.training.step import make_train_step

Inputs = dict[str, np.ndarray]


def prepare(task: str, config: ExperimentConfig, inputs: Inputs, *, steps: int, guidance: float):
    """The task as a function that ends when its result is there."""
    if task == "train":
        return _train(config, inputs)
    model = Flowley(config.model, rngs=nnx.Rngs(params=jax.random.key(config.seed)))
    graphdef, *variables = nnx.split(model, nnx.Param, Constant)
    del model
    placed = jax.device_put(inputs)
    video, text, text_len = placed["video_features"], placed["text_features"], placed["text_len"]
    if task == "forward":
        latent, t = placed["audio_mean"], placed["t"]
        program = jax.jit(lambda variables, *args: nnx.merge(graphdef, *variables)(*args))
        return lambda: jax.block_until_ready(program(variables, latent, video, text, text_len, t))
    keys = jax.random.split(jax.random.key(1), len(video))
    solver = SolverConfig(name="euler", steps=steps)
    length = inputs["audio_mean"].shape[1]
    return lambda: jax.block_until_ready(
        sample_latents(
            graphdef,
            tuple(variables),
            keys,
            video,
            text,
            text_len,
            audio_length=length,
            guidance=guidance,
            solver=solver,
        )
    )


def flops(task: str, config: ExperimentConfig, inputs: Inputs, *, steps: int) -> float:
    """Of the task, without what a compiler adds or computes again."""
    audio, video, text = (inputs[name].shape[1] for name in ("audio_mean", "video_features", "text_features"))
    if task == "train":
        return step_flops(config, (audio, video, text))
    clips = len(inputs["t"])
    if task == "forward":
        return velocity_flops(config.model, clips, (audio, video, text))
    return steps * velocity_flops(config.model, 2 * clips, (audio, video, text))


def matmul_rate(dtype: str, size: int) -> float:
    """FLOPs per second of one product of square matrices."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    program = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=a.dtype))
    jax.block_until_ready(program(a, a))
    started = time.perf_counter()
    jax.block_until_ready(program(a, a))
    return 2 * size**3 / (time.perf_counter() - started)


def device() -> str:
    """What the task runs on."""
    found = jax.devices()[0]
    return "cpu" if found.platform == "cpu" else found.device_kind


def peak_memory() -> int | None:
    """Most bytes in use on an accelerator; None on CPU."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


def _train(config: ExperimentConfig, inputs: Inputs) -> Callable[[], Any]:
    config = dataclasses.replace(config, mesh=MeshConfig())
    optimizer = make_optimizer(config.optim, config.train.steps)
    layout = make_layout(config, jax.devices()[:1])
    channels = config.model.audio_dim
    graphdef, state = create_state(
        config,
        optimizer,
        layout,
        latent_mean=np.zeros(channels, np.float32),
        latent_std=np.ones(channels, np.float32),
    )
    program = make_train_step(config, graphdef, optimizer, layout)
    batch = layout.place({name: value for name, value in inputs.items() if name != "t"})
    states = [state]
    del state

    def step():
        states[0], metrics = program(states[0], batch)
        jax.block_until_ready((states[0], metrics))

    return step
