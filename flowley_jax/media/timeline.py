"""Place pieces of sound by their time stamps."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import soxr

# Time stamps that differ from the count of samples by less are rounding, in seconds.
_TOLERANCE = 0.003
# Pieces that must agree on a shift of time. Some recorders stamp each packet when it arrives: too late or too
# early, but not all in the same way.
_AGREEING = 5


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some sound of one channel.

    Attributes:
      time: its start in seconds from the file's start; None if it is unknown.
      rate: samples per second.
      wave: (N,) float32.
    """

    time: float | None
    rate: int
    wave: np.ndarray

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.wave) / self.rate


def place(pieces: Sequence[Piece]) -> np.ndarray:
    """Return the sound from the file's start on, at the sample rate of the first piece.

    Silence fills the time before the first piece and the holes. Of overlapping pieces, the earlier one is
    kept whole. Sound before the file's start is cut.

    Args:
      pieces: at least one, in the order of the file.

    Returns:
      (N,) float32.
    """
    rate = pieces[0].rate
    parts, length = [], 0
    for run in _runs(pieces):
        wave = run.wave if run.rate == rate else soxr.resample(run.wave, run.rate, rate)
        start = round((run.time or 0.0) * rate)
        if start > length:
            parts.append(np.zeros(start - length, np.float32))
            length = start
        kept = wave[length - start :]
        parts.append(kept)
        length += len(kept)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _runs(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Join pieces that follow each other without a hole, an overlap or another sample rate."""
    elapsed = np.cumsum([0.0, *(piece.seconds for piece in pieces)])
    shifts = _shifts(pieces, elapsed)
    first = 0
    for index in range(1, len(pieces) + 1):
        if (
            index < len(pieces)
            and shifts[index] == shifts[first]
            and pieces[index].rate == pieces[first].rate
        ):
            continue
        wave = np.concatenate([piece.wave for piece in pieces[first:index]])
        yield Piece(float(elapsed[first] + shifts[first]), pieces[first].rate, wave)
        first = index


def _shifts(pieces: Sequence[Piece], elapsed: np.ndarray) -> np.ndarray:
    """Return, for each piece, its start less the length of the pieces before it; equal values join pieces."""
    stated = np.array([np.nan if piece.time is None else piece.time for piece in pieces]) - elapsed[:-1]
    known = np.flatnonzero(~np.isnan(stated))
    if not len(known):
        return np.zeros(len(pieces))
    # A piece without a time stamp follows the one before it.
    latest = np.maximum.accumulate(np.where(np.isnan(stated), -1, np.arange(len(pieces))))
    stated = stated[np.where(latest < 0, known[0], latest)]
    shifts, shift = np.empty(len(pieces)), stated[0]
    for index in range(len(pieces)):
        if abs(stated[index] - shift) > _TOLERANCE:
            ahead = stated[index : index + _AGREEING] - shift
            if np.all(ahead > _TOLERANCE):
                shift += ahead.min()
            elif np.all(ahead < -_TOLERANCE):
                shift += ahead.max()
        shifts[index] = shift
    return shifts
