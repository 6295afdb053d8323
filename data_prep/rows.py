"""The clips of a table, and the keys of the features that each of them needs."""

import csv
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_prep.files import stamps_of
from data_prep.settings import RecordSettings
from data_prep.store import digest_of
from flowley_jax.data.clip_table import SPLITS, Clip
from flowley_jax.data.record import TABLE_CAPTIONS
from flowley_jax.errors import FlowleyError

Captions = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Text:
    """A caption and the key of its features."""

    caption: str
    key: str


@dataclasses.dataclass(frozen=True)
class Row:
    """A clip and the keys of its features.

    Attributes:
      media: key of the features of picture and sound.
      text: the table's caption.
      more: captions of other sources.
    """

    clip: Clip
    media: str
    text: Text
    more: Mapping[str, Text]

    @property
    def place(self) -> tuple[int, bytes]:
        """Of its record: split by split, and within one as good as random, but the same in any table."""
        return SPLITS.index(self.clip.split), hashlib.blake2b(self.clip.id.encode()).digest()

    @property
    def identity(self) -> list:
        """All that its record depends on."""
        more = [[source, text.key] for source, text in sorted(self.more.items())]
        return [self.clip.id, self.clip.split, self.clip.label, self.media, self.text.key, more]


def rows_of(table: Sequence[Clip], captions: Mapping[str, Captions], settings: RecordSettings) -> list[Row]:
    """Clips with their keys, which change with the file, the caption and the settings.

    Args:
      captions: for each other source, captions by id.
    """
    stamps = stamps_of(clip.source for clip in table)
    media, text = settings.media_identity, settings.text_identity

    def of_text(caption: str) -> Text:
        return Text(caption, digest_of([caption, text]))

    return [
        Row(
            clip,
            digest_of(
                [clip.video_path.name, stamps[clip.source], settings.may_lack(clip.split), media],
            ),
            of_text(clip.caption),
            {source: of_text(by_id[clip.id]) for source, by_id in captions.items() if by_id.get(clip.id)},
        )
        for clip in table
    ]


def named_files(texts: Iterable[str]) -> dict[str, str]:
    """Files by source, of words NAME=FILE of a command line.

    Raises:
      FlowleyError: for a word of another form, or a source that is named twice.
    """
    files: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise FlowleyError(f"--captions={text} must be NAME=FILE")
        if name in files:
            raise FlowleyError(f"--captions={text}: {name} is {files[name]} already")
        files[name] = path
    return files


def read_captions(files: Mapping[str, str | Path]) -> dict[str, dict[str, str]]:
    """Captions by source and id.

    Args:
      files: for each source a TSV with the columns id and caption, as `data_prep.soundcap` writes it.

    Raises:
      FlowleyError: naming the file (and line), if it is missing, lacks a column or has an id twice, or if a
        source cannot be called so.
    """
    return {source: _read_captions(source, Path(path)) for source, path in files.items()}


def _read_captions(source: str, path: Path) -> dict[str, str]:
    if source == TABLE_CAPTIONS or not source.isidentifier():
        raise FlowleyError(f"{path}: a source of captions cannot be called {source!r}")
    captions: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if missing := {"id", "caption"} - set(reader.fieldnames or ()):
                raise FlowleyError(f"{path}: no column {', '.join(sorted(missing))}; expected id, caption")
            for row in reader:
                if row["id"] in captions:
                    raise FlowleyError(f"{path}, line {reader.line_num}: id {row['id']!r} occurs twice")
                captions[row["id"]] = (row["caption"] or "").strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FlowleyError(f"{path}: cannot be read as captions ({error})") from error
    return captions
