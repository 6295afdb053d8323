"""Samples against the published implementation, and solvers against known solutions."""

import functools

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import relative_error

from flowley_jax.errors import FlowleyError
from flowley_jax.flow.guidance import Guidance, drop_conditions, guided_velocity, random_drops
from flowley_jax.flow.solver import SolverConfig, initial_noise, solve_flow

DATA = golden_data.load("d_sampling")


@functools.cache
def _sample(config: SolverConfig, scale: float):
    model = golden_data.model("a_shared")
    conditions = golden_data.conditions("d_sampling")

    # The model is an argument: XLA would fold weights that are constants of the program.
    @nnx.jit
    def run(model, noise, conditions):
        guidance = Guidance(scale=scale)
        return solve_flow(
            lambda t, x, r: guided_velocity(model, x, *conditions, t, r, guidance=guidance), noise, config
        )

    solution = run(model, jnp.asarray(DATA["in/noise"]), conditions)
    assert bool(solution.succeeded)
    return model.destandardise(solution.latent), int(solution.evaluations)


@pytest.mark.parametrize(
    ("name", "solver", "steps", "scale", "evaluations"),
    [
        ("euler_cfg7.5", "euler", 25, 7.5, 25),
        ("euler_cfg0.0", "euler", 25, 0.0, 25),
        ("euler_cfg1.0", "euler", 25, 1.0, 25),
        ("euler_nocfg", "euler", 25, 0.0, 25),
        ("euler_steps4_cfg2.0", "euler", 4, 2.0, 4),
        # The released code gives these solvers 25 points, which are 24 intervals.
        ("midpoint_cfg7.5", "midpoint", 24, 7.5, 48),
        ("rk4_cfg0.0", "rk4", 24, 0.0, 96),
    ],
)
def test_fixed_step_samples_match_the_golden_data(name, solver, steps, scale, evaluations):
    latent, count = _sample(SolverConfig(name=solver, steps=steps), scale)
    assert relative_error(latent, DATA[f"out/{name}"]) < 3e-5
    assert count == evaluations


@pytest.mark.parametrize(
    ("solver", "scale"), [("dopri5", 0.0), pytest.param("tsit5", 7.5, marks=pytest.mark.scale)]
)
def test_adaptive_samples_agree_within_their_tolerances(solver, scale):
    fine, many = _sample(SolverConfig(name=solver, rtol=1e-5, atol=1e-5), scale)
    coarse, few = _sample(SolverConfig(name=solver, rtol=1e-3, atol=1e-3), scale)
    golden = DATA[f"out/dopri5_default_cfg{scale}"]
    assert relative_error(fine, golden) < 1e-3
    assert relative_error(coarse, golden) < 3e-2
    assert many > few


@pytest.mark.scale
def test_heun_converges_with_second_order():
    exact = DATA["out/dopri5_default_cfg0.0"]
    coarse, fine = (
        relative_error(_sample(SolverConfig(name="heun", steps=n), 0.0)[0], exact) for n in (16, 64)
    )
    assert coarse / fine > 8.0


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4), ("tsit5", None), ("dopri5", None)],
)
def test_solver_order_on_an_equation_with_a_known_solution(name, order):
    # The logistic equation dx/dt = 3x(1 − x) from x(0) = 1/10.
    def error(steps):
        solution = solve_flow(
            lambda t, x, _: 3.0 * x * (1.0 - x),
            jnp.full((1, 1, 1), 0.1),
            SolverConfig(name=name, steps=steps, rtol=1e-6, atol=1e-6),
        )
        return abs(float(solution.latent[0, 0, 0]) - 1.0 / (1.0 + 9.0 * np.exp(-3.0)))

    if order is None:
        assert error(8) < 1e-5
    else:
        assert np.log2(error(4) / error(8)) == pytest.approx(order, abs=0.4)


def test_a_solver_that_runs_out_of_steps_does_not_succeed():
    # A pole inside the interval: no step size satisfies the tolerance.
    solution = solve_flow(
        lambda t, x, _: 1.0 / (t - 0.5) ** 2 * jnp.ones_like(x),
        jnp.zeros((1, 1, 1)),
        SolverConfig(name="dopri5", rtol=1e-7, atol=1e-7),
    )
    assert not bool(solution.succeeded)


def test_guided_velocity_of_the_first_step_matches_the_golden_data():
    model = golden_data.model("a_shared")
    video, text, text_len = golden_data.conditions("d_sampling")
    noise = jnp.asarray(DATA["in/noise"])
    guided = nnx.jit(guided_velocity, static_argnames="guidance")
    velocity = guided(model, noise, video, text, text_len, jnp.asarray(0.0), guidance=Guidance(scale=7.5))
    assert relative_error(velocity, DATA["out/flow_cfg_step0"]) < 1e-5


def test_condition_dropout_replaces_items_with_the_empty_features():
    model = nnx.clone(golden_data.model("a_shared"))
    model.empty_video.set_value(jnp.full_like(model.empty_video[...], 2.0))
    video, text, _ = golden_data.conditions("d_sampling")
    drops = {"drop_video": jnp.asarray([True, False]), "drop_text": jnp.asarray([False, True])}
    new_video, new_text = drop_conditions(model, video, text, **drops)
    np.testing.assert_array_equal(new_video, np.stack([np.full_like(video[0], 2.0), video[1]]))
    empty_text = np.broadcast_to(model.empty_text[...], text[1].shape)
    np.testing.assert_array_equal(new_text, np.stack([text[0], empty_text]))


def test_condition_dropout_is_independent_and_has_the_given_rate():
    video, text = (np.asarray(marks) for marks in random_drops(jax.random.key(0), 100_000, 0.1))
    assert video.mean() == pytest.approx(0.1, abs=0.005)
    assert text.mean() == pytest.approx(0.1, abs=0.005)
    assert (video & text).mean() == pytest.approx(0.01, abs=0.002)


def test_noise_of_an_item_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(0), 4)
    together = initial_noise(keys, (5, 3))
    np.testing.assert_array_equal(together[2], initial_noise(keys[2:3], (5, 3))[0])
    assert together.std() == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, r"sample\.solver\.steps=0 must"),
        ({"rtol": 0.0}, r"sample\.solver\.rtol=0\.0 must"),
        ({"atol": -1.0}, r"sample\.solver\.atol=-1\.0 must"),
    ],
)
def test_invalid_solver_settings_are_refused(change, message):
    with pytest.raises(FlowleyError, match=message):
        SolverConfig(**change)


def test_an_adaptive_solver_has_no_number_of_evaluations():
    assert SolverConfig(name="rk4", steps=3).evaluations == 12
    with pytest.raises(FlowleyError, match=r"sample\.solver\.name='tsit5' must be a fixed-step solver"):
        _ = SolverConfig(name="tsit5").evaluations
