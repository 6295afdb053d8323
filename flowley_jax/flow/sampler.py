"""Sample latents from conditions: the programs that sampling and training previews share.

A batch consists of windows (see `flowley_jax.flow.windows`). The windows of one sound follow each other, and
share the latents where they overlap; sounds of different lengths fit into one batch. The programs depend on
the number of windows that a batch has room for, and not on the lengths of its sounds.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from flowley_jax.common.devices import BATCH_AXES
from flowley_jax.errors import FlowleyError
from flowley_jax.flow import path
from flowley_jax.flow.guidance import UNGUIDED, Guidance, guided_velocity
from flowley_jax.flow.solver import (
    ADAPTIVE,
    Solution,
    SolverConfig,
    Velocity,
    initial_noise,
    solve_flow,
    solver_step,
)
from flowley_jax.flow.stretches import network_evaluations, stretches
from flowley_jax.model import Flowley


class WindowBatch(NamedTuple):
    """Windows to sample, with their conditions; all arrays have room for W windows.

    Attributes:
      keys: (W,) random keys; each gives the noise of Ta latents.
      latent_starts: (W,) first of the window's latents, among the W·Ta latents of the batch.
      weights: (W, Ta) weight of the window's velocity at its latents; 0 for a window that is not used.
      frame_starts: (W,) first row of the window's frames in `video`.
      conditions: (W,) row of the window's text.
      video: (R, video_dim) features of the frames of all clips.
      text: (K, Tt, text_dim) features.
      text_len: (K,) numbers of valid tokens.
      negative_text, negative_len: texts of the empty branch; None for the empty text.
      count: number of windows in use, which come first.
      latents: number of latents in use.
      own: latents of the clips' own sounds, on the codec's scale, at the same places as the sampled ones;
        None if no clip keeps a part.
      kept: latents that stay as in `own`; the others are sampled to fit.
    """

    keys: jax.Array
    latent_starts: Int[Array, " W"]
    weights: Float[Array, "W Ta"]
    frame_starts: Int[Array, " W"]
    conditions: Int[Array, " W"]
    video: Float[Array, "R V"]
    text: Float[Array, "K Tt D"]
    text_len: Int[Array, " K"]
    negative_text: Float[Array, "K Tt D"] | None
    negative_len: Int[Array, " K"] | None
    count: Int[Array, ""]
    latents: Int[Array, ""]
    own: Float[Array, "W Ta C"] | None = None
    kept: Bool[Array, "W Ta"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingProgram:
    """Everything but shapes that a program depends on.

    Attributes:
      video_length: frames Tv of a window.
      guidance: form of the guidance.
      solver: settings of the ODE solver.
      at_once: windows that the network computes at once, which divides the W of every batch.
      mesh: devices over which these windows are divided, along its axis "data"; None for one device.
    """

    video_length: int
    guidance: Guidance
    solver: SolverConfig
    at_once: int
    mesh: Mesh | None = None


@functools.partial(jax.jit, static_argnames=("graphdef", "program"))
def latents_program(
    graphdef: nnx.GraphDef,
    variables: tuple[Any, ...],
    batch: WindowBatch,
    bad_parameters: Any = None,
    *,
    program: SamplingProgram,
) -> Solution:
    """Run the whole flow of `sample_latents`; dry runs compile it without running it."""
    first = stretches(program.solver, program.guidance)[0]
    x = _start(graphdef, variables, batch, first.times[0])
    share = batch.latents / (x.shape[0] * x.shape[1])
    evaluations, succeeded = jnp.asarray(0), jnp.asarray(True)
    for stretch in stretches(program.solver, program.guidance):
        velocity = _blended_velocity(graphdef, variables, batch, bad_parameters, program, stretch.guidance)
        solution = solve_flow(velocity, x, program.solver, times=stretch.times, share_in_use=share)
        x = solution.latent
        evaluations += solution.evaluations * stretch.guidance.branches
        succeeded &= solution.succeeded
    return Solution(_destandardised(graphdef, variables, x), evaluations, succeeded)


@functools.partial(jax.jit, static_argnames=("graphdef", "program", "guidance"), donate_argnames="x")
def step_program(
    graphdef: nnx.GraphDef,
    variables: tuple[Any, ...],
    batch: WindowBatch,
    x: Float[Array, "W Ta C"],
    t0: Float[Array, ""],
    t1: Float[Array, ""],
    bad_parameters: Any = None,
    *,
    program: SamplingProgram,
    guidance: Guidance,
) -> Float[Array, "W Ta C"]:
    """Run one solver step of `sample_latents`, with the form of guidance of its stretch."""
    velocity = _blended_velocity(graphdef, variables, batch, bad_parameters, program, guidance)
    return solver_step(velocity, x, t0, t1, program.solver)


def sample_latents(
    graphdef: nnx.GraphDef,
    variables: tuple[Any, ...],
    batch: WindowBatch,
    bad_parameters: Any = None,
    *,
    program: SamplingProgram,
    progress: Callable[[int], None] | None = None,
) -> Solution:
    """Sample latents on the codec's scale.

    Args:
      graphdef, variables: the model, split into its definition, parameters and constants.
      batch: windows to sample.
      bad_parameters: parameters of the worse network of autoguidance.
      program: settings of the sampling.
      progress: called with the number of each solver step that is done. A fixed-step solver then runs step by
        step, and can be interrupted; an adaptive one runs as a whole.

    Returns:
      The solution, with latents (W, Ta, audio_dim) and the number of network evaluations per window; a guided
      velocity takes two or three.

    Raises:
      FlowleyError: an adaptive solver ran out of steps.
    """
    solver = program.solver
    if progress is not None and solver.name not in ADAPTIVE:
        return _sample_in_steps(graphdef, variables, batch, bad_parameters, program, progress)
    solution = latents_program(graphdef, variables, batch, bad_parameters, program=program)
    if not bool(solution.succeeded):
        raise FlowleyError(
            f"the solver {solver.name} did not reach t = 1 with rtol={solver.rtol}, atol={solver.atol}: "
            "loosen the tolerances or use a fixed-step solver"
        )
    return solution


def whole_clips(
    keys: jax.Array,
    video: Float[Array, "B Tv V"],
    text: Float[Array, "B Tt D"],
    text_len: Int[Array, " B"],
    *,
    audio_length: int,
) -> WindowBatch:
    """Return the batch of clips that are one window each.

    Args:
      keys: (B,) random keys.
      video, text, text_len: conditions of each clip.
      audio_length: latents Ta of each clip.
    """
    clips, frames = video.shape[:2]
    index = jnp.arange(clips, dtype=jnp.int32)
    return WindowBatch(
        keys=keys,
        latent_starts=audio_length * index,
        weights=jnp.ones((clips, audio_length), jnp.float32),
        frame_starts=frames * index,
        conditions=index,
        video=video.reshape(clips * frames, -1),
        text=text,
        text_len=text_len,
        negative_text=None,
        negative_len=None,
        count=jnp.asarray(clips, jnp.int32),
        latents=jnp.asarray(clips * audio_length, jnp.int32),
    )


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


def window_keys(key: jax.Array, count: int) -> jax.Array:
    """Return the keys (count,) of the noise of an item's first, second, … Ta latents.

    The noise of a latent depends on its position, and not on the length of the item.
    """
    return jnp.stack([key, *(jax.random.fold_in(key, index) for index in range(1, count))])


def _sample_in_steps(
    graphdef: nnx.GraphDef,
    variables: tuple[Any, ...],
    batch: WindowBatch,
    bad_parameters: Any,
    program: SamplingProgram,
    progress: Callable[[int], None],
) -> Solution:
    solver, parts = program.solver, stretches(program.solver, program.guidance)
    # A step does not depend on the number of steps, so one program serves all numbers.
    step = dataclasses.replace(program, solver=SolverConfig(name=solver.name), guidance=UNGUIDED)
    x = _start(graphdef, variables, batch, parts[0].times[0])
    # Placed like the result of a step; otherwise the second step would compile the program again.
    x = jax.device_put(x, x.sharding)
    # Steps with a velocity of zero come first, and change nothing.
    done = solver.steps - sum(len(stretch.times) - 1 for stretch in parts)
    for stretch in parts:
        for t0, t1 in itertools.pairwise(np.asarray(stretch.times, np.float32)):
            x = step_program(
                graphdef,
                variables,
                batch,
                x,
                t0,
                t1,
                bad_parameters,
                program=step,
                guidance=stretch.guidance,
            )
            # Otherwise all steps would be dispatched at once, and the progress would be theirs.
            jax.block_until_ready(x)
            progress(done := done + 1)
    return Solution(
        latent=_destandardised(graphdef, variables, x),
        evaluations=jnp.asarray(network_evaluations(solver, program.guidance)),
        succeeded=jnp.asarray(True),
    )


@functools.partial(jax.jit, static_argnames="graphdef")
def _start(
    graphdef: nnx.GraphDef, variables: tuple[Any, ...], batch: WindowBatch, t: float | Array
) -> Float[Array, "W Ta C"]:
    """Return the state before the first step, at t: noise, or for kept latents their point on the path."""
    model = nnx.merge(graphdef, *variables)
    noise = _noise(model, batch)
    if batch.own is None or batch.kept is None:
        return noise
    times = jnp.full(len(noise), t, jnp.float32)
    own = path.interpolate(noise, model.standardise(batch.own), times)
    return jnp.where(batch.kept[:, :, None], own, noise)


def _noise(model: Flowley, batch: WindowBatch) -> Float[Array, "W Ta C"]:
    return initial_noise(batch.keys, (batch.weights.shape[1], model.config.audio_dim))


@functools.partial(jax.jit, static_argnames="graphdef")
def _destandardised(graphdef: nnx.GraphDef, variables: tuple[Any, ...], x: Array) -> Array:
    return nnx.merge(graphdef, *variables).destandardise(x)


def _blended_velocity(
    graphdef: nnx.GraphDef,
    variables: tuple[Any, ...],
    batch: WindowBatch,
    bad_parameters: Any,
    program: SamplingProgram,
    guidance: Guidance,
) -> Velocity:
    """Return the function that computes the velocity of all latents (W, Ta, C) from their windows."""
    room, audio_length = batch.weights.shape
    at_once = program.at_once
    if room % at_once:
        raise ValueError(f"room for {room} windows must be a multiple of at_once={at_once}")
    if not guidance.bad_model:
        bad_parameters = None
    windows_velocity = _divided(functools.partial(_windows_velocity, graphdef, guidance), program.mesh)

    def velocity(t: Array, x: Array, r: Array | None) -> Array:
        latents = x.reshape(room * audio_length, -1)

        def add_windows(group: Array, total: Array) -> Array:
            rows = group * at_once + jnp.arange(at_once)
            starts, conditions = batch.latent_starts[rows], batch.conditions[rows]
            pieces = windows_velocity(
                (variables, bad_parameters, t, r),
                latents[starts[:, None] + jnp.arange(audio_length)[None]],
                batch.video[batch.frame_starts[rows][:, None] + jnp.arange(program.video_length)[None]],
                *(
                    None if array is None else array[conditions]
                    for array in (batch.text, batch.text_len, batch.negative_text, batch.negative_len)
                ),
            )
            pieces = batch.weights[rows][:, :, None] * pieces
            # One after the other: a scatter would add in any order, so that repeats would differ.
            for start, piece in zip(starts, pieces, strict=True):
                current = jax.lax.dynamic_slice_in_dim(total, start, audio_length)
                total = jax.lax.dynamic_update_slice_in_dim(total, current + piece, start, 0)
            return total

        groups = (batch.count + at_once - 1) // at_once
        blended = jax.lax.fori_loop(0, groups, add_windows, jnp.zeros_like(latents)).reshape(x.shape)
        if batch.own is None or batch.kept is None:
            return blended
        model = nnx.merge(graphdef, *variables)
        # Straight to the kept latents, so that every solver ends there.
        own = path.target_velocity(_noise(model, batch), model.standardise(batch.own))
        return jnp.where(batch.kept[:, :, None], own, blended)

    return velocity


def _windows_velocity(
    graphdef: nnx.GraphDef,
    guidance: Guidance,
    shared: tuple[Any, Any, Array, Array | None],
    latent: Array,
    video: Array,
    text: Array,
    text_len: Array,
    negative_text: Array | None,
    negative_len: Array | None,
) -> Array:
    (parameters, constants), bad_parameters, t, r = shared
    return guided_velocity(
        nnx.merge(graphdef, parameters, constants),
        latent,
        video,
        text,
        text_len,
        t,
        r,
        guidance=guidance,
        negative_text=negative_text,
        negative_len=negative_len,
        bad_model=None if bad_parameters is None else nnx.merge(graphdef, bad_parameters, constants),
    )


def _divided(function: Callable[..., Array], mesh: Mesh | None) -> Callable[..., Array]:
    """Return a function of shared arrays and arrays of windows that divides the windows among devices."""
    if mesh is None:
        return function
    whole, rows = PartitionSpec(), PartitionSpec(BATCH_AXES[0])

    def divided(shared: Any, *arrays: Array | None) -> Array:
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(whole, *(rows for _ in arrays)),
            out_specs=rows,
            check_vma=False,
        )(shared, *arrays)

    return divided
