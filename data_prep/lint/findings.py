"""The findings of a check, as people and programs read them."""

import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import Any

from flowley_jax.data.clip_table import TableRow

_PRINTED_CASES = 5


class Severity(enum.StrEnum):
    """Severity of a finding: errors spoil training or its scores, warnings may, notes only inform."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclasses.dataclass(frozen=True)
class Case:
    """One case of a finding.

    Attributes:
      line: line of the table; None if the case has no line.
      id: id of the clip; empty if the case is not about one clip.
      detail: what was found; may be empty.
    """

    line: int | None
    id: str
    detail: str

    def __str__(self) -> str:
        where = [f"line {self.line}"] if self.line is not None else []
        where += [self.id] if self.id else []
        return ": ".join(text for text in (", ".join(where), self.detail) if text)


@dataclasses.dataclass(frozen=True)
class Finding:
    """All cases of one problem.

    Attributes:
      severity: how serious the problem is.
      code: short name of the problem.
      summary: the problem in a few words.
      cases: all cases.
    """

    severity: Severity
    code: str
    summary: str
    cases: Sequence[Case]

    @property
    def json(self) -> dict[str, Any]:
        """The finding as lint.json has it."""
        fields = dataclasses.asdict(self)
        cases = fields.pop("cases")
        # lint.json has always called them examples.
        return {**fields, "examples": cases, "count": len(cases)}

    def __str__(self) -> str:
        lines = [f"    {case}" for case in self.cases[:_PRINTED_CASES]]
        if len(self.cases) > _PRINTED_CASES:
            lines.append(f"    … {len(self.cases) - _PRINTED_CASES} more")
        return "\n".join([f"{self.severity} {self.code} ({len(self.cases)}): {self.summary}", *lines])


def row_case(row: TableRow, detail: str = "") -> Case:
    """Return a row of a table as a case."""
    return Case(row.line, row.id, detail)


def findings_of(severity: Severity, code: str, summary: str, cases: Iterable[Case]) -> list[Finding]:
    """Return one finding, or none if it has no cases."""
    listed = list(cases)
    return [Finding(severity, code, summary, listed)] if listed else []
