"""The soft mask of PSCA against golden data, its fade scales over depth, and traced fade scales."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowley_jax.kernels.psca import SoftMask, psca
from flowley_jax.model import ModelConfig


def _log_mask(case: dict, fade_scale: float) -> np.ndarray:
    mask = SoftMask(
        video_fps=case["video_fps"],
        audio_fps=case["audio_fps"],
        window=case["window_size"],
        fade_range=case["fade_range"],
        fade=case["fade_type"] if case.get("fade", True) else "none",
        floor=1e-6,
    )
    return np.asarray(mask.log_matrix(fade_scale, case["audio_len"], case["video_len"]))


@pytest.mark.parametrize("name", list(golden_data.settings("masks_rope_time")["masks"]))
def test_masks_over_depth_match_golden_data(name):
    case = golden_data.settings("masks_rope_time")["masks"][name]
    golden = golden_data.load("masks_rope_time")[f"out/mask/{name}"]
    for depth, scale in enumerate(ModelConfig(single_depth=case["depth"]).fade_scales):
        np.testing.assert_allclose(_log_mask(case, scale), golden[depth], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", list(golden_data.settings("masks_ties")))
def test_masks_at_rounding_ties_match_golden_data(name):
    case = golden_data.settings("masks_ties")[name]
    golden = golden_data.load("masks_ties")[f"out/mask/{name}"]
    for scale, expected in zip(case["fade_scales"], golden, strict=True):
        np.testing.assert_allclose(_log_mask(case, scale), expected, atol=2e-5, rtol=0)


def test_the_mask_is_all_ones_when_it_is_off():
    mask = SoftMask(video_fps=8.0, audio_fps=16.0, window=-1, fade_range=4, fade="cosine")
    np.testing.assert_array_equal(mask.matrix(0.5, 12, 6), np.ones((12, 6)))


def test_the_fade_scale_falls_with_depth_only_if_progressive():
    assert ModelConfig(single_depth=4, progressive=False).fade_scales == (1.0,) * 4
    assert ModelConfig(single_depth=3).fade_scales == (1.0, 0.5, 0.0)
    assert ModelConfig(single_depth=1).fade_scales == (1.0,)


def test_the_fade_scale_may_be_traced():
    draw = np.random.default_rng(2)
    q, k, v = (jnp.asarray(draw.normal(size=(2, n, 2, 4)), jnp.float32) for n in (12, 8, 8))
    mask = SoftMask(video_fps=8.0, audio_fps=12.0, window=0, fade_range=4, fade="cosine")

    def attend(scale):
        return psca(q, k, v, mask=mask, fade_scale=scale)

    np.testing.assert_allclose(jax.jit(attend)(0.25), attend(0.25), atol=1e-6)
