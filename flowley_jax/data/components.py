"""The components of a data set: everything between media and latents, in `components.json` and `codec.npz`.

The records folder holds these files, and training copies them into the run's folder. With them, sampling
makes the same features from raw media as the records have, and turns latents back into sound.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowley_jax.audio.latent_space import LatentSpace
from flowley_jax.audio.level_bounds import bound_bins, bound_levels
from flowley_jax.audio.mel import MelConfig
from flowley_jax.audio.protocols import AudioCodec, Vocoder, latents_for
from flowley_jax.common.component import Component, check_keys, settings_to_json
from flowley_jax.common.files import atomic_write, name_errors
from flowley_jax.common.json_files import read_json_object
from flowley_jax.common.ranges import SECONDS, Range
from flowley_jax.data.component_registry import ROLES, Role, find_component
from flowley_jax.data.dims import Dims
from flowley_jax.encoders.protocols import TextEncoder, VideoEncoder
from flowley_jax.errors import FlowleyError

COMPONENTS_FILE = "components.json"
# Name of the same file in folders of earlier versions.
_EARLIER_FILE = "parts.json"
_VERSION = 1
_MIN_LATENT_STD = 1e-6
_GAIN = Range(above=0, most=1000)


def components_file(folder: str | os.PathLike) -> Path:
    """Return the path of a folder's `components.json`, or of the file that earlier versions wrote instead."""
    earlier = Path(folder) / _EARLIER_FILE
    path = Path(folder) / COMPONENTS_FILE
    return earlier if earlier.is_file() and not path.exists() else path


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """Encoders, codec and vocoder of a data set, and the statistics of its latents.

    The model standardises latents with these statistics, so all methods here take and return raw latents.

    Attributes:
      seconds: length of a clip.
      video_encoder, text_encoder, codec, vocoder: see their protocols.
      latent_mean, latent_std: mean and deviation per channel over the training split, (C,) float32.
      log_mel_max: `level_maxima` of the training split, (bins + 1,) float32, which bound the level of decoded
        sounds; None if it is not known, as in data sets of earlier versions.
      wave_gain: factor of the vocoder's waves. The codec and a vocoder without weights lower the level of a
        sound; with this factor, training sounds on average keep theirs when they are encoded and decoded.
      source: origin of the data set.
    """

    seconds: float
    video_encoder: VideoEncoder
    text_encoder: TextEncoder
    codec: AudioCodec
    vocoder: Vocoder
    latent_mean: np.ndarray
    latent_std: np.ndarray
    log_mel_max: np.ndarray | None = None
    wave_gain: float = 1.0
    source: str = ""

    def __post_init__(self):
        channels = (self.codec.latent_dim,)
        if self.latent_mean.shape != channels or self.latent_std.shape != channels:
            raise FlowleyError(
                f"latent mean {self.latent_mean.shape} and std {self.latent_std.shape} must be {channels}"
            )
        for name, values in {"mean": self.latent_mean, "std": self.latent_std}.items():
            if not np.isfinite(values).all():
                raise FlowleyError(f"the latent {name} has values that are not finite")
        self._check_log_mel_max()
        if fault := _GAIN.fault(self.wave_gain):
            raise FlowleyError(f"wave_gain={self.wave_gain} {fault}")
        constant = np.flatnonzero(~(self.latent_std >= _MIN_LATENT_STD))
        if constant.size:
            raise FlowleyError(
                f"latent channel {constant[0]} is constant over the training split; choose fewer than "
                f"{self.codec.latent_dim} latent channels, or add clips with other sounds"
            )
        if fault := SECONDS.fault(self.seconds):
            raise FlowleyError(f"seconds={self.seconds} {fault}")
        if self.audio_length < 1 or self.video_length < 1:
            raise FlowleyError(f"seconds={self.seconds} is too short for one latent and one frame")
        if self.vocoder.sample_rate != self.codec.sample_rate:
            raise FlowleyError(
                f"vocoder {self.vocoder.name} has {self.vocoder.sample_rate} Hz, codec {self.codec.name} has "
                f"{self.codec.sample_rate} Hz; they must have the same sample rate"
            )

    def _check_log_mel_max(self) -> None:
        values = (self.codec.mel.bins + 1,)
        if self.log_mel_max is None:
            return
        if self.log_mel_max.shape != values:
            raise FlowleyError(f"log-mel maximum {self.log_mel_max.shape} must be {values}")
        if not np.isfinite(self.log_mel_max).all():
            raise FlowleyError("the log-mel maximum has values that are not finite")

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of everything that decides features and latents, wherever the files are.

        The level of decoded sounds is left out, since runs of earlier versions lack it.
        """
        roles = {role: self.identity_of(role) for role in ROLES}
        content = [self.seconds, roles, self.latent_mean.tolist(), self.latent_std.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def identity_of(self, role: Role) -> str:
        """Return a text that is equal for components that compute the same, wherever their files are."""
        if role == "codec":
            return self.codec.identity
        component: Component = getattr(self, role)
        settings = {name: value for name, value in settings_to_json(component).items() if name != "bundle"}
        return json.dumps([settings, component.weights_sha256], sort_keys=True)

    def differences(self, other: "Components") -> list[str]:
        """Return a phrase for everything in which other components compute something else; see `identity`."""
        phrases = [
            f"codec {other.latent_space} instead of {self.latent_space}"
            if role == "codec"
            else f"another {role} (or other settings of it)"
            for role in ROLES
            if self.identity_of(role) != other.identity_of(role)
        ]
        if self.seconds != other.seconds:
            phrases.append(f"seconds={other.seconds:g} instead of {self.seconds:g}")
        if not phrases and self.identity != other.identity:
            phrases.append("other statistics of the latents, so other clips")
        return phrases

    @property
    def latent_space(self) -> LatentSpace:
        """The space of the latents."""
        return LatentSpace.of(self.codec)

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz."""
        return self.codec.sample_rate

    @property
    def video_fps(self) -> float:
        """Frames per second of the video encoder's input."""
        return self.video_encoder.fps

    @property
    def audio_length(self) -> int:
        """Number of latents Ta of a clip."""
        return self.audio_length_for(self.seconds)

    @property
    def video_length(self) -> int:
        """Number of frames Tv of a clip."""
        return self.video_length_for(self.seconds)

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Lengths Ta, Tv and Tt of a clip."""
        return self.audio_length, self.video_length, self.text_encoder.max_tokens

    @property
    def dims(self) -> Dims:
        """Sizes of one example of the records."""
        return Dims(
            audio_length=self.audio_length,
            audio_dim=self.codec.latent_dim,
            video_length=self.video_length,
            video_dim=self.video_encoder.dim,
            text_length=self.text_encoder.max_tokens,
            text_dim=self.text_encoder.dim,
        )

    def audio_length_for(self, seconds: float) -> int:
        """Return the number of latents that cover `seconds` of sound."""
        return latents_for(seconds, self.codec.mel)

    def video_length_for(self, seconds: float) -> int:
        """Return the number of frames of `seconds` of video."""
        return round(seconds * self.video_fps)

    def features_of_video(self, frames: np.ndarray) -> np.ndarray:
        """Encode frames (T, H, W, 3) uint8, of the encoder's rate and size, to (T, video_dim) float32."""
        return self.video_encoder(frames)

    def features_of_text(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode N captions to features (N, Tt, text_dim) float32 and lengths (N,) int32."""
        return self.text_encoder(captions)

    def encode_audio(self, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode waves (B, samples) to the mean and deviation of raw latents, each (B, Ta, C) float32."""
        return self.codec.encode(waves)

    def decode_latents(self, latents: np.ndarray) -> np.ndarray:
        """Decode raw latents (B, Ta, C) to log-mel frames (B, 2·Ta, bins) float32, with bounded bins."""
        log_mels = self.codec.decode(latents)
        return log_mels if self.log_mel_max is None else bound_bins(log_mels, self.log_mel_max)

    def vocode(self, log_mels: np.ndarray) -> np.ndarray:
        """Turn the log-mel frames of whole sounds, (B, frames, bins), into waves (B, N) of bounded level."""
        if self.log_mel_max is not None:
            log_mels = bound_levels(log_mels, self.log_mel_max, self.codec.mel)
        waves = self.vocoder(log_mels)
        return waves if self.wave_gain == 1.0 else waves * np.float32(self.wave_gain)

    def decode_audio(self, latents: np.ndarray, *, seconds: float | None = None) -> np.ndarray:
        """Decode raw latents of whole sounds to waves, by `decode_latents` and `vocode`.

        Args:
          latents: latents (B, Ta, C) without standardisation.
          seconds: length to which the waves are cut; by default they are as long as the latents.

        Returns:
          Waves (B, samples) float32.
        """
        waves = self.vocode(self.decode_latents(latents))
        return waves if seconds is None else waves[:, : round(seconds * self.sample_rate)]

    def save(self, folder: str | os.PathLike) -> None:
        """Write the components' files and then `components.json` into `folder`, creating it if needed.

        Raises:
          FlowleyError: a file cannot be written.
        """
        folder = Path(folder)
        with atomic_write(folder / COMPONENTS_FILE) as partial:
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self._to_json(folder), indent=2) + "\n")
        with name_errors(folder / _EARLIER_FILE):
            (folder / _EARLIER_FILE).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Components":
        """Read the components that `save` wrote.

        Raises:
          FlowleyError: the file is missing or damaged, its version differs, or the codec is not the one that
            the data set was made with. The message names the file.
        """
        path = components_file(folder)
        if not path.exists():
            folders = [child for child in sorted(path.parent.glob("*")) if components_file(child).is_file()]
            hint = f"did you mean {folders[0]}?" if folders else "python -m data_prep.extract writes it"
            raise FlowleyError(f"{path}: no such file; data.records must name its folder; {hint}")
        stored = read_json_object(path)
        try:
            return cls._from_json(stored, Path(folder))
        except FlowleyError as error:
            raise FlowleyError(f"{path}: {error}") from error

    def _to_json(self, folder: Path) -> dict[str, Any]:
        bound = {} if self.log_mel_max is None else {"log_mel_max": self.log_mel_max.tolist()}
        return {
            "version": _VERSION,
            "source": self.source,
            "seconds": self.seconds,
            "video_encoder": self.video_encoder.to_json(folder),
            "text_encoder": self.text_encoder.to_json(folder),
            "codec": self.codec.to_json(folder),
            "vocoder": self.vocoder.to_json(folder),
            "latent_mean": self.latent_mean.tolist(),
            "latent_std": self.latent_std.tolist(),
            **bound,
            "wave_gain": self.wave_gain,
        }

    @classmethod
    def _from_json(cls, stored: Mapping[str, Any], folder: Path) -> "Components":
        version = stored.get("version")
        if version != _VERSION:
            raise FlowleyError(f"has version {version!r}, expected {_VERSION}")
        fields = {field.name for field in dataclasses.fields(cls)}
        # Files of earlier versions lack the bound and the gain.
        check_keys({"log_mel_max": None, "wave_gain": None, **stored}, {"version", *fields}, "the file")
        try:
            codec: AudioCodec = _component_from_json(stored, "codec", folder)
            return cls(
                seconds=float(stored["seconds"]),
                video_encoder=_component_from_json(stored, "video_encoder", folder),
                text_encoder=_component_from_json(stored, "text_encoder", folder),
                codec=codec,
                vocoder=_component_from_json(stored, "vocoder", folder, mel=codec.mel),
                latent_mean=_floats(stored["latent_mean"]),
                latent_std=_floats(stored["latent_std"]),
                log_mel_max=_floats(stored["log_mel_max"]) if "log_mel_max" in stored else None,
                wave_gain=_number(stored.get("wave_gain", 1.0)),
                source=str(stored["source"]),
            )
        except FlowleyError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise FlowleyError(f"a value has the wrong type ({error})") from error


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _floats(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def _component_from_json(
    stored: Mapping[str, Any], role: Role, folder: Path, *, mel: MelConfig | None = None
) -> Any:
    entry = stored[role]
    if not isinstance(entry, Mapping):
        raise FlowleyError(f"{role} must be a JSON object, found {type(entry).__name__}")
    component_type = find_component(role, entry.get("name")).load()
    return component_type.from_json(entry, folder, where=role, mel=mel)
