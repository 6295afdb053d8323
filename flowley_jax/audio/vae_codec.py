"""The audio VAE as a codec, from a bundle of published weights."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flowley_jax.audio.chunks import in_windows
from flowley_jax.audio.mel import MelConfig, log_mel, mel_with_bins
from flowley_jax.audio.protocols import FRAMES_PER_LATENT, check_latents
from flowley_jax.common.component import ProgramMemory
from flowley_jax.common.device_batches import DeviceBatches, Replicated
from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.pretrained import Dtype, PretrainedComponent
from flowley_jax.networks.audio_vae import DECODER_CONTEXT, AudioVae, VaeConfig

BATCH_SIZE = 8
WINDOW = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeCodec(PretrainedComponent):
    """Codec of the published system; see `AudioCodec`.

    Attributes:
      bundle: bundle of an audio VAE, which is read when it first encodes or decodes.
      dtype: compute type.
    """

    name: ClassVar[str] = "audio_vae"
    format: ClassVar[str] = "audio_vae"
    needs_fitting: ClassVar[bool] = False

    bundle: Bundle
    dtype: Dtype = "float32"

    @property
    def config(self) -> VaeConfig:
        return self.bundle.config

    @property
    def identity(self) -> str:
        return self.bundle.sha256

    @property
    def mel(self) -> MelConfig:
        return mel_with_bins(self.config.bins, str(self.bundle.folder))

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
        """Encode waves (B, samples) to mean and standard deviation of latents, each (B, Ta, C) float32."""
        return self.encode_log_mel(log_mel(waves, self.mel))

    def encode_log_mel(self, log_mels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode log-mel frames (B, frames, bins) as `encode` does; an odd last frame is dropped."""
        return self._encode(log_mels.astype(np.float32))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decode latents (B, Ta, C) to log-mel frames (B, 2·Ta, bins) float32.

        All but the first part of the decoder runs in windows of 512 latents, so that memory hardly grows with
        the length.

        Raises:
          FlowleyError: the latents have a different number of channels.
        """
        check_latents(latents, self.latent_dim)
        hidden = self._begin(latents.astype(np.float32))
        return in_windows(
            self._finish, hidden, window=WINDOW, context=DECODER_CONTEXT, rate=FRAMES_PER_LATENT
        )

    def memory(self, *, clips: int, length: int) -> ProgramMemory:
        """Return the memory that decoding `length` latents of each clip needs."""
        width = self.config.width * self.config.multipliers[-1]
        hidden = jax.ShapeDtypeStruct((clips, min(length, WINDOW), width), jnp.float32)
        return self.program_memory(AudioVae.finish, hidden)

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
