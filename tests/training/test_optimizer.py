"""The optimiser: which kernels Muon updates, and by how much."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from flowley_jax.common.trees import named_leaves
from flowley_jax.config import OptimConfig
from flowley_jax.model.flowley import abstract_model
from flowley_jax.runs.lora import new_adapters
from flowley_jax.training.optimizer import inner_kernels, make_optimizer
from flowley_jax.training.state import StepConfig, create_state

RATE = 1e-2
MUON = OptimConfig(kind="muon", learning_rate=RATE, warmup_steps=0, schedule="steps", weight_decay=0.0)
# Kernels that read an input, shift and scale, or give the output.
OUTER = ("first/kernel", "modulation/linear/kernel", "final_modulation/linear/kernel", "final_conv/kernel")
INNER_FIRST = ("cross_video/first/kernel", "cross_text/first/kernel")


@pytest.fixture(scope="module")
def parameters():
    config = tiny.experiment(Path("records"))
    step = StepConfig.from_experiment(config)
    dim = config.model.audio_dim
    state = create_state(step, tiny.layout(config), latent_mean=np.zeros(dim), latent_std=np.ones(dim))
    return state.parameters


def _updates(config, parameters, gradients):
    optimizer = make_optimizer(dataclasses.replace(config, clip_norm=1e9), 0)
    updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
    return {name: np.asarray(leaf) for name, leaf in named_leaves(updates).items()}


@pytest.fixture(scope="module")
def gradients(parameters):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), parameters)


def test_muon_updates_all_kernels_between_the_first_layers_and_the_last():
    _, parameters, _ = abstract_model(tiny.MODEL)
    chosen = jax.tree.leaves(
        jax.tree.map(lambda _, numbers: numbers is not None, parameters, inner_kernels(parameters))
    )
    for (name, leaf), is_inner in zip(named_leaves(parameters).items(), chosen, strict=True):
        layer = name.removesuffix("/value")
        is_outer = layer.endswith(OUTER) and not layer.endswith(INNER_FIRST)
        assert is_inner == (layer.endswith("kernel") and not is_outer), name
        assert not is_inner or leaf.ndim in (2, 3)


def test_the_first_update_of_muon_is_the_orthogonal_factor_of_the_gradient(parameters, gradients):
    updates = _updates(MUON, parameters, gradients)
    for name in ("multi_stream/0/audio/qkv/qkv/kernel/value", "single_stream/0/ffn/w2/kernel/value"):
        gradient = np.asarray(named_leaves(gradients)[name], np.float64)
        matrix = gradient.reshape(-1, gradient.shape[-1])
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        expected = -RATE * 0.2 * np.sqrt(max(matrix.shape)) * (left @ right)
        found = updates[name].reshape(matrix.shape)
        cosine = np.sum(found * expected) / np.linalg.norm(found) / np.linalg.norm(expected)
        # Five Newton–Schulz iterations leave singular values between 0.7 and 1.2.
        assert cosine > 0.98
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(expected), rel=0.3)


def test_other_parameters_are_updated_by_adamw_with_nesterov_momentum(parameters, gradients):
    updates = _updates(MUON, parameters, gradients)
    adamw = optax.nadamw(RATE, b1=MUON.beta1, b2=MUON.beta2, weight_decay=0.0)
    expected, _ = adamw.update(gradients, adamw.init(parameters), parameters)
    for name, value in named_leaves(expected).items():
        if "kernel" not in name or name.startswith(("final_", "audio_input/first")):
            np.testing.assert_allclose(updates[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weight_decay_shrinks_every_parameter(parameters, gradients, kind):
    plain = dataclasses.replace(MUON, kind=kind)
    decayed = _updates(dataclasses.replace(plain, weight_decay=0.1), parameters, gradients)
    for name, update in _updates(plain, parameters, gradients).items():
        shrunk = RATE * 0.1 * np.asarray(named_leaves(parameters)[name])
        np.testing.assert_allclose(decayed[name], update - shrunk, rtol=1e-4, atol=1e-7, err_msg=name)


def test_adapters_are_updated_by_adamw(parameters):
    adapters = new_adapters(parameters, tiny.LORA, jax.random.key(0))
    gradients = jax.tree.map(jnp.ones_like, adapters)
    updates = _updates(MUON, adapters, gradients)
    adamw = optax.nadamw(RATE, b1=MUON.beta1, b2=MUON.beta2, weight_decay=0.0)
    expected, _ = adamw.update(gradients, adamw.init(adapters), adapters)
    for name, value in named_leaves(expected).items():
        np.testing.assert_allclose(updates[name], value, rtol=1e-6, err_msg=name)
