"""Attention by cuDNN's fused kernels, which keep no scores in memory, and when they can be had."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowley_jax.devices import platform_in_use

# cuDNN fuses attention from the Ampere generation on.
COMPUTE_CAPABILITY = 8.0
WIDEST_HEAD = 128


def obstacle(*arrays: jax.Array) -> str | None:
    """Why cuDNN cannot take queries, keys and values (…, d) on the platform in use; None if it can."""
    if platform_in_use() != "gpu":
        return f"cuDNN is for GPU, the platform is {platform_in_use()}"
    dtypes = {jnp.dtype(x.dtype).name for x in arrays}
    if dtypes != {"bfloat16"}:
        return f"cuDNN fuses attention in bfloat16, not {', '.join(sorted(dtypes))}"
    width = arrays[0].shape[-1]
    if width % 8 or width > WIDEST_HEAD:
        return f"cuDNN takes heads of a multiple of 8 and at most {WIDEST_HEAD} channels, not {width}"
    capability = _compute_capability()
    if capability < COMPUTE_CAPABILITY:
        return f"cuDNN needs compute capability {COMPUTE_CAPABILITY}, the GPU has {capability}"
    return None


def attend(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B S H d"],
    v: Float[Array, "B S H d"],
    *,
    scale: float,
    key_lengths: Int[Array, " B"] | None = None,
    bias: Float[Array, "1 1 T S"] | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T H d"]:
    """softmax(q kᵀ·scale + bias) v with float32 statistics.

    Args:
      key_lengths: how many keys of each item count, from the first on; all of them unless given.
      bias: without gradient, rounded to the type of q.
      implementation: "xla" is JAX's own definition of what cuDNN computes, to test this call by.
    """
    batch, queries, keys = len(q), q.shape[1], k.shape[1]
    # The backward kernels want even lengths.
    odd = queries % 2, keys % 2
    if odd[1] and key_lengths is None:
        key_lengths = jnp.full((batch,), keys, jnp.int32)
    q, k, v = (_longer(x, by) for x, by in ((q, odd[0]), (k, odd[1]), (v, odd[1])))
    if bias is not None:
        bias = jax.lax.stop_gradient(
            jnp.pad(bias, ((0, 0), (0, 0), (0, odd[0]), (0, odd[1]))).astype(q.dtype)
        )
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=bias,
        scale=scale,
        query_seq_lengths=None if key_lengths is None else jnp.full((batch,), queries, jnp.int32),
        key_value_seq_lengths=key_lengths,
        implementation=implementation,
    )
    return out[:, :queries]


def _longer(x: Array, by: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, by), (0, 0), (0, 0))) if by else x


def _compute_capability() -> float:
    """Of this process's GPU; 0 for one that is not NVIDIA's, infinite where there is none to ask."""
    if jax.default_backend() != "gpu":
        return float("inf")
    found = str(getattr(jax.local_devices()[0], "compute_capability", "0"))
    try:
        return float(found)
    except ValueError:
        return 0.0
