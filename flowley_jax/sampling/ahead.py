"""Guided sampling compiled for a chip that need not be there, and what it will cost on it."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flowley_jax.config import ExperimentConfig
from flowley_jax.model import Flowley
from flowley_jax.model.flowley import Constant
from flowley_jax.sampling.latents import latents_program
from flowley_jax.training.ahead import Estimate, compiled_or_too_large, lengths, velocity_flops
from flowley_jax.training.chips import devices_of
from flowley_jax.training.sharding import AXES


def compile_sampling(config: ExperimentConfig, topology: str, *, clips: int, mfu: float) -> Estimate:
    """Compiles the sampler's program, the whole solution of the flow, for one chip of a topology.

    Args:
      topology: such as v5e:2x2, or cpu.
      clips: that are sampled together.
      mfu: share of the chip's peak that the network's FLOPs are assumed to reach.

    Raises:
      FlowleyError: the topology does not exist, or the solver chooses its own steps.
      DoesNotFitError: the program needs more memory than a chip has.
    """
    devices, chip = devices_of(topology)
    mesh = _mesh(devices[0])
    graphdef, arguments = _arguments(config, clips, NamedSharding(mesh, PartitionSpec()))
    started = time.perf_counter()
    # Diffrax computes while it is traced, which devices that are not there cannot do.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = latents_program.lower(
            graphdef,
            *arguments,
            audio_length=lengths(config)[0],
            guidance=config.sample.guidance,
            solver=config.sample.solver,
        )
        compiled: Any = compiled_or_too_large(lowered, topology)
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[0]))
    branches = 1 if config.sample.guidance < 1.0 else 2
    evaluation = velocity_flops(config.model, branches * clips, lengths(config))
    flops = evaluation * config.sample.solver.evaluations
    return Estimate(
        topology=topology,
        devices=1,
        mesh=dict(mesh.shape),
        clips=clips,
        tokens=clips * sum(lengths(config)),
        memory={
            "parameters": weights,
            "features": memory.argument_size_in_bytes - weights,
            "temporaries": memory.temp_size_in_bytes,
            "other": memory.output_size_in_bytes + memory.generated_code_size_in_bytes,
        },
        chip_memory=chip.memory if chip else 0,
        flops=flops,
        exchanges={},
        step_seconds=flops / (chip.peak_flops * mfu) if chip else 0.0,
        compile_seconds=seconds,
    )


def _mesh(device) -> Mesh:
    return Mesh(np.asarray(device).reshape(1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arguments(config: ExperimentConfig, clips: int, where: NamedSharding):
    model = nnx.eval_shape(lambda: Flowley(config.model, rngs=nnx.Rngs(0)))
    graphdef, parameters, constants = nnx.split(model, nnx.Param, Constant)
    _, video, text = lengths(config)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), clips))
    features = (
        jax.ShapeDtypeStruct((clips, video, config.model.video_dim), jnp.float32),
        jax.ShapeDtypeStruct((clips, text, config.model.text_dim), jnp.float32),
        jax.ShapeDtypeStruct((clips,), jnp.int32),
    )
    arguments = ((parameters, constants), keys, *features)
    return graphdef, jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), arguments
    )
