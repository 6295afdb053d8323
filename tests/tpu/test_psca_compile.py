"""The Pallas kernels and the step around them, compiled by the TPU compiler for chips that are not there.

`make test-tpu` fetches libtpu and runs these; `make test` leaves them out.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks.tpu_topologies import TOPOLOGIES, compile_on, costs, mesh_of
from flowley_jax.config import ExperimentConfig
from flowley_jax.kernels.psca import psca
from flowley_jax.model import ModelConfig
from flowley_jax.training.optimizer import make_optimizer
from flowley_jax.training.sharding import AXES, Layout
from flowley_jax.training.state import abstract_state
from flowley_jax.training.step import make_train_step

pytestmark = pytest.mark.tpu

VMEM = 16 * 2**20
SIZES = {
    "published": {"batch": 32, "audio": 250, "video": 64, "fps": 8.0},
    "44.1 kHz": {"batch": 16, "audio": 345, "video": 64, "fps": 8.0},
    "five minutes": {"batch": 1, "audio": 9375, "video": 2400, "fps": 8.0},
}
WIDE = {"batch": 2, "audio": 345, "video": 512, "fps": 8.0}
HEADS, DIM = 8, 64
# The compiler's searches for the fastest convolution of thousands of positions take it minutes each.
QUICKLY = {"exec_time_optimization_effort": -1.0}


def _compiled(generation, size, direction, *, dtype=jnp.bfloat16, heads=HEADS, dim=DIM, **options):
    batch, audio, video, fps = (
        {**SIZES, "wide": WIDE}[size][name] for name in ("batch", "audio", "video", "fps")
    )
    settings = {"implementation": "pallas", "window": 0, **options}
    attend = functools.partial(
        psca, video_fps=fps, audio_fps=fps * audio / video, fade_range=4, fade="cosine", **settings
    )

    def both(q, k, v, cotangent, scale):
        out, vjp = jax.vjp(functools.partial(attend, fade_scale=scale), q, k, v)
        return out if direction == "forward" else vjp(cotangent)

    shapes = [jax.ShapeDtypeStruct((batch, n, heads, dim), dtype) for n in (audio, video, video, audio)]
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
        assert name in text
    audio, video = SIZES[size]["audio"], SIZES[size]["video"]
    assert not re.search(rf"\[(\d+,)*{audio},{video}\]|\[(\d+,)*{video},{audio}\]", text)
    assert 0 < costs(compiled)["kernel_vmem_bytes"] < VMEM


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("heads", "dim", "dtype"), [(24, 64, jnp.float32), (24, 128, jnp.bfloat16)])
def test_wide_models_compile_with_small_tiles(direction, heads, dim, dtype):
    compiled = _compiled("v5e", "wide", direction, dtype=dtype, heads=heads, dim=dim)
    assert 0 < costs(compiled)["kernel_vmem_bytes"] < VMEM


@pytest.mark.parametrize("generation", TOPOLOGIES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_mask_moves_no_bytes(generation, direction):
    masked = costs(_compiled(generation, "published", direction))
    plain = costs(_compiled(generation, "published", direction, window=-1, implementation="xla"))
    assert masked["hbm_bytes"] <= 1.02 * plain["hbm_bytes"]


@pytest.mark.parametrize(
    ("generation", "size"),
    [*(("v5e", size) for size in SIZES), ("v5p", "published"), ("v6e", "published")],
)
def test_the_training_step_compiles_over_four_chips(generation, size):
    """One block of each kind at the published width, batch over `data` and heads over `tensor`."""
    model = ModelConfig(
        single_depth=1,
        multi_depth=1,
        dtype="bfloat16",
        audio_dim=40 if size == "44.1 kHz" else 20,
        mask_floor=0.0 if size == "five minutes" else 1e-6,
    )
    config = ExperimentConfig(model=model)
    optimizer = make_optimizer(config.optim, config.train.steps)
    layout = Layout(mesh_of(generation, (2, 1, 2), AXES), model.dtype)
    graphdef, state = abstract_state(config, optimizer, layout)
    step = make_train_step(config, graphdef, optimizer, layout)
    batch = _batch(size, model)
    lowered = step.lower(state, layout.placed(batch, dict.fromkeys(batch, layout.batch)))
    text = lowered.compile(compiler_options=QUICKLY).as_text()
    for name in ("psca_forward", "psca_backward_audio", "psca_backward_video"):
        assert name in text


def _batch(size, model):
    audio, video, clips = (SIZES[size][name] for name in ("audio", "video", "batch"))
    clips = max(2, clips)
    shapes = {
        "audio_mean": (audio, model.audio_dim),
        "audio_std": (audio, model.audio_dim),
        "video_features": (video, model.video_dim),
        "text_features": (77, model.text_dim),
    }
    batch = {name: jax.ShapeDtypeStruct((clips, *shape), jnp.float32) for name, shape in shapes.items()}
    batch["has_video"] = jax.ShapeDtypeStruct((clips,), jnp.bool_)
    return {**batch, "text_len": jax.ShapeDtypeStruct((clips,), jnp.int32)}
