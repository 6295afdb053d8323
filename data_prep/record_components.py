"""The encoders, codec and vocoder that `RecordSettings` name, and lists of what records depend on."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.settings import RecordSettings
from flowley_jax.audio.mel import MelConfig, mel_preset
from flowley_jax.audio.protocols import AudioCodec, FittedCodec, Vocoder
from flowley_jax.data.component_registry import Role, embedded_component, pretrained_component
from flowley_jax.data.components import Components, components_file
from flowley_jax.encoders.protocols import TextEncoder, VideoEncoder
from flowley_jax.errors import FlowleyError

if TYPE_CHECKING:
    # Published components import JAX, so they are imported only where they are opened.
    from flowley_jax.interop.bundles import Bundle


class RecordComponents:
    """The components that the settings name, each opened when it is first used."""

    def __init__(self, settings: RecordSettings):
        """Create the components; nothing is opened yet."""
        self.settings = settings

    @functools.cached_property
    def video_encoder(self) -> VideoEncoder:
        """The image encoder."""
        fps, size = self.settings.video_fps, self.settings.frame_size
        return self._open("video_encoder", embedded={"fps": fps, "frame_size": size}, published={"fps": fps})

    @functools.cached_property
    def text_encoder(self) -> TextEncoder:
        """The text encoder."""
        dim, max_tokens = self.settings.text_dim, self.settings.max_tokens
        return self._open("text_encoder", embedded={"dim": dim, "max_tokens": max_tokens})

    @property
    def fitted_codec(self) -> type[FittedCodec] | None:
        """The class of the codec if it has to be fitted to the clips, or else None."""
        entry = embedded_component("codec", self.settings.component("codec"))
        codec_type = entry.load() if entry else None
        return codec_type if codec_type and codec_type.needs_fitting else None

    @functools.cached_property
    def codec(self) -> AudioCodec | None:
        """The codec, or None if it has to be fitted to the clips first."""
        if self.fitted_codec:
            return None
        return self.model.codec if self.model else self._open("codec")

    @functools.cached_property
    def model(self) -> Components | None:
        """The components of the run or records whose codec is used, or None if there is none."""
        folder = self.settings.component("codec")
        return load_model_components(folder) if is_model(folder) else None

    @property
    def reading_codec(self) -> AudioCodec | None:
        """The codec that encodes clips as they are read; None for a kind that is fitted to clips."""
        return self.codec if self.codec and not self.codec.needs_fitting else None

    @property
    def mel(self) -> MelConfig:
        """The mel front end of the codec."""
        return self.codec.mel if self.codec else mel_preset(self.settings.mel)

    def vocoder_for(self, codec: AudioCodec) -> Vocoder:
        """Return the vocoder for the codec's mel frames."""
        return self._open_vocoder(codec.mel)

    def open_all(self) -> None:
        """Open every component that makes features, before several threads ask for them at once."""
        _ = self.video_encoder, self.text_encoder, self.codec

    def check(self) -> None:
        """Check the settings before any clip is read.

        Raises:
          FlowleyError: no record can be made with these settings.
        """
        settings = self.settings
        if not round(settings.seconds * settings.video_fps):
            raise FlowleyError(
                f"seconds={settings.seconds:g} has no frame at video_fps={settings.video_fps:g}"
            )
        if self.fitted_codec:
            self.fitted_codec.check_fit(mel=self.mel, latent_dim=settings.latent_dim)
        wanted, rate = self.mel.sample_rate, self._open_vocoder(self.mel).sample_rate
        if rate != wanted:
            codec, vocoder = settings.component("codec"), settings.component("vocoder")
            raise FlowleyError(
                f"vocoder {vocoder} produces {rate} Hz, and codec {codec} has {wanted} Hz "
                "(--config.mel for pca); they must be the same"
            )

    # Digests of the lists below name stored features and identify records: a change makes all of them again.

    @property
    def media_identity(self) -> list[Any]:
        """Everything that the features of video and audio depend on, besides the file."""
        names = ("seconds", "video_fps", "frame_size", "pad_seconds", "normalize_peak", "max_seconds")
        names += ("max_frame_rate", "reject_silent", "reject_still", "feature_dtype")
        # A fitted codec encodes when records are written, so its features depend on the front end alone.
        codec = self.reading_codec.weights_sha256 if self.reading_codec else self.mel.name
        values = (getattr(self.settings, name) for name in names)
        return [*_encoder_identity(self.video_encoder), codec, *values]

    @property
    def text_identity(self) -> list[Any]:
        """Everything that the features of a caption depend on, besides the caption."""
        settings = self.settings
        values = (settings.text_dim, settings.max_tokens, settings.feature_dtype)
        return [*_encoder_identity(self.text_encoder), *values]

    @property
    def identity(self) -> list[Any]:
        """Everything that the records depend on, besides the clips."""
        vocoder = self._open_vocoder(self.mel)
        identity = vocoder.weights_sha256 or vocoder.name
        fitted_before = [self.codec.identity] if self.codec and not self.reading_codec else []
        return [self.media_identity, self.text_identity, identity, self.settings.latent_dim, *fitted_before]

    def _open_vocoder(self, mel: MelConfig) -> Vocoder:
        return self._open("vocoder", embedded={"mel": mel})

    def _open(
        self,
        role: Role,
        *,
        embedded: Mapping[str, Any] | None = None,
        published: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the component of a role.

        Args:
          role: role of the component.
          embedded: arguments of an embedded component.
          published: arguments of a published component, besides its bundle.
        """
        choice = self.settings.component(role)
        entry = embedded_component(role, choice)
        if entry:
            return entry.load()(**(embedded or {}))
        bundle = _open_bundle(choice)
        return pretrained_component(role, bundle.format).load()(bundle=bundle, **(published or {}))


def is_model(folder: str) -> bool:
    """Return whether a folder holds a run or records, and so the components of a model."""
    return components_file(folder).is_file() or (Path(folder) / "config.json").is_file()


def load_model_components(folder: str) -> Components:
    """Return the components in a folder of a run or of records.

    Raises:
      FlowleyError: the folder holds neither, or its components are damaged.
    """
    if folder.startswith("hf:"):
        from flowley_jax.runs.hub_models import local_folder

        folder = str(local_folder(folder))
    if components_file(folder).is_file():
        return Components.load(folder)
    if not is_model(folder):
        raise FlowleyError(f"--codec-from {folder}: holds neither a run nor records")
    # It imports JAX, which processes that only read clips do not need.
    from flowley_jax.runs.workdir import load_components

    return load_components(Path(folder))


def _encoder_identity(encoder: VideoEncoder | TextEncoder) -> list[Any]:
    return [encoder.name, encoder.version, encoder.weights_sha256]


def _open_bundle(folder: str) -> "Bundle":
    from flowley_jax.interop.bundles import Bundle

    return Bundle.open(folder)
