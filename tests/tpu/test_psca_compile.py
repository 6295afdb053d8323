"""The PSCA kernels and the training step around them, compiled by the TPU compiler without a TPU.

`make test-tpu` installs libtpu and runs these; `make test` leaves them out.
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from benchmarks.tpu_topologies import TOPOLOGIES, compile_on, costs
from flowley_jax.aot.topologies import topology_devices
from flowley_jax.config import DataConfig, ExperimentConfig, MeshConfig
from flowley_jax.kernels.psca import SoftMask, psca
from flowley_jax.model import ModelConfig
from flowley_jax.training.flops import lower_step
from flowley_jax.training.sharding import make_layout

pytestmark = pytest.mark.tpu


class Size(NamedTuple):
    """Clips of a batch, and their lengths in audio positions and video frames."""

    batch: int
    audio: int
    video: int


SIZES = {
    "published": Size(32, 250, 64),
    "44.1 kHz": Size(16, 345, 64),
    "five minutes": Size(1, 9375, 2400),
}
WIDE = Size(2, 345, 512)
HEADS, DIM, VIDEO_FPS = 8, 64, 8.0
VMEM = 16 * 2**20
# Otherwise the compiler spends minutes on each search for the fastest convolution of thousands of positions.
COMPILE_FAST = {"exec_time_optimization_effort": -1.0}


@functools.cache
def _compiled(
    generation, size, direction, *, dtype=jnp.bfloat16, heads=HEADS, dim=DIM, implementation="pallas", **mask
):
    settings = {"window": 0, "fade_range": 4, "fade": "cosine", **mask}
    soft_mask = SoftMask(video_fps=VIDEO_FPS, audio_fps=VIDEO_FPS * size.audio / size.video, **settings)
    attend = functools.partial(psca, mask=soft_mask, implementation=implementation)

    def run(q, k, v, dout, fade_scale):
        out, vjp = jax.vjp(functools.partial(attend, fade_scale=fade_scale), q, k, v)
        return out if direction == "forward" else vjp(dout)

    lengths = (size.audio, size.video, size.video, size.audio)
    arrays = [jax.ShapeDtypeStruct((size.batch, length, heads, dim), dtype) for length in lengths]
    return compile_on(generation, jax.jit(run), [*arrays, jax.ShapeDtypeStruct((), jnp.float32)])


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("generation", "name", "options"),
    [
        *((generation, "published", {}) for generation in TOPOLOGIES),
        *((generation, "five minutes", {"floor": 0.0}) for generation in TOPOLOGIES),
        ("v5e", "published", {"dtype": jnp.float32}),
        ("v5e", "44.1 kHz", {}),
        ("v5e", "five minutes", {}),
    ],
)
def test_the_kernels_compile_and_never_store_the_whole_mask(generation, direction, name, options):
    size = SIZES[name]
    compiled = _compiled(generation, size, direction, **options)
    text = compiled.as_text()
    kernels = {"forward": ["psca_forward"], "backward": ["psca_backward_audio", "psca_backward_video"]}
    for kernel in kernels[direction]:
        assert kernel in text
    audio, video = size.audio, size.video
    assert not re.search(rf"\[(\d+,)*{audio},{video}\]|\[(\d+,)*{video},{audio}\]", text)
    assert 0 < costs(compiled)["kernel_vmem_bytes"] < VMEM


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("heads", "dim", "dtype"), [(24, 64, jnp.float32), (24, 128, jnp.bfloat16)])
def test_wide_models_compile_with_small_tiles(direction, heads, dim, dtype):
    compiled = _compiled("v5e", WIDE, direction, dtype=dtype, heads=heads, dim=dim)
    assert 0 < costs(compiled)["kernel_vmem_bytes"] < VMEM


@pytest.mark.parametrize("generation", TOPOLOGIES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_mask_adds_no_memory_traffic(generation, direction):
    size = SIZES["published"]
    masked = costs(_compiled(generation, size, direction))
    plain = costs(_compiled(generation, size, direction, window=-1, implementation="xla"))
    assert masked["hbm_bytes"] <= 1.02 * plain["hbm_bytes"]


@pytest.mark.parametrize(
    ("generation", "name"),
    [*(("v5e", name) for name in SIZES), ("v5p", "published"), ("v6e", "published")],
)
def test_the_training_step_compiles_over_four_chips(generation, name):
    """One block of each kind at the published width, the batch over `data` and the heads over `tensor`."""
    size = SIZES[name]
    config = ExperimentConfig(
        data=DataConfig(batch_size=max(2, size.batch)),
        mesh=MeshConfig(data=2, tensor=2),
        model=ModelConfig(
            single_depth=1,
            multi_depth=1,
            dtype="bfloat16",
            audio_dim=40 if name == "44.1 kHz" else 20,
            mask_floor=0.0 if name == "five minutes" else 1e-6,
        ),
    )
    devices, _ = topology_devices(TOPOLOGIES[generation])
    layout = make_layout(config.mesh, config.model, batch_size=config.data.batch_size, devices=devices)
    lowered = lower_step(config, layout, (size.audio, size.video, 77))
    text = lowered.compile(compiler_options=COMPILE_FAST).as_text()
    for kernel in ("psca_forward", "psca_backward_audio", "psca_backward_video"):
        assert kernel in text
