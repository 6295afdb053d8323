"""Figures near seams and elsewhere add up to the whole, and find what is there."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from benchmarks.seams import FLUX_REACH, ONSET_REACH, flux_ratio, levels, seam_times, split_score
from flowley_jax.audio.onsets import match_onsets
from flowley_jax.evaluation.synchrony import ClipScore
from flowley_jax.flow.windows import Windows

RATE = 16_000
TIMES = st.lists(st.floats(0.0, 20.0), max_size=12)


def _scored(detected, events):
    detected, events = np.asarray(detected, float), np.asarray(events, float)
    return ClipScore(id="a", detected=detected, events=events, score=match_onsets(detected, events))


def _windows(frame_starts, frames):
    starts = np.asarray(frame_starts)
    return Windows(
        frame_starts=starts,
        latent_starts=starts,
        frames=frames,
        latents=frames,
        weights=np.ones((len(starts), 1)),
    )


def test_seams_are_the_starts_and_ends_of_windows():
    windows = _windows([0, 75, 150, 225, 301], 401)
    seams = seam_times(windows, window_frames=100, fps=25.0, seconds=16.0)
    # The last window ends after the video.
    np.testing.assert_allclose(seams, [3, 4, 6, 7, 9, 10, 12.04, 13])


def test_one_window_has_no_seam():
    assert not len(seam_times(_windows([0], 100), window_frames=100, fps=25.0, seconds=4.0))


@hypothesis.given(TIMES, TIMES, TIMES)
def test_both_parts_add_up_to_the_whole(detected, events, seams):
    clip = _scored(detected, events)
    parts = split_score(clip, np.asarray(seams, float))
    for name in ("matched", "detected", "reference"):
        assert sum(getattr(part, name) for part in parts) == getattr(clip.score, name)
    assert all(part.matched <= min(part.detected, part.reference) for part in parts)
    errors = np.concatenate([part.errors for part in parts])
    np.testing.assert_array_equal(np.sort(errors), np.sort(clip.score.errors))


def test_a_match_is_where_its_event_is():
    event = 3.0 + ONSET_REACH
    near, elsewhere = split_score(_scored([event + 0.05, 9.0], [event, 6.0]), np.array([3.0]))
    assert (near.matched, near.detected, near.reference) == (1, 1, 1)
    assert (elsewhere.matched, elsewhere.detected, elsewhere.reference) == (0, 1, 1)
    np.testing.assert_allclose(near.errors, [0.05])


@pytest.mark.parametrize("at_seam", [True, False])
def test_the_flux_ratio_finds_clicks(at_seam):
    noise = 0.01 * np.random.default_rng(0).standard_normal(10 * RATE)
    seams = np.array([2.5, 5.5, 8.5])
    wave = noise.copy()
    for time in seams if at_seam else seams + 2 * FLUX_REACH:
        wave[round(time * RATE)] = 1.0
    plain = flux_ratio({"a": noise}, {"a": seams}, RATE)
    clicked = flux_ratio({"a": wave}, {"a": seams}, RATE)
    assert plain == pytest.approx(1.0, abs=0.05)
    assert clicked is not None and (clicked > 1.2 if at_seam else clicked < 1.0)


def test_sounds_without_a_seam_have_no_flux_ratio():
    assert flux_ratio({"a": np.ones(RATE)}, {"a": np.zeros(0)}, RATE) is None


def test_levels_of_sines():
    time = np.arange(RATE) / RATE
    waves = [peak * np.sin(2 * np.pi * 500.0 * time) for peak in (1.0, 0.1)]
    figures = levels(waves, RATE)
    # −3.01 dB and −23.01 dB.
    assert figures.rms_db == pytest.approx(20 * np.log10(0.5**0.5) - 10.0, abs=1e-3)
    assert figures.mean_peak == pytest.approx(0.55, abs=1e-3)
    assert figures.true_peak == pytest.approx(1.0, abs=0.01)
    assert levels([np.zeros(RATE)], RATE).rms_db == pytest.approx(-100.0)
