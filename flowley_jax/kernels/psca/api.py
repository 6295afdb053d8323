"""The public function `psca`, and the choice between its implementations."""

import functools
import logging
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from flowley_jax.common.devices import platform_in_use
from flowley_jax.errors import FlowleyError
from flowley_jax.kernels.psca import cudnn_bias, pallas_tpu, reference
from flowley_jax.kernels.psca.mask import SoftMask

log = logging.getLogger(__name__)

Implementation = Literal["xla", "pallas", "cudnn"]
# All have one signature, and raise NotImplementedError for a call that they cannot do.
_ATTEND = {"xla": reference.attend, "pallas": pallas_tpu.attend, "cudnn": cudnn_bias.attend}


def psca(
    q: Float[Array, "B Ta H d"],
    k: Float[Array, "B Tv H d"],
    v: Float[Array, "B Tv H d"],
    *,
    mask: SoftMask,
    fade_scale: float | jax.Array,
    scale: float | None = None,
    implementation: Implementation | None = None,
    interpret: Any = False,
) -> Float[Array, "B Ta H d"]:
    """Compute softmax(q kᵀ·scale + log(M + ε)) v, with one mask M for the whole batch and all heads.

    PSCA is progressive soft-masked cross-attention (arXiv 2607.06405): audio positions read the video frames
    near their own moment. The result is differentiable in q, k and v; the mask has no gradient. Pallas and
    cuDNN have only first, reverse-mode derivatives.

    Args:
      q: queries of the audio positions.
      k, v: keys and values of the video frames. Pallas takes q, k and v all in float32 or all in bfloat16,
        cuDNN all in bfloat16.
      mask: settings of the mask M; its `floor` is ε.
      fade_scale: β of this depth in [0, 1], a scalar that may be traced; no other setting may.
      scale: softmax scale; None uses 1/√d.
      implementation: "xla", "pallas" (TPU, or any machine with `interpret`) or "cudnn" (NVIDIA GPU). None
        tries cuDNN on GPU and Pallas elsewhere, falls back to XLA, and logs why. An implementation that is
        named never falls back.
      interpret: run the kernels in Pallas's interpreter: True, or pltpu.InterpretParams.

    Returns:
      Attention output in the type of v; scores and softmax are float32.

    Raises:
      FlowleyError: if shapes do not match, an argument is out of its range, the named implementation is
        unknown or cannot do this call, or a second derivative of the Pallas kernels is taken.
    """
    _check_arrays(q, k, v)
    _check_scalars(fade_scale, scale)
    if implementation not in (None, *_ATTEND):
        raise FlowleyError(f"implementation={implementation!r} must be one of {', '.join(_ATTEND)}, or None")
    arguments = {
        "mask": mask,
        "fade_scale": jax.lax.stop_gradient(jnp.asarray(fade_scale, jnp.float32)),
        "scale": 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale,
        "interpret": interpret,
    }
    with jax.named_scope("psca"):
        for name in _candidates(implementation, interpret):
            try:
                return _ATTEND[name](q, k, v, **arguments)
            except NotImplementedError as refusal:
                if implementation:
                    raise FlowleyError(f"psca(implementation={name!r}): {refusal}") from None
                _log_once(f"psca: skipping {name}: {refusal}")
    raise AssertionError("unreachable: XLA takes every call")


def _candidates(implementation: Implementation | None, interpret: Any) -> tuple[Implementation, ...]:
    """Return the implementations to try, in order."""
    if implementation:
        return (implementation,)
    fast = "cudnn" if platform_in_use() == "gpu" and not interpret else "pallas"
    return fast, "xla"


@functools.cache
def _log_once(message: str) -> None:
    # On a CPU, running without the kernels is normal.
    log.log(logging.DEBUG if platform_in_use() == "cpu" else logging.INFO, message)


def _check_arrays(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    shapes = tuple(jnp.shape(x) for x in (q, k, v))
    valid = all(len(shape) == 4 and 0 not in shape for shape in shapes) and shapes[1] == shapes[2]
    if not valid or (shapes[0][0], *shapes[0][2:]) != (shapes[1][0], *shapes[1][2:]):
        raise FlowleyError(
            f"q {shapes[0]}, k {shapes[1]} and v {shapes[2]} must be (B, Ta, H, d), (B, Tv, H, d) and "
            "(B, Tv, H, d), and none of them empty"
        )
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (q, k, v)):
        raise FlowleyError(f"q {q.dtype}, k {k.dtype} and v {v.dtype} must be floating-point")


def _check_scalars(fade_scale: Any, scale: Any) -> None:
    if jnp.ndim(fade_scale) != 0:
        raise FlowleyError(f"fade_scale of shape {jnp.shape(fade_scale)} must be a scalar")
    if not isinstance(fade_scale, Tracer) and not 0.0 <= float(fade_scale) <= 1.0:
        raise FlowleyError(f"fade_scale={fade_scale} must be in [0, 1]")
    if scale is not None and not isinstance(scale, int | float | np.number):
        raise FlowleyError(f"scale={scale!r} must be a number, and not traced")
