"""Frames in blocks, and parts of videos."""

import logging
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import av.filter
import numpy as np
import pytest
from flash_clips import FlashClip, click, click_times, flash_times, write_flash_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowley_jax.errors import FlowleyError
from flowley_jax.media import inputs
from flowley_jax.media.inputs import MediaError
from flowley_jax.media.read import frame_blocks, read_audio, read_frames
from flowley_jax.media.write import mux_audio

FPS = 25
# Container and video encoder; every container seeks in its own way, and some need a tick or two of order.
FORMATS = [
    (".mp4", "libx264"),
    (".mp4", "libx265"),
    (".mov", "mpeg4"),
    (".mkv", "libx264"),
    (".webm", "libvpx"),
    (".ts", "libx264"),
    (".ts", "mpeg2video"),
    (".flv", "libx264"),
    (".mpg", "mpeg2video"),
    (".avi", "mpeg4"),
    (".avi", "libx264"),
    (".gif", "gif"),
]


@pytest.fixture
def seeks(monkeypatch):
    """Seek for every start that is not the first picture."""
    monkeypatch.setattr(inputs, "SEEK_SECONDS", 0.0)


def _write(path, codec="libx264", **fields):
    sound = None if path.suffix == ".gif" else "mp2" if path.suffix in (".avi", ".mpg") else "libopus"
    sound = {".flv": "aac", ".mov": "aac", ".ts": "aac"}.get(path.suffix, sound)
    clip = FlashClip(video_codec=codec, audio_codec=sound, fps=FPS, sample_rate=48_000, **fields)
    write_flash_clip(path, clip, options={"g": "20"})


def _numbered(path, count=72, fps=24):
    """Write frames whose grey tells their number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.options = {"g": "10", "qp": "0"}
        for number in range(count):
            image = np.full((32, 32, 3), 3 * number + 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def _numbers(frames):
    return ((frames.mean(axis=(1, 2, 3)) - 20) / 3).round().astype(int).tolist()


def _part(path, **options):
    return np.concatenate(list(frame_blocks(path, **options)))


def _by_filter(path, fps):
    """Return the frames of FFmpeg's own filter, which has no exact start."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        nodes = [graph.add_buffer(template=stream), graph.add("fps", f"fps={fps}:start_time=0")]
        nodes.append(graph.add("buffersink"))
        nodes[0].link_to(nodes[1])
        nodes[1].link_to(nodes[2])
        graph.configure()
        start, images = Fraction(container.start_time or 0, av.time_base), []
        base = Fraction(stream.time_base or 1)
        for frame in [*container.decode(stream), None]:
            if frame is not None:
                frame.pts = round((frame.pts * frame.time_base - start) / base)
                frame.duration = frame.duration or round(Fraction(1, FPS) / base)
            nodes[0].push(frame)
            try:
                while True:
                    pulled: Any = nodes[2].pull()
                    images.append(pulled.to_ndarray(format="rgb24"))
            except (av.error.BlockingIOError, av.error.EOFError):
                continue
        return np.stack(images)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".webm"])
@pytest.mark.parametrize(
    "fps", [Fraction(FPS), Fraction(50), Fraction(8), Fraction(30_000, 1001), Fraction(1, 2)]
)
def test_frames_are_those_of_the_fps_filter(tmp_path, suffix, fps):
    path = tmp_path / f"a{suffix}"
    codec = "libvpx" if suffix == ".webm" else "libx264"
    offset = 0.0 if suffix == ".webm" else 0.2
    _write(path, codec, flashes=[0.52, 1.6], video_start=offset, dropped=(13, 24, 25))
    np.testing.assert_array_equal(read_frames(path, fps=float(fps)), _by_filter(path, fps))


@pytest.mark.parametrize("block", [1, 7, 50, 256])
def test_blocks_are_the_whole_in_pieces(tmp_path, block):
    _write(tmp_path / "a.mp4", flashes=[0.52])
    blocks = list(frame_blocks(tmp_path / "a.mp4", fps=FPS, size=32, block=block))
    assert {len(frames) for frames in blocks[:-1]} <= {block} and 1 <= len(blocks[-1]) <= block
    np.testing.assert_array_equal(np.concatenate(blocks), read_frames(tmp_path / "a.mp4", fps=FPS, size=32))


@pytest.mark.parametrize(("suffix", "codec"), FORMATS)
def test_a_part_is_that_of_the_whole_in_every_format(tmp_path, seeks, suffix, codec):
    path = tmp_path / f"a{suffix}"
    _write(path, codec, seconds=4.0, flashes=[0.52, 2.0, 3.48])
    whole = read_frames(path, fps=FPS)
    assert len(whole) >= 99
    for first in (1, 13, 25, 40, 49, 50, 51, 77, 98):
        part = _part(path, fps=FPS, start=first / FPS, block=10)
        np.testing.assert_array_equal(part, whole[first:])


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    fps=st.sampled_from([8.0, 24.0, 25.0, 48.0, 30_000 / 1001]),
    first=st.integers(0, 20),
    count=st.integers(1, 30),
)
def test_starts_and_ends_at_any_rate(numbered, fps, first, count):
    whole = read_frames(numbered, fps=fps)
    part = _part(numbered, fps=fps, start=first / fps, end=(first + count) / fps)
    np.testing.assert_array_equal(part, whole[first : first + count])


@pytest.fixture(scope="module")
def numbered():
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "SEEK_SECONDS", 0.0)
        _numbered(Path(folder) / "a.mp4")
        yield Path(folder) / "a.mp4"


def test_frame_n_is_the_one_shown_n_frames_after_the_start(numbered):
    # Frame n is the last picture of the times up to 12.4 + 3n + 1.5.
    assert _numbers(_part(numbered, fps=8.0, start=12.4 / 24, end=24.4 / 24)) == [13, 16, 19, 22]
    assert _numbers(_part(numbered, fps=24.0, start=2.0, end=2.25)) == [48, 49, 50, 51, 52, 53]
    assert _numbers(_part(numbered, fps=24.0, start=2.75, end=99.0)) == [66, 67, 68, 69, 70, 71]


def test_a_late_start_is_sought_and_not_decoded_up_to(numbered, monkeypatch):
    times = []
    timed = inputs.timed_frames

    def recorded(*arguments, **options):
        for time, frame in timed(*arguments, **options):
            times.append(float(time))
            yield time, frame

    monkeypatch.setattr(inputs, "timed_frames", recorded)
    assert len(_part(numbered, fps=24.0, start=2.5)) == 12
    assert 1.0 < min(times) <= 2.5
    times.clear()
    monkeypatch.setattr(inputs, "SEEK_SECONDS", 15.0)
    assert len(_part(numbered, fps=24.0, start=2.0, end=2.5)) == 12
    assert min(times) == 0.0 and max(times) < 2.6


def test_a_late_picture_is_repeated_from_the_start_on(tmp_path, seeks):
    _write(tmp_path / "a.mkv", video_start=1.0, flashes=[1.6], seconds=3.0)
    whole = read_frames(tmp_path / "a.mkv", fps=FPS)
    part = _part(tmp_path / "a.mkv", fps=FPS, start=0.4)
    np.testing.assert_array_equal(part, whole[10:])
    assert flash_times(part, FPS) == pytest.approx([1.2], abs=1.01 / FPS)


@pytest.mark.parametrize("start", [3.0, 3.5, 1e4])
def test_a_start_that_is_not_before_the_end_of_the_picture_is_refused(numbered, start):
    message = rf"a\.mp4: its picture ends at 3\.00 s, before the start at {start:g} s"
    for first in (0.0, 15.0):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(MediaError, match=message):
            patch.setattr(inputs, "SEEK_SECONDS", first)
            next(frame_blocks(numbered, fps=24.0, start=start))


def test_blocks_have_no_limit_of_memory_and_one_size(tmp_path, monkeypatch):
    _write(tmp_path / "a.mp4")
    monkeypatch.setattr("flowley_jax.media.read._MAX_FRAME_BYTES", 1)
    assert len(_part(tmp_path / "a.mp4", fps=FPS)) == 50
    with pytest.raises(FlowleyError, match="GiB of memory"):
        read_frames(tmp_path / "a.mp4", fps=FPS)


def test_pictures_without_a_size_are_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match="is a picture"):
        next(frame_blocks(tmp_path / "a.png", fps=FPS))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize(("start", "end"), [(1.0, 2.0), (0.0, 2.0), (1.48, None), (2.4, 9.0)])
def test_a_part_is_muxed_with_times_from_its_start(tmp_path, seeks, caplog, suffix, start, end):
    source, target = tmp_path / "a.mp4", tmp_path / f"b{suffix}"
    _write(source, seconds=4.0, flashes=[0.52, 1.6, 2.52])
    length = min(4.0, end or 4.0) - start
    wave = np.zeros(round(length * 48_000), np.float32)
    wave[24_000 : 24_000 + len(click(48_000))] = click(48_000)
    with caplog.at_level(logging.INFO):
        mux_audio(source, wave, 48_000, target, start=start, end=end)
    assert f"{source}: its picture is encoded in H.264 instead of copied, because only a part" in caplog.text
    frames = read_frames(target, fps=FPS)
    whole = read_frames(source, fps=FPS)[round(start * FPS) : round((start + length) * FPS)]
    assert len(frames) == len(whole) == round(length * FPS)
    np.testing.assert_allclose(frames.astype(int), whole, atol=8)
    expected = [time - start for time in (0.52, 1.6, 2.52) if 0 < time - start < length]
    assert flash_times(frames, FPS) == pytest.approx(expected, abs=0.5 / FPS)
    assert click_times(read_audio(target, sample_rate=48_000), 48_000) == pytest.approx([0.5], abs=0.002)


def test_a_picture_that_stays_covers_the_part(tmp_path):
    _write(tmp_path / "a.mkv", seconds=4.0, dropped=tuple(range(26, 100)))
    mux_audio(tmp_path / "a.mkv", np.zeros(8000, np.float32), 16_000, tmp_path / "b.mp4", start=0.8, end=1.6)
    assert len(read_frames(tmp_path / "b.mp4", fps=FPS)) >= 5


def test_a_part_after_the_end_is_not_muxed(numbered, tmp_path):
    for start in (3.0, 10.0):
        with pytest.raises(MediaError, match=rf"a\.mp4: its picture ends at 3\.00 s, .* at {start:g} s"):
            mux_audio(numbered, np.zeros(1000, np.float32), 16_000, tmp_path / "b.mp4", start=start)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", [4.0, 9.0])
def test_a_part_that_is_the_whole_file_is_copied(tmp_path, caplog, end):
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    _write(source, seconds=4.0, flashes=[0.52])
    with caplog.at_level(logging.INFO):
        mux_audio(source, np.zeros(192_000, np.float32), 48_000, target, end=end)
    assert "encoded" not in caplog.text
    np.testing.assert_array_equal(read_frames(target, fps=FPS), read_frames(source, fps=FPS))
