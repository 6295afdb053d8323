"""What a check finds, as people and programs read it."""

import dataclasses
import enum
from collections.abc import Iterable, Sequence
from typing import Any

from data_prep.tables import TableRow

_SHOWN = 5


class Severity(enum.StrEnum):
    """An error spoils training or its figures; a warning may; a note is good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclasses.dataclass(frozen=True)
class Example:
    """One case, with the line of the table and the clip's id where there are such."""

    line: int | None
    id: str
    detail: str

    def __str__(self) -> str:
        place = [f"line {self.line}"] if self.line is not None else []
        return ": ".join([", ".join([*place, *([self.id] if self.id else [])]), self.detail]).strip(": ")


@dataclasses.dataclass(frozen=True)
class Finding:
    """All cases of one code."""

    severity: Severity
    code: str
    summary: str
    examples: Sequence[Example]

    @property
    def json(self) -> dict[str, Any]:
        """As it stands in lint.json."""
        return {**dataclasses.asdict(self), "count": len(self.examples)}

    def __str__(self) -> str:
        shown = [f"    {example}" for example in self.examples[:_SHOWN]]
        if len(self.examples) > _SHOWN:
            shown.append(f"    … {len(self.examples) - _SHOWN} more")
        return "\n".join([f"{self.severity} {self.code} ({len(self.examples)}): {self.summary}", *shown])


def example(row: TableRow, detail: str = "") -> Example:
    """A row as an example."""
    return Example(row.line, row.id, detail)


def found(severity: Severity, code: str, summary: str, examples: Iterable[Example]) -> list[Finding]:
    """A finding, if there is an example."""
    listed = list(examples)
    return [Finding(severity, code, summary, listed)] if listed else []
