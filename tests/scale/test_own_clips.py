"""Every command of docs/own_clips.md runs in order, on generated clips and with a tiny network."""

import json
import re
import shlex
import shutil
import sys

import children
import pytest
import shell

pytestmark = pytest.mark.scale

PAGE = shell.ROOT / "docs/own_clips.md"
# The page's run, shortened to seconds.
SHORT = {"--config.train.steps=5000": "--config.train.steps=3"}


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("python ")]


def _run(words: list[str], folder) -> None:
    words = [SHORT.get(word, word) for word in words[1:]]
    if "flowley_jax.train" in words:
        words += [*shell.SMALL, "--config.ema.snapshot_every=3"]
    children.run([sys.executable, *words], cwd=folder, check=True)


def test_the_commands_lead_from_a_folder_of_videos_to_sounds(tmp_path):
    clips = shell.run("data_prep.impacts", "--out", tmp_path / "clips", "--train=24", "--test=3")
    assert clips.returncode == 0, clips.stderr
    shutil.copytree(tmp_path / "clips/train", tmp_path / "my_clips")
    shutil.copytree(tmp_path / "clips/test", tmp_path / "new_clips")
    first = next((tmp_path / "new_clips").glob("*.mp4"))
    shutil.copy(first, tmp_path / "new_clips/a.mp4")
    shutil.copy(tmp_path / "clips/events.jsonl", tmp_path)
    commands = _commands()
    assert len(commands) >= 7
    for words in commands:
        _run(words, tmp_path)
    assert (tmp_path / "data/own/records/components.json").exists()
    assert json.loads((tmp_path / "runs/own/config.json").read_text())["train"]["steps"] == 3
    assert (tmp_path / "a_sound.mp4").exists() and len(list((tmp_path / "sounds").glob("*.mp4"))) == 4
