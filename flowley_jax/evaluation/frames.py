"""Frames of a video as Synchformer and ImageBind take them in av-benchmark.

FFmpeg's `fps` filter chooses the frames. They are resized and cut to squares in 8 bits when they are read,
and normalised on the device.
"""

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.resizing import with_short_side
from flowley_jax.media.inputs import (
    MediaError,
    check_jump,
    check_picture_size,
    open_input,
    picture_end,
    required_stream,
    timed_frames,
)
from flowley_jax.model.layers import per_channel
from flowley_jax.networks.clip import PIXEL_MEAN, PIXEL_STD
from flowley_jax.networks.synchformer_config import FRAME_RATE, FRAME_STEP, IMAGE_SIZE, SEGMENT_FRAMES

IMAGEBIND_RATE = Fraction(1, 2)
# ImageBind's clips are pairs of frames; one starts at each frame but the last.
_CLIP_FRAMES = 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClipFrames:
    """The frames of one video, uint8 RGB squares of `IMAGE_SIZE` pixels.

    Attributes:
      synchformer: 25 per second, (T, 224, 224, 3).
      imagebind: one every 2 s, each in three crops, (T, 3, 224, 224, 3).
    """

    synchformer: np.ndarray
    imagebind: np.ndarray


def read_clip_frames(path: str | Path, seconds: float) -> ClipFrames:
    """Return the frames of the first seconds of a video, decoded once.

    Args:
      path: the video.
      seconds: length from the first frame on.

    Raises:
      MediaError: the file is missing, unreadable, has no video stream, or pictures of several sizes.
      FlowleyError: it has fewer frames.
    """
    path, rates = Path(path), (Fraction(FRAME_RATE), IMAGEBIND_RATE)
    counts = [int(float(rate) * seconds) for rate in rates]
    if counts[0] < SEGMENT_FRAMES or counts[1] < _CLIP_FRAMES:
        raise FlowleyError(f"seconds={seconds:g} must be at least {_CLIP_FRAMES / IMAGEBIND_RATE}")
    found: list[list[np.ndarray]] = [[] for _ in rates]
    with open_input(path) as container:
        first = None
        for frame, start, end in _pictures(container, path):
            first = start if first is None else first
            shown = [_slot(end, rate) - _slot(first, rate) for rate in rates]
            _add(frame, found, [min(pair) for pair in zip(shown, counts, strict=True)], path)
            if [len(images) for images in found] == counts:
                break
    for images, count, rate in zip(found, counts, rates, strict=True):
        if len(images) < count:
            raise FlowleyError(
                f"{path}: has {len(images)} frames at {float(rate):g} per second; {count} are needed for "
                f"{seconds:g} s"
            )
    return ClipFrames(synchformer=centre_crops(np.stack(found[0])), imagebind=three_crops(np.stack(found[1])))


def centre_crops(frames: np.ndarray) -> np.ndarray:
    """Return the middle square of each frame, (T, 224, 224, 3), as Synchformer takes it.

    Args:
      frames: (T, H, W, 3), with a short side of `IMAGE_SIZE` pixels.
    """
    # Halves go to the even number, as Python rounds.
    place = (round((length - IMAGE_SIZE) / 2) for length in frames.shape[1:3])
    return np.ascontiguousarray(_cut(frames, *place))


def three_crops(frames: np.ndarray) -> np.ndarray:
    """Return squares at the start, in the middle and at the end of the long side, (T, 3, 224, 224, 3).

    Args:
      frames: (T, H, W, 3), with a short side of `IMAGE_SIZE` pixels.
    """
    rows, columns = (length - IMAGE_SIZE for length in frames.shape[1:3])
    # Where a half is rounded, the middle differs from Synchformer's.
    places = [(0, 0), (math.ceil(rows / 2), math.ceil(columns / 2)), (rows, columns)]
    return np.stack([_cut(frames, *place) for place in places], axis=1)


def synchformer_segments(frames: UInt8[Array, "B T 224 224 3"]) -> Float[Array, "B S 16 224 224 3"]:
    """Return the normalised segments for `Synchformer.embed_video`, S = ⌊(T − 16) / 8⌋ + 1.

    Args:
      frames: `ClipFrames.synchformer` of several videos.
    """
    pixels = (_unit_range(frames) - 0.5) / 0.5
    starts = jnp.arange(0, frames.shape[1] - SEGMENT_FRAMES + 1, FRAME_STEP)
    return pixels[:, starts[:, None] + jnp.arange(SEGMENT_FRAMES)[None]]


def imagebind_clips(crops: UInt8[Array, "B T 3 224 224 3"]) -> Float[Array, "B clips 2 224 224 3"]:
    """Return the normalised clips for `ImageBind.embed_video`: pairs of successive frames, 3·(T − 1).

    Args:
      crops: `ClipFrames.imagebind` of several videos.
    """
    pixels = _unit_range(crops)
    pixels = (pixels - per_channel(jnp.asarray(PIXEL_MEAN), pixels)) / per_channel(
        jnp.asarray(PIXEL_STD), pixels
    )
    pairs = jnp.stack([pixels[:, :-1], pixels[:, 1:]], axis=3)
    return pairs.reshape(len(crops), -1, *pairs.shape[3:])


def _unit_range(levels: UInt8[Array, "..."]) -> Float[Array, "..."]:
    return levels.astype(jnp.float32) * (1.0 / 255.0)


def _pictures(container, path: Path) -> Iterator[tuple[av.VideoFrame, Fraction, Fraction]]:
    """Yield each picture of a file with the times from which and until which it is shown."""
    stream = required_stream("video", container, path)
    waiting, shown = None, Fraction(0)
    # The header of a file that was cut short may lack the stream's parameters.
    for time, frame in timed_frames(container, stream, path) if stream.format else ():
        check_picture_size(path, frame.width, frame.height)
        # The file's start is rounded to microseconds, which the stream's clock takes back.
        time = round(time / stream.time_base) * stream.time_base
        if waiting:
            check_jump(path, shown, time)
            if time < shown:
                # Pictures overlap in time: the earlier one is kept.
                continue
            yield waiting, shown, time
        waiting, shown = frame, time
    if waiting:
        yield waiting, shown, picture_end(stream, shown, waiting)


def _slot(time: Fraction, rate: Fraction) -> int:
    """Return the output of the filter at which a picture begins; halves are rounded up."""
    return math.floor(time * rate + Fraction(1, 2))


def _add(frame: av.VideoFrame, found: list[list[np.ndarray]], counts: list[int], path: Path) -> None:
    """Repeat a picture in each list up to a count."""
    if all(len(images) >= count for images, count in zip(found, counts, strict=True)):
        return
    # FFmpeg's graphs of filters scale colours so; it matters where the size is odd or a colour has 10 bits.
    pixels = frame.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray()
    image = with_short_side(np.rot90(pixels, frame.rotation // 90), IMAGE_SIZE)
    first = next((images[0] for images in found if images), image)
    if image.shape != first.shape:
        raise MediaError(
            f"{path}: its picture changes its shape: from {first.shape[1]}×{first.shape[0]} to "
            f"{image.shape[1]}×{image.shape[0]} pixels when its short side is {IMAGE_SIZE}"
        )
    for images, count in zip(found, counts, strict=True):
        images.extend([image] * (count - len(images)))


def _cut(frames: np.ndarray, row: int, column: int) -> np.ndarray:
    return frames[:, row : row + IMAGE_SIZE, column : column + IMAGE_SIZE]
