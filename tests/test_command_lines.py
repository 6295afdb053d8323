"""Commands as a shell runs them: output, exit codes, one line for wrong input, and nothing lost."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time

import children
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


def test_debug_training_reports_its_progress_and_its_folder(debug_run):
    workdir, result = debug_run
    for step in range(1, 5):
        assert f"step {step}/4" in result.stderr
    assert (
        "finished step 4 of 4" in result.stderr
        and f"checkpoints are in {workdir}/checkpoints" in result.stderr
    )
    assert (workdir / "config.json").exists() and list((workdir / "tensorboard").iterdir())


def test_training_a_finished_run_again_changes_nothing(debug_run):
    workdir, _ = debug_run
    history = (workdir / "metrics.jsonl").read_text()
    result = shell.train(workdir)
    assert result.returncode == 0
    assert f"resuming at step 4 of 4 in {workdir}" in result.stderr
    assert (workdir / "metrics.jsonl").read_text() == history


def test_sample_writes_a_video_with_sound(debug_run, video, tmp_path):
    out = tmp_path / "new" / "a_sound.mp4"
    result = shell.sample(
        debug_run[0], video, out, "--prompt", "a glass ball", "--solver", "heun", "--steps", 2, "--seed", 5
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(out)]
    info = probe(out)
    assert info.has_audio and (info.width, info.height) == (80, 64)


@pytest.mark.scale
def test_sampling_a_table_names_unreadable_clips_and_skips_existing_sounds(debug_run, video, tmp_path):
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


def _write_without_frames(path):
    """Write the headers of a video, and nothing after them."""
    write_video(path, np.zeros((24, 64, 64, 3), np.uint8), 24.0)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("missing.mp4", lambda path: None, "no such file"),
        ("text.mp4", lambda path: path.write_text("no video"), "not readable"),
        ("empty.mp4", lambda path: path.write_bytes(b""), "not readable"),
        ("sound.wav", lambda path: write_audio(path, np.zeros(999), 16_000), "no video stream"),
        ("no_frames.mp4", _write_without_frames, "no frame"),
        ("empty.tsv", lambda path: path.write_text(""), "empty"),
        ("no_rows.tsv", lambda path: path.write_text("video_path\ttext_description\n"), "no"),
        ("folder", lambda path: path.mkdir(), "no video"),
    ],
)
def test_sample_names_the_input_that_it_cannot_read(tiny_run, tmp_path, name, write, reason):
    write(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    result = shell.sample(tiny_run, tmp_path / name, tmp_path / "out.mp4")
    shell.fails_in_one_line(result, tmp_path / name, reason)
    assert sorted(tmp_path.rglob("*")) == before


def test_sample_refuses_a_prompt_that_is_too_long(tiny_run, video, tmp_path):
    result = shell.sample(tiny_run, video, tmp_path / "out.mp4", "--prompt", "bang " * 20_000)
    assert len(shell.fails_in_one_line(result, "prompt")) < 300
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--solver", "eulr"), ["--solver='eulr' must be one of euler, heun"]),
        (("--steps", "0"), ["steps", "0"]),
        (("--guidence", "2"), ["guidence"]),
        (("more",), ["more"]),
    ],
)
def test_sample_names_a_wrong_flag(tiny_run, video, tmp_path, flags, expected):
    shell.fails_in_one_line(shell.sample(tiny_run, video, tmp_path / "out.mp4", *flags), *expected)


def test_sample_names_a_folder_without_a_run(video, tmp_path):
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
            ["unknown configuration key optim.learning_rte; did you mean optim.learning_rate?"],
        ),
        (
            shell.IMPACTS,
            "--config.model.fade=square",
            ["model.fade='square' must be one of cosine, linear"],
        ),
        (shell.IMPACTS, "--config.train.steps=many", ["train.steps='many' must be an int"]),
        (shell.IMPACTS, "--config.data.records=none", ["none/components.json", "no such file"]),
        (shell.IMPACTS + ":huge", "--config.seed=1", ["'huge'", "debug"]),
        (shell.DEBUG, "--config.data.records=own", ["data.records=own would not be read", "data.generate=0"]),
        (shell.IMPACTS, "--lr=1", ["unknown flag --lr; did you mean --config.optim.learning_rate?"]),
        (shell.IMPACTS, "--config.optim.learning_rate=nan", ["optim.learning_rate=nan must be a finite"]),
        ("none.py", "--config.seed=1", ["none.py: no such file", "impacts.py"]),
    ],
)
def test_train_names_what_is_wrong_with_a_configuration(tmp_path, config, flag, expected):
    shell.fails_in_one_line(shell.train(tmp_path / "run", flag, config=config), *expected)
    assert not (tmp_path / "run").exists()


@pytest.mark.scale
def test_ema_compares_several_lengths_and_writes_one(tiny_run, tmp_path):
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
        (("--config.secnds=3",), ("unknown configuration key secnds; did you mean seconds?",)),
        (("--runner=Nope",), ("--runner=Nope: Unexpected pipeline runner",)),
        (("--captions=soundcap",), ("--captions=soundcap must be NAME=FILE",)),
        (("--captions=soundcap=/none.tsv",), ("--captions: /none.tsv: no such file",)),
        (("--config.mel=48k",), ("mel='48k' must be one of 16k, 44k",)),
        (("--decoders=0",), ("--decoders='0' must be at least 1 and at most 1024",)),
        (("--time-limit=nan",), ("--time-limit='nan' must be a finite number",)),
        (("--captions=a=b", "--captions=a=c"), ("--captions=a=c: a is already b",)),
        (("--config=configs/records.py:tiny",), ("has no option 'tiny'; it has embedded, published",)),
    ],
)
def test_extract_names_a_wrong_flag(video, tmp_path, flags, expected):
    (tmp_path / "clips.tsv").write_text("video_path\ttext_description\tsplit\tlabel\na.mp4\tx\ttrain\tx\n")
    result = shell.run(
        "data_prep.extract", "--table", tmp_path / "clips.tsv", "--out", tmp_path / "r", *flags
    )
    shell.fails_in_one_line(result, *expected)


def test_soundcap_lists_its_flags_and_names_a_wrong_one(video, tmp_path):
    assert "--model" in shell.run("data_prep.soundcap", "--help").stdout
    (tmp_path / "clips.tsv").write_text("video_path\ttext_description\tsplit\tlabel\na.mp4\tx\ttrain\tx\n")
    flags = ("--table", tmp_path / "clips.tsv", "--out", tmp_path / "caps", "--model=x")
    wrong = shell.run("data_prep.soundcap", *flags, "--split=vlaid", "--server=http://127.0.0.1:9/v1")
    shell.fails_in_one_line(wrong, "no row in split 'vlaid'; the splits are train")
    shell.fails_in_one_line(
        shell.run("data_prep.soundcap", *flags, "--server=127.0.0.1:9"), "must begin with http:// or https://"
    )


@pytest.mark.parametrize("module", ["flowley_jax.train", "data_prep.extract", "data_prep.folder"])
def test_every_command_prints_the_version(module):
    result = shell.run(module, "--version")
    assert result.returncode == 0
    assert result.stdout == f"flowley-jax {importlib.metadata.version('flowley-jax')}\n"


@pytest.mark.parametrize("name", ["a b.v1", "-out", "ü=ß", "--", "x.TSV"])
def test_folders_and_files_may_have_odd_names(video, tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir()
    video.rename(folder / "A.MP4")
    for words in (
        [f"--root={folder}", f"--out={folder}/-t.TSV"],
        ["--root", name, "--out", f"{name}/-t.TSV"],
    ):
        result = children.run(shell.command("data_prep.folder", *words), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert (folder / "-t.TSV").read_text().count("A.MP4") == 2
        (folder / "-t.TSV").unlink()


def test_an_interrupted_extraction_says_how_to_continue(tmp_path):
    header = "id\tvideo_path\ttext_description\tsplit\tlabel\n"
    rows = [f"{index}\t{index}.mp4\tx\ttrain\tx\n" for index in range(40)]
    for index in range(40):
        os.mkfifo(tmp_path / f"{index}.mp4")
    (tmp_path / "clips.tsv").write_text(header + "".join(rows))
    command = shell.command("data_prep.extract", "--table", tmp_path / "clips.tsv", "--out", tmp_path / "r")
    options = {"stderr": subprocess.PIPE, "text": True, "cwd": shell.ROOT}
    # Reading a clip would be given up only after two minutes.
    with children.started(command, limit=100.0, **options) as process:
        assert any("reading clips" in line for line in process.stderr)
        time.sleep(2.0)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate()
    assert not list((tmp_path / "r/features").rglob("*.json"))
    assert process.returncode == 130 and "Traceback" not in rest
    assert rest.splitlines()[-1] == "interrupted; run the same command again to continue"


@pytest.mark.scale
def test_sample_captions_a_clip_with_soundcap_first(tiny_run, video, tmp_path):
    with openai_server.running(tmp_path / "requests.jsonl") as url:
        flags = (f"--soundcap={openai_server.MODEL}", f"--soundcap-server={url}")
        result = shell.sample(tiny_run, video, tmp_path / "out.mp4", *flags)
        assert result.returncode == 0, result.stderr
        assert "A thud over" in result.stderr
        assert result.stdout.splitlines() == [str(tmp_path / "out.mp4")]
        both = shell.sample(tiny_run, video, tmp_path / "out.mp4", *flags, "--prompt=x")
        shell.fails_in_one_line(both, "give either --prompt or --soundcap")
        result = shell.sample(tiny_run, video.parent, tmp_path / "sounds", *flags)
    rows = [json.loads(line) for line in (tmp_path / "sounds/samples.jsonl").read_text().splitlines()]
    prompts = [row["prompt"] for row in rows if "id" in row]
    assert prompts and all("A thud over" in prompt for prompt in prompts)
    assert (tmp_path / "sounds/soundcap/captions.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--sigma-rel=0.5",), "--sigma-rel='0.5' must be between 0 and 0.288"),
        (
            ("--out=a.safetensors", "--sigma-rel=0.05", "--sigma-rel=0.1"),
            "exactly one --sigma-rel; 2 are given",
        ),
        (("--adapter=a.safetensors", "--sigma-rel=0.05"), "was trained without LoRA"),
        (("--records=nowhere",), "nowhere: no such folder; name other records by --records"),
        (("--out=a.npz", "--novalidate", "--sigma-rel=0.05"), "a.npz: must end in .safetensors"),
    ],
)
def test_ema_names_a_wrong_flag(tiny_run, flags, expected):
    shell.fails_in_one_line(shell.run("flowley_jax.ema", "--workdir", tiny_run, *flags), expected)


def test_train_leaves_a_folder_with_a_different_configuration_unchanged(debug_run):
    workdir, _ = debug_run
    before = shell.tree(workdir)
    result = shell.train(workdir, "--config.optim.learning_rate=0.5", "--config.model.window=9")
    shell.fails_in_one_line(
        result, workdir, "optim.learning_rate was 0.002, is now 0.5", "model.window was 0, is now 9"
    )
    assert shell.tree(workdir) == before


def test_verbose_shows_the_log_lines_of_libraries(tmp_path):
    module = tmp_path / "shows_logs.py"
    module.write_text(
        "import logging\n"
        "from flowley_jax.cli import run_main\n"
        "from flowley_jax.errors import FlowleyError\n"
        "def main():\n"
        "    logging.getLogger('flowley_jax.training').info('ours')\n"
        "    logging.getLogger('library').info('theirs')\n"
        "    logging.getLogger('library').error('their error')\n"
        "    raise FlowleyError('wrong')\n"
        "if __name__ == '__main__':\n"
        "    run_main(main)\n"
    )
    quiet, verbose = (
        children.run([sys.executable, module, *flags], cwd=shell.ROOT) for flags in ((), ("--verbose",))
    )
    assert quiet.stderr == "ours\nerror: wrong\n"
    shell.fails_in_one_line(verbose, "error: wrong")
    assert len(verbose.stderr.splitlines()) == 4
    assert "ours\n" in verbose.stderr and "theirs\n" in verbose.stderr and "their error\n" in verbose.stderr
