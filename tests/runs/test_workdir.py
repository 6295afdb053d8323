"""The folder of a run."""

import dataclasses
import json

import golden_data
import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file

from flowley_jax.audio.vae_codec import VaeCodec
from flowley_jax.data.components import Components, components_file
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.convert import convert
from flowley_jax.runs.workdir import components_folder, open_workdir, read_config


def _write_earlier_config(run):
    stored = json.loads((run / "config.json").read_text())
    del stored["components"]
    (run / "config.json").write_text(json.dumps(stored))


def _to_earlier_layout(folder):
    (folder / "components.json").rename(folder / "parts.json")


def test_run_and_records_of_an_earlier_version_are_read_and_resumed(tmp_path):
    records, other, run = (tmp_path / name for name in ("records", "other", "run"))
    components = Components.load(tiny.write_records(records))
    config = tiny.experiment(records, steps=4)
    open_workdir(run, config, components, records)
    (run / "checkpoints" / "2").mkdir(parents=True)
    _to_earlier_layout(records)
    _to_earlier_layout(run / "components")
    (run / "components").rename(run / "parts")

    assert read_config(run) == config
    assert components_file(components_folder(run)) == run / "parts" / "parts.json"
    assert Components.load(components_folder(run)).dims == components.dims
    open_workdir(run, config, Components.load(records), records)
    assert not (run / "components").exists()

    Components.load(records).save(other)
    open_workdir(run, config, Components.load(other), other)
    another = dataclasses.replace(components, latent_mean=components.latent_mean + 1.0)
    for forget_identity in (False, True):
        if forget_identity:
            _write_earlier_config(run)
        with pytest.raises(FlowleyError, match=r"not the data set that .*run was trained on \(other stat"):
            open_workdir(run, config, another, other)
    (run / "parts" / "parts.json").write_text("{")
    with pytest.raises(FlowleyError, match=r"parts/parts\.json: is not valid JSON.*remove the folder"):
        open_workdir(run, config, components, records)


def test_a_run_is_resumed_where_a_bundle_is_reached_by_another_path(tmp_path):
    # As on clusters: /data is a link to the file system that the records were made on.
    disk, link, run = tmp_path / "disk1", tmp_path / "data", tmp_path / "run"
    disk.mkdir()
    save_file(golden_data.state_dict("g_vae16k"), tmp_path / "vae.safetensors")
    convert(str(tmp_path / "vae.safetensors"), disk)
    made_from = Components.load(tiny.write_records(tmp_path / "plain"))
    codec = VaeCodec(bundle=Bundle.open(disk / "audio_vae"))
    statistics = {"latent_mean": np.zeros(20, np.float32), "latent_std": np.ones(20, np.float32)}
    dataclasses.replace(made_from, codec=codec, **statistics).save(tmp_path / "records")
    model = dataclasses.replace(tiny.MODEL, audio_dim=20)
    config = tiny.experiment(tmp_path / "records", steps=4, model=model)

    (tmp_path / "elsewhere").mkdir()
    disk.rename(tmp_path / "elsewhere/disk1")
    link.symlink_to(tmp_path / "elsewhere/disk1")
    components = tmp_path / "records/components.json"
    components.write_text(components.read_text().replace(str(disk), str(link)))
    open_workdir(run, config, Components.load(tmp_path / "records"), tmp_path / "records")
    (run / "checkpoints" / "2").mkdir(parents=True)
    assert components.read_text() != (run / "components/components.json").read_text()
    for earlier in (False, True):
        if earlier:
            _write_earlier_config(run)
        open_workdir(run, config, Components.load(tmp_path / "records"), tmp_path / "records")


@pytest.mark.parametrize("name", ["config.json", "base.safetensors", "components", "checkpoints"])
def test_a_folder_of_another_program_is_refused_and_left_as_it_is(tmp_path, name):
    records, run = tmp_path / "records", tmp_path / "model"
    components = Components.load(tiny.write_records(records))
    run.mkdir()
    if "." in name:
        (run / name).write_text('{"model_type": "clip"}')
    else:
        (run / name).mkdir()
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(FlowleyError, match=rf"model/{name}: .*; choose another folder"):
        open_workdir(run, tiny.experiment(records, steps=4), components, records)
    assert sorted(path.name for path in run.iterdir()) == before
    if "." in name:
        assert (run / name).read_text() == '{"model_type": "clip"}'
