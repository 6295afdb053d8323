"""What makers of data sets share: splits that stay as they are, and Flowley's clip table."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from flowley_jax.data.clip_table import SPLITS, Clip
from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import write_text

_COLUMNS = ("id", "video_path", "text_description", "split", "label")


def place_of(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, and is as good as random."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest()) / 2**48


def clip_of(*, clip_id: str, file: str | Path, caption: str, split: str, label: str) -> Clip:
    """A row; a caption or label is made one line."""
    return Clip(
        id=clip_id,
        video_path=Path(file),
        source=str(file),
        caption=" ".join(caption.split()),
        split=split,
        label=" ".join(label.split()),
    )


def write_clips(path: str | Path, clips: Sequence[Clip]) -> None:
    """Writes a clip table; files below its folder have relative paths.

    Raises:
      FlowleyError: naming the file, if there is no clip, a file's name cannot stand in a table, or the table
        cannot be written.
    """
    if not clips:
        raise FlowleyError(f"{path}: not written, there is no clip")
    folder = Path(path).absolute().parent
    rows = ((clip.id, _written(clip, folder), clip.caption, clip.split, clip.label) for clip in clips)
    write_rows(path, _COLUMNS, rows)


def write_rows(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a TSV.

    Raises:
      FlowleyError: naming the file, if it cannot be written.
    """
    write_text(path, "".join("\t".join(row) + "\n" for row in (header, *rows)))


def counts_line(splits: Iterable[str]) -> str:
    """Such as "3 train, 1 test"."""
    counts = Counter(splits)
    return ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split]) or "none"


def _written(clip: Clip, folder: Path) -> str:
    path = Path(os.path.abspath(clip.video_path))
    written = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
    if any(mark in written for mark in "\t\r\n") or not written.isprintable():
        raise FlowleyError(f"{written!r}: a table cannot hold such a name; rename the file")
    return written
