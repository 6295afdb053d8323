"""Which clips a command line means: one file, a folder of files, or a clip table."""

import dataclasses
from pathlib import Path

from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A video file with its id and prompt."""

    id: str
    path: Path
    prompt: str


def find_sources(video: Path, *, prompt: str | None, split: str | None) -> list[Source]:
    """Lists the clips behind `video`.

    Args:
      video: a video file, a folder, or a .tsv table with the columns video_path and text_description
        (paths relative to the table; also `id` and `split` if present).
      prompt: for every clip; a table's own captions are used where this is None.
      split: only these rows of a table.

    Raises:
      FlowleyError: the path is missing, holds no video, or the table is empty or lacks a column.
    """
    if not video.exists():
        raise FlowleyError(f"{video}: no such file or folder")
    if video.is_dir():
        paths = sorted(path for path in video.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
        if not paths:
            raise FlowleyError(f"{video}: no video in this folder ({', '.join(VIDEO_SUFFIXES)})")
        stems = [path.stem for path in paths]
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        if twice:
            raise FlowleyError(
                f"{video}: several videos are called {twice[0]}; their sounds would overwrite each other"
            )
        return [Source(id=path.stem, path=path, prompt=prompt or "") for path in paths]
    if video.suffix.lower() == ".tsv":
        return _read_table(video, prompt=prompt, split=split)
    return [Source(id=video.stem, path=video, prompt=prompt or "")]


def _read_table(table: Path, *, prompt: str | None, split: str | None) -> list[Source]:
    clips = read_clip_table(table, columns=("video_path", "text_description"))
    chosen = [clip for clip in clips if split is None or clip.split == split]
    if not chosen:
        raise FlowleyError(f"{table}: no row of the split {split!r}")
    return [
        Source(id=clip.id, path=clip.video_path, prompt=clip.caption if prompt is None else prompt)
        for clip in chosen
    ]
