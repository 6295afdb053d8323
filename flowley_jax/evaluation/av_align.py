"""AV-Align: the share of the peaks of motion and of the onsets of sound that coincide.

The metric is that of TempoTokens (Yariv et al. 2023, arXiv 2309.16429), as its newest program computes it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soxr

from flowley_jax.common.librosa_loading import load_librosa
from flowley_jax.evaluation.optical_flow import gray, mean_magnitudes
from flowley_jax.media.inputs import MediaError, frame_rate, open_input, required_stream, timed_frames

SAMPLE_RATE = 22_050
# Samples that the detector of onsets needs.
_SHORTEST_SOUND = 2048
# The smallest peak of motion, in pixels from one frame to the next.
_LEAST_MOTION = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoPeaks:
    """Peaks of motion of a video.

    Attributes:
      times: (peaks,) seconds in ascending order.
      fps: mean frame rate in frames per second.
      width, height: size of the picture in pixels, which decides how much motion makes a peak.
    """

    times: np.ndarray
    fps: float
    width: int
    height: int


def audio_peaks(wave: np.ndarray, sample_rate: int, *, prominence: float = 0.07) -> np.ndarray:
    """Return the times of onsets in a mono wave (N,), as librosa detects them at 22,050 Hz.

    Args:
      wave: (N,).
      sample_rate: Hz.
      prominence: how far the strength of an onset exceeds its mean nearby, as a share of the wave's largest
        one. librosa calls it `delta`; the default is librosa's.

    Returns:
      (peaks,) seconds in ascending order.
    """
    librosa = load_librosa()
    if sample_rate != SAMPLE_RATE:
        wave = soxr.resample(wave, sample_rate, SAMPLE_RATE)
    wave = np.pad(wave, (0, max(0, _SHORTEST_SOUND - len(wave))))
    strength = librosa.onset.onset_strength(y=wave, sr=SAMPLE_RATE)
    frames = librosa.onset.onset_detect(onset_envelope=strength, sr=SAMPLE_RATE, delta=prominence)
    return np.asarray(librosa.frames_to_time(frames, sr=SAMPLE_RATE))


def video_peaks(path: Path, *, seconds: float | None = None) -> VideoPeaks:
    """Return the peaks of motion of a video.

    Peaks are local maxima of the mean length of optical flow. From the first picture on, all pictures count
    as shown equally long. Two pictures are in memory at a time.

    Args:
      path: the video.
      seconds: only peaks before this time; None for all.

    Raises:
      MediaError: the file is missing, unreadable, or has no video stream, no frame or no frame rate; or its
        pictures have several sizes.
    """
    with open_input(path) as container:
        stream = required_stream("video", container, path)
        rate = frame_rate(stream)
        if not rate:
            raise MediaError(f"{path}: does not state how many frames it has per second")
        # The frame after the last one decides whether that is a peak.
        count = None if seconds is None else math.ceil(seconds * rate) + 1
        pictures = itertools.islice(_pictures(container, stream, path), count)
        start, first = next(pictures, (0.0, None))
        if first is None:
            raise MediaError(f"{path}: its video stream has no frame")
        magnitudes = list(mean_magnitudes(itertools.chain([first], (image for _, image in pictures))))
    # Frame 0 has no motion of its own; it gets that of frame 1.
    times = start + peak_times(np.array(magnitudes[:1] + magnitudes), float(rate))
    height, width = first.shape
    return VideoPeaks(
        times=times if seconds is None else times[times < seconds],
        fps=float(rate),
        width=width,
        height=height,
    )


def _pictures(container, stream, path: Path) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the time of every picture in seconds, and the picture, gray (H, W) and upright.

    Raises:
      MediaError: one has another size than the first.
    """
    shape = None
    for time, frame in timed_frames(container, stream, path):
        image = gray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
        shape = shape or image.shape
        if image.shape != shape:
            sizes = [f"{width}×{height}" for height, width in (shape, image.shape)]
            raise MediaError(f"{path}: its picture changes from {sizes[0]} to {sizes[1]} pixels")
        yield float(time), image


def peak_times(magnitudes: np.ndarray, fps: float) -> np.ndarray:
    """Return the times of frames with more motion than both neighbours, and not less than 0.1 pixels.

    Args:
      magnitudes: (T,) mean length of the flow that leads to each frame, in pixels.
      fps: frames per second.
    """
    inner = magnitudes[1:-1]
    is_peak = (inner > magnitudes[:-2]) & (inner > magnitudes[2:]) & (inner >= _LEAST_MOTION)
    return (np.flatnonzero(is_peak) + 1) / fps


def av_align(audio: np.ndarray, video: np.ndarray, fps: float) -> float | None:
    """Return the number of coinciding peaks over the number of all peaks, from 0 to 1.

    Each audio peak takes the first video peak that is still free and nearer than a frame. With times in
    ascending order no other choice gives more pairs. A pair counts as one peak.

    Args:
      audio: (A,) times in seconds.
      video: (V,) times in seconds.
      fps: frames per second.

    Returns:
      The intersection over union; None without any peak, for which the metric is not defined.
    """
    if not len(audio) and not len(video):
        return None
    free, reach = list(video), 1.0 / fps
    for time in audio:
        index = next((index for index, peak in enumerate(free) if peak - reach < time < peak + reach), None)
        if index is not None:
            free.pop(index)
    hits = len(video) - len(free)
    return hits / (len(audio) + len(free))
