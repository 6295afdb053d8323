"""List the clips to sample sound for: one file, a folder of files, a clip table, or a text alone."""

import dataclasses
import logging
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from flowley_jax.common.ranges import SECONDS, SEEDS, Range
from flowley_jax.data.clip_table import TableClip, read_clip_table
from flowley_jax.errors import FlowleyError, shown
from flowley_jax.media.formats import VIDEO_SUFFIXES, is_video
from flowley_jax.sampling.sample_log import SAMPLE_LOG_FILE, SampleLog

log = logging.getLogger(__name__)
_MAX_SKIPPED_NAMES = 5
Number = TypeVar("Number", int, float)
# Characters of a name that is made from a prompt; in UTF-8, four times as many bytes still fit into a name.
_MAX_SLUG = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputClip:
    """Video file, or a part of one, to sample sound for; or a text alone.

    Attributes:
      id: name of the sound's file, without extension.
      path: the video file; None for a sound from text.
      prompt: text that describes the sound; empty for none.
      fault: why no sound can be sampled for the clip; empty if nothing is known against it.
      negative_prompt: text that guidance leads away from; None for that of the sampler's settings.
      seed: seed of the random draw; None for that of the call.
      start, end: the part of the video, in seconds; None for its end. A sound from text is end − start long.
    """

    id: str
    path: Path | None
    prompt: str
    fault: str = ""
    negative_prompt: str | None = None
    seed: int | None = None
    start: float = 0.0
    end: float | None = None

    @property
    def name(self) -> str:
        """Name of the clip in messages: its video's path, or its id."""
        return self.id if self.path is None else str(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """Choices for all clips at once; None leaves a choice to each clip.

    Attributes:
      prompt: prompt; by default a table's caption, and elsewhere the text of a .txt file of the video's name.
      negative_prompt, seed: as for `InputClip`; by default those of a table.
      start: beginning of the part of each video, in seconds.
      end: its end, instead of `seconds`.
      seconds: greatest length of the part, and length of a sound from text; by default that of a table.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    start: float = 0.0
    end: float | None = None
    seconds: float | None = None

    def __post_init__(self):
        if self.end is not None and self.seconds is not None:
            raise FlowleyError(f"give either --seconds {self.seconds:g} or --end {self.end:g}, not both")
        if self.end is not None and self.end <= self.start:
            raise FlowleyError(f"--end {self.end:g} must be later than --start, which is {self.start:g}")

    def end_of(self, seconds: float | None) -> float | None:
        """Return the end of a part, which a table limits to `seconds` where nothing is chosen."""
        chosen = seconds if self.seconds is None else self.seconds
        if self.end is not None or chosen is None:
            return self.end
        return self.start + chosen


def find_inputs(
    video: Path, *, choices: Choices = Choices(), split: str | None = None, out: Path | None = None
) -> list[InputClip]:
    """List the clips that `video` names; log which files of a folder are skipped.

    Args:
      video: a video file, a folder of them, or a .tsv table with the column text_description, and optionally
        video_path, id, split, negative_prompt, seed and seconds; its paths are relative to the table. A row
        without a video is a sound from text.
      choices: what is the same for all clips.
      split: rows of a table to take; None takes all.
      out: where the sounds go; if it is the folder of the videos, earlier sounds in it are left out.

    Raises:
      FlowleyError: the path is missing, the folder holds no video, `split` is given without a table, or the
        table is empty, lacks a column, has no row of the split, or has a row that cannot be used.
    """
    video = on_disk(video)
    if not os.path.exists(video):
        raise FlowleyError(f"{video}: no such file or folder")
    is_table = video.suffix.lower() == ".tsv" and not video.is_dir()
    if split is not None and not is_table:
        raise FlowleyError(f"--split {split}: only a clip table has splits, and {video} is none")
    if is_table:
        return _read_table(video, choices, split)
    videos = _videos_in(video, out) if video.is_dir() else [video]
    clips = [_clip(path, choices) for path in videos]
    if choices.prompt is None and (prompted := sum(bool(clip.prompt) for clip in clips)):
        log.info("prompts from .txt files: %d of %d clips", prompted, len(clips))
    return clips


def text_input(choices: Choices, *, clip_id: str | None = None) -> InputClip:
    """Return the clip of a sound from text.

    Args:
      choices: the prompt, the length `seconds` and the rest.
      clip_id: id of the clip; None makes one from the prompt.

    Raises:
      FlowleyError: the prompt or the length is missing, or a part of a video is chosen.
    """
    prompt = choices.prompt or ""
    if not prompt.strip() or choices.seconds is None:
        raise FlowleyError("give --video; or, for a sound from text, --prompt and --seconds")
    if choices.start or choices.end is not None:
        raise FlowleyError("--start and --end take a part of a --video; --seconds is the length of a sound")
    return InputClip(
        id=clip_id or _slug(prompt),
        path=None,
        prompt=prompt,
        negative_prompt=choices.negative_prompt,
        seed=choices.seed,
        end=choices.seconds,
    )


def _slug(text: str) -> str:
    """Return the letters and digits of a text as a file name, with hyphens between the words."""
    words = "".join(char if char.isalnum() else " " for char in unicodedata.normalize("NFC", text)).split()
    return "-".join(words).lower()[:_MAX_SLUG].strip("-") or "sound"


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


def _clip(path: Path, choices: Choices) -> InputClip:
    clip = InputClip(
        id=path.stem,
        path=path,
        prompt=choices.prompt or "",
        negative_prompt=choices.negative_prompt,
        seed=choices.seed,
        start=choices.start,
        end=choices.end_of(None),
    )
    file = path.with_suffix(".txt")
    if choices.prompt is not None or not os.path.isfile(file):
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


def _read_table(table: Path, choices: Choices, split: str | None) -> list[InputClip]:
    rows = read_clip_table(table, columns=("text_description",), needs_videos=False)
    chosen = [row for row in rows if split is None or row.split == split]
    if not chosen:
        raise FlowleyError(f"{table}: no row of the split {split!r}")
    return [_row_clip(table, row, choices) for row in chosen]


def _row_clip(table: Path, row: TableClip, choices: Choices) -> InputClip:
    seed, seconds = _number(table, row, "seed", int, SEEDS), _number(table, row, "seconds", float, SECONDS)
    length = seconds if choices.seconds is None else choices.seconds
    prompt = row.caption if choices.prompt is None else choices.prompt
    negative_prompt = choices.negative_prompt
    clip = InputClip(
        id=row.id,
        path=on_disk(row.video_path) if row.source else None,
        prompt=prompt,
        negative_prompt=row.sampling.get("negative_prompt") if negative_prompt is None else negative_prompt,
        seed=seed if choices.seed is None else choices.seed,
        start=choices.start if row.source else 0.0,
        end=choices.end_of(seconds) if row.source else length,
    )
    if clip.path is None and (clip.end is None or not prompt.strip()):
        raise FlowleyError(
            f"{table}, line {row.line}: has no video_path, so it needs a text_description and seconds"
        )
    return clip


def _number(table: Path, row: TableClip, column: str, kind: type[Number], numbers: Range) -> Number | None:
    """Return the number in a cell of a row, or None for an empty cell."""
    text = row.sampling.get(column)
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError as error:
        expected = "an int" if kind is int else "a number"
        raise FlowleyError(f"{table}, line {row.line}: {column} {shown(text)} must be {expected}") from error
    if fault := numbers.fault(value):
        raise FlowleyError(f"{table}, line {row.line}: {column} {shown(text)} {fault}")
    return value
