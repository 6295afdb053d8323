"""Projections of the inputs to the model width, and the global condition that drives every adaLN."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.model.config import ModelConfig
from flowley_jax.model.layers import Conv1d, GatedMlp, Key, Linear, dropout, fold

TIME_EMBEDDING_WIDTH = 256
AUDIO_KERNEL = 7
VIDEO_KERNEL = 3

_time_embedding_normal = jax.nn.initializers.normal(0.02)


class InputProjection(nnx.Module):
    """A map to the model width, SiLU and a gated net without dropout.

    Args:
      inputs: channels of the input.
      first_kernel: kernel size of the first map if it is a convolution; None makes it linear.
      kernel: kernel size of the gated net's convolutions; None makes them linear.
    """

    def __init__(
        self,
        inputs: int,
        config: ModelConfig,
        *,
        first_kernel: int | None,
        kernel: int | None,
        rngs: nnx.Rngs,
    ):
        dtype = jnp.dtype(config.dtype)
        self.first = (
            Conv1d(inputs, config.width, first_kernel, rngs=rngs, dtype=dtype)
            if first_kernel
            else Linear(inputs, config.width, rngs=rngs, dtype=dtype)
        )
        self.mlp = GatedMlp(config.width, config.mlp_width, kernel=kernel, rngs=rngs, dtype=dtype)

    @jax.named_scope("input_projection")
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T D"]:
        return self.mlp(jax.nn.silu(self.first(x)))


class CrossInput(nnx.Module):
    """P_v or P_t, between the two stacks: Linear, SiLU, dropout, Linear."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.first = Linear(config.width, config.width, rngs=rngs, dtype=dtype)
        self.second = Linear(config.width, config.width, rngs=rngs, dtype=dtype)
        self.dropout = config.dropout

    @jax.named_scope("cross_input")
    def __call__(self, x: Float[Array, "B T D"], *, key: Key | None) -> Float[Array, "B T D"]:
        return self.second(dropout(jax.nn.silu(self.first(x)), self.dropout, key))


class TimeEmbedding(nnx.Module):
    """Sinusoidal embedding of t, Linear, SiLU, Linear."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype, init = jnp.dtype(config.dtype), _time_embedding_normal
        self.first = Linear(TIME_EMBEDDING_WIDTH, config.width, rngs=rngs, dtype=dtype, init=init)
        self.second = Linear(config.width, config.width, rngs=rngs, dtype=dtype, init=init)

    @jax.named_scope("time_embedding")
    def __call__(self, t: Float[Array, " B"]) -> Float[Array, "B D"]:
        return self.second(jax.nn.silu(self.first(sinusoidal_embedding(t))))


class GlobalCondition(nnx.Module):
    """c = GatedMLP(Wt·mean(text) + Wv·mean(video)) + TimeMLP(t); the means include padding."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype, width = jnp.dtype(config.dtype), config.width
        self.text = Linear(width, width, rngs=rngs, dtype=dtype)
        self.video = Linear(width, width, rngs=rngs, dtype=dtype)
        self.mlp = GatedMlp(width, config.mlp_width, dropout=config.dropout, rngs=rngs, dtype=dtype)
        self.time = TimeEmbedding(config, rngs=rngs)

    @jax.named_scope("global_condition")
    def __call__(
        self,
        video: Float[Array, "B Tv D"],
        text: Float[Array, "B Tt D"],
        t: Float[Array, " B"],
        *,
        key: Key | None,
    ) -> Float[Array, "B D"]:
        pooled = self.text(jnp.mean(text, axis=1)) + self.video(jnp.mean(video, axis=1))
        return self.mlp(pooled, key=fold(key, 0)) + self.time(t)


def sinusoidal_embedding(t: Float[Array, " B"]) -> Float[Array, "B 256"]:
    """Return [cos(t·f_k), sin(t·f_k)] with f_k = exp(−ln(10000)·k/128); t in [0, 1] is not rescaled."""
    half = TIME_EMBEDDING_WIDTH // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
