"""Clips with the keys of their features: digests of everything that the features depend on."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.feature_store import digest
from data_prep.record_components import RecordComponents
from data_prep.storage import content_samples, file_stamps, path_below
from flowley_jax.data.clip_table import SPLITS, TableClip

# Version of how clips are read and named. A new one makes the features of all clips again; 2: by time stamps.
_READING_VERSION = 2


@dataclasses.dataclass(frozen=True)
class KeyedCaption:
    """The text of a caption and the key of its features."""

    text: str
    key: str


@dataclasses.dataclass(frozen=True)
class KeyedClip:
    """A clip and the keys of its features.

    Attributes:
      table_clip: the row of the clip table.
      media_key: key of the features of its video and audio.
      caption: the table's caption.
      more_captions: captions from other sources, by source.
    """

    table_clip: TableClip
    media_key: str
    caption: KeyedCaption
    more_captions: Mapping[str, KeyedCaption]

    @property
    def sort_key(self) -> tuple[int, bytes]:
        """Sort key of the record: by split, then by a hash of the id, whatever the order of the table."""
        return SPLITS.index(self.table_clip.split), hashlib.blake2b(self.table_clip.id.encode()).digest()

    @property
    def identity(self) -> list[Any]:
        """Everything that the record depends on."""
        more = [[source, caption.key] for source, caption in sorted(self.more_captions.items())]
        clip = self.table_clip
        return [clip.id, clip.split, clip.label, self.media_key, self.caption.key, more]


def key_clips(
    table: Sequence[TableClip],
    folder: Path,
    captions: Mapping[str, Mapping[str, str]],
    components: RecordComponents,
) -> list[KeyedClip]:
    """Return clips with their keys, which change with the file, the caption and the settings.

    A key stays when the folder of the table moves together with the clips.

    Args:
      table: the clips.
      folder: folder of the table.
      captions: captions from other sources, by source and id.
      components: settings of the records and their components.
    """
    stamps = file_stamps(clip.source for clip in table)
    samples = content_samples(clip.source for clip in table)
    media_identity, text_identity = components.media_identity, components.text_identity
    optional = components.settings.optional_stream

    def key_media(clip: TableClip) -> str:
        file = (path_below(clip.source, folder), stamps[clip.source], samples[clip.source])
        return digest([_READING_VERSION, *file, optional(clip.split), media_identity])

    def key_caption(text: str) -> KeyedCaption:
        return KeyedCaption(text, digest([text, text_identity]))

    return [
        KeyedClip(
            clip,
            key_media(clip),
            key_caption(clip.caption),
            {source: key_caption(by_id[clip.id]) for source, by_id in captions.items() if by_id.get(clip.id)},
        )
        for clip in table
    ]
