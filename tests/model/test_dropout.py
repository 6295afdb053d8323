"""Dropout keeps the right share of values, independently, and preserves the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowley_jax.model.layers import dropout


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_share_and_the_mean(rate):
    keys = jax.random.split(jax.random.key(0), 3)
    y = np.asarray(dropout(jnp.ones((3, 501, 257)), rate, keys))
    np.testing.assert_allclose(np.unique(y), [0.0, 1.0 / (1.0 - rate)], rtol=1e-6)
    keep = y > 0
    deviation = np.sqrt(rate * (1 - rate) / keep.size)
    assert abs(keep.mean() - (1 - rate)) < 5 * deviation
    # Independent are: neighbours, the two values that share 32 random bits, and items.
    flat = keep.reshape(3, -1)
    half = (flat.shape[1] + 1) // 2
    for first, second in (
        (flat[:, :-1], flat[:, 1:]),
        (flat[:, : flat.shape[1] - half], flat[:, half:]),
        (flat[0], flat[1]),
    ):
        both = (first & second).mean()
        assert abs(both - (1 - rate) ** 2) < 6 * deviation * np.sqrt(3)


def test_dropout_without_keys_or_at_rate_zero_returns_its_input():
    x = jnp.ones((2, 3))
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, jax.random.split(jax.random.key(0), 2)) is x
