"""Weights, adapters, records and components of different codecs, and damaged files, are never mixed."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import shell
import tiny

from flowley_jax.audio.latent_space import LatentSpace
from flowley_jax.audio.mel import MEL_16K
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.config import StartConfig
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.weight_files import read_arrays, write_arrays
from flowley_jax.runs.weights import (
    averaged_weights,
    read_weights,
    starting_weights,
    with_adapters,
    write_adapters,
    write_weights,
)
from flowley_jax.runs.workdir import BASE, load_components, open_workdir
from flowley_jax.sampling import Sampler
from flowley_jax.training.loop import train

SIGMA = 0.05


def _with_another_codec(components):
    codec = components.codec
    other = PcaCodec(mel=codec.mel, mean=codec.mean + 1, components=codec.components)
    return dataclasses.replace(components, codec=other, latent_mean=components.latent_mean + 0.25)


@pytest.fixture(scope="module")
def other_records(records, tmp_path_factory):
    """Copy the records, with another codec of the same sizes."""
    folder = tmp_path_factory.mktemp("other") / "records"
    shutil.copytree(records, folder)
    _with_another_codec(Components.load(records)).save(folder)
    return folder


@pytest.fixture
def copied(adapted, tmp_path):
    """Copy the run with LoRA, to damage it."""
    shutil.copytree(adapted, tmp_path / "run")
    return tmp_path / "run"


def _names(*folders):
    names = [str(Components.load(folder).latent_space) for folder in folders]
    assert len(set(names)) == len(names)
    return names


def _start(weights, **settings):
    return StartConfig(weights=str(weights), **settings)


def _warnings(caplog):
    return [record.message for record in caplog.records if record.name.startswith("flowley_jax")]


def _flip(path):
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)


def test_a_space_is_named_by_codec_front_end_channels_and_identity():
    codec = PcaCodec(mel=MEL_16K, mean=np.zeros(160, np.float32), components=np.eye(160, 6, dtype=np.float32))
    space = LatentSpace.of(codec)
    assert str(space) == f"pca 16k/6 ({codec.identity[:6]}…)"
    assert LatentSpace.from_notes(space.notes) == space
    assert LatentSpace.from_notes({"format": "pt"}) is None


@pytest.mark.parametrize("kind", ["run", "file"])
def test_training_from_weights_of_another_codec_is_refused(source, records, other_records, tmp_path, kind):
    weights = source
    if kind == "file":
        weights = tmp_path / "w.safetensors"
        write_weights(weights, averaged_weights(source, sigma_rel=SIGMA), {})
    config = tiny.experiment(other_records, start=_start(weights))
    with pytest.raises(FlowleyError, match=r"start\.weights=.*--codec-from") as caught:
        train(config, tmp_path / "run")
    assert all(name in str(caught.value) for name in _names(records, other_records))
    assert "\n" not in str(caught.value)


def test_weights_may_learn_another_codec_if_that_is_asked_for(source, other_records, caplog):
    theirs = Components.load(other_records)
    start = starting_weights(_start(source, any_codec=True), tiny.MODEL, theirs)
    assert "must be learned again" in caplog.text
    assert start.latent_space == theirs.latent_space
    # The statistics belong to the codec; the other weights stay.
    np.testing.assert_array_equal(start.constants["latent_mean"][...], theirs.latent_mean)
    before = averaged_weights(source, sigma_rel=SIGMA)
    for leaf, expected in zip(
        jax.tree.leaves(start.parameters), jax.tree.leaves(before.parameters), strict=True
    ):
        np.testing.assert_array_equal(leaf, expected)


def test_weights_for_the_same_codec_keep_their_statistics(source, records):
    components = Components.load(records)
    others = dataclasses.replace(components, latent_mean=components.latent_mean + 1.0)
    start = starting_weights(_start(source), tiny.MODEL, others)
    np.testing.assert_array_equal(start.constants["latent_mean"][...], components.latent_mean)


def test_a_file_that_names_no_codec_is_used_with_one_warning(source, records, tmp_path, caplog):
    write_weights(tmp_path / "w.safetensors", averaged_weights(source, sigma_rel=SIGMA), {})
    arrays, _ = read_arrays(tmp_path / "w.safetensors")
    write_arrays(tmp_path / "foreign.safetensors", arrays, {"format": "pt"})
    components = Components.load(records)
    start = starting_weights(_start(tmp_path / "foreign.safetensors"), tiny.MODEL, components)
    assert start.latent_space == components.latent_space
    (warning,) = _warnings(caplog)
    assert "does not say which codec" in warning and str(components.latent_space) in warning


def test_other_encoders_of_the_same_sizes_are_reported(source, records, caplog):
    components = Components.load(records)
    encoder = dataclasses.replace(components.video_encoder, frame_size=48)
    starting_weights(_start(source), tiny.MODEL, dataclasses.replace(components, video_encoder=encoder))
    assert "the records come from another video_encoder" in caplog.text


def test_adapters_of_another_codec_are_refused(source, adapted, records, other_records, tmp_path):
    tuned = averaged_weights(adapted, sigma_rel=SIGMA)
    space = Components.load(other_records).latent_space
    path = tmp_path / "x.safetensors"
    write_adapters(path, dataclasses.replace(tuned, latent_space=space), tiny.LORA)
    with pytest.raises(FlowleyError, match=r"x\.safetensors: is for latents of") as caught:
        Sampler.from_run(source, adapter=path)
    assert all(name in str(caught.value) for name in _names(records, other_records))


def test_adapters_on_other_weights_of_the_same_codec_are_reported(source, adapted, tmp_path, caplog):
    path = tmp_path / "x.safetensors"
    write_adapters(path, averaged_weights(adapted, sigma_rel=SIGMA), tiny.LORA)
    with_adapters(averaged_weights(source, sigma_rel=SIGMA), path, factor=1.0)
    assert not _warnings(caplog)
    with_adapters(averaged_weights(source, sigma_rel=0.1), path, factor=1.0)
    assert "was trained on other weights than these" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays, note: note.pop("strength"), "note flowley_jax.adapter is damaged"),
        (lambda arrays, note: note.update(strength="nan"), "strength of its adapters is nan"),
        (lambda arrays, note: arrays.pop(next(iter(arrays))), "not a pair of low-rank matrices"),
        (lambda arrays, note: arrays.update({next(iter(arrays)): np.zeros(3)}), "does not fit the kernel"),
    ],
)
def test_foreign_adapters_are_checked(source, adapted, tmp_path, change, message):
    path = tmp_path / "x.safetensors"
    write_adapters(path, averaged_weights(adapted, sigma_rel=SIGMA), tiny.LORA)
    arrays, notes = read_arrays(path)
    note = json.loads(notes["flowley_jax.adapter"])
    change(arrays, note)
    write_arrays(path, arrays, {"flowley_jax.adapter": json.dumps(note)})
    with pytest.raises(FlowleyError, match=rf"x\.safetensors: .*{message}"):
        with_adapters(averaged_weights(source, sigma_rel=SIGMA), path, factor=1.0)


def test_a_changed_byte_in_a_file_of_weights_is_noticed(source, adapted, records, copied, tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, averaged_weights(source, sigma_rel=SIGMA), {})
    _flip(path)
    with pytest.raises(FlowleyError, match=r"w\.safetensors: is damaged, or was changed"):
        read_weights(path, tiny.MODEL)
    write_adapters(path, averaged_weights(adapted, sigma_rel=SIGMA), tiny.LORA)
    _flip(path)
    with pytest.raises(FlowleyError, match=r"w\.safetensors: is damaged, or was changed"):
        with_adapters(averaged_weights(source, sigma_rel=SIGMA), path, factor=1.0)
    _flip(copied / BASE)
    with pytest.raises(FlowleyError, match=r"run/base\.safetensors: is damaged, or was changed"):
        averaged_weights(copied, sigma_rel=SIGMA)
    config = tiny.experiment(records, steps=5, start=_start(source), lora=tiny.LORA)
    with pytest.raises(FlowleyError, match=r"run/base\.safetensors: is damaged, or was changed"):
        train(config, copied)


def test_base_weights_of_another_run_are_noticed(copied, other_records, source):
    weights = averaged_weights(source, sigma_rel=SIGMA)
    space = Components.load(other_records).latent_space
    write_weights(copied / BASE, dataclasses.replace(weights, latent_space=space), {})
    with pytest.raises(FlowleyError, match=r"base\.safetensors: belongs to another run"):
        averaged_weights(copied, sigma_rel=SIGMA)


def test_adapters_are_not_put_on_other_base_weights_of_the_same_codec(copied, records, source, tmp_path):
    others = shutil.copytree(source, tmp_path / "others")
    shutil.rmtree(others / "ema/6")
    config = tiny.fine_tuning(records, source, lora=tiny.LORA, steps=5)
    write_weights(copied / BASE, averaged_weights(others, sigma_rel=SIGMA), {})
    for use in (lambda: averaged_weights(copied, sigma_rel=SIGMA), lambda: train(config, copied)):
        with pytest.raises(FlowleyError, match=r"base\.safetensors: is not what .* was trained on"):
            use()
    # The source changed while the base was missing.
    (copied / BASE).unlink()
    stored = json.loads((copied / "config.json").read_text())
    stored["start"]["weights"] = str(others)
    (copied / "config.json").write_text(json.dumps(stored))
    config = dataclasses.replace(config, start=_start(others))
    with pytest.raises(FlowleyError, match=r"others: is not what .* was trained on"):
        train(config, copied)


@pytest.mark.parametrize("damage", ["another run's", "codec.npz", "components.json"])
def test_wrong_components_of_a_run_are_named_and_not_the_records(
    source, records, other_records, tmp_path, damage
):
    run = tmp_path / "run"
    shutil.copytree(source, run)
    if damage == "another run's":
        Components.load(other_records).save(run / "components")
    elif damage == "codec.npz":
        _flip(run / "components" / damage)
    else:
        (run / "components" / damage).write_text("{")
    uses = [
        lambda: Sampler.from_run(run),
        lambda: averaged_weights(run, sigma_rel=SIGMA),
        lambda: train(tiny.experiment(records, steps=7), run),
    ]
    for use in uses:
        with pytest.raises(FlowleyError, match=r"run/components.*remove the folder and resume"):
            use()
    shutil.rmtree(run / "components")
    with pytest.raises(FlowleyError, match=r"run/components: the components of the run are missing"):
        Sampler.from_run(run)
    # The advice of the message works.
    open_workdir(run, tiny.experiment(records, steps=7), Components.load(records), records)
    assert load_components(run).identity == Components.load(records).identity


def test_resuming_on_records_of_another_codec_is_refused_with_both_names(source, records, other_records):
    with pytest.raises(FlowleyError, match="not the data set that") as caught:
        train(tiny.experiment(other_records, steps=7), source)
    assert all(name in str(caught.value) for name in _names(records, other_records))


def test_a_run_without_its_configuration_is_not_resumed(source, records, tmp_path):
    shutil.copytree(source, tmp_path / "run")
    (tmp_path / "run/config.json").unlink()
    config = dataclasses.replace(tiny.experiment(records, steps=7), seed=5)
    with pytest.raises(FlowleyError, match=r"run: has stored steps but no config\.json"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()


def test_averages_are_not_written_over_a_file_or_judged_on_another_codec(copied, other_records, tmp_path):
    out, kept = tmp_path / "w.safetensors", tmp_path / "a.safetensors"
    kept.write_text("adapters of a week")
    # As on a machine that the run was copied to.
    config = json.loads((copied / "config.json").read_text())
    config["data"]["records"] = "runs/gone/records"
    (copied / "config.json").write_text(json.dumps(config))
    flags = ("--workdir", copied, "--sigma-rel", SIGMA, "--out", out, "--adapter", kept)
    result = shell.run("flowley_jax.ema", *flags, "--novalidate")
    shell.fails_in_one_line(result, f"--adapter {kept}: already exists", "--overwrite")
    assert kept.read_text() == "adapters of a week" and not out.exists()
    result = shell.run("flowley_jax.ema", *flags, "--overwrite", "--records", other_records)
    shell.fails_in_one_line(result, f"{other_records}: is for latents of", "--novalidate")
    result = shell.run("flowley_jax.ema", *flags, "--overwrite")
    assert result.returncode == 0, result.stderr
    assert "no validation loss: runs/gone/records: no such folder (--records names others)" in result.stdout
    space = load_components(copied).latent_space
    assert all(LatentSpace.from_notes(read_arrays(path)[1]) == space for path in (out, kept))
