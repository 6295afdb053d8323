"""Records for an existing model: its codec, front end, vocoder and encoders, and refusal of anything else."""

import dataclasses
import shutil

import golden_data
import numpy as np
import pytest
import shell
import tiny
import unusable
from safetensors.numpy import save_file

from data_prep.model_settings import settings_for_model
from data_prep.record_components import RecordComponents
from data_prep.records import RunOptions, prepare_records
from data_prep.settings import RecordSettings
from flowley_jax.audio.mel import log_mel
from flowley_jax.audio.protocols import samples_for
from flowley_jax.audio.vae_codec import VaeCodec
from flowley_jax.data.components import Components
from flowley_jax.data.record import open_records
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.convert import convert
from flowley_jax.media.read import read_audio
from flowley_jax.runs.workdir import open_workdir

RUN = RunOptions(decoders=1, time_limit=60.0)
# The text encoder's width is not the default, as the other sizes of these settings.
SETTINGS = dataclasses.replace(unusable.SETTINGS, text_dim=12)


def _write_clips(folder, seeds):
    folder.mkdir()
    rows = []
    for index, seed in enumerate(seeds):
        unusable.write_clip(folder / f"c{index}.mp4", seed=seed)
        rows.append((f"id{index}", f"c{index}.mp4", f"a ball number {index}", "train", "ball"))
    unusable.write_table(folder, rows)
    return folder / "clips.tsv"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the records that the model was trained on."""
    folder = tmp_path_factory.mktemp("base")
    prepare_records(_write_clips(folder / "clips", (0, 1, 2)), folder / "records", SETTINGS, RUN)
    return folder / "records"


@pytest.fixture(scope="module")
def model_run(base, tmp_path_factory):
    """Return the folder of a run on these records."""
    workdir, components = tmp_path_factory.mktemp("run"), Components.load(base)
    model = dataclasses.replace(
        tiny.MODEL,
        audio_dim=components.dims.audio_dim,
        video_dim=components.dims.video_dim,
        text_dim=components.dims.text_dim,
    )
    open_workdir(workdir, tiny.experiment(base, model=model), components, base)
    return workdir


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return _write_clips(tmp_path_factory.mktemp("new") / "clips", (7, 8))


def _read_files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}


def test_records_for_a_run_have_its_latents_and_features(base, model_run, table, tmp_path, capsys):
    shared = dataclasses.replace(RUN, features=str(tmp_path / "features"))
    settings = settings_for_model(str(model_run), RecordSettings(), given=set())
    prepare_records(table, tmp_path / "records", settings, shared)
    theirs, ours = Components.load(base), Components.load(tmp_path / "records")
    assert ours.latent_space == theirs.latent_space
    assert theirs.differences(ours) == ["other statistics of the latents, so other clips"]
    assert ours.dims == theirs.dims and ours.seconds == theirs.seconds
    assert ours.wave_gain == theirs.wave_gain != 1.0
    example = next(one for one in open_records(tmp_path / "records", "train") if one["id"] == b"id1")
    wave = read_audio(table.parent / "c1.mp4", sample_rate=16_000)[: samples_for(1.0, theirs.codec.mel)]
    expected = theirs.codec.encode_log_mel(log_mel(wave, theirs.codec.mel)[None])[0][0]
    np.testing.assert_allclose(example["audio_mean"], expected, atol=1e-5)

    # The same command finds its records; an own codec for the same clips finds their features.
    written = _read_files(tmp_path)
    capsys.readouterr()
    prepare_records(table, tmp_path / "records", settings, shared)
    assert "the records already exist" in capsys.readouterr().out
    own = dataclasses.replace(settings, codec="pca")
    prepare_records(table, tmp_path / "own", own, shared)
    assert "2 of 2 clips have already been read" in capsys.readouterr().out
    assert _read_files(tmp_path / "features").items() <= written.items()
    assert Components.load(tmp_path / "own").latent_space != theirs.latent_space
    with pytest.raises(FlowleyError, match=r"different settings \(codec was '[^;]*', is now 'pca'\); choose"):
        prepare_records(table, tmp_path / "records", own, shared)


def test_records_do_not_depend_on_the_path_of_the_model(base, table, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(base, moved, ignore=shutil.ignore_patterns("features"))
    for source in (base, moved):
        settings = settings_for_model(str(source), RecordSettings(), given=set())
        prepare_records(table, tmp_path / "records", settings, RUN)
    assert "the records already exist" in capsys.readouterr().out


def test_the_length_is_the_models_unless_it_is_given(base):
    chosen = RecordSettings(seconds=2.0, feature_dtype="float16")
    assert settings_for_model(str(base), chosen, given={"feature_dtype"}).seconds == 1.0
    settings = settings_for_model(str(base), chosen, given={"seconds", "feature_dtype"})
    assert settings.seconds == 2.0 and settings.feature_dtype == "float16"


def test_settings_that_contradict_the_model_are_refused_by_name(base, table, tmp_path):
    flags = ("--table", table, "--out", tmp_path / "out", "--codec-from", base)
    # max_tokens=32 is the default, but the model has 8 and the flag was given.
    result = shell.run("data_prep.extract", *flags, "--config.mel=44k", "--config.max_tokens=32")
    shell.fails_in_one_line(result, f"--codec-from {base}", "max_tokens=32 must be 8, mel=44k must be 16k")
    assert not (tmp_path / "out").exists()
    result = shell.run("data_prep.extract", *flags, "--config.mel=16k", "--config.text_dim=12")
    assert result.returncode == 0, result.stderr
    assert Components.load(tmp_path / "out").latent_space == Components.load(base).latent_space


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(FlowleyError, match="holds neither a run nor records"):
        settings_for_model(str(tmp_path), RecordSettings(), given=set())
    generated = tiny.write_records(tmp_path / "generated")
    with pytest.raises(FlowleyError, match="no settings make records for this model: another video_encoder"):
        settings_for_model(str(generated), RecordSettings(), given=set())


def test_published_components_are_taken_from_where_their_bundles_are(base, tmp_path):
    save_file(golden_data.state_dict("g_vae16k"), tmp_path / "vae.safetensors")
    convert(str(tmp_path / "vae.safetensors"), tmp_path / "bundles")
    codec = VaeCodec(bundle=Bundle.open(tmp_path / "bundles/audio_vae"))
    statistics = {"latent_mean": np.zeros(20, np.float32), "latent_std": np.ones(20, np.float32)}
    dataclasses.replace(Components.load(base), codec=codec, **statistics).save(tmp_path / "records")

    def settings_with(**chosen):
        return settings_for_model(str(tmp_path / "records"), RecordSettings(**chosen), given=chosen.keys())

    (tmp_path / "link").symlink_to(tmp_path / "bundles")
    for folder in ("bundles", "link"):
        settings = settings_with(codec=str(tmp_path / folder / "audio_vae"))
        assert RecordComponents(settings).codec.identity == codec.identity
    with pytest.raises(FlowleyError, match=r"codec=.*published44/audio_vae must be .*bundles/audio_vae"):
        settings_with(published=str(tmp_path / "published44"))
