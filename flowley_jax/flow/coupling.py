"""Immiscible coupling: the assignment of a batch's noise samples to its latents."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowley_jax.kernels.auction import assign


def coupling_cost(data: Float[Array, "B Ta C"], noise: Float[Array, "B Ta C"]) -> Float[Array, "B B"]:
    """Return the Euclidean distances ‖x₁ᵢ − x₀ⱼ‖ between flattened latents and noise samples."""
    x = data.reshape(data.shape[0], -1)
    y = noise.reshape(noise.shape[0], -1)
    # Distances differ from each other by one part in a hundred: bfloat16 would blur them.
    products = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)[None, :] - 2.0 * products
    return jnp.sqrt(jnp.maximum(squared, 0.0))


def group_size(batch: int, group: int | None) -> int:
    """Return the number of consecutive examples to couple: `group` if it divides the batch, or else all."""
    return group if group and batch % group == 0 else batch


@jax.named_scope("coupling")
def immiscible_assignment(
    data: Float[Array, "B Ta C"], noise: Float[Array, "B Ta C"], *, group: int | None = None
) -> Int[Array, " B"]:
    """Return the index of each latent's noise sample in the linear assignment with the least total distance.

    Args:
      data: standardised latents x₁.
      noise: noise samples x₀.
      group: number of consecutive examples that are coupled with each other; None, or a size that does not
        divide B, couples the whole batch.
    """
    batch = data.shape[0]
    size = group_size(batch, group)
    costs = jax.vmap(coupling_cost)(*(x.reshape(-1, size, *x.shape[1:]) for x in (data, noise)))
    assignment = assign(costs)
    return (assignment + size * jnp.arange(len(assignment))[:, None]).reshape(batch)
