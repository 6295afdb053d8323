"""Compile the training step for devices that this machine does not have, and estimate its cost on them."""

from typing import Any

from flowley_jax.aot.collectives import count_collectives
from flowley_jax.aot.estimate import Estimate, device_bytes, seconds_at, timed_compile
from flowley_jax.aot.topologies import topology_devices
from flowley_jax.config import ExperimentConfig
from flowley_jax.training.flops import abstract_batch, configured_lengths, lower_step, step_flops
from flowley_jax.training.sharding import make_layout
from flowley_jax.training.state import StepConfig, TrainState, abstract_state


def compile_step(config: ExperimentConfig, topology: str, *, slices: int, mfu: float) -> Estimate:
    """Compile the real training step for a topology and return what it needs.

    Args:
      topology: such as v5e:4x4, or cpu.
      slices: number of such slices, connected by the data-centre network.
      mfu: share of the devices' peak that the network's FLOPs are assumed to reach.

    Raises:
      FlowleyError: the topology does not exist, or the mesh does not fit it.
      DoesNotFitError: the step needs more memory than a device has.
    """
    devices, spec = topology_devices(topology, slices=slices)
    layout = make_layout(config.mesh, config.model, batch_size=config.data.batch_size, devices=devices)
    lengths = configured_lengths(config)
    compiled, compile_seconds = timed_compile(lower_step(config, layout, lengths), topology)
    flops = step_flops(config, lengths)
    state = abstract_state(StepConfig.from_experiment(config), layout)
    return Estimate(
        topology=topology if slices == 1 else f"{slices} × {topology}",
        devices=len(devices),
        mesh=dict(layout.mesh.shape),
        clips=config.data.batch_size,
        tokens=config.data.batch_size * sum(lengths),
        memory=_memory(state, abstract_batch(config, layout, lengths), compiled.memory_analysis()),
        device_memory=spec.memory if spec else 0,
        flops=flops,
        collectives=count_collectives(compiled.as_text()),
        step_seconds=seconds_at(mfu, flops, len(devices), spec),
        compile_seconds=compile_seconds,
    )


def _memory(state: TrainState, batch: Any, analysis: Any) -> dict[str, int]:
    return {
        "parameters": device_bytes((state.parameters, state.head)),
        "optimiser": device_bytes(state.optimizer),
        "averages": device_bytes(state.averages),
        **({"frozen": device_bytes(state.frozen)} if state.frozen else {}),
        "batch": device_bytes(batch),
        "temporaries": analysis.temp_size_in_bytes,
        # The new state is written over the old one, which is donated.
        "other": analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.generated_code_size_in_bytes,
    }
