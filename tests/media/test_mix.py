"""A new sound next to a video's own one, and the command that puts a sound under a video."""

import av
import numpy as np
import pytest
import shell

from flowley_jax.media.mix import ONLY_NEW, Mixing, mixed, read_sound
from flowley_jax.media.read import probe, read_channels
from flowley_jax.media.write import write_audio, write_video

FPS = 12.0
SECONDS = 2.0


def _tone(frequency, rate, seconds, level=0.2):
    time = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def _level(wave, frequency, rate):
    """Return the amplitude of a tone in the middle of a wave of one channel."""
    middle = wave[len(wave) // 4 : len(wave) // 4 + rate // 2]
    time = np.arange(len(middle)) / rate
    return 2 * np.abs(np.mean(middle * np.exp(-2j * np.pi * frequency * time)))


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (round(SECONDS * FPS), 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory, frames):
    """Return a video whose own sound is 440 Hz on the left and 660 Hz on the right, at 44.1 kHz."""
    path = tmp_path_factory.mktemp("video") / "own.mp4"
    own = np.stack([_tone(frequency, 44_100, SECONDS) for frequency in (440, 660)], axis=1)
    write_video(path, frames, FPS, audio=own, sample_rate=44_100)
    return path


def test_the_new_sound_alone_is_not_changed(video):
    wave = _tone(1000, 16_000, 1.0)
    result, rate = mixed(wave, 16_000, ONLY_NEW, video)
    assert rate == 16_000
    np.testing.assert_array_equal(result, wave)


def test_the_own_sound_keeps_its_channels_its_rate_and_its_share(video):
    wave = _tone(1000, 16_000, SECONDS)
    result, rate = mixed(wave, 16_000, Mixing(keep_original=0.5), video)
    assert rate == 44_100 and result.shape == (round(SECONDS * 44_100), 2)
    for channel, own, other in ((0, 440, 660), (1, 660, 440)):
        levels = [_level(result[:, channel], frequency, rate) for frequency in (1000, own, other)]
        np.testing.assert_allclose(levels, [0.2, 0.1, 0.0], atol=0.003)


def test_the_own_sound_starts_where_the_part_does(tmp_path, frames):
    own = np.concatenate([_tone(440, 16_000, 1.0), _tone(660, 16_000, 1.0)])
    write_video(tmp_path / "a.mp4", frames, FPS, audio=own, sample_rate=16_000)
    silence = np.zeros(16_000, np.float32)
    mixing = Mixing(keep_original=1.0)
    for start, frequency in ((0.0, 440), (1.0, 660)):
        result, rate = mixed(silence, 16_000, mixing, tmp_path / "a.mp4", start=start)
        assert result.shape == (16_000,)
        assert _level(result, frequency, rate) == pytest.approx(0.2, abs=0.005)
    # After the own sound's end there is the new one only.
    longer, _ = mixed(np.zeros(48_000, np.float32), 16_000, mixing, tmp_path / "a.mp4")
    assert len(longer) == 48_000 and np.abs(longer[34_000:]).max() == 0.0


def test_without_a_sound_of_its_own_nothing_is_added(tmp_path, frames):
    write_video(tmp_path / "silent.mp4", frames, FPS)
    wave = _tone(1000, 16_000, 1.0)
    for path in (tmp_path / "silent.mp4", None):
        result, rate = mixed(wave, 16_000, Mixing(keep_original=1.0, stereo=True), path)
        assert rate == 16_000
        np.testing.assert_array_equal(result, np.stack([wave, wave], axis=1))


@pytest.mark.parametrize(("rate", "expected"), [(44_100, 44_100), (96_000, 96_000), (37_800, 48_000)])
def test_a_rate_that_aac_lacks_becomes_48_khz(tmp_path, rate, expected):
    write_audio(tmp_path / "a.wav", _tone(1000, rate, 1.0), rate)
    wave, found = read_sound(tmp_path / "a.wav")
    assert found == expected and len(wave) == expected
    assert _level(wave, 1000, found) == pytest.approx(0.2, abs=1e-3)


def test_mux_copies_the_picture_and_mixes_the_sounds(video, tmp_path):
    write_audio(tmp_path / "new.flac", _tone(1000, 48_000, 5.0), 48_000)
    out = tmp_path / "out.mkv"
    result = shell.run(
        "flowley_jax.mux",
        *("--video", video, "--audio", tmp_path / "new.flac", "--keep-original", 0.5, "--out", out),
    )
    assert result.returncode == 0 and result.stdout.strip() == str(out)
    assert "the sound has 5.00 s" in result.stderr and "2.00 s: the rest is cut" in result.stderr
    assert _picture(out) == _picture(video)
    planes, rate = read_channels(out)
    assert rate == 48_000 and len(planes) == 2 and probe(out).duration == pytest.approx(SECONDS, abs=0.05)
    np.testing.assert_allclose(
        [_level(planes[0], frequency, rate) for frequency in (1000, 440)], [0.2, 0.1], atol=0.01
    )


def test_mux_in_stereo_ends_with_silence_if_the_sound_is_short(video, tmp_path):
    write_audio(tmp_path / "new.wav", _tone(1000, 16_000, 0.5), 16_000)
    out = tmp_path / "out.mp4"
    result = shell.run(
        "flowley_jax.mux", "--video", video, "--audio", tmp_path / "new.wav", "--stereo", "--out", out
    )
    assert result.returncode == 0 and "silence follows" in result.stderr
    planes, rate = read_channels(out)
    assert len(planes) == 2 and rate == 16_000
    assert np.abs(planes[:, rate:]).max() < 1e-3 < np.abs(planes[:, : rate // 2]).max()


def test_mux_refuses_what_it_cannot_do(video, tmp_path, frames):
    silent, sound, mine = tmp_path / "silent.mp4", tmp_path / "a.wav", tmp_path / "mine.mp4"
    write_video(silent, frames, FPS)
    write_audio(sound, _tone(1000, 16_000, 1.0), 16_000)
    mine.write_text("mine")
    for flags, expected in (
        (("--video", video, "--audio", silent, "--out", tmp_path / "b.mp4"), f"{silent}: has no audio"),
        (
            ("--video", silent, "--audio", sound, "--keep-original", 1, "--out", tmp_path / "b.mp4"),
            f"{silent}: has no sound of its own; leave out --keep-original",
        ),
        (("--video", silent, "--audio", sound, "--out", silent, "--overwrite"), "would replace an input"),
        (("--video", silent, "--audio", sound, "--out", mine), f"{mine}: already exists"),
        (("--video", silent, "--audio", sound, "--out", tmp_path / "b.wav"), "the extension must be one of"),
        (("--video", silent, "--audio", sound, "--keep-original", 2, "--out", mine), "--keep-original="),
    ):
        shell.fails_in_one_line(shell.run("flowley_jax.mux", *flags), expected)
    assert mine.read_text() == "mine" and not (tmp_path / "b.mp4").exists()


def _picture(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]
