"""Caption clips and use the captions as the prompts for sampling their sounds."""

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data_prep.soundcap.captions import caption_clips
from data_prep.soundcap.clip_view import ViewConfig
from data_prep.soundcap.models import CaptionModel
from data_prep.soundcap.prompts import CAPTIONS, Prompt
from flowley_jax.data.clip_table import TableClip
from flowley_jax.sampling.inputs import InputClip

log = logging.getLogger(__name__)


def with_captions(
    clips: Sequence[InputClip], model: CaptionModel, folder: Path | None
) -> tuple[list[InputClip], list[str]]:
    """Caption clips, and return the captioned ones with their caption as the prompt.

    Args:
      clips: videos to caption; their own prompts are ignored.
      model: model that writes the captions from the picture.
      folder: where captions are kept and reused; None keeps none.

    Returns:
      Two lists: the clips to sample, each with its caption as the prompt or with a fault that the caller
      reports; and one line for every other clip.

    Raises:
      FlowleyError: the model answers nothing at all.
    """
    good = [clip for clip in clips if not clip.fault]
    rows = [
        TableClip(id=clip.id, video_path=clip.path, source=str(clip.path), caption="", split="", label="")
        for clip in good
        if clip.path
    ]
    with tempfile.TemporaryDirectory() as temporary:
        result = caption_clips(
            rows, folder or Path(temporary), model, Prompt.read(CAPTIONS), ViewConfig(sound=False)
        )
    for clip_id, caption in result.captions.items():
        log.info("%s: %s", clip_id, caption)
    captioned = [
        dataclasses.replace(clip, prompt=result.captions.get(clip.id, ""))
        for clip in clips
        if clip.fault or clip.id in result.captions
    ]
    failed = [
        f"{clip.name}: no caption ({result.rejected[clip.id].detail})"
        for clip in good
        if clip.id in result.rejected
    ]
    return captioned, failed
