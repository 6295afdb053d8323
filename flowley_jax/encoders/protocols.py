"""Protocols of video encoders and text encoders."""

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from flowley_jax.common.component import Component
from flowley_jax.errors import FlowleyError


def check_frames(frames: np.ndarray, size: int) -> None:
    """Raise a FlowleyError unless frames are uint8 (T, size, size, 3) with T at least 1."""
    if frames.ndim != 4 or frames.shape[1:] != (size, size, 3) or frames.dtype != np.uint8 or not len(frames):
        raise FlowleyError(
            f"frames {frames.shape} of {frames.dtype} must be uint8, (T, {size}, {size}, 3) with T at least 1"
        )


@runtime_checkable
class VideoEncoder(Component, Protocol):
    """Component that turns frames into features.

    Attributes:
      dim: width of a feature vector.
      fps: frames per second of its input.
      frame_size: height and width of its input in pixels.
      context: number of frames before and after a frame, where there are any, that its features depend on.
    """

    context: ClassVar[int]

    @property
    def dim(self) -> int: ...

    @property
    def fps(self) -> float: ...

    @property
    def frame_size(self) -> int: ...

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Encode frames (T, H, W, 3) uint8 to features (T, dim) float32."""
        ...


@runtime_checkable
class TextEncoder(Component, Protocol):
    """Component that turns captions into features.

    Attributes:
      dim: width of a feature vector.
      max_tokens: length Tt to which every caption is padded.
    """

    @property
    def dim(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode N captions to features (N, Tt, dim) float32 and lengths (N,) int32.

        Lengths include the end-of-text token.
        """
        ...
