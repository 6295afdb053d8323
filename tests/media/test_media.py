"""Video and sound written to files and read back: content, timing, and errors for bad files."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from data_prep.impacts.generate import GeneratedClip
from data_prep.impacts.render import render
from flowley_jax.errors import FlowleyError
from flowley_jax.media.formats import is_video
from flowley_jax.media.read import probe, read_audio, read_frames
from flowley_jax.media.write import mux_audio, write_audio, write_video

RATE = 16_000
CLICKS = (4000, 16_000, 25_000)
SUFFIXES = (".mp4", ".mkv", ".mov")


def _frames(count=24, height=32, width=48):
    frames = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        frames[index] = (240 * index // count, 240 - 240 * index // count, 100)
    return frames


def _noise(count=24, size=64):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def _clicks(count=2 * RATE):
    wave = np.zeros(count, np.float32)
    for start in CLICKS:
        wave[start : start + 41] = 0.8 * np.hanning(41)
    return wave


def _tone(hertz, rate, seconds=1.0, peak=0.5):
    return peak * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def _packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_keep_their_number_size_and_colour(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write_video(path, _frames(), 24.0)
    np.testing.assert_allclose(read_frames(path, fps=24.0).astype(int), _frames(), atol=6)
    info = probe(path)
    assert (info.video_fps, info.width, info.height, info.has_audio) == (24.0, 48, 32, False)
    assert info.duration == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_third_of_the_frame_rate_takes_every_third_frame(tmp_path, suffix):
    """Frame k goes to output frame round(k/3), which keeps the last one it gets: 3n + 1."""
    path = tmp_path / f"clip{suffix}"
    write_video(path, _frames(), 24.0)
    expected = _frames()[1::3]
    np.testing.assert_allclose(read_frames(path, fps=8.0).astype(int), expected, atol=4)
    np.testing.assert_allclose(read_frames(path, fps=8.0, seconds=0.5).astype(int), expected[:4], atol=4)


def test_twice_the_frame_rate_repeats_frames(tmp_path):
    write_video(tmp_path / "clip.mp4", _frames(), 24.0)
    frames = read_frames(tmp_path / "clip.mp4", fps=48.0)
    np.testing.assert_allclose(frames.astype(int), np.repeat(_frames(), 2, axis=0), atol=6)


def test_resizing_gives_a_square_and_keeps_left_and_right(tmp_path):
    frames = np.zeros((3, 48, 96, 3), np.uint8)
    frames[:, :, 48:] = 200
    write_video(tmp_path / "clip.mp4", frames, 24.0)
    small = read_frames(tmp_path / "clip.mp4", fps=24.0, size=16)
    assert small.shape == (3, 16, 16, 3) and small.dtype == np.uint8
    np.testing.assert_allclose(small[:, :, :6].astype(int), 0, atol=6)
    np.testing.assert_allclose(small[:, :, 10:].astype(int), 200, atol=6)


def test_equal_input_is_written_as_equal_bytes(tmp_path):
    scene = GeneratedClip(split="valid", index=0, seed=5, seconds=3.0).draw()[0]
    contents = set()
    for _ in range(30):
        write_video(tmp_path / "a.mp4", render(scene), 24.0, audio=_clicks(), sample_rate=RATE)
        contents.add((tmp_path / "a.mp4").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("channels", [1, 2])
def test_clicks_keep_their_position_through_aac(tmp_path, suffix, channels):
    wave = _clicks() if channels == 1 else np.stack([_clicks(), 0.5 * _clicks()], axis=1)
    write_video(tmp_path / f"clip{suffix}", _frames(48), 24.0, audio=wave, sample_rate=RATE)
    read_back = read_audio(tmp_path / f"clip{suffix}", sample_rate=RATE)
    # AAC frames are written whole.
    assert 0 <= len(read_back) - len(wave) < 1024
    assert len(read_audio(tmp_path / f"clip{suffix}", sample_rate=RATE, seconds=2.0)) == len(wave)
    for start in CLICKS:
        around = read_back[start - 2000 : start + 2000]
        assert abs(int(np.argmax(np.abs(around))) - 2020) <= 2
        assert around.max() == pytest.approx(0.8 if channels == 1 else 0.6, abs=0.03)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_written_sound_is_exact_to_16_bits(tmp_path, suffix):
    wave = np.linspace(-0.7, 0.7, 200_001)
    write_audio(tmp_path / f"a{suffix}", wave, RATE)
    read_back = read_audio(tmp_path / f"a{suffix}", sample_rate=RATE)
    assert read_back.dtype == np.float32
    np.testing.assert_allclose(read_back, wave, atol=1.1 / 32768)


def test_channels_are_averaged(tmp_path):
    left, right = _tone(440, RATE), _tone(1000, RATE, peak=0.25)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(
        read_audio(tmp_path / "a.wav", sample_rate=RATE), 0.5 * (left + right), atol=1e-6
    )


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_resampling_keeps_the_tone_and_its_phase(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", _tone(440, rate), rate, subtype="FLOAT")
    read_back = read_audio(tmp_path / "a.wav", sample_rate=RATE)
    assert len(read_back) == RATE
    np.testing.assert_allclose(read_back[500:-500], _tone(440, RATE)[500:-500], atol=2e-3)
    assert len(read_audio(tmp_path / "a.wav", sample_rate=RATE, seconds=0.25)) == RATE // 4


def test_peak_normalisation_uses_the_whole_track(tmp_path):
    wave = np.concatenate([_tone(440, RATE, peak=0.1), _tone(440, RATE, peak=0.2)])
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    read_back = read_audio(tmp_path / "a.wav", sample_rate=RATE, normalize_peak=True)
    assert np.abs(read_back).max() == pytest.approx(0.95, abs=1e-5)
    quiet = read_audio(tmp_path / "a.wav", sample_rate=RATE, normalize_peak=True, seconds=0.5)
    assert np.abs(quiet).max() == pytest.approx(0.475, abs=1e-3)


def test_a_silent_clip_cannot_be_normalised(tmp_path):
    write_audio(tmp_path / "a.wav", np.zeros(1000), RATE)
    assert not read_audio(tmp_path / "a.wav", sample_rate=RATE).any()
    with pytest.raises(FlowleyError, match=r"a\.wav: is silent"):
        read_audio(tmp_path / "a.wav", sample_rate=RATE, normalize_peak=True)


@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("target", SUFFIXES)
def test_muxing_a_new_sound_copies_the_picture(tmp_path, source, target):
    old, new = tmp_path / f"old{source}", tmp_path / f"new{target}"
    write_video(old, _noise(), 24.0, audio=_tone(2000, RATE).astype(np.float32), sample_rate=RATE)
    wave = _tone(440, RATE).astype(np.float32)
    mux_audio(old, wave, RATE, new)
    assert len(_packets(old)) == 24
    assert _packets(new) == _packets(old)
    with av.open(str(new)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    np.testing.assert_allclose(read_audio(new, sample_rate=RATE)[2000:14_000], wave[2000:14_000], atol=0.05)


def _write_by_hand(path, frames, *, codec="libx264", rotation=None, start=0.0):
    """Write a video with properties that `write_video` does not support."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        if rotation is not None:
            stream.set_display_rotation(rotation)
        stream.codec_context.time_base = Fraction(1, 240)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 240), round(240 * (start + index / 24))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_rotated_video_is_read_upright(tmp_path, rotation):
    upright = np.zeros((6, 64, 32, 3), np.uint8)
    upright[:, :16] = 220
    upright[:, 40:, :8] = 120
    _write_by_hand(tmp_path / "a.mp4", np.rot90(upright, -rotation // 90, axes=(1, 2)), rotation=rotation)
    read_back = read_frames(tmp_path / "a.mp4", fps=24.0)
    assert read_back.shape == upright.shape
    assert np.abs(read_back.astype(int) - upright).mean() < 6
    mux_audio(tmp_path / "a.mp4", _clicks(), RATE, tmp_path / "b.mp4")
    np.testing.assert_array_equal(read_frames(tmp_path / "b.mp4", fps=24.0), read_back)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_picture_that_begins_late_stays_in_time_with_the_sound(tmp_path, suffix):
    path, out = tmp_path / f"a{suffix}", tmp_path / "b.mp4"
    _write_by_hand(path, _frames(24), start=1.0)
    with av.open(str(path)) as container:
        begins = float(container.streams.video[0].start_time * container.streams.video[0].time_base)
        offset = begins - container.start_time / av.time_base
    read_back = read_frames(path, fps=24.0)
    assert len(read_back) == 24 + round(24 * offset)
    np.testing.assert_allclose(read_back[-1].astype(int), _frames(24)[-1], atol=6)
    mux_audio(path, _clicks(), RATE, out)
    with av.open(str(out)) as container:
        video = container.streams.video[0]
        assert float(video.start_time * video.time_base) == pytest.approx(offset, abs=0.05)
    np.testing.assert_array_equal(read_frames(out, fps=24.0), read_back)


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_a_still_picture_is_refused(tmp_path, name):
    Image.fromarray(_frames()[0]).save(tmp_path / name, format="png")
    _refused(READERS["read_frames"], tmp_path / name, "is a picture, not a video")


@pytest.mark.parametrize("target", SUFFIXES)
def test_a_transport_stream_can_get_a_new_sound(tmp_path, target):
    _write_by_hand(tmp_path / "a.ts", _frames())
    assert is_video(tmp_path / "a.TS")
    mux_audio(tmp_path / "a.ts", _clicks(), RATE, tmp_path / f"b{target}")
    frames = read_frames(tmp_path / f"b{target}", fps=24.0)
    # The last packet of a transport stream states no duration.
    np.testing.assert_allclose(frames.astype(int), _frames()[:23], atol=6)


def test_a_codec_that_mov_refuses_late_is_named(tmp_path):
    _write_by_hand(tmp_path / "a.webm", _frames(), codec="libvpx-vp9")
    with pytest.raises(FlowleyError, match=r"b\.mov: cannot hold .*a\.webm's vp9 video; \.mp4, \.mkv can"):
        mux_audio(tmp_path / "a.webm", _clicks(), RATE, tmp_path / "b.mov")
    assert {path.name for path in tmp_path.iterdir()} == {"a.webm"}


def test_a_codec_that_mp4_cannot_hold_is_named(tmp_path):
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for image in _frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(FlowleyError, match=r"b\.mp4: cannot hold .*a\.webm's vp8 video; \.mkv can"):
        mux_audio(tmp_path / "a.webm", _clicks(), RATE, tmp_path / "b.mp4")
    mux_audio(tmp_path / "a.webm", _clicks(), RATE, tmp_path / "b.mkv")
    assert _packets(tmp_path / "b.mkv") == _packets(tmp_path / "a.webm")
    assert {path.name for path in tmp_path.iterdir()} == {"a.webm", "b.mkv"}


def test_muxing_in_place_keeps_the_picture(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, _noise(), 24.0)
    before = _packets(path)
    mux_audio(path, _clicks(), RATE, path)
    assert _packets(path) == before and probe(path).has_audio


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda path: write_video(path, _frames(), 24.0), "a.avi"),
        (lambda path: mux_audio(path.with_suffix(".mp4"), _clicks(), RATE, path), "a.wav"),
        (lambda path: write_audio(path, _clicks(), RATE), "a.mp3"),
        (lambda path: write_audio(path, _clicks(), RATE), "a"),
    ],
)
def test_unknown_extensions_are_refused(tmp_path, write, name):
    with pytest.raises(FlowleyError, match=f"{name}: the extension must be one of"):
        write(tmp_path / name)
    assert not list(tmp_path.iterdir())


def _refused(read, path, message):
    with pytest.raises(FlowleyError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


READERS = {
    "probe": probe,
    "read_frames": lambda path: read_frames(path, fps=8.0),
    "read_audio": lambda path: read_audio(path, sample_rate=RATE),
    "mux_audio": lambda path: mux_audio(path, _clicks(), RATE, path.with_name("out.mp4")),
}


@pytest.mark.parametrize("reader", READERS)
def test_files_that_are_not_media_are_named(tmp_path, reader):
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    _refused(READERS[reader], tmp_path / "none.mp4", "(?i)no such file")
    for name in ("text", "zero", "folder"):
        _refused(READERS[reader], tmp_path / f"{name}.mp4", "not readable")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("reader", ["read_frames", "mux_audio"])
def test_a_sound_file_has_no_frames(tmp_path, reader):
    write_audio(tmp_path / "a.wav", _clicks(), RATE)
    _refused(READERS[reader], tmp_path / "a.wav", "has no video stream")


def test_a_video_without_sound_is_named(tmp_path):
    write_video(tmp_path / "a.mp4", _frames(), 24.0)
    _refused(READERS["read_audio"], tmp_path / "a.mp4", "has no audio stream")


@pytest.mark.parametrize("kept", [40, 100, 1200, 1500, 1900, 2500, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("picture", [_frames, _noise])
def test_a_truncated_file_gives_its_beginning_or_is_refused(tmp_path, picture, kept):
    whole, cut = tmp_path / "a.mp4", tmp_path / "cut.mp4"
    write_video(whole, picture(), 24.0, audio=_clicks(), sample_rate=RATE)
    content = whole.read_bytes()
    cut.write_bytes(content[: kept if kept > 1 else int(kept * len(content))])
    for read in (lambda path: read_frames(path, fps=24.0), READERS["read_audio"]):
        try:
            read_back = read(cut)
        except FlowleyError as error:
            assert str(error).startswith(f"{cut}: ") and "\n" not in str(error)
        else:
            assert 0 < len(read_back) <= len(read(whole))


WRITERS = {
    "video.mp4": lambda path: write_video(path, _frames(), 24.0, audio=_clicks(), sample_rate=RATE),
    "muxed.mkv": lambda path: mux_audio(path.parents[1] / "source.mp4", _clicks(), RATE, path),
    "sound.wav": lambda path: write_audio(path, _clicks(), RATE),
    "sound.flac": lambda path: write_audio(path, _clicks(), RATE),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_folder_is_named_and_not_created(tmp_path, name):
    write_video(tmp_path / "source.mp4", _frames(), 24.0)
    _refused(WRITERS[name], tmp_path / "none" / name, "cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["source.mp4"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_keeps_the_older_file_and_leaves_no_other(tmp_path, monkeypatch, name):
    def full(source, target):
        raise OSError(28, "No space left on device")

    write_video(tmp_path / "source.mp4", _frames(), 24.0)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_text("older")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        _refused(WRITERS[name], folder / name, r"cannot be written \(No space left on device\)")
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "older"
    WRITERS[name](folder / name)
    assert [path.name for path in folder.iterdir()] == [name]
    assert probe(folder / name).has_audio


def test_an_interrupted_write_leaves_no_file(tmp_path):
    class Interrupted(np.ndarray):
        def __iter__(self):
            yield np.asarray(self[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", _frames().view(Interrupted), 24.0)
    assert not list(tmp_path.iterdir())
