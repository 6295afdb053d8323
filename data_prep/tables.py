"""Clip tables of several conventions, read tolerantly: what is wrong with a row is kept with its line.

| convention | what it is |
|---|---|
| `flowley` | TSV with a header: video_path, text_description, split, label and, optionally, id |
| `mmaudio` | TSV with a header: id and label (or caption); the file's name contains train, val or test |
| `vggsound` | CSV without a header: YouTube id, second at which it starts, label, train or test |
| `moviegen` | JSON lines with id and audio_prompt |

All but the first have no paths: the file of a clip is called like its id.
"""

import csv
import dataclasses
import enum
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flowley_jax.data.clip_table import COLUMNS, SPLITS
from flowley_jax.errors import FlowleyError

_SPLITS_OF_VGGSOUND = ("train", "test")
_SPLITS_OF_NAMES = {"train": "train", "val": "valid", "test": "test"}
# A table is known by one good line of these.
_LOOKED_AT = 20
_SHOWN = 80


class Kind(enum.StrEnum):
    """The conventions."""

    FLOWLEY = "flowley"
    MMAUDIO = "mmaudio"
    VGGSOUND = "vggsound"
    MOVIEGEN = "moviegen"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableRow:
    """A clip as a table names it.

    Attributes:
      line: in the file, from 1.
      path: as it is written; empty where the convention has none.
    """

    line: int
    id: str
    path: str = ""
    caption: str
    split: str
    label: str


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with a line."""

    line: int
    detail: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows in order, those among them that only have an unknown split included, and what is wrong."""

    path: Path
    kind: Kind
    rows: list[TableRow]
    faults: list[Fault]

    def without_faults(self) -> list[TableRow]:
        """The rows.

        Raises:
          FlowleyError: naming file and line, if there is a fault or no row.
        """
        if self.faults:
            fault = self.faults[0]
            more = f" (and {len(self.faults) - 1} lines more)" if len(self.faults) > 1 else ""
            raise FlowleyError(f"{self.path}, line {fault.line}: {fault.detail}{more}")
        return self.rows


class _Faulty(Exception):
    """Says what is wrong with a line."""


_Line = tuple[int, str]
_Reader = Callable[[Path, list[_Line]], tuple[list[TableRow], list[Fault]]]


def read_table(path: str | os.PathLike, kind: str | None = None) -> Table:
    """The rows of a table and what is wrong with others.

    Args:
      kind: the convention; by default it is known from the content.

    Raises:
      FlowleyError: naming the file, if it cannot be read, is empty, is of no known convention, or lacks what
        no row of its convention can do without.
    """
    path = Path(path)
    lines, faults = _lines_of(path)
    if not lines:
        raise FlowleyError(f"{path}: the table is empty")
    known = _recognised(path, lines) if kind is None else _named(kind)
    rows, more = _READERS[known](path, lines)
    faults = sorted([*faults, *more], key=lambda fault: fault.line)
    if not rows and not faults:
        raise FlowleyError(f"{path}: the table has no rows")
    return Table(path, known, rows, faults)


def _named(kind: str) -> Kind:
    if kind not in list(Kind):
        raise FlowleyError(f"a table cannot be of the kind {kind!r}; there are {', '.join(Kind)}")
    return Kind(kind)


def _lines_of(path: Path) -> tuple[list[_Line], list[Fault]]:
    """Lines that are not empty, with their numbers; and those that are no text."""
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError as error:
        raise FlowleyError(f"{path}: no such table") from error
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be read as a table ({error.strerror})") from error
    lines, faults = [], []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            faults.append(Fault(number, "is not UTF-8 text"))
            continue
        if text.strip():
            lines.append((number, text))
    return lines, faults


def _recognised(path: Path, lines: Sequence[_Line]) -> Kind:
    header, looked_at = _tabbed(lines[0][1]), [text for _, text in lines[:_LOOKED_AT]]
    if "video_path" in header:
        return Kind.FLOWLEY
    if "id" in header and {"label", "caption"} & set(header):
        return Kind.MMAUDIO
    if any(_is_prompt(text) for text in looked_at):
        return Kind.MOVIEGEN
    if any(len(cells := _comma(text)) == 4 and cells[1].strip().isdigit() for text in looked_at):
        return Kind.VGGSOUND
    raise FlowleyError(
        f"{path}: no known table: its first line is {lines[0][1][:_SHOWN]!r}; expected a TSV with the columns"
        f" {', '.join(COLUMNS)} (flowley) or id, label (mmaudio), lines as of vggsound.csv (vggsound), or"
        " JSON lines with id and audio_prompt (moviegen)"
    )


def _is_prompt(text: str) -> bool:
    try:
        return "audio_prompt" in json.loads(text) if text.startswith("{") else False
    except ValueError:
        return False


def _tabbed(text: str) -> list[str]:
    return text.split("\t")


def _quoted_tabbed(text: str) -> list[str]:
    return next(csv.reader([text], delimiter="\t"), [])


def _comma(text: str) -> list[str]:
    try:
        return next(csv.reader([text]), [])
    except csv.Error:
        return []


def _read_flowley(path: Path, lines: list[_Line]) -> tuple[list[TableRow], list[Fault]]:
    header = _header(path, lines, _tabbed, {"video_path"})
    rows, faults = _parsed(lines[1:], lambda line, text: _flowley_row(line, _by_name(header, _tabbed(text))))
    if missing := [column for column in COLUMNS if column not in header]:
        columns = "column" if len(missing) == 1 else "columns"
        faults.append(Fault(lines[0][0], f"the header has no {columns} {', '.join(missing)}"))
    if "split" in header:
        faults += [
            Fault(row.line, f"split {row.split!r} must be one of {', '.join(SPLITS)}")
            for row in rows
            if row.split not in SPLITS
        ]
    return rows, faults


def _flowley_row(line: int, cells: Mapping[str, str]) -> TableRow:
    video = cells["video_path"]
    if not video:
        raise _Faulty("empty video_path")
    return TableRow(
        line=line,
        id=_file_name(cells.get("id") or Path(video).stem),
        path=video,
        caption=cells.get("text_description", ""),
        split=cells.get("split", ""),
        label=cells.get("label", ""),
    )


def _read_mmaudio(path: Path, lines: list[_Line]) -> tuple[list[TableRow], list[Fault]]:
    header = _header(path, lines, _quoted_tabbed, {"id"})
    named = [split for word, split in _SPLITS_OF_NAMES.items() if word in path.stem.lower()]
    split = named[0] if len(named) == 1 else ""

    def row(line: int, text: str) -> TableRow:
        cells = _by_name(header, _quoted_tabbed(text))
        label = cells.get("label", "")
        caption = cells.get("caption", label)
        return TableRow(line=line, id=_file_name(cells["id"]), caption=caption, split=split, label=label)

    rows, faults = _parsed(lines[1:], row)
    if not {"label", "caption"} & set(header):
        faults.append(Fault(lines[0][0], "the header has no column label or caption"))
    if not split:
        several = "more than one" if named else "none"
        faults.append(
            Fault(lines[0][0], f"the file's name has {several} of train, val, test: no split known")
        )
    return rows, faults


def _read_vggsound(path: Path, lines: list[_Line]) -> tuple[list[TableRow], list[Fault]]:
    rows, faults = _parsed(lines, lambda line, text: _vggsound_row(line, _comma(text)))
    faults += [
        Fault(row.line, f"split {row.split!r} must be one of {', '.join(_SPLITS_OF_VGGSOUND)}")
        for row in rows
        if row.split not in _SPLITS_OF_VGGSOUND
    ]
    return rows, faults


def _vggsound_row(line: int, cells: Sequence[str]) -> TableRow:
    if len(cells) != 4:
        raise _Faulty(f"has {len(cells)} fields; expected YouTube id, start, label, split")
    youtube, start, label, split = (cell.strip() for cell in cells)
    if not re.fullmatch("[0-9]{1,6}", start):
        raise _Faulty(f"start {start!r} must be a whole number of seconds")
    clip_id = _file_name(f"{youtube}_{int(start):06d}") if youtube else _file_name("")
    return TableRow(line=line, id=clip_id, caption=label, split=split, label=label)


def _read_moviegen(path: Path, lines: list[_Line]) -> tuple[list[TableRow], list[Fault]]:
    return _parsed(lines, _moviegen_row)


def _moviegen_row(line: int, text: str) -> TableRow:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise _Faulty(f"is no JSON ({error})") from error
    if not isinstance(value, dict) or {"id", "audio_prompt"} - set(value):
        raise _Faulty(f"must be an object with id and audio_prompt, not {text[:_SHOWN]!r}")
    if not isinstance(value["audio_prompt"], str) or not isinstance(value["id"], int | str):
        raise _Faulty("id must be a number or a text, and audio_prompt a text")
    caption = value["audio_prompt"]
    return TableRow(line=line, id=_file_name(str(value["id"])), caption=caption, split="test", label="")


def _header(
    path: Path, lines: list[_Line], cells_of: Callable[[str], list[str]], needed: set[str]
) -> list[str]:
    header = cells_of(lines[0][1])
    if missing := needed - set(header):
        seen = lines[0][1][:_SHOWN]
        raise FlowleyError(f"{path}: no column {', '.join(sorted(missing))} in its first line {seen!r}")
    return header


def _by_name(header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise _Faulty(f"has {len(cells)} fields; the header has {len(header)}")
    return dict(zip(header, cells, strict=True))


def _file_name(clip_id: str) -> str:
    if not clip_id or clip_id != Path(clip_id).name or clip_id.startswith("."):
        raise _Faulty(f"id {clip_id!r} must do as the name of a file")
    return clip_id


def _parsed(
    lines: Sequence[_Line], row: Callable[[int, str], TableRow]
) -> tuple[list[TableRow], list[Fault]]:
    rows, faults = [], []
    for result in _each(lines, row):
        (faults if isinstance(result, Fault) else rows).append(result)
    return rows, faults


def _each(lines: Sequence[_Line], row: Callable[[int, str], TableRow]) -> Iterator[TableRow | Fault]:
    for number, text in lines:
        try:
            yield row(number, text)
        except _Faulty as error:
            yield Fault(number, str(error))
        except csv.Error as error:
            yield Fault(number, f"cannot be read ({error})")


_READERS: Mapping[Kind, _Reader] = {
    Kind.FLOWLEY: _read_flowley,
    Kind.MMAUDIO: _read_mmaudio,
    Kind.VGGSOUND: _read_vggsound,
    Kind.MOVIEGEN: _read_moviegen,
}
