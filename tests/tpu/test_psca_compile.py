"""The Pallas kernels and the step around them, compiled by the TPU compiler for chips that are not there.

`make test-tpu` fetches libtpu and runs these; `make test` leaves them out.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.tpu_topologies import TOPOLOGIES, compile_on, costs, mesh_of
from flowley_jax.kernels.psca import psca
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.flowley import Constant

pytestmark = pytest.mark.tpu

VMEM = 16 * 2**20
SIZES = {
    "published": {"batch": 32, "audio": 250, "video": 64, "fps": 8.0},
    "44.1 kHz": {"batch": 16, "audio": 345, "video": 64, "fps": 8.0},
    "five minutes": {"batch": 1, "audio": 9375, "video": 2400, "fps": 8.0},
}
HEADS, DIM = 8, 64


def _compiled(generation, size, direction, *, dtype=jnp.bfloat16, **options):
    batch, audio, video, fps = (SIZES[size][name] for name in ("batch", "audio", "video", "fps"))
    settings = {"implementation": "pallas", "window": 0, **options}
    attend = functools.partial(
        psca, video_fps=fps, audio_fps=fps * audio / video, fade_range=4, fade="cosine", **settings
    )

    def both(q, k, v, cotangent, scale):
        out, vjp = jax.vjp(functools.partial(attend, fade_scale=scale), q, k, v)
        return out if direction == "forward" else vjp(cotangent)

    shapes = [jax.ShapeDtypeStruct((batch, n, HEADS, DIM), dtype) for n in (audio, video, video, audio)]
    return compile_on(generation, jax.jit(both), [*shapes, jax.ShapeDtypeStruct((), jnp.float32)])


@pytest.mark.parametrize("generation", TOPOLOGIES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ("published", {}),
        ("published", {"dtype": jnp.float32}),
        ("44.1 kHz", {}),
        ("five minutes", {"mask_floor": 0.0}),
        ("five minutes", {}),
    ],
)
def test_the_kernels_compile_and_keep_the_mask_out_of_memory(generation, direction, size, options):
    compiled = _compiled(generation, size, direction, **options)
    text = compiled.as_text()
    names = {"forward": ["psca_forward"], "backward": ["psca_backward_audio", "psca_backward_video"]}
    for name in names[direction]:
        assert f"{name}" in text
    audio, video = SIZES[size]["audio"], SIZES[size]["video"]
    assert not re.search(rf"\[(\d+,)*{audio},{video}\]|\[(\d+,)*{video},{audio}\]", text)
    assert 0 < costs(compiled)["kernel_vmem_bytes"] < VMEM


@pytest.mark.parametrize("generation", TOPOLOGIES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_mask_moves_no_bytes(generation, direction):
    masked = costs(_compiled(generation, "published", direction))
    for implementation in ("pallas", "xla"):
        plain = costs(_compiled(generation, "published", direction, window=-1, implementation=implementation))
        assert masked["hbm_bytes"] <= 1.02 * plain["hbm_bytes"], implementation


@pytest.mark.parametrize("generation", TOPOLOGIES)
def test_the_network_s_loss_and_gradient_compile_over_four_chips(generation):
    """The published network, its batch over `data` and its heads over `tensor`."""
    mesh = mesh_of(generation, (2, 2), ("data", "tensor"))
    config = ModelConfig(single_depth=2, multi_depth=1, dtype="bfloat16")
    model = nnx.eval_shape(lambda: Flowley(config, rngs=nnx.Rngs(0)))
    graphdef, parameters, constants = nnx.split(model, nnx.Param, Constant)

    def loss(parameters, constants, latent, video, text, text_len, t):
        network = nnx.merge(graphdef, parameters, constants)
        return jnp.mean(network(latent, video, text, text_len, t).astype(jnp.float32) ** 2)

    def placed(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    batch = [
        jax.ShapeDtypeStruct((16, 250, 20), jnp.float32),
        jax.ShapeDtypeStruct((16, 64, 768), jnp.float32),
        jax.ShapeDtypeStruct((16, 77, 1024), jnp.float32),
        jax.ShapeDtypeStruct((16,), jnp.int32),
        jax.ShapeDtypeStruct((16,), jnp.float32),
    ]
    with jax.set_mesh(mesh):
        compiled = (
            jax.jit(jax.value_and_grad(loss))
            .lower(
                placed(parameters, PartitionSpec()),
                placed(constants, PartitionSpec()),
                *placed(batch, PartitionSpec("data")),
            )
            .compile()
        )
    text = compiled.as_text()
    for name in ("psca_forward", "psca_backward_audio", "psca_backward_video"):
        assert f"{name}" in text
