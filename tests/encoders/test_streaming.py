"""Features of videos encoded block by block against those of the whole."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.encoders.pixels import EarlierPixelEncoder, PixelEncoder
from flowley_jax.encoders.streaming import encode_blocks
from flowley_jax.errors import FlowleyError

ENCODER = PixelEncoder(frame_size=32)
_RNG = np.random.default_rng(0)
# Scenes of seven to nine frames: a block may begin or end near a cut.
_SCENES = np.repeat([0, 160, 40, 200, 120], [7, 9, 8, 7, 9])
FRAMES = (_SCENES[:, None, None, None] + _RNG.integers(0, 20, (40, 32, 32, 3))).astype(np.uint8)


class WideEncoder:
    """Stands for an encoder whose features are sums over `context` frames on both sides."""

    dim, fps, frame_size = 1, 24.0, 32

    def __init__(self, context):
        self.context = context

    def __call__(self, frames):
        values = np.pad(frames[:, 0, 0, :1].astype(np.float32), ((self.context, self.context), (0, 0)))
        return sum(values[shift : shift + len(frames)] for shift in range(2 * self.context + 1))


def _parts(lengths):
    return np.split(FRAMES[: sum(lengths)], np.cumsum(lengths)[:-1])


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_blocks_give_the_features_of_the_whole(lengths):
    features, count = encode_blocks(ENCODER, iter(_parts(lengths)))
    assert count == sum(lengths)
    np.testing.assert_allclose(features, ENCODER(FRAMES[:count]), rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), context=st.integers(0, 5))
def test_every_frame_has_its_whole_context(lengths, context):
    encoder: Any = WideEncoder(context)
    features, count = encode_blocks(encoder, _parts(lengths))
    np.testing.assert_array_equal(features, encoder(FRAMES[:count]))


def test_the_frames_of_this_test_have_cuts():
    assert np.abs(ENCODER(FRAMES) - EarlierPixelEncoder(frame_size=32)(FRAMES)).max() > 1.0


def test_one_block_is_encoded_in_one_call():
    features, count = encode_blocks(ENCODER, [FRAMES])
    np.testing.assert_array_equal(features, ENCODER(FRAMES))
    assert count == len(FRAMES)


@pytest.mark.parametrize("lengths", [[5], [2, 3], [1, 1, 1]])
def test_a_short_video_is_filled_by_its_last_frame(lengths):
    features, count = encode_blocks(ENCODER, _parts(lengths), least=8)
    assert count == sum(lengths)
    filled = np.concatenate([FRAMES[:count], np.repeat(FRAMES[count - 1 : count], 8 - count, axis=0)])
    np.testing.assert_allclose(features, ENCODER(filled), rtol=1e-6, atol=1e-6)


def test_a_video_that_is_long_enough_is_not_filled():
    features, _ = encode_blocks(ENCODER, [FRAMES[:8]], least=8)
    np.testing.assert_array_equal(features, ENCODER(FRAMES[:8]))


def test_a_video_without_frames_is_refused():
    with pytest.raises(FlowleyError, match="without frames"):
        encode_blocks(ENCODER, [])


def test_few_blocks_are_in_memory():
    """The encoder never gets more than a block and its context."""
    lengths = []

    class Counting(WideEncoder):
        def __call__(self, frames):
            lengths.append(len(frames))
            return super().__call__(frames)

    encoder: Any = Counting(1)
    encode_blocks(encoder, (FRAMES[start : start + 4] for start in range(0, 40, 4)))
    assert max(lengths) <= 4 + 2 and len(lengths) == 10
