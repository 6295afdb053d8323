"""The sizes of a training example."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dims:
    """Sizes of one example.

    Attributes:
      audio_length, audio_dim: number of latents Ta, and their channels.
      video_length, video_dim: number of frames Tv, and the width of their features.
      text_length, text_dim: padded number of tokens Tt, and the width of their features.
      feature_dtype: stored type of the video and text features.
      more_captions: caption sources besides the clip table.
    """

    audio_length: int
    audio_dim: int
    video_length: int
    video_dim: int
    text_length: int
    text_dim: int
    feature_dtype: Literal["float32", "float16"] = "float32"
    more_captions: tuple[str, ...] = ()
