"""Projections to heads and softmax attention; every caller maps the result on with its own layer."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flowley_jax.errors import FlowleyError
from flowley_jax.kernels import cudnn
from flowley_jax.kernels.psca import psca
from flowley_jax.model.config import AttentionImplementation, ModelConfig
from flowley_jax.model.layers import Linear, RMSNorm
from flowley_jax.model.rope import rotary_angles, rotate

MASKED_SCORE = -1e30


def attention(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B S H d"],
    v: Float[Array, "B S H d"],
    *,
    implementation: AttentionImplementation = "auto",
    key_lengths: Int[Array, " B"] | None = None,
) -> Float[Array, "B T H d"]:
    """softmax(q kᵀ/√d) v with float32 statistics.

    Args:
      implementation: "xla", "cudnn" (NVIDIA GPU, bfloat16), or "auto", cuDNN where it can be had.
      key_lengths: how many keys of each item count, from the first on; the others get probability zero.

    Raises:
      FlowleyError: cuDNN was asked for, and cannot do this call.
    """
    if _by_cudnn(implementation, q, k, v):
        return cudnn.attend(q, k, v, scale=1.0 / math.sqrt(q.shape[-1]), key_lengths=key_lengths)
    # Heads first: XLA:CPU multiplies the other layout at a quarter of the speed.
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q / math.sqrt(q.shape[-1]), k, v))
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
    if key_lengths is not None:
        readable = jnp.arange(k.shape[2])[None, :] < key_lengths[:, None]
        scores = jnp.where(readable[:, None, None, :], scores, MASKED_SCORE)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.moveaxis(jnp.einsum("bhts,bhsd->bhtd", weights, v), 1, 2)


def _by_cudnn(implementation: AttentionImplementation, q, k, v) -> bool:
    if implementation == "xla":
        return False
    obstacle = cudnn.obstacle(q, k, v)
    if implementation == "cudnn" and obstacle:
        raise FlowleyError(f"model.attention_implementation=cudnn: {obstacle}")
    return obstacle is None


class QkvProjection(nnx.Module):
    """One fused map to q, k, v per head, RMSNorm on q and k, then rotary embedding if asked for.

    Output channels are laid out (q/k/v, head, channel).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.qkv = Linear(config.width, 3 * config.width, rngs=rngs, dtype=jnp.dtype(config.dtype))
        self.query_norm = RMSNorm(config.width // config.num_heads)
        self.key_norm = RMSNorm(config.width // config.num_heads)
        self.num_heads = config.num_heads

    def __call__(self, x: Float[Array, "B T D"], *, position_scale: float | None):
        """Returns q, k, v, each (B, T, H, d); a `position_scale` of None leaves positions out."""
        q, k, v = jnp.moveaxis(split_heads(self.qkv(x), 3, self.num_heads), 2, 0)
        q, k = self.query_norm(q), self.key_norm(k)
        if position_scale is None:
            return q, k, v
        angles = rotary_angles(x.shape[1], q.shape[-1], position_scale=position_scale)
        return rotate(q, angles), rotate(k, angles), v


class CrossProjection(nnx.Module):
    """Queries from one stream, keys and values (fused, laid out (k/v, head, channel)) from another."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.q = Linear(config.width, config.width, rngs=rngs, dtype=dtype)
        self.kv = Linear(config.width, 2 * config.width, rngs=rngs, dtype=dtype)
        self.query_norm = RMSNorm(config.width // config.num_heads)
        self.key_norm = RMSNorm(config.width // config.num_heads)
        self.num_heads = config.num_heads

    def __call__(self, x: Float[Array, "B T D"], source: Float[Array, "B S D"]):
        """Returns q (B, T, H, d) and k, v (B, S, H, d)."""
        q = split_heads(self.q(x), 1, self.num_heads)[:, :, 0]
        k, v = jnp.moveaxis(split_heads(self.kv(source), 2, self.num_heads), 2, 0)
        return self.query_norm(q), self.key_norm(k), v


def video_attention(config: ModelConfig, q, k, v, *, fade_scale) -> Float[Array, "B Ta H d"]:
    """PSCA with the configuration's window; the audio clock follows from the two lengths."""
    audio_fps = config.video_fps * q.shape[1] / k.shape[1]
    return psca(
        q,
        k,
        v,
        fade_scale=fade_scale,
        video_fps=config.video_fps,
        audio_fps=audio_fps,
        window=config.window,
        fade_range=config.fade_range,
        fade=config.fade,
        mask_floor=config.mask_floor,
        implementation=None if config.psca_implementation == "auto" else config.psca_implementation,
    )


def split_heads(x: Float[Array, "B T C"], parts: int, num_heads: int) -> Float[Array, "B T parts H d"]:
    """Splits channels laid out (part, head, channel)."""
    return x.reshape(*x.shape[:2], parts, num_heads, -1)


def merge_heads(x: Float[Array, "B T H d"]) -> Float[Array, "B T D"]:
    """Back to one channel axis, laid out (head, channel)."""
    return x.reshape(*x.shape[:2], -1)
