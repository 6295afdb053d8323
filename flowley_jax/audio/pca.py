"""A linear audio codec: principal components of pairs of log-mel frames.

Two neighbouring log-mel frames make one vector x of 2·bins numbers (the latent rate of the published VAE).
With μ the mean and W the orthonormal leading eigenvectors of the covariance of a training set,

    latent = Wᵀ (x − μ),    decoded x = W latent + μ.

The posterior of a linear codec is a point, so its standard deviation is zero. Latents are kept raw; they are
standardised per channel where they are used, by the mean and deviation that `flowley_jax.data.parts` keeps.
"""

import dataclasses
import os
import zipfile
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from flowley_jax.audio.mel import MelConfig, log_mel, mel_preset
from flowley_jax.audio.protocols import FRAMES_PER_LATENT
from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import replacing

_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PcaCodec:
    """Linear codec; see the module's docstring and `AudioCodec`.

    Attributes:
      mel: the mel front end.
      mean: (2·bins,) float32, the mean pair of frames.
      components: (2·bins, C) float32 with orthonormal columns, most variance first.
    """

    name: ClassVar[str] = "pca"

    mel: MelConfig
    mean: np.ndarray
    components: np.ndarray

    def __post_init__(self):
        width = FRAMES_PER_LATENT * self.mel.bins
        if self.mean.shape != (width,) or self.components.ndim != 2 or self.components.shape[0] != width:
            raise FlowleyError(
                f"PCA codec for mel {self.mel.name}: mean {self.mean.shape} and components "
                f"{self.components.shape} must be ({width},) and ({width}, C)"
            )

    @property
    def latent_dim(self) -> int:
        return self.components.shape[1]

    @property
    def latent_rate(self) -> float:
        return self.mel.sample_rate / (FRAMES_PER_LATENT * self.mel.hop)

    @property
    def sample_rate(self) -> int:
        return self.mel.sample_rate

    @classmethod
    def fit(cls, log_mels: Iterable[np.ndarray], *, mel: MelConfig, latent_dim: int) -> "PcaCodec":
        """Fits the codec to log-mel spectrograms, each (frames, bins); only one is held at a time.

        Raises:
          FlowleyError: if there are fewer than two pairs of frames or `latent_dim` is impossible.
        """
        check_latent_dim(latent_dim, mel)
        mean, covariance = _moments(log_mels, FRAMES_PER_LATENT * mel.bins)
        _, vectors = np.linalg.eigh(covariance)
        leading = vectors[:, ::-1][:, :latent_dim]
        # An eigenvector's sign is arbitrary and differs between LAPACK builds.
        peaks = leading[np.abs(leading).argmax(axis=0), np.arange(latent_dim)]
        components = (leading * np.sign(peaks)).astype(np.float32)
        return cls(mel=mel, mean=mean.astype(np.float32), components=components)

    def encode(self, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Waves (B, samples) to mean and (zero) standard deviation, each (B, Ta, C) float32.

        Ta = floor(floor(samples/hop)/2): a last mel frame without a partner is dropped, as the VAE does.
        """
        mean = self.encode_log_mel(log_mel(waves, self.mel))
        return mean, np.zeros_like(mean)

    def encode_log_mel(self, log_mels: np.ndarray) -> np.ndarray:
        """Log-mel frames (B, frames, bins) to latents (B, floor(frames/2), C) float32."""
        return ((_pairs(log_mels) - self.mean) @ self.components).astype(np.float32)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (B, Ta, C) to log-mel frames (B, 2·Ta, bins) float32."""
        if latents.ndim != 3 or latents.shape[-1] != self.latent_dim:
            raise FlowleyError(f"latents {latents.shape} must be (batch, time, {self.latent_dim})")
        pairs = latents.astype(np.float32) @ self.components.T + self.mean
        return pairs.reshape(len(latents), FRAMES_PER_LATENT * latents.shape[1], self.mel.bins)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the codec to an .npz file, atomically."""
        with replacing(path) as partial:
            np.savez(partial, version=_VERSION, mel=self.mel.name, mean=self.mean, components=self.components)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PcaCodec":
        """Reads what `save` wrote.

        Raises:
          FlowleyError: if the file is missing, damaged or of another version.
        """
        try:
            with open(path, "rb") as opened, np.load(opened) as file:
                stored = {key: file[key] for key in ("version", "mel", "mean", "components")}
        except FileNotFoundError as error:
            raise FlowleyError(f"{path}: no such codec file") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise FlowleyError(f"{path}: not a PCA codec file ({error})") from error
        if int(stored["version"]) != _VERSION:
            raise FlowleyError(f"{path}: codec version {int(stored['version'])}, expected {_VERSION}")
        return cls(mel=mel_preset(str(stored["mel"])), mean=stored["mean"], components=stored["components"])


def check_latent_dim(latent_dim: int, mel: MelConfig) -> None:
    """Raises a FlowleyError unless a front end has so many components."""
    width = FRAMES_PER_LATENT * mel.bins
    if not 1 <= latent_dim <= width:
        raise FlowleyError(f"latent_dim={latent_dim} must be from 1 to {width} for mel {mel.name}")


def _pairs(log_mels: np.ndarray) -> np.ndarray:
    """(..., frames, bins) to (..., floor(frames/2), 2·bins)."""
    *lead, frames, bins = log_mels.shape
    latents = frames // FRAMES_PER_LATENT
    even = log_mels[..., : latents * FRAMES_PER_LATENT, :]
    return even.reshape(*lead, latents, FRAMES_PER_LATENT * bins)


def _moments(log_mels: Iterable[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (width,) and covariance (width, width) in float64."""
    count, total, products = 0, np.zeros(width), np.zeros((width, width))
    for spectrogram in log_mels:
        pairs = _pairs(spectrogram).astype(np.float64)
        count += len(pairs)
        total += pairs.sum(axis=0)
        products += pairs.T @ pairs
    if count < 2:
        raise FlowleyError(f"a PCA codec needs at least two pairs of mel frames to be fitted to, got {count}")
    mean = total / count
    return mean, products / count - np.outer(mean, mean)
