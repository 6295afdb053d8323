"""The XLA and Pallas implementations of PSCA against the definition in float64.

The Pallas kernels run in the interpreter, whose memory past the end of an array is NaN. Tiles are smaller
than on a TPU, so that short sequences have several, and partial ones at the end.
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
from flowley_jax.kernels.psca import SoftMask, api, pallas_tpu, psca
from flowley_jax.kernels.psca.tiling import VMEM_BUDGET, Tiling, tile_bytes, tile_sizes
from flowley_jax.model.attention import attention

IMPLEMENTATIONS = ("xla", "pallas")
NAMES = ("out", "dq", "dk", "dv")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    _use_tiles(monkeypatch, 24, 16)


def _use_tiles(monkeypatch, audio, video):
    monkeypatch.setattr(
        pallas_tpu,
        "tile_sizes",
        lambda audio_length, video_length, **_: (min(audio, audio_length), min(video, video_length)),
    )


def _inputs(seed, audio_length, video_length, *, batch=2, heads=2, dim=8, dtype=jnp.float32):
    """Return q, k, v and a gradient of the output."""
    draw = np.random.default_rng(seed)
    lengths = (audio_length, video_length, video_length, audio_length)
    return [jnp.asarray(draw.normal(size=(batch, n, heads, dim)), dtype) for n in lengths]


def _mask(audio_length, video_length, *, fps=8.0, **changes) -> SoftMask:
    defaults = {
        "video_fps": fps,
        "audio_fps": fps * audio_length / video_length,
        "window": 0,
        "fade_range": 4,
        "fade": "cosine",
    }
    return SoftMask(**{**defaults, **changes})


def _output_and_gradients(implementation, q, k, v, dout, *, mask, fade_scale=0.7, interpret=True):
    # XLA's older emitter of fusions, which compiles the other tests, makes NaN of exp(-inf) in some of these.
    @functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})
    def run(q, k, v, dout):
        out, vjp = jax.vjp(_attend(implementation, mask, fade_scale=fade_scale, interpret=interpret), q, k, v)
        return out, *vjp(dout)

    return run(q, k, v, dout)


def _attend(implementation, mask, *, interpret=True, **options):
    interpret = interpret if implementation == "pallas" else False
    return functools.partial(psca, mask=mask, implementation=implementation, interpret=interpret, **options)


def _assert_close(actual, expected, tolerance):
    """Compare arrays to `tolerance` of their largest entry, or of 1: gradients can all be almost zero."""
    for name, a, b in zip(NAMES, actual, expected, strict=True):
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
def test_outputs_and_gradients_equal_the_definition_in_float64(
    implementation, audio_length, video_length, window, fade_range, fade, fade_scale, fps, floor, seed
):
    mask = _mask(
        audio_length, video_length, fps=fps, window=window, fade_range=fade_range, fade=fade, floor=floor
    )
    inputs = _inputs(seed, audio_length, video_length)
    actual = _output_and_gradients(implementation, *inputs, mask=mask, fade_scale=fade_scale)
    expected = attend_and_differentiate(*inputs, mask=mask, fade_scale=fade_scale)
    _assert_close(actual, expected, 2e-5)


@pytest.mark.parametrize("tiles", [(8, 8), (16, 128), (256, 8), (256, 512)])
@pytest.mark.parametrize("floor", [1e-6, 0.0])
def test_tile_sizes_do_not_change_the_result(monkeypatch, tiles, floor):
    _use_tiles(monkeypatch, *tiles)
    inputs, mask = _inputs(0, 75, 37), _mask(75, 37, floor=floor, window=1)
    actual = _output_and_gradients("pallas", *inputs, mask=mask)
    _assert_close(actual, attend_and_differentiate(*inputs, mask=mask, fade_scale=0.7), 2e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("floor", [1e-6, 0.0])
def test_bfloat16_inputs_give_bfloat16_results(implementation, floor):
    inputs, mask = _inputs(1, 75, 37, dtype=jnp.bfloat16), _mask(75, 37, floor=floor, window=1)
    actual = _output_and_gradients(implementation, *inputs, mask=mask)
    assert {array.dtype.name for array in actual} == {"bfloat16"}
    _assert_close(actual, attend_and_differentiate(*inputs, mask=mask, fade_scale=0.7), 2e-2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_hard_cut_to_one_frame_returns_the_aligned_frame(implementation):
    q, k, v, dout = _inputs(2, 91, 40)
    mask = _mask(91, 40, floor=0.0)
    out, dq, dk, dv = _output_and_gradients(implementation, q, k, v, dout, mask=mask, fade_scale=0.0)
    frames = mask.aligned_frames(91, 40)
    np.testing.assert_array_equal(out, v[:, frames])
    expected = np.zeros(v.shape)
    np.add.at(expected, (slice(None), frames), np.asarray(dout))
    np.testing.assert_allclose(dv, expected, atol=1e-6)
    # Zero up to the rounding of two dot products of the same numbers in different order.
    assert np.abs(dq).max() < 5e-6 and np.abs(dk).max() < 5e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("floor", [1e-6, 0.0])
@pytest.mark.parametrize("window", [-1, 40])
def test_without_a_mask_or_with_a_window_over_all_frames_it_is_plain_attention(implementation, floor, window):
    q, k, v, dout = _inputs(3, 70, 40)
    actual = _output_and_gradients(
        implementation, q, k, v, dout, mask=_mask(70, 40, window=window, floor=floor)
    )
    out, vjp = jax.vjp(attention, q, k, v)
    _assert_close(actual, (out, *vjp(dout)), 3e-6)


@pytest.mark.parametrize(
    ("implementation", "rows", "read"),
    [
        ("xla", slice(64, 128), slice(64 - 3, 128 + 3)),  # a block of rows, and the frames of its windows
        ("pallas", slice(96, 120), slice(80, 128)),  # a tile of rows, and the video tiles that it reads
    ],
)
def test_the_hard_cut_reads_no_frames_outside_the_windows(implementation, rows, read):
    q, k, v, _ = _inputs(4, 200, 200)
    is_read = np.zeros(200, bool)
    is_read[read] = True
    spoiled = [jnp.where(is_read[None, :, None, None], x, jnp.nan) for x in (k, v)]
    attend = _attend(implementation, _mask(200, 200, window=1, fade_range=2, floor=0.0), fade_scale=0.7)
    np.testing.assert_array_equal(attend(q, k, v)[:, rows], attend(q, *spoiled)[:, rows])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_repeated_calls_are_equal_bit_for_bit(implementation):
    inputs, mask = _inputs(5, 75, 37), _mask(75, 37)
    first, second = (_output_and_gradients(implementation, *inputs, mask=mask) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scan_over_depth_with_remat_and_traced_fade_scale(implementation):
    q, k, v, dout = _inputs(6, 40, 20)
    scales = jnp.linspace(1.0, 0.0, 3)
    mask = _mask(40, 20)
    attend = _attend(implementation, mask)

    def scanned(q, k, v):
        @jax.checkpoint
        def block(x, scale):
            return x + attend(x, k, v, fade_scale=scale), None

        return jax.lax.scan(block, q, scales)[0]

    def unrolled(q, k, v):
        for scale in scales:
            q = q + psca(q, k, v, mask=mask, fade_scale=float(scale), implementation="xla")
        return q

    actual, vjp = jax.vjp(jax.jit(scanned), q, k, v)
    expected, expected_vjp = jax.vjp(unrolled, q, k, v)
    _assert_close((actual, *vjp(dout)), (expected, *expected_vjp(dout)), 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_over_batches_and_fade_scales(implementation):
    stacks = [jnp.stack(arrays) for arrays in zip(*(_inputs(seed, 30, 17) for seed in range(3)), strict=True)]
    scales = jnp.asarray([1.0, 0.4, 0.0])
    mask = _mask(30, 17)
    attend = _attend(implementation, mask)

    def loss(q, k, v, dout, scale):
        return jnp.sum(attend(q, k, v, fade_scale=scale) * dout)

    losses, gradients = jax.vmap(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*stacks, scales)
    for index, scale in enumerate(scales):
        inputs = [stack[index] for stack in stacks]
        out, *expected = attend_and_differentiate(*inputs, mask=mask, fade_scale=float(scale))
        np.testing.assert_allclose(losses[index], np.sum(out * np.asarray(inputs[3])), rtol=1e-4)
        _assert_close((out, *(gradient[index] for gradient in gradients)), (out, *expected), 2e-5)


def test_second_derivatives_of_the_kernels_are_refused():
    q, k, v, _ = _inputs(7, 10, 6)
    attend = _attend("pallas", _mask(10, 6), fade_scale=0.7)

    def slope(q):
        return jnp.sum(jax.grad(lambda q: jnp.sum(attend(q, k, v) ** 2))(q))

    with pytest.raises(FlowleyError, match=r"psca\(implementation='pallas'\) has no second derivatives"):
        jax.grad(slope)(q)


@pytest.mark.parametrize("semantics", ["races", "shuffled"])
def test_the_kernels_in_the_interpreter_that_models_a_tpu(semantics):
    """Memory, semaphores and the order of parallel grid steps are as on the chip; a race would raise."""
    params = {
        "races": pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan"),
        "shuffled": pltpu.InterpretParams(random_seed=3, uninitialized_memory="nan"),
    }[semantics]
    inputs, mask = _inputs(8, 40, 20, batch=1), _mask(40, 20, floor=0.0)
    actual = _output_and_gradients("pallas", *inputs, mask=mask, interpret=params)
    _assert_close(actual, attend_and_differentiate(*inputs, mask=mask, fade_scale=0.7), 2e-5)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from flowley_jax.kernels.psca import SoftMask, psca

draw = np.random.default_rng(0)
q, k, v, dout = (jnp.asarray(draw.normal(size=(4, n, 4, 8)), jnp.float32) for n in (30, 17, 17, 30))
mask = SoftMask(video_fps=8.0, audio_fps=8.0 * 30 / 17, window=0, fade_range=4, fade="cosine")

def output_and_gradients(implementation):
    interpret = implementation == "pallas"
    def attend(q, k, v):
        return psca(q, k, v, mask=mask, fade_scale=0.7, implementation=implementation, interpret=interpret)
    def run(q, k, v, dout):
        out, vjp = jax.vjp(attend, q, k, v)
        return out, *vjp(dout)
    return jax.jit(run)

expected = output_and_gradients("xla")(q, k, v, dout)
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None))
with jax.set_mesh(mesh):
    sharded = [jax.device_put(x, sharding) for x in (q, k, v, dout)]
    compiled = output_and_gradients("pallas").lower(*sharded).compile()
    actual = compiled(*sharded)
for a, b in zip(actual, expected):
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert a.sharding.is_equivalent_to(sharding, 4), a.sharding
text = compiled.as_text()
assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
with jax.set_mesh(mesh):
    out = psca(q[:3], k[:3], v[:3], mask=mask, fade_scale=0.7, interpret=True)
    np.testing.assert_allclose(out, expected[0][:3], atol=1e-5)
    try:
        output_and_gradients("pallas")(q[:3], k[:3], v[:3], dout[:3])
    except Exception as error:
        print(error)
"""


def test_eight_devices_share_the_work_without_communication():
    printed = launching.run_script(SHARDED, devices=8)
    assert "batch 3 cannot be split over 4 devices of data×fsdp" in printed


def test_a_named_implementation_never_falls_back():
    inputs, mask = _inputs(9, 10, 6)[:3], _mask(10, 6)
    with pytest.raises(FlowleyError, match="the kernels need a TPU; the platform is cpu"):
        psca(*inputs, mask=mask, fade_scale=0.7, implementation="pallas")
    halves = [x.astype(jnp.float16) for x in inputs]
    with pytest.raises(FlowleyError, match="must all be float32 or all bfloat16, not float16"):
        psca(*halves, mask=mask, fade_scale=0.7, implementation="pallas", interpret=True)


def test_the_default_on_cpu_is_xla_and_the_log_says_why_once(caplog):
    api._log_once.cache_clear()
    inputs, mask = _inputs(10, 10, 6)[:3], _mask(10, 6)
    with caplog.at_level("DEBUG", logger="flowley_jax"):
        out = psca(*inputs, mask=mask, fade_scale=0.7)
        psca(*inputs, mask=mask, fade_scale=0.7)
    expected = psca(*inputs, mask=mask, fade_scale=0.7, implementation="xla")
    np.testing.assert_array_equal(out, expected)
    assert [record.getMessage() for record in caplog.records] == [
        "psca: skipping pallas: interpret=False: the kernels need a TPU; the platform is cpu"
    ]


@given(
    audio_length=st.integers(1, 20_000),
    video_length=st.integers(1, 20_000),
    heads=st.integers(1, 32),
    dim=st.sampled_from([32, 64, 128]),
    itemsize=st.sampled_from([2, 4]),
    hard_cut=st.booleans(),
)
def test_tiles_fit_into_memory_and_follow_the_block_rule(
    audio_length, video_length, heads, dim, itemsize, hard_cut
):
    tiles = tile_sizes(audio_length, video_length, width=heads * dim, itemsize=itemsize, hard_cut=hard_cut)
    if tiles is None:
        assert heads * dim > 2048
        return
    audio, video = tiles
    assert audio == audio_length or audio % 8 == 0
    assert video == video_length or video % 128 == 0
    assert tile_bytes(audio, video, width=heads * dim, itemsize=itemsize) <= VMEM_BUDGET


def test_heads_too_wide_for_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr(pallas_tpu, "tile_sizes", tile_sizes)
    q, k, v, _ = _inputs(11, 20, 200, batch=1, heads=64, dim=128)
    with pytest.raises(FlowleyError, match="no tile of 64 heads of 128 in float32 fits"):
        _attend("pallas", _mask(20, 200), fade_scale=0.7)(q, k, v)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fade_range": 0}, "fade_range=0 must be at least 1 and below 16777216 frames"),
        ({"window": 2**40}, "window=1099511627776 must be below 16777216 frames"),
        ({"video_fps": 0.0}, "video_fps=0.0 must be positive"),
        ({"audio_fps": math.nan}, "audio_fps=nan must be positive"),
        ({"floor": -1e-6}, "floor=-1e-06 must be 0 or a positive finite number"),
    ],
)
def test_an_invalid_mask_setting_is_named(change, message):
    with pytest.raises(FlowleyError, match=message):
        _mask(12, 8, **change)


@pytest.mark.parametrize(
    ("fade_scale", "message"),
    [
        (-0.5, r"fade_scale=-0.5 must be in \[0, 1\]"),
        (math.nan, r"fade_scale=nan must be in \[0, 1\]"),
        (jnp.ones(4), r"fade_scale of shape \(4,\) must be a scalar"),
    ],
)
def test_an_invalid_fade_scale_is_named(fade_scale, message):
    q, k, v, _ = _inputs(0, 12, 8)
    with pytest.raises(FlowleyError, match=message):
        psca(q, k, v, mask=_mask(12, 8), fade_scale=fade_scale)


def test_arrays_that_do_not_match_are_named():
    """Calls the checks directly: under pytest, jaxtyping would refuse the call to psca first."""
    with pytest.raises(FlowleyError, match=r"scale=.* must be a number, and not traced"):
        api._check_scalars(0.5, jnp.ones(()))
    q, k, v, _ = _inputs(0, 12, 8)
    with pytest.raises(FlowleyError, match=r"q \(12, 2, 8\), k"):
        api._check_arrays(q[0], k, v)
    with pytest.raises(FlowleyError, match="q int32, k float32"):
        api._check_arrays(q.astype(jnp.int32), k, v)
    for keys, values in ((k, v[:, :7]), (k[:, :, :1], v[:, :, :1]), (k[:, :0], v[:, :0])):
        with pytest.raises(FlowleyError, match=r"q \(2, 12, 2, 8\), k .* must be \(B, Ta, H, d\)"):
            api._check_arrays(q, keys, values)


@settings(deadline=None, max_examples=60)
@given(
    audio_length=st.integers(1, 120),
    video_length=st.integers(1, 120),
    audio_tile=st.integers(1, 40),
    video_tile=st.integers(1, 40),
    rate=st.floats(0.2, 8.0),
    reach=st.integers(1, 9),
)
def test_the_hard_cut_pairs_the_tiles_that_a_window_touches(
    audio_length, video_length, audio_tile, video_tile, rate, reach
):
    mask = SoftMask(video_fps=8.0, audio_fps=8.0 * rate, window=0, fade_range=reach, fade="cosine", floor=0.0)
    tiling = Tiling(
        mask=mask, audio_length=audio_length, video_length=video_length, num_heads=1, head_dim=1,
        audio_tile=audio_tile, video_tile=video_tile, scale=1.0,
    )  # fmt: skip
    frames = mask.aligned_frames(audio_length, video_length)
    near = np.abs(np.arange(video_length)[None] - frames[:, None]) <= reach
    touched = {(i // audio_tile, j // video_tile) for i, j in np.argwhere(near).tolist()}

    def pairs(outer):
        ranges = tiling.ranges(outer)
        runs = enumerate(zip(ranges.first, ranges.last, strict=True))
        return {(index, inner) for index, (first, last) in runs for inner in range(first, last + 1)}

    # An audio tile reads one run of frames. If the aligned frames skip none, it reads only what it needs.
    skips_frames = max(np.diff(frames), default=0) > 1
    assert touched <= pairs("audio")
    assert skips_frames or touched == pairs("audio")
    backward = {(audio, video) for video, audio in pairs("video")}
    assert touched <= backward
    # A video tile that no row reads still needs one pair, in which its zero gradient is written.
    unread_tiles = tiling.video_tiles - len({video for _, video in touched})
    assert skips_frames or len(backward) == len(touched) + unread_tiles
