"""Sounds as the evaluation networks hear them: the published steps, and files that cannot be used."""

import numpy as np
import pytest
import soundfile
from golden_data import load, relative_error

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.preparation import ClipMedia, Preparation
from flowley_jax.networks import vggish


def _write(path, channels, rate):
    soundfile.write(path, channels.T, rate, subtype="PCM_16")
    return path


@pytest.mark.parametrize(("before", "after"), [(44_100, 16_000), (48_000, 16_000), (16_000, 48_000)])
def test_the_steps_are_the_published_ones(tmp_path, before, after):
    """Mean of the channels, minus its mean over the whole file, resampled, cut."""
    golden = load("resample")
    path = _write(tmp_path / "a.wav", golden[f"in/{before}"], before)
    expected = golden[f"out/{before}_to_{after}"]
    wave = ClipMedia(path, 1.0).mono(after)
    assert relative_error(wave, expected.reshape(-1)) < 1e-6


def test_a_constant_is_kept_only_where_the_published_program_keeps_it(tmp_path):
    path = _write(tmp_path / "a.wav", np.full((1, 16_000), 0.25), 16_000)
    media = ClipMedia(path, 1.0)
    assert np.abs(media.mono(16_000)).max() == 0.0
    np.testing.assert_array_equal(media.mono(16_000, keep_mean=True), np.float32(0.25))


def test_a_sound_that_is_a_little_too_short_is_filled_and_a_shorter_one_refused(tmp_path):
    rng = np.random.default_rng(0)
    for name, seconds in (("a", 0.95), ("b", 0.85)):
        _write(tmp_path / f"{name}.wav", rng.uniform(-0.5, 0.5, (1, int(16_000 * seconds))), 16_000)
    wave = ClipMedia(tmp_path / "a.wav", 1.0).mono(16_000)
    assert len(wave) == 16_000 and not wave[15_200:].any() and wave[:15_200].any()
    with pytest.raises(FlowleyError, match=r"b\.wav: has 0\.85 s of sound; 1 s are needed"):
        ClipMedia(tmp_path / "b.wav", 1.0).mono(16_000)


def test_a_wave_in_memory_is_prepared_like_its_file(tmp_path):
    wave = np.random.default_rng(1).integers(-20_000, 20_000, 32_000).astype(np.float32) / 32768
    path = _write(tmp_path / "a.wav", wave[None], 16_000)
    for rate in (16_000, 32_000):
        np.testing.assert_array_equal(
            ClipMedia.of_wave("a", wave, 16_000).mono(rate), ClipMedia(path, 2.0).mono(rate)
        )


def test_every_input_has_its_array_or_the_reason_why_not(tmp_path):
    rng = np.random.default_rng(2)
    _write(tmp_path / "a.wav", rng.uniform(-0.5, 0.5, (2, 8000)), 16_000)
    prepared = Preparation(("panns", "vggish", "imagebind", "video_peaks"), 0.5)(str(tmp_path / "a.wav"))
    assert isinstance(prepared["panns"], dict) and prepared["panns"]["waves"].shape == (8000,)
    assert prepared["vggish"] == f"VGGish needs at least {vggish.LEAST_SAMPLES} samples; there are 8000"
    assert isinstance(prepared["imagebind"], dict) and prepared["imagebind"]["images"].shape == (3, 128, 204)
    assert prepared["video_peaks"] == "has no video stream"
    (tmp_path / "b.wav").write_text("no sound")
    broken = Preparation(("panns", "level"), 0.5)(str(tmp_path / "b.wav"))
    assert all(isinstance(reason, str) for reason in broken.values())
