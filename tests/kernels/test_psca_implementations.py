"""Both implementations of PSCA against the definition in float64: outputs, gradients, transformations.

The Pallas kernels run in the interpreter, whose memory past the end of an array is NaN; tiles are smaller
than those of a TPU, so that short sequences have several, and ragged ones at the end.
"""

import functools
import math

import jax
import jax.numpy as jnp
import launching
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from psca_definition import attend_and_differentiate

from flowley_jax.errors import FlowleyError
from flowley_jax.kernels.psca import api, psca
from flowley_jax.kernels.psca.mask import aligned_frames
from flowley_jax.kernels.psca.plan import VMEM_BUDGET, Plan, tile_bytes, tile_sizes
from flowley_jax.model.attention import attention

IMPLEMENTATIONS = ("xla", "pallas")
NAMES = ("out", "dq", "dk", "dv")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    _use_tiles(monkeypatch, 24, 16)


def _use_tiles(monkeypatch, audio, video):
    monkeypatch.setattr(
        api,
        "tile_sizes",
        lambda audio_length, video_length, **_: (min(audio, audio_length), min(video, video_length)),
    )


def _inputs(seed, audio_length, video_length, *, batch=2, heads=2, dim=8, dtype=jnp.float32):
    draw = np.random.default_rng(seed)
    lengths = (audio_length, video_length, video_length, audio_length)
    return [jnp.asarray(draw.normal(size=(batch, n, heads, dim)), dtype) for n in lengths]


def _settings(audio_length, video_length, *, fps=8.0, **changes):
    base = {
        "fade_scale": 0.7,
        "video_fps": fps,
        "audio_fps": fps * audio_length / video_length,
        "window": 0,
        "fade_range": 4,
        "fade": "cosine",
        "mask_floor": 1e-6,
    }
    return {**base, **changes}


def _both(implementation, q, k, v, cotangent, **options):
    """Output and gradients, jitted."""
    if implementation == "pallas":
        options.setdefault("interpret", True)

    # XLA's older emitter of fusions, which compiles the other tests, makes NaN of exp(-inf) in some of these.
    @functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})
    def run(q, k, v, cotangent):
        out, vjp = jax.vjp(functools.partial(psca, implementation=implementation, **options), q, k, v)
        return out, *vjp(cotangent)

    return run(q, k, v, cotangent)


def _assert_close(found, expected, tolerance):
    """Each to `tolerance` of what its largest entry is in general: gradients can all be almost zero."""
    for name, a, b in zip(NAMES, found, expected, strict=True):
        error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
        assert error <= tolerance * max(1.0, np.abs(np.asarray(b, np.float64)).max()), (name, error)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=12, deadline=None)
@given(
    audio_length=st.one_of(st.integers(1, 60), st.sampled_from([97, 250, 307])),
    video_length=st.one_of(st.integers(1, 40), st.sampled_from([64, 77, 101])),
    window=st.integers(-1, 3),
    fade_range=st.integers(1, 6),
    fade=st.sampled_from(["cosine", "linear", "gaussian", "none"]),
    fade_scale=st.floats(0.0, 1.0, width=32),
    fps=st.sampled_from([4.0, 8.0, 25.0]),
    floor=st.sampled_from([1e-6, 1e-2, 0.0]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_definition_in_float64(
    implementation, audio_length, video_length, window, fade_range, fade, fade_scale, fps, floor, seed
):
    options = _settings(
        audio_length,
        video_length,
        fps=fps,
        window=window,
        fade_range=fade_range,
        fade=fade,
        fade_scale=fade_scale,
        mask_floor=floor,
    )
    inputs = _inputs(seed, audio_length, video_length)
    _assert_close(
        _both(implementation, *inputs, **options), attend_and_differentiate(*inputs, **options), 2e-5
    )


@pytest.mark.parametrize("tiles", [(8, 8), (16, 128), (256, 8), (256, 512)])
@pytest.mark.parametrize("floor", [1e-6, 0.0])
def test_tiles_change_nothing(monkeypatch, tiles, floor):
    _use_tiles(monkeypatch, *tiles)
    inputs, options = _inputs(0, 75, 37), _settings(75, 37, mask_floor=floor, window=1)
    _assert_close(_both("pallas", *inputs, **options), attend_and_differentiate(*inputs, **options), 2e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("floor", [1e-6, 0.0])
def test_bfloat16(implementation, floor):
    inputs = _inputs(1, 75, 37, dtype=jnp.bfloat16)
    options = _settings(75, 37, mask_floor=floor, window=1)
    found = _both(implementation, *inputs, **options)
    assert {array.dtype.name for array in found} == {"bfloat16"}
    _assert_close(found, attend_and_differentiate(*inputs, **options), 2e-2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_hard_cut_without_window_returns_the_aligned_frame(implementation):
    q, k, v, cotangent = _inputs(2, 91, 40)
    options = _settings(91, 40, fade_scale=0.0, mask_floor=0.0)
    out, dq, dk, dv = _both(implementation, q, k, v, cotangent, **options)
    frames = aligned_frames(91, 40, video_fps=options["video_fps"], audio_fps=options["audio_fps"])
    np.testing.assert_array_equal(out, v[:, frames])
    expected = np.zeros(v.shape)
    np.add.at(expected, (slice(None), frames), np.asarray(cotangent))
    np.testing.assert_allclose(dv, expected, atol=1e-6)
    # Exactly zero but for the rounding of two dot products of the same numbers in another order.
    assert np.abs(dq).max() < 5e-6 and np.abs(dk).max() < 5e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("floor", [1e-6, 0.0])
@pytest.mark.parametrize("window", [-1, 40])
def test_a_window_over_everything_is_plain_attention(implementation, floor, window):
    q, k, v, cotangent = _inputs(3, 70, 40)
    found = _both(implementation, q, k, v, cotangent, **_settings(70, 40, window=window, mask_floor=floor))
    out, vjp = jax.vjp(attention, q, k, v)
    _assert_close(found, (out, *vjp(cotangent)), 3e-6)


@pytest.mark.parametrize(
    ("implementation", "rows", "read"),
    [
        ("xla", slice(64, 128), slice(64 - 3, 128 + 3)),  # a block of rows, and what its windows cover
        ("pallas", slice(96, 120), slice(80, 128)),  # a tile of rows, and the tiles of frames it visits
    ],
)
def test_the_hard_cut_reads_nothing_outside_the_windows(implementation, rows, read):
    q, k, v, _ = _inputs(4, 200, 200)
    options = _settings(200, 200, window=1, fade_range=2, mask_floor=0.0)
    kept = np.zeros(200, bool)
    kept[read] = True
    spoiled = [jnp.where(kept[None, :, None, None], x, jnp.nan) for x in (k, v)]
    run = functools.partial(
        psca, implementation=implementation, interpret=implementation == "pallas", **options
    )
    np.testing.assert_array_equal(run(q, k, v)[:, rows], run(q, *spoiled)[:, rows])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_repeats_are_equal_bit_for_bit(implementation):
    inputs, options = _inputs(5, 75, 37), _settings(75, 37)
    first, second = (_both(implementation, *inputs, **options) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scan_over_depth_with_remat_and_traced_fade_scale(implementation):
    q, k, v, cotangent = _inputs(6, 40, 20)
    scales = jnp.linspace(1.0, 0.0, 3)
    options = _settings(40, 20)
    del options["fade_scale"]

    def deep(one, q, k, v):
        @jax.checkpoint
        def block(x, scale):
            return x + one(x, k, v, fade_scale=scale), None

        return jax.lax.scan(block, q, scales)[0]

    def unrolled(q, k, v):
        for scale in scales:
            q = q + psca(q, k, v, fade_scale=float(scale), implementation="xla", **options)
        return q

    one = functools.partial(
        psca, implementation=implementation, interpret=implementation == "pallas", **options
    )
    found, vjp = jax.vjp(jax.jit(functools.partial(deep, one)), q, k, v)
    expected, expected_vjp = jax.vjp(unrolled, q, k, v)
    _assert_close((found, *vjp(cotangent)), (expected, *expected_vjp(cotangent)), 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_over_batches_and_fade_scales(implementation):
    stacks = [jnp.stack(arrays) for arrays in zip(*(_inputs(seed, 30, 17) for seed in range(3)), strict=True)]
    scales = jnp.asarray([1.0, 0.4, 0.0])
    options = _settings(30, 17)
    del options["fade_scale"]

    def loss(q, k, v, cotangent, scale):
        out = psca(
            q,
            k,
            v,
            fade_scale=scale,
            implementation=implementation,
            interpret=implementation == "pallas",
            **options,
        )
        return jnp.sum(out * cotangent)

    value = jax.vmap(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*stacks, scales)
    for index, scale in enumerate(scales):
        inputs = [stack[index] for stack in stacks]
        out, *gradients = attend_and_differentiate(*inputs, fade_scale=float(scale), **options)
        np.testing.assert_allclose(value[0][index], np.sum(out * np.asarray(inputs[3])), rtol=1e-4)
        _assert_close((out, *(g[index] for g in value[1])), (out, *gradients), 2e-5)


def test_second_derivatives_of_the_kernels_are_refused():
    q, k, v, _ = _inputs(7, 10, 6)
    options = _settings(10, 6, implementation="pallas", interpret=True)

    def slope(q):
        return jnp.sum(jax.grad(lambda q: jnp.sum(psca(q, k, v, **options) ** 2))(q))

    with pytest.raises(NotImplementedError, match="second derivatives of psca"):
        jax.grad(slope)(q)


@pytest.mark.parametrize("semantics", ["races", "shuffled"])
def test_in_the_model_of_a_tpu(semantics):
    """Memory, semaphores and the order of parallel grid steps as on the chip; a race would raise."""
    chosen = {
        "races": pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan"),
        "shuffled": pltpu.InterpretParams(random_seed=3, uninitialized_memory="nan"),
    }[semantics]
    inputs, options = _inputs(8, 40, 20, batch=1), _settings(40, 20, mask_floor=0.0)
    found = _both("pallas", *inputs, **options, interpret=chosen)
    _assert_close(found, attend_and_differentiate(*inputs, **options), 2e-5)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from flowley_jax.kernels.psca import psca
draw = np.random.default_rng(0)
q, k, v, c = (jnp.asarray(draw.normal(size=(4, n, 4, 8)), jnp.float32) for n in (30, 17, 17, 30))
options = dict(fade_scale=0.7, video_fps=8.0, audio_fps=8.0 * 30 / 17, window=0, fade_range=4, fade="cosine")
def run(implementation):
    def both(q, k, v, c):
        interpret = implementation == "pallas"
        f = lambda q, k, v: psca(q, k, v, **options, implementation=implementation, interpret=interpret)
        out, vjp = jax.vjp(f, q, k, v)
        return out, *vjp(c)
    return jax.jit(both)
expected = run("xla")(q, k, v, c)
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"), None, "tensor", None))
with jax.set_mesh(mesh):
    split = [jax.device_put(x, spec) for x in (q, k, v, c)]
    compiled = run("pallas").lower(*split).compile()
    found = compiled(*split)
for a, b in zip(found, expected):
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert a.sharding.is_equivalent_to(spec, 4), a.sharding
text = compiled.as_text()
assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
with jax.set_mesh(mesh):
    chosen = psca(q[:3], k[:3], v[:3], **options, interpret=True)
    np.testing.assert_allclose(chosen, expected[0][:3], atol=1e-5)
    try:
        run("pallas")(q[:3], k[:3], v[:3], c[:3])
    except Exception as error:
        print(error)
"""


def test_split_over_eight_devices_without_an_exchange():
    printed = launching.run_script(SHARDED, devices=8)
    assert "batch 3 cannot be split over 4 devices of data×fsdp" in printed


def test_a_named_implementation_never_falls_back():
    inputs = _inputs(9, 10, 6)[:3]
    with pytest.raises(FlowleyError, match="the kernels are for TPU, the platform is cpu"):
        psca(*inputs, **_settings(10, 6), implementation="pallas")
    halves = [x.astype(jnp.float16) for x in inputs]
    with pytest.raises(FlowleyError, match="of one type, float32 or bfloat16, not float16"):
        psca(*halves, **_settings(10, 6), implementation="pallas", interpret=True)


def test_the_default_takes_xla_here_and_says_why(caplog):
    api._log_once.cache_clear()
    inputs = _inputs(10, 10, 6)[:3]
    with caplog.at_level("DEBUG", logger="flowley_jax"):
        out = psca(*inputs, **_settings(10, 6))
        psca(*inputs, **_settings(10, 6))
    np.testing.assert_array_equal(out, psca(*inputs, **_settings(10, 6), implementation="xla"))
    assert [record.getMessage() for record in caplog.records] == [
        "psca: XLA, because the kernels are for TPU, the platform is cpu"
    ]


@given(
    audio_length=st.integers(1, 20_000),
    video_length=st.integers(1, 20_000),
    heads=st.integers(1, 32),
    dim=st.sampled_from([32, 64, 128]),
    itemsize=st.sampled_from([2, 4]),
    hard_cut=st.booleans(),
)
def test_tiles_fit_the_memory_and_the_tiling_rule(audio_length, video_length, heads, dim, itemsize, hard_cut):
    tiles = tile_sizes(audio_length, video_length, width=heads * dim, itemsize=itemsize, hard_cut=hard_cut)
    if tiles is None:
        assert heads * dim > 2048
        return
    audio, video = tiles
    assert audio == audio_length or audio % 8 == 0
    assert video == video_length or video % 128 == 0
    assert tile_bytes(audio, video, width=heads * dim, itemsize=itemsize) <= VMEM_BUDGET


def test_heads_too_wide_for_the_memory_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(api, "tile_sizes", tile_sizes)
    q, k, v, _ = _inputs(11, 20, 200, batch=1, heads=64, dim=128)
    with pytest.raises(FlowleyError, match="no tile of 64 heads of 128 in float32 fits"):
        psca(q, k, v, **_settings(20, 200), implementation="pallas", interpret=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fade_range": 0}, "fade_range=0 must be below 16777216 frames, the latter at least 1"),
        ({"window": 2**40}, "window=1099511627776 and fade_range=4 must be below"),
        ({"fade_scale": -0.5}, r"fade_scale=-0.5 must be in \[0, 1\]"),
        ({"fade_scale": math.nan}, r"fade_scale=nan must be in \[0, 1\]"),
        ({"fade_scale": jnp.ones(4)}, r"fade_scale has shape \(4,\)"),
        ({"video_fps": 0.0}, "video_fps=0.0 must be positive"),
        ({"audio_fps": math.nan}, "audio_fps=nan must be positive"),
        ({"mask_floor": -1e-6}, "mask_floor=-1e-06 must be 0 or a positive number"),
    ],
)
def test_impossible_options_are_named(change, message):
    q, k, v, _ = _inputs(0, 12, 8)
    with pytest.raises(FlowleyError, match=message):
        psca(q, k, v, **_settings(12, 8, **change))


def test_arrays_that_do_not_fit_are_named():
    """Asked of the checks themselves: under pytest jaxtyping would refuse the call before."""
    with pytest.raises(FlowleyError, match=r"scale=.* must be a number, and not traced"):
        api._check_scalars(0.5, jnp.ones(()))
    q, k, v, _ = _inputs(0, 12, 8)
    with pytest.raises(FlowleyError, match=r"q \(12, 2, 8\), k"):
        api._check_shapes(q[0], k, v)
    with pytest.raises(FlowleyError, match="q int32, k float32"):
        api._check_shapes(q.astype(jnp.int32), k, v)
    for keys, values in ((k, v[:, :7]), (k[:, :, :1], v[:, :, :1]), (k[:, :0], v[:, :0])):
        with pytest.raises(FlowleyError, match=r"q \(2, 12, 2, 8\), k .* must be \(B, Ta, H, d\)"):
            api._check_shapes(q, keys, values)


@settings(deadline=None, max_examples=60)
@given(
    audio_length=st.integers(1, 120),
    video_length=st.integers(1, 120),
    audio_tile=st.integers(1, 40),
    video_tile=st.integers(1, 40),
    rate=st.floats(0.2, 8.0),
    reach=st.integers(1, 9),
)
def test_the_hard_cut_visits_the_tiles_that_a_window_touches(
    audio_length, video_length, audio_tile, video_tile, rate, reach
):
    frames = aligned_frames(audio_length, video_length, video_fps=8.0, audio_fps=8.0 * rate)
    plan = Plan(
        audio_length=audio_length, video_length=video_length, num_heads=1, head_dim=1, audio_tile=audio_tile,
        video_tile=video_tile, window=0, fade_range=reach, hard_cut=True, scale=1.0,
        frames=tuple(frames.tolist()), interpret=True,
    )  # fmt: skip
    near = np.abs(np.arange(video_length)[None] - frames[:, None]) <= reach
    touched = {(i // audio_tile, j // video_tile) for i, j in np.argwhere(near).tolist()}

    def pairs(visits):
        runs = enumerate(zip(visits.first, visits.last, strict=True))
        return {(outer, inner) for outer, (first, last) in runs for inner in range(first, last + 1)}

    # A tile of rows reads one run of frames: with no gap in the clock, nothing but what it needs.
    assert touched <= pairs(plan.video_visits())
    if max(np.diff(frames), default=0) <= 1:
        assert touched == pairs(plan.video_visits())
    found = {(inner, outer) for outer, inner in pairs(plan.audio_visits())}
    assert touched <= found
    read = {video for _, video in touched}
    # Frames that no row reads still need one visit, which writes their zero gradient.
    idle = plan.video_tiles - len(read)
    if max(np.diff(frames), default=0) <= 1:
        assert len(found) == len(touched) + idle
