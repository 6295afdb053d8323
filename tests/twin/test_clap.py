"""LAION-CLAP compared with transformers, from a file of a training run: make test-torch."""

import golden_data
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from flowley_jax.interop.convert import convert

pytestmark = pytest.mark.torch

TOLERANCE = 1e-5
AUDIO_SIZES = {
    "narrow": dict(patch_embeds_hidden_size=8, depths=[2, 2, 2, 2], num_attention_heads=[1, 2, 4, 4]),
    "deep": dict(patch_embeds_hidden_size=12, depths=[1, 3, 4, 1], num_attention_heads=[3, 4, 6, 8]),
}
TEXT_SIZES = {
    "narrow": dict(hidden_size=64, num_attention_heads=1, num_hidden_layers=1, intermediate_size=40),
    "deep": dict(hidden_size=192, num_attention_heads=3, num_hidden_layers=3, intermediate_size=100),
}
# Names of transformers and of the published file, in the order in which they are replaced.
NAMES = (
    ("audio_model.audio_encoder.", "audio_branch."),
    ("text_model.", "text_branch."),
    ("_projection.linear1.", "_projection.0."),
    ("_projection.linear2.", "_projection.2."),
)
AUDIO_NAMES = (
    ("batch_norm.", "bn0."),
    ("attention.self.", "attn."),
    ("attention.output.dense.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
)


def _twin(size):
    """Return a model of transformers with random weights and statistics, in the published variant."""
    width = AUDIO_SIZES[size]["patch_embeds_hidden_size"]
    config = transformers.ClapConfig(
        audio_config=dict(AUDIO_SIZES[size], hidden_size=8 * width, drop_path_rate=0.0),
        text_config=dict(TEXT_SIZES[size], vocab_size=60, layer_norm_eps=1e-5),
        projection_dim=24,
    )
    model = transformers.ClapModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        norm = model.audio_model.audio_encoder.batch_norm
        norm.running_mean.copy_(-40 + 5 * torch.randn(64, generator=generator))
        norm.running_var.copy_(400 * torch.rand(64, generator=generator) + 100)
    return model.eval()


def _published_names(state):
    """Return a state dict of transformers under the published file's names."""
    named = {}
    for name, tensor in state.items():
        for theirs, published in NAMES + (AUDIO_NAMES if name.startswith("audio_model.") else ()):
            name = name.replace(theirs, published)
        named[name] = tensor
    for name in [name for name in named if ".attn.query." in name]:
        parts = [named.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        named[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return named


def _ours(theirs, folder):
    """Write a checkpoint as LAION's training does, and return our model of it."""
    published = {f"module.{name}": tensor for name, tensor in _published_names(theirs.state_dict()).items()}
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=np.float64(1e-4))
    saved = {"epoch": 15, "name": "run", "state_dict": published, "optimizer": optimizer.state_dict()}
    torch.save(saved, folder / "epoch_15.pt")
    return convert(str(folder / "epoch_15.pt"), folder / "bundles", expect="clap").load()


@pytest.mark.parametrize("size", list(AUDIO_SIZES))
def test_clap_matches_transformers(tmp_path, size):
    theirs = _twin(size)
    ours = _ours(theirs, tmp_path)
    extractor = transformers.ClapFeatureExtractor(
        frequency_min=50, truncation="rand_trunc", padding="repeatpad"
    )
    wave = golden_data.load("waves_48k")["wave"].astype(np.float32) / 32768
    for length in (384_000, 148_800, 12_000):
        waves = wave[:, :length]
        inputs = extractor(list(waves), sampling_rate=48_000, return_tensors="pt")
        with torch.no_grad():
            expected = theirs.get_audio_features(inputs["input_features"].float()).pooler_output
        assert golden_data.relative_error(ours.embed_audio(jnp.asarray(waves)), expected) < TOLERANCE
    rng = np.random.default_rng(0)
    ids = np.ones((4, 77), np.int64)
    for row, length in enumerate((77, 40, 3, 2)):
        ids[row, :length] = [0, *rng.integers(3, 60, length - 2), 2]
    with torch.no_grad():
        tokens = torch.from_numpy(ids)
        expected = theirs.get_text_features(tokens, (tokens != 1).long()).pooler_output
    assert golden_data.relative_error(ours.embed_text(jnp.asarray(ids)), expected) < TOLERANCE
