"""Attention by cuDNN's fused kernels, which keep no scores in memory."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowley_jax.common.devices import platform_in_use

# cuDNN fuses attention from the Ampere generation on.
MIN_COMPUTE_CAPABILITY = 8.0
MAX_HEAD_DIM = 128


def check_supported(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    """Raise NotImplementedError if cuDNN cannot take q, k and v (…, d) on the platform in use."""
    if platform_in_use() != "gpu":
        raise NotImplementedError(f"cuDNN needs a GPU; the platform is {platform_in_use()}")
    dtypes = {jnp.dtype(x.dtype).name for x in (q, k, v)}
    if dtypes != {"bfloat16"}:
        raise NotImplementedError(f"q, k and v must be bfloat16 for cuDNN, not {', '.join(sorted(dtypes))}")
    dim = q.shape[-1]
    if dim % 8 or dim > MAX_HEAD_DIM:
        raise NotImplementedError(
            f"q: cuDNN takes heads of a multiple of 8 and at most {MAX_HEAD_DIM} channels, not {dim}"
        )
    capability = _compute_capability()
    if capability < MIN_COMPUTE_CAPABILITY:
        raise NotImplementedError(
            f"cuDNN needs compute capability {MIN_COMPUTE_CAPABILITY}; the GPU has {capability}"
        )


def attend(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B S H d"],
    v: Float[Array, "B S H d"],
    *,
    scale: float,
    key_lengths: Int[Array, " B"] | None = None,
    bias: Float[Array, "1 1 T S"] | None = None,
) -> Float[Array, "B T H d"]:
    """Compute softmax(q kᵀ·scale + bias) v with float32 statistics.

    Args:
      q: queries, bfloat16 like k and v.
      k, v: keys and values.
      scale: softmax scale.
      key_lengths: number of valid keys of each batch item, from the first on; None uses all.
      bias: added to the scores; it gets no gradient, and is rounded to the type of q.

    Raises:
      NotImplementedError: if cuDNN cannot take these arrays on the platform in use.
    """
    check_supported(q, k, v)
    batch, queries, keys = len(q), q.shape[1], k.shape[1]
    # The backward kernels need even lengths.
    query_padding, key_padding = queries % 2, keys % 2
    if key_padding and key_lengths is None:
        key_lengths = jnp.full((batch,), keys, jnp.int32)
    q, k, v = _pad_length(q, query_padding), _pad_length(k, key_padding), _pad_length(v, key_padding)
    if bias is not None:
        padded = jnp.pad(bias, ((0, 0), (0, 0), (0, query_padding), (0, key_padding)))
        bias = jax.lax.stop_gradient(padded.astype(q.dtype))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=bias,
        scale=scale,
        query_seq_lengths=None if key_lengths is None else jnp.full((batch,), queries, jnp.int32),
        key_value_seq_lengths=key_lengths,
        implementation="cudnn",
    )
    return out[:, :queries]


def _pad_length(x: Float[Array, "B T H d"], padding: int) -> Float[Array, "B padded H d"]:
    return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) if padding else x


def _compute_capability() -> float:
    """Return the compute capability of this process's GPU.

    It is 0 if the GPU is not NVIDIA's, and infinite if this machine only compiles for GPUs.
    """
    if jax.default_backend() != "gpu":
        return float("inf")
    capability = str(getattr(jax.local_devices()[0], "compute_capability", "0"))
    try:
        return float(capability)
    except ValueError:
        return 0.0
