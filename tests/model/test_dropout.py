"""Dropout keeps the share it should, and the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowley_jax.model.layers import dropout


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_share_and_mean(rate):
    keys = jax.random.split(jax.random.key(0), 3)
    y = np.asarray(dropout(jnp.ones((3, 501, 257)), rate, keys))
    np.testing.assert_allclose(np.unique(y), [0.0, 1.0 / (1.0 - rate)], rtol=1e-6)
    kept = y > 0
    deviation = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation
    # Neither neighbours, nor the two places that share 32 random bits, nor items know of each other.
    flat = kept.reshape(3, -1)
    half = (flat.shape[1] + 1) // 2
    for one, other in (
        (flat[:, :-1], flat[:, 1:]),
        (flat[:, : flat.shape[1] - half], flat[:, half:]),
        (flat[0], flat[1]),
    ):
        both = (one & other).mean()
        assert abs(both - (1 - rate) ** 2) < 6 * deviation * np.sqrt(3)


def test_without_keys_or_at_rate_zero_nothing_is_dropped():
    x = jnp.ones((2, 3))
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, jax.random.split(jax.random.key(0), 2)) is x
