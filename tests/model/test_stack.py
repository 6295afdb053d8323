"""Scanning, recomputing and gathering weights change how the network is computed, not its results."""

import dataclasses

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.flowley import Constant

CONFIG = ModelConfig(
    audio_dim=6, video_dim=10, text_dim=8, width=16, num_heads=2, multi_depth=2, single_depth=2
)


def _inputs(batch=2):
    draw = np.random.default_rng(0)
    shapes = [(batch, 25, 6), (batch, 8, 10), (batch, 7, 8)]
    arrays = [jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes]
    return (*arrays, jnp.asarray([3, 7], jnp.int32), jnp.asarray([0.2, 0.7], jnp.float32))


def _variables(config):
    """Return the model's variables with random weights, because initial zeros would hide gradients."""
    graphdef, parameters, constants = nnx.split(Flowley(config, rngs=nnx.Rngs(0)), nnx.Param, Constant)
    leaves, tree = jax.tree.flatten(parameters)
    draw = np.random.default_rng(1)
    drawn = [jnp.asarray(0.1 * draw.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    return graphdef, jax.tree.unflatten(tree, drawn), constants


def _loss_and_gradient(config):
    graphdef, parameters, constants = _variables(dataclasses.replace(config, layers="auto", remat="none"))
    keys = jax.random.split(jax.random.key(3), 2)

    def loss(parameters):
        model = nnx.merge(graphdef, parameters, constants)
        model.config = config
        return jnp.mean(model(*_inputs(), deterministic=False, rng=keys) ** 2)

    return jax.jit(jax.value_and_grad(loss))(parameters)


@pytest.fixture(scope="module")
def unrolled():
    """Return loss and gradient of unrolled blocks with separate weights."""
    return _loss_and_gradient(dataclasses.replace(CONFIG, share_single=False, layers="unrolled"))


@pytest.mark.parametrize("layers", ["scanned", "unrolled"])
def test_scanning_and_recomputing_keep_loss_and_gradient(layers, unrolled):
    expected, expected_gradient = unrolled
    changed = dataclasses.replace(CONFIG, share_single=False, layers=layers, remat="block")
    loss, gradient = _loss_and_gradient(changed)
    assert abs(loss - expected) < 1e-6 * abs(expected)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected_gradient))
    for leaf, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("layers", ["scanned", "unrolled"])
def test_the_weights_of_every_block_are_gathered(layers):
    config = dataclasses.replace(CONFIG, layers=layers)
    calls = []

    def halved(weights):
        calls.append(len(jax.tree.leaves(weights)))
        return jax.tree.map(lambda leaf: leaf / 2, weights)

    model = nnx.merge(*_variables(config))
    velocity = model(*_inputs(), gather_weights=halved)
    assert calls
    for block in [*model.multi_stream, *model.single_stream]:
        nnx.update(block, halved(nnx.split(block)[1]))
    np.testing.assert_allclose(velocity, model(*_inputs()), rtol=1e-5, atol=1e-6)


def test_the_scanned_model_matches_the_golden_data():
    data, model = golden_data.load("a_shared"), golden_data.model("a_shared")
    scanned = nnx.clone(model)
    scanned.config = dataclasses.replace(model.config, layers="scanned")
    velocity = scanned(
        jnp.asarray(data["in/audio_latent"]),
        *golden_data.conditions("a_shared"),
        jnp.asarray(data["in/t"]),
    )
    assert golden_data.relative_error(velocity, data["out/flow"]) < 1e-5


def test_dropout_of_an_item_does_not_depend_on_its_batch():
    model = Flowley(CONFIG, rngs=nnx.Rngs(0))
    _, parameters, _ = _variables(CONFIG)
    nnx.update(model, parameters)
    keys = jax.random.split(jax.random.key(3), 2)
    drop = nnx.jit(lambda model, inputs, keys: model(*inputs, deterministic=False, rng=keys))
    both = drop(model, _inputs(), keys)
    second = drop(model, tuple(x[1:] for x in _inputs()), keys[1:])
    np.testing.assert_allclose(second[0], both[1], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(both - nnx.jit(model)(*_inputs())).max()) > 1e-3
