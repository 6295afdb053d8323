"""Targets of flow maps against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from flowley_jax.flow.flow_map import (
    FlowMapConfig,
    alpha_at,
    draw_intervals,
    mean_velocity_target,
    teacher_velocity,
    velocity_rows,
)
from flowley_jax.flow.guidance import Guidance, guided_velocity
from flowley_jax.flow.losses import LossConfig, adaptive_losses
from flowley_jax.model import Flowley

STARTS = jnp.asarray([0.1, 0.3, 0.55, 0.0])
ENDS = jnp.asarray([0.9, 0.35, 0.8, 1.0])


def _normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _of_items(times):
    return times[:, None, None]


@pytest.mark.parametrize(
    ("share", "rows"),
    [(0.5, [1, 3, 5, 7]), (0.25, [3, 7]), (0.75, [1, 2, 3, 5, 6, 7]), (0.0, []), (1.0, list(range(8)))],
)
def test_a_share_of_the_rows_trains_the_velocity(share, rows):
    np.testing.assert_array_equal(np.flatnonzero(velocity_rows(8, share)), rows)


def test_other_rows_get_two_sorted_uniform_times():
    count = 40_000
    given = jnp.linspace(0.2, 0.3, count)
    t, r = draw_intervals(jax.random.key(0), given, 0.5)
    np.testing.assert_array_equal(t[1::2], given[1::2])
    np.testing.assert_array_equal(r[1::2], given[1::2])
    t, r = t[::2], r[::2]
    assert (t <= r).all() and t.min() >= 0.0 and r.max() <= 1.0
    # The smaller and the larger of two uniform numbers: means 1/3 and 2/3, variances 1/18.
    for times, mean in ((t, 1 / 3), (r, 2 / 3)):
        assert float(times.mean()) == pytest.approx(mean, abs=0.006)
        assert float(times.var()) == pytest.approx(1 / 18, abs=0.002)


def test_alpha_falls_exponentially_over_the_run():
    config = FlowMapConfig(alpha_first=0.5, alpha_last=0.02)
    values = [float(alpha_at(step, 200, config)) for step in (0, 100, 200, 300)]
    assert values == pytest.approx([0.5, 0.1, 0.02, 0.02], rel=1e-5)


def test_the_target_of_a_step_of_no_length_is_the_velocity():
    noisy, velocity = _normal(4, 5, 3), _normal(4, 5, 3, seed=1)
    ends = jnp.where(jnp.arange(4) % 2 == 0, STARTS, ENDS)
    target = mean_velocity_target(
        noisy, velocity, STARTS, ends, lambda x, t, r: jnp.full_like(x, 1e3), alpha=0.25
    )
    np.testing.assert_array_equal(target[::2], velocity[::2])
    np.testing.assert_allclose(target[1::2], 0.25 * velocity[1::2] + 750.0, rtol=1e-6)


def test_half_of_a_step_gives_the_target_of_shortcut_models():
    noisy, velocity = _normal(4, 5, 3), _normal(4, 5, 3, seed=1)

    def mean_velocity(x, t, r):
        return jnp.sin(x) + _of_items(t) - 2.0 * _of_items(r)

    target = mean_velocity_target(noisy, velocity, STARTS, ENDS, mean_velocity, alpha=0.5)
    for index in range(4):
        start, end = float(STARTS[index]), float(ENDS[index])
        halfway = noisy[index] + 0.5 * (end - start) * velocity[index]
        second = np.sin(halfway) + 0.5 * (start + end) - 2.0 * end
        np.testing.assert_allclose(target[index], 0.5 * (velocity[index] + second), rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.01, 0.3, 0.5, 1.0])
def test_straight_paths_keep_their_velocity(alpha):
    noisy, data = _normal(4, 5, 3), _normal(4, 5, 3, seed=1)

    def mean_velocity(x, t, r):
        """Return the velocity from x_t straight to the data."""
        return (data - x) / jnp.maximum(1.0 - _of_items(t), 1e-6)

    start = noisy + _of_items(STARTS) * (data - noisy)
    target = mean_velocity_target(start, data - noisy, STARTS, ENDS, mean_velocity, alpha=alpha)
    np.testing.assert_allclose(target, data - noisy, rtol=0, atol=2e-5)


def test_the_target_nears_the_mean_velocity_as_alpha_falls():
    """For dx/dt = a·x, the mean velocity is x·(exp(a·(r − t)) − 1)/(r − t); the error is of order α²."""
    rate, noisy = 0.8, _normal(4, 5, 3)

    def mean_velocity(x, t, r):
        return x * jnp.expm1(rate * _of_items(r - t)) / _of_items(r - t)

    exact = mean_velocity(noisy, STARTS, ENDS)
    errors = [
        np.abs(
            mean_velocity_target(noisy, rate * noisy, STARTS, ENDS, mean_velocity, alpha=alpha) - exact
        ).max()
        for alpha in (0.2, 0.1)
    ]
    assert errors[0] > 1e-3 and errors[0] / errors[1] == pytest.approx(4.0, rel=0.15)


def test_no_gradient_passes_the_target():
    noisy, velocity = _normal(4, 5, 3), _normal(4, 5, 3, seed=1)

    def total(factor):
        target = mean_velocity_target(
            noisy, factor * velocity, STARTS, ENDS, lambda x, t, r: factor * x, alpha=0.5
        )
        return target.sum()

    assert float(jax.grad(total)(2.0)) == 0.0


@pytest.fixture(scope="module")
def teacher() -> Flowley:
    """Return a network whose weights are all random; those of its last layer are zero at first."""
    model = Flowley(tiny.MODEL, rngs=nnx.Rngs(0))
    graphdef, variables = nnx.split(model)
    draw = np.random.default_rng(1)
    drawn = jax.tree.map(lambda x: jnp.asarray(0.1 * draw.normal(size=x.shape), jnp.float32), variables)
    return nnx.merge(graphdef, drawn)


def _inputs():
    shapes = [(4, 25, 6), (4, 10, 10), (4, 9, 8)]
    arrays = (_normal(*shape, seed=seed) for seed, shape in enumerate(shapes))
    return (*arrays, jnp.asarray([3, 9, 5, 8]), jnp.asarray([0.1, 0.3, 0.6, 0.9]))


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_guidance_the_teacher_gives_the_conditional_velocity(teacher, guidance):
    noisy, video, text, text_len, t = _inputs()
    velocity = teacher_velocity(teacher, noisy, video, text, text_len, t, FlowMapConfig(guidance=guidance))
    np.testing.assert_array_equal(velocity, teacher(noisy, video, text, text_len, t))


def test_guidance_is_folded_in_for_each_item_by_its_time(teacher):
    config = FlowMapConfig(guidance=3.0, guidance_from=0.3, guidance_to=0.9)
    noisy, video, text, text_len, t = _inputs()
    empty_video = jnp.broadcast_to(teacher.empty_video[...][None, None], video.shape)
    empty_text = jnp.broadcast_to(teacher.empty_text[...][None, None], text.shape)
    conditional = teacher(noisy, video, text, text_len, t)
    empty = teacher(noisy, empty_video, empty_text, text_len, t)
    velocity = teacher_velocity(teacher, noisy, video, text, text_len, t, config)
    # The interval holds the times 0.3 and 0.6, but not 0.9.
    np.testing.assert_allclose(velocity[::3], conditional[::3], rtol=0, atol=1e-6)
    np.testing.assert_allclose(velocity[1:3], (3.0 * conditional - 2.0 * empty)[1:3], rtol=0, atol=5e-6)
    assert np.abs(velocity - conditional)[1:3].max() > 1e-2


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_guidance_of_the_text_is_folded_in_at_all_times(teacher, guidance):
    config = FlowMapConfig(guidance=guidance, guidance_text=2.0, guidance_from=0.5)
    noisy, video, text, text_len, t = _inputs()
    velocity = teacher_velocity(teacher, noisy, video, text, text_len, t, config)
    for row, time in enumerate(t):
        form = Guidance(scale=guidance if time >= 0.5 else 1.0, text_scale=2.0)
        rows = (array[row : row + 1] for array in (noisy, video, text, text_len))
        expected = guided_velocity(teacher, *rows, time, guidance=form)
        np.testing.assert_allclose(velocity[row : row + 1], expected, rtol=0, atol=5e-6)


def test_adaptive_weights_match_their_formula():
    velocity, target = _normal(3, 5, 4), _normal(3, 5, 4, seed=1)
    config = LossConfig(direction_weight=0.25)
    losses = adaptive_losses(velocity, target, config, power=0.75)
    errors = np.square(np.asarray(velocity, np.float64) - target).mean(axis=(1, 2))
    assert float(losses.velocity) == pytest.approx(errors.mean(), rel=1e-6)
    weighted = (errors / (errors + 0.01) ** 0.75).mean()
    assert float(losses.total) == pytest.approx(weighted + 0.25 * float(losses.direction), rel=1e-6)
    without = adaptive_losses(velocity, target, config, power=0.0)
    assert float(without.total) == pytest.approx(errors.mean() + 0.25 * float(losses.direction), rel=1e-6)

    def total(velocity):
        return adaptive_losses(velocity, target, LossConfig(direction_weight=0.0), power=1.0).total

    expected = 2.0 * (velocity - target) / velocity.size / (errors[:, None, None] + 0.01)
    np.testing.assert_allclose(jax.grad(total)(velocity), expected, rtol=1e-5)
