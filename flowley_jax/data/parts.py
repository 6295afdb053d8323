"""Everything between media and latents for one data set, kept as `parts.json` and `codec.npz` in a folder.

The folder of the records has them, and training copies them beside its checkpoints: with them, sampling
makes the same features from raw media as the records have, and turns latents back into sound.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowley_jax.audio.bigvgan_vocoder import BigVganVocoder
from flowley_jax.audio.griffin_lim import GriffinLimVocoder
from flowley_jax.audio.mel import MelConfig
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.audio.protocols import AudioCodec, Vocoder, latents_for, samples_for
from flowley_jax.audio.vae_codec import VaeCodec
from flowley_jax.data.record import Dims
from flowley_jax.encoders.clip_frames import ClipFrames
from flowley_jax.encoders.hashed_text import HashedTextEncoder
from flowley_jax.encoders.pixels import PixelEncoder
from flowley_jax.encoders.protocols import TextEncoder, VideoEncoder
from flowley_jax.encoders.t5_text import T5Text
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import Bundle
from flowley_jax.whole_files import replacing

PARTS_FILE = "parts.json"
CODEC_FILE = "codec.npz"
_VERSION = 1
_VIDEO_ENCODERS = {kind.name: kind for kind in (PixelEncoder, ClipFrames)}
_TEXT_ENCODERS = {kind.name: kind for kind in (HashedTextEncoder, T5Text)}
_CODECS = {kind.name: kind for kind in (PcaCodec, VaeCodec)}
_VOCODERS = {kind.name: kind for kind in (GriffinLimVocoder, BigVganVocoder)}
_MIN_LATENT_STD = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """Encoders, codec and vocoder of a data set, and the statistics of its latents.

    Attributes:
      seconds: length of a clip.
      video_encoder, text_encoder, codec, vocoder: see their protocols.
      latent_mean, latent_std: (C,) float32, per channel over the training split; the model standardises
        latents with them, so everything here takes and gives raw latents.
      source: in words, what the data set was made from.
    """

    seconds: float
    video_encoder: VideoEncoder
    text_encoder: TextEncoder
    codec: AudioCodec
    vocoder: Vocoder
    latent_mean: np.ndarray
    latent_std: np.ndarray
    source: str = ""

    def __post_init__(self):
        channels = (self.codec.latent_dim,)
        if self.latent_mean.shape != channels or self.latent_std.shape != channels:
            raise FlowleyError(
                f"latent mean {self.latent_mean.shape} and std {self.latent_std.shape} must be {channels}"
            )
        constant = np.flatnonzero(~(self.latent_std >= _MIN_LATENT_STD))
        if constant.size:
            raise FlowleyError(
                f"latent channel {constant[0]} does not vary over the training split; choose fewer than "
                f"{self.codec.latent_dim} latent channels or give more varied sound"
            )
        if not self.seconds > 0 or self.audio_length < 1 or self.video_length < 1:
            raise FlowleyError(f"clips of {self.seconds} s are too short for one latent and one frame")
        if self.vocoder.sample_rate != self.codec.sample_rate:
            raise FlowleyError(
                f"vocoder {self.vocoder.name} makes {self.vocoder.sample_rate} Hz, codec {self.codec.name} "
                f"{self.codec.sample_rate} Hz; they must be the same"
            )

    @property
    def sample_rate(self) -> int:
        """Of the sound, in Hz."""
        return self.codec.sample_rate

    @property
    def video_fps(self) -> float:
        """Frames for each second that the video encoder sees."""
        return self.video_encoder.fps

    @property
    def audio_length(self) -> int:
        """Latents Ta of a clip."""
        return self.audio_length_for(self.seconds)

    @property
    def audio_samples(self) -> int:
        """Samples that Ta latents cover: what is read of a clip, at most a latent longer than `seconds`."""
        return samples_for(self.seconds, self.codec.mel)

    @property
    def video_length(self) -> int:
        """Frames Tv of a clip."""
        return self.video_length_for(self.seconds)

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Ta, Tv and Tt of a clip."""
        return self.audio_length, self.video_length, self.text_encoder.max_tokens

    @property
    def dims(self) -> Dims:
        """Sizes of an example of the records."""
        return Dims(
            audio_length=self.audio_length,
            audio_dim=self.codec.latent_dim,
            video_length=self.video_length,
            video_dim=self.video_encoder.dim,
            text_length=self.text_encoder.max_tokens,
            text_dim=self.text_encoder.dim,
        )

    def audio_length_for(self, seconds: float) -> int:
        """Latents that cover `seconds` of sound."""
        return latents_for(seconds, self.codec.mel)

    def video_length_for(self, seconds: float) -> int:
        """Frames of `seconds` of video."""
        return round(seconds * self.video_fps)

    def features_of_video(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) uint8, of the encoder's rate and size, to features (T, video_dim) float32."""
        return self.video_encoder(frames)

    def features_of_text(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """N captions to features (N, Tt, text_dim) float32 and lengths (N,) int32."""
        return self.text_encoder(captions)

    def encode_audio(self, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Waves (B, samples) to mean and standard deviation of raw latents, each (B, Ta, C) float32."""
        return self.codec.encode(waves)

    def decode_audio(self, latents: np.ndarray, *, seconds: float | None = None) -> np.ndarray:
        """Raw latents (B, Ta, C) to waves (B, samples) float32.

        Args:
          latents: what the model samples, with its standardisation undone.
          seconds: length to cut the waves to; by default all that the latents cover.
        """
        waves = self.vocoder(self.codec.decode(latents))
        return waves if seconds is None else waves[:, : round(seconds * self.sample_rate)]

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `codec.npz` and then `parts.json` into `folder`, which is made if missing.

        Raises:
          FlowleyError: if the disk refuses.
        """
        folder = Path(folder)
        with replacing(folder / PARTS_FILE) as partial:
            folder.mkdir(parents=True, exist_ok=True)
            codec = _store_codec(self.codec, folder)
            partial.write_text(json.dumps(self._to_json(codec), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Parts":
        """Reads what `save` wrote.

        Raises:
          FlowleyError: naming the file, if it is missing, damaged, of another version, or if the codec is
            not the one that the data set was made with.
        """
        path = Path(folder) / PARTS_FILE
        try:
            stored = json.loads(path.read_text())
        except FileNotFoundError as error:
            below = next((found.parent for found in sorted(path.parent.glob(f"*/{PARTS_FILE}"))), None)
            hint = f"meant is perhaps {below}" if below else "python -m data_prep.extract writes it"
            raise FlowleyError(f"{path}: no such file; data.records names its folder; {hint}") from error
        except (OSError, ValueError) as error:
            raise FlowleyError(f"{path}: cannot be read as JSON ({error})") from error
        try:
            return cls._from_json(stored, Path(folder))
        except FlowleyError as error:
            raise FlowleyError(f"{path}: {error}") from error

    def _to_json(self, codec: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "source": self.source,
            "seconds": self.seconds,
            "video_encoder": {"version": self.video_encoder.version, **_stored(self.video_encoder)},
            "text_encoder": {"version": self.text_encoder.version, **_stored(self.text_encoder)},
            "codec": codec,
            "vocoder": _stored(self.vocoder),
            "latent_mean": self.latent_mean.tolist(),
            "latent_std": self.latent_std.tolist(),
        }

    @classmethod
    def _from_json(cls, stored: Any, folder: Path) -> "Parts":
        version = stored.get("version") if isinstance(stored, Mapping) else None
        if version != _VERSION:
            raise FlowleyError(f"version {version!r}, expected {_VERSION}")
        fields = {field.name for field in dataclasses.fields(cls)}
        _check_keys(stored, {"version", *fields}, "the file")
        try:
            codec = _load_codec(stored["codec"], folder)
            return cls(
                seconds=float(stored["seconds"]),
                video_encoder=_part(stored["video_encoder"], _VIDEO_ENCODERS, "video_encoder"),
                text_encoder=_part(stored["text_encoder"], _TEXT_ENCODERS, "text_encoder"),
                codec=codec,
                vocoder=_part(stored["vocoder"], _VOCODERS, "vocoder", mel=codec.mel),
                latent_mean=np.asarray(stored["latent_mean"], np.float32),
                latent_std=np.asarray(stored["latent_std"], np.float32),
                source=str(stored["source"]),
            )
        except (TypeError, ValueError) as error:
            raise FlowleyError(f"a value has the wrong type ({error})") from error


def _store_codec(codec: AudioCodec, folder: Path) -> dict[str, Any]:
    """What `parts.json` says of a codec; that of the embedded one is a file beside it."""
    if not isinstance(codec, PcaCodec):
        return _stored(codec)
    path = folder / CODEC_FILE
    codec.save(path)
    return {
        "name": codec.name,
        "mel": codec.mel.name,
        "latent_dim": codec.latent_dim,
        "file": CODEC_FILE,
        "sha256": _digest(path),
    }


def _load_codec(stored: Any, folder: Path) -> AudioCodec:
    name = stored.get("name") if isinstance(stored, Mapping) else None
    _check_name(name, _CODECS, "codec")
    if name != PcaCodec.name:
        return _part(stored, _CODECS, "codec")
    _check_keys(stored, {"name", "mel", "latent_dim", "file", "sha256"}, "codec")
    path = folder / CODEC_FILE
    if stored["file"] != CODEC_FILE:
        raise FlowleyError(f"codec.file is {stored['file']!r}, expected {CODEC_FILE!r}")
    codec = PcaCodec.load(path)
    if _digest(path) != stored["sha256"]:
        raise FlowleyError(f"{path} is not the codec of this data set (its SHA-256 differs)")
    if (codec.mel.name, codec.latent_dim) != (stored["mel"], stored["latent_dim"]):
        raise FlowleyError(
            f"{path} has mel {codec.mel.name} and {codec.latent_dim} channels, "
            f"expected {stored['mel']} and {stored['latent_dim']}"
        )
    return codec


def _stored(part: Any) -> dict[str, Any]:
    """A part's name and settings; the mel front end is the codec's, a bundle its manifest and its folder."""
    settings = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    if "bundle" in settings:
        settings["bundle"] = settings["bundle"].to_json()
    settings.pop("mel", None)
    return {"name": part.name, **settings}


def _part(stored: Any, kinds: Mapping[str, Any], where: str, *, mel: MelConfig | None = None) -> Any:
    """Makes a part from its name and settings; its version, if it has one, must be that of the code."""
    if not isinstance(stored, Mapping):
        raise FlowleyError(f"{where} must be a JSON object, found {type(stored).__name__}")
    name = stored.get("name")
    _check_name(name, kinds, where)
    kind = kinds[str(name)]
    version = getattr(kind, "version", None)
    settings = {field.name for field in dataclasses.fields(kind)}
    expected = {"name", *settings} - {"mel"} | ({"version"} if version else set())
    _check_keys(stored, expected, where)
    if version and stored["version"] != version:
        raise FlowleyError(
            f"{where} {name!r} is of version {stored['version']}, this program has {version}; "
            "prepare the records again"
        )
    made = {key: stored[key] for key in expected - {"name", "version"}}
    if "bundle" in settings:
        made["bundle"] = Bundle.from_json(made["bundle"])
    if "mel" in settings:
        made["mel"] = mel
    return kind(**made)


def _check_name(name: Any, known: Mapping[str, type], where: str) -> None:
    if name not in known:
        raise FlowleyError(f"{where} {name!r} is unknown; there are {', '.join(sorted(known))}")


def _check_keys(stored: Any, expected: set[str], where: str) -> None:
    if not isinstance(stored, Mapping):
        raise FlowleyError(f"{where} must be a JSON object, found {type(stored).__name__}")
    missing, unknown = sorted(expected - set(stored)), sorted(set(stored) - expected)
    if missing or unknown:
        raise FlowleyError(f"{where}: missing keys {missing}, unknown keys {unknown}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
