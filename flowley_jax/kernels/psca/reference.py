"""PSCA in plain XLA: the definition that every other implementation is judged against."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowley_jax.kernels.psca.mask import aligned_frames, soft_mask
from flowley_jax.model.config import Fade


def psca(
    q: Float[Array, "B Ta H d"],
    k: Float[Array, "B Tv H d"],
    v: Float[Array, "B Tv H d"],
    *,
    fade_scale,
    video_fps: float,
    audio_fps: float,
    window: int,
    fade_range: int,
    fade: Fade,
    mask_floor: float = 1e-6,
    scale: float | None = None,
) -> Float[Array, "B Ta H d"]:
    """softmax(q kᵀ·scale + log(M⁽ℓ⁾ + ε)) v, with the mask shared by batch and heads (paper, PSCA).

    Args:
      q, k, v: queries of the audio positions, keys and values of the video frames.
      fade_scale: β_ℓ of this depth, a scalar that may be traced.
      video_fps, audio_fps: rates of the two clocks, in frames and positions per second.
      window, fade_range, fade: ω, δ (frames) and the profile F; a negative ω turns the mask off.
      mask_floor: ε; at 0.0 frames outside the windows get probability exactly zero.
      scale: softmax scale, 1/√d unless given.

    Returns: attention output in the type of v; scores and softmax are float32.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    audio_length, video_length = q.shape[1], k.shape[1]
    # Heads first: XLA:CPU multiplies the other layout at a quarter of the speed.
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32) * scale
    if window >= 0:
        frames = aligned_frames(audio_length, video_length, video_fps=video_fps, audio_fps=audio_fps)
        mask = soft_mask(
            frames, video_length, fade_scale=fade_scale, window=window, fade_range=fade_range, fade=fade
        )
        scores = scores + jnp.log(mask + mask_floor)[None, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.moveaxis(jnp.einsum("bhts,bhsd->bhtd", weights, v), 1, 2)
