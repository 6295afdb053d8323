"""The soft mask of PSCA: how much of each video frame an audio position may read.

Frame j has the distance |j − j_c(i)| from the frame j_c(i) that is shown at audio position i. With the hard
window ω, the soft window δ, the fade profile F and the fade scale β_ℓ of block ℓ, the mask is

    M_ij = 1               for distances up to ω,
           β_ℓ · F(x)      for distances up to ω + δ, with x = (distance − ω) / δ,
           0               for larger distances,

and attention adds log(M + ε) to its scores (arXiv 2607.06405; docs/model.md). M depends on the distance only,
so it has no more than δ + 2 different values.
"""

import dataclasses
import math
import typing
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowley_jax.errors import FlowleyError

Fade = Literal["cosine", "linear", "gaussian", "none"]
# Distances stay exact in float32 below this.
_MAX_FRAMES = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftMask:
    """Settings of the mask, without the fade scale β, which changes with depth and may be traced.

    Attributes:
      video_fps: video frames per second.
      audio_fps: audio positions per second.
      window: hard window ω in frames; a negative value turns the mask off.
      fade_range: soft window δ in frames.
      fade: fade profile F; "none" is 0 everywhere.
      floor: ε. With 0.0, the hard cut, frames outside the windows have weight zero.
    """

    video_fps: float
    audio_fps: float
    window: int
    fade_range: int
    fade: Fade
    floor: float = 1e-6

    def __post_init__(self):
        for name in ("video_fps", "audio_fps", "floor"):
            if not isinstance(getattr(self, name), int | float | np.number):
                raise FlowleyError(f"{name}={getattr(self, name)!r} must be a number, and not traced")
        for name in ("window", "fade_range"):
            if not isinstance(getattr(self, name), int | np.integer):
                raise FlowleyError(f"{name}={getattr(self, name)!r} must be an integer, and not traced")
        for name in ("video_fps", "audio_fps"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise FlowleyError(f"{name}={getattr(self, name)} must be positive and finite")
        if self.window >= _MAX_FRAMES:
            raise FlowleyError(f"window={self.window} must be below {_MAX_FRAMES} frames")
        if not 1 <= self.fade_range < _MAX_FRAMES:
            raise FlowleyError(
                f"fade_range={self.fade_range} must be at least 1 and below {_MAX_FRAMES} frames"
            )
        if self.fade not in typing.get_args(Fade):
            raise FlowleyError(f"fade={self.fade!r} must be one of {', '.join(typing.get_args(Fade))}")
        if not 0.0 <= self.floor < math.inf:
            raise FlowleyError(f"floor={self.floor} must be 0 or a positive finite number")

    @property
    def enabled(self) -> bool:
        """Whether there is a mask at all; without one, PSCA is plain cross-attention."""
        return self.window >= 0

    @property
    def hard_cut(self) -> bool:
        """Whether frames outside the windows have weight zero."""
        return self.enabled and self.floor == 0.0

    @property
    def reach(self) -> int:
        """Distance from the aligned frame, in frames, beyond which the mask is 0: ω + δ."""
        return self.window + self.fade_range

    def aligned_frames(self, audio_length: int, video_length: int) -> Int[np.ndarray, " Ta"]:
        """Return the index of the video frame that is shown at each audio position.

        j_c(i) = clip(round_half_even(i / audio_fps · video_fps), 0, Tv − 1), every step in float32. NumPy
        computes it, and not JAX: XLA rewrites the division, which moves ties to a different frame.

        Returns:
          (Ta,) int32.
        """
        seconds = np.arange(audio_length, dtype=np.float32) / np.float32(self.audio_fps)
        frame = np.round(seconds * np.float32(self.video_fps))
        return np.clip(frame, 0, video_length - 1).astype(np.int32)

    def values(self, fade_scale: float | jax.Array) -> Float[Array, " values"]:
        """Return M at the distances ≤ ω, ω + 1, …, ω + δ and > ω + δ: all of its δ + 2 values."""
        beyond = jnp.arange(1, self.fade_range + 1, dtype=jnp.float32)
        faded = fade_scale * _fade_profile(beyond, fade_range=self.fade_range, fade=self.fade)
        return jnp.concatenate([jnp.ones(1), faded, jnp.zeros(1)])

    def log_values(self, fade_scale: float | jax.Array) -> Float[Array, " values"]:
        """Return log(M + ε) at the distances of `values`."""
        return jnp.log(self.values(fade_scale) + self.floor)

    def matrix(
        self, fade_scale: float | jax.Array, audio_length: int, video_length: int
    ) -> Float[Array, "Ta Tv"]:
        """Return M; all ones if the mask is off."""
        return select_value(self.values(fade_scale), self._beyond(audio_length, video_length))

    def log_matrix(
        self, fade_scale: float | jax.Array, audio_length: int, video_length: int
    ) -> Float[Array, "Ta Tv"]:
        """Return log(M + ε)."""
        return select_value(self.log_values(fade_scale), self._beyond(audio_length, video_length))

    def _beyond(self, audio_length: int, video_length: int) -> Int[Array, "Ta Tv"]:
        """Return how far each frame lies beyond each position's hard window; at most 0 inside it."""
        if not self.enabled:
            return jnp.zeros((audio_length, video_length), jnp.int32)
        frames = jnp.asarray(self.aligned_frames(audio_length, video_length))
        return jnp.abs(jnp.arange(video_length)[None, :] - frames[:, None]) - self.window


def select_value(values: jax.Array | Sequence[jax.Array], beyond: jax.Array) -> jax.Array:
    """Return the entry of `SoftMask.values` or `log_values` for each distance beyond the hard window.

    Selecting from the few values is cheaper than a cosine and a logarithm for every score: these would cost
    more than the attention of one head.

    Args:
      values: δ + 2 values, as one array or as arrays that broadcast to the shape of `beyond`.
      beyond: distance − ω in frames, of any shape.
    """
    *near, far = values
    selected = jnp.broadcast_to(far, beyond.shape)
    for distance, value in reversed(list(enumerate(near))):
        selected = jnp.where(beyond <= distance, value, selected)
    return selected


def _fade_profile(distance: jax.Array, *, fade_range: int, fade: Fade) -> jax.Array:
    """Return F(x) with x = distance / δ, for distances ≥ 0 beyond the hard window, in frames."""
    if fade == "linear":
        return 1.0 - distance / fade_range
    if fade == "cosine":
        return 0.5 * (1.0 + jnp.cos(np.pi * distance / fade_range))
    if fade == "gaussian":
        return jnp.exp(-0.5 * (distance / (0.5 * fade_range)) ** 2)
    return jnp.zeros_like(distance)
