"""How many clips each label has in each split."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from data_prep.lint.findings import Example, Finding, Severity, example, found
from data_prep.tables import TableRow

_LISTED = 5
Balance = Mapping[str, Mapping[str, int]]


def balance_of(rows: Sequence[TableRow]) -> Balance:
    """Numbers of clips by label and split; labels with most clips first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.label:
            counts[row.label][row.split] += 1
    return {
        label: counts[label] for label in sorted(counts, key=lambda label: (-counts[label].total(), label))
    }


def check_balance(rows: Sequence[TableRow]) -> list[Finding]:
    """The most frequent and the rarest labels, and those of other splits that train lacks."""
    balance = balance_of(rows)
    return [
        *found(Severity.NOTE, "balance", _summary(balance), _extremes(balance)),
        *found(
            Severity.WARNING,
            "untrained_label",
            "clips of valid or test with a label that train lacks",
            _untrained(rows, balance),
        ),
    ]


def _summary(balance: Balance) -> str:
    totals = [sum(counts.values()) for counts in balance.values()]
    return f"{len(totals)} labels with {min(totals)} to {max(totals)} clips" if totals else ""


def _extremes(balance: Balance) -> list[Example]:
    labels = list(balance)
    rarest = labels[max(_LISTED, len(labels) - _LISTED) :]
    listed = {"frequent": labels[:_LISTED], "rare": rarest[::-1]}
    return [
        Example(None, "", f"{how}: {label!r} has {_by_split(balance[label])}")
        for how, some in listed.items()
        for label in some
    ]


def _by_split(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {split}" for split, number in counts.items())


def _untrained(rows: Sequence[TableRow], balance: Balance) -> list[Example]:
    if all(row.split != "train" for row in rows):
        return []
    held = (row for row in rows if row.label and row.split in ("valid", "test"))
    return [example(row, row.label) for row in held if "train" not in balance[row.label]]
