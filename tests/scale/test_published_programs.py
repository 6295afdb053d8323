"""From published files to sounds, records and a run by the command lines alone, in miniature."""

import json

import numpy as np
import published
import pytest
import shell
from golden_data import relative_error

from flowley_jax.config import SampleConfig
from flowley_jax.data.parts import Parts
from flowley_jax.data.record import open_records
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.interop.weight_files import read_arrays
from flowley_jax.media.read import probe, read_audio
from flowley_jax.media.write import write_video
from flowley_jax.sampling.published import load_published

pytestmark = pytest.mark.scale
# Of the network that is trained on the records: its inputs are as wide as the miniature's features.
SIZES = {"video_dim": published.CLIP_DIM, "text_dim": published.T5_DIM, "audio_dim": 20, "video_fps": 8.0}


def _succeeds(module, *flags):
    result = shell.run(module, *flags)
    assert result.returncode == 0, result.stderr
    return result


def _write_clip(path, seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (64, 32, 32, 3), np.uint8)
    write_video(path, frames, 8.0, audio=0.1 * rng.standard_normal(128_000), sample_rate=16_000)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    sources = [f"--source={path}" for path in published.write_files(folder / "files")]
    result = _succeeds("flowley_jax.convert", "--out", folder / "bundles", *sources)
    names = ("clip", "t5", "audio_vae", "bigvgan", "flowley")
    assert result.stdout.splitlines() == [str(folder / "bundles" / name) for name in names]
    return folder / "bundles"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    rows = ["id\tvideo_path\ttext_description\tsplit\tlabel"]
    for index, split in enumerate(("train", "train", "valid")):
        _write_clip(folder / f"c{index}.mp4", index)
        rows.append(f"id{index}\tc{index}.mp4\ta train passes slowly\t{split}\ttrain")
    (folder / "clips.tsv").write_text("\n".join(rows) + "\n")
    return folder


def test_a_file_is_told_and_written_back(bundles, tmp_path):
    source = bundles.parent / "files" / "vae.safetensors"
    assert "the audio VAE" in _succeeds("flowley_jax.convert", "--source", source).stdout
    back = tmp_path / "back.safetensors"
    _succeeds("flowley_jax.convert", "--bundle", bundles / "audio_vae", "--to", back)
    expected, found = read_arrays(source)[0], read_arrays(back)[0]
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    refused = shell.run("flowley_jax.convert", "--source", source, "--out", tmp_path, "--expect=clip")
    shell.fails_in_one_line(refused, source, "expected a CLIP image encoder, found the audio VAE")
    both = shell.run("flowley_jax.convert", "--source", source, "--bundle", bundles / "t5")
    shell.fails_in_one_line(both, "give either --source")


def test_a_video_gets_its_sound(bundles, clips, tmp_path):
    flags = ("--published", bundles, "--video", clips / "c0.mp4", "--prompt=rain", "--steps=2")
    plan = _succeeds("flowley_jax.sample", *flags, "--dry-run").stdout
    assert "waves (1, 128000) at 16000 Hz" in plan and "memory of a device" in plan
    out = tmp_path / "sound.mp4"
    assert _succeeds("flowley_jax.sample", *flags, "--out", out).stdout.splitlines() == [str(out)]
    assert probe(out).has_audio and probe(out).duration == pytest.approx(8.0, abs=0.1)
    assert np.abs(read_audio(out, sample_rate=16_000)).max() > 1e-4


def test_records_are_made_and_trained_on(bundles, clips, tmp_path):
    records, workdir, out = (tmp_path / name for name in ("records", "run", "sound.wav"))
    flags = ("--config=configs/records.py:published", f"--config.published={bundles}", "--out", records)
    _succeeds("data_prep.extract", *flags, "--table", clips / "clips.tsv")
    parts, example = Parts.load(records), open_records(records, "train")[0]
    assert parts.lengths == (250, 64, 77) and parts.sample_rate == 16_000
    # A VAE gives a distribution, and the embedded codec does not.
    assert example["audio_std"].shape == (250, 20) and example["audio_std"].min() > 0
    sizes = [f"--config.model.{name}={value}" for name, value in SIZES.items()]
    flags = (f"--config.data.records={records}", "--config.data.batch_size=2", "--config.train.steps=2")
    result = shell.train(workdir, *sizes, *flags)
    assert result.returncode == 0, result.stderr
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    result = shell.sample(workdir, clips / "c2.mp4", out, "--steps=2", "--prompt=two glasses clink")
    assert result.returncode == 0, result.stderr
    assert len(read_audio(out, sample_rate=16_000)) == 128_000


def test_half_precision_sounds_alike(bundles):
    settings = SampleConfig(solver=SolverConfig(steps=2), guidance=2.0)
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    sampler = load_published(bundles, settings=settings)
    half = load_published(bundles, settings=settings, dtype="bfloat16")
    for features, expected in (
        (half.parts.features_of_video(frames), sampler.parts.features_of_video(frames)),
        (half.parts.features_of_text(["rain"])[0], sampler.parts.features_of_text(["rain"])[0]),
    ):
        assert 0 < relative_error(features, expected) < 0.05
    wave, expected = (one.sound(frames, "a dog barks")[0] for one in (half, sampler))
    assert np.corrcoef(wave, expected)[0, 1] > 0.95


def test_a_sound_at_44100_hz(tmp_path):
    bundles = published.write_bundles(tmp_path, rate="44k")
    sampler = load_published(bundles, settings=SampleConfig(solver=SolverConfig(steps=2), guidance=2.0))
    assert sampler.parts.lengths == (345, 64, 77)
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    waves = sampler.sound(frames, "a dog barks")
    assert waves.shape == (1, 44_100) and 1e-4 < np.abs(waves).max() <= 1.0
