"""Parts: sizes, round trip through the folder, and refusal of anything that does not belong."""

import json

import numpy as np
import pytest

from flowley_jax.audio.griffin_lim import GriffinLimVocoder
from flowley_jax.audio.mel import MEL_16K
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.data.generated import SOURCE, write_generated_records
from flowley_jax.data.parts import Parts
from flowley_jax.data.pipeline import eval_batches
from flowley_jax.data.record import Dims, open_records
from flowley_jax.encoders.hashed_text import HashedTextEncoder
from flowley_jax.encoders.pixels import PixelEncoder
from flowley_jax.errors import FlowleyError


def _parts(**changes):
    mels = np.random.default_rng(0).standard_normal((4, 100, 80)).astype(np.float32) - 3.0
    settings = dict(
        seconds=1.0,
        video_encoder=PixelEncoder(fps=12.0),
        text_encoder=HashedTextEncoder(dim=8, max_tokens=5),
        codec=PcaCodec.fit(mels, mel=MEL_16K, latent_dim=4),
        vocoder=GriffinLimVocoder(mel=MEL_16K, iterations=2),
        latent_mean=np.array([0.1, 1 / 3, 0.0, -2.0], np.float32),
        latent_std=np.array([1.0, 2.0, 0.5, 0.7], np.float32),
        source="clips.tsv",
    )
    return Parts(**{**settings, **changes})


def test_sizes_follow_from_seconds():
    parts = _parts()
    assert parts.dims == Dims(
        audio_length=32,
        audio_dim=4,
        video_length=12,
        video_dim=parts.video_encoder.dim,
        text_length=5,
        text_dim=8,
    )
    assert (parts.audio_length_for(4.0), parts.video_length_for(4.0)) == (125, 48)
    assert (parts.sample_rate, parts.video_fps, parts.audio_samples) == (16_000, 12.0, 16_384)


def test_saved_and_loaded_parts_make_the_same_features(tmp_path):
    parts = _parts()
    parts.save(tmp_path / "records")
    loaded = Parts.load(tmp_path / "records")
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    waves = rng.uniform(-0.5, 0.5, (2, parts.audio_samples)).astype(np.float32)
    np.testing.assert_array_equal(loaded.features_of_video(frames), parts.features_of_video(frames))
    for mine, theirs in zip(loaded.features_of_text(["a b"]), parts.features_of_text(["a b"]), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    latents, std = loaded.encode_audio(waves)
    np.testing.assert_array_equal(latents, parts.encode_audio(waves)[0])
    assert latents.shape == std.shape == (2, 32, 4)
    np.testing.assert_array_equal(loaded.decode_audio(latents), parts.decode_audio(latents))
    for name in ("latent_mean", "latent_std"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(parts, name))
        assert getattr(loaded, name).dtype == np.float32
    assert (loaded.dims, loaded.source, loaded.seconds) == (parts.dims, parts.source, parts.seconds)


def test_decoded_sound_is_cut_to_the_length_asked_for():
    latents = np.zeros((2, 32, 4), np.float32)
    assert _parts().decode_audio(latents).shape == (2, 16_384)
    assert _parts().decode_audio(latents, seconds=1.0).shape == (2, 16_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_std": np.array([1.0, 0.0, 1.0, 1.0], np.float32)}, "channel 1 does not vary"),
        ({"latent_std": np.array([1.0, 1.0, np.nan, 1.0], np.float32)}, "channel 2 does not vary"),
        ({"latent_mean": np.zeros(3, np.float32)}, r"must be \(4,\)"),
        ({"seconds": 0.0}, "too short"),
    ],
)
def test_impossible_parts(change, message):
    with pytest.raises(FlowleyError, match=message):
        _parts(**change)


def _edit(tmp_path, edit):
    path = tmp_path / "parts.json"
    stored = json.loads(path.read_text())
    edit(stored)
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.update(version=2), "version 2, expected 1"),
        (lambda s: s.update(extra=1), "unknown keys \\['extra'\\]"),
        (lambda s: s.pop("seconds"), "missing keys \\['seconds'\\]"),
        (lambda s: s["video_encoder"].update(version=99), "version 99, this program has"),
        (lambda s: s["video_encoder"].update(name="eyes"), "'eyes' is unknown; there are clip, pixels"),
        (lambda s: s["text_encoder"].pop("dim"), "missing keys \\['dim'\\]"),
        (lambda s: s.update(vocoder=3), "vocoder must be a JSON object"),
        (lambda s: s.update(seconds="long"), "wrong type"),
        (lambda s: s["codec"].update(latent_dim=5), "expected 16k and 5"),
        (lambda s: s["codec"].update(file="../codec.npz"), "expected 'codec.npz'"),
    ],
)
def test_a_changed_file_is_refused_by_name(tmp_path, edit, message):
    _parts().save(tmp_path)
    _edit(tmp_path, edit)
    with pytest.raises(FlowleyError, match=message) as caught:
        Parts.load(tmp_path)
    assert str(tmp_path / "parts.json") in str(caught.value)


def test_another_codec_and_a_missing_or_broken_file_are_refused(tmp_path):
    parts = _parts()
    parts.save(tmp_path)
    PcaCodec(mel=MEL_16K, mean=parts.codec.mean + 1, components=parts.codec.components).save(
        tmp_path / "codec.npz"
    )
    with pytest.raises(FlowleyError, match="not the codec of this data set"):
        Parts.load(tmp_path)
    (tmp_path / "parts.json").write_text("{")
    with pytest.raises(FlowleyError, match=r"parts\.json: cannot be read as JSON"):
        Parts.load(tmp_path)
    with pytest.raises(FlowleyError, match=r"parts\.json: no such file"):
        Parts.load(tmp_path / "none")


def test_generated_records_fit_their_parts(tmp_path):
    sizes = dict(audio_length=20, audio_dim=20, video_dim=48, text_length=9, text_dim=5)
    write_generated_records(tmp_path, **sizes, video_fps=9.0, count=8, seed=4)
    parts = Parts.load(tmp_path)
    assert parts.dims == Dims(**sizes, video_length=6)
    assert parts.source == SOURCE
    assert [len(open_records(tmp_path, split)) for split in ("train", "valid", "test")] == [8, 2, 2]
    (batch,) = eval_batches(tmp_path, "train", batch_size=8)
    assert batch["audio_mean"].std() == pytest.approx(parts.latent_std[0], rel=0.05)
    assert parts.decode_audio(batch["audio_mean"][:1]).shape == (1, 20 * 512)
    frames = np.zeros((6, 96, 96, 3), np.uint8)
    assert parts.features_of_video(frames).shape == (6, 48)


def test_generated_records_of_impossible_sizes(tmp_path):
    sizes = dict(audio_length=20, audio_dim=161, video_fps=9.0, video_dim=4, text_length=9, text_dim=5)
    with pytest.raises(FlowleyError, match="audio_dim=161"):
        write_generated_records(tmp_path, **sizes, count=1, seed=0)
