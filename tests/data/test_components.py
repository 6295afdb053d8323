"""Components: sizes, stored form, layouts of earlier versions, and refusal of damaged files."""

import dataclasses
import json

import numpy as np
import pytest

from flowley_jax.audio.griffin_lim import GriffinLimVocoder
from flowley_jax.audio.level_bounds import level_maxima
from flowley_jax.audio.mel import MEL_16K
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.audio.protocols import AudioCodec, Vocoder, samples_for
from flowley_jax.data.component_registry import REGISTRY
from flowley_jax.data.components import Components, components_file
from flowley_jax.data.dims import Dims
from flowley_jax.data.generated import SOURCE, write_generated_records
from flowley_jax.data.pipeline import eval_batches
from flowley_jax.data.record import open_records
from flowley_jax.encoders.hashed_text import HashedTextEncoder
from flowley_jax.encoders.pixels import EarlierPixelEncoder, PixelEncoder
from flowley_jax.encoders.protocols import TextEncoder, VideoEncoder
from flowley_jax.errors import FlowleyError


def _components(**changes):
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
    return Components(**{**settings, **changes})


def test_sizes_follow_from_the_length_in_seconds():
    components = _components()
    assert components.dims == Dims(
        audio_length=32,
        audio_dim=4,
        video_length=12,
        video_dim=components.video_encoder.dim,
        text_length=5,
        text_dim=8,
    )
    assert (components.audio_length_for(4.0), components.video_length_for(4.0)) == (125, 48)
    samples = samples_for(components.seconds, components.codec.mel)
    assert (components.sample_rate, components.video_fps, samples) == (16_000, 12.0, 16_384)


def test_loaded_components_make_the_same_features_as_the_saved_ones(tmp_path):
    components = _components()
    components.save(tmp_path / "records")
    loaded = Components.load(tmp_path / "records")
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    waves = rng.uniform(-0.5, 0.5, (2, samples_for(components.seconds, components.codec.mel))).astype(
        np.float32
    )
    np.testing.assert_array_equal(loaded.features_of_video(frames), components.features_of_video(frames))
    for mine, theirs in zip(
        loaded.features_of_text(["a b"]), components.features_of_text(["a b"]), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    latents, std = loaded.encode_audio(waves)
    np.testing.assert_array_equal(latents, components.encode_audio(waves)[0])
    assert latents.shape == std.shape == (2, 32, 4)
    np.testing.assert_array_equal(loaded.decode_audio(latents), components.decode_audio(latents))
    for name in ("latent_mean", "latent_std"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(components, name))
        assert getattr(loaded, name).dtype == np.float32
    assert (loaded.dims, loaded.source, loaded.seconds) == (
        components.dims,
        components.source,
        components.seconds,
    )


def test_decoded_sound_is_cut_to_the_requested_length():
    latents = np.zeros((2, 32, 4), np.float32)
    assert _components().decode_audio(latents).shape == (2, 16_384)
    assert _components().decode_audio(latents, seconds=1.0).shape == (2, 16_000)


def test_decoded_log_mels_stay_within_the_training_split(monkeypatch):
    """Only what is louder than the training sounds is changed."""
    rng = np.random.default_rng(2)
    heard = []
    monkeypatch.setattr(GriffinLimVocoder, "__call__", lambda self, mels: heard.append(mels) or mels[..., 0])
    mels = rng.standard_normal((3, 64, 80)).astype(np.float32) - 3.0
    maxima = level_maxima(mels, MEL_16K)
    components = _components(log_mel_max=maxima)
    latents, _ = components.codec.encode_log_mel(mels)
    decoded = components.codec.decode(latents)
    np.testing.assert_array_equal(components.decode_latents(latents), np.minimum(decoded, maxima[:-1]))
    # A codec that loses something is quieter than what it encodes.
    components.decode_audio(np.concatenate([latents, 9 * latents[:1]]))
    np.testing.assert_array_equal(heard[0][:3], np.minimum(decoded, maxima[:-1]))
    reached = level_maxima(heard[0], MEL_16K)
    assert (reached <= maxima + 1e-6).all()
    dataclasses.replace(components, log_mel_max=None).decode_audio(latents)
    np.testing.assert_array_equal(heard[1], decoded)


def test_the_bound_is_stored_and_is_no_part_of_the_identity(tmp_path):
    components = _components(log_mel_max=np.linspace(-2, 1 / 3, 81, dtype=np.float32))
    components.save(tmp_path)
    loaded = Components.load(tmp_path)
    np.testing.assert_array_equal(loaded.log_mel_max, components.log_mel_max)
    assert loaded.log_mel_max.dtype == np.float32
    assert loaded.identity == _components().identity and not loaded.differences(_components())
    _edit(tmp_path, lambda stored: stored.pop("log_mel_max"))
    assert Components.load(tmp_path).log_mel_max is None


def test_the_gain_scales_waves_and_is_no_part_of_the_identity(tmp_path):
    components = _components(wave_gain=1.5)
    components.save(tmp_path)
    loaded, plain = Components.load(tmp_path), _components()
    latents = np.random.default_rng(3).standard_normal((1, 32, 4)).astype(np.float32)
    expected = np.float32(1.5) * plain.decode_audio(latents)
    np.testing.assert_array_equal(loaded.decode_audio(latents), expected)
    assert loaded.decode_audio(latents).dtype == np.float32 and np.abs(expected).max() > 0
    assert loaded.identity == plain.identity and not loaded.differences(plain)


def test_files_of_earlier_versions_have_no_gain_and_see_motion_at_cuts(tmp_path):
    _components(wave_gain=1.5).save(tmp_path)

    def to_earlier(stored):
        del stored["wave_gain"]
        stored["video_encoder"]["version"] = 1

    _edit(tmp_path, to_earlier)
    loaded = Components.load(tmp_path)
    assert loaded.wave_gain == 1.0
    assert loaded.video_encoder == EarlierPixelEncoder(fps=12.0)
    assert '"version": 1' in loaded.identity_of("video_encoder")
    loaded.save(tmp_path)
    assert Components.load(tmp_path).video_encoder == loaded.video_encoder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wave_gain": 0.0}, r"wave_gain=0\.0 must be above 0 and at most 1000"),
        ({"wave_gain": float("nan")}, "wave_gain=nan must be a finite number"),
        ({"latent_std": np.array([1.0, 0.0, 1.0, 1.0], np.float32)}, "channel 1 is constant"),
        ({"latent_std": np.array([1.0, 1.0, np.nan, 1.0], np.float32)}, "latent std has values"),
        ({"latent_mean": np.zeros(3, np.float32)}, r"must be \(4,\)"),
        ({"latent_std": np.full(4, np.inf, np.float32)}, "latent std has values that are not finite"),
        ({"log_mel_max": np.zeros(80, np.float32)}, r"log-mel maximum \(80,\) must be \(81,\)"),
        ({"log_mel_max": np.full(81, -np.inf, np.float32)}, "log-mel maximum has values that are not finite"),
        ({"seconds": 0.0}, r"seconds=0\.0 must be at least 0\.01 and at most 3600"),
        ({"seconds": 0.01}, "too short"),
    ],
)
def test_invalid_components_are_refused(change, message):
    with pytest.raises(FlowleyError, match=message):
        _components(**change)


def _edit(tmp_path, edit):
    path = tmp_path / "components.json"
    stored = json.loads(path.read_text())
    edit(stored)
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.update(version=2), "has version 2, expected 1"),
        (lambda s: s.update(extra=1), "unknown keys \\['extra'\\]"),
        (lambda s: s.pop("seconds"), "missing keys \\['seconds'\\]"),
        (lambda s: s["video_encoder"].update(version=99), "has version 99, this program has"),
        (lambda s: s["video_encoder"].update(name="eyes"), "'eyes' is unknown; known: clip, pixels"),
        (lambda s: s["video_encoder"].update(version=1, extra=2), r"unknown keys \['extra'\]"),
        (lambda s: s.update(wave_gain="loud"), "wrong type"),
        (lambda s: s.update(wave_gain=-1), r"wave_gain=-1\.0 must be above 0"),
        (lambda s: s["text_encoder"].pop("dim"), "missing keys \\['dim'\\]"),
        (lambda s: s.update(vocoder=3), "vocoder must be a JSON object"),
        (lambda s: s.update(seconds="long"), "wrong type"),
        (lambda s: s.update(seconds=float("inf")), "seconds=inf must be a finite number"),
        (lambda s: s["text_encoder"].update(dim=1.5), r"hashed_words\.dim=1\.5 must be an int"),
        (lambda s: s["text_encoder"].update(dim=10**20), r"hashed_words\.dim=1\d+ must be at least 1 and at"),
        (lambda s: s["video_encoder"].update(frame_size=33), r"pixels\.frame_size=33 must be even"),
        (lambda s: s["vocoder"].update(iterations=True), r"griffin_lim\.iterations=True must be an int"),
        (lambda s: s.update(latent_mean=[np.nan] * 4), "latent mean has values that are not finite"),
        (lambda s: s.update(log_mel_max=["loud"] * 80), "wrong type"),
        (lambda s: s.update(log_mel_max=None), r"log-mel maximum \(\) must be"),
        (lambda s: s["codec"].update(latent_dim=5), "expected 16k and 5"),
        (lambda s: s["codec"].update(file="../codec.npz"), "codec.file='../codec.npz' must be 'codec.npz'"),
    ],
)
def test_a_damaged_file_is_named_in_the_error(tmp_path, edit, message):
    _components().save(tmp_path)
    _edit(tmp_path, edit)
    with pytest.raises(FlowleyError, match=message) as caught:
        Components.load(tmp_path)
    assert str(tmp_path / "components.json") in str(caught.value)


def test_a_foreign_codec_and_a_missing_or_broken_file_are_refused(tmp_path):
    components = _components()
    components.save(tmp_path)
    PcaCodec(mel=MEL_16K, mean=components.codec.mean + 1, components=components.codec.components).save(
        tmp_path / "codec.npz"
    )
    with pytest.raises(FlowleyError, match="not the codec of this data set"):
        Components.load(tmp_path)
    (tmp_path / "components.json").write_text("{")
    with pytest.raises(FlowleyError, match=r"components\.json: is not valid JSON"):
        Components.load(tmp_path)
    with pytest.raises(FlowleyError, match=r"components\.json: no such file"):
        Components.load(tmp_path / "none")


def _to_earlier_layout(folder):
    (folder / "components.json").rename(folder / "parts.json")


def test_folders_of_earlier_versions_are_read(tmp_path):
    components = _components()
    components.save(tmp_path / "records")
    _to_earlier_layout(tmp_path / "records")
    assert components_file(tmp_path / "records") == tmp_path / "records" / "parts.json"
    loaded = Components.load(tmp_path / "records")
    np.testing.assert_array_equal(loaded.codec.components, components.codec.components)
    assert (loaded.dims, loaded.source) == (components.dims, components.source)
    loaded.save(tmp_path / "records")
    assert components_file(tmp_path / "records") == tmp_path / "records" / "components.json"
    assert not (tmp_path / "records" / "parts.json").exists()


def test_stored_form_keeps_the_keys_and_their_order(tmp_path):
    _components().save(tmp_path)
    stored = json.loads((tmp_path / "components.json").read_text())
    assert list(stored) == [
        *("version", "source", "seconds", "video_encoder", "text_encoder", "codec", "vocoder"),
        *("latent_mean", "latent_std", "wave_gain"),
    ]
    assert list(stored["video_encoder"]) == ["version", "name", "fps", "frame_size", "dim"]
    assert stored["text_encoder"] == {"version": 1, "name": "hashed_words", "dim": 8, "max_tokens": 5}
    assert list(stored["codec"]) == ["name", "mel", "latent_dim", "file", "sha256"]
    assert stored["vocoder"] == {"name": "griffin_lim", "iterations": 2}


def test_missing_file_suggests_a_folder_below(tmp_path):
    for name in ("a", "b"):
        _components().save(tmp_path / name)
    _to_earlier_layout(tmp_path / "a")
    with pytest.raises(FlowleyError, match=rf"did you mean {tmp_path / 'a'}\?"):
        Components.load(tmp_path)


def test_every_registered_component_has_its_name_format_and_protocol():
    protocols = {
        "video_encoder": VideoEncoder,
        "text_encoder": TextEncoder,
        "codec": AudioCodec,
        "vocoder": Vocoder,
    }
    assert REGISTRY.keys() == protocols.keys()
    for role, entries in REGISTRY.items():
        for entry in entries:
            component_type = entry.load()
            assert component_type.name == entry.name
            assert getattr(component_type, "format", "") == entry.bundle_format
            assert component_type.runs_on_host == (not entry.bundle_format)
            members = set(dir(protocols[role])) | set(protocols[role].__annotations__)
            fields = {field.name for field in dataclasses.fields(component_type)}
            missing = (
                {name for name in members if not name.startswith("_")} - set(dir(component_type)) - fields
            )
            assert not missing


def test_generated_records_fit_their_components(tmp_path):
    sizes = dict(audio_length=20, audio_dim=20, video_dim=48, text_length=9, text_dim=5)
    write_generated_records(tmp_path, **sizes, video_fps=9.0, count=8, seed=4)
    components = Components.load(tmp_path)
    assert components.dims == Dims(**sizes, video_length=6)
    assert components.source == SOURCE
    assert [len(open_records(tmp_path, split)) for split in ("train", "valid", "test")] == [8, 2, 2]
    (batch,) = eval_batches(tmp_path, "train", batch_size=8)
    assert batch["audio_mean"].std() == pytest.approx(components.latent_std[0], rel=0.05)
    assert components.decode_audio(batch["audio_mean"][:1]).shape == (1, 20 * 512)
    frames = np.zeros((6, 96, 96, 3), np.uint8)
    assert components.features_of_video(frames).shape == (6, 48)


def test_generated_records_refuse_impossible_sizes(tmp_path):
    sizes = dict(audio_length=20, audio_dim=161, video_fps=9.0, video_dim=4, text_length=9, text_dim=5)
    with pytest.raises(FlowleyError, match="audio_dim=161"):
        write_generated_records(tmp_path, **sizes, count=1, seed=0)


def test_identity_is_that_of_the_content(tmp_path):
    components = _components()
    components.save(tmp_path / "records")
    loaded = Components.load(tmp_path / "records")
    assert loaded.identity == components.identity and not components.differences(loaded)
    assert dataclasses.replace(components, source="renamed.tsv").identity == components.identity
    codec = components.codec
    changes = {
        "codec pca 16k/4": {"codec": dataclasses.replace(codec, mean=codec.mean + 1)},
        "another video_encoder": {"video_encoder": PixelEncoder(fps=12.0, frame_size=48)},
        "another text_encoder": {"text_encoder": HashedTextEncoder(dim=9, max_tokens=5)},
        "another vocoder": {"vocoder": GriffinLimVocoder(mel=MEL_16K, iterations=3)},
        "seconds=2 instead of 1": {"seconds": 2.0},
        "other statistics of the latents": {"latent_mean": components.latent_mean + 1},
    }
    for expected, change in changes.items():
        other = dataclasses.replace(components, **change)
        (phrase,) = components.differences(other)
        assert phrase.startswith(expected)
        assert other.identity != components.identity
