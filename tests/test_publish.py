"""Sharing a model: the folder that is written, its use in place of a run's, and the Hugging Face hub."""

import os
import subprocess

import hub_server
import numpy as np
import pytest
import shell
import tiny
import yaml

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.weight_files import read_arrays, write_arrays
from flowley_jax.media.write import write_video
from flowley_jax.runs.hub_models import local_folder
from flowley_jax.runs.model_folder import write_model_folder
from flowley_jax.runs.weights import averaged_weights, read_weights
from flowley_jax.runs.workdir import read_config
from flowley_jax.sampling import Sampler
from flowley_jax.training.loop import train
from flowley_jax.training.metrics import read_history

FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "components/codec.npz",
    "components/components.json",
}


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared") / "model"
    result = shell.run("flowley_jax.publish", "--workdir", tiny_run, "--out", out, "--license", "cc-by-4.0")
    assert result.returncode == 0 and result.stdout.strip() == str(out), result.stderr
    return out


@pytest.fixture(scope="module")
def frames(tiny_run):
    size = Sampler.from_run(tiny_run).components.video_encoder.frame_size
    return np.random.default_rng(0).integers(0, 256, (10, size, size, 3), np.uint8)


def test_the_folder_gives_the_sounds_of_the_run(tiny_run, folder, frames):
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == FILES
    expected = Sampler.from_run(tiny_run).sound(frames, "a ball", clip_id="a")
    for sampler in (Sampler.from_run(folder), Sampler.from_pretrained(folder)):
        np.testing.assert_array_equal(sampler.sound(frames, "a ball", clip_id="a"), expected)


def test_the_folder_tells_nothing_of_the_machine(folder, tiny_run):
    config = read_config(folder)
    assert config.data.records == "" and read_config(tiny_run).data.records != ""
    for name in ("README.md", "config.json", "components/components.json"):
        assert str(tiny_run.parent) not in (folder / name).read_text()


def test_the_card_has_front_matter_and_the_figures_of_the_run(tiny_run, folder):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "cc-by-4.0" and facts["pipeline_tag"] == "other"
    assert "video-to-audio" in facts["tags"]
    (metric,) = facts["model-index"][0]["results"][0]["metrics"]
    losses = [row["valid/loss"] for row in read_history(tiny_run) if "valid/loss" in row]
    assert metric["name"] == "validation loss" and metric["value"] == pytest.approx(losses[-1], abs=1e-6)
    assert "--workdir model" in text and "3 steps, batch 4" in text


def test_weights_can_be_stored_in_half_the_bytes(tiny_run, folder, tmp_path):
    config = read_config(tiny_run)
    write_model_folder(tiny_run, tmp_path / "half", sigma_rel=0.1, dtype="bfloat16")
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "half", folder)]
    assert sizes[0] < 0.6 * sizes[1]
    exact = averaged_weights(tiny_run, sigma_rel=0.1).model
    rounded = read_weights(tmp_path / "half" / "model.safetensors", config.model).model
    ours, theirs = (model.audio_input.first.kernel[...] for model in (exact, rounded))
    assert 0 < np.abs(ours - theirs).max() < 2.0**-8 * np.abs(ours).max()


def test_a_compact_file_stores_the_shared_block_once(tiny_run, folder, tmp_path):
    config = read_config(tiny_run)
    assert config.model.share_single and config.model.single_depth > 1
    result = shell.run(
        "flowley_jax.publish", "--workdir", tiny_run, "--out", tmp_path / "compact", "--compact"
    )
    assert result.returncode == 0, result.stderr
    path, whole = tmp_path / "compact" / "model.safetensors", folder / "model.safetensors"
    arrays, notes = read_arrays(path)
    expected, _ = read_arrays(whole)
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
    # Each further copy of the block is left out.
    block = sum(x.nbytes for name, x in expected.items() if name.startswith("single_modal_stream.0."))
    saved = whole.stat().st_size - path.stat().st_size
    assert saved > 0.95 * block * (config.model.single_depth - 1)
    write_arrays(path, {"a": np.zeros(2)}, {**notes, "flowley_jax.equal": '{"b": "c"}'})
    with pytest.raises(FlowleyError, match=r"its note flowley_jax\.equal names arrays that it does not have"):
        read_arrays(path)


def test_a_shared_model_can_be_fine_tuned_and_is_never_trained_in_place(tiny_run, folder, tmp_path):
    records = tiny_run.parent / "records"
    assert train(tiny.fine_tuning(records, folder), tmp_path / "tuned").step == 4
    before = shell.tree(folder)
    with pytest.raises(FlowleyError, match=r"holds a shared model \(model\.safetensors\), not a run"):
        train(tiny.experiment(records), folder)
    after = shell.tree(folder)
    assert {path: data for path, data in after.items() if path in before} == before


def test_what_cannot_be_shared_is_refused(tiny_run, folder, tmp_path):
    publish = ("flowley_jax.publish", "--workdir", tiny_run)
    for flags, expected in (
        (("--out", folder), "exists and is not an empty folder"),
        (("--out", tmp_path / "a", "--push", "no-slash"), "a repository on the hub is named ORG/NAME"),
        (("--out", tmp_path / "a", "--scores", folder / "config.json"), "is not the scores.json"),
    ):
        shell.fails_in_one_line(shell.run(*publish, *flags), expected)
    nothing = shell.run("flowley_jax.publish", "--workdir", tmp_path, "--out", tmp_path / "a")
    shell.fails_in_one_line(nothing, "no training run here")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FlowleyError, match="has the weights of step 3 only, not 2"):
        averaged_weights(folder, sigma_rel=0.05, step=2)


def test_a_damaged_file_is_named(folder, tmp_path):
    for path in folder.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    raw = bytearray((tmp_path / "model.safetensors").read_bytes())
    raw[-3] ^= 1
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(FlowleyError, match=r"model\.safetensors: is damaged"):
        Sampler.from_run(tmp_path)


def test_models_travel_over_the_hub(tiny_run, folder, frames, tmp_path):
    video = tmp_path / "a.mp4"
    write_video(video, frames, tiny.FPS)
    with hub_server.running() as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN": "hf_test",
            "PYTHONPATH": str(shell.ROOT),
        }

        def run(*command):
            return subprocess.run(
                shell.command(*command),
                env=environment,
                capture_output=True,
                text=True,
                cwd=tmp_path,
                timeout=shell.TIMEOUT,
            )

        publish = ("flowley_jax.publish", "--workdir", tiny_run, "--out")
        pushed = run(*publish, tmp_path / "pushed", "--push", "someone/model", "--private")
        assert pushed.returncode == 0, pushed.stderr
        assert pushed.stdout.splitlines() == [str(tmp_path / "pushed"), f"{hub.address}/someone/model"]
        assert hub.created[0]["visibility"] == "private"
        stored = hub.repositories["someone/model"]
        assert {name for name in stored if name != ".gitattributes"} == FILES
        assert b"--workdir hf:someone/model" in stored["README.md"]

        def sample(source, out):
            return run(
                *("flowley_jax.sample", "--workdir", source, "--video", video),
                *("--prompt", "a ball", "--out", tmp_path / out),
            )

        near, far = sample(folder, "near.wav"), sample("hf:someone/model", "far.wav")
        assert near.returncode == far.returncode == 0, far.stderr
        assert (tmp_path / "near.wav").read_bytes() == (tmp_path / "far.wav").read_bytes()
        hub.repositories["someone/other"] = {"pytorch_model.bin": b""}
        for name, expected in (
            ("someone/none", "the hub has no such repository, or it is private"),
            (hub_server.PRIVATE, "the hub has no such repository, or it is private"),
            (
                "someone/other",
                "holds no model of flowley_jax.publish (config.json and model.safetensors missing)",
            ),
            ("some one", "a repository on the hub is named ORG/NAME"),
        ):
            shell.fails_in_one_line(sample(f"hf:{name}", "x.wav"), expected)
    again = sample("hf:someone/model", "again.wav")
    assert again.returncode == 0 and "using the earlier download" in again.stderr
    shell.fails_in_one_line(sample("hf:someone/unknown", "x.wav"), "the hub cannot be reached")
    refused = run(*publish, tmp_path / "refused", "--push", "someone/model")
    shell.fails_in_one_line(refused, "someone/model: was not uploaded", "is complete")


def test_other_sources_are_paths(tmp_path):
    assert local_folder(tmp_path) == tmp_path and local_folder("runs/a") == type(tmp_path)("runs/a")
