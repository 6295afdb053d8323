"""Check the files that a table names: which exist, which can be read, and which are copies of others."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from data_prep.clip_files import ClipFiles
from data_prep.lint.findings import Case, Finding, Severity, findings_of, row_case
from data_prep.lint.fingerprint_cache import FingerprintResult
from data_prep.lint.fingerprints import Fingerprints
from data_prep.lint.near_pairs import codes_of, near_pairs
from data_prep.rejection import Rejection
from data_prep.storage import file_stamps, is_remote
from data_prep.table_formats import Table
from flowley_jax.data.clip_table import SPLITS, TableRow
from flowley_jax.errors import FlowleyError

# Rows that have a file, each with its path.
RowsWithFiles = Sequence[tuple[TableRow, str]]


def check_files(table: Table, root: str | Path | None) -> tuple[RowsWithFiles, list[Finding]]:
    """Find the files of a table's rows.

    Args:
      table: the table.
      root: additional folder to search for files.

    Returns:
      Rows with their files, and findings: missing files, files that only this check finds, and files of
      several rows.

    Raises:
      FlowleyError: the root does not exist.
    """
    if root is not None and not Path(root).is_dir():
        raise FlowleyError(f"--root={root}: no such folder")
    files = ClipFiles(table.path.parent, None if root is None else Path(root))
    paths = [(row, files.find(row)) for row in table.rows]
    remote = file_stamps({path for _, path in paths if path and is_remote(path)})
    existing = [(row, path) for row, path in paths if path and remote.get(path, path)]
    existing_lines = {row.line for row, _ in existing}
    missing = [row for row in table.rows if row.line not in existing_lines]
    elsewhere = [(row, path) for row, path in existing if not files.is_at_written_path(row, path)]
    return existing, [
        *findings_of(
            Severity.ERROR,
            "missing",
            "clips without a file",
            (row_case(row, row.path or f"{row.id}.mp4") for row in missing),
        ),
        *findings_of(
            Severity.WARNING,
            "elsewhere",
            "files that this check found, but not at their written paths",
            (row_case(row, f"{row.path} found at {path}") for row, path in elsewhere),
        ),
        *_repeated_files(existing),
    ]


def _repeated_files(rows: RowsWithFiles) -> list[Finding]:
    first: dict[str, TableRow] = {}
    other_split: list[Case] = []
    same_split: list[Case] = []
    for row, path in rows:
        other = first.setdefault(path if is_remote(path) else os.path.abspath(path), row)
        if other is not row:
            cases = same_split if other.split == row.split else other_split
            cases.append(row_case(row, f"as in line {other.line}: {path}"))
    return [
        *findings_of(Severity.ERROR, "file_in_splits", "files in more than one split", other_split),
        *findings_of(Severity.WARNING, "duplicate_file", "files of more than one row", same_split),
    ]


def check_fingerprints(rows: RowsWithFiles, results: Mapping[str, FingerprintResult]) -> list[Finding]:
    """Report files that cannot be read, files that cannot be compared, and copies.

    Args:
      rows: rows with their files.
      results: fingerprints by path, or the reason why there are none.
    """
    read = [(row, path, results[path]) for row, path in rows]
    unreadable = [
        row_case(row, f"{result.reason}: {result.detail}")
        for row, _, result in read
        if isinstance(result, Rejection)
    ]
    fingerprints = [(row, path, result) for row, path, result in read if isinstance(result, Fingerprints)]
    blank = [row_case(row) for row, _, result in fingerprints if not (result.picture or result.sound)]
    lacking = [row_case(row, f"no {result.lacks}") for row, _, result in fingerprints if result.lacks]
    # A file that two rows share is reported elsewhere, so only its first row counts here.
    first_rows = {path: (row, result) for row, path, result in reversed(fingerprints)}
    return [
        *findings_of(Severity.ERROR, "unreadable", "files that cannot be read", unreadable),
        *findings_of(Severity.WARNING, "lacks_a_stream", "clips without video or without audio", lacking),
        *findings_of(
            Severity.NOTE,
            "not_compared",
            "clips too plain and too quiet, or too short, to be compared with others",
            blank,
        ),
        *_copies(sorted(first_rows.values(), key=lambda item: (_split_rank(item[0]), item[0].line))),
    ]


def _split_rank(row: TableRow) -> int:
    return SPLITS.index(row.split) if row.split in SPLITS else len(SPLITS)


def _copies(clips: Sequence[tuple[TableRow, Fingerprints]]) -> list[Finding]:
    """Report every clip that is near another one, with the first clip of its group."""
    links = np.concatenate(
        [_links([prints.picture for _, prints in clips]), _links([prints.sound for _, prints in clips])]
    )
    if not len(links):
        return []
    graph = scipy.sparse.coo_array((np.ones(len(links)), links.T), shape=(len(clips), len(clips)))
    groups = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    first: dict[int, int] = {}
    other_split: list[Case] = []
    same_split: list[Case] = []
    for index, group in enumerate(groups.tolist()):
        first_index = first.setdefault(group, index)
        if first_index != index:
            (row, prints), (other, other_prints) = clips[index], clips[first_index]
            distance = _describe_distance(prints, other_prints)
            detail = f"{row.split}, near {other.id} in line {other.line}, {other.split} ({distance})"
            (same_split if row.split == other.split else other_split).append(row_case(row, detail))
    return [
        *findings_of(Severity.ERROR, "copy_in_splits", "near-duplicates across splits", other_split),
        *findings_of(Severity.NOTE, "copy", "near-duplicates within a split", same_split),
    ]


def _links(digits: Sequence[str | None]) -> np.ndarray:
    """Return pairs of indices whose fingerprints are near; of equal ones, only pairs with the first."""
    indices: dict[str, list[int]] = {}
    for index, fingerprint in enumerate(digits):
        if fingerprint is not None:
            indices.setdefault(fingerprint, []).append(index)
    first = np.array([equal[0] for equal in indices.values()], np.int64)
    near = first[near_pairs(codes_of(list(indices)))] if indices else np.empty((0, 2), np.int64)
    equal_pairs = [(equal[0], other) for equal in indices.values() for other in equal[1:]]
    return np.concatenate([near, np.array(equal_pairs, np.int64).reshape(-1, 2)])


def _describe_distance(first: Fingerprints, second: Fingerprints) -> str:
    """Return the distance of two clips as text, such as "picture 3, sound 120 of 256 bits differ"."""
    pairs = {"picture": (first.picture, second.picture), "sound": (first.sound, second.sound)}
    distances = [
        f"{stream} {(int(one, 16) ^ int(other, 16)).bit_count()}"
        for stream, (one, other) in pairs.items()
        if one and other
    ]
    return f"{', '.join(distances)} of 256 bits differ"
