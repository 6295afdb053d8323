"""The clip table: a TSV with the columns video_path, text_description, split, label and, optionally, id.

For sampling, it may also have the columns of SAMPLING_COLUMNS; data preparation ignores them.
"""

import codecs
import dataclasses
import os
import re
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowley_jax.common.files import lfs_note, write_text
from flowley_jax.errors import FlowleyError

SPLITS = ("train", "valid", "test")
COLUMNS = ("video_path", "text_description", "split", "label")
# Far more than the longest table, and less than a film that was given by mistake.
_MAX_TABLE_BYTES = 2**30
WRITTEN_COLUMNS = ("id", *COLUMNS)
SAMPLING_COLUMNS = ("negative_prompt", "seed", "seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableClip:
    """A clip of a table, with its path resolved.

    Attributes:
      id: unique name of the clip; the stem of its file if the table has no id.
      video_path: path of the video; a relative path in the table is resolved against the table's folder, and
        a name may be in another Unicode form than on the disk.
      source: `video_path` as text, or an address (gs://…), which only `data_prep.extract` can read; empty for
        a row without a video.
      caption, split, label: the other columns.
      line: line number in the file, from 1; 0 for a clip that was not read from a table.
      sampling: text of the columns of SAMPLING_COLUMNS that are not empty.
    """

    id: str
    video_path: Path
    source: str
    caption: str
    split: str
    label: str
    line: int = dataclasses.field(default=0, compare=False)
    sampling: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row of a table, as written.

    Attributes:
      line: line number in the file, from 1.
      id: unique name of the clip.
      path: path or address of the video; empty in tables that do not state paths.
      caption, split, label: the other columns; empty if the table does not have them.
      sampling: text of the columns of SAMPLING_COLUMNS that are not empty.
    """

    line: int
    id: str
    path: str = ""
    caption: str = ""
    split: str = ""
    label: str = ""
    sampling: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)


@dataclasses.dataclass(frozen=True)
class TableFault:
    """A line of a table that cannot be used as it is, and the reason."""

    line: int
    detail: str


@dataclasses.dataclass(frozen=True)
class ParsedTable:
    """The content of a clip table.

    Attributes:
      header: names of the columns.
      header_line: line number of the header.
      rows: rows in order, including those whose only fault is an unknown split.
      faults: faults in the order of their lines.
    """

    header: Sequence[str]
    header_line: int
    rows: Sequence[TableRow]
    faults: Sequence[TableFault]


def read_clip_table(
    path: str | os.PathLike, *, columns: Sequence[str] = COLUMNS, needs_videos: bool = True
) -> list[TableClip]:
    """Return the rows of a clip table, in order.

    Args:
      path: the table.
      columns: columns that the table must have; fields without a column are empty.
      needs_videos: whether every row must name a video.

    Raises:
      FlowleyError: the table is missing, empty or lacks a column, or a row has an unknown split, an empty
        path or a repeated id. The message names the file and, for a row, the line.
    """
    path = Path(path)
    table = parse_clip_table(path, needs_videos=needs_videos)
    missing = [column for column in columns if column not in table.header]
    if missing:
        raise FlowleyError(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
    if table.faults:
        raise FlowleyError(f"{path}, line {table.faults[0].line}: {table.faults[0].detail}")
    if not table.rows:
        raise FlowleyError(f"{path}: the clip table has no rows")
    _check_ids(path, table.rows)
    forms = NameForms()
    return [_clip(row, path.parent, forms) for row in table.rows]


def _check_ids(path: Path, rows: Sequence[TableRow]) -> None:
    # On some disks, names in two Unicode forms are one file.
    seen: dict[str, str] = {}
    for row in rows:
        other = seen.get(unicodedata.normalize("NFC", row.id))
        if other == row.id:
            raise FlowleyError(f"{path}: id {row.id!r} occurs twice; ids must be unique")
        if other is not None:
            raise FlowleyError(
                f"{path}, line {row.line}: id {row.id!a} is {other!a} in another Unicode form; "
                "ids must be unique"
            )
        seen[unicodedata.normalize("NFC", row.id)] = row.id


def parse_clip_table(path: str | os.PathLike, *, needs_videos: bool = True) -> ParsedTable:
    """Return the rows of a clip table and its faults; see `read_clip_table` for the arguments.

    Raises:
      FlowleyError: the file cannot be read or is empty, or `needs_videos` and it has no column `video_path`.
    """
    lines, faults = read_table_lines(path)
    header_line, text = lines[0]
    header = text.split("\t")
    if needs_videos and "video_path" not in header:
        raise FlowleyError(f"{path}: no column video_path in its first line {text[:80]!r}")
    if twice := [name for name in (*WRITTEN_COLUMNS, *SAMPLING_COLUMNS) if header.count(name) > 1]:
        raise FlowleyError(f"{path}: has two columns {twice[0]}")
    rows = []
    for line, text in lines[1:]:
        parsed = _parse_row(line, header, text.split("\t"), needs_videos)
        if isinstance(parsed, TableFault):
            faults.append(parsed)
        else:
            rows.append(parsed)
    if "split" in header:
        faults += [
            TableFault(row.line, f"split {row.split!r} must be one of {', '.join(SPLITS)}")
            for row in rows
            if row.split not in SPLITS
        ]
    return ParsedTable(header, header_line, rows, sorted(faults, key=lambda fault: fault.line))


def read_table_lines(path: str | os.PathLike) -> tuple[list[tuple[int, str]], list[TableFault]]:
    """Return the lines of a text file that are not blank, with their numbers, and those that are not UTF-8.

    Raises:
      FlowleyError: the file cannot be read or is empty.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            # Tables are read more than once, which a pipe does not allow.
            raise FlowleyError(f"{path}: is a pipe or a device, not a clip table")
        if status.st_size > _MAX_TABLE_BYTES:
            raise FlowleyError(f"{path}: is not a clip table; it has {status.st_size / 2**30:.1f} GiB")
        content = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError as error:
        raise FlowleyError(f"{path}: no such clip table") from error
    except IsADirectoryError as error:
        raise FlowleyError(
            f"{path}: is a folder, not a clip table; python -m data_prep.folder makes a table of its videos"
        ) from error
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be read as a table ({error.strerror or error})") from error
    if note := lfs_note(path):
        raise FlowleyError(f"{path}: is not a clip table; {note}")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FlowleyError(f"{path}: is text in UTF-16; save it as UTF-8")
    lines, faults = [], []
    for number, line in enumerate(re.split(rb"\r\n|\n|\r", content), start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            faults.append(TableFault(number, "is not UTF-8 text"))
            continue
        if text.strip():
            lines.append((number, text))
    if not lines:
        raise FlowleyError(f"{path}: the clip table is empty; expected {', '.join(COLUMNS)}")
    return lines, faults


def id_fault(clip_id: str) -> str:
    """Return why an id is unusable, or an empty string. Output files are named after ids."""
    if not clip_id or clip_id != Path(clip_id).name or clip_id.startswith(".") or "\0" in clip_id:
        return f"id {clip_id!r} must be usable as a file name"
    return ""


def write_clip_table(path: str | os.PathLike, clips: Sequence[TableClip]) -> None:
    """Write a clip table. Files below the table's folder get relative paths, others absolute ones.

    Raises:
      FlowleyError: there are no clips, a file name contains a tab or a line break or is not text, a caption
        cannot be written as UTF-8, or the table cannot be written. The message names the file.
    """
    if not clips:
        raise FlowleyError(f"{path}: not written, because there are no clips")
    folder = Path(path).absolute().parent
    rows = [(clip.id, _written_path(clip, folder), clip.caption, clip.split, clip.label) for clip in clips]
    for clip, row in zip(clips, rows, strict=True):
        if fault := utf8_fault("".join(row)):
            raise FlowleyError(f"{path}: not written, because the row of {clip.id!r} {fault}")
    write_text(path, "".join("\t".join(row) + "\n" for row in (WRITTEN_COLUMNS, *rows)))


def utf8_fault(text: str) -> str:
    """Return why a text cannot be written as UTF-8, or an empty string."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"contains {text[error.start]!a}, which is not a character"
    return ""


class NameForms:
    """Finder of files whose names differ only in their Unicode form; it lists every folder once.

    macOS and programs that copy from it write é as e and an accent, most others as one character.
    """

    def __init__(self):
        """Create the finder; no folder is listed yet."""
        self._listed: dict[Path, dict[str, str]] = {}

    def find(self, path: Path) -> Path | None:
        """Return the existing path that is the given one in some Unicode form, or None."""
        if os.path.exists(path):
            return path
        if not path.name or (parent := self.find(path.parent)) is None:
            return None
        if parent not in self._listed:
            self._listed[parent] = _names_by_form(parent)
        name = self._listed[parent].get(unicodedata.normalize("NFC", path.name))
        return None if name is None else parent / name


def _names_by_form(folder: Path) -> dict[str, str]:
    try:
        return {unicodedata.normalize("NFC", name): name for name in sorted(os.listdir(folder), reverse=True)}
    except OSError:
        return {}


def _parse_row(
    line: int, header: Sequence[str], cells: Sequence[str], needs_video: bool
) -> TableRow | TableFault:
    if len(cells) != len(header):
        return TableFault(line, f"has {len(cells)} fields; the header has {len(header)}")
    row = dict(zip(header, cells, strict=True))
    path = row.get("video_path", "")
    if needs_video and not path:
        return TableFault(line, "empty video_path")
    if "\0" in path:
        return TableFault(line, f"video_path {path!r} must be usable as a file name")
    clip_id = row.get("id") or Path(path).stem
    if not clip_id:
        return TableFault(line, "has neither a video_path nor an id")
    if fault := id_fault(clip_id):
        return TableFault(line, fault)
    return TableRow(
        line=line,
        id=clip_id,
        path=path,
        caption=row.get("text_description", ""),
        split=row.get("split", ""),
        label=row.get("label", ""),
        sampling={name: row[name] for name in SAMPLING_COLUMNS if row.get(name)},
    )


def _clip(row: TableRow, folder: Path, forms: NameForms) -> TableClip:
    if not row.path or "://" in row.path:
        path, source = folder / row.path, row.path
    else:
        path = folder / row.path
        # Only these names have several forms, and a check of every file of a network disk would take hours.
        if not row.path.isascii():
            path = forms.find(path) or path
        source = str(path)
    return TableClip(
        id=row.id,
        video_path=path,
        source=source,
        caption=row.caption,
        split=row.split,
        label=row.label,
        line=row.line,
        sampling=row.sampling,
    )


def _written_path(clip: TableClip, folder: Path) -> str:
    path = Path(os.path.abspath(clip.video_path))
    written = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
    if any(mark in written for mark in "\t\r\n"):
        raise FlowleyError(f"{written!r}: the file name contains a tab or a line break; rename the file")
    if utf8_fault(written):
        raise FlowleyError(f"{written!r}: the file name is not text in UTF-8; rename the file")
    return written
