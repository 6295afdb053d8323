"""Find captions that are shifted by some rows from the clips that they describe.

A caption shares words with the label and file name of its own clip. If, over a stretch of rows, the captions
k rows further down share clearly more words with them than the rows' own captions do, they are shifted by k.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.lint.findings import Case, Finding, Severity, findings_of
from flowley_jax.data.clip_table import TableRow

_SHIFTS = (-3, -2, -1, 1, 2, 3)
_MIN_ROWS = 12
# Minimum average share of a label's words in its caption: with less, nothing can be detected.
_MIN_SHARE = 0.05
# How much larger the share must be with shifted captions: in difference, ratio and standard errors.
_MIN_GAIN = 0.1
_MIN_RATIO = 1.5
_MIN_STANDARD_ERRORS = 5.0
# Each one costs a pass over the table.
_MAX_STRETCHES = 20
# If this share of captions equals the label, the label carries no information.
_SAME_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """Rows `first` to `last` whose captions are `shift` rows away; `gain` is the sum of differences."""

    shift: int
    first: int
    last: int
    gain: float


def check_shift(rows: Sequence[TableRow]) -> list[Finding]:
    """Report stretches of rows whose captions belong to other rows, or why that could not be checked."""
    shares, reason = _shares_by_shift(rows)
    if reason:
        case = Case(None, "", reason)
        return findings_of(Severity.NOTE, "shift_unknown", "shifted captions could not be checked", [case])
    return findings_of(
        Severity.ERROR,
        "shifted_captions",
        "captions that seem to belong to other rows",
        (_case(rows, stretch) for stretch in _find_stretches(shares)),
    )


def _case(rows: Sequence[TableRow], stretch: _Stretch) -> Case:
    first, last = rows[stretch.first], rows[stretch.last]
    distance = abs(stretch.shift)
    where = f"{distance} {'row' if distance == 1 else 'rows'} further {'down' if stretch.shift > 0 else 'up'}"
    detail = f"from about here to line {last.line}, the matching captions are {where}"
    return Case(first.line, first.id, detail)


def _shares_by_shift(rows: Sequence[TableRow]) -> tuple[dict[int, np.ndarray], str]:
    """Return, for each shift, the share of each row's words that the shifted caption contains.

    The second value is the reason why nothing could be checked, or empty.
    """
    captions = [_words(row.caption) for row in rows]
    same = sum(row.caption.strip() == row.label.strip() for row in rows) >= _SAME_SHARE * len(rows)
    names = [_words(Path(row.path).stem) | (set() if same else _words(row.label)) for row in rows]
    comparable = sum(bool(words) and bool(caption) for words, caption in zip(names, captions, strict=True))
    if comparable < _MIN_ROWS:
        if same:
            return {}, "captions are the labels and file names have no words"
        return {}, "too few rows have words to compare"
    shares = {shift: _shares_at(captions, names, shift) for shift in (0, *_SHIFTS)}
    if max(share.mean() for share in shares.values()) < _MIN_SHARE:
        compared = "file names" if same else "labels and file names"
        return {}, f"{compared} share hardly any words with captions"
    return shares, ""


def _shares_at(captions: Sequence[set[str]], names: Sequence[set[str]], shift: int) -> np.ndarray:
    empty: set[str] = set()
    shifted = [captions[i + shift] if 0 <= i + shift < len(captions) else empty for i in range(len(captions))]
    return np.array([len(a & b) / max(len(b), 1) for a, b in zip(shifted, names, strict=True)])


def _find_stretches(shares: dict[int, np.ndarray]) -> list[_Stretch]:
    """Pick disjoint stretches, the largest gain first, and return at most 20 in the order of rows."""
    gains = {shift: shares[shift] - shares[0] for shift in _SHIFTS}
    stretches: list[_Stretch] = []
    while True:
        best = max(
            (_best_stretch(gains[shift], shift) for shift in _SHIFTS), key=lambda stretch: stretch.gain
        )
        if len(stretches) == _MAX_STRETCHES or not _is_significant(shares, best):
            return sorted(stretches, key=lambda stretch: stretch.first)
        stretches.append(best)
        for gain in gains.values():
            gain[best.first : best.last + 1] = -np.inf


def _best_stretch(gain: np.ndarray, shift: int) -> _Stretch:
    """Return the stretch with the largest sum of gains (Kadane's algorithm)."""
    best, total, start = _Stretch(shift, 0, 0, -np.inf), 0.0, 0
    for index, value in enumerate(gain.tolist()):
        if total <= 0.0:
            total, start = 0.0, index
        total += value
        if total > best.gain:
            best = _Stretch(shift, start, index, total)
    return best


def _is_significant(shares: dict[int, np.ndarray], stretch: _Stretch) -> bool:
    length = stretch.last - stretch.first + 1
    if length < _MIN_ROWS or not np.isfinite(stretch.gain):
        return False
    rows = slice(stretch.first, stretch.last + 1)
    shifted, own = shares[stretch.shift][rows], shares[0][rows]
    gain = shifted - own
    standard_errors = gain.mean() / max(gain.std() / np.sqrt(length), 1e-9)
    large = shifted.mean() > _MIN_RATIO * own.mean() and gain.mean() > _MIN_GAIN
    return bool(large and standard_errors > _MIN_STANDARD_ERRORS)


def _words(text: str) -> set[str]:
    """Return rough stems of the words with three letters or more."""
    words = re.findall(r"[^\W\d_]{3,}", text.lower())
    return {re.sub(r"(?<=...)(ing|ed|es|s)$", "", word) for word in words}
