"""Score whether sound is in time with the picture: detected onsets against the times of visible events."""

import codecs
import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowley_jax.audio.onsets import TOLERANCE, OnsetScore, aggregate, detect_onsets, match_onsets
from flowley_jax.audio.protocols import samples_for
from flowley_jax.common.files import lfs_note
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.sounds import one_form


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScore:
    """The score of one clip.

    Attributes:
      id: id of the clip.
      detected: (onsets,) times of the detected onsets in seconds.
      events: (events,) times of the events that they are compared with, in seconds.
      score: how the two match.
    """

    id: str
    detected: np.ndarray
    events: np.ndarray
    score: OnsetScore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synchrony:
    """Scores of a set of clips.

    Attributes:
      figures: precision, recall, f1 and median_abs_error_ms over all onsets of all clips.
      clips: the score of each clip, in the order of ids.
      left_out: ids of sounds without a true event, which are not scored.
      missing: ids of clips with true events that have no sound, which are not scored either.
    """

    figures: dict[str, float | None]
    clips: list[ClipScore]
    left_out: list[str]
    missing: list[str]


def read_events(path: Path) -> dict[str, np.ndarray]:
    """Read true event times from the `events.jsonl` of generated clips.

    Returns:
      Times in seconds, (events,), by clip id in the Unicode form NFC.

    Raises:
      FlowleyError: the file cannot be read, a line does not parse, or an id occurs twice; the line is named.
    """
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8).removesuffix(b"\n")
    except FileNotFoundError as error:
        raise FlowleyError(f"{path}: no such file; the true event times are expected there") from error
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be read ({error.strerror or error})") from error
    events: dict[str, np.ndarray] = {}
    # Not str.splitlines: it also splits at line separators within a JSON string.
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            clip_id, times = _event_row(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = lfs_note(path) or error
            raise FlowleyError(f"{path}, line {number}: not an event row: {reason}") from error
        if clip_id in events:
            raise FlowleyError(f"{path}, line {number}: id {clip_id!r} occurs twice; ids must be unique")
        events[clip_id] = times
    return events


def score_sounds(
    waves: Mapping[str, np.ndarray],
    events: Mapping[str, np.ndarray],
    *,
    sample_rate: int,
    tolerance: float = TOLERANCE,
) -> Synchrony:
    """Score sounds against their own clips' events.

    Args:
      waves: (N,) by clip id.
      events: times in seconds by clip id.
      sample_rate: sample rate of the waves in Hz.
      tolerance: largest distance of a match in seconds.

    Raises:
      FlowleyError: no clip has both a sound and an event.
    """
    scored = [name for name in sorted(waves) if len(events.get(name, ()))]
    if not scored:
        raise FlowleyError(
            f"no clip has both a sound and true events; the sounds have ids like {_examples(waves)}, and the "
            f"events {_examples(events)}"
        )
    clips = []
    for name in scored:
        detected, _ = detect_onsets(waves[name], sample_rate)
        clips.append(_clip_score(name, detected, events[name], tolerance))
    return Synchrony(
        figures=aggregate([clip.score for clip in clips]),
        clips=clips,
        left_out=sorted(set(waves) - set(scored)),
        missing=sorted(name for name, times in events.items() if len(times) and name not in waves),
    )


def _examples(names: Iterable[str]) -> str:
    return ", ".join(itertools.islice(names, 2)) or "(none)"


def score_against_others(
    scores: Synchrony, events: Mapping[str, np.ndarray], *, tolerance: float = TOLERANCE
) -> Synchrony:
    """Score each clip's detected onsets against the events of the next clip in the order of ids.

    This is the floor: the score of a sound that has nothing to do with the picture.
    """
    names = [clip.id for clip in scores.clips]
    clips = [
        _clip_score(clip.id, clip.detected, events[other], tolerance)
        for clip, other in zip(scores.clips, names[1:] + names[:1], strict=True)
    ]
    return dataclasses.replace(scores, figures=aggregate([clip.score for clip in clips]), clips=clips)


def round_trip(wave: np.ndarray, components: Components) -> np.ndarray:
    """Encode a wave (N,) to latents and decode them again: the best that a model of these latents can do."""
    mel = components.codec.mel
    padded = np.pad(wave, (0, samples_for(len(wave) / mel.sample_rate, mel) - len(wave)))
    latents, _ = components.encode_audio(padded[None])
    return components.decode_audio(latents)[0]


def compare(
    generated: Mapping[str, np.ndarray],
    events: Mapping[str, np.ndarray],
    *,
    sample_rate: int,
    real: Mapping[str, np.ndarray] | None = None,
    components: Components | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Synchrony]:
    """Score generated sounds next to their floor and, if given, next to the real sounds of the same clips.

    Args:
      generated: waves (N,) by clip id.
      events: times in seconds by clip id.
      sample_rate: sample rate of all waves in Hz.
      real: waves (N,) by clip id.
      components: codec and vocoder, for the round trip of the real sounds.
      tolerance: largest distance of a match in seconds.

    Returns:
      Scores by row: "generated"; "floor", for two clips or more; "real", with `real`; "ceiling", with
      `real` and `components`. The rows "real" and "ceiling" score only clips that "generated" scores, and
      name those of them that have no real sound as missing.

    Raises:
      FlowleyError: no clip has both a sound and an event.
    """
    rows = {"generated": score_sounds(generated, events, sample_rate=sample_rate, tolerance=tolerance)}
    if len(rows["generated"].clips) > 1:
        rows["floor"] = score_against_others(rows["generated"], events, tolerance=tolerance)
    if real is not None:
        scored = {clip.id: events[clip.id] for clip in rows["generated"].clips}
        same = {name: wave for name, wave in real.items() if name in scored}
        if not same:
            raise FlowleyError("no real sound belongs to a clip whose generated sound is scored")
        rows["real"] = score_sounds(same, scored, sample_rate=sample_rate, tolerance=tolerance)
        if components is not None:
            trips = {name: round_trip(wave, components) for name, wave in same.items()}
            rows["ceiling"] = score_sounds(trips, scored, sample_rate=sample_rate, tolerance=tolerance)
    return rows


def _event_row(row: Any) -> tuple[str, np.ndarray]:
    """Return id and times of a row.

    Raises:
      ValueError, KeyError, TypeError: it is not an event row.
    """
    clip_id = row["id"]
    if not isinstance(clip_id, str):
        raise TypeError(f"id {clip_id!r} must be text")
    times = np.asarray([impact["time"] for impact in row["impacts"]], np.float64)
    if times.ndim != 1 or not (np.isfinite(times) & (times >= 0.0)).all():
        raise ValueError("times must be finite numbers of seconds, at least 0")
    return one_form(clip_id), times


def _clip_score(name: str, detected: np.ndarray, events: np.ndarray, tolerance: float) -> ClipScore:
    return ClipScore(
        id=name, detected=detected, events=events, score=match_onsets(detected, events, tolerance)
    )
