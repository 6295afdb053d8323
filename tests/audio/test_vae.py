"""The audio VAE compared with the published implementation (golden data of narrow models)."""

import golden_data
import jax
import numpy as np
import pytest
from flax import nnx

from flowley_jax.audio.chunks import in_windows
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.audio_vae import infer_config, kernels_are_normalised, vae_from_torch
from flowley_jax.networks.audio_vae import DECODER_CONTEXT, VAE_16K, VAE_44K, AudioVae, VaeConfig

CASES = ["g_vae16k", "g_vae44k"]


def _normalised(name):
    """Return the state dict after `remove_weight_norm`; the golden file has its kernels."""
    removed = {
        key.removeprefix("param_removed/"): value
        for key, value in golden_data.load(name).items()
        if key.startswith("param_removed/")
    }
    return {**golden_data.state_dict(name), **removed}


def _model(arrays) -> AudioVae:
    return vae_from_torch(arrays, infer_config(arrays, {}))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param, golden_data.load(request.param), _model(golden_data.state_dict(request.param))


def test_encoder_matches_the_published_implementation(case):
    _, data, model = case
    mean, std = jax.jit(lambda mel: model.encode(mel))(golden_data.time_first(data["in/mel"]))
    assert golden_data.relative_error(mean, golden_data.time_first(data["out/mean"])) < 1e-5
    assert golden_data.relative_error(std, golden_data.time_first(data["out/std"])) < 1e-5


def test_decoder_matches_the_published_implementation(case):
    _, data, model = case
    decode = jax.jit(lambda latents: model.decode(latents))
    decoded = decode(golden_data.time_first(data["in/z"]))
    assert golden_data.relative_error(decoded, golden_data.time_first(data["out/decoded"])) < 1e-5
    again = decode(golden_data.time_first(data["out/mean"]))
    assert golden_data.relative_error(again, golden_data.time_first(data["out/recon_of_mean"])) < 1e-5


def test_normalised_kernels_are_recognised_and_not_normalised_again(case):
    name, _, model = case
    arrays = _normalised(name)
    assert kernels_are_normalised(arrays) and not kernels_are_normalised(golden_data.state_dict(name))
    leaves = zip(jax.tree.leaves(nnx.state(_model(arrays))), jax.tree.leaves(nnx.state(model)), strict=True)
    for actual, expected in leaves:
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def small():
    return AudioVae(VaeConfig(bins=6, latent_dim=3, width=4), rngs=nnx.Rngs(0))


def test_odd_last_frame_is_dropped(small):
    mel = np.random.default_rng(0).standard_normal((1, 19, 6), np.float32)
    mean, std = jax.jit(lambda mel: small.encode(mel))(mel)
    assert mean.shape == std.shape == (1, 9, 3)


@pytest.mark.parametrize("length", [41, 77, 130])
def test_decoding_in_windows_equals_decoding_at_once(small, length):
    latents = np.random.default_rng(length).standard_normal((2, length, 3), np.float32)
    hidden = np.asarray(jax.jit(lambda x: small.begin(x))(latents))
    finish = jax.jit(lambda x: small.finish(x))
    decoded = in_windows(lambda x: np.asarray(finish(x)), hidden, window=40, context=DECODER_CONTEXT, rate=2)
    assert golden_data.relative_error(decoded, finish(hidden)) < 1e-5


def test_context_is_as_long_as_needed(small):
    hidden = np.zeros((1, 60, 16), np.float32)
    # NaN spreads as far as any value can, however small the weights are.
    hidden[:, 30] = np.nan
    reached = np.flatnonzero(np.isnan(jax.jit(lambda x: small.finish(x))(hidden)).any(axis=(0, 2)))
    assert reached.min() >= 2 * (30 - DECODER_CONTEXT) and reached.max() < 2 * (31 + DECODER_CONTEXT)
    assert reached.max() - reached.min() >= 2 * (2 * DECODER_CONTEXT - 1)


def test_attention_in_blocks_equals_attention_at_once(small, monkeypatch):
    latents = np.random.default_rng(0).standard_normal((2, 37, 3), np.float32)
    whole = jax.jit(lambda x: small.begin(x))(latents)
    monkeypatch.setattr("flowley_jax.networks.audio_vae._QUERY_BLOCK", 8)
    assert golden_data.relative_error(jax.jit(lambda x: small.begin(x))(latents), whole) < 1e-5


@pytest.mark.parametrize(("config", "count"), [(VAE_16K, 171_657_378), (VAE_44K, 305_479_938)])
def test_published_sizes_have_the_parameter_counts_of_the_published_files(config, count):
    shapes = nnx.eval_shape(lambda: AudioVae(config, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param))) == count


def test_sizes_are_inferred_from_the_weights():
    config = infer_config(golden_data.state_dict("g_vae44k"), {})
    assert config == VaeConfig(bins=128, latent_dim=40, width=14)


def test_missing_and_misshapen_weights_are_listed():
    arrays = golden_data.state_dict("g_vae16k")
    config = infer_config(arrays, {})
    del arrays["decoder.mid.attn_1.qkv.weight"]
    arrays["encoder.conv_out.weight"] = arrays["encoder.conv_out.weight"][:3]
    with pytest.raises(FlowleyError, match=r"the audio VAE; 2 weights differ: ") as caught:
        vae_from_torch(arrays, config)
    missing, misshapen = str(caught.value).partition(" differ: ")[2].split("; ")
    assert missing.startswith("decoder.mid.attn_1.qkv.weight: found none, expected float32[")
    assert misshapen.startswith("encoder.conv_out.weight: found float32[")
