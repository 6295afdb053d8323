"""LAION-CLAP against outputs of the published implementation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import count_parameters, load, relative_error, state_dict

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.clap import clap_from_torch, infer_config
from flowley_jax.interop.registry import describe
from flowley_jax.networks import clap_audio
from flowley_jax.networks.clap import Clap, ClapConfig
from flowley_jax.networks.clap_audio import SAMPLES, HtsatConfig
from flowley_jax.networks.clap_text import PADDING, RobertaConfig

# The published text network has heads of 64 channels, and this one of 16.
CONFIG = ClapConfig(
    audio=HtsatConfig(width=12, depths=(2, 2, 4, 2), heads=(2, 3, 4, 6)),
    text=RobertaConfig(vocab_size=300, width=48, layers=2, heads=3, mlp_width=96),
    dim=32,
)
CONSTANTS = np.stack([np.zeros(48_000), np.full(48_000, 0.25)]).astype(np.float32)


def _waves():
    return load("waves_48k")["wave"].astype(np.float32) / 32768


def _arrays(scales):
    arrays = state_dict("clap_audio_small") | state_dict("clap_text_small")
    return {name: array * scales.get(name, 1.0) for name, array in arrays.items()}


def _model(dtype="float32", **scales):
    return clap_from_torch(_arrays(scales), dataclasses.replace(CONFIG, dtype=dtype))


def _check_audio(model, waves, case, tolerance=1e-5):
    embedding = jax.jit(lambda waves: model.embed_audio(waves))(waves)
    assert embedding.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=1), 1.0, rtol=1e-5)
    assert relative_error(embedding, load("clap_audio_small")[f"out/{case}/audio_embed"]) < tolerance


def test_the_front_end_is_the_published_one():
    golden = load("clap_audio_small")
    np.testing.assert_allclose(clap_audio._mel_matrix(), golden["const/melW"], rtol=1e-6, atol=1e-9)
    frames = clap_audio.log_mel(clap_audio.fitted(_waves()))
    # Rounding shows in bins that are 90 dB below the loudest.
    np.testing.assert_allclose(frames, golden["mid/8s/logmel"], atol=5e-3)
    constant = clap_audio.log_mel(clap_audio.fitted(CONSTANTS))[:, :4]
    np.testing.assert_allclose(constant, golden["mid/silence_dc/logmel_head"], atol=2e-2)


def test_the_image_is_the_published_one():
    golden = load("clap_audio_small")
    frames = _model().audio_branch.bn0(jnp.asarray(golden["mid/8s/logmel"][1:2]))
    image = clap_audio.folded(clap_audio.stretched(frames))
    assert relative_error(image, golden["mid/8s/image"]) < 1e-5


def test_windows_are_the_published_ones():
    golden = load("clap_audio_small")
    np.testing.assert_array_equal(clap_audio._offsets(), golden["const/relative_position_index"])
    np.testing.assert_array_equal(clap_audio._edge_mask(16, 4), golden["const/attn_mask_layer2"])


@pytest.mark.parametrize(("case", "length"), [("8s", 384_000), ("3.1s", 148_800), ("0.25s", 12_000)])
def test_embeddings_of_sounds_are_the_published_ones(case, length):
    _check_audio(_model(), _waves()[:, :length], case)


@pytest.mark.parametrize(("case", "length"), [("3.1s", 148_800), ("0.25s", 12_000)])
def test_shorter_sounds_are_repeated(case, length):
    golden = load("clap_audio_small")
    waves = clap_audio.fitted(jnp.asarray(_waves()[:, :length]))
    assert waves.shape == (3, SAMPLES)
    assert relative_error(np.abs(waves).sum(axis=1), golden[f"mid/{case}/waveform_abs_sum"]) < 1e-5


def test_silence_and_a_constant_have_the_published_embeddings():
    _check_audio(_model(), CONSTANTS, "silence_dc")


def test_the_epsilons_of_sounds_are_the_published_ones():
    layers = ("patch_embed.proj", "patch_embed.norm")
    scales = {f"audio_branch.{layer}.{kind}": 0.01 for layer in layers for kind in ("weight", "bias")}
    scales |= {"audio_branch.bn0.running_var": 1e-6, "audio_branch.bn0.weight": 1e-3}
    _check_audio(_model(**scales), _waves()[:, :96_000], "eps")


def test_embeddings_of_captions_are_the_published_ones():
    golden, model = load("clap_text_small"), _model()
    ids = jnp.asarray(golden["in/input_ids"])
    np.testing.assert_array_equal(ids != PADDING, golden["in/attention_mask"])
    assert relative_error(model.text_branch.embeddings(ids), golden["mid/emb"]) < 1e-5
    assert relative_error(model.text_branch(ids), golden["out/pooled"]) < 1e-5
    assert relative_error(model.embed_text(ids), golden["out/text_embed"]) < 1e-5


def test_the_epsilons_of_captions_are_the_published_ones():
    names = [f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")]
    layers = ("attention.self.value", "attention.output.dense")
    layers = ("embeddings.LayerNorm", *(f"encoder.layer.0.{layer}" for layer in layers))
    names += [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    model = _model(**{f"text_branch.{name}": 0.01 for name in names})
    golden = load("clap_text_small")
    ids = jnp.asarray(golden["in/input_ids"])
    assert relative_error(model.text_branch(ids), golden["out/eps/pooled"]) < 1e-5
    assert relative_error(model.embed_text(ids), golden["out/eps/text_embed"]) < 1e-5


def test_bfloat16_is_close():
    model = _model("bfloat16")
    _check_audio(model, _waves(), "8s", tolerance=3e-2)
    golden = load("clap_text_small")
    embedding = model.embed_text(jnp.asarray(golden["in/input_ids"]))
    assert embedding.dtype == jnp.float32
    assert relative_error(embedding, golden["out/text_embed"]) < 3e-2


def test_the_published_size_has_its_number_of_parameters():
    model = nnx.eval_shape(lambda: Clap(ClapConfig(), rngs=nnx.Rngs(0)))
    unused = 1024 * 527 * 2 * 3 + 527 + 527 * 527 + 527
    statistics = 2 * 64
    assert count_parameters(model.audio_branch) - statistics == 71_341_079 - unused
    assert count_parameters(model.text_branch) == 124_645_632
    assert count_parameters(model.audio_projection) == 787_456
    assert count_parameters(model.text_projection) == 656_384


def test_sounds_of_other_lengths_are_refused():
    for length in (0, SAMPLES + 1):
        with pytest.raises(FlowleyError, match=rf"sounds of {length} samples must have 1 to 480000"):
            clap_audio.fitted(jnp.zeros((1, length)))


def test_other_models_are_refused():
    arrays = _arrays({})
    with pytest.raises(FlowleyError, match=r"text of width 48 is not supported; .* a multiple of 64"):
        infer_config(arrays, {})
    fusion = {"module.audio_branch.patch_embed.mel_conv2d.weight": np.zeros((12, 1, 4, 12))}
    with pytest.raises(FlowleyError, match="fusion of long sounds is not supported"):
        infer_config({**arrays, **fusion}, {})
    with pytest.raises(FlowleyError, match=r"mel front end of \(513, 128\) is not supported"):
        infer_config({**arrays, "audio_branch.logmel_extractor.melW": np.zeros((513, 128))}, {})
    del arrays["audio_projection.2.weight"]
    with pytest.raises(FlowleyError, match=r"audio_projection\.2\.weight"):
        clap_from_torch(arrays, CONFIG)


def test_conversions_of_other_libraries_are_named():
    names = ["audio_model.audio_encoder.norm.weight", "text_model.pooler.dense.weight"]
    assert describe(names) == "a CLAP model in the layout of transformers, which is not supported"
