"""Damage in a file matters only where it is read, and ends a stream where nothing follows it."""

import av
import numpy as np
import pytest
from flash_clips import FlashClip, write_flash_clip

from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_audio, read_frames
from flowley_jax.media.spans import stream_spans

RATE, FPS = 16_000, 25
CONTAINERS = [(".mp4", "aac"), (".mov", "aac"), (".mp4", "libmp3lame")]


def _write(path, codec, seconds=4.0, options=None):
    clip = FlashClip(seconds=seconds, audio_codec=codec, sample_rate=44_100, clicks=np.arange(1, 39) / 10)
    write_flash_clip(path, clip, options=options)


def _damage(path, kind, time):
    """Overwrite the packet of a time in a file."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux() if packet.size and packet.stream.type == kind]
        hit = min(packets, key=lambda packet: abs(packet.pts * packet.time_base - time))
        place, size = hit.pos, hit.size
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"\xff" * size)


def _read(path, seconds=None):
    return read_frames(path, fps=FPS, seconds=seconds), read_audio(path, sample_rate=RATE, seconds=seconds)


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
def test_damage_after_the_part_that_is_read_does_no_harm(tmp_path, suffix, codec):
    path = tmp_path / f"a{suffix}"
    _write(path, codec)
    frames, wave = _read(path, seconds=2.0)
    _damage(path, "video", 2.2)
    _damage(path, "audio", 2.2)
    damaged_frames, damaged_wave = _read(path, seconds=2.0)
    np.testing.assert_array_equal(damaged_frames, frames)
    np.testing.assert_array_equal(damaged_wave, wave)
    assert len(read_audio(path, sample_rate=RATE, seconds=2.0, normalize_peak=True)) == 2 * RATE
    with pytest.raises(FlowleyError, match=rf"a\{suffix}: its video is damaged near 2\.\d\d s"):
        read_frames(path, fps=FPS, seconds=3.0)
    with pytest.raises(FlowleyError, match=rf"a\{suffix}: its audio is damaged near 2\.[12]\d s"):
        read_audio(path, sample_rate=RATE, seconds=3.0)


def test_damage_at_the_end_shortens_a_stream(tmp_path, caplog):
    path = tmp_path / "a.mp4"
    _write(path, "libmp3lame")
    _damage(path, "audio", 4.0)
    assert 3.9 < len(read_audio(path, sample_rate=RATE)) / RATE < 4.0
    assert "a.mp4: its audio is damaged near 4.00 s; it is read up to there" in caplog.text


def test_a_stream_that_is_damaged_throughout_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    _write(path, "libmp3lame", seconds=0.1)
    for packet in range(-1, 6):
        _damage(path, "audio", packet * 1152 / 44_100)
    with pytest.raises(FlowleyError, match=r"a\.mp4: its audio is damaged near -?0\.0\d s"):
        read_audio(path, sample_rate=RATE)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_download_that_was_cut_short_is_read_to_its_end(tmp_path, share):
    with av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as new:
        _write(tmp_path / "a.mp4", "aac")
        with av.open(str(tmp_path / "a.mp4")) as old:
            streams = [new.add_stream_from_template(stream, opaque=True) for stream in old.streams]
            for packet in old.demux():
                if packet.size:
                    packet.stream = streams[packet.stream.index]
                    new.mux(packet)
    content = (tmp_path / "b.mp4").read_bytes()
    media = content.index(b"mdat")
    (tmp_path / "b.mp4").write_bytes(content[: media + round(share * (len(content) - media))])
    frames, wave = _read(tmp_path / "b.mp4")
    spans = stream_spans(tmp_path / "b.mp4")
    for length, span in ((len(frames) / FPS, spans.video), (len(wave) / RATE, spans.audio)):
        assert 1.0 < length < 3.9 and span is not None
        assert length == pytest.approx(span.end, abs=0.2)


def test_the_last_picture_of_the_part_that_is_read_stays(tmp_path):
    """The next picture comes much later, and is not decoded."""
    write_flash_clip(tmp_path / "a.mp4", FlashClip(seconds=4.0, dropped=range(30, 90)))
    assert len(read_frames(tmp_path / "a.mp4", fps=FPS, seconds=2.0)) == 50


def test_a_picture_that_begins_after_the_part_that_is_read_is_shown(tmp_path):
    write_flash_clip(tmp_path / "a.mkv", FlashClip(seconds=4.0, video_start=2.0, audio_codec="flac"))
    assert len(read_frames(tmp_path / "a.mkv", fps=FPS, seconds=1.0)) == 25
