"""The published system in miniature: from files to sounds, records and a run, by the command lines."""

import json

import numpy as np
import published
import pytest
import shell
from golden_data import relative_error

from flowley_jax.config import SampleConfig
from flowley_jax.data.components import Components
from flowley_jax.data.record import open_records
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.interop.weight_files import read_arrays
from flowley_jax.media.read import probe, read_audio
from flowley_jax.media.write import write_video
from flowley_jax.sampling.published import load_published

pytestmark = pytest.mark.scale
# Sizes of the network that is trained on the records, equal to those of the miniature's features.
SIZES = {"video_dim": published.CLIP_DIM, "text_dim": published.T5_DIM, "audio_dim": 20, "video_fps": 8.0}


def _run(module, *flags):
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
    result = _run("flowley_jax.convert", "--out", folder / "bundles", *sources)
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


def test_convert_describes_a_file_and_writes_it_back(bundles, tmp_path):
    source = bundles.parent / "files" / "vae.safetensors"
    assert "the audio VAE" in _run("flowley_jax.convert", "--source", source).stdout
    back = tmp_path / "back.safetensors"
    _run("flowley_jax.convert", "--bundle", bundles / "audio_vae", "--to", back)
    expected, written = read_arrays(source)[0], read_arrays(back)[0]
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[name], array) for name, array in expected.items())
    refused = shell.run("flowley_jax.convert", "--source", source, "--out", tmp_path, "--expect=clip")
    shell.fails_in_one_line(refused, source, "expected a CLIP image encoder, found the audio VAE")
    both = shell.run("flowley_jax.convert", "--source", source, "--bundle", bundles / "t5")
    shell.fails_in_one_line(both, "give either --source")


def test_sample_adds_sound_to_a_video(bundles, clips, tmp_path):
    flags = ("--published", bundles, "--video", clips / "c0.mp4", "--prompt=rain", "--steps=2")
    report = _run("flowley_jax.sample", *flags, "--dry-run").stdout
    assert "windows:      1 of 8.00 s" in report and "on each device" in report
    out = tmp_path / "sound.mp4"
    assert _run("flowley_jax.sample", *flags, "--out", out).stdout.splitlines() == [str(out)]
    assert probe(out).has_audio and probe(out).duration == pytest.approx(8.0, abs=0.1)
    assert np.abs(read_audio(out, sample_rate=16_000)).max() > 1e-4


def test_records_are_extracted_and_trained_on(bundles, clips, tmp_path):
    records, workdir, out = (tmp_path / name for name in ("records", "run", "sound.wav"))
    flags = ("--config=configs/records.py:published", f"--config.published={bundles}", "--out", records)
    _run("data_prep.extract", *flags, "--table", clips / "clips.tsv")
    components, example = Components.load(records), open_records(records, "train")[0]
    assert components.lengths == (250, 64, 77) and components.sample_rate == 16_000
    # The posterior of a VAE has a deviation; that of the PCA codec has none.
    assert example["audio_std"].shape == (250, 20) and example["audio_std"].min() > 0
    sizes = [f"--config.model.{name}={value}" for name, value in SIZES.items()]
    flags = ("--config.data.generate=0", f"--config.data.records={records}")
    flags += ("--config.data.batch_size=2", "--config.train.steps=2")
    result = shell.train(workdir, *sizes, *flags)
    assert result.returncode == 0, result.stderr
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    result = shell.sample(workdir, clips / "c2.mp4", out, "--steps=2", "--prompt=two glasses clink")
    assert result.returncode == 0, result.stderr
    assert len(read_audio(out, sample_rate=16_000)) == 128_000


def test_half_precision_gives_similar_sounds(bundles):
    settings = SampleConfig(solver=SolverConfig(steps=2), guidance=2.0)
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    sampler = load_published(bundles, settings=settings)
    half = load_published(bundles, settings=settings, dtype="bfloat16")
    for features, expected in (
        (half.components.features_of_video(frames), sampler.components.features_of_video(frames)),
        (half.components.features_of_text(["rain"])[0], sampler.components.features_of_text(["rain"])[0]),
    ):
        assert 0 < relative_error(features, expected) < 0.05
    wave, expected = (each.sound(frames, "a dog barks")[0] for each in (half, sampler))
    assert np.corrcoef(wave, expected)[0, 1] > 0.95


def test_sound_at_44100_hz_has_the_right_length(tmp_path):
    bundles = published.write_bundles(tmp_path, rate="44k")
    sampler = load_published(bundles, settings=SampleConfig(solver=SolverConfig(steps=2), guidance=2.0))
    assert sampler.components.lengths == (345, 64, 77)
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    waves = sampler.sound(frames, "a dog barks")
    assert waves.shape == (1, 44_100) and 1e-4 < np.abs(waves).max() <= 1.0
