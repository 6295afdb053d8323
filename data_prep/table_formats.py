"""Read clip tables in four formats. A faulty row is reported with its line, and the others are kept.

| format | content |
|---|---|
| `flowley` | TSV with a header: video_path, text_description, split, label and, optionally, id |
| `mmaudio` | TSV with a header: id and label (or caption); the file name contains train, val or test |
| `vggsound` | CSV without a header: YouTube id, start in seconds, label, train or test |
| `moviegen` | JSON lines with id and audio_prompt |

Only the first states paths. In the other three, the id is also the name of the clip's file.
"""

import csv
import dataclasses
import enum
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flowley_jax.data.clip_table import (
    COLUMNS,
    TableFault,
    TableRow,
    id_fault,
    parse_clip_table,
    read_table_lines,
    utf8_fault,
)
from flowley_jax.errors import FlowleyError

_VGGSOUND_SPLITS = ("train", "test")
_SPLIT_WORDS = {"train": "train", "val": "valid", "test": "test"}
# One good line among this many is enough to recognise a format.
_LINES_EXAMINED = 20
_SHOWN_CHARACTERS = 80


class TableFormat(enum.StrEnum):
    """The known table formats."""

    FLOWLEY = "flowley"
    MMAUDIO = "mmaudio"
    VGGSOUND = "vggsound"
    MOVIEGEN = "moviegen"


@dataclasses.dataclass(frozen=True)
class Table:
    """The content of a table.

    Attributes:
      path: the file.
      format: its format.
      rows: rows in order, including those whose only fault is an unknown split.
      faults: faults in the order of their lines.
    """

    path: Path
    format: TableFormat
    rows: Sequence[TableRow]
    faults: Sequence[TableFault]

    def checked_rows(self) -> Sequence[TableRow]:
        """Return the rows of a table that has no faults.

        Raises:
          FlowleyError: the table has a fault. The message names the file and the line.
        """
        if self.faults:
            fault = self.faults[0]
            others = len(self.faults) - 1
            more = f" (and {others} more {'line' if others == 1 else 'lines'})" if others else ""
            raise FlowleyError(f"{self.path}, line {fault.line}: {fault.detail}{more}")
        return self.rows


class _Faulty(Exception):
    """Raised with the reason why a line cannot be used."""


_Line = tuple[int, str]
_Parsed = tuple[list[TableRow], list[TableFault]]


def read_table(path: str | os.PathLike, kind: str | None = None) -> Table:
    """Return the rows of a table and its faults.

    Args:
      path: the table.
      kind: a value of `TableFormat`; by default it is recognised from the content.

    Raises:
      FlowleyError: the file cannot be read, is empty, is in no known format, or lacks a column that its
        format requires. The message names the file.
    """
    path = Path(path)
    lines, faults = read_table_lines(path)
    known = _recognise(path, lines) if kind is None else _format_named(kind)
    if known is TableFormat.FLOWLEY:
        rows, faults = _read_flowley(path)
    else:
        rows, more = _READERS[known](path, lines)
        faults = [*faults, *more]
    if not rows and not faults:
        raise FlowleyError(f"{path}: the table has no rows")
    return Table(path, known, rows, sorted(faults, key=lambda fault: fault.line))


def _format_named(name: str) -> TableFormat:
    if name not in list(TableFormat):
        raise FlowleyError(f"kind={name!r} must be one of {', '.join(TableFormat)}")
    return TableFormat(name)


def _recognise(path: Path, lines: Sequence[_Line]) -> TableFormat:
    header, examined = _tab_cells(lines[0][1]), [text for _, text in lines[:_LINES_EXAMINED]]
    if "video_path" in header:
        return TableFormat.FLOWLEY
    if "id" in header and {"label", "caption"} & set(header):
        return TableFormat.MMAUDIO
    if any(_is_prompt(text) for text in examined):
        return TableFormat.MOVIEGEN
    if any(len(cells := _comma_cells(text)) == 4 and cells[1].strip().isdigit() for text in examined):
        return TableFormat.VGGSOUND
    raise FlowleyError(
        f"{path}: unknown table format: its first line is {lines[0][1][:_SHOWN_CHARACTERS]!r}; expected a TSV"
        f" with the columns {', '.join(COLUMNS)} (flowley) or id, label (mmaudio), lines as in vggsound.csv"
        " (vggsound), or JSON lines with id and audio_prompt (moviegen)"
    )


def _is_prompt(text: str) -> bool:
    try:
        return "audio_prompt" in json.loads(text) if text.startswith("{") else False
    except (ValueError, RecursionError):
        return False


def _tab_cells(text: str) -> list[str]:
    return text.split("\t")


def _quoted_tab_cells(text: str) -> list[str]:
    return next(csv.reader([text], delimiter="\t"), [])


def _comma_cells(text: str) -> list[str]:
    try:
        return next(csv.reader([text]), [])
    except csv.Error:
        return []


def _read_flowley(path: Path) -> _Parsed:
    table = parse_clip_table(path)
    faults = list(table.faults)
    if missing := [column for column in COLUMNS if column not in table.header]:
        columns = "column" if len(missing) == 1 else "columns"
        faults.append(TableFault(table.header_line, f"the header has no {columns} {', '.join(missing)}"))
    return list(table.rows), faults


def _read_mmaudio(path: Path, lines: Sequence[_Line]) -> _Parsed:
    header_line, text = lines[0]
    header = _quoted_tab_cells(text)
    if "id" not in header:
        raise FlowleyError(f"{path}: no column id in its first line {text[:_SHOWN_CHARACTERS]!r}")
    splits = [split for word, split in _SPLIT_WORDS.items() if word in path.stem.lower()]
    split = splits[0] if len(splits) == 1 else ""

    def parse(line: int, text: str) -> TableRow:
        cells = _quoted_tab_cells(text)
        if len(cells) != len(header):
            raise _Faulty(f"has {len(cells)} fields; the header has {len(header)}")
        row = dict(zip(header, cells, strict=True))
        label = row.get("label", "")
        caption = row.get("caption", label)
        return TableRow(line=line, id=_checked_id(row["id"]), caption=caption, split=split, label=label)

    rows, faults = _parse_lines(lines[1:], parse)
    if not {"label", "caption"} & set(header):
        faults.append(TableFault(header_line, "the header has no column label or caption"))
    if not split:
        number = "more than one" if splits else "none"
        detail = f"the file's name has {number} of train, val, test, so the split is unknown"
        faults.append(TableFault(header_line, detail))
    return rows, faults


def _read_vggsound(path: Path, lines: Sequence[_Line]) -> _Parsed:
    rows, faults = _parse_lines(lines, lambda line, text: _vggsound_row(line, _comma_cells(text)))
    faults += [
        TableFault(row.line, f"split {row.split!r} must be one of {', '.join(_VGGSOUND_SPLITS)}")
        for row in rows
        if row.split not in _VGGSOUND_SPLITS
    ]
    return rows, faults


def _vggsound_row(line: int, cells: Sequence[str]) -> TableRow:
    if len(cells) != 4:
        raise _Faulty(f"has {len(cells)} fields; expected YouTube id, start, label, split")
    youtube, start, label, split = (cell.strip() for cell in cells)
    if not re.fullmatch("[0-9]{1,6}", start):
        raise _Faulty(f"start {start!r} must be a whole number of seconds")
    clip_id = _checked_id(f"{youtube}_{int(start):06d}" if youtube else "")
    return TableRow(line=line, id=clip_id, caption=label, split=split, label=label)


def _read_moviegen(path: Path, lines: Sequence[_Line]) -> _Parsed:
    return _parse_lines(lines, _moviegen_row)


def _moviegen_row(line: int, text: str) -> TableRow:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Faulty(f"is not JSON ({error})") from error
    if not isinstance(value, dict) or {"id", "audio_prompt"} - set(value):
        raise _Faulty(f"must be an object with id and audio_prompt, not {text[:_SHOWN_CHARACTERS]!r}")
    if not isinstance(value["audio_prompt"], str) or not isinstance(value["id"], int | str):
        raise _Faulty("id must be a number or a string, and audio_prompt must be a string")
    if fault := utf8_fault(value["audio_prompt"]):
        raise _Faulty(f"audio_prompt {fault}")
    return TableRow(
        line=line, id=_checked_id(str(value["id"])), caption=value["audio_prompt"], split="test", label=""
    )


def _checked_id(clip_id: str) -> str:
    if fault := id_fault(clip_id) or utf8_fault(clip_id):
        raise _Faulty(fault)
    return clip_id


def _parse_lines(lines: Sequence[_Line], parse: Callable[[int, str], TableRow]) -> _Parsed:
    rows, faults = [], []
    for line, text in lines:
        try:
            rows.append(parse(line, text))
        except _Faulty as error:
            faults.append(TableFault(line, str(error)))
        except csv.Error as error:
            faults.append(TableFault(line, f"cannot be read ({error})"))
    return rows, faults


_READERS: Mapping[TableFormat, Callable[[Path, Sequence[_Line]], _Parsed]] = {
    TableFormat.MMAUDIO: _read_mmaudio,
    TableFormat.VGGSOUND: _read_vggsound,
    TableFormat.MOVIEGEN: _read_moviegen,
}
