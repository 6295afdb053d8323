"""Protocols of audio codecs and vocoders.

A codec turns waves into latents and latents into log-mel frames. A vocoder turns log-mel frames into a wave.
"""

import math
from collections.abc import Iterable
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from flowley_jax.audio.mel import MelConfig
from flowley_jax.common.component import Component
from flowley_jax.errors import FlowleyError

# Mel frames per latent, the same for the published VAEs and the PCA codec.
FRAMES_PER_LATENT = 2


def latents_for(seconds: float, mel: MelConfig) -> int:
    """Return the number of latents that cover a length of sound."""
    return math.ceil(round(seconds * mel.sample_rate) / (FRAMES_PER_LATENT * mel.hop))


def samples_for(seconds: float, mel: MelConfig) -> int:
    """Return the number of samples in `latents_for(seconds, mel)` latents.

    They last at least `seconds`, and at most one latent more.
    """
    return latents_for(seconds, mel) * FRAMES_PER_LATENT * mel.hop


def check_log_mels(log_mels: np.ndarray, bins: int) -> None:
    """Raise a FlowleyError unless the shape is (B, frames, bins)."""
    if log_mels.ndim != 3 or log_mels.shape[-1] != bins:
        raise FlowleyError(f"log-mel frames {log_mels.shape} must be (batch, frames, {bins})")


def check_latents(latents: np.ndarray, channels: int) -> None:
    """Raise a FlowleyError unless the shape is (B, Ta, channels)."""
    if latents.ndim != 3 or latents.shape[-1] != channels:
        raise FlowleyError(f"latents {latents.shape} must be (batch, time, {channels})")


@runtime_checkable
class AudioCodec(Component, Protocol):
    """Component that turns waves into latents and latents into log-mel frames.

    Attributes:
      needs_fitting: whether it must first be fitted to the training clips, as a `FittedCodec`. Until then,
        data preparation keeps log-mel frames; with any other codec, it encodes clips as they are read.
      mel: mel front end.
      latent_dim: channels C of a latent.
      latent_rate: latents per second.
      sample_rate: sample rate of the waves, in Hz.
      identity: SHA-256, in hexadecimal, of everything that decodes the latents. Latents of one codec mean
        nothing to a codec of another identity.
    """

    needs_fitting: ClassVar[bool]

    @property
    def identity(self) -> str: ...

    @property
    def mel(self) -> MelConfig: ...

    @property
    def latent_dim(self) -> int: ...

    @property
    def latent_rate(self) -> float: ...

    @property
    def sample_rate(self) -> int: ...

    def encode(self, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode waves (B, samples) to mean and standard deviation of latents, each (B, Ta, C) float32."""
        ...

    def encode_log_mel(self, log_mels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode log-mel frames (B, frames, bins) as `encode` does; an odd last frame is dropped."""
        ...

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decode latents (B, Ta, C) to log-mel frames (B, 2·Ta, bins) float32."""
        ...


@runtime_checkable
class FittedCodec(AudioCodec, Protocol):
    """Codec that is fitted to the training clips."""

    @classmethod
    def fit(cls, log_mels: Iterable[np.ndarray], *, mel: MelConfig, latent_dim: int) -> "FittedCodec":
        """Fit a codec with `latent_dim` channels to log-mel spectrograms, each (frames, bins)."""
        ...

    @staticmethod
    def check_fit(*, mel: MelConfig, latent_dim: int) -> None:
        """Raise a FlowleyError if no such codec can be fitted."""
        ...


@runtime_checkable
class Vocoder(Component, Protocol):
    """Component that turns log-mel frames into waves.

    Attributes:
      sample_rate: sample rate of the waves, in Hz.
    """

    @property
    def sample_rate(self) -> int: ...

    def __call__(self, log_mels: np.ndarray) -> np.ndarray:
        """Turn log-mel frames (B, frames, bins) into waves (B, frames·hop) float32."""
        ...
