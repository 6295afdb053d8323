"""Forms of guidance: with neutral settings all are the plain one, and otherwise what their papers say."""

import dataclasses

import golden_data
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.config import SampleConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.guidance import UNGUIDED, Guidance, guided_velocity
from flowley_jax.flow.solver import SolverConfig, solve_flow, time_grid
from flowley_jax.flow.stretches import Stretch, network_evaluations, stretches
from flowley_jax.model import Flowley

DATA = golden_data.load("d_sampling")
SCALES = st.floats(1.01, 10.0)
TIME = jnp.asarray(0.3)


@pytest.fixture(scope="module")
def branches():
    """Return the velocities of (video, text), of (video, empty), and of neither, float64 (B, Ta, C)."""
    model, (video, text, text_len) = golden_data.model("a_shared"), golden_data.conditions("d_sampling")
    empty_video, empty_text = (
        jnp.broadcast_to(value[...], like.shape)
        for value, like in ((model.empty_video, video), (model.empty_text, text))
    )
    pairs = ((video, text), (video, empty_text), (empty_video, empty_text))
    run, times = nnx.jit(Flowley.__call__), jnp.full((len(video),), TIME)
    return [
        np.asarray(run(model, jnp.asarray(DATA["in/noise"]), *pair, text_len, times), np.float64)
        for pair in pairs
    ]


def _velocity(guidance, **options):
    model, conditions = golden_data.model("a_shared"), golden_data.conditions("d_sampling")
    noise = jnp.asarray(DATA["in/noise"])
    return np.asarray(guided_velocity(model, noise, *conditions, TIME, guidance=guidance, **options))


def _assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@settings(max_examples=5, deadline=None)
@given(SCALES)
def test_neutral_settings_give_plain_guidance(branches, scale):
    conditional, _, empty = branches
    plain = scale * conditional + (1.0 - scale) * empty
    for form in (Guidance(scale=scale), Guidance(scale=scale, text_scale=scale)):
        _assert_close(_velocity(form), plain)
    # A third branch, too, if both scales are the same up to rounding.
    _assert_close(_velocity(Guidance(scale=scale, text_scale=np.nextafter(scale, 99.0))), plain)


@settings(max_examples=5, deadline=None)
@given(SCALES, SCALES)
def test_text_and_video_have_scales_of_their_own(branches, scale, text_scale):
    conditional, of_video, empty = branches
    expected = empty + scale * (of_video - empty) + text_scale * (conditional - of_video)
    _assert_close(_velocity(Guidance(scale=scale, text_scale=text_scale)), expected)


def test_a_scale_of_one_keeps_its_condition(branches):
    conditional, of_video, empty = branches
    of_text = Guidance(scale=0.0, text_scale=3.0)
    assert of_text.branches == 2
    _assert_close(_velocity(of_text), of_video + 3.0 * (conditional - of_video))
    _assert_close(_velocity(Guidance(scale=3.0, text_scale=0.0)), conditional + 2.0 * (of_video - empty))
    for form in (Guidance(scale=1.0), Guidance(scale=0.0, text_scale=0.5)):
        assert form.branches == 1
        _assert_close(_velocity(form), conditional)


@settings(max_examples=5, deadline=None)
@given(SCALES)
def test_the_empty_branch_of_zero_star_fits_best(branches, scale):
    """The fitted multiple of the empty velocity leaves a difference that is orthogonal to it."""
    conditional, _, empty = branches
    found = _velocity(Guidance(scale=scale, zero_star=True)).astype(np.float64)
    fitted = (scale * conditional - found) / (scale - 1.0)
    for own, other, fit in zip(conditional, empty, fitted, strict=True):
        best, *_ = np.linalg.lstsq(other.reshape(-1, 1), own.ravel(), rcond=None)
        np.testing.assert_allclose(fit, best[0] * other, rtol=0, atol=2e-4 * np.abs(other).max())


@settings(max_examples=5, deadline=None)
@given(SCALES, st.floats(0.05, 1.0))
def test_rescaling_keeps_the_direction_and_moves_the_deviation(branches, scale, share):
    conditional, _, empty = branches
    plain = scale * conditional + (1.0 - scale) * empty
    found = _velocity(Guidance(scale=scale, rescale=share))
    for own, whole, velocity in zip(conditional, plain, found, strict=True):
        np.testing.assert_allclose(velocity.std(), share * own.std() + (1 - share) * whole.std(), rtol=1e-4)
        assert np.vdot(velocity, whole) / np.linalg.norm(velocity) / np.linalg.norm(whole) > 1.0 - 1e-5


def test_autoguidance_leads_away_from_the_worse_network(branches):
    bad = nnx.clone(golden_data.model("a_shared"))
    bad.final_conv.bias.set_value(bad.final_conv.bias[...] + 0.1)
    conditional, *_ = branches
    form = Guidance(scale=3.0, bad_model=True)
    _assert_close(_velocity(form, bad_model=bad), 3.0 * conditional - 2.0 * (conditional + 0.1))
    # The same network leads nowhere.
    _assert_close(_velocity(form, bad_model=golden_data.model("a_shared")), conditional)


def test_an_interval_guides_the_steps_that_begin_in_it():
    solver, guidance = SolverConfig(steps=4), Guidance(scale=2.0, start=0.25, end=0.75)
    plain = Guidance(scale=2.0)
    assert stretches(solver, guidance) == [
        Stretch((0.0, 0.25), UNGUIDED),
        Stretch((0.25, 0.5, 0.75), plain),
        Stretch((0.75, 1.0), UNGUIDED),
    ]
    assert network_evaluations(solver, guidance) == 6
    assert network_evaluations(SolverConfig(name="heun", steps=4), guidance) == 12
    later = dataclasses.replace(guidance, zero_until=0.3)
    assert stretches(solver, later) == [Stretch((0.5, 0.75), plain), Stretch((0.75, 1.0), UNGUIDED)]
    assert network_evaluations(solver, later) == 3


def test_the_interval_leaves_the_scale_of_the_text():
    solver, guidance = SolverConfig(steps=4), Guidance(scale=2.0, text_scale=3.0, start=0.5, zero_star=True)
    assert stretches(solver, guidance) == [
        Stretch((0.0, 0.25, 0.5), Guidance(scale=1.0, text_scale=3.0, zero_star=True)),
        Stretch((0.5, 0.75, 1.0), Guidance(scale=2.0, text_scale=3.0, zero_star=True)),
    ]
    assert network_evaluations(solver, guidance) == 2 * 2 + 2 * 3


def test_an_adaptive_solver_changes_the_form_at_the_exact_time():
    solver = SolverConfig(name="dopri5")
    guidance = Guidance(scale=2.0, text_scale=3.0, start=0.3, end=0.9, zero_until=0.1)
    of_text, of_both = (Guidance(scale=scale, text_scale=3.0) for scale in (1.0, 2.0))
    assert stretches(solver, guidance) == [
        Stretch((0.1, 0.3), of_text),
        Stretch((0.3, 0.9), of_both),
        Stretch((0.9, 1.0), of_text),
    ]
    assert network_evaluations(solver, guidance) == 7 * 7


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.99), st.floats(0.1, 10))
def test_stretches_cover_the_time_after_the_zero_part_once(steps, start, end, zero_until, shift):
    solver = SolverConfig(steps=steps, shift=shift)
    guidance = Guidance(scale=2.0, start=start, end=end, zero_until=zero_until)
    times = [time for time in time_grid(solver) if time >= zero_until]
    found = stretches(solver, guidance)
    joined = [*(time for stretch in found for time in stretch.times[:-1]), 1.0]
    assert joined == times
    for stretch in found:
        for time in stretch.times[:-1]:
            assert stretch.guidance == (Guidance(scale=2.0) if start <= time < end else UNGUIDED)


@given(st.integers(1, 200), st.floats(0.01, 100))
def test_a_shifted_grid_keeps_its_ends_and_its_order(steps, shift):
    times = time_grid(SolverConfig(steps=steps, shift=shift))
    assert times[0] == 0.0 and times[-1] == 1.0 and len(times) == steps + 1
    assert (np.diff(times) > 0).all()
    # The shift of a noise level σ as it is published: sσ / (1 + (s − 1)σ).
    sigma = 1.0 - np.linspace(0.0, 1.0, steps + 1)
    np.testing.assert_allclose(1.0 - times, shift * sigma / (1.0 + (shift - 1.0) * sigma), rtol=0, atol=1e-12)


def test_a_grid_without_shift_has_equal_steps():
    np.testing.assert_array_equal(time_grid(SolverConfig(steps=25)), np.linspace(0.0, 1.0, 26))


@given(st.integers(1, 9), st.floats(0.2, 5))
@settings(max_examples=10, deadline=None)
def test_steps_of_a_flow_map_end_where_the_flow_does(steps, shift):
    """For dx/dt = x the mean velocity from t to r is known, so that any grid gives x(1) = e·x(0)."""
    solution = solve_flow(
        lambda t, x, r: x * (jnp.exp(r - t) - 1.0) / (r - t),
        jnp.ones((1, 2, 3)),
        SolverConfig(name="flow_map", steps=steps, shift=shift),
    )
    np.testing.assert_allclose(solution.latent, np.e, rtol=1e-5)
    assert int(solution.evaluations) == steps


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(FlowleyError, match=r"guidance_from=0\.6 must not be above sample\.guidance_to=0\.5"):
        SampleConfig(guidance_from=0.6, guidance_to=0.5)
    with pytest.raises(FlowleyError, match="guidance_text=3 does not go with autoguidance"):
        SampleConfig(guidance_text=3.0, autoguidance_step=10)
    with pytest.raises(FlowleyError, match="negative_prompt='rain' does not go with autoguidance"):
        SampleConfig(negative_prompt="rain", autoguidance_step=10)


def test_values_without_effect_are_refused():
    with pytest.raises(FlowleyError, match=r"zero_until=0\.97 leaves no step of the solver"):
        SampleConfig(zero_until=0.97)
    with pytest.raises(FlowleyError, match=r"autoguidance_sigma_rel=0\.1 needs autoguidance_step"):
        SampleConfig(autoguidance_sigma_rel=0.1)


def test_the_published_form_is_the_default():
    assert SampleConfig().guidance_form == Guidance(scale=7.5)
