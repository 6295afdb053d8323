"""Self-attention with the weights of PyTorch's `MultiheadAttention`, which makes q, k and v by one map."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.networks.layers import Linear, attend, linear


class PackedAttention(nnx.Module):
    """Multi-head attention between all tokens.

    Args:
      width: channels of a token.
      heads: number of heads.
      extra_key: whether every query also attends to one learned key and value, which follow the others.
    """

    def __init__(self, width: int, heads: int, *, extra_key: bool = False, rngs: nnx.Rngs):
        init = jax.nn.initializers.xavier_uniform()
        self.in_proj_weight = nnx.Param(init(rngs.params(), (width, 3 * width), jnp.float32))
        self.in_proj_bias = nnx.Param(jnp.zeros((3 * width,), jnp.float32))
        self.out_proj = Linear(width, width, rngs=rngs)
        self.bias_k = nnx.Param(jnp.zeros((1, 1, width), jnp.float32)) if extra_key else None
        self.bias_v = nnx.Param(jnp.zeros((1, 1, width), jnp.float32)) if extra_key else None
        self.heads = heads

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        qkv = linear(x, self.in_proj_weight[...], self.in_proj_bias[...])
        query, key, value = jnp.split(qkv, 3, axis=-1)
        key, value = _extended(key, self.bias_k), _extended(value, self.bias_v)
        return self.out_proj(attend(query, key, value, heads=self.heads))


def _extended(x: Float[Array, "B N D"], last: nnx.Param | None) -> Float[Array, "B M D"]:
    """Return tokens with the learned one behind them, if there is one."""
    if last is None:
        return x
    token = jnp.broadcast_to(last[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
    return jnp.concatenate([x, token], axis=1)
