"""Several processes that sample to one folder share its clips, and no clip is sampled twice."""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from children import started
from tone_sampler import ToneSampler

from flowley_jax.common.files import partial_name
from flowley_jax.config import SampleConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.media.write import write_video
from flowley_jax.sampling import team
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.outputs import write_sounds
from flowley_jax.sampling.team import Team

# A process that samples 40 clips and, once it has claimed some, says so and hangs.
_HANGS = """
import sys, time
from pathlib import Path
from tone_sampler import ToneSampler
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.outputs import write_sounds

def hang(self, batch, **options):
    print("sampling", len(batch), flush=True)
    time.sleep(600)

ToneSampler.sample = hang
video, out = map(Path, sys.argv[1:])
clips = [InputClip(id=f"c{n:02}", path=video, prompt="a ball") for n in range(40)]
write_sounds(ToneSampler(), clips, out, suffix=".wav")
"""


@pytest.fixture
def clips(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, np.zeros((4, 16, 16, 3), np.uint8), 10.0)
    return [InputClip(id=f"c{n:02}", path=path, prompt="a ball") for n in range(40)]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def _rows(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


@dataclasses.dataclass(frozen=True)
class _SlowSampler(ToneSampler):
    """Takes a moment for each batch and remembers what it sampled."""

    ids: list[str] = dataclasses.field(default_factory=list)

    def sample(self, batch, *, seed):
        time.sleep(0.02)
        self.ids.extend(track.clip.id for track in batch)
        return super().sample(batch, seed=seed)


def _write(sampler, clips, out):
    return write_sounds(sampler, clips, out, suffix=".wav")


def test_members_sample_every_clip_once(clips, out):
    samplers = [_SlowSampler() for _ in range(3)]
    barrier = threading.Barrier(3)

    def work(sampler):
        barrier.wait(timeout=60)
        return _write(sampler, clips, out)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        results = list(pool.map(work, samplers))
    sampled = [clip_id for sampler in samplers for clip_id in sampler.ids]
    assert sorted(sampled) == [clip.id for clip in clips]
    requests = [row["id"] for row in _rows(out) if "settings" in row]
    assert sorted(requests) == [clip.id for clip in clips]
    for result in results:
        assert result.failed == []
        assert {path for paths in result.written.values() for path in paths} == {
            out / f"{clip.id}.wav" for clip in clips
        }


def test_a_process_that_starts_later_gets_a_share(clips, out):
    first, second = _SlowSampler(), _SlowSampler()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(_write, first, clips, out)
        while not first.ids:
            time.sleep(0.002)
        _write(second, clips, out)
        running.result(timeout=60)
    # The first one took a quarter of the clips at once, and then they share the rest.
    assert len(first.ids) + len(second.ids) == 40 and len(second.ids) >= 10


def test_the_clips_of_a_killed_process_are_taken_over(clips, out):
    command, paths = [sys.executable, "-c", _HANGS, clips[0].path, out], os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": paths}
    with started(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "sampling 10\n"
        sampler = _SlowSampler()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(_write, sampler, clips, out)
            deadline = time.monotonic() + 60
            while len(sampler.ids) < 30 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(sampler.ids) == 30 and not running.done()
            process.kill()
            process.wait(timeout=60)
            result = running.result(timeout=60)
    assert result.failed == [] and len(result.written) == len(set(sampler.ids)) == len(sampler.ids) == 40


def test_a_clip_that_failed_in_one_process_is_not_tried_by_another(clips, out):
    broken = {"c39": FlowleyError("c39: damaged")}
    first, second = ToneSampler(broken=broken), ToneSampler()
    first_result = _write(first, clips[30:], out)
    assert [line for line in first_result.failed if "damaged" in line]
    failures = [row for row in _rows(out) if "failed" in row]
    assert [row["failed"] for row in failures] == ["c39"] and "damaged" in failures[0]["error"]
    # A later run tries it again.
    result = _write(second, clips[30:], out)
    assert result.failed == [] and "c39" in result.written


def test_members_report_the_failures_of_each_other(clips, out):
    broken = {"c00": FlowleyError("c00: damaged")}
    samplers = [_SlowSampler(broken=broken), _SlowSampler(broken=broken)]
    barrier = threading.Barrier(2)

    def work(sampler):
        barrier.wait(timeout=60)
        return _write(sampler, clips, out)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, samplers))
    assert [len(result.failed) for result in results] == [1, 1]
    assert sum("failed" in row for row in _rows(out)) == 1
    assert all(len(result.written) == 39 for result in results)


def test_other_settings_are_refused_while_a_process_is_at_work(clips, out):
    sampler = _SlowSampler()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(_write, sampler, clips, out)
        while not sampler.ids:
            time.sleep(0.002)
        with pytest.raises(FlowleyError, match=r"another process is writing to it with other clips or set"):
            _write(ToneSampler(SampleConfig(guidance=3.0)), clips, out)
        with pytest.raises(FlowleyError, match="only identical commands can share a folder"):
            _write(ToneSampler(), clips[:3], out)
        running.result(timeout=60)
    assert _write(ToneSampler(SampleConfig(guidance=3.0)), clips[:3], out).failed == []


def test_temporary_files_of_others_stay(clips, out):
    out.mkdir()
    member = Team(out, "a task")
    (out / partial_name(".wav")).write_bytes(b"half")
    second = Team(out, "a task")
    assert member.is_first and not second.is_first
    second.close()
    member.close()
    _write(ToneSampler(), clips[:1], out)
    assert {path.name for path in out.iterdir()} == {".lock", "samples.jsonl", "c00.wav"}


def test_a_file_system_without_locks_is_used_with_a_warning(clips, out, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(team.fcntl, "fcntl", refuse)
    assert _write(ToneSampler(), clips[:2], out).failed == []
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "run only one process in it at a time" in warnings[0]


def test_a_member_that_keeps_its_turn_is_named(out, monkeypatch):
    out.mkdir()
    member = Team(out, "a task")
    monkeypatch.setattr(team, "_LONGEST_WAIT", 0.1)
    with member.turn(), pytest.raises(FlowleyError, match="has locked the folder's log"):
        Team(out, "a task")
    member.close()
