"""Measure long sounds: onsets and spectral flux near the seams of windows and elsewhere, and levels."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import librosa
import mir_eval.util
import numpy as np

from flowley_jax.audio.onsets import HOP_SECONDS, TOLERANCE, WINDOW_SECONDS, OnsetScore
from flowley_jax.evaluation.synchrony import ClipScore
from flowley_jax.flow.windows import Windows
from flowley_jax.media.level import true_peak

# Onsets and events at most this far from a seam, in seconds, are near it.
ONSET_REACH = 0.5
# The same for spectral flux, in seconds: an audible cut would be shorter.
FLUX_REACH = 0.1
# Level of a silent sound, relative to full scale.
_SILENCE = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """Levels of a set of sounds.

    Attributes:
      rms_db: mean over the sounds of their RMS level, in dB relative to full scale.
      mean_peak: mean of the largest magnitudes; full scale is 1.
      true_peak: the highest true peak of all.
    """

    rms_db: float
    mean_peak: float
    true_peak: float


def seam_times(windows: Windows, *, window_frames: int, fps: float, seconds: float) -> np.ndarray:
    """Return the starts and ends of windows within a video, ascending, (seams,) in seconds.

    Args:
      windows: windows of the video.
      window_frames: frames of a window.
      fps: frames per second.
      seconds: length of the video.
    """
    starts = np.asarray(windows.frame_starts)
    times = np.unique(np.concatenate([starts, starts + window_frames])) / fps
    return times[(times > 0.0) & (times < seconds)]


def split_score(clip: ClipScore, seams: np.ndarray) -> tuple[OnsetScore, OnsetScore]:
    """Divide the score of a sound into what is near seams and the rest.

    A match counts where its event is.

    Args:
      clip: detected onsets and events, matched within ±`TOLERANCE`.
      seams: (seams,) times in seconds.

    Returns:
      The scores near the seams and elsewhere.
    """
    detected, events = np.sort(clip.detected), np.sort(clip.events)
    pairs = mir_eval.util.match_events(events, detected, TOLERANCE)
    matched_events, matched_onsets = np.asarray(pairs, int).reshape(-1, 2).T
    event_is_near, onset_is_near = _is_near(events, seams), _is_near(detected, seams)
    onset_is_near[matched_onsets] = event_is_near[matched_events]
    errors = detected[matched_onsets] - events[matched_events]
    near, elsewhere = (
        OnsetScore(
            matched=int((event_is_near[matched_events] == side).sum()),
            detected=int((onset_is_near == side).sum()),
            reference=int((event_is_near == side).sum()),
            errors=errors[event_is_near[matched_events] == side],
        )
        for side in (True, False)
    )
    return near, elsewhere


def flux_ratio(
    waves: Mapping[str, np.ndarray], seams: Mapping[str, np.ndarray], sample_rate: int
) -> float | None:
    """Return the mean spectral flux near seams divided by the mean elsewhere, over all sounds.

    Args:
      waves: sounds (N,) by id.
      seams: (seams,) times in seconds by id.
      sample_rate: Hz.

    Returns:
      The ratio; None without a seam.
    """
    near, elsewhere = [], []
    for name, wave in waves.items():
        times, flux = spectral_flux(wave, sample_rate)
        is_near = _is_near(times, seams[name], reach=FLUX_REACH)
        near.append(flux[is_near])
        elsewhere.append(flux[~is_near])
    joined = np.concatenate(near)
    return float(joined.mean() / np.concatenate(elsewhere).mean()) if len(joined) else None


def spectral_flux(wave: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return times in seconds and the sum over bins of the rise of the magnitude, each (hops - 1,)."""
    hop, window = round(HOP_SECONDS * sample_rate), round(WINDOW_SECONDS * sample_rate)
    magnitude = np.abs(librosa.stft(np.asarray(wave, np.float32), n_fft=window, hop_length=hop))
    rise = np.maximum(0.0, np.diff(magnitude, axis=1)).sum(axis=0)
    return (np.arange(len(rise)) + 0.5) * hop / sample_rate, rise


def levels(waves: Iterable[np.ndarray], sample_rate: int) -> Levels:
    """Return the levels of sounds (N,)."""
    waves = list(waves)
    return Levels(
        rms_db=float(np.mean([_rms_db(wave) for wave in waves])),
        mean_peak=float(np.mean([np.abs(wave).max() for wave in waves])),
        true_peak=max(true_peak(wave, sample_rate) for wave in waves),
    )


def _rms_db(wave: np.ndarray) -> float:
    return 20.0 * float(np.log10(max(_SILENCE, np.sqrt(np.mean(np.square(wave, dtype=np.float64))))))


def _is_near(
    times: np.ndarray, seams: Sequence[float] | np.ndarray, reach: float = ONSET_REACH
) -> np.ndarray:
    """Return which of the times are at most `reach` from a seam, (times,) bool."""
    distances = np.abs(np.asarray(times)[:, None] - np.asarray(seams)[None, :])
    return np.any(distances <= reach, axis=1)
