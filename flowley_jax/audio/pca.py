"""A linear audio codec: principal components of pairs of log-mel frames.

Two neighbouring log-mel frames form a vector x of 2·bins numbers, so latents have the rate of the published
VAE's. With μ the mean and W the orthonormal leading eigenvectors of the covariance over a training set,

    latent = Wᵀ (x − μ),    decoded x = W latent + μ.

The posterior of a linear codec is a point, so its standard deviation is zero. Latents are not standardised
here: `flowley_jax.data.components` keeps their mean and deviation per channel, and the model applies them.
"""

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flowley_jax.audio.mel import MelConfig, log_mel, mel_preset
from flowley_jax.audio.protocols import FRAMES_PER_LATENT, check_latents
from flowley_jax.common.component import HostComponent, check_keys
from flowley_jax.common.files import atomic_write, sha256
from flowley_jax.errors import FlowleyError

CODEC_FILE = "codec.npz"
_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PcaCodec(HostComponent):
    """Linear codec; see the module's docstring and `AudioCodec`.

    Attributes:
      mel: mel front end.
      mean: mean pair of frames (2·bins,) float32.
      components: (2·bins, C) float32 with orthonormal columns, in the order of decreasing variance.
    """

    name: ClassVar[str] = "pca"
    needs_fitting: ClassVar[bool] = True

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
    def identity(self) -> str:
        # The content and not the .npz file, whose bytes depend on the version of NumPy and zlib.
        digest = hashlib.sha256(f"pca {self.mel.name}\n".encode())
        for array in (self.mean, self.components):
            digest.update(np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()

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
        """Fit a codec to log-mel spectrograms.

        Args:
          log_mels: spectrograms, each (frames, bins); only one is held in memory at a time.
          mel: their mel front end.
          latent_dim: channels C of a latent.

        Raises:
          FlowleyError: there are fewer than two pairs of frames, or `latent_dim` is out of range.
        """
        cls.check_fit(mel=mel, latent_dim=latent_dim)
        mean, covariance = _moments(log_mels, FRAMES_PER_LATENT * mel.bins)
        _, vectors = np.linalg.eigh(covariance)
        leading = vectors[:, ::-1][:, :latent_dim]
        # An eigenvector's sign is arbitrary and differs between LAPACK builds.
        peaks = leading[np.abs(leading).argmax(axis=0), np.arange(latent_dim)]
        components = (leading * np.sign(peaks)).astype(np.float32)
        return cls(mel=mel, mean=mean.astype(np.float32), components=components)

    @staticmethod
    def check_fit(*, mel: MelConfig, latent_dim: int) -> None:
        """Raise a FlowleyError unless pairs of frames have at least `latent_dim` principal components."""
        width = FRAMES_PER_LATENT * mel.bins
        if not 1 <= latent_dim <= width:
            raise FlowleyError(f"latent_dim={latent_dim} must be from 1 to {width} for mel {mel.name}")

    def encode(self, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode waves (B, samples) to latents and a standard deviation of zero, each (B, Ta, C) float32.

        Ta = floor(floor(samples/hop)/2): an odd last mel frame is dropped, as in the VAE.
        """
        return self.encode_log_mel(log_mel(waves, self.mel))

    def encode_log_mel(self, log_mels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode log-mel frames (B, frames, bins) as `encode` does, with Ta = floor(frames/2)."""
        mean = ((_pairs(log_mels) - self.mean) @ self.components).astype(np.float32)
        return mean, np.zeros_like(mean)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decode latents (B, Ta, C) to log-mel frames (B, 2·Ta, bins) float32.

        Raises:
          FlowleyError: the latents have a different number of channels.
        """
        check_latents(latents, self.latent_dim)
        pairs = latents.astype(np.float32) @ self.components.T + self.mean
        return pairs.reshape(len(latents), FRAMES_PER_LATENT * latents.shape[1], self.mel.bins)

    def save(self, path: str | os.PathLike) -> None:
        """Write the codec to an .npz file, atomically."""
        with atomic_write(path) as partial:
            np.savez(partial, version=_VERSION, mel=self.mel.name, mean=self.mean, components=self.components)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PcaCodec":
        """Read a codec that `save` wrote.

        Raises:
          FlowleyError: the file is missing or damaged, or its version differs.
        """
        try:
            with open(path, "rb") as opened, np.load(opened) as file:
                stored = {key: file[key] for key in ("version", "mel", "mean", "components")}
        except FileNotFoundError as error:
            raise FlowleyError(f"{path}: no such codec file") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise FlowleyError(f"{path}: is not a PCA codec file ({error})") from error
        if int(stored["version"]) != _VERSION:
            raise FlowleyError(f"{path}: has codec version {int(stored['version'])}, expected {_VERSION}")
        return cls(mel=mel_preset(str(stored["mel"])), mean=stored["mean"], components=stored["components"])

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Write `codec.npz` into `folder` and return the entry that refers to it; see `Component`."""
        path = folder / CODEC_FILE
        self.save(path)
        return {
            "name": self.name,
            "mel": self.mel.name,
            "latent_dim": self.latent_dim,
            "file": CODEC_FILE,
            "sha256": sha256(path),
        }

    @classmethod
    def from_json(cls, stored: Any, folder: Path, *, where: str, mel: Any = None) -> "PcaCodec":
        """Read the codec of `folder` and check that it is the one that `to_json` wrote; see `Component`."""
        del mel
        check_keys(stored, {"name", "mel", "latent_dim", "file", "sha256"}, where)
        path = folder / CODEC_FILE
        if stored["file"] != CODEC_FILE:
            raise FlowleyError(f"{where}.file={stored['file']!r} must be {CODEC_FILE!r}")
        if path.is_file() and sha256(path) != stored["sha256"]:
            raise FlowleyError(f"{path} is damaged, or not the codec of this data set (its SHA-256 differs)")
        codec = cls.load(path)
        if (codec.mel.name, codec.latent_dim) != (stored["mel"], stored["latent_dim"]):
            raise FlowleyError(
                f"{path} has mel {codec.mel.name} and {codec.latent_dim} channels, "
                f"expected {stored['mel']} and {stored['latent_dim']}"
            )
        return codec


def _pairs(log_mels: np.ndarray) -> np.ndarray:
    """Join pairs of frames: (..., frames, bins) to (..., floor(frames/2), 2·bins)."""
    *lead, frames, bins = log_mels.shape
    latents = frames // FRAMES_PER_LATENT
    even = log_mels[..., : latents * FRAMES_PER_LATENT, :]
    return even.reshape(*lead, latents, FRAMES_PER_LATENT * bins)


def _moments(log_mels: Iterable[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (width,) and covariance (width, width) of pairs of frames, in float64."""
    count, total, products = 0, np.zeros(width), np.zeros((width, width))
    for spectrogram in log_mels:
        pairs = _pairs(spectrogram).astype(np.float64)
        count += len(pairs)
        total += pairs.sum(axis=0)
        products += pairs.T @ pairs
    if count < 2:
        raise FlowleyError(f"fitting a PCA codec needs at least two pairs of mel frames, got {count}")
    mean = total / count
    return mean, products / count - np.outer(mean, mean)
