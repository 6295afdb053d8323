"""Sound from published files of random weights at the full sizes, by the command lines: make test-soak."""

import json

import numpy as np
import published
import pytest
import shell
from flax import nnx

from flowley_jax.interop.bundles import Bundle
from flowley_jax.media.read import read_audio
from flowley_jax.media.write import write_video
from flowley_jax.model import ModelConfig
from flowley_jax.networks.audio_vae import VAE_16K, VAE_44K, AudioVae
from flowley_jax.networks.bigvgan import BIGVGAN_16K, BIGVGAN_44K, BigVgan
from flowley_jax.networks.clip import CLIP_L14
from flowley_jax.networks.t5 import FLAN_T5_LARGE

pytestmark = pytest.mark.soak

VAES = {"16k": VAE_16K, "44k": VAE_44K}
VOCODERS = {"16k": BIGVGAN_16K, "44k": BIGVGAN_44K}
RATES = {"16k": 16_000, "44k": 44_100}
# Parameter counts of the published files; that of the 44.1 kHz vocoder is known in millions only.
PARAMETERS = {
    "16k": {"audio_vae": 171_657_378, "bigvgan": 112_233_866},
    "44k": {"audio_vae": 305_479_938, "bigvgan": 122e6},
}


def _published(module) -> dict[str, np.ndarray]:
    """Return the weights of a codec or vocoder with the published names and order of axes."""
    arrays = {}
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        name, array = ".".join(map(str, path)), np.asarray(variable[...])
        if array.ndim == 3:
            array = array.transpose((0, 2, 1) if name.startswith("ups.") else (2, 1, 0))
        # np.ascontiguousarray would turn scalars into vectors.
        arrays[name] = np.array(array, order="C")
    return arrays


def _with_weight_norm(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights with each kernel split into magnitude and direction."""
    split = {}
    for name, array in arrays.items():
        if array.ndim == 3 and name.endswith("weight"):
            split[f"{name}_g"] = np.linalg.norm(array.reshape(len(array), -1), axis=1)[:, None, None]
            split[f"{name}_v"] = array
        else:
            split[name] = array
    return split


def _save(path, arrays, entry=""):
    import torch

    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    torch.save({entry: tensors} if entry else tensors, path)
    return path


def _write_files(folder, rate):
    (folder / "bigvgan").mkdir(parents=True)
    vocoder = VOCODERS[rate]
    settings = {
        "upsample_rates": vocoder.rates,
        "resblock_dilation_sizes": [vocoder.dilations] * 3,
        "use_bias_at_final": vocoder.use_bias_at_final,
        "use_tanh_at_final": vocoder.use_tanh_at_final,
    }
    (folder / "bigvgan" / "config.json").write_text(json.dumps(settings))
    weights = _with_weight_norm(_published(BigVgan(vocoder, rngs=nnx.Rngs(0))))
    _save(folder / "bigvgan" / "bigvgan_generator.pt", weights, entry="generator")
    return [
        published.write_clip(folder / "clip", CLIP_L14),
        published.write_t5(folder / "t5", FLAN_T5_LARGE),
        _save(folder / "vae.pth", _published(AudioVae(VAES[rate], rngs=nnx.Rngs(0)))),
        folder / "bigvgan",
        published.write_network(folder / "flowley.safetensors", ModelConfig(audio_dim=VAES[rate].latent_dim)),
    ]


@pytest.mark.parametrize("rate", list(RATES))
def test_published_files_of_full_size_give_a_sound(rate, tmp_path):
    sources = [f"--source={path}" for path in _write_files(tmp_path / "files", rate)]
    result = shell.run("flowley_jax.convert", "--out", tmp_path / "bundles", *sources)
    assert result.returncode == 0, result.stderr
    bundles = {path.name: Bundle.open(path) for path in (tmp_path / "bundles").iterdir()}
    configs = {name: bundle.config for name, bundle in bundles.items()}
    assert configs["clip"] == CLIP_L14 and configs["t5"] == FLAN_T5_LARGE
    assert configs["audio_vae"] == VAES[rate] and configs["bigvgan"] == VOCODERS[rate]
    # The file also has a weight of the text encoder.
    assert bundles["clip"].parameters == 303_966_208 + 7 * 16
    assert bundles["t5"].parameters == 341_231_104
    for name, count in PARAMETERS[rate].items():
        tolerance = 0.01 if isinstance(count, float) else 0
        assert bundles[name].parameters == pytest.approx(count, rel=tolerance, abs=0)
    frames = np.random.default_rng(0).integers(0, 256, (64, 96, 128, 3), np.uint8)
    write_video(tmp_path / "a.mp4", frames, 8.0)
    flags = ("--published", tmp_path / "bundles", "--video", tmp_path / "a.mp4", "--prompt=rain")
    result = shell.run("flowley_jax.sample", *flags, "--steps=2", "--out", tmp_path / "a.wav")
    assert result.returncode == 0, result.stderr
    wave = read_audio(tmp_path / "a.wav", sample_rate=RATES[rate])
    assert len(wave) == 8 * RATES[rate] and 1e-4 < np.abs(wave).max() <= 1.0
