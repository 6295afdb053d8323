"""Encode a video of any length block by block."""

from collections.abc import Iterable

import numpy as np

from flowley_jax.encoders.protocols import VideoEncoder
from flowley_jax.errors import FlowleyError


def encode_blocks(
    encoder: VideoEncoder, blocks: Iterable[np.ndarray], *, least: int = 1
) -> tuple[np.ndarray, int]:
    """Encode a video whose frames come in blocks; no more than three of them are in memory at a time.

    The features are those of the whole video: every frame is encoded together with the neighbours that its
    features depend on. A video of one block is encoded in one call.

    Args:
      encoder: the encoder.
      blocks: uint8 (T_i, H, W, 3), of any lengths T_i, which add up to T.
      least: a video of fewer frames is filled by copies of its last frame before it is encoded.

    Returns:
      Features (max(T, least), dim) float32, and T.

    Raises:
      FlowleyError: the frames have the wrong shape or type, or there are none.
    """
    context, features, count = encoder.context, [], 0
    # Frames that wait for those after them, preceded by some whose features are known.
    held, known = None, 0
    for block in blocks:
        count += len(block)
        if held is None:
            held = block
            continue
        ready = len(held) - max(0, context - len(block))
        if ready > known:
            features.append(encoder(np.concatenate([held, block[:context]]))[known:ready])
            kept = max(0, ready - context)
            held, known = held[kept:], ready - kept
        held = np.concatenate([held, block])
    if held is None:
        raise FlowleyError("a video without frames cannot be encoded")
    if count < least:
        held = np.concatenate([held, np.repeat(held[-1:], least - count, axis=0)])
    features.append(encoder(held)[known:])
    return np.concatenate(features), count
