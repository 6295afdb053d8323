"""Check a table's rows without opening any file: form, ids, captions, splits."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_prep.lint.findings import Case, Finding, Severity, findings_of, row_case
from data_prep.table_formats import Table
from flowley_jax.data.clip_table import TableRow

_YOUTUBE_CLIP = re.compile(r"([\w-]{11})_\d{6}")
_YOUTUBE_NAME = re.compile(r"[\w-]{11}(_\d{1,6})?")


def check_rows(table: Table) -> list[Finding]:
    """Report malformed rows, repeated ids, poor captions, and clips or videos in more than one split."""
    rows = table.rows
    faults = [Case(fault.line, "", fault.detail) for fault in table.faults]
    by_id = ((row.id, row) for row in rows)
    by_video = ((clip[1], row) for row in rows if (clip := _YOUTUBE_CLIP.fullmatch(row.id)))
    no_caption = (row_case(row) for row in rows if not row.caption.strip())
    return [
        *findings_of(Severity.ERROR, "malformed", "lines that cannot be used as they are", faults),
        *findings_of(Severity.ERROR, "duplicate_id", "ids of more than one row", _repeated_ids(rows)),
        *findings_of(Severity.WARNING, "no_caption", "rows with an empty caption", no_caption),
        *findings_of(
            Severity.WARNING,
            "caption_is_a_file_name",
            "captions made of the letters of a YouTube id, which describe nothing",
            (row_case(row, repr(row.caption)) for row in rows if _is_file_name(row)),
        ),
        *findings_of(Severity.ERROR, "clip_in_splits", "ids in more than one split", _split_conflicts(by_id)),
        *findings_of(
            Severity.ERROR,
            "video_in_splits",
            "clips of a YouTube video that is also in another split",
            _split_conflicts(by_video),
        ),
    ]


def check_captions(rows: Sequence[TableRow], captions: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Report captions from other sources that belong to no clip, and clips without such a caption.

    Args:
      rows: rows of the table.
      captions: captions by source and id.
    """
    ids, findings = {row.id for row in rows}, []
    for source, by_id in captions.items():
        unknown = [Case(None, clip_id, source) for clip_id in by_id if clip_id not in ids]
        summary = f"captions of {source} that belong to no clip of the table"
        findings += findings_of(Severity.WARNING, "captions_unknown", summary, unknown)
        lacking = [row_case(row, source) for row in rows if not by_id.get(row.id)]
        summary = f"clips without a caption of {source}"
        findings += findings_of(Severity.WARNING, "captions_lacking", summary, lacking)
    return findings


def _repeated_ids(rows: Sequence[TableRow]) -> Iterable[Case]:
    first: dict[str, TableRow] = {}
    for row in rows:
        if row.id in first:
            yield row_case(row, f"as in line {first[row.id].line}")
        first.setdefault(row.id, row)


def _is_file_name(row: TableRow) -> bool:
    """Return whether a caption consists of the letters of the YouTube id that names the file."""
    name = Path(row.path).stem or row.id
    letters = _letters(row.caption)
    return bool(letters) and letters == _letters(name) and _looks_like_youtube(name)


def _looks_like_youtube(name: str) -> bool:
    """Return whether a name is 11 mixed characters, as most YouTube ids are, with or without a start."""
    kinds = ("[a-z]", "[A-Z]", "[0-9]")
    return bool(_YOUTUBE_NAME.fullmatch(name)) and all(re.search(kind, name[:11]) for kind in kinds)


def _letters(text: str) -> str:
    return "".join(re.findall(r"[^\W\d_]", text))


def _split_conflicts(named_rows: Iterable[tuple[str, TableRow]]) -> Iterable[Case]:
    """Yield rows whose split differs from that of the first row of the same name."""
    first: dict[str, TableRow] = {}
    for name, row in named_rows:
        other = first.setdefault(name, row)
        if other.split != row.split:
            yield row_case(row, f"{row.split}, but {other.id} in line {other.line} is {other.split}")
