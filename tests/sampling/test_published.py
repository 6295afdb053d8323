"""Sampling with the published system in miniature, and the report of a dry run."""

import json
import shutil

import numpy as np
import published
import pytest

from flowley_jax.audio.latent_space import LatentSpace
from flowley_jax.audio.vae_codec import VaeCodec
from flowley_jax.common.files import sha256
from flowley_jax.config import SampleConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.convert import convert, write_back
from flowley_jax.interop.weight_files import read_arrays, read_notes, write_arrays
from flowley_jax.media.write import write_video
from flowley_jax.sampling.dry_run import dry_run
from flowley_jax.sampling.estimate_text import format_estimate
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.published import load_published, published_settings

SETTINGS = SampleConfig(solver=SolverConfig(steps=2), guidance=2.0)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return published.write_bundles(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def sampler(bundles):
    return load_published(bundles, settings=SETTINGS)


def _frames(count):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_sampler_has_the_lengths_of_the_published_system(sampler):
    assert sampler.components.lengths == (250, 64, 77)
    assert (sampler.components.video_fps, sampler.components.sample_rate) == (8.0, 16_000)


@pytest.mark.scale
def test_sound_has_the_length_of_its_video_and_is_reproducible(sampler):
    waves = sampler.sound(_frames(8), "a dog barks", clip_id="a", num_samples=2)
    assert waves.shape == (2, 16_000) and np.abs(waves).max() <= 1.0
    assert np.abs(waves[0] - waves[1]).max() > 1e-3
    again = sampler.sound(_frames(8), "a dog barks", clip_id="a", num_samples=2)
    np.testing.assert_array_equal(again, waves)


def test_video_is_encoded_once_for_all_its_sounds(sampler, monkeypatch):
    calls = []
    encoder = type(sampler.components.video_encoder)
    original = encoder.__call__
    monkeypatch.setattr(encoder, "__call__", lambda self, frames: calls.append(1) or original(self, frames))
    sampler.sound(_frames(8), "rain", num_samples=2)
    assert len(calls) == 1


def test_text_features_are_normalised_over_the_tokens(sampler):
    features, lengths = sampler.components.features_of_text(["rain falls on a tin roof", "two glasses clink"])
    assert features.shape == (2, 77, published.T5_DIM)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, rtol=1e-5)
    assert (lengths > 2).all() and (lengths < 77).all()


def test_long_caption_is_cut_before_its_end_token(sampler, caplog):
    encoder = sampler.components.text_encoder
    ids, valid = encoder.tokens(["a dog barks at the gate " * 40])
    assert valid.all() and ids[0, -1] == 1
    assert "is cut to 77" in caplog.text


def test_video_features_have_unit_length(sampler):
    features = sampler.components.features_of_video(_frames(70))
    assert features.shape == (70, published.CLIP_DIM)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, rtol=1e-5)
    # 70 frames are two batches; the features of a frame do not depend on its batch.
    np.testing.assert_allclose(
        features[66:67], sampler.components.features_of_video(_frames(70)[66:67]), atol=1e-6
    )


def _change_manifest(bundles, folder, name, **values):
    """Link the bundles into a folder, and change values of one's manifest; None removes a value."""
    for path in bundles.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / name).unlink()
    (folder / name).mkdir()
    for path in (bundles / name).iterdir():
        (folder / name / path.name).symlink_to(path)
    manifest = {**json.loads((bundles / name / "manifest.json").read_text()), **values}
    (folder / name / "manifest.json").unlink()
    stored = {key: value for key, value in manifest.items() if value is not None}
    (folder / name / "manifest.json").write_text(json.dumps(stored))


@pytest.mark.parametrize(("seconds", "lengths"), [(4.0, (125, 32, 77)), (None, (250, 64, 77))])
def test_trained_length_is_the_bundles(bundles, tmp_path, seconds, lengths):
    _change_manifest(bundles, tmp_path, "flowley", seconds=seconds)
    assert load_published(tmp_path).components.lengths == lengths


def test_decoded_log_mels_are_bounded_by_the_codecs_level(bundles, sampler, tmp_path):
    assert sampler.components.log_mel_max is None
    level = np.full(81, -2.0)
    _change_manifest(bundles, tmp_path, "audio_vae", log_mel_max=level.tolist())
    np.testing.assert_array_equal(load_published(tmp_path).components.log_mel_max, np.float32(level))


def test_published_flow_maps_are_sampled_in_their_own_steps(bundles, sampler, tmp_path):
    assert published_settings(bundles) == SampleConfig()
    flow_map = SampleConfig(solver=SolverConfig(name="flow_map", steps=4), guidance=1.0)
    with pytest.raises(FlowleyError, match=r"solver\.name='flow_map' needs weights that were trained with"):
        load_published(bundles, settings=flow_map)
    arrays, notes = read_arrays(bundles / "flowley/weights.safetensors")
    noted = tmp_path / "noted.safetensors"
    write_arrays(noted, arrays, {**notes, "flowley_jax.flow_map": "true"})
    _change_manifest(bundles, tmp_path, "flowley", sha256=sha256(noted))
    (tmp_path / "flowley/weights.safetensors").unlink()
    noted.rename(tmp_path / "flowley/weights.safetensors")
    assert load_published(tmp_path).settings == published_settings(tmp_path) == flow_map


def test_published_weights_have_no_earlier_ones(bundles):
    with pytest.raises(FlowleyError, match=r"autoguidance_step=5 needs a training run"):
        load_published(bundles, settings=SampleConfig(autoguidance_step=5))


@pytest.mark.scale
def test_dry_run_estimates_the_stages_of_all_bundles(sampler, bundles, tmp_path):
    write_video(tmp_path / "a.mp4", _frames(64), 8.0)
    clip = InputClip(id="a", path=tmp_path / "a.mp4", prompt="rain")
    estimate, failed = dry_run(sampler, [clip], num_samples=2)
    assert estimate is not None and failed == []
    reading, *stages = estimate.stages
    assert reading.stage == "frames"
    assert [report.stage for report in stages] == [
        "video features",
        "text features",
        "latents",
        "log-mel frames",
        "waves",
    ]
    for report in stages:
        assert str(bundles) in report.component and report.memory.weights > 0 and report.seconds
    text = format_estimate(estimate)
    assert "windows:      2 of 8.00 s in 1 batch" in text
    assert "evaluations:  4 of the network per window (2 steps of euler, guidance 2)" in text


def test_missing_bundles_are_named_with_the_command_that_makes_them(bundles, tmp_path):
    (tmp_path / "t5").symlink_to(bundles / "t5")
    with pytest.raises(
        FlowleyError, match=r"lacks flowley \(Flowley's network\), audio_vae.*flowley_jax\.convert"
    ):
        load_published(tmp_path)


def test_bundles_of_different_sizes_are_refused(bundles, tmp_path):
    for name in ("flowley", "t5", "audio_vae", "bigvgan"):
        (tmp_path / name).symlink_to(bundles / name)
    (tmp_path / "clip").mkdir()
    manifest = json.loads((bundles / "clip" / "manifest.json").read_text())
    manifest["config"]["dim"] = 8
    (tmp_path / "clip" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FlowleyError, match=r"lacks clip \(a CLIP image encoder\)"):
        load_published(tmp_path)
    (tmp_path / "clip" / "weights.safetensors").symlink_to(bundles / "clip" / "weights.safetensors")
    with pytest.raises(FlowleyError, match="flowley has video_dim=24, clip has 8"):
        load_published(tmp_path)


def test_an_exported_network_names_its_codec_and_another_one_is_refused(bundles, tmp_path):
    for name in ("clip", "t5", "audio_vae", "bigvgan"):
        (tmp_path / name).symlink_to(bundles / name)
    arrays, _ = read_arrays(bundles / "flowley" / "weights.safetensors")
    ours = VaeCodec(bundle=Bundle.open(bundles / "audio_vae"))
    other = LatentSpace(identity="0" * 64, title="pca 16k/20")
    for space in (LatentSpace.of(ours), other):
        write_arrays(tmp_path / "exported.safetensors", arrays, {"format": "pt", **space.notes})
        shutil.rmtree(tmp_path / "flowley", ignore_errors=True)
        bundle = convert(str(tmp_path / "exported.safetensors"), tmp_path)
        assert bundle.notes() == space.notes
        write_back(tmp_path / "flowley", tmp_path / "back.safetensors", overwrite=True)
        assert LatentSpace.from_notes(read_notes(tmp_path / "back.safetensors")) == space
        if space != other:
            load_published(tmp_path)
    with pytest.raises(FlowleyError, match=r"is for latents of pca 16k/20 \(000000…\).*audio_vae 16k/20"):
        load_published(tmp_path)
