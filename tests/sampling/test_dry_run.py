"""The estimate of sampling, compared with what sampling does."""

import dataclasses
import logging
import re

import jax
import numpy as np
import pytest
import shell
import tiny

from flowley_jax.errors import FlowleyError
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.flow.windows import plan_windows
from flowley_jax.media.write import write_video
from flowley_jax.sampling import Sampler, network_cost
from flowley_jax.sampling.dry_run import dry_run
from flowley_jax.sampling.estimate_text import MIB, format_estimate
from flowley_jax.sampling.inputs import Choices, InputClip, find_inputs, text_input
from flowley_jax.sampling.outputs import write_sounds
from flowley_jax.sampling.workload import plan_workload

STAGES = ["frames", "video features", "text features", "latents", "log-mel frames", "waves"]
BATCH_LINE = re.compile(
    r"sampling (\d+) sounds?, ([\d.]+) s in (\d+) windows? …\nsampled with (\d+) network evaluations"
)
COMPILING_LINE = re.compile(r"compiling for (\d+) windows? …")


@pytest.fixture(scope="module")
def sampler(tiny_run):
    return Sampler.from_run(tiny_run)


def _video(path, count, size=16):
    frames = np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    write_video(path, frames, tiny.FPS)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of videos shorter than a window, of one, and of several."""
    folder = tmp_path_factory.mktemp("videos")
    for count in (4, 10, 11, 37, 100):
        _video(folder / f"v{count}.mp4", count)
    return folder


@pytest.fixture
def clip(videos):
    return InputClip(id="v37", path=videos / "v37.mp4", prompt="a ball")


def _text(seconds, name="t"):
    return InputClip(id=name, path=None, prompt="a bell", end=seconds)


def _settings(sampler, **changes):
    return dataclasses.replace(sampler, settings=dataclasses.replace(sampler.settings, **changes))


def _sampled(sampler, clips, out, caplog, **options):
    """Sample, and return what the log says of the batches, and the rooms of the programs."""
    caplog.set_level(logging.INFO)
    caplog.clear()
    assert write_sounds(dataclasses.replace(sampler), clips, out, suffix=".wav", **options).failed == []
    batches = BATCH_LINE.findall("\n".join(caplog.messages))
    rooms = [int(match[1]) for line in caplog.messages if (match := COMPILING_LINE.fullmatch(line))]
    return [tuple(map(float, batch)) for batch in batches], rooms


@pytest.mark.parametrize("case", ["folder", "part", "text"])
def test_the_plan_is_what_sampling_does(sampler, videos, tmp_path, caplog, monkeypatch, case):
    monkeypatch.setattr("flowley_jax.sampling.sampler.GROUP", 4)
    if case == "folder":
        clips = find_inputs(videos, choices=Choices())
    elif case == "part":
        clips = find_inputs(videos / "v37.mp4", choices=Choices(start=0.5, end=2.6))
    else:
        clips = [text_input(Choices(prompt="rain", seconds=2.3))]
    num_samples = 3 if case == "text" else 1
    estimate, failed = dry_run(sampler, clips, num_samples=num_samples)
    assert estimate is not None and failed == []
    batches, rooms = _sampled(sampler, clips, tmp_path, caplog, num_samples=num_samples)
    planned = [
        (len(batch.tracks), sum(track.clip.seconds for track in batch.tracks), batch.windows)
        for batch in estimate.workload.batches
    ]
    assert [batch[:3] for batch in batches] == [pytest.approx(batch, abs=0.006) for batch in planned]
    assert {batch[3] for batch in batches} == {estimate.evaluations}
    assert sorted(rooms) == estimate.workload.rooms


def test_the_measured_program_is_the_one_that_samples(sampler, videos, clip, tmp_path, monkeypatch):
    used = []

    def remember(graphdef, variables, batch, *_, **options):
        used.append(batch)
        raise FlowleyError("stop")

    monkeypatch.setattr("flowley_jax.sampling.sampler.sample_latents", remember)
    for name, path in (("short", videos / "v4.mp4"), ("long", videos / "v100.mp4")):
        used.clear()
        write_sounds(dataclasses.replace(sampler), [dataclasses.replace(clip, id=name, path=path)], tmp_path)
        (batch,) = used
        expected = jax.eval_shape(lambda: network_cost.batch_with_one_window(sampler, len(batch.keys)))  # noqa: B023
        shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(each)] for each in (batch, expected)]
        assert shapes[0] == shapes[1]


def test_times_are_those_of_an_evaluation_times_their_number(sampler, videos):
    estimate, _ = dry_run(sampler, find_inputs(videos, choices=Choices()))
    assert estimate is not None
    assert [report.stage for report in estimate.stages] == STAGES
    latents = estimate.stages[STAGES.index("latents")]
    # The windows of each batch, in groups of those that are computed at once.
    groups = sum(-(-batch.windows // batch.at_once) for batch in estimate.workload.batches)
    assert {batch.at_once for batch in estimate.workload.batches} == {estimate.network.at_once} == {8}
    expected = groups * estimate.evaluations * estimate.network.seconds
    assert latents.seconds == pytest.approx(expected)
    assert all(report.seconds for report in estimate.stages)
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(sampler.variables))
    assert latents.memory.weights == parameters and latents.memory.temporaries > 0


def test_memory_on_the_host_is_that_of_the_arrays(sampler, clip):
    window = sampler.window
    frames = 2 * window.video
    estimate, _ = dry_run(sampler, [dataclasses.replace(clip, end=frames / tiny.FPS)], num_samples=2)
    assert estimate is not None
    windows = plan_windows(frames, window, overlap=sampler.settings.overlap)
    dims, mel = sampler.components.dims, sampler.components.codec.mel
    assert estimate.host == {
        "features": 4 * (windows.frames * dims.video_dim + 2 * dims.text_length * dims.text_dim),
        "latents": 4 * 2 * windows.latents * dims.audio_dim,
        "log-mel frames": 4 * 2 * 2 * windows.latents * mel.bins,
        "waves": 4 * round(2 * frames / tiny.FPS * sampler.components.sample_rate),
    }


def test_a_film_of_two_hours_is_planned_by_its_length(sampler, tmp_path):
    write_video(tmp_path / "film.mp4", np.zeros((7200, 16, 16, 3), np.uint8), 1.0)
    clips = find_inputs(tmp_path / "film.mp4", choices=Choices())
    (batch,) = plan_workload(sampler, clips, None).batches
    window = sampler.window
    assert batch.windows == len(plan_windows(7200 * 12, window, overlap=sampler.settings.overlap)) > 10_000
    assert batch.room == 2 ** (batch.windows - 1).bit_length() and batch.at_once == 8
    estimate, failed = dry_run(sampler, clips)
    assert estimate is not None and failed == []
    assert f"{batch.windows} of 0.83 s" in format_estimate(estimate)
    assert estimate.host["waves"] == 4 * 7200 * sampler.components.sample_rate


def test_evaluations_of_an_adaptive_solver_are_a_lower_bound(sampler, clip, tmp_path, caplog):
    adaptive = _settings(sampler, solver=SolverConfig(name="tsit5", steps=1, rtol=1e-2, atol=1e-2))
    estimate, _ = dry_run(adaptive, [clip])
    assert estimate is not None
    batches, _ = _sampled(adaptive, [clip], tmp_path, caplog)
    assert 14 == estimate.evaluations <= batches[0][3]
    text = format_estimate(estimate)
    assert "at least 14 of the network per window (tsit5, guidance 1.5)" in text
    assert re.search(r"^total +at least \d+:\d\d ", text, re.MULTILINE)


def test_clips_that_cannot_be_used_are_listed_as_in_sampling(sampler, videos, clip, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "long.txt").write_text("word " * 500)
    whole = (videos / "v100.mp4").read_bytes()
    # The header is at its end.
    damaged = tmp_path / "damaged.mp4"
    start = whole.index(b"mdat") + 4
    damaged.write_bytes(whole[:start] + bytes(len(whole[start:-4000])) + whole[-4000:])
    clips = [
        dataclasses.replace(clip, id="a", path=damaged),
        dataclasses.replace(clip, id="b", path=tmp_path / "none.mp4"),
        dataclasses.replace(clip, id="c", path=tmp_path / "text.mp4"),
        dataclasses.replace(clip, id="d", start=50.0),
        dataclasses.replace(clip, id="e", fault="e.txt: must be UTF-8 text"),
        dataclasses.replace(clip, id="f", prompt="word " * 500),
        clip,
    ]
    estimate, failed = dry_run(sampler, clips, tmp_path / "out", suffix=".wav")
    expected = write_sounds(sampler, clips, tmp_path / "sounds", suffix=".wav").failed
    assert sorted(failed) == sorted(expected) and len(failed) == 6
    assert estimate is not None and [planned.clip.id for planned in estimate.workload.clips] == ["v37"]
    assert sum(batch.windows for batch in estimate.workload.batches) == len(
        estimate.workload.clips[0].windows
    )
    assert dry_run(sampler, clips[1:2]) == (None, [f"{tmp_path / 'none.mp4'}: no such file"])
    assert not (tmp_path / "out").exists()


def test_sounds_that_exist_are_left_out(sampler, clip, tmp_path):
    clips = [clip, _text(1.0)]
    write_sounds(sampler, clips[:1], tmp_path, suffix=".wav")
    before = shell.tree(tmp_path)
    estimate, failed = dry_run(sampler, clips, tmp_path, suffix=".wav")
    assert estimate is not None and failed == []
    assert [planned.clip.id for planned in estimate.workload.clips] == ["t"]
    assert "clips:        1, 1.00 s in total (1 more have their sounds already)" in format_estimate(estimate)
    assert shell.tree(tmp_path) == before


def test_a_network_that_does_not_fit_is_not_measured(sampler, clip, monkeypatch):
    monkeypatch.setattr(network_cost, "free_device_memory", lambda: 10)
    estimate, _ = dry_run(sampler, [clip])
    assert estimate is not None and estimate.network.seconds is None
    text = format_estimate(estimate)
    assert "too little memory is free" in text
    assert re.search(r"^latents +not measured", text, re.MULTILINE) and "at least" in text


def test_the_text_is_aligned_and_adds_up(sampler, videos):
    estimate, _ = dry_run(sampler, find_inputs(videos, choices=Choices()), num_samples=2)
    assert estimate is not None
    lines = format_estimate(estimate).splitlines()
    assert lines[:2] == ["clips:        5, 13.50 s in total", "sounds:       2 per clip"]
    header = next(line for line in lines if line.startswith("stage"))
    table = lines[lines.index(header) :][: len(STAGES) + 2]
    assert [line[:16].strip() for line in table] == ["stage", *STAGES, "total"]
    ends = [header.index(name) + len(name) for name in ("time", "weights", "temporaries")]
    for line in table:
        assert all(line[end - 1] != " " and line[end : end + 2] == "  " for end in ends), line
    memories = [report.memory for report in estimate.stages]
    peak = sum(memory.weights for memory in memories) + max(memory.temporaries for memory in memories)
    assert table[-1].endswith(f"at most {peak / MIB:,.1f} MiB on each device")


def test_the_command_prints_the_estimate_and_writes_nothing(tiny_run, videos, tmp_path):
    options = ["--workdir", tiny_run, "--dry-run", "--out", tmp_path / "out"]
    before = shell.tree(videos)
    result = shell.run("flowley_jax.sample", *options, "--video", videos, "--seconds=2", "--num-samples=2")
    assert result.returncode == 0, result.stderr
    assert "sounds:       2 per clip" in result.stdout and "\ntotal " in result.stdout
    result = shell.run("flowley_jax.sample", *options, "--prompt=rain", "--seconds=2.5", "--kind=wav")
    assert result.returncode == 0, result.stderr
    assert "clips:        1, 2.50 s in total" in result.stdout and "\nframes " not in result.stdout
    result = shell.run("flowley_jax.sample", *options, "--video", videos / "v4.mp4", "--start=9")
    shell.fails_in_one_line(result, "v4.mp4: its picture ends at 0.33 s, before the start at 9 s")
    assert result.stdout == "" and shell.tree(videos) == before
    assert list(tmp_path.iterdir()) == []
