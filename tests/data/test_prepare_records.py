"""From a table of real clips to records and parts."""

import os

import numpy as np
import pytest

import data_prep.prepare
from data_prep.clip_features import RecordSettings
from data_prep.prepare import prepare_records
from flowley_jax.audio.mel import MEL_16K, log_mel
from flowley_jax.data.parts import Parts
from flowley_jax.data.record import arrays_of, open_records, texts_of
from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_audio, read_frames
from flowley_jax.media.write import write_video

SETTINGS = RecordSettings(seconds=1.0, latent_dim=4, video_fps=12.0, frame_size=64, text_dim=8, max_tokens=8)
SECONDS_OF_MEDIA = 1.2


def _write_clip(path, seed, seconds=SECONDS_OF_MEDIA):
    rng = np.random.default_rng(seed)
    frames = np.full((round(24 * seconds), 64, 64, 3), 90, np.uint8)
    for time, frame in enumerate(frames):
        frame[2 * time : 2 * time + 8, 20:30] = rng.integers(100, 255, 3)
    samples = round(16_000 * seconds)
    envelope = np.exp(-np.arange(samples) / 2000 * rng.uniform(0.5, 2))
    wave = (0.5 * rng.uniform(-1, 1, samples) * envelope).astype(np.float32)
    write_video(path, frames, 24, audio=wave, sample_rate=16_000)


def _write_table(folder, rows):
    lines = ["id\tvideo_path\ttext_description\tsplit\tlabel", *("\t".join(row) for row in rows)]
    (folder / "clips.tsv").write_text("\n".join(lines) + "\n")
    return folder / "clips.tsv"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """Six good clips, and one each that is missing, damaged, too short and too talkative."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for index, split in enumerate(("train", "train", "train", "valid", "test", "test")):
        _write_clip(folder / f"c{index}.mp4", seed=index)
        rows.append((f"id{index}", f"c{index}.mp4", f"a ball number {index}", split, "ball"))
    _write_clip(folder / "short.mp4", seed=9, seconds=0.5)
    (folder / "damaged.mp4").write_bytes(b"not a film")
    rows += [
        ("missing", "none.mp4", "x", "train", "x"),
        ("damaged", "damaged.mp4", "x", "train", "x"),
        ("short", "short.mp4", "x", "train", "x"),
        ("talkative", "c0.mp4", "word " * 99, "train", "x"),
    ]
    _write_table(folder, rows)
    return folder


@pytest.fixture(scope="module")
def prepared(clip_folder):
    out = clip_folder / "records"
    return out, prepare_records(clip_folder / "clips.tsv", out, SETTINGS, workers=2)


def test_good_clips_become_records(clip_folder, prepared):
    out, summary = prepared
    assert summary["examples"] == {"train": 3, "valid": 1, "test": 2}
    parts = Parts.load(out)
    example = open_records(out, "test")[1]
    assert texts_of(example) == {"id": "id5", "caption": "a ball number 5", "label": "ball"}
    frames = read_frames(clip_folder / "c5.mp4", fps=12.0, size=64, seconds=1.0)
    np.testing.assert_array_equal(example["video_features"], parts.features_of_video(frames))
    wave = read_audio(clip_folder / "c5.mp4", sample_rate=16_000)[: parts.audio_samples]
    np.testing.assert_allclose(example["audio_mean"], parts.encode_audio(wave[None])[0][0], atol=1e-5)
    assert example["audio_std"].max() == 0
    features, lengths = parts.features_of_text(["a ball number 5"])
    np.testing.assert_array_equal(arrays_of(example)["text_features"], features[0])
    assert example["text_len"] == lengths[0]
    assert example["audio_mean"].shape == (parts.dims.audio_length, parts.dims.audio_dim)


def test_statistics_and_codec_come_from_the_training_split(clip_folder, prepared):
    parts = Parts.load(prepared[0])
    latents = np.concatenate([example["audio_mean"] for example in open_records(prepared[0], "train")])
    np.testing.assert_allclose(parts.latent_mean, latents.mean(axis=0, dtype=np.float64), atol=1e-5)
    np.testing.assert_allclose(parts.latent_std, latents.std(axis=0, dtype=np.float64), rtol=1e-5)
    waves = [read_audio(clip_folder / f"c{i}.mp4", sample_rate=16_000)[:16_384] for i in range(3)]
    mels = np.stack([log_mel(wave, MEL_16K) for wave in waves])
    np.testing.assert_allclose(parts.codec.mean, mels.reshape(-1, 160).mean(0), atol=1e-4)


def test_bad_clips_are_listed_with_their_reasons(prepared):
    out, summary = prepared
    assert summary["rejected"] == 4
    header, *rows = (out / "rejected.tsv").read_text().splitlines()
    assert header == "id\tvideo_path\treason"
    reasons = {row.split("\t")[0]: row.split("\t")[2] for row in rows}
    assert list(reasons) == ["missing", "damaged", "short", "talkative"]
    assert "none.mp4" in reasons["missing"] and "damaged.mp4" in reasons["damaged"]
    assert "too short" in reasons["short"] and "max_tokens=8" in reasons["talkative"]


def test_a_second_run_reuses_the_records(clip_folder, prepared, monkeypatch, capsys):
    def never(*_):
        raise AssertionError("clips were read again")

    monkeypatch.setattr(data_prep.prepare, "extract_features", never)
    assert prepare_records(clip_folder / "clips.tsv", prepared[0], SETTINGS) == prepared[1]
    assert "made already" in capsys.readouterr().out
    assert not (prepared[0] / "cache").exists()


def test_other_settings_do_not_overwrite_records(clip_folder, prepared):
    with pytest.raises(FlowleyError, match="other clips or settings"):
        prepare_records(clip_folder / "clips.tsv", prepared[0], RecordSettings(seconds=0.5))


def test_a_stopped_run_goes_on_with_what_is_read(clip_folder, prepared, tmp_path, monkeypatch):
    read = []
    original = data_prep.clip_features.read_frames

    limit = 4

    def reading(path, **options):
        if len(read) == limit:
            raise KeyboardInterrupt
        read.append(os.path.basename(path))
        return original(path, **options)

    monkeypatch.setattr(data_prep.clip_features, "read_frames", reading)
    with pytest.raises(KeyboardInterrupt):
        prepare_records(clip_folder / "clips.tsv", tmp_path, SETTINGS)
    first = list(read)
    read.clear()
    monkeypatch.setattr(
        data_prep.clip_features,
        "read_frames",
        lambda path, **o: (read.append(os.path.basename(path)), original(path, **o))[1],
    )
    prepare_records(clip_folder / "clips.tsv", tmp_path, SETTINGS)
    assert first == ["c0.mp4", "c1.mp4", "c2.mp4", "c3.mp4"]
    assert read[:2] == ["c4.mp4", "c5.mp4"]
    for split in ("train", "valid", "test"):
        for mine, theirs in zip(open_records(tmp_path, split), open_records(prepared[0], split), strict=True):
            np.testing.assert_array_equal(mine["audio_mean"], theirs["audio_mean"])


def test_short_clips_are_padded_when_asked(clip_folder, tmp_path):
    table = tmp_path / "clips.tsv"
    rows = [("a", "c0.mp4", "x", "train", "x"), ("b", "short.mp4", "x", "train", "x")]
    lines = ["id\tvideo_path\ttext_description\tsplit\tlabel"]
    lines += ["\t".join((row[0], str(clip_folder / row[1]), *row[2:])) for row in rows]
    table.write_text("\n".join(lines) + "\n")
    settings = RecordSettings(seconds=0.6, latent_dim=2, video_fps=12.0, frame_size=64, pad_seconds=0.2)
    assert prepare_records(table, tmp_path / "records", settings)["examples"] == {"train": 2}


def test_a_table_without_a_usable_training_clip(clip_folder, tmp_path):
    table = tmp_path / "clips.tsv"
    table.write_text(f"video_path\ttext_description\tsplit\tlabel\n{clip_folder}/damaged.mp4\tx\ttrain\tx\n")
    with pytest.raises(FlowleyError, match="no training clip can be used"):
        prepare_records(table, tmp_path / "records", SETTINGS)
