"""PSCA against golden masks, plain attention and closed forms."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowley_jax.kernels.psca import psca
from flowley_jax.kernels.psca.mask import aligned_frames, soft_mask
from flowley_jax.model import ModelConfig

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


def test_fade_scale_may_be_traced():
    q, k, v = _inputs(2, 12, 8)

    def run(scale):
        return psca(
            q, k, v, fade_scale=scale, window=0, fade_range=4, fade="cosine", **_fast_clock(12, 8, 8.0)
        )

    np.testing.assert_allclose(jax.jit(run)(0.25), run(0.25), atol=1e-6)
