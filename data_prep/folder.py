"""Make the clip table of a folder of videos: python -m data_prep.folder --root DIR --out clips.tsv

| column | content |
|---|---|
| id | path below the root with `__` for `/`, plus a hash where another path could have the same id |
| text_description | content of a `.txt` file of the same name, or else the words of the file name |
| label | name of the folder that contains the file |
| split | chosen by the hash of the id, so adding files moves no clip to another split |
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from absl import flags

from data_prep.clip_files import files_below
from data_prep.table_making import check_outputs, define_overwrite, hash_fraction, make_clip, split_counts
from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_float
from flowley_jax.common.ranges import Range
from flowley_jax.data.clip_table import TableClip, write_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.media.formats import VIDEO_SUFFIXES, is_video

_LONGEST_ID = 120
_MAX_CAPTION_BYTES = 100_000
# Names that cameras give to files.
_CAMERA_WORDS = frozenset(("img", "dsc", "dscn", "mov", "mvi", "vid", "video", "pxl", "gopr", "clip"))
_SAFE_NAME = re.compile(r"[A-Za-z0-9-][A-Za-z0-9.-]*(_[A-Za-z0-9.-]+)*")


def main() -> None:
    """Run the command line."""
    values = flags.FLAGS
    make_table(values.root, values.out, valid=values.valid, test=values.test, overwrite=values.overwrite)


def make_table(
    root: str | Path, out: str | Path, *, valid: float = 0.05, test: float = 0.05, overwrite: bool = False
) -> None:
    """Write the clip table, and print counts and which files are left out.

    Args:
      root: folder of the videos; folders below it are searched too.
      out: clip table to write.
      valid, test: shares of the clips in these splits.
      overwrite: whether an existing table is replaced.

    Raises:
      FlowleyError: the shares leave no training clips, the folder has no video, a caption file is not UTF-8
        text, or the table exists and may not be replaced.
    """
    check_outputs(Path(out), overwrite=overwrite)
    if min(valid, test) < 0.0 or not valid + test < 1.0:
        raise FlowleyError(
            f"--valid={valid:g} --test={test:g} must not be negative, and must add up to less than 1"
        )
    root = Path(root)
    files = files_below(root)
    videos = [path for path in files if is_video(path)]
    if not videos:
        raise FlowleyError(f"{root}: has no video ({', '.join(VIDEO_SUFFIXES)})")
    caption_files = set(files) & {path.with_suffix(".txt") for path in videos}
    clips = [_make_clip(root, path, caption_files, valid, test) for path in videos]
    _check_unique(clips)
    write_clip_table(out, clips)
    print(f"{out}: {len(clips)} clips: {split_counts(clip.split for clip in clips)}")
    _print_left_out(set(files) - set(videos) - caption_files)
    _print_captions(clips, caption_files)


def id_of(relative: PurePath) -> str:
    """Return a clip id that is unique to a path below the root and usable as a file name."""
    parts = (relative.with_suffix("") if relative.suffix == ".mp4" else relative).parts
    name = "__".join(parts)
    if all(_SAFE_NAME.fullmatch(part) for part in parts) and len(name) <= _LONGEST_ID:
        return name
    safe = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._")[:_LONGEST_ID]
    digest = hashlib.blake2b(bytes(relative), digest_size=5).hexdigest()
    return f"{safe}-{digest}" if safe else digest


def _make_clip(root: Path, path: Path, caption_files: set[Path], valid: float, test: float) -> TableClip:
    clip_id = id_of(path.relative_to(root))
    fraction = hash_fraction(clip_id)
    return make_clip(
        clip_id=clip_id,
        file=path,
        caption=_caption(path, caption_files),
        split="test" if fraction < test else "valid" if fraction < test + valid else "train",
        label=path.absolute().parent.name,
    )


def _caption(path: Path, caption_files: set[Path]) -> str:
    file = path.with_suffix(".txt")
    try:
        if file in caption_files and (size := file.stat().st_size) > _MAX_CAPTION_BYTES:
            raise FlowleyError(f"{file}: must be a caption, not {size} bytes of text")
        written = file.read_text(encoding="utf-8-sig").strip() if file in caption_files else ""
    except UnicodeDecodeError as error:
        raise FlowleyError(f"{file}: must be UTF-8 text") from error
    words = [word for word in re.findall(r"[^\W\d_]+", path.stem) if word.lower() not in _CAMERA_WORDS]
    return written or (" ".join(words) if max(map(len, words), default=0) > 2 else "")


def _check_unique(clips: Sequence[TableClip]) -> None:
    files: dict[str, Path] = {}
    for clip in clips:
        if clip.id in files:
            raise FlowleyError(
                f"{clip.video_path}: has the id {clip.id}, like {files[clip.id]}; rename one of them"
            )
        files[clip.id] = clip.video_path


def _print_left_out(files: set[Path]) -> None:
    if not files:
        return
    suffixes = Counter(path.suffix.lower() or "without suffix" for path in sorted(files)).most_common()
    listed = ", ".join(f"{number} {suffix}" for suffix, number in suffixes)
    print(f"files left out because they are not videos: {len(files)} ({listed}), such as {min(files)}")


def _print_captions(clips: Sequence[TableClip], caption_files: set[Path]) -> None:
    if caption_files:
        print(f"captions from .txt files: {len(caption_files)}; the others are the words of the file names")
    else:
        print("captions are the words of the file names; a .txt file of the same name would be used instead")
    if empty := sum(not clip.caption for clip in clips):
        print(f"clips without a caption (no .txt file, no words in the file name): {empty}")


if __name__ == "__main__":
    # Defined here because programs that import several of these modules would define some flags twice.
    flags.DEFINE_string("root", None, "Folder of the videos, searched with its subfolders.", required=True)
    flags.DEFINE_string("out", None, "Clip table to write.", required=True)
    shares = Range(least=0, below=1)
    define_float("valid", 0.05, "Share of the clips in the valid split.", shares)
    define_float("test", 0.05, "Share of the clips in the test split.", shares)
    define_overwrite()
    run_main(main)
