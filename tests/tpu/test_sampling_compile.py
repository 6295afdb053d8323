"""A solver step of long sounds, compiled by the TPU compiler without a TPU: make test-tpu."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.tpu_topologies import TOPOLOGIES
from flowley_jax.aot.collectives import count_collectives
from flowley_jax.aot.topologies import topology_devices
from flowley_jax.common.devices import BATCH_AXES
from flowley_jax.flow.guidance import Guidance
from flowley_jax.flow.sampler import SamplingProgram, WindowBatch, step_program
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.model import ModelConfig
from flowley_jax.model.flowley import abstract_model

pytestmark = pytest.mark.tpu

AT_ONCE = 8
AUDIO, VIDEO, TEXT = 250, 64, 77
# One block of each kind at the published width.
MODEL = ModelConfig(single_depth=1, multi_depth=1, dtype="bfloat16")


def _compiled(room):
    """Compile the step for a batch with room for so many windows, over four chips."""
    devices, _ = topology_devices(TOPOLOGIES["v5e"])
    mesh = Mesh(np.asarray(devices).reshape(-1), BATCH_AXES[:1])
    graphdef, *variables = abstract_model(MODEL)
    shapes = {
        "keys": jax.eval_shape(lambda: jax.random.split(jax.random.key(0), room)),
        **dict.fromkeys(("latent_starts", "frame_starts", "conditions"), _shape(room, dtype=jnp.int32)),
        "weights": _shape(room, AUDIO),
        "video": _shape(room * VIDEO, MODEL.video_dim),
        "text": _shape(AT_ONCE, TEXT, MODEL.text_dim),
        "text_len": _shape(AT_ONCE, dtype=jnp.int32),
        **dict.fromkeys(("negative_text", "negative_len"), None),
        **dict.fromkeys(("count", "latents"), _shape(dtype=jnp.int32)),
    }
    arguments = (
        tuple(variables),
        WindowBatch(**shapes),
        _shape(room, AUDIO, MODEL.audio_dim),
        _shape(),
        _shape(),
    )
    whole = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), arguments
    )
    program = SamplingProgram(
        video_length=VIDEO,
        guidance=Guidance(scale=4.5),
        solver=SolverConfig(name="euler", steps=25),
        at_once=AT_ONCE,
        mesh=mesh,
    )
    # Diffrax computes with arrays while it is traced, which devices that do not exist cannot do.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = step_program.lower(graphdef, *placed, program=program, guidance=program.guidance)
        return lowered.compile()


def _shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_windows_are_divided_and_memory_hardly_grows_with_their_number():
    few, many = _compiled(AT_ONCE), _compiled(32 * AT_ONCE)
    assert "psca_forward" in many.as_text()
    collectives = count_collectives(many.as_text())
    assert collectives == count_collectives(few.as_text())
    # For every eight windows, only their velocities travel between the chips, once or twice.
    velocities = AT_ONCE * AUDIO * MODEL.audio_dim * 4
    assert 0 < sum(size for _, size in collectives.values()) <= 2 * velocities
    growth = many.memory_analysis().temp_size_in_bytes - few.memory_analysis().temp_size_in_bytes
    # The latents and their velocities; padded to the tiles of a TPU, these are 128 channels wide.
    assert growth <= 4 * 31 * AT_ONCE * AUDIO * 128 * 4
