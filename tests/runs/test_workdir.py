"""The folder of a run."""

import pytest
import tiny

from flowley_jax.data.components import Components, components_file
from flowley_jax.errors import FlowleyError
from flowley_jax.runs.workdir import components_folder, open_workdir, read_config


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
    (other / "components.json").write_text(
        (other / "components.json").read_text().replace('"seconds"', '"length"')
    )
    with pytest.raises(FlowleyError, match=r"not the data set that .*run was trained on"):
        open_workdir(run, config, components, other)
