"""The PSCA mask: which video frames an audio position may read, and how much (spec/model.md, PSCA)."""

import dataclasses
import math
import typing
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowley_jax.errors import FlowleyError

_MOST_FRAMES = 2**24
Fade = Literal["cosine", "linear", "gaussian", "none"]


def aligned_frames(
    audio_length: int, video_length: int, *, video_fps: float, audio_fps: float
) -> Int[np.ndarray, " Ta"]:
    """Index of the video frame that is shown at each audio position.

    j_c(i) = clip(round_half_even(i / audio_fps · video_fps), 0, Tv − 1), every step in float32. This is
    NumPy and not traced: XLA rewrites the division, which moves ties to another frame.

    Returns: (Ta,) int32.
    """
    seconds = np.arange(audio_length, dtype=np.float32) / np.float32(audio_fps)
    frame = np.round(seconds * np.float32(video_fps))
    return np.clip(frame, 0, video_length - 1).astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """The mask's shape: ω, δ (frames) and F, ε, and the two clocks in frames and positions per second."""

    video_fps: float
    audio_fps: float
    window: int
    fade_range: int
    fade: Fade
    mask_floor: float

    def __post_init__(self):
        for name in ("video_fps", "audio_fps", "mask_floor"):
            if not isinstance(getattr(self, name), int | float | np.number):
                raise FlowleyError(f"{name}={getattr(self, name)!r} must be a number, and not traced")
        for name in ("window", "fade_range"):
            if not isinstance(getattr(self, name), int | np.integer):
                raise FlowleyError(f"{name}={getattr(self, name)!r} must be an integer, and not traced")
        for name in ("video_fps", "audio_fps"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise FlowleyError(f"{name}={getattr(self, name)} must be positive")
        if not 1 <= self.fade_range < _MOST_FRAMES or self.window >= _MOST_FRAMES:
            raise FlowleyError(
                f"window={self.window} and fade_range={self.fade_range} must be below {_MOST_FRAMES} frames, "
                "the latter at least 1"
            )
        if self.fade not in typing.get_args(Fade):
            raise FlowleyError(f"fade={self.fade!r} must be one of {', '.join(typing.get_args(Fade))}")
        if not 0.0 <= self.mask_floor < math.inf:
            raise FlowleyError(f"mask_floor={self.mask_floor} must be 0 or a positive number")

    @property
    def hard_cut(self) -> bool:
        """Whether frames outside the windows count for nothing at all."""
        return self.mask_floor == 0.0 and self.window >= 0

    def log_values(self, fade_scale) -> Float[Array, " values"]:
        """log(M⁽ℓ⁾ + ε) at distances ≤ ω, ω + 1, …, ω + δ, and beyond: all that the mask consists of."""
        beyond = jnp.arange(1, self.fade_range + 1, dtype=jnp.float32)
        faded = fade_scale * fade_profile(beyond, fade_range=self.fade_range, fade=self.fade)
        values = jnp.concatenate([jnp.ones(1), faded, jnp.zeros(1)])
        return jnp.log(values + self.mask_floor)


def log_mask(values, beyond):
    """The entry of `Window.log_values` for each distance beyond the window, in frames.

    Chosen from the few values there are: a cosine and a logarithm for every score cost more than the
    attention of one head.
    """
    *faded, nothing = values
    chosen = jnp.broadcast_to(nothing, beyond.shape)
    for frames, value in reversed(list(enumerate(faded))):
        chosen = jnp.where(beyond <= frames, value, chosen)
    return chosen


def fade_profile(distance, *, fade_range: int, fade: Fade):
    """F(m) for distances m ≥ 0 beyond the hard window, in frames; "none" is 0 everywhere."""
    if fade == "linear":
        return 1.0 - distance / fade_range
    if fade == "cosine":
        return 0.5 * (1.0 + jnp.cos(np.pi * distance / fade_range))
    if fade == "gaussian":
        return jnp.exp(-0.5 * (distance / (0.5 * fade_range)) ** 2)
    return jnp.zeros_like(distance)


def soft_mask(
    frames: Int[np.ndarray, " Ta"],
    video_length: int,
    *,
    fade_scale,
    window: int,
    fade_range: int,
    fade: Fade,
) -> Float[Array, "Ta Tv"]:
    """M⁽ℓ⁾ in [0, 1]: 1 within `window` frames of the aligned frame, β·F beyond, 0 past `fade_range`.

    Args:
      frames: aligned frame of every audio position.
      fade_scale: β_ℓ, a scalar that may be traced.
      window: ω; negative turns the mask off (all ones).
    """
    if window < 0:
        return jnp.ones((len(frames), video_length), jnp.float32)
    distance = jnp.abs(jnp.arange(video_length)[None, :] - jnp.asarray(frames)[:, None])
    beyond = (distance - window).astype(jnp.float32)
    faded = fade_scale * fade_profile(beyond, fade_range=fade_range, fade=fade)
    return jnp.where(beyond <= 0, 1.0, jnp.where(beyond <= fade_range, faded, 0.0))
