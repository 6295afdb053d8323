"""Memory of the network's program, and the time of one evaluation, before any sound is made."""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowley_jax.common.component import ProgramMemory
from flowley_jax.flow.guidance import Guidance
from flowley_jax.flow.sampler import SamplingProgram, WindowBatch, latents_program, step_program
from flowley_jax.flow.solver import ADAPTIVE, SolverConfig
from flowley_jax.flow.stretches import stretches
from flowley_jax.sampling.memory import free_device_memory
from flowley_jax.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """Memory and time that a program of the network needs.

    Attributes:
      memory: memory on each device.
      at_once: number of windows that one evaluation computes.
      seconds: measured time of one evaluation, which is one branch of a guided velocity; None if the free
        memory does not suffice for it.
    """

    memory: ProgramMemory
    at_once: int
    seconds: float | None


def network_cost(sampler: Sampler, room: int) -> NetworkCost:
    """Compile the program that samples `room` windows, and measure one evaluation of the network.

    Sampling needs the same compilation, so the compilation cache keeps it.

    Args:
      sampler: the sampler.
      room: number of windows that the program has room for.
    """
    program = sampler.program(room)
    network = sampler.graphdef, sampler.device_variables
    abstract = jax.eval_shape(functools.partial(batch_with_one_window, sampler, room))
    bad = sampler.device_bad_parameters
    guidance = _costliest(program)
    step = step_program.lower(
        *network,
        abstract,
        *_step_inputs(sampler, room, abstract=True),
        bad,
        program=_in_steps(program),
        guidance=guidance,
    ).compile()
    # Short sounds, and those of an adaptive solver, are sampled by one program from the start to the end.
    is_stepwise = sampler.runs_in_steps(room) and program.solver.name not in ADAPTIVE
    whole = step if is_stepwise else latents_program.lower(*network, abstract, bad, program=program).compile()
    memory = _memory(sampler, whole)
    free = free_device_memory()
    fits = free is None or memory.temporaries <= free
    return NetworkCost(
        memory=memory,
        at_once=program.at_once,
        seconds=_seconds(sampler, room, step, guidance.branches) if fits else None,
    )


def batch_with_one_window(sampler: Sampler, room: int) -> WindowBatch:
    """Return a batch with room for `room` windows of which one is in use.

    The network then computes as many windows as it does at once.
    """
    dims, window, texts = sampler.components.dims, sampler.window, sampler.texts(room)
    first = jnp.zeros(room, jnp.int32)
    text = jnp.ones((texts, dims.text_length, dims.text_dim), jnp.float32)
    text_len = jnp.ones(texts, jnp.int32)
    return WindowBatch(
        keys=jax.random.split(jax.random.key(0), room),
        latent_starts=first,
        weights=jnp.ones((room, window.audio), jnp.float32),
        frame_starts=first,
        conditions=first,
        video=jnp.ones((room * window.video, dims.video_dim), jnp.float32),
        text=text,
        text_len=text_len,
        negative_text=text,
        negative_len=text_len,
        count=jnp.asarray(1, jnp.int32),
        latents=jnp.asarray(window.audio, jnp.int32),
    )


def _step_inputs(
    sampler: Sampler, room: int, *, abstract: bool = False
) -> tuple[Any, np.float32, np.float32]:
    """Return the state x (W, Ta, C) of a solver step, or its shape, and the times of the step."""
    shape = room, sampler.window.audio, sampler.components.dims.audio_dim
    x = jax.ShapeDtypeStruct(shape, jnp.float32) if abstract else jnp.ones(shape, jnp.float32)
    return x, np.float32(0.0), np.float32(1.0)


def _in_steps(program: SamplingProgram) -> SamplingProgram:
    """Return a program with fixed steps, whose numbers of evaluations are known."""
    if program.solver.name not in ADAPTIVE:
        return program
    return dataclasses.replace(program, solver=SolverConfig(name="euler", steps=1))


def _costliest(program: SamplingProgram) -> Guidance:
    """Return the form of guidance that takes the most evaluations of the network."""
    forms = [stretch.guidance for stretch in stretches(program.solver, program.guidance)]
    return max(forms, key=lambda form: form.branches)


def _seconds(sampler: Sampler, room: int, step: Any, branches: int) -> float:
    """Return the time of one evaluation; the first step that runs also prepares the device."""
    batch, program = batch_with_one_window(sampler, room), _in_steps(sampler.program(room))
    solver = program.solver
    elapsed = 0.0
    for _ in range(2):
        # A step takes the memory of its input.
        inputs = jax.block_until_ready(_step_inputs(sampler, room))
        started = time.monotonic()
        jax.block_until_ready(step(sampler.device_variables, batch, *inputs, sampler.device_bad_parameters))
        elapsed = time.monotonic() - started
    return elapsed * solver.steps / (solver.evaluations * branches)


def _memory(sampler: Sampler, compiled: Any) -> ProgramMemory:
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves((sampler.variables, sampler.bad_parameters)))
    # Not every backend analyses its programs.
    if (analysis := compiled.memory_analysis()) is None:
        return ProgramMemory(weights=weights)
    inputs = max(0, analysis.argument_size_in_bytes - weights)
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return ProgramMemory(weights=weights, temporaries=inputs + outputs + analysis.temp_size_in_bytes)
