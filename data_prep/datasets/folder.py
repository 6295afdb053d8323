"""The clip table of a plain folder of videos (data_prep.folder says what it holds)."""

import hashlib
import re
from pathlib import Path, PurePath

from data_prep.clip_files import files_below
from data_prep.clip_set import clip_of, counts_line, place_of, write_clips
from flowley_jax.data.clip_table import Clip
from flowley_jax.errors import FlowleyError

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv")
_LONGEST_ID = 120
# What cameras call files.
_OF_CAMERAS = frozenset(("img", "dsc", "dscn", "mov", "mvi", "vid", "video", "pxl", "gopr", "clip"))
_SAFE = re.compile(r"[A-Za-z0-9-][A-Za-z0-9.-]*(_[A-Za-z0-9.-]+)*")


def make_table(root: str | Path, out: str | Path, *, valid: float = 0.05, test: float = 0.05) -> None:
    """Writes the table and prints counts.

    Raises:
      FlowleyError: the shares leave nothing to train on, root has no video, or a caption is no text.
    """
    if min(valid, test) < 0.0 or not valid + test < 1.0:
        raise FlowleyError(
            f"--valid={valid:g} --test={test:g} must not be negative and add up to less than 1"
        )
    root = Path(root)
    files = files_below(root)
    beside = set(files)
    videos = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not videos:
        raise FlowleyError(f"{root}: has no video ({', '.join(SUFFIXES)})")
    clips = [_clip(root, path, beside, valid, test) for path in videos]
    _refuse_same_ids(clips)
    write_clips(out, clips)
    print(f"{len(clips)} clips are in {out}: {counts_line(clip.split for clip in clips)}")
    if beside & {path.with_suffix(".txt") for path in videos}:
        print("captions are from .txt files where there are any, the others are words of the files' names")
    else:
        print("captions are words of the files' names; a .txt beside a file would be its caption")
    if empty := sum(not clip.caption for clip in clips):
        print(f"{empty} clips have no caption: neither a text nor a word in the name")


def id_of(relative: PurePath) -> str:
    """A name for a file of this path, and of no other."""
    parts = (relative.with_suffix("") if relative.suffix == ".mp4" else relative).parts
    name = "__".join(parts)
    if all(_SAFE.fullmatch(part) for part in parts) and len(name) <= _LONGEST_ID:
        return name
    safe = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._")[:_LONGEST_ID]
    digest = hashlib.blake2b(bytes(relative), digest_size=5).hexdigest()
    return f"{safe}-{digest}" if safe else digest


def _clip(root: Path, path: Path, beside: set[Path], valid: float, test: float) -> Clip:
    clip_id = id_of(path.relative_to(root))
    place = place_of(clip_id)
    return clip_of(
        clip_id=clip_id,
        file=path,
        caption=_caption(path, beside),
        split="test" if place < test else "valid" if place < test + valid else "train",
        label=path.absolute().parent.name,
    )


def _caption(path: Path, beside: set[Path]) -> str:
    text = path.with_suffix(".txt")
    try:
        written = text.read_text(encoding="utf-8-sig").strip() if text in beside else ""
    except UnicodeDecodeError as error:
        raise FlowleyError(f"{text}: must be UTF-8 text") from error
    words = [word for word in re.findall(r"[^\W\d_]+", path.stem) if word.lower() not in _OF_CAMERAS]
    return written or (" ".join(words) if max(map(len, words), default=0) > 2 else "")


def _refuse_same_ids(clips: list[Clip]) -> None:
    seen: dict[str, Path] = {}
    for clip in clips:
        if clip.id in seen:
            raise FlowleyError(f"{clip.video_path}: would be {clip.id}, as {seen[clip.id]} is; rename one")
        seen[clip.id] = clip.video_path
