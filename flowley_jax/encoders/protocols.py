"""What the rest of the system knows of an encoder of pictures and of an encoder of captions."""

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np


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
