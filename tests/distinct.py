"""Clips with distinct video and audio, like a camera's, and re-encoded copies of them."""

import fractions

import av
import numpy as np
import soxr
from PIL import Image
from scipy.signal import lfilter

from flowley_jax.media.write import write_video

RATE, FPS, SECONDS = 16_000, 12, 2.0


def texture(rng, height=120, width=200):
    """Return an image with the spectrum of photographs, (height, width, 3) uint8."""
    rows, columns = np.meshgrid(
        np.fft.fftfreq(height) * height, np.fft.rfftfreq(width) * width, indexing="ij"
    )
    spectrum = (rng.normal(size=rows.shape) + 1j * rng.normal(size=rows.shape)) / np.maximum(
        np.hypot(rows, columns), 1.0
    ) ** 1.3
    image = np.fft.irfft2(spectrum, s=(height, width))
    grey = np.clip(120 + 40 * (image - image.mean()) / image.std(), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def draw(seed):
    """Return frames (T, 120, 160, 3) of a panning view, and a wave (N,) of decaying noises."""
    rng = np.random.default_rng(seed)
    view = texture(rng)
    frames = np.stack([view[:, time : time + 160] for time in range(round(FPS * SECONDS))])
    samples = round(RATE * SECONDS)
    wave = np.zeros(samples)
    for start in rng.uniform(0, 0.8, 8) * samples:
        hit = rng.normal(size=samples - int(start)) * np.exp(-np.arange(samples - int(start)) / 1500)
        wave[int(start) :] += lfilter([1.0], [1.0, -1.8 * np.cos(rng.uniform(0.2, 1.5)), 0.85], hit)
    return frames, (0.7 * wave / np.abs(wave).max()).astype(np.float32)


def write(path, seed, *, sound=None):
    """Write a clip.

    Args:
      sound: seed of the audio, if it differs from that of the video.
    """
    frames, wave = draw(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, FPS, audio=wave if sound is None else draw(sound)[1], sample_rate=RATE)


def write_copy(path, seed, *, size=(240, 200), gain=0.3, crf=30, rate=22_050):
    """Write the clip re-encoded with a different size, loudness, sample rate and bit rate."""
    frames, wave = draw(seed)
    resized = np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])
    sound = soxr.resample(wave, RATE, rate)
    write_video(path, resized, FPS, audio=gain * sound, sample_rate=rate, crf=crf)


def write_keyed(path, seconds):
    """Write a video that grows brighter every second, with one key frame per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fractions.Fraction(4))
        stream.width = stream.height = 64
        stream.pix_fmt, stream.gop_size = "yuv420p", 4
        for index in range(4 * seconds):
            image = np.full((64, 64, 3), 20 + 2 * (index // 4), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
