"""The clip table: a TSV with the columns video_path, text_description, split, label and, optionally, id."""

import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowley_jax.errors import FlowleyError

SPLITS = ("train", "valid", "test")
COLUMNS = ("video_path", "text_description", "split", "label")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """One row; `video_path` is resolved against the table's folder, a missing id is the file's stem.

    `source` is the same as text, or the address (gs://…) of a file that only `data_prep.extract` reads.
    """

    id: str
    video_path: Path
    source: str
    caption: str
    split: str
    label: str


def read_clip_table(path: str | os.PathLike, *, columns: Sequence[str] = COLUMNS) -> list[Clip]:
    """The rows of a clip table, in order.

    Args:
      columns: those that the table must have; fields without a column are empty.

    Raises:
      FlowleyError: naming the file (and line), if it is missing, empty, lacks a column, or has a row with
        an unknown split, an empty path or an id seen before.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if reader.fieldnames is None:
                raise FlowleyError(f"{path}: the clip table is empty; expected {', '.join(columns)}")
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise FlowleyError(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
            clips = [_clip(row, path, reader.line_num) for row in reader]
    except FileNotFoundError as error:
        raise FlowleyError(f"{path}: no such clip table") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FlowleyError(f"{path}: cannot be read as a table ({error})") from error
    if not clips:
        raise FlowleyError(f"{path}: the clip table has no rows")
    seen: set[str] = set()
    for clip in clips:
        if clip.id in seen:
            raise FlowleyError(f"{path}: id {clip.id!r} occurs twice; ids must be unique")
        seen.add(clip.id)
    return clips


def _clip(row: Mapping[str, str | None], path: Path, line: int) -> Clip:
    video, split = row["video_path"], row.get("split")
    if None in row or None in row.values():
        raise FlowleyError(f"{path}, line {line}: has not as many fields as the header")
    if not video:
        raise FlowleyError(f"{path}, line {line}: empty video_path")
    if "split" in row and split not in SPLITS:
        raise FlowleyError(f"{path}, line {line}: split {split!r} must be one of {', '.join(SPLITS)}")
    clip_id = row.get("id") or Path(video).stem
    if clip_id != Path(clip_id).name or clip_id.startswith("."):
        raise FlowleyError(f"{path}, line {line}: id {clip_id!r} must do as the name of a file")
    return Clip(
        id=clip_id,
        video_path=path.parent / video,
        source=video if "://" in video else str(path.parent / video),
        caption=row["text_description"] or "",
        split=split or "",
        label=row.get("label") or "",
    )
