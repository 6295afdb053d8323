"""The audio VAE as a codec, from a bundle of published weights."""

import dataclasses
import functools
from typing import ClassVar, Literal

import numpy as np

from flowley_jax.audio.chunks import in_windows
from flowley_jax.audio.mel import MEL_16K, MEL_44K, MelConfig, log_mel
from flowley_jax.audio.protocols import FRAMES_PER_LATENT
from flowley_jax.audio.vae import DECODER_CONTEXT, AudioVae, VaeConfig
from flowley_jax.device_batches import DeviceBatches, Replicated
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import Bundle

BATCH_SIZE = 8
WINDOW = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeCodec:
    """Codec of the published system; see `AudioCodec`.

    Attributes:
      bundle: of an audio VAE; it is read when the first sound or latents come.
      dtype: compute type.
    """

    name: ClassVar[str] = "audio_vae"
    kind: ClassVar[str] = "audio_vae"

    bundle: Bundle
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        self.bundle.check_kind(self.kind)

    @property
    def config(self) -> VaeConfig:
        return self.bundle.config

    @property
    def mel(self) -> MelConfig:
        return mel_of(self.config.bins, str(self.bundle.folder))

    @property
    def latent_dim(self) -> int:
        return self.config.latent_dim

    @property
    def latent_rate(self) -> float:
        return self.mel.sample_rate / (FRAMES_PER_LATENT * self.mel.hop)

    @property
    def sample_rate(self) -> int:
        return self.mel.sample_rate

    def encode(self, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Waves (B, samples) to mean and standard deviation of the posterior, each (B, Ta, C) float32."""
        return self.encode_log_mel(log_mel(waves, self.mel))

    def encode_log_mel(self, log_mels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of log-mel frames (B, frames, bins); an odd last frame is dropped."""
        return self._encode(log_mels.astype(np.float32))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (B, Ta, C) to log-mel frames (B, 2·Ta, bins) float32; the memory it needs is that of 512
        latents, but for one layer.
        """
        if latents.ndim != 3 or latents.shape[-1] != self.latent_dim:
            raise FlowleyError(f"latents {latents.shape} must be (batch, time, {self.latent_dim})")
        hidden = self._begin(latents.astype(np.float32))
        return in_windows(
            self._finish, hidden, window=WINDOW, context=DECODER_CONTEXT, rate=FRAMES_PER_LATENT
        )

    @functools.cached_property
    def _model(self) -> Replicated:
        return Replicated(self.bundle.load(dtype=self.dtype))

    @functools.cached_property
    def _encode(self) -> DeviceBatches:
        return DeviceBatches(AudioVae.encode, self._model, batch_size=BATCH_SIZE)

    @functools.cached_property
    def _begin(self) -> DeviceBatches:
        return DeviceBatches(AudioVae.begin, self._model, batch_size=BATCH_SIZE)

    @functools.cached_property
    def _finish(self) -> DeviceBatches:
        return DeviceBatches(AudioVae.finish, self._model, batch_size=BATCH_SIZE)


def mel_of(bins: int, where: str) -> MelConfig:
    """The front end that has so many bins.

    Raises:
      FlowleyError: none has.
    """
    for mel in (MEL_16K, MEL_44K):
        if mel.bins == bins:
            return mel
    raise FlowleyError(f"{where}: no mel front end has {bins} bins, only {MEL_16K.bins} or {MEL_44K.bins}")
