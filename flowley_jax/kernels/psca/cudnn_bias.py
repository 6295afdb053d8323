"""PSCA as cuDNN's fused attention, with the logarithm of the mask as its bias."""

from typing import Any

import jax
from jaxtyping import Array, Float

from flowley_jax.kernels import cudnn
from flowley_jax.kernels.psca.mask import SoftMask


def attend(
    q: Float[Array, "B Ta H d"],
    k: Float[Array, "B Tv H d"],
    v: Float[Array, "B Tv H d"],
    *,
    mask: SoftMask,
    fade_scale: Float[Array, ""],
    scale: float,
    interpret: Any = False,
) -> Float[Array, "B Ta H d"]:
    """Compute PSCA (see `psca`) on an NVIDIA GPU in bfloat16.

    Raises:
      NotImplementedError: the mask is a hard cut, the kernels are to be interpreted, or cuDNN cannot
        take these arrays.
    """
    if mask.hard_cut:
        raise NotImplementedError("mask.floor=0.0, the hard cut: cuDNN would read all of the video")
    if interpret:
        raise NotImplementedError(f"interpret={interpret!r}: cuDNN's kernels cannot be interpreted")
    bias: jax.Array | None = None
    if mask.enabled:
        bias = mask.log_matrix(fade_scale, q.shape[1], k.shape[1])[None, None]
    return cudnn.attend(q, k, v, scale=scale, bias=bias)
