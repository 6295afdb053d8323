"""Griffin–Lim: exact length and alignment, determinism, and the mel spectrogram of the result."""

import numpy as np
import pytest

from flowley_jax.audio.griffin_lim import GriffinLimVocoder, magnitude_from_mel
from flowley_jax.audio.mel import MEL_16K, MEL_44K, from_log, log_mel, mel_basis
from flowley_jax.audio.protocols import Vocoder
from flowley_jax.errors import FlowleyError


def _impact(mel, start, seconds=0.8):
    """Return a decaying noise burst that starts at sample `start`."""
    rng = np.random.default_rng(0)
    wave = np.zeros(round(seconds * mel.sample_rate), np.float32)
    length = len(wave) - start
    wave[start:] = 0.8 * rng.uniform(-1, 1, length) * np.exp(-np.arange(length) / (0.03 * mel.sample_rate))
    return wave


@pytest.mark.parametrize("mel", [MEL_16K, MEL_44K], ids=lambda mel: mel.name)
@pytest.mark.parametrize("offset", [0, 77, 130])
def test_click_keeps_its_position(mel, offset):
    wave = np.zeros(64 * mel.hop, np.float32)
    click = 30 * mel.hop + offset
    wave[click] = 0.9
    rebuilt = GriffinLimVocoder(mel=mel, iterations=32)(log_mel(wave, mel)[None])[0]
    assert rebuilt.shape == wave.shape
    energy = np.square(rebuilt.astype(np.float64))
    centre = (energy * np.arange(len(wave))).sum() / energy.sum()
    assert abs(centre - click) <= 1e-3 * mel.sample_rate


def test_impacts_stay_sharp():
    start = 6000
    frames = log_mel(_impact(MEL_16K, start), MEL_16K)
    rebuilt = np.abs(GriffinLimVocoder(mel=MEL_16K)(frames[None])[0])
    loud = np.flatnonzero(rebuilt > 0.5 * rebuilt.max())[0]
    assert abs(loud - start) <= 0.004 * MEL_16K.sample_rate
    # More than a window before the impact, there is silence up to a weak echo.
    assert rebuilt[: start - 1024].max() < 0.05 * rebuilt.max()


def test_result_has_the_mel_spectrogram_it_was_made_from():
    frames = log_mel(_impact(MEL_16K, 3000), MEL_16K)
    rebuilt = log_mel(GriffinLimVocoder(mel=MEL_16K, iterations=32)(frames[None])[0], MEL_16K)
    loud = frames > MEL_16K.floor + 2.0
    assert np.abs(rebuilt - frames)[loud].mean() < 0.1


def test_equal_frames_give_equal_waves():
    vocoder = GriffinLimVocoder(mel=MEL_16K)
    frames = log_mel(_impact(MEL_16K, 3000), MEL_16K)[None]
    assert isinstance(vocoder, Vocoder)
    np.testing.assert_array_equal(vocoder(frames), vocoder(frames))


def test_magnitudes_are_non_negative_and_better_than_the_clipped_inverse():
    mel = from_log(log_mel(_impact(MEL_16K, 3000), MEL_16K), MEL_16K)

    def error(iterations):
        magnitude = magnitude_from_mel(mel, MEL_16K, iterations=iterations)
        assert magnitude.min() >= 0
        return np.linalg.norm(magnitude @ mel_basis(MEL_16K).T - mel) / np.linalg.norm(mel)

    assert error(8) < 0.6 * error(0)
    assert error(8) < 0.05


def test_wrong_number_of_bins_is_refused():
    with pytest.raises(FlowleyError, match=r"\(1, 10, 81\) must be \(batch, frames, 80\)"):
        GriffinLimVocoder(mel=MEL_16K)(np.zeros((1, 10, 81), np.float32))
