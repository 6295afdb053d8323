"""The command line of sampling: flags that would have no effect, and files that exist."""

import numpy as np
import pytest
import shell

from flowley_jax.media.write import write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, np.zeros((10, 32, 32, 3), np.uint8), 10.0)
    return path


@pytest.mark.parametrize(
    ("out", "flags", "expected"),
    [
        ("b.MP4", ["--kind=mkv"], "--kind applies only to a folder"),
        ("b.mp4", ["--split=test"], "only a clip table has splits"),
        ("b.mp4", ["--dtype=bfloat16"], "--dtype applies only to --published"),
        ("b.mp4", ["--adapter-factor=2"], "--adapter-factor needs --adapter"),
        ("folder", ["--overwrite"], "--overwrite applies only to a single file"),
        ("b.mp4", ["--guidance=1e9"], "--guidance="),
        ("b.mp4", ["--seed=99999999999999999999"], "--seed="),
        ("b.mp4", ["--num-samples=100000000000"], "--num-samples="),
    ],
)
def test_flags_without_effect_and_numbers_out_of_range_are_refused(video, tmp_path, out, flags, expected):
    shell.fails_in_one_line(shell.sample(tmp_path, video, tmp_path / out, *flags), expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--guidance=1", "--zero-star"],
            "--zero-star has no effect, because no step has a --guidance above 1",
        ),
        (["--guidance-from=0.9"], "--guidance-from has no effect, because no step has a --guidance above 1"),
        (["--guidance=1", "--autoguidance-step=3"], "--autoguidance-step has no effect"),
        (["--solver=tsit5", "--shift=2"], "--shift needs a fixed-step solver; tsit5 chooses its own steps"),
        (["--zero-until=0.9"], "zero_until=0.9 leaves no step of the solver"),
    ],
)
def test_guidance_without_effect_is_refused(tiny_run, video, tmp_path, flags, expected):
    """The run takes two steps."""
    shell.fails_in_one_line(shell.sample(tiny_run, video, tmp_path / "b.wav", *flags), expected)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_named_before_the_model_is_read(video, tmp_path):
    out = tmp_path / "b.WAV"
    out.write_text("mine")
    result = shell.sample(tmp_path / "no_run", video, out)
    shell.fails_in_one_line(result, out, "already exists", "--overwrite")
    assert out.read_text() == "mine"
