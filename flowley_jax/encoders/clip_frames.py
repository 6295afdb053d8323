"""Frames as the embeddings of CLIP's image tower, from a bundle of published weights."""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import numpy as np

from flowley_jax.device_batches import DeviceBatches, Replicated
from flowley_jax.encoders.clip import ClipConfig, ClipVision
from flowley_jax.encoders.protocols import check_frames
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import Bundle

BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipFrames:
    """Encoder of frames; see `VideoEncoder`.

    Attributes:
      bundle: of a CLIP image encoder; it is read when the first frames come.
      fps: frames for each second that it is given.
      dtype: compute type.
    """

    name: ClassVar[str] = "clip"
    version: ClassVar[int] = 1
    kind: ClassVar[str] = "clip"

    bundle: Bundle
    fps: float = 8.0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        self.bundle.check_kind(self.kind)
        if self.fps <= 0:
            raise FlowleyError(f"CLIP encoder: fps={self.fps} must be positive")

    @property
    def config(self) -> ClipConfig:
        return self.bundle.config

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def frame_size(self) -> int:
        return self.config.image_size

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, frame_size, frame_size, 3) uint8 to features (T, dim) float32 of unit length.

        Raises:
          FlowleyError: for another shape or type, or no frame at all.
        """
        check_frames(frames, self.frame_size)
        return self._program(frames)

    @functools.cached_property
    def _program(self) -> DeviceBatches:
        model = self.bundle.load(dtype=self.dtype)
        return DeviceBatches(embeddings, Replicated(model), batch_size=BATCH_SIZE)


def embeddings(model: ClipVision, frames: jax.Array) -> jax.Array:
    """The program of a batch of frames."""
    return model(frames)
