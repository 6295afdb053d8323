"""Files that would need much memory, or that only look like media, are refused with one line."""

from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from flash_clips import FlashClip, write_flash_clip
from PIL import Image

from flowley_jax.errors import FlowleyError
from flowley_jax.media import inputs, read
from flowley_jax.media.read import probe, read_audio, read_frames
from flowley_jax.media.write import mux_audio, write_video


def _jumping(path, kind):
    """Write 2 s of picture and sound, of which one jumps by 600 s at its half."""
    write_flash_clip(path.with_name("whole.mkv"), FlashClip(audio_codec="flac"), options={"bf": "0"})
    with av.open(str(path.with_name("whole.mkv"))) as old, av.open(str(path), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream, opaque=True) for stream in old.streams}
        packets = [packet for packet in old.demux() if packet.size]
        for packet in packets:
            if packet.stream.type == kind and packet.pts >= 1000:
                packet.pts, packet.dts = packet.pts + 600_000, packet.dts + 600_000
        for packet in sorted(packets, key=lambda packet: packet.dts):
            packet.stream = streams[packet.stream.index]
            new.mux(packet)


def test_a_jump_of_the_picture_is_not_filled(tmp_path):
    path = tmp_path / "a.mkv"
    _jumping(path, "video")
    with pytest.raises(FlowleyError, match=r"a\.mkv: its time stamps jump from 0\.96 s to 601\.00 s, more"):
        read_frames(path, fps=25)
    assert len(read_frames(path, fps=25, seconds=3.0)) == 75
    assert len(read_audio(path, sample_rate=16_000)) == 32_000


def test_a_jump_of_the_sound_is_not_filled(tmp_path):
    path = tmp_path / "a.mkv"
    _jumping(path, "audio")
    with pytest.raises(FlowleyError, match=r"a\.mkv: its time stamps jump from 1\.\d+ s to 601\.\d+ s"):
        read_audio(path, sample_rate=16_000)
    assert len(read_audio(path, sample_rate=16_000, seconds=3.0)) == 48_000
    assert len(read_frames(path, fps=25)) == 50


def test_frames_and_sound_have_limits(tmp_path, monkeypatch):
    write_flash_clip(tmp_path / "a.mp4", FlashClip())
    monkeypatch.setattr(read, "_MAX_FRAME_BYTES", 50 * 48 * 64 * 3)
    monkeypatch.setattr(read, "_MAX_SOUND_SECONDS", 2.1)
    assert len(read_frames(tmp_path / "a.mp4", fps=25)) == 50
    assert len(read_audio(tmp_path / "a.mp4", sample_rate=16_000)) >= 32_000
    monkeypatch.setattr(read, "_MAX_FRAME_BYTES", 49 * 48 * 64 * 3)
    monkeypatch.setattr(read, "_MAX_SOUND_SECONDS", 1.9)
    with pytest.raises(FlowleyError, match=r"a\.mp4: its frames need more than 0\.\d+ GiB of memory"):
        read_frames(tmp_path / "a.mp4", fps=25)
    with pytest.raises(FlowleyError, match=r"a\.mp4: has more than .* hours of sound"):
        read_audio(tmp_path / "a.mp4", sample_rate=16_000)


def test_large_pictures_are_not_decoded(tmp_path, monkeypatch):
    """A picture may be larger than the header of its file states."""
    monkeypatch.setattr(inputs, "MAX_PIXELS", 64 * 64)
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 80, 64, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    large = av.Packet(bytes(encoder.encode(av.VideoFrame(80, 64, "yuvj420p"))[0]))
    for name, size in (("a.avi", (48, 64)), ("b.avi", (64, 80))):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("mjpeg", rate=25)
            (stream.height, stream.width), stream.pix_fmt = size, "yuvj420p"
            container.mux(stream.encode(av.VideoFrame(size[1], size[0], "yuvj420p")))
            large.stream, large.pts, large.dts, large.time_base = stream, 1, 1, Fraction(1, 25)
            container.mux(large)
    with pytest.raises(FlowleyError, match=r"a\.avi: not readable as video or sound"):
        read_frames(tmp_path / "a.avi", fps=25, size=16)
    with pytest.raises(FlowleyError, match=r"b\.avi: its picture has 80×64 pixels, more than 4,096"):
        read_frames(tmp_path / "b.avi", fps=25, size=16)


@pytest.mark.parametrize("rate", [1, 2_000_000])
def test_an_unlikely_sample_rate_is_refused(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), rate)
    message = rf"a\.wav: has {rate} samples per second, expected 1,000 to 768,000"
    with pytest.raises(FlowleyError, match=message):
        read_audio(tmp_path / "a.wav", sample_rate=16_000)


def test_pictures_of_several_sizes_are_named(tmp_path):
    parts = []
    for index, size in enumerate([(48, 64), (80, 96)]):
        with av.open(str(tmp_path / f"{index}.ts"), "w") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
            for number in range(10):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 90, np.uint8), format="rgb24")
                frame.pts, frame.time_base = 10 * index + number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append((tmp_path / f"{index}.ts").read_bytes())
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    with pytest.raises(FlowleyError, match=r"a\.ts: its picture changes from 64×48 to 96×80 pixels"):
        read_frames(tmp_path / "a.ts", fps=25)
    assert read_frames(tmp_path / "a.ts", fps=25, size=32).shape[1:] == (32, 32, 3)


def test_a_video_of_an_unknown_codec_is_named(tmp_path):
    write_flash_clip(tmp_path / "a.mp4", FlashClip())
    content = (tmp_path / "a.mp4").read_bytes().replace(b"avc1", b"zzzz")
    (tmp_path / "a.mp4").write_bytes(content)
    for act in (
        lambda: read_frames(tmp_path / "a.mp4", fps=25),
        lambda: mux_audio(tmp_path / "a.mp4", np.zeros(1000, np.float32), 16_000, tmp_path / "b.mp4"),
    ):
        with pytest.raises(FlowleyError, match=r"a\.mp4: has no video stream of a known codec"):
            act()
    assert probe(tmp_path / "a.mp4").width is None
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize(
    "act",
    [
        probe,
        lambda path: read_frames(path, fps=25),
        lambda path: read_audio(path, sample_rate=16_000),
        lambda path: mux_audio(path, np.zeros(1000, np.float32), 16_000, path.with_name("b.mp4")),
    ],
)
def test_a_git_lfs_pointer_is_recognised(tmp_path, act):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 33542\n"
    (tmp_path / "a.mp4").write_text(pointer)
    with pytest.raises(FlowleyError, match=r"a\.mp4: it is a Git LFS pointer: fetch its content"):
        act(tmp_path / "a.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_titles_may_be_in_any_encoding(tmp_path, suffix):
    with av.open(str(tmp_path / f"a{suffix}"), "w", metadata_encoding="latin-1") as container:
        container.metadata["title"] = "Café"
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    assert len(read_frames(tmp_path / f"a{suffix}", fps=25)) == 5
    mux_audio(tmp_path / f"a{suffix}", np.zeros(1000, np.float32), 16_000, tmp_path / "b.mkv")


def test_the_advice_for_an_animated_webp_works(tmp_path):
    images = [Image.fromarray(np.full((48, 64, 3), 20 * index, np.uint8)) for index in range(10)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=100)
    with pytest.raises(FlowleyError, match=r"a\.webp: is an animated WebP, which .* save it as \.gif"):
        read_frames(tmp_path / "a.webp", fps=10)
    with Image.open(tmp_path / "a.webp") as animation:
        animation.save(tmp_path / "a.gif", save_all=True)
    assert len(read_frames(tmp_path / "a.gif", fps=10)) == 10


def test_names_with_colons_are_no_protocols(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("clip-10:20.mp4", np.zeros((10, 32, 32, 3), np.uint8), 25.0)
    assert len(read_frames("clip-10:20.mp4", fps=25)) == 10
    mux_audio("clip-10:20.mp4", np.zeros(8000, np.float32), 16_000, "b-10:20.mp4")
    assert probe("b-10:20.mp4").has_audio
    with pytest.raises(FlowleyError, match=r"^none-1:2\.mp4: no such file"):
        probe("none-1:2.mp4")
