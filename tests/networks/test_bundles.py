"""Evaluation networks from a published file to a bundle, and from it to features."""

import numpy as np
import pytest
from flax import nnx
from golden_data import load, relative_error, state_dict
from published import torch_weights

from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.convert import convert
from flowley_jax.interop.torch_writer import write_torch_file
from flowley_jax.networks.clap import Clap, ClapConfig
from flowley_jax.networks.clap_audio import HtsatConfig
from flowley_jax.networks.clap_text import RobertaConfig
from flowley_jax.networks.imagebind import ImageBind, ImageBindConfig, TrunkConfig
from flowley_jax.networks.passt import Passt, PasstConfig
from flowley_jax.networks.synchformer import Synchformer
from flowley_jax.networks.synchformer_config import SynchformerConfig
from flowley_jax.networks.vggish import log_mel_examples


def _wave():
    return load("waves_16k")["wave"][0].astype(np.float32) / 32768


@pytest.fixture(params=["panns", "vggish"])
def network(request, tmp_path):
    """Name of a network, and the model of its bundle."""
    arrays = state_dict(f"{request.param}_small")
    # PANNs' file has the weights in an entry.
    content = {"model": arrays} if request.param == "panns" else arrays
    write_torch_file(tmp_path / "published.pth", content)
    bundle = convert(str(tmp_path / "published.pth"), tmp_path / "bundles")
    assert bundle.folder == tmp_path / "bundles" / request.param
    return request.param, Bundle.open(bundle.folder).load()


def test_features_of_a_bundle_are_those_of_the_published_file(network):
    name, model = network
    if name == "panns":
        embedding, logits = model(_wave()[None])
        assert relative_error(embedding[0], load("panns_small")["out/8s/2048"][0]) < 1e-5
        assert relative_error(logits[0], load("panns_small")["out/8s/logits"][0]) < 1e-5
    else:
        features = model(log_mel_examples(_wave()))
        assert relative_error(features, load("vggish_small")["out/8s/embedding"][0]) < 1e-5


def test_passt_and_its_heads_come_from_the_published_file(tmp_path):
    config = PasstConfig(width=128, layers=2, heads=2, mlp_width=96, classes=7)
    model = Passt(config, rngs=nnx.Rngs(0))
    unused = {"head_dist.weight": np.zeros((7, 128), np.float32), "head_dist.bias": np.zeros(7, np.float32)}
    write_torch_file(tmp_path / "published.pt", torch_weights(model) | unused)
    bundle = Bundle.open(convert(str(tmp_path / "published.pt"), tmp_path / "bundles").folder)
    assert (bundle.format, bundle.config) == ("passt", config)
    wave = _wave()[None, :8000]
    for value, expected in zip(bundle.load()(wave), model(wave), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-6)


def test_clap_comes_from_an_entry_whose_names_have_a_prefix(tmp_path):
    config = ClapConfig(
        audio=HtsatConfig(width=8, depths=(2, 1, 1, 2), heads=(1, 2, 2, 4)),
        text=RobertaConfig(vocab_size=40, positions=80, width=128, layers=1, heads=2, mlp_width=96),
        dim=16,
    )
    model = Clap(config, rngs=nnx.Rngs(0))
    arrays = {f"module.{name}": value for name, value in torch_weights(model).items()}
    arrays["module.text_branch.embeddings.position_ids"] = np.arange(80)[None]
    optimizer = {"state": {"0": {"step": np.zeros(1, np.float32)}}}
    write_torch_file(tmp_path / "published.pt", {"state_dict": arrays, "optimizer": optimizer})
    bundle = Bundle.open(convert(str(tmp_path / "published.pt"), tmp_path / "bundles").folder)
    assert (bundle.format, bundle.config, bundle.entry) == ("clap", config, "state_dict")
    loaded, wave, ids = bundle.load(), _wave()[None], np.array([[0, 5, 30, 2, 1, 1]])
    np.testing.assert_allclose(loaded.embed_audio(wave), model.embed_audio(wave), atol=1e-6)
    np.testing.assert_allclose(loaded.embed_text(ids), model.embed_text(ids), atol=1e-6)


def test_synchformer_comes_from_the_published_file(tmp_path):
    config = SynchformerConfig(width=24, mlp_width=48, layers=1, head_layers=1)
    model = Synchformer(config, rngs=nnx.Rngs(0))
    unused = {"vfeat_extractor.patch_embed.proj.weight": np.zeros((24, 3, 16, 16), np.float32)}
    write_torch_file(tmp_path / "published.pth", torch_weights(model) | unused)
    bundle = Bundle.open(convert(str(tmp_path / "published.pth"), tmp_path / "bundles").folder)
    assert (bundle.format, bundle.config) == ("synchformer", config)
    loaded, segments = bundle.load(), _wave()[None, None, :10_240]
    np.testing.assert_allclose(loaded.embed_audio(segments), model.embed_audio(segments), atol=1e-6)
    frames = np.random.default_rng(0).uniform(-1, 1, (1, 1, 16, 224, 224, 3)).astype(np.float32)
    np.testing.assert_allclose(loaded.embed_video(frames), model.embed_video(frames), atol=1e-6)


def test_imagebind_comes_from_the_published_file_without_its_other_networks(tmp_path):
    config = ImageBindConfig(
        vision=TrunkConfig(width=16, layers=1, heads=16, mlp_width=24),
        audio=TrunkConfig(width=12, layers=1, heads=12, mlp_width=24),
        dim=8,
    )
    model = ImageBind(config, rngs=nnx.Rngs(0))
    text = {"modality_heads.text.proj.0.weight": np.zeros(9, np.float32)}
    write_torch_file(tmp_path / "published.pth", torch_weights(model) | text)
    bundle = Bundle.open(convert(str(tmp_path / "published.pth"), tmp_path / "bundles").folder)
    assert (bundle.format, bundle.config) == ("imagebind", config)
    assert bundle.arrays().keys() == torch_weights(model).keys()
    loaded, images = bundle.load(), np.random.default_rng(0).normal(size=(1, 3, 128, 204)).astype(np.float32)
    np.testing.assert_allclose(loaded.embed_audio(images), model.embed_audio(images), atol=1e-5)
    clips = np.random.default_rng(0).normal(size=(1, 1, 2, 224, 224, 3)).astype(np.float32)
    np.testing.assert_allclose(loaded.embed_video(clips), model.embed_video(clips), atol=1e-6)
