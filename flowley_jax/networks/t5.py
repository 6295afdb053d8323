"""The encoder of T5 and FLAN-T5 (Raffel et al. 2020, arXiv 1910.10683).

Attributes are named as in the published files, so that the path of a weight is its name there. Linear weights
are (in, out) and have no bias. Attention scores are not scaled.
"""

import dataclasses
import math
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from flowley_jax.model.layers import per_channel
from flowley_jax.networks.layers import Embedding

FeedForward = Literal["gated-gelu", "relu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes of the encoder, named as in the published `config.json`.

    Attributes:
      vocab_size: number of token embeddings.
      d_model, d_kv, d_ff: width of a token, of a head and of the feed-forward net.
      num_layers, num_heads: blocks, and attention heads per block.
      relative_attention_num_buckets: buckets of relative positions; half of them are for later keys.
      relative_attention_max_distance: distance from which all keys on one side share a bucket.
      layer_norm_epsilon: epsilon of the RMS norms.
      feed_forward: "gated-gelu" (T5 1.1, FLAN) or "relu" (T5 1.0).
      dtype: compute type.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward: FeedForward = "gated-gelu"
    dtype: str = "float32"


FLAN_T5_LARGE = T5Config(vocab_size=32_128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16)


class T5Encoder(nnx.Module):
    """Encoder of token ids to hidden states."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.shared = Embedding(config.vocab_size, config.d_model, rngs=rngs)
        self.encoder = Stack(config, rngs=rngs)

    def __call__(self, ids: Int[Array, "N Tt"], valid: Bool[Array, "N Tt"]) -> Float[Array, "N Tt D"]:
        """Return the hidden states after the last norm, float32.

        Args:
          ids: tokens.
          valid: whether a token may be attended to; hidden states are returned for all tokens.
        """
        x = self.shared.weight[...][ids].astype(self.config.dtype)
        return self.encoder(x, valid).astype(jnp.float32)


class Stack(nnx.Module):
    """Sequence of blocks and a final norm."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.block = nnx.List(
            [Block(config, position_bias=index == 0, rngs=rngs) for index in range(config.num_layers)]
        )
        self.final_layer_norm = RMSNorm(config)

    def __call__(self, x: Float[Array, "N Tt D"], valid: Bool[Array, "N Tt"]) -> Float[Array, "N Tt D"]:
        table = self.block[0].attention.SelfAttention.relative_attention_bias
        assert table is not None
        positions = table.weight[...][relative_buckets(x.shape[1], self.config)].transpose(2, 0, 1)
        lowest = jnp.finfo(jnp.float32).min
        bias = jnp.where(valid[:, None, None, :], positions[None], lowest)
        for block in self.block:
            x = x + block.attention(x, bias)
            x = x + block.feed_forward(x)
        return self.final_layer_norm(x)


class Block(nnx.Module):
    """Attention and feed-forward net, stored as the list `layer`."""

    def __init__(self, config: T5Config, *, position_bias: bool, rngs: nnx.Rngs):
        self.layer = nnx.List(
            [
                AttentionLayer(config, position_bias=position_bias, rngs=rngs),
                FeedForwardLayer(config, rngs=rngs),
            ]
        )

    @property
    def attention(self) -> "AttentionLayer":
        return cast(AttentionLayer, self.layer[0])

    @property
    def feed_forward(self) -> "FeedForwardLayer":
        return cast(FeedForwardLayer, self.layer[1])


class AttentionLayer(nnx.Module):
    """Attention between normalised tokens."""

    def __init__(self, config: T5Config, *, position_bias: bool, rngs: nnx.Rngs):
        self.SelfAttention = Attention(config, position_bias=position_bias, rngs=rngs)
        self.layer_norm = RMSNorm(config)

    def __call__(self, x: Float[Array, "N Tt D"], bias: Float[Array, "N H Tt Tt"]) -> Float[Array, "N Tt D"]:
        return self.SelfAttention(self.layer_norm(x), bias)


class FeedForwardLayer(nnx.Module):
    """Feed-forward net on normalised tokens."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        net = GatedNet if config.feed_forward == "gated-gelu" else ReluNet
        self.DenseReluDense = net(config, rngs=rngs)
        self.layer_norm = RMSNorm(config)

    def __call__(self, x: Float[Array, "N Tt D"]) -> Float[Array, "N Tt D"]:
        return self.DenseReluDense(self.layer_norm(x))


class Attention(nnx.Module):
    """Unscaled multi-head attention with an additive bias."""

    def __init__(self, config: T5Config, *, position_bias: bool, rngs: nnx.Rngs):
        inner = config.num_heads * config.d_kv
        # The queries' weights are smaller by sqrt(d_kv), in place of scaled scores.
        self.q = Linear(config.d_model, inner, config.d_model * config.d_kv, rngs=rngs)
        self.k = Linear(config.d_model, inner, config.d_model, rngs=rngs)
        self.v = Linear(config.d_model, inner, config.d_model, rngs=rngs)
        self.o = Linear(inner, config.d_model, inner, rngs=rngs)
        buckets = config.relative_attention_num_buckets
        self.relative_attention_bias = (
            Embedding(buckets, config.num_heads, rngs=rngs) if position_bias else None
        )
        self.heads = config.num_heads

    def __call__(self, x: Float[Array, "N Tt D"], bias: Float[Array, "N H Tt Tt"]) -> Float[Array, "N Tt D"]:
        batch, length, _ = x.shape

        def split(y: Array) -> Array:
            return y.reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)

        query, key, value = split(self.q(x)), split(self.k(x)), split(self.v(x))
        scores = jnp.einsum("nhqd,nhkd->nhqk", query, key, preferred_element_type=jnp.float32) + bias
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        attended = jnp.einsum("nhqk,nhkd->nhqd", weights, value)
        return self.o(attended.transpose(0, 2, 1, 3).reshape(batch, length, -1))


class GatedNet(nnx.Module):
    """Feed-forward net wo(gelu(wi_0 x) · wi_1 x), with the tanh form of GELU."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.wi_0 = Linear(config.d_model, config.d_ff, config.d_model, rngs=rngs)
        self.wi_1 = Linear(config.d_model, config.d_ff, config.d_model, rngs=rngs)
        self.wo = Linear(config.d_ff, config.d_model, config.d_ff, rngs=rngs)

    def __call__(self, x: Float[Array, "N Tt D"]) -> Float[Array, "N Tt D"]:
        return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))


class ReluNet(nnx.Module):
    """Feed-forward net wo(relu(wi x))."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.wi = Linear(config.d_model, config.d_ff, config.d_model, rngs=rngs)
        self.wo = Linear(config.d_ff, config.d_model, config.d_ff, rngs=rngs)

    def __call__(self, x: Float[Array, "N Tt D"]) -> Float[Array, "N Tt D"]:
        return self.wo(jax.nn.relu(self.wi(x)))


class Linear(nnx.Module):
    """Linear map x W, with weights initialised to N(0, 1/fan)."""

    def __init__(self, inputs: int, outputs: int, fan: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(fan**-0.5)
        self.weight = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))

    def __call__(self, x: Float[Array, "N Tt I"]) -> Float[Array, "N Tt O"]:
        # One plain matrix product, because XLA:CPU runs the batched form half as fast.
        rows = x.reshape(-1, x.shape[-1]) @ self.weight[...].astype(x.dtype)
        return rows.reshape(*x.shape[:-1], -1)


class RMSNorm(nnx.Module):
    """RMS norm weight · x / sqrt(mean square + ε) in float32; in Flowley's network, ε is outside the root."""

    def __init__(self, config: T5Config):
        self.weight = nnx.Param(jnp.ones((config.d_model,), jnp.float32))
        self.epsilon = config.layer_norm_epsilon

    def __call__(self, x: Float[Array, "N Tt D"]) -> Float[Array, "N Tt D"]:
        y = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        return (per_channel(self.weight[...], y) * y * scale).astype(x.dtype)


def relative_buckets(length: int, config: T5Config) -> np.ndarray:
    """Return the bucket of every key position relative to every query position, int32 (length, length).

    Small distances have a bucket each; larger ones share buckets whose widths grow logarithmically.
    """
    per_sign = config.relative_attention_num_buckets // 2
    exact = per_sign // 2
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    magnitude = np.abs(distance)
    # In float32, as in the published implementation: at exact powers, the last bit decides the bucket.
    ratio = np.log(np.maximum(magnitude, 1).astype(np.float32) / np.float32(exact))
    scaled = ratio / np.float32(math.log(config.relative_attention_max_distance / exact))
    far = exact + (scaled * np.float32(per_sign - exact)).astype(np.int32)
    bucket = np.where(magnitude < exact, magnitude, np.minimum(far, per_sign - 1))
    return (bucket + np.where(distance > 0, per_sign, 0)).astype(np.int32)
