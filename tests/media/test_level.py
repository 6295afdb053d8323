"""Level: true peaks against closed forms, the limiter's bound, and loudness against pyloudnorm."""

import numpy as np
import pyloudnorm
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from standard_meter import standard_true_peak

from flowley_jax.errors import FlowleyError
from flowley_jax.media import level
from flowley_jax.media.level import (
    integrated_loudness,
    limit_true_peak,
    limited_blocks,
    to_loudness,
    true_peak,
    true_peak_of_blocks,
)

RATES = (8000, 16_000, 44_100, 48_000, 96_000)
CEILING = 10 ** (-1 / 20)


def _sine(hertz_per_rate, length, *, phase=0.0, peak=1.0):
    """Return a sine that fades in and out: an abrupt end has peaks of its own."""
    fade = scipy.signal.windows.tukey(length, 0.2)
    return (peak * fade * np.sin(2 * np.pi * hertz_per_rate * np.arange(length) + phase)).astype(np.float32)


def _decibels(value):
    return 20 * np.log10(value)


@pytest.mark.parametrize("rate", RATES)
def test_peaks_between_samples_are_found(rate):
    """A sine of a quarter of the rate, sampled at 45°, reaches √2 times its highest sample."""
    wave = _sine(0.25, 8000, phase=np.pi / 4, peak=0.5)
    assert np.abs(wave).max() == pytest.approx(0.5 / np.sqrt(2), rel=1e-6)
    assert true_peak(wave, rate) == pytest.approx(0.5, rel=2e-3)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.4])
def test_the_peak_of_a_tone_is_its_amplitude(share):
    """Oversampling by four misses at most 1 − cos(π · share / 4) of a peak."""
    missed = 1 - np.cos(np.pi * share / 4)
    for phase in (0.0, 0.3, 1.0):
        wave = _sine(share, 20_000, phase=phase, peak=0.8)
        found = true_peak(wave, 16_000)
        assert 0.8 * (1 - missed) - 1e-3 <= found <= 0.8 + 1e-3
        if share <= 0.1:
            assert _decibels(found) == pytest.approx(standard_true_peak(wave), abs=0.25)


def test_edges_channels_and_short_waves():
    assert true_peak(np.zeros(0, np.float32), 16_000) == 0.0
    assert true_peak(np.full(1, -0.5, np.float32), 16_000) == pytest.approx(0.5, abs=1e-6)
    left, right = _sine(0.25, 999, peak=0.2), _sine(0.25, 999, phase=np.pi / 4, peak=0.6)
    peaks = [true_peak(np.stack(pair, axis=1), 16_000) for pair in ((left, right), (right, left))]
    assert peaks == pytest.approx([true_peak(right, 16_000)] * 2, rel=1e-6)
    # The last sample is followed by silence, as in a player.
    ends_loud = np.ones(1000, np.float32)
    assert true_peak(ends_loud, 16_000) > 1.05


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 3000), max_size=4),
    channels=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_peak_is_measured_in_blocks_of_any_length(cuts, channels, seed):
    wave = np.random.default_rng(seed).standard_normal((3000, channels)).astype(np.float32)
    blocks = np.split(wave, sorted(cuts))
    assert true_peak_of_blocks(blocks, 16_000) == pytest.approx(true_peak(wave, 16_000), rel=1e-5)


@st.composite
def _waves(draw):
    """Noise, clicks, sweeps and square waves at any level, of any length."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    length, gain = draw(st.integers(1, 5000)), 10 ** draw(st.floats(-2, 2))
    shapes = {
        "noise": lambda: rng.standard_normal(length),
        "clicks": lambda: rng.choice([-1.0, 1.0], length) * (rng.uniform(size=length) < 0.01),
        "sweep": lambda: np.sin(np.cumsum(np.linspace(0, np.pi, length))),
        "square": lambda: np.sign(np.sin(np.arange(length) / 7.3)),
        "decay": lambda: rng.standard_normal(length) * np.exp(-np.arange(length) / 300),
    }
    wave = gain * shapes[draw(st.sampled_from(sorted(shapes)))]()
    stereo = np.stack([wave, 0.3 * wave[::-1]], axis=1)
    return (stereo if draw(st.booleans()) else wave).astype(draw(st.sampled_from([np.float32, np.float64])))


@settings(max_examples=80, deadline=None)
@given(wave=_waves(), rate=st.sampled_from(RATES))
def test_limited_waves_stay_below_the_ceiling_and_quiet_ones_are_unchanged(wave, rate):
    limited = limit_true_peak(wave, rate)
    assert limited.dtype == wave.dtype and limited.shape == wave.shape
    assert _decibels(max(true_peak(limited, rate), 1e-9)) <= -1 + 0.05
    if true_peak(wave, rate) < 0.999 * CEILING:
        np.testing.assert_array_equal(limited, wave)
    # The gain turns down, never up, and never changes a sign.
    assert (np.abs(limited) <= np.abs(wave)).all() and (limited * wave >= 0).all()


def test_rounding_turns_nothing_up():
    """Far from a peak, the gain is a mean of ones."""
    rng = np.random.default_rng(0)
    for size in range(3000, 3040):
        wave = (1e-3 * rng.standard_normal(size)).astype(np.float32)
        wave[-1] = 2.0
        assert (np.abs(limit_true_peak(wave, 96_000)) <= np.abs(wave)).all()


def test_only_the_surroundings_of_a_peak_are_turned_down():
    wave = _sine(0.02, 200_000, peak=0.5)
    wave[100_000] = 3.0
    limited = limit_true_peak(wave, 16_000)
    # 10 ms, and the samples next to the click between which its interpolation is too high.
    near = slice(100_000 - 170, 100_001 + 170)
    changed = np.flatnonzero(limited != wave)
    assert near.start <= changed[0] and changed[-1] < near.stop
    assert _decibels(limited[100_000]) == pytest.approx(-1.3, abs=0.01)
    # Other samples at the peak have its gain, and the gain has no steps.
    gain = limited[near] / np.where(wave[near] == 0, 1, wave[near])
    assert np.abs(np.diff(gain[np.abs(wave[near]) > 0.01])).max() < 0.05


def test_a_tone_that_is_turned_down_stays_a_tone():
    wave = 2.0 * np.sin(2 * np.pi * 100 * np.arange(16_000) / 16_000).astype(np.float32)
    limited = limit_true_peak(wave, 16_000)[4000:12_000]
    spectrum = np.abs(np.fft.rfft(limited))
    # 100 Hz is bin 50 of 8,000 samples.
    harmonics = np.sqrt((spectrum**2).sum() - spectrum[50] ** 2) / spectrum[50]
    assert harmonics < 1e-3


def test_blocks_give_the_result_of_one_block(monkeypatch):
    rng = np.random.default_rng(0)
    wave = (rng.standard_normal(30_000) * np.repeat(rng.uniform(0, 1, 30) ** 3, 1000)).astype(np.float32)
    whole = limit_true_peak(wave, 16_000)
    monkeypatch.setattr(level, "_BLOCK", 1024)
    assert [len(block) for block in limited_blocks(wave, 16_000)] == [1024] * 29 + [304]
    np.testing.assert_allclose(limit_true_peak(wave, 16_000), whole, atol=1e-5)


def test_waves_with_values_that_are_not_finite_are_refused():
    for value in (np.nan, np.inf):
        wave = np.zeros(100, np.float32)
        wave[50] = value
        with pytest.raises(FlowleyError, match="values that are not finite"):
            limit_true_peak(wave, 16_000)


def _bursts(seconds, rate, seed=0):
    """Return noise of changing level, so that both gates of the loudness matter."""
    rng = np.random.default_rng(seed)
    wave = 0.2 * rng.standard_normal(round(seconds * rate))
    levels = np.repeat(rng.uniform(0, 1, round(10 * seconds) + 1) ** 4, rate // 10 + 1)[: len(wave)]
    return (wave * levels).astype(np.float32)


@pytest.mark.parametrize(("seconds", "rate"), [(0.4, 16_000), (3.27, 44_100), (60.0, 16_000), (150.3, 8000)])
def test_loudness_is_that_of_pyloudnorm(seconds, rate):
    """Long waves are measured a minute at a time."""
    wave = _bursts(seconds, rate)
    expected = pyloudnorm.Meter(rate).integrated_loudness(wave.astype(np.float64))
    assert integrated_loudness(wave, rate) == pytest.approx(expected, abs=0.01)
    stereo = np.stack([wave, 0.5 * wave], axis=1)
    expected = pyloudnorm.Meter(rate).integrated_loudness(stereo.astype(np.float64))
    assert integrated_loudness(stereo, rate) == pytest.approx(expected, abs=0.01)


def test_a_full_scale_tone_of_1_khz_has_minus_3_lufs():
    """BS.1770-4: a sine of 997 Hz at full scale in one channel reads -3.01 LUFS; meters may err by 0.1."""
    wave = np.sin(2 * np.pi * 997 * np.arange(96_000) / 48_000).astype(np.float32)
    assert integrated_loudness(wave, 48_000) == pytest.approx(-3.01, abs=0.1)


@pytest.mark.parametrize("lufs", [-40.0, -23.0])
def test_a_sound_gets_the_loudness_that_is_asked_for(lufs):
    wave = _bursts(5.0, 16_000)
    result = to_loudness(wave, 16_000, lufs)
    assert pyloudnorm.Meter(16_000).integrated_loudness(result) == pytest.approx(lufs, abs=0.05)
    np.testing.assert_allclose(result, wave * (result[100] / wave[100]), rtol=1e-4, atol=1e-6)


def test_a_loudness_that_needs_higher_peaks_is_limited():
    wave = _bursts(5.0, 16_000)
    result = to_loudness(wave, 16_000, -5.0)
    assert _decibels(true_peak(result, 16_000)) <= -1 + 0.05
    assert pyloudnorm.Meter(16_000).integrated_loudness(result) > integrated_loudness(wave, 16_000) + 3


def test_short_and_silent_sounds():
    short = _bursts(0.1, 16_000) + 0.1 * _sine(0.1, 1600)
    padded = np.concatenate([short, np.zeros(4800, np.float32)])
    np.testing.assert_allclose(
        to_loudness(short, 16_000, -30.0), to_loudness(padded, 16_000, -30.0)[:1600], rtol=1e-6
    )
    for silent in (np.zeros(20_000, np.float32), np.zeros(0, np.float32), np.full(9000, 1e-6, np.float32)):
        assert to_loudness(silent, 16_000, -23.0) is silent
