"""The sampling programs against plain loops over windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from flowley_jax.flow.guidance import Guidance, guided_velocity
from flowley_jax.flow.sampler import (
    SamplingProgram,
    WindowBatch,
    item_key,
    sample_latents,
    step_program,
    whole_clips,
    window_keys,
)
from flowley_jax.flow.solver import SolverConfig, initial_noise, solve_flow
from flowley_jax.flow.windows import WindowLengths, plan_windows
from flowley_jax.model import Flowley
from flowley_jax.model.flowley import Constant

TV, TA, TT = 10, 25, 8
LENGTHS = WindowLengths(video=TV, audio=TA, latents_per_frame=2.5)
GUIDANCE = 2.0


@pytest.fixture(scope="module")
def model() -> Flowley:
    return small_model()


def small_model() -> Flowley:
    """Return a small network whose last layer is not zero, with statistics of its own."""
    network = Flowley(tiny.MODEL, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for _, variable in nnx.iter_graph(network):
        if isinstance(variable, nnx.Param):
            noise = 0.05 * rng.standard_normal(variable.shape, np.float32)
            variable.set_value(variable[...] + noise)
        elif isinstance(variable, Constant):
            variable.set_value(variable[...] + 0.3)
    return network


def _split(model):
    graphdef, *variables = nnx.split(model, nnx.Param, Constant)
    return graphdef, tuple(variables)


def _conditions(rows: int, frames: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    video = rng.standard_normal((rows, frames, tiny.MODEL.video_dim), np.float32)
    text = rng.standard_normal((rows, TT, tiny.MODEL.text_dim), np.float32)
    return video, text, rng.integers(1, TT, rows).astype(np.int32)


def _keys(rows: int) -> jax.Array:
    return jnp.stack([item_key(0, str(row)) for row in range(rows)])


@pytest.mark.parametrize("name", ["euler", "rk4", "dopri5"])
def test_clips_of_one_window_get_what_the_plain_flow_gives(model, name):
    """With the XLA flags of users, they are equal bit for bit; see tests/scale."""
    solver = SolverConfig(name=name, steps=3, rtol=1e-3, atol=1e-3)
    sampled, expected = one_window_and_plain(model, solver)
    np.testing.assert_allclose(sampled, expected, rtol=0, atol=1e-6 * float(np.abs(expected).max()))


def one_window_and_plain(model: Flowley, solver: SolverConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the latents of three clips of one window, by the programs and by the plain flow."""
    keys, (video, text, text_len) = _keys(3), map(jnp.asarray, _conditions(3, TV))

    # Conditions are arguments, since XLA would compute with constants beforehand.
    @nnx.jit
    def plain(model, keys, video, text, text_len):
        def velocity(t, x, r):
            guidance = Guidance(scale=GUIDANCE)
            return guided_velocity(model, x, video, text, text_len, t, r, guidance=guidance)

        noise = initial_noise(keys, (TA, tiny.MODEL.audio_dim))
        return model.destandardise(solve_flow(velocity, noise, solver).latent)

    batch = whole_clips(keys, video, text, text_len, audio_length=TA)
    program = SamplingProgram(video_length=TV, guidance=Guidance(scale=GUIDANCE), solver=solver, at_once=3)
    sampled = sample_latents(*_split(model), batch, program=program)
    return np.asarray(sampled.latent), np.asarray(plain(model, keys, video, text, text_len))


def _long_batch(frames: int, room: int) -> tuple[WindowBatch, np.ndarray]:
    """Return the windows of one video, with a negative text, and the noise of all its latents."""
    windows = plan_windows(frames, LENGTHS, overlap=0.3)
    (video, text, text_len), (_, negative, negative_len) = (
        _conditions(1, windows.frames),
        _conditions(1, 1, 1),
    )
    missing = room - len(windows)
    keys = window_keys(item_key(0, "a"), len(windows))
    batch = WindowBatch(
        keys=jnp.concatenate([keys, jnp.repeat(keys[:1], missing)]),
        latent_starts=jnp.asarray(np.pad(windows.latent_starts, (0, missing)), jnp.int32),
        weights=jnp.asarray(np.pad(windows.weights, ((0, missing), (0, 0)))),
        frame_starts=jnp.asarray(np.pad(windows.frame_starts, (0, missing)), jnp.int32),
        conditions=jnp.zeros(room, jnp.int32),
        video=jnp.asarray(video[0]),
        text=jnp.asarray(text),
        text_len=jnp.asarray(text_len),
        negative_text=jnp.asarray(negative),
        negative_len=jnp.asarray(negative_len),
        count=jnp.asarray(len(windows), jnp.int32),
        latents=jnp.asarray(windows.latents, jnp.int32),
    )
    noise = initial_noise(keys, (TA, tiny.MODEL.audio_dim)).reshape(-1, tiny.MODEL.audio_dim)
    return batch, np.asarray(noise[: windows.latents])


def _reference(model, batch: WindowBatch, noise: np.ndarray, steps: int) -> np.ndarray:
    """Sample by Euler's method with a loop over windows, one at a time."""
    velocity_of = nnx.jit(guided_velocity, static_argnames="guidance")
    x = noise.astype(np.float64)
    for step in range(steps):
        velocity = np.zeros_like(x)
        for index in range(int(batch.count)):
            start, first = int(batch.latent_starts[index]), int(batch.frame_starts[index])
            piece = velocity_of(
                model,
                jnp.asarray(x[None, start : start + TA], jnp.float32),
                batch.video[None, first : first + TV],
                batch.text,
                batch.text_len,
                jnp.asarray(step / steps, jnp.float32),
                guidance=Guidance(scale=GUIDANCE),
                negative_text=batch.negative_text,
                negative_len=batch.negative_len,
            )
            velocity[start : start + TA] += np.asarray(batch.weights[index])[:, None] * np.asarray(piece[0])
        x += velocity / steps
    return x * np.asarray(model.latent_std[...]) + np.asarray(model.latent_mean[...])


@pytest.mark.parametrize(("frames", "room", "at_once"), [(11, 2, 2), (47, 8, 4), (47, 16, 8)])
def test_long_latents_are_the_blend_of_their_windows(model, frames, room, at_once):
    batch, noise = _long_batch(frames, room)
    solver = SolverConfig(name="euler", steps=3)
    program = SamplingProgram(
        video_length=TV, guidance=Guidance(scale=GUIDANCE), solver=solver, at_once=at_once
    )
    expected = _reference(model, batch, noise, solver.steps)
    sampled = sample_latents(*_split(model), batch, program=program)
    flat = np.asarray(sampled.latent).reshape(room * TA, -1)[: len(expected)]
    np.testing.assert_allclose(flat, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "evaluations"), [("euler", 8), ("heun", 16), ("midpoint", 16), ("rk4", 32)])
def test_steps_with_progress_give_the_whole_flow(model, name, evaluations):
    batch, _ = _long_batch(47, 8)
    solver = SolverConfig(name=name, steps=4)
    program = SamplingProgram(video_length=TV, guidance=Guidance(scale=GUIDANCE), solver=solver, at_once=8)
    whole, done = sample_latents(*_split(model), batch, program=program), []
    stepped = sample_latents(*_split(model), batch, program=program, progress=done.append)
    assert done == [1, 2, 3, 4]
    assert int(stepped.evaluations) == int(whole.evaluations) == evaluations
    scale = float(np.abs(whole.latent).max())
    np.testing.assert_allclose(stepped.latent, whole.latent, rtol=0, atol=1e-6 * scale)


def test_all_steps_and_all_numbers_of_steps_use_one_program(model):
    batch, _ = _long_batch(47, 8)
    before = step_program._cache_size()
    for steps in (2, 5):
        program = SamplingProgram(
            video_length=TV,
            guidance=Guidance(scale=1.5),
            solver=SolverConfig(name="euler", steps=steps),
            at_once=8,
        )
        sample_latents(*_split(model), batch, program=program, progress=lambda step: None)
    assert step_program._cache_size() == before + 1


def test_an_adaptive_solver_ignores_windows_that_are_not_used(model):
    solver = SolverConfig(name="dopri5", rtol=1e-4, atol=1e-4)
    solutions = []
    for room in (8, 32):
        batch, noise = _long_batch(47, room)
        program = SamplingProgram(
            video_length=TV, guidance=Guidance(scale=GUIDANCE), solver=solver, at_once=8
        )
        solution = sample_latents(*_split(model), batch, program=program)
        solutions.append(
            (int(solution.evaluations), np.asarray(solution.latent).reshape(room * TA, -1)[: len(noise)])
        )
    assert solutions[0][0] == solutions[1][0] > 6
    np.testing.assert_allclose(solutions[0][1], solutions[1][1], rtol=0, atol=1e-4)


def test_noise_depends_on_the_position_and_not_on_the_length():
    key = item_key(3, "a")
    short, long = window_keys(key, 2), window_keys(key, 9)
    np.testing.assert_array_equal(jax.random.key_data(short), jax.random.key_data(long)[:2])
    np.testing.assert_array_equal(jax.random.key_data(short)[0], jax.random.key_data(key))
    assert len(np.unique(np.asarray(jax.random.key_data(long)), axis=0)) == 9


def test_room_that_windows_at_once_do_not_divide_is_refused(model):
    batch, _ = _long_batch(11, 6)
    program = SamplingProgram(
        video_length=TV, guidance=Guidance(scale=GUIDANCE), solver=SolverConfig(steps=1), at_once=4
    )
    with pytest.raises(ValueError, match="room for 6 windows must be a multiple of at_once=4"):
        sample_latents(*_split(model), batch, program=program)


@pytest.mark.parametrize(
    ("solver", "guidance"),
    [
        (SolverConfig(steps=3), Guidance(scale=GUIDANCE, start=0.5)),
        (SolverConfig(name="rk4", steps=2, shift=2.0), Guidance(scale=1.0)),
        (SolverConfig(name="dopri5", rtol=1e-3, atol=1e-3), Guidance(scale=GUIDANCE)),
        (SolverConfig(steps=4), Guidance(scale=GUIDANCE, zero_until=0.3)),
        (SolverConfig(name="flow_map", steps=2), Guidance(scale=1.0)),
    ],
    ids=["euler", "rk4", "dopri5", "zero_until", "flow_map"],
)
def test_kept_latents_come_out_as_they_are(model, solver, guidance):
    batch, _ = _long_batch(18, 4)
    rng = np.random.default_rng(5)
    own = rng.standard_normal((4, TA, tiny.MODEL.audio_dim)).astype(np.float32)
    kept = rng.random((4, TA)) < 0.4
    program = SamplingProgram(video_length=TV, guidance=guidance, solver=solver, at_once=2)
    network = _split(model)
    keeping = batch._replace(own=jnp.asarray(own), kept=jnp.asarray(kept))
    free = np.asarray(sample_latents(*network, batch, program=program).latent)
    found = np.asarray(sample_latents(*network, keeping, program=program).latent)
    np.testing.assert_allclose(found[kept], own[kept], rtol=0, atol=2e-5)
    # The others see the kept ones.
    used = np.arange(4 * TA).reshape(4, TA) < int(batch.latents)
    assert np.abs(found - free)[used & ~kept].max() > 1e-2
    # Nothing kept is the plain flow.
    nothing = keeping._replace(kept=jnp.zeros((4, TA), bool))
    same = np.asarray(sample_latents(*network, nothing, program=program).latent)
    np.testing.assert_allclose(same[used], free[used], rtol=0, atol=2e-5)
    if solver.name != "dopri5":
        steps = sample_latents(*network, keeping, program=program, progress=lambda step: None)
        np.testing.assert_allclose(np.asarray(steps.latent)[used], found[used], rtol=0, atol=2e-5)
