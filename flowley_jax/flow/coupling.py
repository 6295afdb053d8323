"""Immiscible coupling: which noise of the batch goes to which latent."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def coupling_cost(data: Float[Array, "B Ta C"], noise: Float[Array, "B Ta C"]) -> Float[Array, "B B"]:
    """Euclidean distances ‖x₁ᵢ − x₀ⱼ‖ of the flattened, standardised latents and noises."""
    x = data.reshape(data.shape[0], -1)
    y = noise.reshape(noise.shape[0], -1)
    squared = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)[None, :] - 2.0 * (x @ y.T)
    return jnp.sqrt(jnp.maximum(squared, 0.0))


def immiscible_assignment(data: Float[Array, "B Ta C"], noise: Float[Array, "B Ta C"]) -> Int[Array, " B"]:
    """Index of the noise that the linear assignment of least total distance gives to each latent."""
    rows, columns = optax.assignment.hungarian_algorithm(coupling_cost(data, noise))
    return jnp.zeros_like(columns).at[rows].set(columns)
