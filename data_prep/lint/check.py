"""All checks of a table, their summary, and lint.json."""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.clip_set import counts_line
from data_prep.files import stamps_of
from data_prep.lint.balance import balance_of, check_balance
from data_prep.lint.findings import Finding, Severity
from data_prep.lint.media import check_readings, locate
from data_prep.lint.readings import read_all
from data_prep.lint.rows import check_captions, check_rows
from data_prep.lint.shift import check_shift
from data_prep.tables import Table, read_table
from flowley_jax.whole_files import write_text

REPORT_FILE = "lint.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read.

    Attributes:
      fingerprints: whether they are.
      workers: processes that read.
      time_limit: seconds after which the reading of one file is given up.
    """

    fingerprints: bool = True
    workers: int = 2
    time_limit: float = 120.0


def lint(
    path: str | Path,
    *,
    kind: str | None = None,
    root: str | Path | None = None,
    out: str | Path | None = None,
    captions: Mapping[str, str | Path] | None = None,
    reading: Reading | None = None,
) -> list[Finding]:
    """Checks a table, prints what is found, and writes it to `out`; errors first.

    Raises:
      FlowleyError: table or captions cannot be read at all, or `out` cannot be written.
    """
    table = read_table(path, kind)
    findings = _findings(
        table, root, None if out is None else Path(out), captions or {}, reading or Reading()
    )
    findings.sort(key=lambda finding: list(Severity).index(finding.severity))
    print(f"{path}: {len(table.rows)} clips ({table.kind}): {counts_line(row.split for row in table.rows)}")
    for finding in findings:
        print(finding)
    print(_verdict(findings))
    if out is not None:
        write_text(Path(out) / REPORT_FILE, _report(table, findings))
        print(f"all of it is in {Path(out) / REPORT_FILE}")
    return findings


def _findings(
    table: Table,
    root: str | Path | None,
    out: Path | None,
    captions: Mapping[str, str | Path],
    reading: Reading,
) -> list[Finding]:
    located, of_files = locate(table, root)
    findings = [*check_rows(table), *check_shift(table.rows), *check_balance(table.rows), *of_files]
    if captions:
        # Settings of records, which take seconds to import.
        from data_prep.rows import read_captions

        findings += check_captions(table.rows, read_captions(captions))
    if reading.fingerprints:
        paths = dict.fromkeys(path for _, path in located)
        stamps = {path: stamp for path, stamp in stamps_of(paths).items() if stamp}
        readings = read_all(stamps, out, workers=reading.workers, time_limit=reading.time_limit)
        findings += check_readings([(row, path) for row, path in located if path in readings], readings)
    return findings


def _verdict(findings: Sequence[Finding]) -> str:
    counts = collections.Counter(finding.severity for finding in findings)
    listed = ", ".join(f"{counts[severity]} {severity}" for severity in Severity if counts[severity])
    return f"findings: {listed or 'none'}"


def _report(table: Table, findings: Sequence[Finding]) -> str:
    report = {
        "table": str(table.path),
        "kind": table.kind,
        "clips": len(table.rows),
        "findings": [finding.json for finding in findings],
        "balance": balance_of(table.rows),
    }
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"
