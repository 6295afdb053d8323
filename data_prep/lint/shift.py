"""Whether captions stand some rows away from the clips that they describe.

A caption has words in common with its own label and file name. Where the captions of the rows k further on
have clearly more of them than the rows' own, over a stretch of rows, they are shifted by k.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.lint.findings import Example, Finding, Severity, found
from data_prep.tables import TableRow

_SHIFTS = (-3, -2, -1, 1, 2, 3)
_LEAST_ROWS = 12
# The share of a label's words that captions must have in common with it, and have more than unshifted ones.
_LEAST_SHARE = 0.05
_LEAST_GAIN = 0.1
_LEAST_RATIO = 1.5
_LEAST_DEVIATIONS = 5.0
# Share of captions that are the label, from which on the label says nothing.
_SAME = 0.9


@dataclasses.dataclass(frozen=True)
class _Stretch:
    shift: int
    first: int
    last: int
    gain: float


def check_shift(rows: Sequence[TableRow]) -> list[Finding]:
    """Stretches of rows with captions of others, or why that cannot be judged."""
    shares, reason = _shares(rows)
    if reason:
        return found(
            Severity.NOTE, "shift_unknown", "whether captions are shifted", [Example(None, "", reason)]
        )
    return found(
        Severity.ERROR,
        "shifted_captions",
        "captions that seem to belong to other rows",
        (_example(rows, stretch) for stretch in _stretches(shares)),
    )


def _example(rows: Sequence[TableRow], stretch: _Stretch) -> Example:
    first, last = rows[stretch.first], rows[stretch.last]
    away, where = abs(stretch.shift), "further down" if stretch.shift > 0 else "further up"
    rows_away = "1 row" if away == 1 else f"{away} rows"
    detail = f"from about here to line {last.line}, captions that fit are {rows_away} {where}"
    return Example(first.line, first.id, detail)


def _shares(rows: Sequence[TableRow]) -> tuple[dict[int, np.ndarray], str]:
    """For each shift the share of each row's words that the caption so far away has; or why there is none."""
    captions = [_words(row.caption) for row in rows]
    same = sum(row.caption.strip() == row.label.strip() for row in rows) >= _SAME * len(rows)
    named = [_words(Path(row.path).stem) | (set() if same else _words(row.label)) for row in rows]
    judged = sum(bool(words) and bool(caption) for words, caption in zip(named, captions, strict=True))
    if judged < _LEAST_ROWS:
        why = (
            "captions are the labels and files' names say nothing"
            if same
            else "too few have words to compare"
        )
        return {}, f"{why}; it cannot be judged"
    shares = {shift: _shares_at(captions, named, shift) for shift in (0, *_SHIFTS)}
    if max(share.mean() for share in shares.values()) < _LEAST_SHARE:
        names = "files' names" if same else "labels and files' names"
        return {}, f"{names} have hardly a word in common with captions; it cannot be judged"
    return shares, ""


def _shares_at(captions: Sequence[set[str]], named: Sequence[set[str]], shift: int) -> np.ndarray:
    none: set[str] = set()
    away = [captions[i + shift] if 0 <= i + shift < len(captions) else none for i in range(len(captions))]
    return np.array([len(a & b) / max(len(b), 1) for a, b in zip(away, named, strict=True)])


def _stretches(shares: dict[int, np.ndarray]) -> list[_Stretch]:
    """Those that gain most first, apart from each other; then in the order of rows."""
    gains = {shift: shares[shift] - shares[0] for shift in _SHIFTS}
    stretches: list[_Stretch] = []
    while True:
        best = max((_best(gains[shift], shift) for shift in _SHIFTS), key=lambda stretch: stretch.gain)
        if not _is_clear(shares, best):
            return sorted(stretches, key=lambda stretch: stretch.first)
        stretches.append(best)
        for gain in gains.values():
            gain[best.first : best.last + 1] = -np.inf


def _best(gain: np.ndarray, shift: int) -> _Stretch:
    """The stretch of the largest sum."""
    best, total, start = _Stretch(shift, 0, 0, -np.inf), 0.0, 0
    for place, value in enumerate(gain.tolist()):
        if total <= 0.0:
            total, start = 0.0, place
        total += value
        if total > best.gain:
            best = _Stretch(shift, start, place, total)
    return best


def _is_clear(shares: dict[int, np.ndarray], stretch: _Stretch) -> bool:
    length = stretch.last - stretch.first + 1
    if length < _LEAST_ROWS or not np.isfinite(stretch.gain):
        return False
    within = slice(stretch.first, stretch.last + 1)
    shifted, own = shares[stretch.shift][within], shares[0][within]
    gain = shifted - own
    deviations = gain.mean() / max(gain.std() / np.sqrt(length), 1e-9)
    much_more = shifted.mean() > _LEAST_RATIO * own.mean() and gain.mean() > _LEAST_GAIN
    return bool(much_more and deviations > _LEAST_DEVIATIONS)


def _words(text: str) -> set[str]:
    """Stems, roughly, of words of three letters and more."""
    words = re.findall(r"[^\W\d_]{3,}", text.lower())
    return {re.sub(r"(?<=...)(ing|ed|es|s)$", "", word) for word in words}
