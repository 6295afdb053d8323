"""AAC whose decoded sound stays below a true peak: a lossy codec can raise the peaks of what it encodes."""

import itertools
import math
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.codec.context import Flags

from flowley_jax.media.level import CEILING_DB, limited_blocks, true_peak_of_blocks

# Samples of one AAC frame.
FRAME = 1024
# After these many rounds in which the limiter's ceiling was lowered, the whole sound is turned down.
_LIMITER_ROUNDS = 3
# Every round aims this far, in dB, below the ceiling, because other peaks come out of another encoding.
_AIM_DB = 0.3


def encode_below_ceiling(wave: np.ndarray, rate: int, layout: str) -> list[av.Packet]:
    """Return packets of AAC whose decoded sound has a true peak of at most -1 dB relative to full scale.

    The limited sound is encoded and decoded again. If it exceeds the ceiling, it is encoded again, with the
    limiter's ceiling lowered by the excess.

    Args:
      wave: float samples (N,) or (N, C).
      rate: Hz.
      layout: FFmpeg's name for the layout of the channels.

    Raises:
      FlowleyError: a sample is not finite.
    """
    limiter_db, gain_db, rounds = CEILING_DB, 0.0, 0
    # It ends, because every round is quieter than the one before.
    while True:
        gain = 10 ** (gain_db / 20)
        limited = (gain * block for block in limited_blocks(wave, rate, ceiling_db=limiter_db))
        packets, peak = _encode(limited, rate, layout)
        rounds += 1
        if peak <= 10 ** (CEILING_DB / 20):
            return packets
        excess_db = 20 * math.log10(peak) - CEILING_DB
        if rounds <= _LIMITER_ROUNDS:
            limiter_db -= excess_db + _AIM_DB
        else:
            gain_db -= excess_db + _AIM_DB


def audio_frames(blocks: Iterable[np.ndarray], rate: int, layout: str) -> Iterator[av.AudioFrame]:
    """Yield the frames of a wave, for an encoder.

    Args:
      blocks: parts (n, ) or (n, C) of the wave, each but the last of a multiple of 1,024 samples.
      rate: Hz.
      layout: FFmpeg's name for the layout of the channels.
    """
    time = 0
    for block in blocks:
        planes = np.atleast_2d(block.T).astype(np.float32, copy=False)
        for start in range(0, planes.shape[1], FRAME):
            chunk = np.ascontiguousarray(planes[:, start : start + FRAME])
            frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, time
            time += chunk.shape[1]
            yield frame


def _encode(blocks: Iterable[np.ndarray], rate: int, layout: str) -> tuple[list[av.Packet], float]:
    """Return the packets of a wave and the true peak of the sound that they decode to."""
    packets: list[av.Packet] = []
    peak = true_peak_of_blocks(_encoded_and_decoded(blocks, rate, layout, packets), rate)
    return packets, peak


def _encoded_and_decoded(
    blocks: Iterable[np.ndarray], rate: int, layout: str, packets: list[av.Packet]
) -> Iterator[np.ndarray]:
    """Append the packets of a wave to a list, and yield blocks (n, C) of the sound that they decode to."""
    encoder = av.CodecContext.create("aac", "w")
    encoder.sample_rate, encoder.layout, encoder.format = rate, layout, "fltp"
    encoder.flags |= Flags.global_header
    encoder.open()
    decoder = av.CodecContext.create("aac", "r")
    decoder.extradata = encoder.extradata
    for frame in itertools.chain(audio_frames(blocks, rate, layout), [None]):
        for packet in encoder.encode(frame):
            packets.append(packet)
            yield from (decoded.to_ndarray().T for decoded in decoder.decode(packet))
    yield from (decoded.to_ndarray().T for decoded in decoder.decode(None))
