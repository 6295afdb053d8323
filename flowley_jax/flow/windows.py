"""Windows of the trained length that together cover a video of any length.

A network is trained on clips of one length. The velocity of a longer latent is the weighted mean of the
velocities of overlapping windows of that length. Latents and frames have different rates, so most frames
begin between two latents. The start of each window is moved a little, to the frame that is best aligned with
a latent.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

# The share of a window by which its start may move, so that frames and latents coincide.
_MOVE = 1 / 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowLengths:
    """The size of one window, and the clock of the latents.

    Attributes:
      video: frames Tv of a window.
      audio: latents Ta of a window.
      latents_per_frame: exact ratio of the two rates; a window's latents may last a fraction longer than its
        frames.
    """

    video: int
    audio: int
    latents_per_frame: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """The windows of one video.

    Attributes:
      frame_starts: (n,) first frame of each window, ascending.
      latent_starts: (n,) first latent of each window.
      frames: frames that the windows cover; those after the video's end repeat its last one.
      latents: latents that the windows cover.
      weights: (n, Ta) float32 weight of each window's velocity at each of its latents; the weights of all
        windows sum to one at every latent.
    """

    frame_starts: np.ndarray
    latent_starts: np.ndarray
    frames: int
    latents: int
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.frame_starts)

    def blended(self, pieces: Iterable[np.ndarray]) -> np.ndarray:
        """Return the weighted mean of what each window gives.

        Args:
          pieces: (k·Ta, …) for each window, with the same whole k.

        Returns:
          (k·latents, …).
        """
        total = None
        for start, weights, piece in zip(self.latent_starts, self.weights, pieces, strict=True):
            steps = len(piece) // len(weights)
            if total is None:
                total = np.zeros((steps * self.latents, *piece.shape[1:]), piece.dtype)
            shares = np.repeat(weights, steps).reshape(-1, *(1,) * (piece.ndim - 1))
            total[steps * start : steps * start + len(piece)] += shares * piece
        assert total is not None
        return total


def plan_windows(frames: int, lengths: WindowLengths, *, overlap: float) -> Windows:
    """Return the windows of a video: the first one starts with it, and the last one ends with it.

    A video that is no longer than a window has one window. Longer videos have evenly spaced windows, except
    for the small moves that align frames with latents. The last window may end after the video, by up to
    1/32 of its length.

    Args:
      frames: frames of the video, at least 1.
      lengths: size of a window.
      overlap: share of a window that overlaps with the next one, in [0, 1); the moves change it a little.
    """
    starts = [0] if frames <= lengths.video else _starts(frames, lengths, overlap)
    latent_starts = np.array([_nearest_latent(start, lengths) for start in starts])
    return Windows(
        frame_starts=np.array(starts),
        latent_starts=latent_starts,
        frames=starts[-1] + lengths.video,
        latents=int(latent_starts[-1]) + lengths.audio,
        weights=_weights(latent_starts, lengths.audio, ramp=max(1.0, overlap * lengths.audio)),
    )


def _starts(frames: int, lengths: WindowLengths, overlap: float) -> list[int]:
    """Return the first frames of the windows of a video that is longer than one."""
    last = _last_start(frames, lengths)
    count = 1 + math.ceil((frames - lengths.video) / max(1.0, (1.0 - overlap) * lengths.video))
    # The last start may have moved, and windows must leave no gap: neither of frames, nor of latents.
    count = max(count, 1 + math.ceil(last / _most_distance(lengths)))
    even = [round(index * last / (count - 1)) for index in range(count)]
    # Neighbours that move apart must leave no gap.
    spare = _most_distance(lengths) - math.ceil(last / (count - 1))
    reach = min(_reach(lengths), spare // 2)
    if reach > 0:
        middle = [_aligned(range(max(1, start - reach), start + reach + 1), lengths) for start in even[1:-1]]
        # In a video that is hardly longer than a window, they may pass each other.
        even = sorted({0, *(start for start in middle if start < last), last})
    return even


def _most_distance(lengths: WindowLengths) -> int:
    """Return the largest distance of two windows in frames that leaves no gap of frames or latents."""
    # The latents of a window may last up to half a frame less than its frames, whose number is rounded.
    return max(1, min(lengths.video, math.floor(lengths.audio / lengths.latents_per_frame + 1e-9)))


def _last_start(frames: int, lengths: WindowLengths) -> int:
    """Return the first frame of the window that ends with the video, or a little after it."""
    first, needed = frames - lengths.video, frames * lengths.latents_per_frame
    candidates = range(first, first + _reach(lengths) + 1)
    covering = [start for start in candidates if _nearest_latent(start, lengths) + lengths.audio >= needed]
    return _aligned(covering or candidates[-1:], lengths)


def _reach(lengths: WindowLengths) -> int:
    return max(1, math.floor(_MOVE * lengths.video))


def _aligned(starts: Iterable[int], lengths: WindowLengths) -> int:
    """Return the frame that begins closest to a latent; of equally close ones, the first."""

    def distance(start: int) -> float:
        return round(abs(start * lengths.latents_per_frame - _nearest_latent(start, lengths)), 9)

    return min(starts, key=distance)


def _nearest_latent(start: int, lengths: WindowLengths) -> int:
    # Not `round`, which rounds halves to even numbers, so that distances of windows would vary.
    return math.floor(start * lengths.latents_per_frame + 0.5)


def _weights(latent_starts: np.ndarray, audio_length: int, *, ramp: float) -> np.ndarray:
    """Return trapezoids with ramps at both ends, divided by their sum over the windows."""
    index = np.arange(audio_length)
    trapezoid = np.minimum(np.minimum(index + 0.5, audio_length - index - 0.5), ramp)
    total = np.zeros(int(latent_starts[-1]) + audio_length)
    for start in latent_starts:
        total[start : start + audio_length] += trapezoid
    shares = [trapezoid / total[start : start + audio_length] for start in latent_starts]
    return np.stack(shares).astype(np.float32)
