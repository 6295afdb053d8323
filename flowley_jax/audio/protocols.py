"""What the rest of the system knows of an audio codec and of a vocoder.

A codec turns waves into latents and latents into log-mel frames; a vocoder turns log-mel frames into a wave.
"""

import math
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from flowley_jax.audio.mel import MelConfig
from flowley_jax.errors import FlowleyError

# Mel frames for each latent, of the published codecs and of the embedded one.
FRAMES_PER_LATENT = 2


def latents_for(seconds: float, mel: MelConfig) -> int:
    """Latents that cover `seconds` of sound."""
    return math.ceil(round(seconds * mel.sample_rate) / (FRAMES_PER_LATENT * mel.hop))


def samples_for(seconds: float, mel: MelConfig) -> int:
    """Samples under those latents: at least `seconds`, and less than a latent more."""
    return latents_for(seconds, mel) * FRAMES_PER_LATENT * mel.hop


def check_log_mels(log_mels: np.ndarray, bins: int) -> None:
    """Raises a FlowleyError unless they are (B, frames, bins)."""
    if log_mels.ndim != 3 or log_mels.shape[-1] != bins:
        raise FlowleyError(f"log-mel frames {log_mels.shape} must be (batch, frames, {bins})")


@runtime_checkable
class AudioCodec(Protocol):
    """Waves to latents and latents to log-mel frames.

    Attributes:
      name: as in `parts.json`.
      mel: the mel front end underneath.
      latent_dim: channels C of a latent.
      latent_rate: latents for each second.
      sample_rate: of the waves that go in, in Hz.
    """

    name: ClassVar[str]

    @property
    def mel(self) -> MelConfig: ...

    @property
    def latent_dim(self) -> int: ...

    @property
    def latent_rate(self) -> float: ...

    @property
    def sample_rate(self) -> int: ...

    def encode(self, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Waves (B, samples) to mean and standard deviation of the posterior, each (B, Ta, C) float32."""
        ...

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (B, Ta, C) to log-mel frames (B, 2·Ta, bins) float32."""
        ...


@runtime_checkable
class Vocoder(Protocol):
    """Log-mel frames to waves.

    Attributes:
      name: as in `parts.json`.
      sample_rate: of the wave that comes out, in Hz.
    """

    name: ClassVar[str]

    @property
    def sample_rate(self) -> int: ...

    def __call__(self, log_mels: np.ndarray) -> np.ndarray:
        """Log-mel frames (B, frames, bins) to waves (B, frames·hop) float32."""
        ...
