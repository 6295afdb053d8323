"""What the rest of the system knows of an encoder of pictures and of an encoder of captions."""

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from flowley_jax.errors import FlowleyError


def check_frames(frames: np.ndarray, size: int) -> None:
    """Raises a FlowleyError unless they are uint8 (T, size, size, 3) with T at least 1."""
    if frames.ndim != 4 or frames.shape[1:] != (size, size, 3) or frames.dtype != np.uint8 or not len(frames):
        raise FlowleyError(
            f"frames {frames.shape} of {frames.dtype} must be uint8, (T, {size}, {size}, 3) with T at least 1"
        )


@runtime_checkable
class VideoEncoder(Protocol):
    """Frames to features.

    Attributes:
      name, version: as in `parts.json`.
      dim: width of a feature vector.
      fps: frames for each second that the encoder is to be given.
      frame_size: height and width of those frames.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    @property
    def dim(self) -> int: ...

    @property
    def fps(self) -> float: ...

    @property
    def frame_size(self) -> int: ...

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 to features (T, dim) float32."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Captions to features.

    Attributes:
      name, version: as in `parts.json`.
      dim: width of a feature vector.
      max_tokens: length Tt that every caption is padded to.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    @property
    def dim(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """N captions to features (N, Tt, dim) float32 and lengths (N,) int32, end-of-text included."""
        ...
