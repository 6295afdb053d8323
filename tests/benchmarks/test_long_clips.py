"""The cost of long sounds is measured in processes of their own, and figures of several runs are merged."""

import numpy as np
import pytest

from benchmarks.long_clips_cost import CLIPS, FPS, SIZE, ball_frames, clip_lengths, measure_clips, write_ball
from benchmarks.long_clips_tables import clips_table, length_table, quality_table
from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_frames


def test_the_ball_crosses_the_picture():
    frames = ball_frames(FPS + 1)
    assert frames.shape == (FPS + 1, SIZE, SIZE, 3) and frames.dtype == np.uint8
    centres = [np.nonzero(frame[..., 0] > 100)[1].mean() for frame in frames]
    assert centres[0] > 0.8 * SIZE and centres[-1] < 0.2 * SIZE and np.all(np.diff(centres) < 0)


def test_a_long_video_repeats_its_first_minute(tmp_path):
    write_ball(tmp_path / "videos" / "ball.mp4", 120 * FPS)
    frames = read_frames(tmp_path / "videos" / "ball.mp4", fps=FPS, size=16)
    assert len(frames) == 120 * FPS
    np.testing.assert_array_equal(frames[: 60 * FPS], frames[60 * FPS :])
    with pytest.raises(FlowleyError, match="a video of 90 s must be at most a minute long, or whole minutes"):
        write_ball(tmp_path / "videos" / "other.mp4", 90 * FPS)


def test_folders_of_different_clips_cost_as_much_as_those_of_equal_ones():
    for kind, folders in clip_lengths(4.0).items():
        assert len(set(folders["different"])) == len(folders["equal"]) == CLIPS
        assert len(set(folders["equal"])) == 1
        windows = [sum(-(-count // (4 * FPS)) for count in frames) for frames in folders.values()]
        total = [sum(frames) for frames in folders.values()]
        assert windows[0] == windows[1] if kind == "short" else total[0] == total[1]


def _row(**fields):
    figures = {
        "f1": 0.9,
        "f1_near": None,
        "f1_elsewhere": None,
        "median_abs_error_ms": 6.0,
        "flux_ratio": None,
    }
    level = {"rms_db": -30.0, "mean_peak": 0.8, "true_peak": 0.89}
    return {"seconds": 4.0, "sound": "generated", "prompt": "first", **figures, **level, **fields}


def test_the_table_has_mean_and_deviation_of_runs():
    rows = [_row(seconds=16.0, f1=0.7), _row(sound="real", prompt=""), _row(), _row(f1=0.8)]
    lines = quality_table(rows).splitlines()[2:]
    assert [line.split(" | ")[:4] for line in lines] == [
        ["| 4 s", "sampled for the whole video", "first", "0.850 ± 0.071"],
        ["| 4 s", "real", "–", "0.900"],
        ["| 16 s", "sampled for the whole video", "first", "0.700"],
    ]


def test_the_table_of_clips_compares_with_equal_ones():
    base = {"clips": 40, "seconds_of_video": 160.0, "longest_seconds": 4.0, "compile_seconds": 5.0}
    rows = [
        {**base, "kind": kind, "folder": folder, "steps": steps, "seconds": seconds, "lengths": 40}
        | {"programs": {"jit(a)": 1, "jit(b)": 2}}
        for kind, folder, steps, seconds in (
            ("short", "different", None, 60.0),
            ("short", "equal", None, 50.0),
            ("short", "different", 4, 30.0),
        )
    ]
    ratios = [line.split(" | ")[5:] for line in clips_table(rows).splitlines()[2:]]
    assert ratios == [
        ["3", "60.0 s", "5.0 s", "1.20 |"],
        ["3", "50.0 s", "5.0 s", "1.00 |"],
        ["3", "30.0 s", "5.0 s", "– |"],
    ]


def test_the_table_of_lengths_is_in_their_order():
    row = {
        "first_seconds": 9.0,
        "compile_seconds": 3.0,
        "peak_bytes": 2**30,
        "loaded_bytes": 2**29,
        "steps": 4,
    }
    rows = [{**row, "seconds_of_video": seconds, "seconds": seconds / 4} for seconds in (600.0, 4.0)]
    lines = length_table(rows).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| 4 s", "| 600 s"]
    assert all("| 0.250 |" in line and "1024 MiB" in line for line in lines)


@pytest.mark.scale
def test_a_process_measures_time_memory_and_programs(tiny_run, tmp_path):
    row = measure_clips(tiny_run, tmp_path / "clips", [10, 20, 30], steps=2)
    assert (row["clips"], row["lengths"], row["longest_seconds"]) == (3, 3, 30 / FPS)
    assert 0 < row["compile_seconds"] < row["seconds"]
    assert sum(row["programs"].values()) > 0
    assert row["peak_bytes"] > 100 * 2**20
    assert len(list((tmp_path / "clips" / "sounds" / "0").glob("*.mp4"))) == 3
    with pytest.raises(FlowleyError, match=r"sampling failed with code 2: error: .*nowhere"):
        measure_clips(tmp_path / "nowhere", tmp_path / "clips", [10], steps=2)
