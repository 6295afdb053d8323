"""CLIP and T5 compared with transformers and open_clip, from files that these write: make test-torch."""

import json

import golden_data
import jax.numpy as jnp
import numpy as np
import open_clip
import pytest
import torch
import transformers

from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.convert import convert
from flowley_jax.networks.clip import PIXEL_MEAN, PIXEL_STD

pytestmark = pytest.mark.torch

TOLERANCE = 1e-4
CLIP_SIZES = {
    "narrow": dict(
        hidden_size=64,
        intermediate_size=256,
        num_attention_heads=2,
        num_hidden_layers=2,
        image_size=32,
        patch_size=8,
    ),
    "odd": dict(
        hidden_size=96,
        intermediate_size=200,
        num_attention_heads=3,
        num_hidden_layers=3,
        image_size=42,
        patch_size=14,
    ),
    "base": dict(
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        num_hidden_layers=4,
        image_size=64,
        patch_size=32,
    ),
}
T5_SIZES = {
    "gated": dict(
        d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu", vocab_size=60
    ),
    "relu": dict(
        d_model=48, d_kv=16, d_ff=100, num_layers=2, num_heads=2, feed_forward_proj="relu", vocab_size=60
    ),
    "buckets": dict(
        d_model=64,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=8,
        feed_forward_proj="gated-gelu",
        vocab_size=60,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=40,
    ),
}


def _frames(size, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def _pixels(frames):
    return torch.from_numpy(
        ((frames / 255.0 - PIXEL_MEAN) / PIXEL_STD).astype(np.float32).transpose(0, 3, 1, 2)
    )


def _randomise(module):
    """Add noise to the weights, because initial values of the libraries would hide errors."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("size", list(CLIP_SIZES))
def test_clip_matches_transformers(tmp_path, size, activation):
    config = transformers.CLIPVisionConfig(**CLIP_SIZES[size], hidden_act=activation, projection_dim=24)
    theirs = _randomise(transformers.CLIPVisionModelWithProjection(config))
    theirs.save_pretrained(tmp_path / "theirs")
    # Complete CLIP models have the settings of the image encoder one level down.
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({"vision_config": config.to_dict()}))
    frames = _frames(config.image_size)
    with torch.no_grad():
        expected = theirs(_pixels(frames)).image_embeds
    expected = expected / expected.norm(dim=-1, keepdim=True)
    ours = convert(str(tmp_path / "theirs"), tmp_path / "bundles", expect="clip").load()
    assert golden_data.relative_error(ours(jnp.asarray(frames)), expected) < TOLERANCE


@pytest.mark.parametrize("size", list(T5_SIZES))
@pytest.mark.parametrize("safe", [True, False])
def test_t5_matches_transformers(tmp_path, size, safe):
    config = transformers.T5Config(**T5_SIZES[size], dropout_rate=0.0)
    theirs = _randomise(transformers.T5EncoderModel(config))
    theirs.save_pretrained(tmp_path / "theirs")
    if not safe:
        (tmp_path / "theirs" / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    lengths = np.array([3, 77, 40, 1])
    ids = np.random.default_rng(0).integers(1, 60, (4, 77))
    valid = np.arange(77) < lengths[:, None]
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), torch.from_numpy(valid.astype(np.int64))).last_hidden_state
    ours = convert(str(tmp_path / "theirs"), tmp_path / "bundles", expect="t5").load()
    assert golden_data.relative_error(ours(jnp.asarray(ids), jnp.asarray(valid)), expected) < TOLERANCE


def test_t5_with_a_decoder_in_several_shards_matches_transformers(tmp_path):
    config = transformers.T5Config(**T5_SIZES["gated"], dropout_rate=0.0)
    theirs = _randomise(transformers.T5ForConditionalGeneration(config))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    ids = np.random.default_rng(0).integers(1, 60, (2, 20))
    with torch.no_grad():
        expected = theirs.encoder(torch.from_numpy(ids)).last_hidden_state
    bundle = convert(str(tmp_path / "theirs"), tmp_path / "bundles")
    states = Bundle.open(bundle.folder).load()(jnp.asarray(ids), jnp.ones(ids.shape, bool))
    assert golden_data.relative_error(states, expected) < TOLERANCE


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_clip_matches_open_clip(tmp_path, quick_gelu):
    settings = {
        "embed_dim": 24,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 42, "layers": 3, "width": 128, "head_width": 32, "patch_size": 14},
        "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1},
    }
    theirs = _randomise(open_clip.model.CLIP(**settings))
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    frames = _frames(42)
    with torch.no_grad():
        expected = theirs.encode_image(_pixels(frames), normalize=True)
    ours = convert(str(tmp_path), tmp_path / "bundles", expect="clip").load()
    assert golden_data.relative_error(ours(jnp.asarray(frames)), expected) < TOLERANCE
