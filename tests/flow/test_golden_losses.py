"""Losses, gradients, time maps and coupling against the published implementation."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import relative_error
from scipy.optimize import linear_sum_assignment

from flowley_jax.flow import coupling, path
from flowley_jax.flow.losses import LossConfig, cosine_similarity, flow_losses
from flowley_jax.flow.time_sampling import TimeConfig, cosmap, logit_normal, sample_times
from flowley_jax.interop import flowley_to_torch
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.flowley import Constant

DATA = golden_data.load("c_loss")


def _arrays(*names):
    return tuple(jnp.asarray(DATA[f"in/{name}"]) for name in names)


def _losses(model: Flowley, config: LossConfig):
    latent, noise, video, text, text_len, t = _arrays(
        "latent", "noise", "visual_feature", "text_feature", "text_len", "t"
    )
    data = model.standardise(latent)
    velocity = nnx.jit(model)(path.interpolate(noise, data, t), video, text, text_len, t)
    return flow_losses(velocity, path.target_velocity(noise, data), config)


def test_path_matches_the_golden_data():
    latent, noise, t = _arrays("latent", "noise", "t")
    data = golden_data.model("a_shared").standardise(latent)
    assert relative_error(data, DATA["out/normalized_latent"]) < 1e-6
    assert relative_error(path.interpolate(noise, data, t), DATA["out/xt"]) < 1e-6
    assert relative_error(path.target_velocity(noise, data), DATA["out/tgt_flow"]) < 1e-6


@pytest.mark.parametrize("kind", ["mse", "pseudo_huber"])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_losses_match_the_golden_data(kind, weight):
    losses = _losses(golden_data.model("a_shared"), LossConfig(kind=kind, direction_weight=weight))
    for value, name in zip(losses, ("total", "main", "direction_loss"), strict=True):
        assert float(value) == pytest.approx(float(DATA[f"out/{kind}/w{weight}/{name}"]), rel=1e-5)


def test_gradients_of_all_parameters_match_the_golden_data():
    golden = {**golden_data.load("c_grads_0"), **golden_data.load("c_grads_1")}
    golden = {key.removeprefix("grad/"): value for key, value in golden.items() if key.startswith("grad/")}
    graphdef, parameters, constants = nnx.split(golden_data.model("a_shared"), nnx.Param, Constant)

    def loss(parameters):
        return _losses(nnx.merge(graphdef, parameters, constants), LossConfig()).total

    gradients = flowley_to_torch(nnx.merge(graphdef, jax.jit(jax.grad(loss))(parameters), constants))
    trained = {key for key in gradients if not key.startswith(("latent_", "empty_", "single_modal_stream."))}
    assert trained | {key for key in gradients if key.startswith("single_modal_stream.0.")} == set(golden)
    errors = {key: relative_error(gradients[key], value) for key, value in golden.items()}
    assert max(errors.values()) < 3e-5, max(errors, key=lambda key: errors[key])
    norm = np.sqrt(sum(np.square(np.float64(gradients[key])).sum() for key in golden))
    assert norm == pytest.approx(float(DATA["out/grad_global_norm"]), rel=1e-5)


def test_time_maps_match_the_golden_data():
    u, z = _arrays("u", "z")
    np.testing.assert_allclose(cosmap(u), DATA["out/cosmap"], atol=1e-6)
    for mean, std in ((0, 1), (0, 0.1), (0.3, 0.7)):
        expected = DATA[f"out/logit_normal_m{mean}_s{std}"]
        np.testing.assert_allclose(logit_normal(z, mean=mean, std=std), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "density"),
    [
        (TimeConfig(kind="uniform"), lambda t: np.ones_like(t)),
        (TimeConfig(), lambda t: 2 / np.pi / (t**2 + (1 - t) ** 2)),
        (
            TimeConfig(kind="logit_normal", std=0.8),
            lambda t: (
                np.exp(-0.5 * (np.log(t / (1 - t)) / 0.8) ** 2) / (0.8 * np.sqrt(2 * np.pi) * t * (1 - t))
            ),
        ),
    ],
)
def test_sampled_times_have_the_density_of_their_distribution(config, density):
    times = np.asarray(sample_times(jax.random.key(0), 200_000, config))
    counts, edges = np.histogram(times, bins=20, range=(0, 1))
    centres = 0.5 * (edges[1:] + edges[:-1])
    np.testing.assert_allclose(20 * counts / len(times), density(centres), atol=0.05)


def test_immiscible_coupling_matches_the_golden_data():
    latent, noise, video, text, text_len, t = _arrays(
        "imm_latent", "imm_noise", "imm_visual_feature", "imm_text_feature", "imm_text_len", "imm_t"
    )
    model = golden_data.model("a_shared")
    data = model.standardise(latent)
    assert relative_error(coupling.coupling_cost(data, noise), DATA["out/immiscible/cost"]) < 1e-5
    assignment = coupling.immiscible_assignment(data, noise)
    np.testing.assert_array_equal(assignment, DATA["out/immiscible/indices"])
    noise = noise[assignment]
    velocity = nnx.jit(model)(path.interpolate(noise, data, t), video, text, text_len, t)
    losses = flow_losses(velocity, path.target_velocity(noise, data), LossConfig())
    for value, name in zip(losses, ("total", "main", "direction_loss"), strict=True):
        assert float(value) == pytest.approx(float(DATA[f"out/immiscible/{name}"]), rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 17, 64])
def test_assignment_is_as_short_as_scipys(size):
    keys = jax.random.split(jax.random.key(size))
    data, noise = (jax.random.normal(key, (size, 5, 3)) for key in keys)
    cost = np.asarray(coupling.coupling_cost(data, noise))
    assignment = np.asarray(jax.jit(coupling.immiscible_assignment)(data, noise))
    assert sorted(assignment) == list(range(size))
    rows, columns = linear_sum_assignment(cost)
    assert cost[np.arange(size), assignment].sum() == pytest.approx(cost[rows, columns].sum(), rel=1e-6)


def test_groups_are_coupled_separately():
    keys = jax.random.split(jax.random.key(0))
    data, noise = (jax.random.normal(key, (12, 5, 3)) for key in keys)
    assign = jax.jit(coupling.immiscible_assignment, static_argnames="group")
    grouped = assign(data, noise, group=4)
    for start in (0, 4, 8):
        rows = slice(start, start + 4)
        np.testing.assert_array_equal(grouped[rows], assign(data[rows], noise[rows]) + start)
    whole = assign(data, noise)
    np.testing.assert_array_equal(assign(data, noise, group=5), whole)
    assert (np.asarray(whole) != np.asarray(grouped)).any()


def test_cosine_of_a_zero_vector_is_zero_with_zero_gradient():
    x, y = jnp.asarray([[0.0, 0.0], [3.0, 4.0]]), jnp.asarray([[1.0, 0.0], [4.0, 3.0]])
    np.testing.assert_allclose(cosine_similarity(x, y), [0.0, 24 / 25], atol=1e-6)
    gradient = jax.grad(lambda x: cosine_similarity(x, y).sum())(x)
    np.testing.assert_array_equal(gradient[0], 0.0)
    assert bool(jnp.isfinite(gradient).all())


@pytest.mark.parametrize("adaln_init", ["gaussian", "zero"])
@pytest.mark.parametrize("empty", [False, True])
def test_first_step_has_finite_gradients_of_normal_size(adaln_init, empty):
    config = ModelConfig(
        audio_dim=4,
        video_dim=6,
        text_dim=5,
        width=16,
        num_heads=2,
        multi_depth=1,
        single_depth=2,
        adaln_init=adaln_init,
    )
    model = Flowley(config, rngs=nnx.Rngs(0))
    graphdef, parameters, constants = nnx.split(model, nnx.Param, Constant)
    noise, data = (jax.random.normal(jax.random.key(k), (2, 9, 4)) for k in (1, 2))
    scale = 0.0 if empty else 1.0
    video, text = scale * jnp.ones((2, 5, 6)), scale * jnp.ones((2, 3, 5))
    t = jnp.asarray([0.2, 0.9])

    def loss(parameters):
        model = nnx.merge(graphdef, parameters, constants)
        velocity = model(path.interpolate(noise, data, t), video, text, jnp.asarray([3, 1]), t)
        return flow_losses(velocity, path.target_velocity(noise, data), LossConfig()).total

    value, gradients = jax.jit(jax.value_and_grad(loss))(parameters)
    # The initial velocity is zero, so the losses are the target's mean square and a cosine of 0 everywhere.
    assert float(value) == pytest.approx(float(jnp.mean(jnp.square(data - noise))) + 0.5, rel=1e-5)
    leaves = jax.tree.leaves(gradients)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
    largest = max(float(jnp.abs(leaf).max()) for leaf in leaves)
    assert 1e-4 < largest < 1e2
