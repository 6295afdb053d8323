"""Attention: projections to heads, rotary position embedding, softmax attention and PSCA.

Attention here has no output projection; each block maps the result with its own layer.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flowley_jax.errors import FlowleyError
from flowley_jax.kernels import cudnn
from flowley_jax.kernels.psca import psca
from flowley_jax.model.config import AttentionImplementation, ModelConfig
from flowley_jax.model.layers import Linear, RMSNorm
from flowley_jax.model.recompute import recomputed

MASKED_SCORE = -1e30
ROTARY_THETA = 10000.0


@jax.named_scope("attention")
def attention(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B S H d"],
    v: Float[Array, "B S H d"],
    *,
    scale: float | None = None,
    implementation: AttentionImplementation = "auto",
    key_lengths: Int[Array, " B"] | None = None,
) -> Float[Array, "B T H d"]:
    """Compute softmax(q kᵀ·scale) v with float32 statistics.

    Args:
      q, k, v: queries, keys and values per head.
      scale: softmax scale; None uses 1/√d.
      implementation: "xla", "cudnn" (NVIDIA GPU, bfloat16), or "auto", which uses cuDNN wherever it can.
      key_lengths: number of leading keys that each item may read; the others get probability zero.

    Raises:
      FlowleyError: the implementation is "cudnn", which cannot run this call.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    if implementation != "xla":
        try:
            return cudnn.attend(q, k, v, scale=scale, key_lengths=key_lengths)
        except NotImplementedError as refusal:
            if implementation == "cudnn":
                raise FlowleyError(f"model.attention_implementation=cudnn: {refusal}") from None
    return _attend(q * scale, k, v, key_lengths)


@recomputed
def _attend(q: Array, k: Array, v: Array, key_lengths: Array | None) -> Array:
    """Return softmax(q kᵀ) v. The weights are the largest arrays of the network, so they are not stored."""
    # Heads first: XLA:CPU multiplies the other layout at a quarter of the speed.
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
    if key_lengths is not None:
        readable = jnp.arange(k.shape[2])[None, :] < key_lengths[:, None]
        scores = jnp.where(readable[:, None, None, :], scores, MASKED_SCORE)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.moveaxis(jnp.einsum("bhts,bhsd->bhtd", weights, v), 1, 2)


def video_attention(
    config: ModelConfig,
    q: Float[Array, "B Ta H d"],
    k: Float[Array, "B Tv H d"],
    v: Float[Array, "B Tv H d"],
    *,
    fade_scale: float | Float[Array, ""],
) -> Float[Array, "B Ta H d"]:
    """Read the video by PSCA with the configuration's mask and the depth's fade scale β."""
    return psca(
        q,
        k,
        v,
        mask=config.soft_mask(q.shape[1], k.shape[1]),
        fade_scale=fade_scale,
        scale=config.qk_scale,
        implementation=None if config.psca_implementation == "auto" else config.psca_implementation,
    )


class QkvProjection(nnx.Module):
    """A fused projection to q, k and v per head, RMSNorm on q and k, then optional rotary embedding.

    Output channels are laid out (q/k/v, head, channel).
    """

    def __init__(self, config: ModelConfig, num_heads: int, *, rngs: nnx.Rngs):
        self.qkv = Linear(config.width, 3 * config.width, rngs=rngs, dtype=jnp.dtype(config.dtype))
        self.query_norm = RMSNorm(config.width // num_heads)
        self.key_norm = RMSNorm(config.width // num_heads)
        self.num_heads = num_heads

    def __call__(
        self, x: Float[Array, "B T D"], *, position_scale: float | None
    ) -> tuple[Float[Array, "B T H d"], Float[Array, "B T H d"], Float[Array, "B T H d"]]:
        """Return q, k and v; a `position_scale` of None leaves the rotary embedding out."""
        q, k, v = jnp.moveaxis(split_heads(self.qkv(x), 3, self.num_heads), 2, 0)
        q, k = self.query_norm(q), self.key_norm(k)
        if position_scale is None:
            return q, k, v
        angles = rotary_angles(x.shape[1], q.shape[-1], position_scale=position_scale)
        return rotate(q, angles), rotate(k, angles), v


class CrossProjection(nnx.Module):
    """Queries from one stream, keys and values from another, with RMSNorm on q and k.

    Key and value channels are fused and laid out (k/v, head, channel).
    """

    def __init__(self, config: ModelConfig, num_heads: int, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.q = Linear(config.width, config.width, rngs=rngs, dtype=dtype)
        self.kv = Linear(config.width, 2 * config.width, rngs=rngs, dtype=dtype)
        self.query_norm = RMSNorm(config.width // num_heads)
        self.key_norm = RMSNorm(config.width // num_heads)
        self.num_heads = num_heads

    def __call__(
        self, x: Float[Array, "B T D"], source: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B T H d"], Float[Array, "B S H d"], Float[Array, "B S H d"]]:
        """Return q of `x`, and k and v of `source`."""
        q = split_heads(self.q(x), 1, self.num_heads)[:, :, 0]
        k, v = jnp.moveaxis(split_heads(self.kv(source), 2, self.num_heads), 2, 0)
        return self.query_norm(q), self.key_norm(k), v


def split_heads(x: Float[Array, "B T C"], parts: int, num_heads: int) -> Float[Array, "B T parts H d"]:
    """Split channels laid out (part, head, channel)."""
    return x.reshape(*x.shape[:2], parts, num_heads, -1)


def merge_heads(x: Float[Array, "B T H d"]) -> Float[Array, "B T D"]:
    """Merge heads into one channel axis laid out (head, channel)."""
    return x.reshape(*x.shape[:2], -1)


def rotary_angles(length: int, head_width: int, *, position_scale: float = 1.0) -> Float[Array, "T pairs"]:
    """Return the rotary angles position·(s·θ^(−2m/d)) in radians.

    The float32 operations keep the order of the published model; scaling the position first differs by
    1e-5 at 250 positions. Positions are computed in the program: XLA folds a constant table, which takes
    minutes for thousands of positions.

    Args:
      length: number of positions T.
      head_width: channels d per head.
      position_scale: s; Ta/Tv for video, so that both clocks agree.
    """
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    frequencies = np.float32(1.0) / np.float32(ROTARY_THETA) ** exponents * np.float32(position_scale)
    positions = jax.lax.iota(jnp.float32, length)
    return positions[:, None] * frequencies[None, :]


def rotate(x: Float[Array, "B T H d"], angles: Float[Array, "T pairs"]) -> Float[Array, "B T H d"]:
    """Rotate each pair of channels (2m, 2m + 1) by its angle, in float32."""
    cos = jnp.cos(angles)[None, :, None, :]
    sin = jnp.sin(angles)[None, :, None, :]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
