"""Sample latents from conditions: the jitted program that sampling and training previews share."""

import functools
import hashlib
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from flowley_jax.errors import FlowleyError
from flowley_jax.flow.guidance import guided_velocity
from flowley_jax.flow.solver import Solution, SolverConfig, initial_noise, solve_flow


@functools.partial(jax.jit, static_argnames=("graphdef", "audio_length", "guidance", "solver"))
def latents_program(
    graphdef: nnx.GraphDef,
    variables: tuple[Any, ...],
    keys: jax.Array,
    video: Float[Array, "B Tv V"],
    text: Float[Array, "B Tt W"],
    text_len: Int[Array, " B"],
    *,
    audio_length: int,
    guidance: float,
    solver: SolverConfig,
) -> Solution:
    """Run the jitted part of `sample_latents`; dry runs compile it without running it."""
    model = nnx.merge(graphdef, *variables)

    def velocity(t: Float[Array, ""], x: Float[Array, "B Ta C"]) -> Float[Array, "B Ta C"]:
        return guided_velocity(model, x, video, text, text_len, t, scale=guidance)

    noise = initial_noise(keys, (audio_length, model.config.audio_dim))
    solution = solve_flow(velocity, noise, solver)
    return solution._replace(latent=model.destandardise(solution.latent))


def sample_latents(
    graphdef: nnx.GraphDef,
    variables: tuple[Any, ...],
    keys: jax.Array,
    video: Float[Array, "B Tv V"],
    text: Float[Array, "B Tt W"],
    text_len: Int[Array, " B"],
    *,
    audio_length: int,
    guidance: float,
    solver: SolverConfig,
) -> Solution:
    """Sample latents on the codec's scale.

    Args:
      graphdef, variables: the model, split into its definition, parameters and constants.
      keys: (B,) random keys, one for each item.
      video: (B, Tv, video_dim) features.
      text: (B, Tt, text_dim) features.
      text_len: (B,) numbers of valid text tokens.
      audio_length: number of latents Ta.
      guidance: guidance scale s.
      solver: settings of the ODE solver.

    Returns:
      The solution, with latents (B, Ta, audio_dim) and the number of velocity evaluations.

    Raises:
      FlowleyError: an adaptive solver ran out of steps.
    """
    solution = latents_program(
        graphdef,
        variables,
        keys,
        video,
        text,
        text_len,
        audio_length=audio_length,
        guidance=float(guidance),
        solver=solver,
    )
    if not bool(solution.succeeded):
        raise FlowleyError(
            f"the solver {solver.name} did not reach t = 1 with rtol={solver.rtol}, atol={solver.atol}: "
            "loosen the tolerances or use a fixed-step solver"
        )
    return solution


def item_key(seed: int, item_id: str, sample: int = 0) -> jax.Array:
    """Return the random key of one sample of one item, independent of its place in a batch.

    Args:
      seed: seed of the whole call.
      item_id: hashed, so that an id gives the same key on every machine.
      sample: number of the sample.
    """
    digest = hashlib.sha256(item_id.encode()).digest()
    key = jax.random.fold_in(jax.random.key(seed), int.from_bytes(digest[:4], "little"))
    return jax.random.fold_in(key, sample)
