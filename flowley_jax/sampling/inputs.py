"""List the clips to sample sound for: one file, a folder of files, or a clip table."""

import dataclasses
import logging
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.media.formats import VIDEO_SUFFIXES, is_video
from flowley_jax.sampling.sample_log import SAMPLE_LOG_FILE, SampleLog

log = logging.getLogger(__name__)
_MAX_SKIPPED_NAMES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputClip:
    """Video file to sample sound for.

    Attributes:
      id: name of the sound's file, without extension.
      path: the video file.
      prompt: text that describes the sound; empty for none.
      fault: why no sound can be sampled for the clip; empty if nothing is known against it.
    """

    id: str
    path: Path
    prompt: str
    fault: str = ""


def find_inputs(
    video: Path, *, prompt: str | None, split: str | None, out: Path | None = None
) -> list[InputClip]:
    """List the clips that `video` names; log which files of a folder are skipped.

    Args:
      video: a video file, a folder of them, or a .tsv table with the columns video_path and
        text_description, and optionally id and split; its paths are relative to the table.
      prompt: prompt of every clip; None takes a table's captions, and elsewhere the text of a .txt file of
        the video's name.
      split: rows of a table to take; None takes all.
      out: where the sounds go; if it is the folder of the videos, earlier sounds in it are left out.

    Raises:
      FlowleyError: the path is missing, the folder holds no video, `split` is given without a table, or the
        table is empty, lacks a column or has no row of the split.
    """
    video = on_disk(video)
    if not os.path.exists(video):
        raise FlowleyError(f"{video}: no such file or folder")
    is_table = video.suffix.lower() == ".tsv" and not video.is_dir()
    if split is not None and not is_table:
        raise FlowleyError(f"--split {split}: only a clip table has splits, and {video} is none")
    if is_table:
        return _read_table(video, prompt=prompt, split=split)
    videos = _videos_in(video, out) if video.is_dir() else [video]
    clips = [_clip(path, prompt) for path in videos]
    if prompt is None and (prompted := sum(bool(clip.prompt) for clip in clips)):
        log.info("prompts from .txt files: %d of %d clips", prompted, len(clips))
    return clips


def on_disk(path: Path) -> Path:
    """Return the path under the name that the disk has for it.

    Names with accents and the like have two Unicode forms, and file systems and archives change one into the
    other. A path that exists in neither form is returned as it is.
    """
    if os.path.lexists(path) or path.parent == path:
        return path
    parent = on_disk(path.parent)
    name = unicodedata.normalize("NFC", path.name)
    try:
        names = sorted(os.listdir(parent))
    except OSError:
        return path
    found = next((other for other in names if unicodedata.normalize("NFC", other) == name), None)
    return path if found is None else parent / found


def _clip(path: Path, prompt: str | None) -> InputClip:
    clip = InputClip(id=path.stem, path=path, prompt=prompt or "")
    file = path.with_suffix(".txt")
    if prompt is not None or not os.path.isfile(file):
        return clip
    try:
        return dataclasses.replace(clip, prompt=file.read_text(encoding="utf-8-sig").strip())
    except UnicodeDecodeError:
        return dataclasses.replace(clip, fault=f"{file}: must be UTF-8 text, because it is the prompt")
    except OSError as error:
        return dataclasses.replace(clip, fault=f"{file}: cannot be read ({error.strerror or error})")


def _videos_in(folder: Path, out: Path | None) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and _is_file(path))
    videos = [path for path in files if is_video(path)]
    if not videos:
        raise FlowleyError(f"{folder}: no video in this folder ({', '.join(VIDEO_SUFFIXES)})")
    used = {*videos, *(path.with_suffix(".txt") for path in videos), folder / SAMPLE_LOG_FILE}
    _log_skipped([path.name for path in files if path not in used])
    if out is None or not out.is_dir() or not out.samefile(folder):
        return videos
    made_files = SampleLog(folder).made_files
    others = [path for path in videos if not made_files.holds(path)]
    if len(others) < len(videos):
        log.info("left out %d sounds that this program wrote to %s", len(videos) - len(others), folder)
    if not others:
        raise FlowleyError(f"{folder}: no video in this folder besides those that this program wrote")
    return others


def _is_file(path: Path) -> bool:
    """Return whether a path is a file, or a link to one that is missing: its clip must not go unmentioned."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _log_skipped(skipped: Sequence[str]) -> None:
    if not skipped:
        return
    more = ", …" if len(skipped) > _MAX_SKIPPED_NAMES else ""
    log.info(
        "skipped %d %s: %s%s",
        len(skipped),
        "file that is not a video" if len(skipped) == 1 else "files that are not videos",
        ", ".join(skipped[:_MAX_SKIPPED_NAMES]),
        more,
    )


def _read_table(table: Path, *, prompt: str | None, split: str | None) -> list[InputClip]:
    rows = read_clip_table(table, columns=("video_path", "text_description"))
    chosen = [row for row in rows if split is None or row.split == split]
    if not chosen:
        raise FlowleyError(f"{table}: no row of the split {split!r}")
    return [
        InputClip(id=row.id, path=on_disk(row.video_path), prompt=row.caption if prompt is None else prompt)
        for row in chosen
    ]
