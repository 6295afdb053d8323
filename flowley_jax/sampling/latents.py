"""Latents from conditions: the jitted heart of sampling, shared by the sampler and training previews."""

import functools
from typing import Any

import jax
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.flow.guidance import guided_velocity
from flowley_jax.flow.solver import Solution, SolverConfig, initial_noise, solve_flow


@functools.partial(jax.jit, static_argnames=("graphdef", "audio_length", "guidance", "solver"))
def latents_program(
    graphdef, variables, keys, video, text, text_len, *, audio_length, guidance, solver
) -> Solution:
    """The program of `sample_latents`, which checks what the solver says; a plan compiles it alone."""
    model = nnx.merge(graphdef, *variables)

    def velocity(t, x):
        return guided_velocity(model, x, video, text, text_len, t, scale=guidance)

    noise = initial_noise(keys, (audio_length, model.config.audio_dim))
    solution = solve_flow(velocity, noise, solver)
    return solution._replace(latent=model.destandardise(solution.latent))


def sample_latents(
    graphdef: nnx.GraphDef,
    variables: tuple[Any, ...],
    keys: jax.Array,
    video,
    text,
    text_len,
    *,
    audio_length: int,
    guidance: float,
    solver: SolverConfig,
) -> Solution:
    """Draws latents in the codec's own scale.

    Args:
      graphdef, variables: the model, split (parameters first, then constants).
      keys: (B,) one random key per item.
      video: (B, Tv, video_dim), text: (B, Tt, text_dim), text_len: (B,).
      audio_length: Ta.

    Returns: the solution with latents (B, Ta, audio_dim) and the number of network evaluations.

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
            f"the solver {solver.name} did not reach t = 1 at rtol={solver.rtol}, atol={solver.atol}: "
            "loosen the tolerances or take a fixed-step solver"
        )
    return solution
