"""Write clips that can be used, and files that cannot: at least one for every reason code."""

import fractions
import os

import av
import numpy as np
import soundfile
from PIL import Image

from data_prep.rejection import Reason
from data_prep.settings import RecordSettings
from flowley_jax.media.write import write_video

SETTINGS = RecordSettings(
    seconds=1.0,
    latent_dim=4,
    video_fps=12.0,
    frame_size=64,
    text_dim=8,
    max_tokens=8,
    max_seconds=20.0,
    max_frame_rate=120.0,
)
SECONDS_OF_MEDIA = 1.2
RATE = 16_000
# A decoder that opens this file is killed by the module below.
CRASHING = "crash.mp4"
_SITE = f"""
import os, signal, sys
if "data_prep.worker_pool" in sys.orig_argv:
    import av
    opened = av.open
    def opening(path, *arguments, **options):
        if path.endswith("{CRASHING}"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return opened(path, *arguments, **options)
    av.open = opening
"""


def write_crashing_codec(folder):
    """Write a folder for PYTHONPATH with which decoders crash on one file, like a bug in a codec."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITE)
    return folder


def write_clip(path, seed, seconds=SECONDS_OF_MEDIA, *, fps=24, audio=True):
    """Write a video of a moving block with a fading noise."""
    rng = np.random.default_rng(seed)
    frames = np.full((round(fps * seconds), 64, 64, 3), 90, np.uint8)
    for time, frame in enumerate(frames):
        left = 2 * time % 48
        frame[left : left + 8, 20:30] = rng.integers(100, 255, 3)
    write_video(path, frames, fps, audio=_noise(rng, seconds) if audio else None, sample_rate=RATE)


def write_table(folder, rows):
    """Write the clip table of rows (id, video_path, text_description, split, label); return its path."""
    lines = ["id\tvideo_path\ttext_description\tsplit\tlabel", *("\t".join(row) for row in rows)]
    (folder / "clips.tsv").write_text("\n".join(lines) + "\n")
    return folder / "clips.tsv"


def write_unusable(folder):
    """Write unusable files; return their table rows and the reason code for each id."""
    rng = np.random.default_rng(0)
    (folder / "unreadable.mp4").write_bytes(b"not a film" * 99)
    _write_truncated(folder / "truncated.mp4", rng)
    soundfile.write(folder / "sound.wav", _noise(rng, 1.2), RATE)
    write_clip(folder / "silence.mp4", 1, audio=False)
    Image.new("RGB", (64, 64)).save(folder / "picture.png")
    still = np.full((29, 64, 64, 3), 90, np.uint8)
    write_video(folder / "still.mp4", still, 24, audio=_noise(rng, 1.2), sample_rate=RATE)
    write_clip(folder / "short.mp4", 2, seconds=0.5)
    write_clip(folder / "long.mp4", 3, seconds=25.0, fps=2)
    write_clip(folder / "fast.mp4", 4, fps=200)
    moving = rng.integers(0, 255, (29, 64, 64, 3)).astype(np.uint8)
    write_video(folder / "silent.mp4", moving, 24, audio=np.zeros(19_200, np.float32), sample_rate=RATE)
    _write_not_finite(folder / "not_finite.mkv", moving)
    write_clip(folder / CRASHING, 5)
    write_clip(folder / "talkative.mp4", 6)
    reasons = {
        "absent": Reason.MISSING,
        "unreadable": Reason.UNREADABLE,
        "truncated": Reason.TRUNCATED,
        "sound": Reason.NO_VIDEO,
        "silence": Reason.NO_AUDIO,
        "picture": Reason.PICTURE,
        "still": Reason.PICTURE,
        "short": Reason.TOO_SHORT,
        "long": Reason.TOO_LONG,
        "fast": Reason.FRAME_RATE,
        "silent": Reason.SILENT,
        "not_finite": Reason.UNREADABLE,
        "crash": Reason.CRASH,
        "talkative": Reason.CAPTION,
    }
    extensions = {"sound": "wav", "picture": "png", "not_finite": "mkv"}
    rows = [
        (
            name,
            f"{name}.{extensions.get(name, 'mp4')}",
            "word " * 99 if name == "talkative" else "x",
            "train",
            "x",
        )
        for name in reasons
    ]
    return rows, {name: str(reason) for name, reason in reasons.items()}


def write_hanging(folder):
    """Write a file that blocks its reader; return its table row."""
    os.mkfifo(folder / "hanging.mp4")
    return "hanging", "hanging.mp4", "x", "train", "x"


def _noise(rng, seconds):
    samples = round(RATE * seconds)
    envelope = np.exp(-np.arange(samples) / 2000 * rng.uniform(0.5, 2))
    return (0.5 * rng.uniform(-1, 1, samples) * envelope).astype(np.float32)


def _write_truncated(path, rng):
    """Write a file whose header, at its start, states four times the length of the content."""
    frames = rng.integers(0, 255, (96, 64, 64, 3)).astype(np.uint8)
    whole = path.with_name("whole.mp4")
    write_video(whole, frames, 24, audio=_noise(rng, 4.0), sample_rate=RATE)
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as copy:
        streams = {stream: copy.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                copy.mux(packet)
    whole.unlink()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 4])


def _write_not_finite(path, frames):
    """Write a sound track of floating-point samples, one of which is NaN."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=24)
        video.width = video.height = 64
        sound = container.add_stream("pcm_f32le", rate=RATE, layout="mono")
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
        wave = np.full((1, 19_200), 0.1, np.float32)
        wave[0, 5000] = np.nan
        frame = av.AudioFrame.from_ndarray(wave, format="flt", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = RATE, fractions.Fraction(1, RATE), 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
