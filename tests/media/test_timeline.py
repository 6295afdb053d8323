"""Flashes and clicks at random times are found there after reading and after muxing."""

import tempfile
from pathlib import Path

import pytest
from flash_clips import FlashClip, click_times, flash_times, origin_of, write_flash_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_audio, read_frames
from flowley_jax.media.spans import stream_spans
from flowley_jax.media.write import mux_audio

RATE, FPS = 16_000, 25
# One picture, in seconds, and what the subtraction of two times rounds.
PICTURE = 1 / FPS + 1e-6
# Container, encoders, sample rate, and whether the container can hold offsets of streams and gaps in them.
FORMATS = [
    (".mp4", "libx264", "aac", 16_000, True, True),
    (".mp4", "libx265", "libmp3lame", 44_100, True, True),
    (".mov", "libx264", "aac", 44_100, True, True),
    (".mov", "mpeg4", "pcm_s16le", 48_000, False, False),
    (".mkv", "libx264", "libopus", 48_000, True, True),
    (".mkv", "mpeg4", "flac", 16_000, True, True),
    (".mkv", "libx264", "libmp3lame", 44_100, True, True),
    (".webm", "libvpx", "libopus", 48_000, True, True),
    (".ts", "libx264", "aac", 48_000, True, True),
    (".ts", "mpeg2video", "mp2", 44_100, True, True),
    (".flv", "libx264", "aac", 44_100, True, True),
    (".mpg", "mpeg2video", "mp2", 48_000, True, False),
    (".avi", "mpeg4", "pcm_s16le", 48_000, False, False),
    (".avi", "libx264", "pcm_s16le", 48_000, False, False),
    (".avi", "mjpeg", "pcm_s16le", 16_000, False, False),
]
SUFFIXES = (".mp4", ".mkv", ".mov")


@st.composite
def clips(draw):
    """Draw a suffix and a clip, whose events lie where both streams cover them, outside the hole."""
    suffix, video, audio, rate, has_offsets, has_gaps = draw(st.sampled_from(FORMATS))
    frame = 1 / FPS
    video_start, audio_start, hole = 0.0, 0.0, None
    if has_offsets:
        video_start = draw(st.sampled_from([0.0, 0.0, 0.2, 0.48]))
        audio_start = draw(st.sampled_from([0.0, 0.0, 0.031, 0.25, 0.5]))
    if has_gaps and draw(st.booleans()):
        hole_start = draw(st.floats(0.8, 1.2))
        hole = (hole_start, hole_start + draw(st.floats(0.2, 0.4)))
    flashes = [frame * draw(st.integers(15, 20)), frame * draw(st.integers(30, 43))]
    clicks = [draw(st.floats(0.6, 0.7)), draw(st.floats(1.7, 1.9))]
    dropped = draw(st.sampled_from([(), (13, 24, 25)])) if has_gaps else ()
    return suffix, FlashClip(
        video_codec=video,
        audio_codec=audio,
        fps=FPS,
        sample_rate=rate,
        flashes=flashes,
        clicks=clicks,
        video_start=video_start,
        audio_start=audio_start,
        hole=hole,
        dropped=dropped,
    )


def _check(suffix: str, clip: FlashClip, target: str, folder: Path) -> None:
    path, muxed = folder / f"clip{suffix}", folder / f"muxed{target}"
    write_flash_clip(path, clip)
    origin = origin_of(path, clip)
    flashes, clicks = [time - origin for time in clip.flashes], [time - origin for time in clip.clicks]
    # Encoders may put a little silence before the sound.
    assert -0.1 < origin - min(clip.video_start, clip.audio_start) < 0.01
    spans = stream_spans(path)
    assert spans.offset == pytest.approx(clip.audio_start - clip.video_start, abs=0.075)
    if clip.hole:
        assert spans.audio is not None
        assert spans.audio.hole == pytest.approx(clip.hole[1] - clip.hole[0], abs=0.075)
    wave = read_audio(path, sample_rate=RATE)
    assert flash_times(read_frames(path, fps=FPS), FPS) == pytest.approx(flashes, abs=PICTURE)
    assert click_times(wave, RATE) == pytest.approx(clicks, abs=0.005)
    try:
        mux_audio(path, wave, RATE, muxed)
    except FlowleyError as error:
        assert "cannot hold" in str(error)
        muxed = muxed.with_suffix(".mkv")
        mux_audio(path, wave, RATE, muxed)
    assert flash_times(read_frames(muxed, fps=FPS), FPS) == pytest.approx(flashes, abs=PICTURE)
    assert click_times(read_audio(muxed, sample_rate=RATE), RATE) == pytest.approx(clicks, abs=0.005)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(drawn=clips(), target=st.sampled_from(SUFFIXES))
def test_events_keep_their_times(drawn, target):
    with tempfile.TemporaryDirectory() as folder:
        _check(drawn[0], drawn[1], target, Path(folder))


@pytest.mark.soak
@settings(max_examples=400, deadline=None)
@given(drawn=clips(), target=st.sampled_from(SUFFIXES))
def test_events_keep_their_times_in_many_clips(drawn, target):
    with tempfile.TemporaryDirectory() as folder:
        _check(drawn[0], drawn[1], target, Path(folder))
