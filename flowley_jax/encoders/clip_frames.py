"""Embeddings of frames by CLIP's image encoder, from a bundle of published weights."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flowley_jax.common.component import ProgramMemory
from flowley_jax.common.device_batches import DeviceBatches, Replicated
from flowley_jax.common.ranges import Positive
from flowley_jax.encoders.protocols import check_frames
from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.pretrained import Dtype, PretrainedComponent
from flowley_jax.networks.clip import ClipConfig, ClipVision

BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipFrames(PretrainedComponent):
    """Video encoder of the published system; see `VideoEncoder`.

    Attributes:
      bundle: bundle of a CLIP image encoder, which is read on the first call.
      fps: frames per second of its input.
      dtype: compute type.
      context: see `VideoEncoder`; every frame is encoded by itself.
    """

    name: ClassVar[str] = "clip"
    version: ClassVar[int | None] = 1
    format: ClassVar[str] = "clip"
    context: ClassVar[int] = 0

    bundle: Bundle
    fps: Positive = 8.0
    dtype: Dtype = "float32"

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
        """Encode frames (T, frame_size, frame_size, 3) uint8 to features (T, dim) float32 of unit length.

        Raises:
          FlowleyError: the frames have the wrong shape or type, or there are none.
        """
        check_frames(frames, self.frame_size)
        return self._program(frames)

    def memory(self, *, clips: int, length: int) -> ProgramMemory:
        """Return the memory that `length` frames need; clips are encoded one at a time."""
        del clips
        shape = (min(length, BATCH_SIZE), self.frame_size, self.frame_size, 3)
        return self.program_memory(ClipVision.__call__, jax.ShapeDtypeStruct(shape, jnp.uint8))

    @functools.cached_property
    def _program(self) -> DeviceBatches:
        model = Replicated(self.bundle.load(dtype=self.dtype))
        return DeviceBatches(ClipVision.__call__, model, batch_size=BATCH_SIZE)
