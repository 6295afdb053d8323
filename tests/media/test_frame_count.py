"""The number of a file's frames, by its header, against the frames that are read."""

import av
import numpy as np
import pytest

from flowley_jax.media import read, spans
from flowley_jax.media.inputs import MediaError
from flowley_jax.media.read import frame_blocks, frame_count
from flowley_jax.media.write import write_video

RATE = 16_000


def _write(path, count, fps, *, sound=None):
    frames = np.zeros((count, 16, 16, 3), np.uint8)
    audio = None if sound is None else np.zeros(round(sound * RATE), np.float32)
    write_video(path, frames, fps, audio=audio, sample_rate=None if sound is None else RATE)
    return path


def _read(path, **options):
    return sum(map(len, frame_blocks(path, **options)))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize(("count", "fps"), [(1, 8.0), (25, 30000 / 1001), (30, 10.0)])
def test_whole_videos_and_parts_have_the_frames_that_are_read(tmp_path, suffix, count, fps):
    path = _write(tmp_path / f"v{suffix}", count, fps)
    for rate in (4.0, 8.0, 12.0, 24.0):
        assert frame_count(path, fps=rate) == _read(path, fps=rate)
    length = count / fps
    for start, end in ((0.0, 0.4 * length), (0.3 * length, None), (0.3 * length, 9.0), (0.9 * length, None)):
        assert frame_count(path, fps=8.0, start=start, end=end) == _read(path, fps=8.0, start=start, end=end)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_longer_sound_adds_no_frames(tmp_path, suffix):
    path = _write(tmp_path / f"v{suffix}", 10, 10.0, sound=3.0)
    assert frame_count(path, fps=8.0) == _read(path, fps=8.0) == 8


def test_a_stream_without_a_header_is_measured_by_its_packets(tmp_path):
    source, path = _write(tmp_path / "v.mp4", 20, 10.0), tmp_path / "v.h264"
    with av.open(str(source)) as given, av.open(str(path), "w", format="h264") as raw:
        stream = raw.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.size:
                packet.stream = stream
                raw.mux(packet)
    assert frame_count(path, fps=5.0) > 0


def test_a_film_of_two_hours_is_counted_without_reading_it(tmp_path, monkeypatch):
    path = _write(tmp_path / "film.mp4", 7200, 1.0)
    for module in (read, spans):
        monkeypatch.setattr(module, "demuxed", None)
    assert frame_count(path, fps=12.0) == 7200 * 12
    assert frame_count(path, fps=12.0, start=3600.0) == 3600 * 12


def test_what_cannot_be_sampled_is_an_error(tmp_path):
    path = _write(tmp_path / "v.mp4", 10, 10.0)
    with pytest.raises(MediaError, match=r"v\.mp4: its picture ends at 1\.00 s, before the start at 1 s"):
        frame_count(path, fps=8.0, start=1.0)
    with pytest.raises(MediaError, match="no such file"):
        frame_count(tmp_path / "none.mp4", fps=8.0)
