"""BigVGAN compared with the published implementation (golden data of narrow models)."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowley_jax.audio.chunks import in_windows
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bigvgan import bigvgan_from_torch, infer_config
from flowley_jax.networks.bigvgan import (
    BIGVGAN_16K,
    BIGVGAN_44K,
    Activation,
    BigVgan,
    BigVganConfig,
    anti_aliasing_filter,
)

CASES = ["h_bigvgan16k", "h_bigvgan44k"]


def _settings(name):
    return golden_data.settings(name)["h"]


def _model(name, arrays=None) -> BigVgan:
    arrays = arrays or golden_data.state_dict(name)
    return bigvgan_from_torch(arrays, infer_config(arrays, _settings(name)))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param, golden_data.load(request.param), _model(request.param)


def test_waves_match_the_published_implementation(case):
    _, data, model = case
    wave = jax.jit(lambda mel: model(mel))(golden_data.time_first(data["in/mel"]))
    assert golden_data.relative_error(wave, data["out/wave_removed"][:, 0]) < 1e-5
    assert wave.shape[1] == data["in/mel"].shape[2] * model.config.hop


def test_stages_match_the_published_implementation(case):
    _, data, model = case
    x = model.conv_pre(golden_data.time_first(data["in/mel"]))
    assert golden_data.relative_error(x, golden_data.time_first(data["out/conv_pre"])) < 1e-5
    x = model.ups[0][0](x)
    assert golden_data.relative_error(x, golden_data.time_first(data["out/ups.0"])) < 1e-5
    assert (
        golden_data.relative_error(model.resblocks[0](x), golden_data.time_first(data["out/resblock.0"]))
        < 1e-5
    )


@pytest.mark.parametrize("variant", ["", "_short"])
def test_activations_match_the_published_implementation(case, variant):
    _, data, model = case
    activated = model.resblocks[0].activations[0](
        golden_data.time_first(data[f"in/act{variant}_in" if variant else "out/act0_in"])
    )
    assert (
        golden_data.relative_error(activated, golden_data.time_first(data[f"out/act0{variant}_out"])) < 1e-5
    )


def test_all_naming_schemes_of_the_same_weights_give_the_same_model(case):
    name, data, model = case
    stored = golden_data.state_dict(name)
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in stored.items()
    }
    removed = {
        key.removeprefix("param_removed/"): value
        for key, value in data.items()
        if key.startswith("param_removed/")
    }
    # A plain kernel in the golden file replaces its two factors.
    plain = {
        key: x for key, x in stored.items() if key.split(".parametrizations")[0] + ".weight" not in removed
    }
    for arrays in (old, {**plain, **removed}):
        leaves = zip(
            jax.tree.leaves(nnx.state(_model(name, arrays))), jax.tree.leaves(nnx.state(model)), strict=True
        )
        for actual, expected in leaves:
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def short():
    """Configuration and jitted program of a vocoder with two stages and a short context."""
    config = BigVganConfig(
        bins=5, width=8, rates=(4, 2), kernels=(8, 4), block_kernels=(3, 7), dilations=(1, 3)
    )
    model = BigVgan(config, rngs=nnx.Rngs(0))
    return config, jax.jit(lambda mel: model(mel))


@pytest.mark.parametrize("frames", [61, 62, 131])
def test_processing_in_windows_equals_processing_at_once(short, frames):
    config, program = short
    mel = np.random.default_rng(frames).standard_normal((2, frames, config.bins), np.float32)
    window = 2 * config.context + 3
    assert frames > window
    waves = in_windows(
        lambda x: np.asarray(program(x)), mel, window=window, context=config.context, rate=config.hop
    )
    assert golden_data.relative_error(waves, program(mel)) < 1e-5


def test_samples_depend_on_no_more_than_the_context(short):
    config, program = short
    context, hop = config.context, config.hop
    mel = np.zeros((1, 2 * context + 5, config.bins), np.float32)
    # NaN spreads as far as any value can, however small the weights are.
    mel[:, context + 2] = np.nan
    reached = np.flatnonzero(np.isnan(program(mel))[0])
    assert 2 * hop <= reached.min() and reached.max() < (2 * context + 3) * hop
    # The context is not much longer than needed.
    assert reached.max() - reached.min() > (2 * context - 6) * hop


def test_filter_equals_the_published_one():
    stored = golden_data.load("h_bigvgan16k")["param/activation_post.upsample.filter"]
    np.testing.assert_allclose(anti_aliasing_filter(), stored.reshape(-1), rtol=0, atol=1e-7)


def test_slow_wave_is_unchanged_by_the_resampling():
    activation = Activation(1, BIGVGAN_16K)
    activation.act.beta.set_value(jnp.full((1,), 40.0))
    wave = jnp.sin(0.2 * jnp.arange(400.0))[None, :, None]
    passed = activation(wave)
    np.testing.assert_allclose(passed[:, 20:-20], wave[:, 20:-20], atol=2e-3)


def test_published_sizes_have_the_parameter_count_of_the_published_file():
    shapes = nnx.eval_shape(lambda: BigVgan(BIGVGAN_16K, rngs=nnx.Rngs(0)))
    flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(shapes, nnx.Param))}
    # The file also has a magnitude for every output of every kernel.
    kernels = {name: leaf for name, leaf in flat.items() if len(leaf.shape) == 3}
    magnitudes = sum(
        leaf.shape[0] if name.startswith("ups.") else leaf.shape[2] for name, leaf in kernels.items()
    )
    assert sum(leaf.size for leaf in flat.values()) + magnitudes == 112_233_866
    assert len(flat) + len(kernels) == 784


def test_version_2_needs_its_settings():
    arrays = golden_data.state_dict("h_bigvgan44k")
    with pytest.raises(FlowleyError, match=r"config\.json"):
        infer_config(arrays, {})
    assert infer_config(arrays, _settings("h_bigvgan44k")).rates == BIGVGAN_44K.rates
    with pytest.raises(FlowleyError, match="resblock='2'"):
        infer_config(arrays, {**_settings("h_bigvgan44k"), "resblock": "2"})
