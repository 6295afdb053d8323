"""The linear codec compared with closed forms of principal components."""

import dataclasses

import numpy as np
import pytest

from flowley_jax.audio.mel import MEL_16K, MEL_44K, log_mel
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.audio.protocols import FittedCodec, latents_for, samples_for
from flowley_jax.errors import FlowleyError


def _spectrograms(count=6, frames=40, rank=5, seed=0):
    """Return frames like log-mel frames, whose pairs lie in an affine space of dimension `rank`."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((rank, 160)) * np.arange(rank, 0, -1)[:, None]
    pairs = rng.standard_normal((count, frames // 2, rank)) @ directions - 2.0
    return pairs.reshape(count, frames, 80).astype(np.float32)


def test_data_of_low_rank_is_reconstructed_exactly():
    mels = _spectrograms(rank=5)
    codec = PcaCodec.fit(mels, mel=MEL_16K, latent_dim=5)
    np.testing.assert_allclose(codec.decode(codec.encode_log_mel(mels)[0]), mels, atol=1e-4)


def test_residual_is_the_variance_of_the_omitted_components():
    mels = _spectrograms(rank=30)
    pairs = mels.reshape(-1, 160).astype(np.float64)
    eigenvalues = np.linalg.svd(pairs - pairs.mean(0), compute_uv=False) ** 2 / len(pairs)
    codec = PcaCodec.fit(iter(mels), mel=MEL_16K, latent_dim=12)
    residual = np.square(codec.decode(codec.encode_log_mel(mels)[0]) - mels).sum() / len(pairs)
    assert residual == pytest.approx(eigenvalues[12:].sum(), rel=1e-4)
    latents = codec.encode_log_mel(mels)[0].reshape(-1, 12)
    np.testing.assert_allclose(
        np.cov(latents.T, bias=True), np.diag(eigenvalues[:12]), atol=1e-6 * eigenvalues[0]
    )
    np.testing.assert_allclose(latents.mean(0), 0.0, atol=1e-4)


def test_components_are_orthonormal_and_independent_of_the_order():
    mels = _spectrograms(rank=30)
    codec = PcaCodec.fit(mels, mel=MEL_16K, latent_dim=8)
    np.testing.assert_allclose(codec.components.T @ codec.components, np.eye(8), atol=1e-5)
    again = PcaCodec.fit(mels[::-1], mel=MEL_16K, latent_dim=8)
    np.testing.assert_allclose(again.components, codec.components, atol=1e-4)


def test_encode_applies_to_the_mel_spectrogram_with_zero_deviation():
    codec = PcaCodec.fit(_spectrograms(), mel=MEL_16K, latent_dim=4)
    waves = 0.1 * np.random.default_rng(3).standard_normal((2, 8000)).astype(np.float32)
    mean, std = codec.encode(waves)
    assert isinstance(codec, FittedCodec)
    assert mean.shape == (2, 15, 4) and mean.dtype == np.float32  # 31 mel frames: the odd one is dropped
    np.testing.assert_array_equal(std, np.zeros_like(mean))
    np.testing.assert_array_equal(mean, codec.encode_log_mel(log_mel(waves, MEL_16K))[0])
    assert codec.decode(mean).shape == (2, 30, 80)
    assert codec.latent_rate == 31.25


@pytest.mark.parametrize(
    ("mel", "seconds", "latents", "samples"),
    [(MEL_16K, 8.0, 250, 128_000), (MEL_44K, 8.0, 345, 353_280), (MEL_16K, 4.0, 125, 64_000)],
)
def test_lengths_equal_those_of_the_published_system(mel, seconds, latents, samples):
    assert latents_for(seconds, mel) == latents
    assert samples_for(seconds, mel) == samples


def test_saved_codec_is_loaded_unchanged(tmp_path):
    codec = PcaCodec.fit(_spectrograms(), mel=MEL_16K, latent_dim=4)
    codec.save(tmp_path / "codec.npz")
    loaded = PcaCodec.load(tmp_path / "codec.npz")
    np.testing.assert_array_equal(loaded.components, codec.components)
    np.testing.assert_array_equal(loaded.mean, codec.mean)
    assert loaded.mel == MEL_16K
    assert [path.name for path in tmp_path.iterdir()] == ["codec.npz"]


def test_invalid_input_is_refused(tmp_path):
    with pytest.raises(FlowleyError, match="latent_dim=161"):
        PcaCodec.fit(_spectrograms(), mel=MEL_16K, latent_dim=161)
    with pytest.raises(FlowleyError, match="two pairs"):
        PcaCodec.fit([], mel=MEL_16K, latent_dim=4)
    with pytest.raises(FlowleyError, match="no such codec"):
        PcaCodec.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(FlowleyError, match=r"bad\.npz"):
        PcaCodec.load(tmp_path / "bad.npz")
    codec = PcaCodec.fit(_spectrograms(), mel=MEL_16K, latent_dim=4)
    with pytest.raises(FlowleyError, match="must be"):
        codec.decode(np.zeros((1, 3, 5), np.float32))


def test_identity_is_that_of_the_content_and_not_of_the_file(tmp_path):
    codec = PcaCodec.fit(_spectrograms(), mel=MEL_16K, latent_dim=4)
    codec.save(tmp_path / "codec.npz")
    loaded = PcaCodec.load(tmp_path / "codec.npz")
    # Another writer makes another file of the same content.
    np.savez_compressed(
        tmp_path / "again.npz", version=1, mel="16k", mean=loaded.mean, components=loaded.components.copy("F")
    )
    again = PcaCodec.load(tmp_path / "again.npz")
    assert codec.identity == loaded.identity == again.identity
    assert len(codec.identity) == 64 and int(codec.identity, 16) > 0
    mean, components = codec.mean, codec.components
    changed = [
        PcaCodec(mel=MEL_16K, mean=mean + np.float32(1e-3), components=components),
        PcaCodec(mel=MEL_16K, mean=mean, components=components[:, ::-1]),
        PcaCodec(mel=MEL_16K, mean=mean, components=components * [1, 1, 1, -1]),
        PcaCodec(mel=MEL_16K, mean=mean, components=components[:, :3]),
        PcaCodec(mel=dataclasses.replace(MEL_16K, name="other"), mean=mean, components=components),
    ]
    assert len({codec.identity, *(other.identity for other in changed)}) == 6
