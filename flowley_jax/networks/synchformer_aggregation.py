"""The layer of Synchformer that makes one token of all that belong to one time."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.networks.layers import LayerNorm, Linear
from flowley_jax.networks.packed_attention import PackedAttention
from flowley_jax.networks.synchformer_config import SynchformerConfig

_EPSILON = 1e-6


class Aggregation(nnx.Module):
    """Pre-norm transformer layer without positions, of which the output of a learned token is kept."""

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs):
        self.cls_token = nnx.Param(jnp.zeros((1, 1, config.width), jnp.float32))
        self.self_attn = PackedAttention(config.width, config.heads, rngs=rngs)
        self.linear1 = Linear(config.width, config.mlp_width, rngs=rngs)
        self.linear2 = Linear(config.mlp_width, config.width, rngs=rngs)
        self.norm1 = LayerNorm(config.width, epsilon=_EPSILON)
        self.norm2 = LayerNorm(config.width, epsilon=_EPSILON)

    def __call__(self, x: Float[Array, "B T N D"]) -> Float[Array, "B T D"]:
        batch, times, tokens, width = x.shape
        first = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (batch * times, 1, width))
        x = jnp.concatenate([first, x.reshape(-1, tokens, width)], axis=1)
        first = (x + self.self_attn(self.norm1(x)))[:, 0]
        hidden = jax.nn.gelu(self.linear1(self.norm2(first)), approximate=False)
        return (first + self.linear2(hidden)).reshape(batch, times, width)
