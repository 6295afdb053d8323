"""The tagger PaSST against outputs of the published implementation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import count_parameters, load, relative_error, state_dict

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.passt import infer_config, passt_from_torch
from flowley_jax.networks import passt
from flowley_jax.networks.passt import LEAST_SAMPLES, SAMPLES, PasstConfig

# The published nets have heads of 64 channels, and this one of 12.
CONFIG = PasstConfig(width=48, layers=3, heads=4, mlp_width=192)


def _waves():
    return load("waves_32k")["wave"].astype(np.float32) / 32768


def _padded():
    waves = _waves()
    return np.pad(waves, ((0, 0), (0, SAMPLES - waves.shape[1])))


def _model(dtype="float32", **scales):
    arrays = {name: array * scales.get(name, 1.0) for name, array in state_dict("passt_small").items()}
    return passt_from_torch(arrays, dataclasses.replace(CONFIG, dtype=dtype))


def _check(model, waves, case, tolerance=1e-5):
    logits, features = jax.jit(lambda waves: model(waves))(waves)
    golden = load("passt_small")
    assert logits.dtype == features.dtype == jnp.float32
    assert relative_error(logits, golden[f"out/{case}/logits"]) < tolerance
    assert relative_error(features, golden[f"out/{case}/embed"]) < tolerance


def test_the_front_end_is_the_published_one():
    golden = load("passt_small")
    np.testing.assert_allclose(passt._mel_matrix()[:-1].T, golden["const/mel_banks"], atol=3e-5)
    np.testing.assert_allclose(passt._window()[112:-112], golden["const/window"], atol=3e-7)
    frames = passt.log_mel(jnp.asarray(_padded()))
    # Rounding shows in bins far below the loudest.
    np.testing.assert_allclose(frames.mT, golden["mid/8s_padded/mel"], atol=1e-3)
    constants = np.stack([np.zeros(32_000), np.full(32_000, 0.25)]).astype(np.float32)
    frames = passt.log_mel(jnp.asarray(constants))[:, :4]
    np.testing.assert_allclose(frames.mT, golden["mid/silence_dc/mel_head"], atol=1e-3)


def test_tokens_are_the_published_ones():
    golden, model = load("passt_small"), _model()
    tokens = model.tokens(golden["mid/8s_padded/mel"].mT)
    assert tokens.shape == (3, 1190, 48)
    assert relative_error(tokens[:1, :200], golden["mid/8s_padded/tokens"]) < 1e-5


def test_outputs_are_the_published_ones():
    _check(_model(), _padded(), "8s_padded")


@pytest.mark.parametrize(("case", "length"), [("6.03s", 192_960), ("0.5s", 16_000)])
def test_shorter_sounds_have_the_published_outputs(case, length):
    _check(_model(), _waves()[:, :length], case)


def test_silence_and_a_constant_have_the_published_outputs():
    waves = np.stack([np.zeros(32_000), np.full(32_000, 0.25)]).astype(np.float32)
    _check(_model(), waves, "silence_dc")


def test_the_epsilons_are_the_published_ones():
    names = ("cls_token", "dist_token", "new_pos_embed", "freq_new_pos_embed", "time_new_pos_embed")
    layers = ("patch_embed.proj", "norm")
    names += tuple(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))
    _check(_model(**dict.fromkeys(names, 0.01)), _waves()[:, :64_000], "eps")


def test_bfloat16_is_close():
    _check(_model("bfloat16"), _waves()[:, :16_000], "0.5s", tolerance=3e-2)


def test_the_published_size_has_its_number_of_parameters():
    model = nnx.eval_shape(lambda: passt.Passt(PasstConfig(), rngs=nnx.Rngs(0)))
    # The file also has a second head, which is not used.
    assert count_parameters(model) == 86_153_758 - 405_263


def test_sounds_of_other_lengths_are_refused():
    model = _model()
    assert np.isfinite(model(jnp.zeros((1, LEAST_SAMPLES)))[0]).all()
    for length in (LEAST_SAMPLES - 1, SAMPLES + 1):
        with pytest.raises(FlowleyError, match=rf"of {length} samples must have 4801 to 320000"):
            model(jnp.zeros((1, length)))


def test_sizes_follow_from_the_weights_of_heads_of_64_channels():
    shapes = {
        "norm.weight": (128,),
        "blocks.0.mlp.fc1.weight": (512, 128),
        "blocks.0.attn.qkv.weight": (384, 128),
        "head.1.weight": (527, 128),
    }
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    assert infer_config(arrays, {}) == PasstConfig(width=128, layers=1, heads=2, mlp_width=512)


def test_other_files_are_refused():
    arrays = state_dict("passt_small")
    with pytest.raises(FlowleyError, match="PaSST of width 48 is not supported; it must be a multiple of 64"):
        infer_config(arrays, {})
    del arrays["head.1.weight"]
    with pytest.raises(FlowleyError, match=r"the PaSST tagger lacks head\.1\.weight"):
        infer_config(arrays, {})
    with pytest.raises(FlowleyError, match=r"head\.1\.weight"):
        passt_from_torch(arrays, CONFIG)
