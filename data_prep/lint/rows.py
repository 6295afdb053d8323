"""Checks of a table's rows alone: form, ids, captions, splits."""

import re
from collections.abc import Iterable, Mapping, Sequence

from data_prep.lint.findings import Example, Finding, Severity, example, found
from data_prep.tables import Table, TableRow

_OF_YOUTUBE = re.compile(r"([\w-]{11})_\d{6}")


def check_rows(table: Table) -> list[Finding]:
    """Malformed rows, ids that occur twice, empty captions, and clips or videos in more than one split."""
    faults = [Example(fault.line, "", fault.detail) for fault in table.faults]
    return [
        *found(Severity.ERROR, "malformed", "lines that cannot be used as they are", faults),
        *found(Severity.ERROR, "duplicate_id", "ids of more than one row", _repeated_ids(table.rows)),
        *found(Severity.WARNING, "no_caption", "rows with an empty caption", _without_caption(table.rows)),
        *found(
            Severity.ERROR,
            "clip_in_splits",
            "ids in more than one split",
            _in_splits((row.id, row) for row in table.rows),
        ),
        *found(
            Severity.ERROR,
            "video_in_splits",
            "clips of a YouTube video that is in another split as well",
            _in_splits((video[1], row) for row in table.rows if (video := _OF_YOUTUBE.fullmatch(row.id))),
        ),
    ]


def check_captions(rows: Sequence[TableRow], captions: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Captions of other sources that are of no clip, and clips that they lack."""
    ids, findings = {row.id for row in rows}, []
    for source, by_id in captions.items():
        unknown = [Example(None, clip_id, source) for clip_id in by_id if clip_id not in ids]
        lacking = [example(row, source) for row in rows if not by_id.get(row.id)]
        findings += found(
            Severity.WARNING, "captions_unknown", f"captions of {source} of no clip of the table", unknown
        )
        findings += found(Severity.WARNING, "captions_lacking", f"clips without caption of {source}", lacking)
    return findings


def _repeated_ids(rows: Sequence[TableRow]) -> Iterable[Example]:
    first: dict[str, TableRow] = {}
    for row in rows:
        if row.id in first:
            yield example(row, f"as in line {first[row.id].line}")
        first.setdefault(row.id, row)


def _without_caption(rows: Sequence[TableRow]) -> Iterable[Example]:
    return (example(row) for row in rows if not row.caption.strip())


def _in_splits(named: Iterable[tuple[str, TableRow]]) -> Iterable[Example]:
    """Rows of a name whose split is not that of the name's first row."""
    first: dict[str, TableRow] = {}
    for name, row in named:
        other = first.setdefault(name, row)
        if other.split != row.split:
            yield example(row, f"{row.split}, but {other.id} in line {other.line} is {other.split}")
