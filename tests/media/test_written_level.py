"""Every written file, decoded again, has a true peak of at most -1 dB, and else the level of its sound."""

import av
import numpy as np
import pytest
import soundfile
from standard_meter import standard_true_peak

from flowley_jax.errors import FlowleyError
from flowley_jax.media import aac
from flowley_jax.media.level import true_peak
from flowley_jax.media.write import mux_audio, write_audio, write_video

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")


def _sounds(rate, seconds=1.0):
    """Return loud sounds whose peaks AAC raises, and some that need no change."""
    rng = np.random.default_rng(0)
    count = round(seconds * rate)
    time = np.arange(count) / rate
    hits = sum(np.where(time >= hit, np.exp(-60 * np.abs(time - hit)), 0) for hit in (0.1, 0.45, 0.8))
    return {
        "hits": 1.5 * hits * rng.standard_normal(count),
        "square": 2.0 * np.sign(np.sin(2 * np.pi * 200 * time)),
        "noise": 0.5 * rng.standard_normal(count),
        "between samples": 1.2 * np.sin(np.pi / 2 * np.arange(count) + np.pi / 4),
        "quiet": 0.1 * np.sin(2 * np.pi * 440 * time),
        "short": np.ones(1500),
    }


def _decoded(path):
    """Return the sound (N, C) that players decode, and its rate, read with PyAV alone."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        pieces = [frame.to_ndarray() for frame in container.decode(stream)]
        return np.concatenate(pieces, axis=1).T, stream.rate


def _check_peak(wave, rate, name):
    assert 20 * np.log10(true_peak(wave, rate)) <= -1 + 1e-3, name
    # The standard's short filter reads noise too high: its gain near 2/3 of the highest frequency is 0.2 dB.
    assert standard_true_peak(wave) <= -1 + (0.5 if name == "noise" else 0.05), name


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, np.zeros((24, 32, 32, 3), np.uint8), 24.0)
    return path


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_pcm_has_a_true_peak_below_the_ceiling(tmp_path, suffix, channels):
    for name, wave in _sounds(16_000).items():
        sound = wave if channels == 1 else np.stack([wave, -0.5 * wave], axis=1)
        path = tmp_path / f"a{suffix}"
        write_audio(path, sound, 16_000)
        read_back, rate = soundfile.read(path, always_2d=True)
        assert rate == 16_000 and read_back.shape == (len(wave), channels)
        _check_peak(read_back, rate, name)
        if name == "quiet":
            np.testing.assert_allclose(read_back[:, 0], wave, atol=1.1 / 32768)


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_decoded_aac_has_a_true_peak_below_the_ceiling(tmp_path, video, suffix, rate, channels):
    for name, wave in _sounds(rate).items():
        sound = (wave if channels == 1 else np.stack([wave, 0.5 * wave], axis=1)).astype(np.float32)
        mux_audio(video, sound, rate, tmp_path / f"a{suffix}")
        read_back, read_rate = _decoded(tmp_path / f"a{suffix}")
        assert read_rate == rate and read_back.shape[1] == channels
        assert 0 <= len(read_back) - len(wave) < 2048, name
        _check_peak(read_back, rate, name)
        if name == "quiet":
            middle = slice(len(wave) // 4, len(wave) // 2)
            np.testing.assert_allclose(read_back[middle, 0], wave[middle], atol=0.01)
        elif name == "hits":
            # Limited no more than the encoder needs.
            assert 20 * np.log10(true_peak(read_back, rate)) > -3.5


def _count_rounds(monkeypatch):
    rounds, encode = [], aac._encode

    def counted(*arguments):
        packets, peak = encode(*arguments)
        rounds.append(peak)
        return packets, peak

    monkeypatch.setattr(aac, "_encode", counted)
    return rounds


def test_a_sound_that_passes_is_encoded_once(tmp_path, video, monkeypatch):
    rounds = _count_rounds(monkeypatch)
    mux_audio(video, _sounds(16_000)["quiet"].astype(np.float32), 16_000, tmp_path / "a.mp4")
    assert len(rounds) == 1


def test_a_sound_that_fails_is_encoded_until_it_passes(tmp_path, video, monkeypatch):
    rounds = _count_rounds(monkeypatch)
    mux_audio(video, _sounds(16_000)["square"].astype(np.float32), 16_000, tmp_path / "a.mp4")
    assert rounds[0] > 10 ** (-1 / 20) >= rounds[-1] and len(rounds) <= 5


def test_the_whole_sound_is_turned_down_where_the_limiter_does_not_help(monkeypatch):
    """An encoder whose peaks do not depend on those of its input for four rounds."""
    wave = np.full(4000, 0.1, np.float32)
    wave[2000], loud, quiet = 3.0, [], []

    def encode(blocks, rate, layout):
        limited = np.concatenate(list(blocks))
        loud.append(limited[2000])
        quiet.append(limited[100])
        return [len(loud)], 1.0 if len(loud) <= 4 else 0.5

    monkeypatch.setattr(aac, "_encode", encode)
    assert aac.encode_below_ceiling(wave, 16_000, "mono") == [5]
    # Each round lowers the ceiling by the excess of 1 dB and by 0.3 dB; the last one lowers all by as much.
    assert 20 * np.log10(np.divide(loud[1:], loud[:-1])) == pytest.approx([-1.3] * 4, abs=0.05)
    assert 20 * np.log10(np.divide(quiet, 0.1)) == pytest.approx([0, 0, 0, 0, -1.3], abs=0.01)


def test_generated_training_videos_keep_the_level_of_their_sound(tmp_path):
    """Training data is encoded as it is: twice the level gives twice the sound, at full scale too."""
    frames, peaks = np.zeros((24, 32, 32, 3), np.uint8), []
    for gain in (0.5, 1.0):
        wave = gain * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
        write_video(tmp_path / "a.mp4", frames, 24.0, audio=wave, sample_rate=16_000)
        peaks.append(true_peak(_decoded(tmp_path / "a.mp4")[0], 16_000))
    assert peaks[1] > 10 ** (-1 / 20) and peaks[1] == pytest.approx(2 * peaks[0], rel=0.1)


def test_sounds_that_are_not_finite_are_refused(tmp_path, video):
    wave = np.full(2000, np.nan, np.float32)
    for write in (
        lambda: write_audio(tmp_path / "a.wav", wave, 16_000),
        lambda: mux_audio(video, wave, 16_000, tmp_path / "a.mp4"),
    ):
        with pytest.raises(FlowleyError, match="values that are not finite"):
            write()
    assert not list(tmp_path.iterdir())
