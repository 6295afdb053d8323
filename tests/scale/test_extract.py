"""Records survive kills, and come out the same in several processes and on a different engine."""

import dataclasses
import json
import random
import subprocess
import time

import children
import pytest
import shell
import unusable
from apache_beam.options.pipeline_options import PipelineOptions

from data_prep.records import RunOptions, prepare_records
from data_prep.settings import RecordSettings

pytestmark = pytest.mark.scale

COUNT = 56
SECONDS = 8.0
# With this limit, a run with the hanging file lasts until it is killed.
ENDLESS = 600.0
PATIENCE = 20.0


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Write usable clips, unusable files of every kind, and a file that hangs its reader."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for index in range(COUNT):
        unusable.write_clip(folder / f"c{index}.mp4", seed=index)
        split = ("train", "valid", "train", "test")[index % 4]
        rows.append((f"id{index}", f"c{index}.mp4", f"ball number {index}", split, "ball"))
    bad, reasons = unusable.write_unusable(folder)
    rows += [*bad, unusable.write_hanging(folder)]
    return unusable.write_table(folder, rows), {**reasons, "hanging": "timeout"}


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = unusable.write_crashing_codec(tmp_path_factory.mktemp("site") / "site")
        patch.setenv("PYTHONPATH", str(folder))
        yield


@pytest.fixture(scope="module")
def uninterrupted(clips, codec, tmp_path_factory):
    """The manifest of records made by one process without interruption."""
    out = tmp_path_factory.mktemp("uninterrupted")
    return prepare_records(clips[0], out, unusable.SETTINGS, RunOptions(time_limit=SECONDS))


def _rejected(out):
    return {
        row.split("\t")[0]: row.split("\t")[2] for row in (out / "rejected.tsv").read_text().splitlines()[1:]
    }


def _run(command):
    return children.run(command, cwd=shell.ROOT, check=True)


def test_a_killed_run_resumes_and_makes_the_same_records(clips, uninterrupted, tmp_path):
    table, reasons = clips
    default, settings = dataclasses.asdict(RecordSettings()), dataclasses.asdict(unusable.SETTINGS)
    flags = [f"--config.{name}={value}" for name, value in settings.items() if value != default[name]]
    command = shell.command("data_prep.extract", "--table", table, "--out", tmp_path, *flags)
    draw = random.Random(0)
    seen = []
    for _ in range(3):
        before, deadline = len(list(tmp_path.glob("features/*/*/*"))), time.monotonic() + PATIENCE
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with children.started([*command, f"--time_limit={ENDLESS}"], cwd=shell.ROOT, **quiet) as process:
            while len(list(tmp_path.glob("features/*/*/*"))) == before and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(draw.uniform(0.0, 3.0))
            assert process.poll() is None
        seen.append({path: path.stat().st_mtime_ns for path in tmp_path.glob("features/*/*/*.npz")})
        assert not (tmp_path / "manifest.json").exists()
    command.append(f"--time_limit={SECONDS}")
    result = _run(command)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["files"] == uninterrupted["files"]
    assert manifest["components"] == uninterrupted["components"]
    assert manifest["examples"] == {"train": COUNT // 2, "valid": COUNT // 4, "test": COUNT // 4}
    assert _rejected(tmp_path) == reasons
    # Features that were finished before a kill were not made again.
    assert seen[2] and seen[0].keys() <= seen[1].keys() <= seen[2].keys()
    for before in seen:
        assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    assert f"{COUNT // 2} train" in result.stdout
    again = _run(command)
    assert "already exist" in again.stdout and "reading" not in again.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ["--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"],
        ["--runner=DaskRunner", "--dask_partition_size=1"],
    ],
    ids=["two processes", "dask"],
)
# The servers and clients of these engines end only with the process that runs the tests.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::UserWarning:distributed.*")
def test_other_engines_make_the_same_records(clips, uninterrupted, tmp_path, flags):
    run = RunOptions(beam_options=PipelineOptions(flags), time_limit=SECONDS)
    manifest = prepare_records(clips[0], tmp_path, unusable.SETTINGS, run)
    assert (
        manifest["files"] == uninterrupted["files"] and manifest["components"] == uninterrupted["components"]
    )
    assert _rejected(tmp_path) == clips[1]
