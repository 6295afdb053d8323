"""BigVGAN as a vocoder, from a bundle of published weights."""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import numpy as np

from flowley_jax.audio.bigvgan import BigVgan, BigVganConfig
from flowley_jax.audio.chunks import in_windows
from flowley_jax.audio.mel import MelConfig
from flowley_jax.audio.protocols import check_log_mels
from flowley_jax.audio.vae_codec import mel_of
from flowley_jax.device_batches import DeviceBatches, Replicated
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import Bundle

BATCH_SIZE = 8
WINDOW = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class BigVganVocoder:
    """Vocoder of the published system; see `Vocoder`.

    Attributes:
      bundle: of a BigVGAN generator; it is read when the first frames come.
      dtype: compute type.
    """

    name: ClassVar[str] = "bigvgan"
    kind: ClassVar[str] = "bigvgan"

    bundle: Bundle
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        self.bundle.check_kind(self.kind)
        if self.config.hop != self.mel.hop:
            raise FlowleyError(
                f"{self.bundle.folder}: makes {self.config.hop} samples of a frame, the mel front end of "
                f"{self.config.bins} bins has {self.mel.hop}"
            )

    @property
    def config(self) -> BigVganConfig:
        return self.bundle.config

    @property
    def mel(self) -> MelConfig:
        return mel_of(self.config.bins, str(self.bundle.folder))

    @property
    def sample_rate(self) -> int:
        return self.mel.sample_rate

    def __call__(self, log_mels: np.ndarray) -> np.ndarray:
        """Log-mel frames (B, frames, bins) to waves (B, frames·hop) float32, in windows of one length, so
        that memory does not grow with the sound.

        Raises:
          FlowleyError: if the frames do not have the vocoder's bins.
        """
        check_log_mels(log_mels, self.config.bins)
        return in_windows(
            self._program,
            log_mels.astype(np.float32),
            window=WINDOW,
            context=self.config.context,
            rate=self.config.hop,
        )

    @functools.cached_property
    def _program(self) -> DeviceBatches:
        return DeviceBatches(waves, Replicated(self.bundle.load(dtype=self.dtype)), batch_size=BATCH_SIZE)


def waves(model: BigVgan, log_mels: jax.Array) -> jax.Array:
    """The program of a batch of log-mel frames."""
    return model(log_mels)
