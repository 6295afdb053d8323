"""Bounds of generated log-mel frames."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.audio.level_bounds import bound_bins, bound_levels, level_maxima
from flowley_jax.audio.mel import MEL_16K, MEL_44K, MelConfig

MELS = pytest.mark.parametrize("mel", [MEL_16K, MEL_44K], ids=lambda mel: mel.name)


def _levels(log_mels: np.ndarray, mel: MelConfig) -> np.ndarray:
    base = 10.0 if mel.log == "log10" else np.e
    return np.log(np.sum(base ** log_mels.astype(np.float64), axis=-1)) / np.log(base)


def _frames(mel: MelConfig, count: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-3.0, 0.5, (1, count, mel.bins)).astype(np.float32)


@MELS
def test_maxima_are_those_of_bins_and_of_levels(mel):
    frames = _frames(mel)
    maxima = level_maxima(frames, mel)
    assert maxima.shape == (mel.bins + 1,) and maxima.dtype == np.float32
    np.testing.assert_array_equal(maxima[:-1], frames.max(axis=(0, 1)))
    assert maxima[-1] == pytest.approx(_levels(frames, mel).max(), abs=1e-6)


@MELS
def test_sounds_within_the_bounds_are_returned_as_they_are(mel):
    frames = _frames(mel)
    maxima = level_maxima(frames, mel)
    np.testing.assert_array_equal(bound_bins(frames, maxima), frames)
    # The stored maximum is rounded to float32.
    maxima[-1] = np.nextafter(maxima[-1], np.float32(np.inf))
    np.testing.assert_array_equal(bound_levels(frames, maxima, mel), frames)


@MELS
def test_a_loud_hit_is_lowered_as_a_whole_and_the_rest_is_kept(mel):
    frames = _frames(mel)
    maxima = level_maxima(frames, mel)
    decay = np.exp(-np.arange(20.0) / 5.0)
    hit = frames.copy()
    hit[0, 200:220] += (1.5 * decay).astype(np.float32)[:, None]
    bounded = bound_levels(hit, maxima, mel)
    assert _levels(bounded, mel).max() <= maxima[-1] + 1e-5
    gain = (hit - bounded)[0]
    # All bins alike.
    np.testing.assert_allclose(gain, np.broadcast_to(gain[:, :1], gain.shape), rtol=0, atol=2e-6)
    reach = round(0.5 * mel.sample_rate / mel.hop)
    # The gain rises before the loudest frame, and its attack and decay keep their shape around it.
    excess = float((_levels(hit, mel) - maxima[-1]).max())
    assert gain[200, 0] == pytest.approx(excess, abs=0.05 * excess)
    assert np.abs(np.diff(gain[:, 0])).max() <= 1.1 * excess / reach
    far = np.abs(np.arange(len(gain)) - 200) > 2 * reach + 25
    assert far.any()
    np.testing.assert_array_equal(bounded[0, far], hit[0, far])


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.0, 4.0))
def test_no_bounded_frame_is_louder_than_the_loudest_real_one(seed, scale):
    frames = _frames(MEL_16K, 120)
    maxima = level_maxima(frames, MEL_16K)
    wild = (frames + np.random.default_rng(seed).normal(0, scale, (2, 120, 1))).astype(np.float32)
    bounded = bound_levels(bound_bins(wild, maxima), maxima, MEL_16K)
    assert (level_maxima(bounded, MEL_16K) <= maxima + 1e-5).all()
    assert (bounded <= wild).all()
