"""Make VGGSound's clip table: python -m data_prep.vggsound --csv vggsound.csv --videos DIR --out clips.tsv

The videos are files `<YouTube id>_<start, six digits>.mp4` (or .mkv, .webm, …) in one folder. Nothing is
downloaded. The train and test splits are those of the CSV. Some training clips are held out as the valid
split, chosen by a hash of their YouTube id: the choice depends only on the CSV, and no video is in both train
and valid, or in both valid and test. The labels are the captions. Clips without a file are listed in
`<out>_missing.tsv`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from data_prep.clip_files import ClipFiles
from data_prep.table_formats import TableFormat, read_table
from data_prep.table_making import (
    check_outputs,
    define_overwrite,
    hash_fraction,
    make_clip,
    missing_list_path,
    split_counts,
    write_tsv,
)
from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import Range
from flowley_jax.data.clip_table import TableRow, write_clip_table
from flowley_jax.errors import FlowleyError


def main() -> None:
    """Run the command line."""
    values = flags.FLAGS
    make_table(values.csv, values.videos, values.out, valid=values.valid, overwrite=values.overwrite)


def make_table(
    csv: str | Path, videos: str | Path, out: str | Path, *, valid: int = 2000, overwrite: bool = False
) -> None:
    """Write the clip table and the list of missing clips, and print counts.

    Args:
      csv: the official vggsound.csv.
      videos: folder of the clips.
      out: clip table to write.
      valid: number of training clips to hold out as the valid split.
      overwrite: whether existing files are replaced.

    Raises:
      FlowleyError: the CSV has a bad line or a repeated clip, too few training clips can be held out, no clip
        has a file, or a file exists that may not be replaced.
    """
    out = Path(out)
    check_outputs(out, missing_list_path(out), overwrite=overwrite)
    rows = read_table(csv, TableFormat.VGGSOUND).checked_rows()
    _check_unique(csv, rows)
    held_out = _held_out_videos(csv, rows, valid)
    files, clips, missing = ClipFiles(Path(videos)), [], []
    for row in rows:
        split = "valid" if youtube_id(row.id) in held_out and row.split == "train" else row.split
        if (file := files.find(row)) is None:
            missing.append((row.id, split, row.label))
            continue
        clips.append(make_clip(clip_id=row.id, file=file, caption=row.caption, split=split, label=row.label))
    if not clips:
        raise FlowleyError(f"{videos}: has none of the {len(rows)} clips, such as {rows[0].id}.mp4")
    write_clip_table(out, clips)
    write_tsv(missing_list_path(out), ("id", "split", "label"), missing)
    print(f"{out}: {len(clips)} of {len(rows)} clips: {split_counts(clip.split for clip in clips)}")
    if missing:
        by_split = split_counts(split for _, split, _ in missing)
        print(f"{videos}: no file for {len(missing)} clips ({by_split}); see {missing_list_path(out)}")


def youtube_id(clip_id: str) -> str:
    """Return a clip's id without its start in seconds."""
    return clip_id.rpartition("_")[0]


def _check_unique(csv: str | Path, rows: Sequence[TableRow]) -> None:
    lines: dict[str, int] = {}
    for row in rows:
        if row.id in lines:
            raise FlowleyError(f"{csv}, line {row.line}: clip {row.id!r} is already in line {lines[row.id]}")
        lines[row.id] = row.line


def _held_out_videos(csv: str | Path, rows: Sequence[TableRow], valid: int) -> set[str]:
    """Return YouTube ids that have `valid` clips in train together, and none in test."""
    test_videos = {youtube_id(row.id) for row in rows if row.split == "test"}
    train_counts = Counter(youtube_id(row.id) for row in rows if row.split == "train")
    if both := test_videos & set(train_counts):
        print(f"{len(both)} YouTube videos have clips in both train and test, such as {min(both)}")
    chosen, left = set(), valid
    for video in sorted(set(train_counts) - test_videos, key=lambda video: (hash_fraction(video), video)):
        if train_counts[video] <= left:
            chosen.add(video)
            left -= train_counts[video]
    if left:
        raise FlowleyError(
            f"{csv}: --valid={valid} must be at most {valid - left}, the training clips that can be held out"
        )
    return chosen


if __name__ == "__main__":
    # Defined here because programs that import several of these modules would define some flags twice.
    flags.DEFINE_string("csv", None, "The official vggsound.csv.", required=True)
    flags.DEFINE_string("videos", None, "Folder of the clips.", required=True)
    flags.DEFINE_string("out", None, "Clip table to write.", required=True)
    define_int("valid", 2000, "Number of training clips to hold out as valid.", Range(least=0))
    define_overwrite()
    run_main(main)
