"""The model that comes with the package: its size, its sounds for its examples, and what is said of it."""

import json

import numpy as np
import pytest
import shell
import yaml

from data_prep.impacts.generate import GeneratedClip
from flowley_jax.audio.onsets import detect_onsets, match_onsets
from flowley_jax.demo.included import EXAMPLE_CLIPS
from flowley_jax.media.read import probe, read_audio
from flowley_jax.runs.included_model import INCLUDED, examples
from flowley_jax.sampling import Sampler

MIB = 2**20


def test_the_folder_is_small_and_names_its_scores():
    sizes = {path.name: path.stat().st_size for path in INCLUDED.rglob("*") if path.is_file()}
    assert sizes["model.safetensors"] <= 4 * MIB and sum(sizes.values()) <= 4 * MIB
    _, front, _ = (INCLUDED / "README.md").read_text().split("---\n", 2)
    metrics = yaml.safe_load(front)["model-index"][0]["results"][0]["metrics"]
    scores = {metric["name"]: metric["value"] for metric in metrics}
    assert scores["onset-F1"] > 0.95 and scores["material-accuracy"] > 0.8


def test_the_examples_get_sounds_in_time_with_the_picture(tmp_path):
    out = tmp_path / "sounds"
    flags = ("--video", INCLUDED / "examples", "--out", out, "--candidates", "3")
    result = shell.run("flowley_jax.sample", *flags)
    assert result.returncode == 0, result.stderr
    assert "using the included model, which knows the sounds of things that strike" in result.stderr
    matched = total = 0
    for video, prompt in examples(INCLUDED):
        clip = GeneratedClip(split="test", index=EXAMPLE_CLIPS[video.stem], seed=0, seconds=4.0)
        scene, caption, _ = clip.draw()
        assert caption == prompt and not probe(video).has_audio
        wave = read_audio(out / video.name, sample_rate=16_000)
        score = match_onsets(detect_onsets(wave, 16_000)[0], np.array([time for time, *_ in scene.impacts]))
        matched, total = matched + 2 * score.matched, total + score.detected + score.reference
    assert matched / total >= 0.9
    requests = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert all(len(row["scores"]) == 3 for row in requests if "settings" in row)


def test_it_is_loaded_by_default_in_python():
    sampler = Sampler.from_pretrained()
    assert sampler.settings.solver.name == "flow_map" and sampler.settings.solver.steps == 4
    assert sampler.settings.guidance == 1.0
    assert sampler.components.seconds == pytest.approx(4.0)
