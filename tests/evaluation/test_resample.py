"""The resampler against outputs of the published implementation."""

import tracemalloc

import numpy as np
import pytest
from golden_data import load, relative_error

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation import resample as resampling
from flowley_jax.evaluation.resample import resample
from flowley_jax.networks.imagebind_audio import clip_images

CASES = [key.removeprefix("out/") for key in load("resample") if key.startswith("out/")]


def _mono(name):
    """Return the mean of the channels, less its own mean, (1, N), as most networks hear it."""
    wave = (load("resample")[f"in/{name}"].astype(np.float32) / 32768).mean(axis=0, keepdims=True)
    return wave - wave.mean()


@pytest.mark.parametrize("case", CASES)
def test_waves_are_the_published_ones(case):
    source, after = case.split("_to_")
    golden, before = load("resample")[f"out/{case}"][None], int(source.removeprefix("odd"))
    wave = _mono(source)
    resampled = resample(wave, before, int(after))
    assert resampled.dtype == np.float32
    assert resampled.shape == (1, -(-wave.shape[1] * int(after) // before))
    assert relative_error(resampled[:, : golden.shape[1]], golden) < 1e-6
    in_float32 = resample(wave, before, int(after), kernel_dtype=np.float32)
    assert relative_error(in_float32[:, : golden.shape[1]], golden) < 1e-5


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("odd")])
def test_filters_are_the_published_ones(case):
    before, after = map(int, case.split("_to_"))
    golden, divisor = load("resample")[f"kernel/{case}"], np.gcd(before, after)
    step = int(before // divisor)
    reach, starts, filters = resampling._filters(step, int(after // divisor), "float64")
    assert reach == load("resample")[f"kernel_width/{case}"]
    for row, (start, taps) in enumerate(zip(starts[: len(golden)], filters, strict=False)):
        whole = np.zeros(2 * reach + step + 1, np.float32)
        whole[start : start + len(taps)] = taps
        np.testing.assert_allclose(whole[:-1], golden[row], atol=1e-7)
        assert abs(whole[-1]) < 1e-7


def test_rates_without_a_common_divisor_take_little_memory():
    """The published filters would take gigabytes."""
    time = np.arange(44_101) / 44_101
    wave = np.sin(2 * np.pi * 1000 * time).astype(np.float32)[None]
    expected = np.sin(2 * np.pi * 1000 * np.arange(48_000) / 48_000)
    tracemalloc.start()
    resampled = resample(wave, 44_101, 48_000)
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()
    np.testing.assert_allclose(resampled[0, 100:-100], expected[100:-100], atol=2e-3)


def test_the_function_of_torchaudio_gives_the_published_images_of_imagebind():
    wave = load("waves_48k")["wave"][1:2, : 7 * 48_000].astype(np.float32) / 32768
    images = clip_images(resample(wave, 48_000, 16_000, kernel_dtype=np.float32))
    assert relative_error(images[:, None, :, ::4], load("av_front_audio")["ib/48k_7s/row1"]) < 1e-3


def test_channels_do_not_mix_and_an_equal_rate_changes_nothing():
    wave = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32)
    assert resample(wave, 16_000, 16_000) is wave
    both = resample(wave, 44_100, 16_000)
    np.testing.assert_allclose(both[1:], resample(wave[1:], 44_100, 16_000), atol=1e-6)


def test_a_tone_keeps_its_pitch_and_its_level():
    time = np.arange(44_100) / 44_100
    wave = np.sin(2 * np.pi * 1000 * time).astype(np.float32)[None]
    expected = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(resample(wave, 44_100, 16_000)[0, 100:-100], expected[100:-100], atol=2e-3)


def test_unusable_input_is_refused():
    with pytest.raises(FlowleyError, match="sample rates 0 and 16000 must be positive"):
        resample(np.zeros((1, 9), np.float32), 0, 16_000)
    with pytest.raises(FlowleyError, match=r"wave \(9,\) must be \(channels, samples\)"):
        resample(np.zeros(9, np.float32), 8000, 16_000)
