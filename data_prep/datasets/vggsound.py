"""The clip table of VGGSound (data_prep.vggsound says what it holds)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_prep.clip_files import ClipFiles
from data_prep.clip_set import clip_of, counts_line, place_of, write_clips, write_rows
from data_prep.tables import Kind, TableRow, read_table
from flowley_jax.errors import FlowleyError


def make_table(csv: str | Path, videos: str | Path, out: str | Path, *, valid: int = 2000) -> None:
    """Writes the table and what is missing, and prints counts.

    Raises:
      FlowleyError: the CSV has a bad line or a clip twice, train has not so many clips to hold out, or there
        is no file of any clip.
    """
    rows = read_table(csv, Kind.VGGSOUND).without_faults()
    _refuse_twice(csv, rows)
    held_out = _held_out(csv, rows, valid)
    files, clips, missing = ClipFiles(Path(videos)), [], []
    for row in rows:
        split = "valid" if youtube_id(row.id) in held_out and row.split == "train" else row.split
        if (file := files.find(row)) is None:
            missing.append((row.id, split, row.label))
            continue
        clips.append(clip_of(clip_id=row.id, file=file, caption=row.caption, split=split, label=row.label))
    if not clips:
        raise FlowleyError(f"{videos}: has none of the {len(rows)} clips, such as {rows[0].id}.mp4")
    out = Path(out)
    write_clips(out, clips)
    listed = out.with_name(f"{out.stem}_missing.tsv")
    write_rows(listed, ("id", "split", "label"), missing)
    print(f"{len(clips)} of {len(rows)} clips are in {out}: {counts_line(clip.split for clip in clips)}")
    if missing:
        by_split = counts_line(split for _, split, _ in missing)
        print(f"{len(missing)} have no file in {videos} ({by_split}); see {listed}")


def youtube_id(clip_id: str) -> str:
    """A clip's id without the second at which it starts."""
    return clip_id.rpartition("_")[0]


def _refuse_twice(csv: str | Path, rows: Sequence[TableRow]) -> None:
    seen: dict[str, int] = {}
    for row in rows:
        if row.id in seen:
            raise FlowleyError(f"{csv}, line {row.line}: clip {row.id!r} is in line {seen[row.id]} already")
        seen[row.id] = row.line


def _held_out(csv: str | Path, rows: Sequence[TableRow], valid: int) -> set[str]:
    """YouTube ids of as many clips of train, none of which is in test."""
    tested = {youtube_id(row.id) for row in rows if row.split == "test"}
    counts = Counter(youtube_id(row.id) for row in rows if row.split == "train")
    if both := tested & set(counts):
        print(f"{len(both)} YouTube videos have clips in train and in test, such as {min(both)}")
    chosen, left = set(), valid
    for video in sorted(set(counts) - tested, key=lambda video: (place_of(video), video)):
        if counts[video] <= left:
            chosen.add(video)
            left -= counts[video]
    if left:
        raise FlowleyError(
            f"{csv}: --valid={valid}, but only {valid - left} clips of train can be held out; give less"
        )
    return chosen
