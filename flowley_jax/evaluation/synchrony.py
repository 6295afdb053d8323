"""Is the sound in time with the picture? Detected onsets against the true times of visible events."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flowley_jax.audio.protocols import samples_for
from flowley_jax.data.parts import Parts
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.onsets import OnsetScore, aggregate, detect_onsets, match_onsets

TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScore:
    """One clip's detected onsets and the events they are held against, in seconds, and how they match."""

    id: str
    detected: np.ndarray
    events: np.ndarray
    score: OnsetScore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synchrony:
    """Scores over a set of clips.

    Attributes:
      figures: precision, recall, f1, median_abs_error_ms over all onsets of all clips.
      clips: the scores behind them.
      left_out: ids without a sound or without a true event, which are not scored.
    """

    figures: dict[str, float | None]
    clips: list[ClipScore]
    left_out: list[str]


def read_events(path: Path) -> dict[str, np.ndarray]:
    """True event times in seconds by clip id, from the generator's events.jsonl.

    Raises:
      FlowleyError: the file is missing or a line does not parse; the line's number is named.
    """
    if not path.exists():
        raise FlowleyError(f"{path}: no such file; the true event times are expected there")
    events = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            events[row["id"]] = np.asarray([impact["time"] for impact in row["impacts"]], np.float64)
        except (ValueError, KeyError, TypeError) as error:
            raise FlowleyError(f"{path}, line {number}: not an event row: {error}") from error
    return events


def score_sounds(
    waves: Mapping[str, np.ndarray],
    events: Mapping[str, np.ndarray],
    *,
    sample_rate: int,
    tolerance: float = TOLERANCE,
) -> Synchrony:
    """Scores waves (N,) by clip id against the clips' own events, one-to-one within ±`tolerance` seconds."""
    scored = [name for name in sorted(waves) if len(events.get(name, ()))]
    if not scored:
        raise FlowleyError("no clip has both a sound and true events: nothing to score")
    clips = []
    for name in scored:
        detected, _ = detect_onsets(waves[name], sample_rate)
        clips.append(_scored(name, detected, events[name], tolerance))
    return Synchrony(
        figures=aggregate([clip.score for clip in clips]),
        clips=clips,
        left_out=sorted(set(waves) - set(scored)),
    )


def score_against_others(
    scores: Synchrony, events: Mapping[str, np.ndarray], *, tolerance: float = TOLERANCE
) -> Synchrony:
    """The floor: each clip's detected onsets against the events of the next clip in order of ids."""
    names = [clip.id for clip in scores.clips]
    clips = [
        _scored(clip.id, clip.detected, events[other], tolerance)
        for clip, other in zip(scores.clips, names[1:] + names[:1], strict=True)
    ]
    return dataclasses.replace(scores, figures=aggregate([clip.score for clip in clips]), clips=clips)


def round_trip(wave: np.ndarray, parts: Parts) -> np.ndarray:
    """A wave (N,) through codec and vocoder and back: the best that a model of these latents can do."""
    mel = parts.codec.mel
    padded = np.pad(wave, (0, samples_for(len(wave) / mel.sample_rate, mel) - len(wave)))
    latents, _ = parts.encode_audio(padded[None])
    return parts.decode_audio(latents)[0]


def compare(
    generated: Mapping[str, np.ndarray],
    events: Mapping[str, np.ndarray],
    *,
    sample_rate: int,
    real: Mapping[str, np.ndarray] | None = None,
    parts: Parts | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Synchrony]:
    """Scores by row: generated; floor, of two clips or more; real and ceiling of the same clips, where given.

    Args:
      generated, real: waves (N,) by clip id at `sample_rate` Hz.
      parts: codec and vocoder, for the round trip of the real sound.
    """
    rows = {"generated": score_sounds(generated, events, sample_rate=sample_rate, tolerance=tolerance)}
    if len(rows["generated"].clips) > 1:
        rows["floor"] = score_against_others(rows["generated"], events, tolerance=tolerance)
    if real is not None:
        same = {name: wave for name, wave in real.items() if name in generated}
        rows["real"] = score_sounds(same, events, sample_rate=sample_rate, tolerance=tolerance)
        if parts is not None:
            trips = {name: round_trip(wave, parts) for name, wave in same.items()}
            rows["ceiling"] = score_sounds(trips, events, sample_rate=sample_rate, tolerance=tolerance)
    return rows


def _scored(name: str, detected: np.ndarray, events: np.ndarray, tolerance: float) -> ClipScore:
    return ClipScore(
        id=name, detected=detected, events=events, score=match_onsets(detected, events, tolerance)
    )
