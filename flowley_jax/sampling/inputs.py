"""List the clips to sample sound for: one file, a folder of files, or a clip table."""

import dataclasses
import logging
from pathlib import Path

from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.media.formats import VIDEO_SUFFIXES, is_video

log = logging.getLogger(__name__)
_MAX_SKIPPED_NAMES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputClip:
    """Video file to sample sound for.

    Attributes:
      id: name of the sound's file, without extension.
      path: the video file.
      prompt: text that describes the sound; empty for none.
    """

    id: str
    path: Path
    prompt: str


def find_inputs(video: Path, *, prompt: str | None, split: str | None) -> list[InputClip]:
    """List the clips that `video` names; log which files of a folder are skipped.

    Args:
      video: a video file, a folder of them, or a .tsv table with the columns video_path and
        text_description, and optionally id and split; its paths are relative to the table.
      prompt: prompt of every clip; None takes a table's captions, and no prompt elsewhere.
      split: rows of a table to take; None takes all.

    Raises:
      FlowleyError: the path is missing, the folder holds no video or two of one name, or the table is
        empty, lacks a column or has no row of the split.
    """
    if not video.exists():
        raise FlowleyError(f"{video}: no such file or folder")
    if video.is_dir():
        return [InputClip(id=path.stem, path=path, prompt=prompt or "") for path in _videos_in(video)]
    if video.suffix.lower() == ".tsv":
        return _read_table(video, prompt=prompt, split=split)
    return [InputClip(id=video.stem, path=video, prompt=prompt or "")]


def _videos_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if not path.is_dir() and not path.name.startswith("."))
    videos = [path for path in files if is_video(path)]
    skipped = [path.name for path in files if not is_video(path)]
    if not videos:
        raise FlowleyError(f"{folder}: no video in this folder ({', '.join(VIDEO_SUFFIXES)})")
    if skipped:
        more = ", …" if len(skipped) > _MAX_SKIPPED_NAMES else ""
        log.info(
            "skipped %d %s: %s%s",
            len(skipped),
            "file that is not a video" if len(skipped) == 1 else "files that are not videos",
            ", ".join(skipped[:_MAX_SKIPPED_NAMES]),
            more,
        )
    stems = [path.stem for path in videos]
    duplicates = sorted({stem for stem in stems if stems.count(stem) > 1})
    if duplicates:
        raise FlowleyError(
            f"{folder}: several videos are called {duplicates[0]}; their sounds would overwrite each other"
        )
    return videos


def _read_table(table: Path, *, prompt: str | None, split: str | None) -> list[InputClip]:
    rows = read_clip_table(table, columns=("video_path", "text_description"))
    chosen = [row for row in rows if split is None or row.split == split]
    if not chosen:
        raise FlowleyError(f"{table}: no row of the split {split!r}")
    return [
        InputClip(id=row.id, path=row.video_path, prompt=row.caption if prompt is None else prompt)
        for row in chosen
    ]
