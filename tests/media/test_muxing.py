"""The picture that was read is the picture that is muxed, in a file that players accept."""

import logging
from fractions import Fraction

import av
import numpy as np
import pytest
from flash_clips import FlashClip, click, click_times, flash_times, write_flash_clip

from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import probe, read_audio, read_frames
from flowley_jax.media.write import mux_audio, write_audio, write_video

RATE, FPS = 16_000, 25
SUFFIXES = (".mp4", ".mkv", ".mov")


def _wave(seconds=2.0, times=(0.3, 1.5)):
    wave = np.zeros(round(seconds * RATE), np.float32)
    for time in times:
        begin = round(time * RATE)
        wave[begin : begin + len(click(RATE))] = click(RATE)
    return wave


def _write(path, *, options=None, **fields):
    write_flash_clip(path, FlashClip(**{"audio_codec": None, **fields}), options=options)


def _tag(path):
    with av.open(str(path)) as container:
        return container.streams.video[0].codec_context.codec_tag


def _mux_and_compare(source, target, *, is_copy=True):
    """Mux, and check that the picture is the one of the source and that the sound is in its place."""
    mux_audio(source, _wave(), RATE, target)
    before, after = read_frames(source, fps=FPS), read_frames(target, fps=FPS)
    if is_copy:
        np.testing.assert_array_equal(after, before)
    else:
        assert len(after) == pytest.approx(len(before), abs=1)
        assert flash_times(after, FPS) == flash_times(before, FPS) != []
    sound = click_times(read_audio(target, sample_rate=RATE), RATE)
    assert sound == pytest.approx([0.3, 1.5], abs=0.002)


def _lag(path):
    """Return how far, in seconds, picture and sound of one moment are apart in the order of the file."""
    with av.open(str(path)) as container:
        # Positions in the file, since FFmpeg puts packets of .mp4 files in order while it reads.
        packets = sorted(
            (
                packet.pos,
                packet.stream.type,
                packet.pts if packet.dts is None else packet.dts,
                packet.time_base,
            )
            for packet in container.demux()
            if packet.size
        )
    times, lag = {"video": 0.0, "audio": 0.0}, 0.0
    for _, kind, ticks, time_base in packets:
        times[kind] = float(ticks * time_base)
        lag = max(lag, abs(times["video"] - times["audio"]))
    return lag


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_picture_and_sound_are_interleaved_at_every_length(tmp_path, suffix):
    frames, wave = np.zeros((60, 32, 32, 3), np.uint8), _wave(60.0)
    write_video(tmp_path / f"a{suffix}", frames, 1.0, audio=wave, sample_rate=RATE)
    mux_audio(tmp_path / f"a{suffix}", wave, RATE, tmp_path / f"b{suffix}")
    # A picture lasts one second here, and the encoder reorders a few.
    assert _lag(tmp_path / f"a{suffix}") < 6.0 and _lag(tmp_path / f"b{suffix}") < 6.0


@pytest.mark.parametrize(("codec", "tag"), [("libx265", "hvc1"), ("libsvtav1", "av01")])
def test_codecs_of_phones_are_copied_and_tagged_for_players(tmp_path, codec, tag):
    """PyAV's decoder of AV1 is no encoder, and Apple's players refuse FFmpeg's default tag of HEVC."""
    source = tmp_path / "a.mkv"
    _write(source, video_codec=codec, flashes=[0.8])
    for suffix in SUFFIXES[: 2 if codec == "libsvtav1" else 3]:
        _mux_and_compare(source, tmp_path / f"b{suffix}")
        assert suffix == ".mkv" or _tag(tmp_path / f"b{suffix}") == tag
    if codec == "libsvtav1":
        with pytest.raises(FlowleyError, match=r"b\.mov: cannot hold .*a\.mkv's av1 video; \.mp4, \.mkv can"):
            mux_audio(source, _wave(), RATE, tmp_path / "b.mov")


@pytest.mark.parametrize(("codec", "is_copy"), [("libx264", True), ("libx265", False), ("mpeg4", False)])
def test_a_picture_for_browsers_is_copied_only_in_h264(tmp_path, caplog, codec, is_copy):
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    _write(source, video_codec=codec, flashes=[0.8])
    with caplog.at_level(logging.INFO):
        mux_audio(source, _wave(), RATE, target, for_browsers=True)
    assert ("some browsers do not play its codec" in caplog.text) != is_copy
    with av.open(str(target)) as container:
        context = container.streams.video[0].codec_context
        assert (context.codec.canonical_name, context.pix_fmt) == ("h264", "yuv420p")


def test_a_codec_of_windows_is_copied_into_matroska(tmp_path):
    _write(tmp_path / "a.avi", video_codec="wmv2", flashes=[0.8])
    with pytest.raises(FlowleyError, match=r"b\.mp4: cannot hold .*a\.avi's wmv2 video; \.mkv can"):
        mux_audio(tmp_path / "a.avi", _wave(), RATE, tmp_path / "b.mp4")
    _mux_and_compare(tmp_path / "a.avi", tmp_path / "b.mkv")


@pytest.mark.parametrize("codec", ["gif", "apng"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_animations_are_encoded_in_h264(tmp_path, caplog, codec, suffix):
    _write(tmp_path / f"a.{codec}", video_codec=codec, flashes=[0.8])
    with caplog.at_level(logging.INFO):
        _mux_and_compare(tmp_path / f"a.{codec}", tmp_path / f"b{suffix}", is_copy=False)
    assert f"a.{codec}: its picture is encoded in H.264 instead of copied" in caplog.text


def test_an_odd_size_is_made_even_where_a_picture_is_encoded(tmp_path):
    with av.open(str(tmp_path / "a.gif"), "w") as container:
        stream = container.add_stream("gif", rate=25)
        stream.height, stream.width, stream.pix_fmt = 33, 1, "rgb8"
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((33, 1, 3), 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    mux_audio(tmp_path / "a.gif", _wave(), RATE, tmp_path / "b.mp4")
    assert read_frames(tmp_path / "b.mp4", fps=25).shape[1:] == (32, 2, 3)


def test_a_picture_that_cannot_be_encoded_is_named(tmp_path):
    """H.264's encoder takes 16,384 lines at most."""
    with av.open(str(tmp_path / "a.gif"), "w") as container:
        stream = container.add_stream("gif", rate=25)
        stream.height, stream.width, stream.pix_fmt = 17_000, 2, "rgb8"
        container.mux(stream.encode(av.VideoFrame(2, 17_000, "rgb8")))
        container.mux(stream.encode(None))
    with pytest.raises(FlowleyError, match=r"a\.gif: its picture cannot be put into .*b\.mp4 \("):
        mux_audio(tmp_path / "a.gif", _wave(), RATE, tmp_path / "b.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_cover_that_comes_first_is_not_the_picture(tmp_path, suffix):
    """Nothing marks this cover but that it is a single picture."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=25) for codec in ("mjpeg", "libx264")]
        for stream, (size, form) in zip(streams, [(32, "yuvj420p"), (64, "yuv420p")], strict=True):
            stream.height, stream.width, stream.pix_fmt = size, size, form
        container.mux(streams[0].encode(av.VideoFrame(32, 32, "yuvj420p")))
        for index in range(50):
            grey = 235 if index in (20, 21) else 20
            image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), grey, np.uint8), format="rgb24")
            image.pts, image.time_base = index, Fraction(1, 25)
            container.mux(streams[1].encode(image))
        container.mux(streams[1].encode(None))
    assert flash_times(read_frames(path, fps=FPS), FPS) == [0.8]
    assert probe(path).width == 64
    _mux_and_compare(path, tmp_path / f"b{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pictures_that_an_edit_list_hides_stay_hidden(tmp_path, caplog, suffix):
    """As after a cut without encoding: the file begins at a key frame half a second before its start."""
    _write(tmp_path / "whole.mp4", seconds=3.0, flashes=[0.2, 1.2], options={"g": "100", "bf": "2"})
    with av.open(str(tmp_path / "whole.mp4")) as old, av.open(str(tmp_path / "a.mp4"), "w") as new:
        copied = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                cut = round(Fraction(1, 2) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - cut, packet.dts - cut, copied
                new.mux(packet)
    assert flash_times(read_frames(tmp_path / "a.mp4", fps=FPS), FPS) == pytest.approx([0.7], abs=1 / FPS)
    with caplog.at_level(logging.INFO):
        _mux_and_compare(tmp_path / "a.mp4", tmp_path / f"b{suffix}", is_copy=suffix != ".mkv")
    assert (".mkv would show pictures" in caplog.text) == (suffix == ".mkv")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_time_stamps_are_moved_apart(tmp_path, caplog, suffix):
    _write(tmp_path / "whole.mkv", flashes=[0.8], options={"bf": "0"})
    with av.open(str(tmp_path / "whole.mkv")) as old, av.open(str(tmp_path / "a.mkv"), "w") as new:
        copied = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.pts = packet.dts = packet.pts // 80 * 80
                packet.stream = copied
                new.mux(packet)
    with caplog.at_level(logging.INFO):
        _mux_and_compare(tmp_path / "a.mkv", tmp_path / f"b{suffix}")
    assert "a.mkv: moved 25 time stamps of its picture" in caplog.text


def _packed(packets):
    """Join each B picture with the one before it, as DivX does in .avi; a placeholder takes its turn."""
    contents = []
    for packet, following in zip(packets, [*packets[1:], None], strict=True):
        if contents and contents[-1] is None:
            contents[-1] = b"\x00\x00\x01\xb6\x40\x00\x7f"
        elif following and following.pts < packet.pts:
            contents += [bytes(packet) + bytes(following), None]
        else:
            contents.append(bytes(packet))
    return contents


def test_packed_b_frames_keep_their_time(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.max_b_frames = Fraction(1, 25), 1
        packets = []
        for index in range(50):
            grey = 235 if index in (20, 21, 22) else 20 + index
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        contents = _packed(packets)
        assert len(contents) == 50
        contents[0] = contents[0].replace(
            b"\x00\x00\x01\xb6", b"\x00\x00\x01\xb2DivX503b1393p\x00\x00\x01\xb6", 1
        )
        for index, content in enumerate(contents):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 25)
            packet.is_keyframe = index == 0
            container.mux(packet)
    assert flash_times(read_frames(tmp_path / "a.avi", fps=FPS), FPS) == pytest.approx([0.8], abs=1.01 / FPS)
    for suffix in SUFFIXES:
        _mux_and_compare(tmp_path / "a.avi", tmp_path / f"b{suffix}", is_copy=False)


def test_a_late_picture_stays_late(tmp_path):
    _write(
        tmp_path / "a.mkv", video_start=0.48, audio_codec="flac", audio_start=0.0, flashes=[0.8], clicks=[0.8]
    )
    for suffix in SUFFIXES:
        _mux_and_compare(tmp_path / "a.mkv", tmp_path / f"b{suffix}")
        assert flash_times(read_frames(tmp_path / f"b{suffix}", fps=FPS), FPS) == [0.8]


def test_the_copy_states_the_frame_rate(tmp_path):
    _write(tmp_path / "a.mkv")
    mux_audio(tmp_path / "a.mkv", _wave(), RATE, tmp_path / "b.mkv")
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert container.streams.video[0].average_rate == FPS


@pytest.mark.parametrize("suffix", [".MP4", ".Mkv", ".MOV"])
def test_suffixes_may_be_in_capitals(tmp_path, suffix):
    write_video(tmp_path / f"a{suffix}", np.zeros((10, 32, 32, 3), np.uint8), 25.0)
    mux_audio(tmp_path / f"a{suffix}", _wave(), RATE, tmp_path / f"b{suffix}")
    assert probe(tmp_path / f"b{suffix}").has_audio


@pytest.mark.parametrize("suffix", [".WAV", ".Flac"])
def test_suffixes_of_sounds_may_be_in_capitals(tmp_path, suffix):
    write_audio(tmp_path / f"a{suffix}", _wave(), RATE)
    assert len(read_audio(tmp_path / f"a{suffix}", sample_rate=RATE)) == 2 * RATE
