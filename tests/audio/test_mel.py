"""Log-mel front ends compared with the published implementation and librosa."""

import json
from pathlib import Path

import librosa
import numpy as np
import pytest

from flowley_jax.audio.mel import MEL_16K, MEL_44K, from_log, hann_window, log_mel, mel_basis, mel_preset
from flowley_jax.errors import FlowleyError

GOLDEN = Path(__file__).parents[1] / "golden" / "f_mel.npz"
PRESETS = [MEL_16K, MEL_44K]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("mel", PRESETS, ids=lambda mel: mel.name)
def test_frames_match_the_published_front_end(golden, mel):
    frames = log_mel(golden[f"in/wave_{mel.name}"], mel)
    expected = golden[f"out/mel_{mel.name}"].transpose(0, 2, 1)
    assert frames.dtype == np.float32
    assert list(expected.transpose(0, 2, 1).shape) == json.loads(str(golden["config"]))["shapes"][mel.name]
    np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(mel_basis(mel), golden[f"out/mel_basis_{mel.name}"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(hann_window(mel.n_fft), golden[f"out/window_{mel.name}"], rtol=0, atol=3e-7)


@pytest.mark.parametrize("mel", PRESETS, ids=lambda mel: mel.name)
def test_frames_match_librosa_inside_the_clip(mel):
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, mel.sample_rate)
    magnitude = np.abs(librosa.stft(wave, n_fft=mel.n_fft, hop_length=mel.hop, center=False, window="hann"))
    expected = magnitude.T @ librosa.filters.mel(sr=mel.sample_rate, n_fft=mel.n_fft, n_mels=mel.bins).T
    # librosa's first frame starts at sample 0; ours starts `pad` samples earlier, a fraction of hops.
    shifted = np.concatenate([np.zeros(2 * mel.hop - mel.pad), wave])
    ours = from_log(log_mel(shifted, mel), mel)[2 : 2 + len(expected)]
    np.testing.assert_allclose(ours, expected, rtol=2e-4)


@pytest.mark.parametrize(
    ("mel", "samples", "frames"), [(MEL_16K, 128_000, 500), (MEL_44K, 353_280, 690), (MEL_16K, 64_255, 250)]
)
def test_frame_count_is_that_of_the_published_front_end(mel, samples, frames):
    assert log_mel(np.zeros(samples, np.float32), mel).shape == (frames, mel.bins)


@pytest.mark.parametrize("mel", PRESETS, ids=lambda mel: mel.name)
def test_click_is_loudest_in_the_frame_centred_at_it(mel):
    wave = np.zeros(mel.sample_rate, np.float32)
    wave[20 * mel.hop + mel.hop // 2] = 1.0
    assert log_mel(wave, mel).sum(axis=1).argmax() == 20


def test_loud_waves_are_clamped_and_silence_is_at_the_floor():
    wave = np.full(4096, 3.0, np.float32)
    np.testing.assert_array_equal(log_mel(wave, MEL_16K), log_mel(np.ones(4096, np.float32), MEL_16K))
    silent = log_mel(np.zeros(4096, np.float32), MEL_16K)
    np.testing.assert_allclose(silent, MEL_16K.floor, atol=0.2)
    assert silent.min() == pytest.approx(MEL_16K.floor)


def test_short_wave_and_unknown_preset_are_refused():
    with pytest.raises(FlowleyError, match="384 samples is too short"):
        log_mel(np.zeros(384, np.float32), MEL_16K)
    with pytest.raises(FlowleyError, match="22k"):
        mel_preset("22k")
