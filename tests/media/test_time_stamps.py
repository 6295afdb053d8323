"""Readers go by the time stamps of a file, whatever it does with them."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from flash_clips import FlashClip, click, click_times, flash_times, write_flash_clip

from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import probe, read_audio, read_frames, read_frames_at
from flowley_jax.media.spans import stream_spans
from flowley_jax.media.timeline import Piece, place
from flowley_jax.media.write import mux_audio

RATE, FPS = 16_000, 25


def _write(path, **fields):
    write_flash_clip(path, FlashClip(**fields))


def _clicks(path, **options):
    return click_times(read_audio(path, sample_rate=RATE, **options), RATE)


def rewrite(source, target, change=lambda packet: True, **options):
    """Copy the packets of a file that `change` keeps; it may move their times.

    Args:
      source: the file.
      target: path, or a file object.
      change: function of a packet, with `stream` of the source.
      options: arguments of `av.open` for the target.
    """
    target = target if isinstance(target, io.IOBase) else str(target)
    with av.open(str(source)) as old, av.open(target, "w", **options) as new:
        streams = {stream.index: new.add_stream_from_template(stream, opaque=True) for stream in old.streams}
        for packet in old.demux():
            if packet.size and change(packet):
                packet.stream = streams[packet.stream.index]
                new.mux(packet)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
def test_late_sound_is_preceded_by_silence(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    _write(path, seconds=3.0, audio_start=1.0, flashes=[2.0], clicks=[2.0])
    assert flash_times(read_frames(path, fps=FPS), FPS) == pytest.approx([2.0], abs=0.5 / FPS)
    assert _clicks(path) == pytest.approx([2.0], abs=0.002)
    assert _clicks(path, seconds=2.2) == pytest.approx([2.0], abs=0.002)
    assert _clicks(path, normalize_peak=True) == pytest.approx([2.0], abs=0.002)
    # The encoder's 64 ms before the first sample may be part of the track.
    offset = stream_spans(path).offset
    assert offset is not None and 0.93 < offset < 1.01


def test_sound_that_begins_after_the_part_read_is_silence(tmp_path):
    _write(tmp_path / "a.mkv", audio_start=1.5, audio_codec="flac", clicks=[1.6])
    wave = read_audio(tmp_path / "a.mkv", sample_rate=RATE, seconds=0.25)
    assert len(wave) == RATE // 4 and not wave.any()


def test_lost_packets_leave_silence(tmp_path):
    _write(tmp_path / "a.mkv", seconds=3.0, clicks=[0.5, 1.2, 2.5], hole=(1.0, 1.5))
    assert _clicks(tmp_path / "a.mkv") == pytest.approx([0.5, 2.5], abs=0.002)
    audio = stream_spans(tmp_path / "a.mkv").audio
    assert audio is not None and audio.hole == pytest.approx(0.5, abs=0.07)


def test_pieces_overlap_and_jitter():
    ones = np.ones(160, np.float32)
    pieces = [Piece(0.01 * index, RATE, ones * index) for index in range(20)]
    np.testing.assert_array_equal(place(pieces), np.repeat(np.arange(20, dtype=np.float32), 160))
    jitter = [0.0, 0.004, -0.002, 0.006, -0.005, 0.003, 0.0, 0.005, -0.004, 0.0]
    late = [Piece(piece.time + jitter[index % 10], RATE, piece.wave) for index, piece in enumerate(pieces)]
    np.testing.assert_array_equal(place(late), place(pieces))
    overlapping = [*pieces[:10], *(Piece(piece.time - 0.005, RATE, piece.wave) for piece in pieces[10:])]
    wave = place(overlapping)
    np.testing.assert_array_equal(wave[:1600], place(pieces)[:1600])
    np.testing.assert_array_equal(wave[1600:1680], 10.0)
    assert len(wave) == 20 * 160 - 80
    early = [Piece(piece.time - 0.055, RATE, piece.wave) for piece in pieces]
    np.testing.assert_array_equal(place(early), place(pieces)[880:])
    unknown = [
        Piece(None if index % 3 else piece.time, RATE, piece.wave) for index, piece in enumerate(pieces)
    ]
    np.testing.assert_array_equal(place(unknown), place(pieces))


def _mp3(rate, channels):
    wave = np.zeros((channels, 2 * rate), np.float32)
    wave[:, rate : rate + len(click(rate))] = click(rate)
    options = {"id3v2_version": "0", "write_xing": "0"}
    content = io.BytesIO()
    with av.open(content, "w", format="mp3", options=options) as container:
        stream = container.add_stream("libmp3lame", rate=rate, layout="mono" if channels == 1 else "stereo")
        for start in range(0, 2 * rate, 1152):
            chunk = np.ascontiguousarray(wave[:, start : start + 1152])
            frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=stream.layout.name)
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return content.getvalue()


def test_sample_rate_and_channels_may_change(tmp_path):
    (tmp_path / "a.mp3").write_bytes(_mp3(44_100, 2) + _mp3(48_000, 1))
    # MP3 delays the sound by 1105 samples, and fills up its last frame.
    assert _clicks(tmp_path / "a.mp3") == pytest.approx([1.025, 3.067], abs=0.003)


def test_sound_is_read_at_the_rate_that_the_decoder_gives(tmp_path):
    """HE-AAC decodes to twice the rate of its header; here, AAC is marked as such."""
    _write(tmp_path / "a.mkv", seconds=3.0, sample_rate=22_050, clicks=[1.0, 2.0])
    with av.open(str(tmp_path / "a.mkv")) as old, av.open(str(tmp_path / "b.mkv"), "w") as new:
        copied = new.add_stream_from_template(old.streams.audio[0], opaque=True)
        # Object type SBR, 22,050 Hz, one channel, extension at 44,100 Hz, object type LC.
        bits = f"{5:05b}{7:04b}{1:04b}{4:04b}{2:05b}".ljust(32, "0")
        copied.codec_context.extradata = int(bits, 2).to_bytes(4, "big")
        for packet in old.demux(old.streams.audio[0]):
            if packet.size:
                packet.stream = copied
                new.mux(packet)
    # Its filter bank delays the sound by 22 ms.
    assert _clicks(tmp_path / "b.mkv") == pytest.approx([1.022, 2.022], abs=0.005)


def test_a_variable_frame_rate_is_read_by_time(tmp_path):
    _write(tmp_path / "a.mp4", flashes=[1.2], dropped=[*range(3, 20), 24, 27])
    frames = read_frames(tmp_path / "a.mp4", fps=FPS)
    assert len(frames) == 50 and flash_times(frames, FPS) == pytest.approx([1.2], abs=0.5 / FPS)


def test_a_recording_without_a_duration_is_measured(tmp_path):
    class Stream(io.RawIOBase):
        """A target that cannot go back to write the duration."""

        content = b""

        def writable(self):
            return True

        def write(self, data):
            self.content += bytes(data)
            return len(data)

    _write(
        tmp_path / "a.webm", video_codec="libvpx", audio_codec="libopus", sample_rate=48_000, flashes=[0.8]
    )
    stream = Stream()
    rewrite(tmp_path / "a.webm", stream, format="webm")
    (tmp_path / "b.webm").write_bytes(stream.content)
    with av.open(str(tmp_path / "b.webm")) as container:
        assert container.duration is None
    assert probe(tmp_path / "b.webm").duration == pytest.approx(2.0, abs=0.05)
    white = [frame.mean() > 128 for frame in read_frames_at(tmp_path / "b.webm", (0.1, 0.42, 0.6, 0.9))]
    assert white == [False, True, False, False]


def test_frames_at_shares_count_from_the_start_of_the_file(tmp_path):
    """The file starts at 1.4 s, and the flash is far enough from the start that the reader seeks."""
    _write(tmp_path / "a.ts", seconds=41.4, video_start=1.4, audio_start=1.4, flashes=[36.4])
    duration = probe(tmp_path / "a.ts").duration
    shares = [1.0 / duration, 34.9 / duration, 35.1 / duration, 35.3 / duration]
    white = [frame.mean() > 128 for frame in read_frames_at(tmp_path / "a.ts", shares)]
    assert white == [False, False, True, False]


def test_pictures_of_one_moment_that_run_backwards_are_cut(tmp_path):
    _write(tmp_path / "a.ts", clicks=[1.0], flashes=[1.0])
    content = (tmp_path / "a.ts").read_bytes()
    (tmp_path / "b.ts").write_bytes(content + content)
    for path in (tmp_path / "a.ts", tmp_path / "b.ts"):
        assert len(flash_times(read_frames(path, fps=FPS), FPS)) == len(_clicks(path)) == 1
    assert stream_spans(tmp_path / "b.ts") == stream_spans(tmp_path / "a.ts")


def test_pictures_of_avi_with_b_frames_are_in_order(tmp_path):
    """AVI states no presentation times: FFmpeg guesses them in the order of decoding."""
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"bf": "2", "b-adapt": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for index in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 4 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    brightness = read_frames(path, fps=FPS).mean(axis=(1, 2, 3))
    # The order is known from the fourth picture on.
    assert np.all(np.abs(np.diff(brightness[4:]) - 4.0) < 2.0)


@pytest.mark.parametrize(
    ("codec", "bf"), [("libx264", "0"), ("libx264", "3"), ("mpeg4", "0"), ("mpeg4", "2"), ("mjpeg", "0")]
)
def test_pictures_of_avi_are_as_early_as_its_sound(tmp_path, codec, bf):
    """The decoder holds back as many pictures as may be shown in another order; they are not shown later."""
    clip = FlashClip(video_codec=codec, audio_codec="pcm_s16le", flashes=[0.4, 1.2], clicks=[0.4, 1.2])
    write_flash_clip(tmp_path / "a.avi", clip, options={"bf": bf})
    for seconds in (None, 1.8):
        frames = read_frames(tmp_path / "a.avi", fps=FPS, seconds=seconds)
        assert flash_times(frames, FPS) == pytest.approx([0.4, 1.2], abs=1e-6)
    assert _clicks(tmp_path / "a.avi") == pytest.approx([0.4, 1.2], abs=0.001)
    white = [frame.mean() > 128 for frame in read_frames_at(tmp_path / "a.avi", (0.18, 0.21, 0.61, 0.7))]
    assert white == [False, True, True, False]
    mux_audio(tmp_path / "a.avi", np.zeros(2 * RATE, np.float32), RATE, tmp_path / "a.mkv")
    assert flash_times(read_frames(tmp_path / "a.mkv", fps=FPS), FPS) == pytest.approx([0.4, 1.2], abs=1e-6)
    video = stream_spans(tmp_path / "a.avi").video
    assert video is not None and (video.start, video.end) == pytest.approx((0.0, 2.0), abs=0.05)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_hole_is_seen_among_few_long_packets(tmp_path, suffix):
    """FLAC's packets are long, and before a hole .mp4 states the time up to the next one."""
    _write(tmp_path / f"a{suffix}", audio_codec="flac", hole=(0.3, 1.0))
    audio = stream_spans(tmp_path / f"a{suffix}", seconds=1.1).audio
    assert audio is not None and audio.hole == pytest.approx(0.7, abs=0.15)


def test_a_raw_stream_has_the_usual_rate(tmp_path):
    _write(tmp_path / "a.mp4", audio_codec=None, flashes=[0.8])
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        annex = av.bitstream.BitStreamFilterContext("h264_mp4toannexb", stream)
        content = b"".join(
            bytes(part)
            for packet in container.demux(stream)
            for part in annex.filter(packet if packet.size else None)
        )
    (tmp_path / "a.h264").write_bytes(content)
    assert probe(tmp_path / "a.h264").duration == pytest.approx(2.0)
    assert flash_times(read_frames(tmp_path / "a.h264", fps=FPS), FPS) == pytest.approx([0.8], abs=0.5 / FPS)


def test_the_frame_rate_is_not_the_tick_of_a_clock(tmp_path):
    """Copied without its frame rate, H.264 states its clock of 90 kHz as the average rate."""
    _write(tmp_path / "a.mkv")
    rewrite(tmp_path / "a.mkv", tmp_path / "b.mkv", lambda packet: packet.dts is not None)
    with av.open(str(tmp_path / "b.mkv")) as container:
        average = container.streams.video[0].average_rate
    assert average is not None and average > 1000
    assert probe(tmp_path / "b.mkv").video_fps == pytest.approx(FPS)


@pytest.mark.parametrize(("codec", "suffix"), [("flac", ".mkv"), ("aac", ".mp4"), ("libmp3lame", ".mkv")])
def test_channels_in_opposite_phase_are_not_averaged(tmp_path, codec, suffix):
    rate, noise = 48_000, np.random.default_rng(0).normal(0.0, 0.01, 96_000).astype(np.float32)
    noise[rate : rate + len(click(rate))] += click(rate)
    with av.open(str(tmp_path / f"a{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="stereo", rate=rate)
        for start in range(0, 2 * rate, 1024):
            chunk = np.stack([noise[start : start + 1024], -0.9 * noise[start : start + 1024]])
            frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, start
            for converted in resampler.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    wave = read_audio(tmp_path / f"a{suffix}", sample_rate=RATE)
    assert click_times(wave, RATE) == pytest.approx([1.0], abs=0.03)
    assert np.abs(wave).max() > 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_samples_that_are_not_numbers_are_refused(tmp_path, value):
    wave = np.zeros(RATE, np.float32)
    wave[123:140] = value
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    with pytest.raises(FlowleyError, match=r"a\.wav: its sound has samples that are NaN, infinite or"):
        read_audio(tmp_path / "a.wav", sample_rate=8000)
