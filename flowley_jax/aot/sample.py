"""Compile guided sampling for a device that this machine does not have, and estimate its cost on it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flowley_jax.aot.estimate import Estimate, seconds_at, timed_compile
from flowley_jax.aot.topologies import topology_devices
from flowley_jax.common.devices import MESH_AXES
from flowley_jax.config import ExperimentConfig
from flowley_jax.flow.sampler import SamplingProgram, latents_program, whole_clips
from flowley_jax.flow.stretches import stretches
from flowley_jax.model.flowley import abstract_model
from flowley_jax.training.flops import configured_lengths, velocity_flops


def compile_sampling(config: ExperimentConfig, topology: str, *, clips: int, mfu: float) -> Estimate:
    """Compile the sampler's program, the whole solution of the flow, for one device of a topology.

    Args:
      topology: such as v5e:2x2, or cpu.
      clips: number of clips that are sampled together.
      mfu: share of the device's peak that the network's FLOPs are assumed to reach.

    Raises:
      FlowleyError: the topology does not exist, or the solver chooses its own steps.
      DoesNotFitError: the program needs more memory than a device has.
    """
    devices, spec = topology_devices(topology)
    mesh = _one_device_mesh(devices[0])
    lengths, guidance = configured_lengths(config), config.sample.guidance_form
    graphdef, arguments = _abstract_arguments(config, clips, NamedSharding(mesh, PartitionSpec()))
    # Diffrax computes with arrays while it is traced, which devices that do not exist cannot do.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = latents_program.lower(
            graphdef,
            *arguments,
            program=SamplingProgram(
                video_length=lengths[1],
                guidance=guidance,
                solver=config.sample.solver,
                at_once=clips,
            ),
        )
        compiled, compile_seconds = timed_compile(lowered, topology)
    memory = compiled.memory_analysis()
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[0]))
    solver = config.sample.solver
    flops = (solver.evaluations // solver.steps) * sum(
        (len(stretch.times) - 1) * velocity_flops(config.model, stretch.guidance.branches * clips, lengths)
        for stretch in stretches(solver, guidance)
    )
    return Estimate(
        topology=topology,
        devices=1,
        mesh=dict(mesh.shape),
        clips=clips,
        tokens=clips * sum(lengths),
        memory={
            "parameters": weights,
            "features": memory.argument_size_in_bytes - weights,
            "temporaries": memory.temp_size_in_bytes,
            "other": memory.output_size_in_bytes + memory.generated_code_size_in_bytes,
        },
        device_memory=spec.memory if spec else 0,
        flops=flops,
        collectives={},
        step_seconds=seconds_at(mfu, flops, 1, spec),
        compile_seconds=compile_seconds,
    )


def _one_device_mesh(device: Any) -> Mesh:
    return Mesh(np.asarray(device).reshape(1, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _abstract_arguments(config: ExperimentConfig, clips: int, sharding: NamedSharding) -> tuple[Any, Any]:
    graphdef, parameters, constants = abstract_model(config.model)
    audio, video, text = configured_lengths(config)
    batch = jax.eval_shape(
        functools.partial(whole_clips, audio_length=audio),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), clips)),
        jax.ShapeDtypeStruct((clips, video, config.model.video_dim), jnp.float32),
        jax.ShapeDtypeStruct((clips, text, config.model.text_dim), jnp.float32),
        jax.ShapeDtypeStruct((clips,), jnp.int32),
    )
    arguments = ((parameters, constants), batch)
    return graphdef, jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), arguments
    )
