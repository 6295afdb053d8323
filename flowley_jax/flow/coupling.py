"""Immiscible coupling: which noise of the batch goes to which latent."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowley_jax.kernels.auction import assign


def coupling_cost(data: Float[Array, "B Ta C"], noise: Float[Array, "B Ta C"]) -> Float[Array, "B B"]:
    """Euclidean distances ‖x₁ᵢ − x₀ⱼ‖ of the flattened, standardised latents and noises."""
    x = data.reshape(data.shape[0], -1)
    y = noise.reshape(noise.shape[0], -1)
    # Distances differ from each other by one part in a hundred: bfloat16 would blur them.
    products = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)[None, :] - 2.0 * products
    return jnp.sqrt(jnp.maximum(squared, 0.0))


def group_size(batch: int, group: int | None) -> int:
    """How many neighbours are coupled with each other: `group`, or all if that does not divide the batch."""
    return group if group and batch % group == 0 else batch


def immiscible_assignment(
    data: Float[Array, "B Ta C"], noise: Float[Array, "B Ta C"], *, group: int | None = None
) -> Int[Array, " B"]:
    """Index of the noise that the linear assignment of least total distance gives to each latent.

    Args:
      group: this many neighbours are coupled with each other; None, or a size that does not divide B,
        couples the whole batch.
    """
    batch = data.shape[0]
    size = group_size(batch, group)
    costs = jax.vmap(coupling_cost)(*(x.reshape(-1, size, *x.shape[1:]) for x in (data, noise)))
    assigned = assign(costs)
    return (assigned + size * jnp.arange(len(assigned))[:, None]).reshape(batch)
