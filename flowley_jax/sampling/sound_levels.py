"""The level of the sounds of a run: the loudness that is asked for, and remarks on sounds that stand out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flowley_jax.media.level import CEILING_DB, integrated_loudness, to_loudness

# Peaks that are audible when they are limited: 3.5 dB above full scale.
_FAR_ABOVE = 1.5
# Loudness in LUFS below which a sound is hardly heard.
_ALMOST_SILENT = -50.0
# Sounds may miss the loudness that is asked for by this much, in LU, without a remark.
_TOLERANCE = 0.5
_SHOWN_NAMES = 3


class SoundLevels:
    """Brings sounds to a loudness, and notes which ones are far from what a user expects.

    Args:
      rate: sample rate in Hz.
      loudness: integrated loudness in LUFS; None for the model's own level.
    """

    def __init__(self, rate: int, loudness: float | None):
        self._rate, self._loudness = rate, loudness
        self._count = 0
        self._limited: list[str] = []
        self._silent: list[str] = []
        self._missed: list[tuple[float, str]] = []

    def levelled(self, paths: Sequence[Path], waves: np.ndarray) -> np.ndarray:
        """Return the waves (n, N) of files at the loudness that is asked for."""
        return np.stack([self._level(path.name, wave) for path, wave in zip(paths, waves, strict=True)])

    def remarks(self) -> list[str]:
        """Return a line for each kind of sound that stands out."""
        lines = []
        if self._limited:
            lines.append(
                f"{self._named(self._limited)} had peaks far above full scale, which were limited; if they "
                "sound distorted, try another --seed or a lower --guidance"
            )
        if self._silent:
            lines.append(
                f"{self._named(self._silent)} are almost silent, below {_ALMOST_SILENT:g} LUFS; try another "
                "--seed or prompt"
            )
        if self._missed:
            worst = min(loudness for loudness, _ in self._missed)
            lines.append(
                f"{self._named([name for _, name in self._missed])} did not reach {self._loudness:g} LUFS "
                f"(the quietest has {worst:.1f}), because their peaks are limited to {CEILING_DB:g} dBTP"
            )
        return lines

    def _level(self, name: str, wave: np.ndarray) -> np.ndarray:
        self._count += 1
        measured = integrated_loudness(wave, self._rate)
        if np.abs(wave).max(initial=0.0) >= _FAR_ABOVE:
            self._limited.append(name)
        if measured < _ALMOST_SILENT:
            self._silent.append(name)
        if self._loudness is None or measured == -np.inf:
            return wave
        levelled = to_loudness(wave, self._rate, self._loudness)
        reached = integrated_loudness(levelled, self._rate)
        if reached < self._loudness - _TOLERANCE:
            self._missed.append((reached, name))
        return levelled

    def _named(self, names: Sequence[str]) -> str:
        more = ", …" if len(names) > _SHOWN_NAMES else ""
        return f"{len(names)} of {self._count} sounds ({', '.join(names[:_SHOWN_NAMES])}{more})"
