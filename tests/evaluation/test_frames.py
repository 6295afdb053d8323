"""Frames for Synchformer and ImageBind: which ones, and their pixels, against the published programs."""

import itertools
from fractions import Fraction
from typing import Any

import av
import av.error
import av.filter
import jax.numpy as jnp
import numpy as np
import pytest
from films import SIZES, film
from flash_clips import FlashClip, write_flash_clip
from golden_data import load, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.frames import (
    centre_crops,
    imagebind_clips,
    read_clip_frames,
    synchformer_segments,
    three_crops,
)
from flowley_jax.evaluation.resizing import with_short_side
from flowley_jax.media.inputs import MediaError

GOLDEN = "av_front_video"
# Frames that ImageBind sees of a film of 25 fps.
IMAGEBIND_FRAMES = (24, 74, 124, 174)


def _small(name, frames):
    return np.stack([with_short_side(frame, 224) for frame in film(name, frames)])


def _channels_first(frames):
    return np.moveaxis(frames, -1, -3)


@pytest.mark.parametrize("name", SIZES)
def test_resized_pixels_are_the_published_ones(name):
    golden = load(GOLDEN)
    assert film(name, [0]).astype(int).sum() == golden[f"{name}/frame0_sum"]
    frames = _channels_first(_small(name, IMAGEBIND_FRAMES))
    assert frames.shape == tuple(golden[f"{name}/resized_shape"])
    step = 1 if name == "landscape" else 3
    np.testing.assert_array_equal(frames[0][:, ::step, ::step], golden[f"{name}/resized_sub"])
    np.testing.assert_array_equal(frames.sum(axis=-1), golden[f"{name}/resized_rowsum"])


@pytest.mark.parametrize("name", SIZES)
def test_inputs_of_synchformer_are_the_published_ones(name):
    golden = load(GOLDEN)
    frames = centre_crops(_small(name, range(0, 200, 25)))
    # One segment that shows each of these frames twice.
    segment = np.asarray(synchformer_segments(jnp.asarray(frames.repeat(2, axis=0)[None])))[0, 0, ::2]
    small = _channels_first(segment[:, ::16, ::16])
    np.testing.assert_allclose(small, golden[f"{name}/sync_sub"], atol=1e-6)
    assert relative_error(segment.mean(axis=(1, 2)), golden[f"{name}/sync_mean"][::25]) < 5e-5


@pytest.mark.parametrize("name", SIZES)
def test_inputs_of_imagebind_are_the_published_ones(name):
    golden = load(GOLDEN)
    crops = three_crops(_small(name, IMAGEBIND_FRAMES))
    clips = np.asarray(imagebind_clips(jnp.asarray(crops)[None]))[0].reshape(3, 3, 2, 224, 224, 3)
    np.testing.assert_array_equal(clips[1:, :, 0], clips[:-1, :, 1])
    frames = _channels_first(np.concatenate([clips[:, :, 0], clips[-1:, :, 1]])).swapaxes(0, 1)
    np.testing.assert_allclose(frames[..., ::16, ::16], golden[f"{name}/ib_sub"], atol=1e-6)
    assert relative_error(frames.mean(axis=(3, 4)), golden[f"{name}/ib_mean"]) < 5e-5


def test_the_middle_of_an_odd_length_is_rounded_as_published():
    frames = np.broadcast_to(np.arange(225, dtype=np.uint8)[:, None], (1, 224, 225, 3))
    assert centre_crops(frames)[0, 0, 0, 0] == 0
    assert three_crops(frames)[0, :, 0, 0, 0].tolist() == [0, 1, 1]
    upright = frames.swapaxes(1, 2)
    np.testing.assert_array_equal(centre_crops(upright), centre_crops(frames).swapaxes(1, 2))
    np.testing.assert_array_equal(three_crops(upright), three_crops(frames).swapaxes(2, 3))


def test_segments_overlap_by_half():
    frames = jnp.asarray(centre_crops(_small("landscape", range(41))))
    segments = synchformer_segments(frames[None])
    assert segments.shape == (1, 4, 16, 224, 224, 3) and segments.dtype == jnp.float32
    np.testing.assert_array_equal(segments[:, 1:, :8], segments[:, :-1, 8:])


@settings(max_examples=50, deadline=None)
@given(
    before=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    length=st.integers(1, 50),
    seed=st.integers(0, 9),
)
def test_resizing_keeps_constant_images_and_the_aspect(before, length, seed):
    level = np.random.default_rng(seed).integers(0, 256, 3, dtype=np.uint8)
    image = with_short_side(np.broadcast_to(level, (*before, 3)), length)
    assert image.shape[:2] == tuple(length * side // min(before) for side in before)
    assert (image == level).all()


def _numbered(path, fps, seconds=8.5, start=0):
    """Write frames whose two halves tell their number, and a sound from the time 0 on."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.options = {"qp": "0", "preset": "ultrafast"}
        sound: Any = container.add_stream("flac", rate=16_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), format="s16")
        silence.rate, silence.pts = 16_000, 0
        container.mux(sound.encode(silence))
        for number in range(int(seconds * fps)):
            image = np.full((32, 32, 3), 16 * (number % 15) + 16, np.uint8)
            image[:, 16:] = 7 * (number // 15) + 16
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number + start
            container.mux(stream.encode(frame))
        container.mux([*stream.encode(None), *sound.encode(None)])


def _by_filter(path, fps, count):
    """Return the frames of FFmpeg's own filter."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        nodes = [
            graph.add_buffer(template=stream),
            graph.add("fps", f"fps={fps}"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ]
        for before, after in itertools.pairwise(nodes):
            before.link_to(after)
        graph.configure()
        images = []
        for frame in [*container.decode(stream), None]:
            nodes[0].push(frame)
            try:
                while True:
                    pulled: Any = nodes[-1].pull()
                    images.append(with_short_side(pulled.to_ndarray(), 224))
            except (av.error.BlockingIOError, av.error.EOFError):
                continue
        return np.stack(images[:count])


def _assert_as_by_filter(path, seconds):
    """Check both kinds of frames of a video against FFmpeg's own filter."""
    frames, count = read_clip_frames(path, seconds), int(25 * seconds)
    np.testing.assert_array_equal(frames.synchformer, centre_crops(_by_filter(path, 25, count)))
    slow = _by_filter(path, Fraction(1, 2), count // 50)
    np.testing.assert_array_equal(frames.imagebind, three_crops(slow))


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("fps", [10, 24, 25, Fraction(30_000, 1001), 30, 60])
def test_frames_are_those_of_the_fps_filter(tmp_path, fps, start):
    path = tmp_path / "a.mkv"
    _numbered(path, fps, start=start)
    _assert_as_by_filter(path, 8.0)


@pytest.mark.parametrize("form", ["yuv420p", "yuv420p10le"])
def test_colours_are_those_of_ffmpeg(tmp_path, form):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=5)
        (stream.height, stream.width), stream.pix_fmt = SIZES["odd"], form
        for image in film("odd", range(20)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    _assert_as_by_filter(path, 4.0)


def test_missing_pictures_are_repeated_as_by_the_fps_filter(tmp_path):
    path = tmp_path / "a.mp4"
    clip = FlashClip(
        seconds=6.0, flashes=[0.52, 1.6, 3.0], dropped=(13, 24, 25, 74, 75, 76), audio_codec="libopus"
    )
    write_flash_clip(path, clip)
    _assert_as_by_filter(path, 6.0)


def test_a_video_that_is_too_short_is_named(tmp_path):
    path = tmp_path / "a.mkv"
    _numbered(path, 25, seconds=7.9)
    with pytest.raises(
        FlowleyError, match=r"a\.mkv: has 197 frames at 25 per second; 200 are needed for 8 s"
    ):
        read_clip_frames(path, 8.0)
    frames = read_clip_frames(path, 7.88)
    assert frames.synchformer.shape == (197, 224, 224, 3)
    assert frames.imagebind.shape == (3, 3, 224, 224, 3)


def test_a_length_without_a_clip_is_refused(tmp_path):
    with pytest.raises(FlowleyError, match=r"seconds=3\.9 must be at least 4"):
        read_clip_frames(tmp_path / "a.mkv", 3.9)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MediaError, match=r"a\.mp4: no such file"):
        read_clip_frames(tmp_path / "a.mp4", 8.0)


def test_a_picture_that_changes_its_shape_is_named(tmp_path):
    parts = []
    for index, size in enumerate([(48, 64), (80, 96)]):
        with av.open(str(tmp_path / f"{index}.ts"), "w") as container:
            stream: Any = container.add_stream("mpeg2video", rate=25)
            (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
            for number in range(10):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 90, np.uint8), format="rgb24")
                frame.pts, frame.time_base = 10 * index + number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append((tmp_path / f"{index}.ts").read_bytes())
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    with pytest.raises(MediaError, match=r"a\.ts: its picture changes its shape: from 298×224 to 268×224"):
        read_clip_frames(tmp_path / "a.ts", 4.0)
