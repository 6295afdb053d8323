"""The programs as a shell sees them: output, exit codes, one clear line for bad input, and nothing lost."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import openai_server
import pytest
import shell

from flowley_jax.media.read import probe
from flowley_jax.media.write import write_audio, write_video


@pytest.fixture(scope="module")
def debug_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("debug") / "run"
    result = shell.train(workdir)
    assert result.returncode == 0, result.stderr
    return workdir, result


@pytest.fixture
def video(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (24, 64, 80, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", frames, 24.0)
    return tmp_path / "a.mp4"


def test_debug_training_shows_progress_and_says_where_its_output_is(debug_run):
    workdir, result = debug_run
    for step in range(1, 5):
        assert f"step {step}/4" in result.stderr
    assert f"finished at step 4 of 4; checkpoints in {workdir}" in result.stderr
    assert (workdir / "config.json").exists() and list((workdir / "tensorboard").iterdir())


def test_a_finished_run_is_found_finished(debug_run):
    workdir, _ = debug_run
    history = (workdir / "metrics.jsonl").read_text()
    result = shell.train(workdir)
    assert result.returncode == 0
    assert f"resuming at step 4 of 4 in {workdir}" in result.stderr
    assert (workdir / "metrics.jsonl").read_text() == history


def test_sampling_a_video(debug_run, video, tmp_path):
    out = tmp_path / "new" / "a_sound.mp4"
    result = shell.sample(
        debug_run[0], video, out, "--prompt", "a glass ball", "--solver", "heun", "--steps", 2, "--seed", 5
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(out)]
    info = probe(out)
    assert info.has_audio and (info.width, info.height) == (80, 64)


@pytest.mark.scale
def test_sampling_a_table_keeps_what_is_good_and_names_what_is_not(debug_run, video, tmp_path):
    (tmp_path / "b.mp4").write_text("no video")
    table = tmp_path / "clips.tsv"
    table.write_text("video_path\ttext_description\na.mp4\ta ball\nb.mp4\ta bell\nc.mp4\ta bell\n")
    out = tmp_path / "out"
    flags = ("--kind=wav", "--num-samples", 2, "--steps", 2)
    result = shell.sample(debug_run[0], table, out, *flags)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and str(tmp_path / "b.mp4") in errors[0] and str(tmp_path / "c.mp4") in errors[1]
    assert len(result.stdout.splitlines()) == 2
    ages = {path: path.stat().st_mtime_ns for path in out.glob("*.wav")}
    assert len(ages) == 2
    again = shell.sample(debug_run[0], table, out, *flags)
    assert again.stdout == result.stdout
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.wav")} == ages


def _no_frames(path):
    """The headers of a video, and nothing behind them."""
    write_video(path, np.zeros((24, 64, 64, 3), np.uint8), 24.0)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("missing.mp4", lambda path: None, "no such file"),
        ("text.mp4", lambda path: path.write_text("no video"), "not readable"),
        ("empty.mp4", lambda path: path.write_bytes(b""), "not readable"),
        ("sound.wav", lambda path: write_audio(path, np.zeros(999), 16_000), "no video stream"),
        ("no_frames.mp4", _no_frames, "no frame"),
        ("empty.tsv", lambda path: path.write_text(""), "empty"),
        ("no_rows.tsv", lambda path: path.write_text("video_path\ttext_description\n"), "no"),
        ("folder", lambda path: path.mkdir(), "no video"),
    ],
)
def test_videos_that_cannot_have_a_sound(tiny_run, tmp_path, name, make, reason):
    make(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    result = shell.sample(tiny_run, tmp_path / name, tmp_path / "out.mp4")
    shell.fails_in_one_line(result, tmp_path / name, reason)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_absurdly_long_prompt(tiny_run, video, tmp_path):
    result = shell.sample(tiny_run, video, tmp_path / "out.mp4", "--prompt", "bang " * 20_000)
    assert len(shell.fails_in_one_line(result, "prompt")) < 300
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--solver", "eulr"), ["eulr", "euler|heun"]),
        (("--steps", "0"), ["steps", "0"]),
        (("--guidence", "2"), ["guidence"]),
        (("more",), ["more"]),
    ],
)
def test_sampling_flags_that_mean_nothing(tiny_run, video, tmp_path, flags, expected):
    shell.fails_in_one_line(shell.sample(tiny_run, video, tmp_path / "out.mp4", *flags), *expected)


def test_sampling_without_a_run(video, tmp_path):
    shell.fails_in_one_line(
        shell.sample(tmp_path / "none", video, tmp_path / "out.mp4"),
        tmp_path / "none",
        "no training run",
    )


@pytest.mark.parametrize(
    ("config", "flag", "expected"),
    [
        (
            shell.IMPACTS,
            "--config.optim.learning_rte=1",
            ["'learning_rte'", 'Did you mean "learning_rate"'],
        ),
        (
            shell.IMPACTS,
            "--config.model.fade=square",
            ["config.model.fade='square'", "cosine, linear"],
        ),
        (shell.IMPACTS, "--config.train.steps=many", ["train.steps", "many"]),
        (shell.IMPACTS, "--config.data.records=none", ["none/parts.json", "no such file"]),
        (shell.IMPACTS + ":huge", "--config.seed=1", ["'huge'", "debug"]),
        ("none.py", "--config.seed=1", ["no such file", "none.py"]),
    ],
)
def test_configurations_that_mean_nothing(tmp_path, config, flag, expected):
    shell.fails_in_one_line(shell.train(tmp_path / "run", flag, config=config), *expected)
    assert not (tmp_path / "run").exists()


@pytest.mark.scale
def test_averages_of_several_lengths_are_compared_and_one_is_written(tiny_run, tmp_path):
    flags = ("--workdir", tiny_run, "--sigma-rel=0.15")
    result = shell.run("flowley_jax.ema", *flags, "--sigma-rel", "0.04")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "sigma_rel 0.15, up to step 3",
        "sigma_rel 0.04, up to step 3",
    ]
    losses = [float(line.rsplit(" ", 1)[1]) for line in lines]
    assert np.isfinite(losses).all() and losses[0] != losses[1]
    out = tmp_path / "weights.safetensors"
    result = shell.run("flowley_jax.ema", *flags, "--novalidate", "--out", out)
    assert result.stdout.splitlines() == ["sigma_rel 0.15, up to step 3", str(out)]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--config.secnds=3",), ("unknown configuration key 'secnds'", 'Did you mean "seconds"')),
        (("--runner=Nope",), ("--runner=Nope: Unexpected pipeline runner",)),
        (("--captions=soundcap",), ("--captions=soundcap must be NAME=FILE",)),
        (("--captions=a=b", "--captions=a=c"), ("--captions=a=c: a is b already",)),
        (("--config=configs/records.py:tiny",), ("has no option 'tiny'; it has embedded, published",)),
    ],
)
def test_flags_of_extraction_that_mean_nothing(video, tmp_path, flags, expected):
    (tmp_path / "clips.tsv").write_text("video_path\ttext_description\tsplit\tlabel\na.mp4\tx\ttrain\tx\n")
    result = shell.run(
        "data_prep.extract", "--table", tmp_path / "clips.tsv", "--out", tmp_path / "r", *flags
    )
    shell.fails_in_one_line(result, *expected)


def test_captioning_says_what_it_takes_and_what_a_table_has(video, tmp_path):
    assert "--model" in shell.run("data_prep.soundcap", "--help").stdout
    (tmp_path / "clips.tsv").write_text("video_path\ttext_description\tsplit\tlabel\na.mp4\tx\ttrain\tx\n")
    flags = ("--table", tmp_path / "clips.tsv", "--out", tmp_path / "caps", "--model=x")
    wrong = shell.run("data_prep.soundcap", *flags, "--split=vlaid", "--server=http://127.0.0.1:9/v1")
    shell.fails_in_one_line(wrong, "no row of the split 'vlaid'; it has train")
    shell.fails_in_one_line(
        shell.run("data_prep.soundcap", *flags, "--server=127.0.0.1:9"), "must begin with http:// or https://"
    )


def test_an_interrupted_extraction_says_how_to_go_on(tmp_path):
    header = "id\tvideo_path\ttext_description\tsplit\tlabel\n"
    rows = [f"{index}\t{index}.mp4\tx\ttrain\tx\n" for index in range(40)]
    for index in range(40):
        os.mkfifo(tmp_path / f"{index}.mp4")
    (tmp_path / "clips.tsv").write_text(header + "".join(rows))
    command = shell.command("data_prep.extract", "--table", tmp_path / "clips.tsv", "--out", tmp_path / "r")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=shell.ROOT) as process:
        while "reading clips" not in process.stderr.read(20):
            pass
        time.sleep(2.0)
        process.send_signal(signal.SIGINT)
        # Decoding would be given up after two minutes.
        _, rest = process.communicate(timeout=60)
    assert not list((tmp_path / "r/features").rglob("*.json"))
    assert process.returncode == 130 and "Traceback" not in rest
    assert rest.splitlines()[-1] == "interrupted; run the same command again to go on"


@pytest.mark.scale
def test_a_clip_is_captioned_before_it_gets_its_sound(tiny_run, video, tmp_path):
    with openai_server.running(tmp_path / "requests.jsonl") as url:
        flags = (f"--soundcap={openai_server.MODEL}", f"--soundcap-server={url}")
        result = shell.sample(tiny_run, video, tmp_path / "out.mp4", *flags)
        assert result.returncode == 0, result.stderr
        assert "A thud over" in result.stderr
        assert result.stdout.splitlines() == [str(tmp_path / "out.mp4")]
        both = shell.sample(tiny_run, video, tmp_path / "out.mp4", *flags, "--prompt=x")
        shell.fails_in_one_line(both, "give one of --prompt and --soundcap")
        result = shell.sample(tiny_run, video.parent, tmp_path / "sounds", *flags)
    made = [json.loads(line) for line in (tmp_path / "sounds/samples.jsonl").read_text().splitlines()]
    assert made and all("A thud over" in row["prompt"] for row in made)
    assert (tmp_path / "sounds/soundcap/captions.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--sigma-rel=0.5",), "sigma_rel=0.5 must be between 0 and 0.288"),
        (("--out=a.safetensors", "--sigma-rel=0.05", "--sigma-rel=0.1"), "take one --sigma-rel, not 2"),
        (("--adapter=a.safetensors", "--sigma-rel=0.05"), "was trained without LoRA"),
        (("--records=nowhere",), "nowhere: no records with a valid split"),
        (("--out=a.npz", "--novalidate", "--sigma-rel=0.05"), "a.npz: must end in .safetensors"),
    ],
)
def test_averaging_flags_that_mean_nothing(tiny_run, flags, expected):
    shell.fails_in_one_line(shell.run("flowley_jax.ema", "--workdir", tiny_run, *flags), expected)


def test_a_folder_of_another_configuration_is_left_alone(debug_run):
    workdir, _ = debug_run
    before = shell.tree(workdir)
    result = shell.train(workdir, "--config.optim.learning_rate=0.5", "--config.model.window=9")
    shell.fails_in_one_line(result, workdir, "optim.learning_rate is", "0.5 here", "model.window")
    assert shell.tree(workdir) == before
