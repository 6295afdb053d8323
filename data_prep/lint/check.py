"""Run all checks of a table, print a summary, and write lint.json."""

import collections
import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_prep.caption_files import read_captions
from data_prep.lint.balance import check_balance, count_labels
from data_prep.lint.findings import Finding, Severity
from data_prep.lint.fingerprint_cache import read_fingerprints
from data_prep.lint.media import check_files, check_fingerprints
from data_prep.lint.rows import check_captions, check_rows
from data_prep.lint.shift import check_shift
from data_prep.lint.timelines import check_timelines
from data_prep.settings import RecordSettings
from data_prep.storage import file_stamps
from data_prep.table_formats import Table, read_table
from data_prep.table_making import split_counts
from flowley_jax.common.files import remove_partials, write_text
from flowley_jax.common.json_files import read_json_object
from flowley_jax.common.locks import lock_folder
from flowley_jax.errors import FlowleyError

REPORT_FILE = "lint.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LintOptions:
    """Options for checking the files of a table.

    Attributes:
      fingerprints: whether files are read, and copies found among them.
      workers: processes that read files.
      time_limit: time limit for reading one file, in seconds.
      seconds: length of the clips that will be made of the files, in seconds.
    """

    fingerprints: bool = True
    workers: int = 2
    time_limit: float = 120.0
    seconds: float = RecordSettings.seconds


def lint(
    path: str | Path,
    *,
    kind: str | None = None,
    root: str | Path | None = None,
    out: str | Path | None = None,
    captions: Mapping[str, str | Path] | None = None,
    options: LintOptions | None = None,
) -> list[Finding]:
    """Check a table, print the findings, and write them to `out`.

    Args:
      path: the table.
      kind: format of the table; by default it is recognised from the content.
      root: additional folder to search for files.
      out: folder for lint.json and the cache of fingerprints.
      captions: files with captions from other sources, by source.
      options: how files are checked.

    Returns:
      The findings, errors first.

    Raises:
      FlowleyError: the table or the captions cannot be read at all, or `out` cannot be written or holds a
        report of another program.
    """
    table = read_table(path, kind)
    out = None if out is None else Path(out)
    with contextlib.nullcontext() if out is None else _own_folder(out):
        return _lint(table, root, out, captions or {}, options or LintOptions())


@contextlib.contextmanager
def _own_folder(out: Path) -> Iterator[None]:
    """Keep other processes from the folder of a report; remove what killed ones left there."""
    report = out / REPORT_FILE
    if os.path.lexists(report) and "findings" not in read_json_object(report):
        raise FlowleyError(f"{report}: data_prep.lint did not write it, and would replace it; change --out")
    with lock_folder(out):
        remove_partials(out)
        yield


def _lint(
    table: Table,
    root: str | Path | None,
    out: Path | None,
    captions: Mapping[str, str | Path],
    options: LintOptions,
) -> list[Finding]:
    findings = _run_checks(table, root, out, captions, options)
    findings.sort(key=lambda finding: list(Severity).index(finding.severity))
    counts = split_counts(row.split for row in table.rows)
    print(f"{table.path}: {len(table.rows)} clips ({table.format}): {counts}")
    for finding in findings:
        print(finding)
    print(_verdict(findings))
    if out is not None:
        write_text(out / REPORT_FILE, _report(table, findings))
        print(f"all cases are in {out / REPORT_FILE}")
    return findings


def _run_checks(
    table: Table,
    root: str | Path | None,
    out: Path | None,
    captions: Mapping[str, str | Path],
    options: LintOptions,
) -> list[Finding]:
    rows, file_findings = check_files(table, root)
    findings = [*check_rows(table), *check_shift(table.rows), *check_balance(table.rows), *file_findings]
    if captions:
        findings += check_captions(table.rows, read_captions(captions))
    if options.fingerprints:
        paths = dict.fromkeys(path for _, path in rows)
        stamps = {path: stamp for path, stamp in file_stamps(paths).items() if stamp}
        results = read_fingerprints(
            stamps, table.path.parent, out, workers=options.workers, time_limit=options.time_limit
        )
        files = [(row, path) for row, path in rows if path in results]
        findings += [*check_fingerprints(files, results), *check_timelines(files, results, options.seconds)]
    return findings


def _verdict(findings: Sequence[Finding]) -> str:
    counts = collections.Counter(finding.severity for finding in findings)
    listed = ", ".join(
        f"{counts[severity]} {severity}{'s' if counts[severity] > 1 else ''}"
        for severity in Severity
        if counts[severity]
    )
    return f"findings: {listed or 'none'}"


def _report(table: Table, findings: Sequence[Finding]) -> str:
    report = {
        "table": str(table.path),
        "kind": table.format,
        "clips": len(table.rows),
        "findings": [finding.json for finding in findings],
        "balance": count_labels(table.rows),
    }
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"
