"""Checks of the files that a table names: which are there, can be read, and are copies of others."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from data_prep.clip_files import ClipFiles
from data_prep.files import is_remote, stamps_of
from data_prep.fingerprints import Fingerprints
from data_prep.lint.findings import Example, Finding, Severity, example, found
from data_prep.lint.readings import Reading
from data_prep.near_pairs import codes_of, near_pairs
from data_prep.rejection import Rejection
from data_prep.tables import Table, TableRow
from flowley_jax.data.clip_table import SPLITS
from flowley_jax.errors import FlowleyError

# Rows that have a file, with its path.
Located = Sequence[tuple[TableRow, str]]


def locate(table: Table, root: str | Path | None) -> tuple[Located, list[Finding]]:
    """Files of rows; missing ones, those that the table does not lead to, and those of two rows."""
    if root is not None and not Path(root).is_dir():
        raise FlowleyError(f"--root={root}: no such folder")
    files = ClipFiles(table.path.parent, None if root is None else Path(root))
    places = [(row, files.find(row)) for row in table.rows]
    remote = stamps_of({path for _, path in places if path and is_remote(path)})
    located = [(row, path) for row, path in places if path and remote.get(path, path)]
    there = {row.line for row, _ in located}
    missing = [row for row in table.rows if row.line not in there]
    elsewhere = [(row, path) for row, path in located if not files.is_as_written(row, path)]
    return located, [
        *found(
            Severity.ERROR,
            "missing",
            "clips without a file",
            (example(row, row.path or f"{row.id}.mp4") for row in missing),
        ),
        *found(
            Severity.WARNING,
            "elsewhere",
            "files that only this check finds: their paths lead elsewhere",
            (example(row, f"{row.path} is {path}") for row, path in elsewhere),
        ),
        *_same_files(located),
    ]


def _same_files(located: Located) -> list[Finding]:
    first: dict[str, TableRow] = {}
    examples: dict[bool, list[Example]] = {True: [], False: []}
    for row, path in located:
        other = first.setdefault(path if is_remote(path) else os.path.abspath(path), row)
        if other is not row:
            examples[other.split != row.split].append(example(row, f"as in line {other.line}: {path}"))
    return [
        *found(Severity.ERROR, "file_in_splits", "files in more than one split", examples[True]),
        *found(Severity.WARNING, "duplicate_file", "files of more than one row", examples[False]),
    ]


def check_readings(located: Located, readings: Mapping[str, Reading]) -> list[Finding]:
    """Files that cannot be read, those that cannot be compared, and copies."""
    read = [(row, path, readings[path]) for row, path in located]
    unreadable = [
        example(row, f"{reading.reason}: {reading.detail}")
        for row, _, reading in read
        if isinstance(reading, Rejection)
    ]
    blank = [
        example(row)
        for row, _, reading in read
        if isinstance(reading, Fingerprints) and not _has_any(reading)
    ]
    lacking = [
        example(row, f"no {reading.lacks}")
        for row, _, reading in read
        if isinstance(reading, Fingerprints) and reading.lacks
    ]
    # The same file in two rows is a finding of its own.
    once = {path: (row, reading) for row, path, reading in reversed(read)}
    whole = [(row, reading) for row, reading in once.values() if isinstance(reading, Fingerprints)]
    return [
        *found(Severity.ERROR, "unreadable", "files that cannot be read", unreadable),
        *found(Severity.WARNING, "lacks_a_stream", "clips without picture or without sound", lacking),
        *found(
            Severity.NOTE,
            "not_compared",
            "clips too plain and too quiet, or too short, to be compared with others",
            blank,
        ),
        *_copies(sorted(whole, key=lambda item: (_rank(item[0]), item[0].line))),
    ]


def _has_any(reading: Fingerprints) -> bool:
    return bool(reading.picture or reading.sound)


def _rank(row: TableRow) -> int:
    return SPLITS.index(row.split) if row.split in SPLITS else len(SPLITS)


def _copies(clips: Sequence[tuple[TableRow, Fingerprints]]) -> list[Finding]:
    """Every clip that is near another, beside the first of its group."""
    links = np.concatenate(
        [_links([reading.picture for _, reading in clips]), _links([reading.sound for _, reading in clips])]
    )
    if not len(links):
        return []
    graph = scipy.sparse.coo_array((np.ones(len(links)), links.T), shape=(len(clips), len(clips)))
    groups = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    first: dict[int, int] = {}
    examples: dict[bool, list[Example]] = {True: [], False: []}
    for place, group in enumerate(groups.tolist()):
        other = first.setdefault(group, place)
        if other != place:
            row, beside = clips[place][0], clips[other][0]
            detail = f"{row.split}, near {beside.id} in line {beside.line}, {beside.split}"
            apart = _apart(clips[place][1], clips[other][1])
            examples[row.split != beside.split].append(example(row, f"{detail} ({apart})"))
    return [
        *found(
            Severity.ERROR, "copy_in_splits", "clips as good as equal to one of another split", examples[True]
        ),
        *found(Severity.NOTE, "copy", "clips as good as equal to another of their split", examples[False]),
    ]


def _links(digits: Sequence[str | None]) -> np.ndarray:
    """Pairs of places whose fingerprints are near; of equal ones each with the first alone."""
    places: dict[str, list[int]] = {}
    for place, one in enumerate(digits):
        if one is not None:
            places.setdefault(one, []).append(place)
    first = np.array([same[0] for same in places.values()], np.int64)
    near = first[near_pairs(codes_of(list(places)))] if places else np.empty((0, 2), np.int64)
    equal = [(same[0], other) for same in places.values() for other in same[1:]]
    return np.concatenate([near, np.array(equal, np.int64).reshape(-1, 2)])


def _apart(first: Fingerprints, second: Fingerprints) -> str:
    """Such as "picture 3, sound 120 of 256 bits apart"."""
    pairs = {"picture": (first.picture, second.picture), "sound": (first.sound, second.sound)}
    known = [
        f"{what} {(int(one, 16) ^ int(other, 16)).bit_count()}"
        for what, (one, other) in pairs.items()
        if one and other
    ]
    return f"{', '.join(known)} of 256 bits apart"
