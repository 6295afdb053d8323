"""What records are made with."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flowley_jax.audio.griffin_lim import GriffinLimVocoder
from flowley_jax.audio.mel import MelConfig, mel_preset
from flowley_jax.audio.pca import PcaCodec, check_latent_dim
from flowley_jax.audio.protocols import AudioCodec, Vocoder
from flowley_jax.encoders.hashed_text import HashedTextEncoder
from flowley_jax.encoders.pixels import PixelEncoder
from flowley_jax.encoders.protocols import TextEncoder, VideoEncoder
from flowley_jax.errors import FlowleyError

if TYPE_CHECKING:
    # Parts of published weights are imported where they are opened: processes that decode do without JAX.
    from flowley_jax.audio.vae_codec import VaeCodec
    from flowley_jax.interop.bundles import Bundle

Lack = Literal["", "video", "audio"]
_BUNDLES = {"video": "clip", "text": "t5", "codec": "audio_vae", "vocoder": "bigvgan"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """What the records are made with (`configs/records.py`).

    Attributes:
      published: folder of bundles that parts which are not named below come from; without it they are the
        embedded ones.
      video, text, codec, vocoder: pixels, hashed_words, pca, griffin_lim, or the folder of a bundle.
      seconds: length that every clip is cut to.
      mel: front end of the PCA codec, 16k or 44k, which fixes the sample rate.
      latent_dim: channels of the PCA codec's latents.
      video_fps: frames for each second that the picture encoder sees.
      frame_size: height and width of the embedded encoder's frames.
      text_dim, max_tokens: width of an embedded word vector; longest caption, end of text included.
      pad_seconds: clips that are short by at most this much are padded.
      normalize_peak: scale each track to a peak of 0.95.
      feature_dtype: type of the stored features; float16 halves the records.
      max_seconds, max_frame_rate: longer or faster media are rejected.
      reject_silent, reject_still: whether clips whose sound is silence, or that show one picture throughout,
        are rejected.
      audio_only: clips of the train split that have no video stream are kept, and train with the empty video.
      video_only: clips of the test split that have no audio stream are kept, to be given one.
    """

    published: str = ""
    video: str = ""
    text: str = ""
    codec: str = ""
    vocoder: str = ""
    seconds: float = 4.0
    mel: str = "16k"
    latent_dim: int = 20
    video_fps: float = 24.0
    frame_size: int = 96
    text_dim: int = 64
    max_tokens: int = 32
    pad_seconds: float = 0.0
    normalize_peak: bool = False
    feature_dtype: Literal["float32", "float16"] = "float32"
    max_seconds: float = 3600.0
    max_frame_rate: float = 240.0
    reject_silent: bool = True
    reject_still: bool = True
    audio_only: bool = False
    video_only: bool = False

    def __post_init__(self):
        if not 0.0 < self.seconds < math.inf:
            raise FlowleyError(f"seconds={self.seconds} must be positive")
        if not self.pad_seconds >= 0.0:
            raise FlowleyError(f"pad_seconds={self.pad_seconds} must be at least 0")
        if self.feature_dtype not in ("float32", "float16"):
            raise FlowleyError(f"feature_dtype={self.feature_dtype!r} must be float32 or float16")

    def __getstate__(self):
        # Encoders are opened again in another process.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def part(self, kind: Literal["video", "text", "codec", "vocoder"]) -> str:
        """Name of an embedded part, or the folder of a bundle."""
        chosen: str = getattr(self, kind)
        if chosen or not self.published:
            return chosen or _EMBEDDED[kind]
        return str(Path(self.published) / _BUNDLES[kind])

    @functools.cached_property
    def video_encoder(self) -> VideoEncoder:
        if self.part("video") == PixelEncoder.name:
            return PixelEncoder(fps=self.video_fps, frame_size=self.frame_size)
        from flowley_jax.encoders.clip_frames import ClipFrames

        return ClipFrames(bundle=_bundle(self.part("video")), fps=self.video_fps)

    @functools.cached_property
    def text_encoder(self) -> TextEncoder:
        if self.part("text") == HashedTextEncoder.name:
            return HashedTextEncoder(dim=self.text_dim, max_tokens=self.max_tokens)
        from flowley_jax.encoders.t5_text import T5Text

        return T5Text(bundle=_bundle(self.part("text")))

    @functools.cached_property
    def fixed_codec(self) -> "VaeCodec | None":
        """A codec of published weights; None for the embedded one, which is fitted to the clips."""
        codec = self.part("codec")
        if codec == PcaCodec.name:
            return None
        from flowley_jax.audio.vae_codec import VaeCodec

        return VaeCodec(bundle=_bundle(codec))

    def check(self) -> None:
        """Raises a FlowleyError for what no record can be made with, before any clip is read."""
        if not round(self.seconds * self.video_fps):
            raise FlowleyError(f"seconds={self.seconds:g} has no frame at video_fps={self.video_fps:g}")
        if not self.fixed_codec:
            check_latent_dim(self.latent_dim, self.mel_config)
        if self.part("vocoder") == GriffinLimVocoder.name:
            return
        wanted = self.mel_config.sample_rate
        made = _published_vocoder(self.part("vocoder")).sample_rate
        if made != wanted:
            raise FlowleyError(
                f"vocoder {self.part('vocoder')} makes {made} Hz, codec {self.part('codec')} {wanted} Hz "
                "(--config.mel for pca); they must be the same"
            )

    @property
    def mel_config(self) -> MelConfig:
        """That of the codec."""
        return self.fixed_codec.mel if self.fixed_codec else mel_preset(self.mel)

    def vocoder_for(self, codec: AudioCodec) -> Vocoder:
        """What makes waves of the codec's frames."""
        if self.part("vocoder") == GriffinLimVocoder.name:
            return GriffinLimVocoder(mel=codec.mel)
        return _published_vocoder(self.part("vocoder"))

    def may_lack(self, split: str) -> Lack:
        """A stream without which a clip of a split can be used."""
        if split == "train" and self.audio_only:
            return "video"
        return "audio" if split == "test" and self.video_only else ""

    @property
    def media_identity(self) -> list:
        """All that the features of picture and sound depend on, besides the file."""
        taken = ("seconds", "video_fps", "frame_size", "pad_seconds", "normalize_peak", "max_seconds")
        taken += ("max_frame_rate", "reject_silent", "reject_still", "feature_dtype")
        codec = self.fixed_codec.bundle.sha256 if self.fixed_codec else self.mel
        return [*_identity_of(self.video_encoder), codec, *(getattr(self, name) for name in taken)]

    @property
    def text_identity(self) -> list:
        """All that the features of a caption depend on, besides the caption."""
        return [*_identity_of(self.text_encoder), self.text_dim, self.max_tokens, self.feature_dtype]

    @property
    def identity(self) -> list:
        """All that the records depend on, besides the clips."""
        vocoder = self.part("vocoder")
        made = vocoder if vocoder == GriffinLimVocoder.name else _bundle(vocoder).sha256
        return [self.media_identity, self.text_identity, made, self.latent_dim]


_EMBEDDED = {
    "video": PixelEncoder.name,
    "text": HashedTextEncoder.name,
    "codec": PcaCodec.name,
    "vocoder": GriffinLimVocoder.name,
}


def _identity_of(encoder) -> list:
    bundle = getattr(encoder, "bundle", None)
    return [encoder.name, encoder.version, bundle.sha256 if bundle else None]


def _published_vocoder(folder: str) -> Vocoder:
    from flowley_jax.audio.bigvgan_vocoder import BigVganVocoder

    return BigVganVocoder(bundle=_bundle(folder))


def _bundle(folder: str) -> "Bundle":
    from flowley_jax.interop.bundles import Bundle

    return Bundle.open(folder)
