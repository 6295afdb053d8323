"""BigVGAN as a vocoder, from a bundle of published weights."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flowley_jax.audio.chunks import in_windows
from flowley_jax.audio.mel import MelConfig, mel_with_bins
from flowley_jax.audio.protocols import check_log_mels
from flowley_jax.common.component import ProgramMemory
from flowley_jax.common.device_batches import DeviceBatches, Replicated
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.pretrained import Dtype, PretrainedComponent
from flowley_jax.networks.bigvgan import BigVgan, BigVganConfig

BATCH_SIZE = 8
WINDOW = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class BigVganVocoder(PretrainedComponent):
    """Vocoder of the published system; see `Vocoder`.

    Attributes:
      bundle: bundle of a BigVGAN generator, which is read on the first call.
      dtype: compute type.
    """

    name: ClassVar[str] = "bigvgan"
    format: ClassVar[str] = "bigvgan"

    bundle: Bundle
    dtype: Dtype = "float32"

    def __post_init__(self):
        super().__post_init__()
        if self.config.hop != self.mel.hop:
            raise FlowleyError(
                f"{self.bundle.folder}: makes {self.config.hop} samples per frame; the mel front end with "
                f"{self.config.bins} bins has {self.mel.hop}"
            )

    @property
    def config(self) -> BigVganConfig:
        return self.bundle.config

    @property
    def mel(self) -> MelConfig:
        return mel_with_bins(self.config.bins, str(self.bundle.folder))

    @property
    def sample_rate(self) -> int:
        return self.mel.sample_rate

    def __call__(self, log_mels: np.ndarray) -> np.ndarray:
        """Turn log-mel frames (B, frames, bins) into waves (B, frames·hop) float32.

        Long inputs run in windows of one length, so that memory does not grow with the sound.

        Raises:
          FlowleyError: the frames have a different number of bins.
        """
        check_log_mels(log_mels, self.config.bins)
        return in_windows(
            self._program,
            log_mels.astype(np.float32),
            window=WINDOW,
            context=self.config.context,
            rate=self.config.hop,
        )

    def memory(self, *, clips: int, length: int) -> ProgramMemory:
        """Return the memory that `length` mel frames of each clip need."""
        shape = (clips, min(length, WINDOW), self.config.bins)
        return self.program_memory(BigVgan.__call__, jax.ShapeDtypeStruct(shape, jnp.float32))

    @functools.cached_property
    def _program(self) -> DeviceBatches:
        model = Replicated(self.bundle.load(dtype=self.dtype))
        return DeviceBatches(BigVgan.__call__, model, batch_size=BATCH_SIZE)
