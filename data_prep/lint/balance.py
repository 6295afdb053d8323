"""Count the clips of each label in each split."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from data_prep.lint.findings import Case, Finding, Severity, findings_of, row_case
from flowley_jax.data.clip_table import TableRow

_LISTED_LABELS = 5
# Number of clips by label and split.
LabelCounts = Mapping[str, Mapping[str, int]]


def count_labels(rows: Sequence[TableRow]) -> LabelCounts:
    """Return the number of clips by label and split, the most frequent label first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.label:
            counts[row.label][row.split] += 1
    return {
        label: counts[label] for label in sorted(counts, key=lambda label: (-counts[label].total(), label))
    }


def check_balance(rows: Sequence[TableRow]) -> list[Finding]:
    """Report the most frequent and the rarest labels, and labels of valid or test that train lacks."""
    counts = count_labels(rows)
    return [
        *findings_of(Severity.NOTE, "balance", _summary(counts), _extremes(counts)),
        *findings_of(
            Severity.WARNING,
            "untrained_label",
            "clips of valid or test with a label that train lacks",
            _untrained(rows, counts),
        ),
    ]


def _summary(counts: LabelCounts) -> str:
    totals = [sum(by_split.values()) for by_split in counts.values()]
    if not totals:
        return ""
    labels = "1 label" if len(totals) == 1 else f"{len(totals)} labels"
    return f"{labels} with {min(totals)} to {max(totals)} clips"


def _extremes(counts: LabelCounts) -> list[Case]:
    labels = list(counts)
    rarest = labels[max(_LISTED_LABELS, len(labels) - _LISTED_LABELS) :]
    groups = {"frequent": labels[:_LISTED_LABELS], "rare": rarest[::-1]}
    return [
        Case(None, "", f"{group}: {label!r} has {_describe(counts[label])}")
        for group, members in groups.items()
        for label in members
    ]


def _describe(by_split: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {split}" for split, number in by_split.items())


def _untrained(rows: Sequence[TableRow], counts: LabelCounts) -> list[Case]:
    if all(row.split != "train" for row in rows):
        return []
    held_out = (row for row in rows if row.label and row.split in ("valid", "test"))
    return [row_case(row, row.label) for row in held_out if "train" not in counts[row.label]]
