"""Captions as the prompts of clips that are to be given their sound."""

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data_prep.soundcap.captions import caption_clips
from data_prep.soundcap.look import Viewing
from data_prep.soundcap.models import CaptionModel
from data_prep.soundcap.prompts import CAPTIONS, Prompt
from flowley_jax.data.clip_table import Clip
from flowley_jax.sampling.clips import Source

log = logging.getLogger(__name__)


def with_captions(
    sources: Sequence[Source], model: CaptionModel, folder: Path | None
) -> tuple[list[Source], list[str]]:
    """Clips with captions as their prompts, and a line for each that got none.

    Args:
      folder: where captions are kept and found again; None to keep none.

    Raises:
      FlowleyError: the model answers nothing at all.
    """
    clips = [
        Clip(id=one.id, video_path=one.path, source=str(one.path), caption="", split="", label="")
        for one in sources
    ]
    with tempfile.TemporaryDirectory() as passing:
        captioned = caption_clips(
            clips, folder or Path(passing), model, Prompt.read(CAPTIONS), Viewing(sound=False)
        )
    failed = [
        f"{one.path}: no caption ({captioned.rejected[one.id].detail})"
        for one in sources
        if one.id in captioned.rejected
    ]
    for clip_id, caption in captioned.captions.items():
        log.info("%s: %s", clip_id, caption)
    prompted = [
        dataclasses.replace(one, prompt=captioned.captions[one.id])
        for one in sources
        if one.id in captioned.captions
    ]
    return prompted, failed
