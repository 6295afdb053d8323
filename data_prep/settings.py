"""The settings of records, as `configs/records.py` and the command line give them."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from flowley_jax.common.ranges import SECONDS, NotNegative, Positive, Range
from flowley_jax.common.typed import check_values
from flowley_jax.data.component_registry import Role, default_component, pretrained_component

# The stream that a clip may lack; "" for none.
OptionalStream = Literal["", "video", "audio"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """Everything that records depend on, besides the clips.

    Attributes:
      published: folder with bundles of published weights, for every component that is not chosen below; empty
        for the embedded components, which need no weights.
      video: image encoder: `pixels`, or the folder of a bundle.
      text: text encoder: `hashed_words`, or the folder of a bundle.
      codec: audio codec: `pca`, which is fitted to the training clips; the folder of a bundle; or the folder
        of a run or of records, whose codec is used.
      vocoder: vocoder: `griffin_lim`, or the folder of a bundle.
      seconds: length in seconds to which every clip is cut.
      mel: mel front end of the PCA codec, `16k` or `44k`; it sets the sample rate.
      latent_dim: latent channels of the PCA codec.
      video_fps: frames per second that the image encoder gets.
      frame_size: height and width in pixels of the frames that the embedded image encoder gets.
      text_dim: width of the embedded text encoder's word vectors.
      max_tokens: maximum number of tokens per caption of the embedded text encoder, including the end token.
      pad_seconds: clips that are too short by at most this many seconds are padded.
      normalize_peak: scale every audio track to a peak of 0.95.
      feature_dtype: type of the stored features, `float32` or `float16`; float16 halves the records.
      max_seconds: clips that last longer, in seconds, are rejected.
      max_frame_rate: clips with more frames per second are rejected.
      reject_silent: reject clips whose audio is silent.
      reject_still: reject clips that show the same picture throughout.
      audio_only: keep clips of the train split without a video stream; they train with the video dropped.
      video_only: keep clips of the test split without an audio stream.
    """

    published: str = ""
    video: str = ""
    text: str = ""
    codec: str = ""
    vocoder: str = ""
    seconds: Annotated[float, SECONDS] = 4.0
    mel: Literal["16k", "44k"] = "16k"
    latent_dim: Annotated[int, Range(least=1, most=256)] = 20
    video_fps: Annotated[float, Range(least=0.1, most=1000)] = 24.0
    frame_size: Annotated[int, Range(least=8, most=8192)] = 96
    text_dim: Annotated[int, Range(least=1, most=65_536)] = 64
    max_tokens: Annotated[int, Range(least=1, most=65_536)] = 32
    pad_seconds: NotNegative = 0.0
    normalize_peak: bool = False
    feature_dtype: Literal["float32", "float16"] = "float32"
    max_seconds: Positive = 3600.0
    max_frame_rate: Positive = 240.0
    reject_silent: bool = True
    reject_still: bool = True
    audio_only: bool = False
    video_only: bool = False

    def __post_init__(self):
        check_values(self, "")

    def component(self, role: Role) -> str:
        """Return the name of the embedded component, or the folder of the bundle, to use for a role."""
        chosen: str = getattr(self, role.removesuffix("_encoder"))
        if chosen or not self.published:
            return chosen or default_component(role).name
        return str(Path(self.published) / pretrained_component(role).bundle_format)

    def optional_stream(self, split: str) -> OptionalStream:
        """Return the stream that clips of a split may lack."""
        if split == "train" and self.audio_only:
            return "video"
        return "audio" if split == "test" and self.video_only else ""
