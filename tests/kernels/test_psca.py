"""PSCA against golden masks, plain attention and closed forms."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.kernels.psca import psca
from flowley_jax.kernels.psca.mask import aligned_frames, soft_mask
from flowley_jax.model import ModelConfig
from flowley_jax.model.attention import attention

FLOOR = 1e-6


def _log_mask(case: dict, fade_scale: float) -> np.ndarray:
    frames = aligned_frames(
        case["audio_len"], case["video_len"], video_fps=case["video_fps"], audio_fps=case["audio_fps"]
    )
    mask = soft_mask(
        frames,
        case["video_len"],
        fade_scale=fade_scale,
        window=case["window_size"],
        fade_range=case["fade_range"],
        fade=case["fade_type"] if case.get("fade", True) else "none",
    )
    return np.log(np.asarray(mask) + np.float32(FLOOR))


@pytest.mark.parametrize("name", list(golden_data.settings("masks_rope_time")["masks"]))
def test_masks_over_depth(name):
    case = golden_data.settings("masks_rope_time")["masks"][name]
    golden = golden_data.load("masks_rope_time")[f"out/mask/{name}"]
    scales = ModelConfig(single_depth=case["depth"]).fade_scales
    for depth, scale in enumerate(scales):
        np.testing.assert_allclose(_log_mask(case, scale), golden[depth], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", list(golden_data.settings("masks_ties")))
def test_masks_at_rounding_ties(name):
    case = golden_data.settings("masks_ties")[name]
    for scale, golden in zip(
        case["fade_scales"], golden_data.load("masks_ties")[f"out/mask/{name}"], strict=True
    ):
        np.testing.assert_allclose(_log_mask(case, scale), golden, atol=2e-5, rtol=0)


def test_without_progress_the_fade_scale_stays():
    assert ModelConfig(single_depth=4, progressive=False).fade_scales == (1.0,) * 4
    assert ModelConfig(single_depth=3).fade_scales == (1.0, 0.5, 0.0)
    assert ModelConfig(single_depth=1).fade_scales == (1.0,)


def _inputs(seed: int, audio_length: int, video_length: int):
    draw = np.random.default_rng(seed)
    shapes = [(2, audio_length, 2, 4), (2, video_length, 2, 4), (2, video_length, 2, 4)]
    return [jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes]


def _fast_clock(audio_length: int, video_length: int, fps: float) -> dict:
    return {"video_fps": fps, "audio_fps": fps * audio_length / video_length}


@settings(max_examples=25, deadline=None)
@given(
    audio_length=st.integers(1, 40),
    video_length=st.integers(1, 24),
    window=st.integers(-1, 3),
    fade_range=st.integers(1, 5),
    fade=st.sampled_from(["cosine", "linear", "gaussian", "none"]),
    fade_scale=st.floats(0.0, 1.0, width=32),
    floor=st.sampled_from([1e-6, 1e-2, 0.0]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_definition_in_float64(
    audio_length, video_length, window, fade_range, fade, fade_scale, floor, seed
):
    q, k, v = _inputs(seed, audio_length, video_length)
    clock = _fast_clock(audio_length, video_length, 8.0)
    out = psca(
        q,
        k,
        v,
        fade_scale=fade_scale,
        window=window,
        fade_range=fade_range,
        fade=fade,
        mask_floor=floor,
        **clock,
    )
    frames = aligned_frames(audio_length, video_length, **clock)
    expected = np.zeros(out.shape)
    for i, centre in enumerate(frames):
        weight = np.zeros(video_length)
        for j in range(video_length):
            m = abs(j - int(centre)) - window
            profile = {
                "linear": 1 - m / fade_range,
                "cosine": 0.5 * (1 + np.cos(np.pi * m / fade_range)),
                "gaussian": np.exp(-0.5 * (m / (fade_range / 2)) ** 2),
                "none": 0.0,
            }[fade]
            weight[j] = 1.0 if m <= 0 or window < 0 else fade_scale * profile if m <= fade_range else 0.0
        scores = np.einsum("bhd,bshd->bhs", np.float64(q[:, i]), np.float64(k)) / 2.0
        if window >= 0:
            with np.errstate(divide="ignore"):
                scores = scores + np.log(np.maximum(weight, 0.0) + floor)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        expected[:, i] = np.einsum("bhs,bshd->bhd", scores, np.float64(v))
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_hard_cut_without_window_returns_the_aligned_frame():
    q, k, v = _inputs(0, 31, 10)
    clock = _fast_clock(31, 10, 16.0)
    out = psca(q, k, v, fade_scale=0.0, window=0, fade_range=4, fade="cosine", mask_floor=0.0, **clock)
    np.testing.assert_allclose(out, v[:, aligned_frames(31, 10, **clock)], atol=1e-6)


def test_a_window_over_everything_is_plain_attention():
    q, k, v = _inputs(1, 17, 9)
    out = psca(q, k, v, fade_scale=0.5, window=9, fade_range=4, fade="cosine", **_fast_clock(17, 9, 8.0))
    np.testing.assert_allclose(out, attention(q, k, v), atol=1e-6)


def test_fade_scale_may_be_traced():
    q, k, v = _inputs(2, 12, 8)

    def run(scale):
        return psca(
            q, k, v, fade_scale=scale, window=0, fade_range=4, fade="cosine", **_fast_clock(12, 8, 8.0)
        )

    np.testing.assert_allclose(jax.jit(run)(0.25), run(0.25), atol=1e-6)
