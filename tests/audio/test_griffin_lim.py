"""Griffin–Lim: exact length and alignment, determinism, and the mel spectrogram of the result."""

import librosa
import numpy as np
import pytest

from flowley_jax.audio import griffin_lim
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


def test_a_loud_sound_keeps_its_level():
    frames = log_mel(0.2 * _impact(MEL_16K, 3000), MEL_16K)
    vocoder = GriffinLimVocoder(mel=MEL_16K)
    louder = vocoder(frames[None] + 1)[0]
    assert np.abs(louder).max() > 1.2
    np.testing.assert_allclose(louder, 10 * vocoder(frames[None])[0], rtol=1e-3, atol=1e-3)


def test_windows_give_the_sound_of_the_whole(monkeypatch):
    """The frames of one long sound in windows, and in a single window that holds all of them."""
    rng = np.random.default_rng(0)
    wave = 0.3 * rng.standard_normal(700 * MEL_16K.hop) * np.abs(np.sin(np.arange(700 * MEL_16K.hop) / 9000))
    frames = log_mel(wave.astype(np.float32), MEL_16K)
    vocoder = GriffinLimVocoder(mel=MEL_16K, iterations=4)
    monkeypatch.setattr(griffin_lim, "STRIDE", 128)
    lengths = []
    of_frames = GriffinLimVocoder._wave_of
    monkeypatch.setattr(
        GriffinLimVocoder,
        "_wave_of",
        lambda self, part, phases: lengths.append(len(part)) or of_frames(self, part, phases),
    )
    windows = vocoder(frames[None])[0]
    assert len(lengths) > 4 and set(lengths) == {128 + 2 * vocoder.context}
    whole = of_frames(vocoder, frames, griffin_lim._PhasesOfFrames(np.arange(700)))
    np.testing.assert_allclose(windows, whole, atol=1e-4)


def test_phases_belong_to_frames():
    whole = griffin_lim._PhasesOfFrames(np.arange(5000)).random((3, 5000))
    assert whole.shape == (3, 5000) and 0.49 < whole.mean() < 0.51 and len(np.unique(whole)) == 15_000
    for start, end in [(0, 10), (2040, 2056), (1000, 4999), (4096, 4097)]:
        part = griffin_lim._PhasesOfFrames(np.arange(start, end)).random((3, end - start))
        np.testing.assert_array_equal(part, whole[:, start:end])


def test_sounds_of_one_window_have_the_phases_of_one_seed():
    frames = log_mel(0.2 * _impact(MEL_16K, 3000), MEL_16K)
    magnitude = magnitude_from_mel(from_log(frames, MEL_16K), MEL_16K)
    arguments = {"n_iter": 16, "hop_length": 256, "n_fft": 1024, "center": False, "random_state": 0}
    expected = librosa.griffinlim(magnitude.T, **arguments)[384 : 384 + 256 * len(frames)]
    np.testing.assert_array_equal(GriffinLimVocoder(mel=MEL_16K)(frames[None])[0], expected)


def test_wrong_number_of_bins_is_refused():
    with pytest.raises(FlowleyError, match=r"\(1, 10, 81\) must be \(batch, frames, 80\)"):
        GriffinLimVocoder(mel=MEL_16K)(np.zeros((1, 10, 81), np.float32))
