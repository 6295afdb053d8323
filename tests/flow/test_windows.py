"""Windows cover a video, blend to one, and keep frames and latents together."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.flow.windows import WindowLengths, plan_windows

DEMONSTRATION = WindowLengths(video=96, audio=125, latents_per_frame=31.25 / 24)
PUBLISHED_16K = WindowLengths(video=64, audio=250, latents_per_frame=31.25 / 8)
PUBLISHED_44K = WindowLengths(video=64, audio=345, latents_per_frame=44_100 / 1024 / 8)


@st.composite
def window_lengths(draw) -> WindowLengths:
    """Draw any rates, with latents that last from half a frame less than the frames to one latent more."""
    video, rate = draw(st.integers(1, 200)), draw(st.floats(0.2, 8.0))
    missing = draw(st.floats(0.0, 0.5)) if video > 1 else 0.0
    return WindowLengths(video=video, audio=math.ceil((video - missing) * rate), latents_per_frame=rate)


@settings(deadline=None)
@given(lengths=window_lengths(), frames=st.integers(1, 2000), overlap=st.floats(0.0, 0.9))
def test_windows_cover_every_latent_and_their_weights_sum_to_one(lengths, frames, overlap):
    windows = plan_windows(frames, lengths, overlap=overlap)
    starts, latents = windows.frame_starts, windows.latent_starts
    assert starts[0] == latents[0] == 0
    assert (np.diff(starts) > 0).all() or len(starts) == 1
    # A window's first latent is the nearest to its first frame.
    assert np.abs(starts * lengths.latents_per_frame - latents).max() <= 0.5 + 1e-9
    assert windows.frames == starts[-1] + lengths.video >= frames
    assert windows.frames - max(frames, lengths.video) <= max(1, lengths.video // 32)
    total = np.zeros(windows.latents)
    for start, weights in zip(latents, windows.weights, strict=True):
        assert (weights > 0).all()
        total[start : start + lengths.audio] += weights
    np.testing.assert_allclose(total, 1.0, rtol=0, atol=1e-5)
    # What a program reserves for n windows suffices.
    assert windows.latents <= len(windows) * lengths.audio
    assert windows.frames <= len(windows) * lengths.video


@pytest.mark.parametrize("lengths", [DEMONSTRATION, PUBLISHED_16K, PUBLISHED_44K])
def test_a_video_of_at_most_one_window_has_one(lengths):
    for frames in (1, lengths.video - 1, lengths.video):
        windows = plan_windows(frames, lengths, overlap=0.25)
        assert len(windows) == 1
        assert (windows.frames, windows.latents) == (lengths.video, lengths.audio)
        assert (windows.weights == 1.0).all()


@pytest.mark.parametrize("lengths", [DEMONSTRATION, PUBLISHED_16K, PUBLISHED_44K])
@pytest.mark.parametrize("frames", [200, 1536, 28_800])
def test_long_videos_have_evenly_overlapping_windows_whose_clocks_agree(lengths, frames):
    windows = plan_windows(frames, lengths, overlap=0.25)
    assert windows.latents >= frames * lengths.latents_per_frame
    overlaps = 1.0 - np.diff(windows.frame_starts) / lengths.video
    assert overlaps.min() >= 0.18 and overlaps.max() - overlaps.min() <= 0.15
    assert abs(len(windows) - (1 + (frames - lengths.video) / (0.75 * lengths.video))) <= 1
    # A third of a latent is 11 ms at 16 kHz.
    misaligned = np.abs(windows.frame_starts * lengths.latents_per_frame - windows.latent_starts)
    assert misaligned.max() <= 1 / 3
    assert misaligned.mean() <= 0.12


def test_blending_what_windows_cut_from_a_sequence_gives_the_sequence():
    windows = plan_windows(700, DEMONSTRATION, overlap=0.25)
    sequence = np.random.default_rng(0).standard_normal((2 * windows.latents, 3))
    pieces = [sequence[2 * start : 2 * start + 250] for start in windows.latent_starts]
    np.testing.assert_allclose(windows.blended(pieces), sequence, rtol=0, atol=1e-6)


def test_the_blend_fades_from_one_window_to_the_next():
    windows = plan_windows(168, DEMONSTRATION, overlap=0.25)
    assert len(windows) == 2
    pieces = [np.full((125, 1), value) for value in (0.0, 1.0)]
    blend = windows.blended(pieces)[:, 0]
    start = windows.latent_starts[1]
    assert (blend[:start] == 0).all() and (blend[125:] == 1).all()
    steps = np.diff(blend[start:125])
    assert (steps > 0).all() and steps.max() < 1.5 / (125 - start)
