"""From a table of clips, good and bad, to records and parts."""

import concurrent.futures
import dataclasses
import functools
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import unusable
from apache_beam.options.pipeline_options import PipelineOptions

import data_prep.prepare
from data_prep.decode import decode
from data_prep.decoder import Decoder, DecoderPool
from data_prep.files import alone_in
from data_prep.pipeline import check_options
from data_prep.prepare import Running, prepare_records
from data_prep.settings import RecordSettings
from flowley_jax.audio.mel import MEL_16K, log_mel
from flowley_jax.data.parts import Parts
from flowley_jax.data.record import arrays_of, caption_sources, open_records, texts_of
from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_audio, read_frames

SETTINGS = unusable.SETTINGS
SPLITS = ("train", "train", "train", "valid", "test", "test")
# Processes that decode take longer to start than these clips to read.
RUNNING = Running(decoders=1, time_limit=60.0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six good clips, and one at least for every reason why one cannot be used, but that it hangs."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for index, split in enumerate(SPLITS):
        unusable.write_clip(folder / f"c{index}.mp4", seed=index)
        rows.append((f"id{index}", f"c{index}.mp4", f"a ball number {index}", split, "ball"))
    bad, reasons = unusable.write_unusable(folder)
    unusable.write_table(folder, rows + bad)
    return folder, rows, reasons


@pytest.fixture(scope="module")
def prepared(clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "records"
    codec = unusable.write_crashing_codec(out.parent / "site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(codec))
        return out, prepare_records(clips[0] / "clips.tsv", out, SETTINGS, RUNNING)


def test_good_clips_become_records(clips, prepared):
    out, manifest = prepared
    assert manifest["examples"] == {"train": 3, "valid": 1, "test": 2}
    parts = Parts.load(out)
    example = next(one for one in open_records(out, "test") if one["id"] == b"id5")
    assert texts_of(example) == {"id": "id5", "caption": "a ball number 5", "label": "ball"}
    frames = read_frames(clips[0] / "c5.mp4", fps=12.0, size=64, seconds=1.0)
    np.testing.assert_array_equal(example["video_features"], parts.features_of_video(frames))
    wave = read_audio(clips[0] / "c5.mp4", sample_rate=16_000)[: parts.audio_samples]
    np.testing.assert_allclose(example["audio_mean"], parts.encode_audio(wave[None])[0][0], atol=1e-5)
    assert example["audio_std"].max() == 0 and example["has_audio"] and example["has_video"]
    features, lengths = parts.features_of_text(["a ball number 5"])
    np.testing.assert_array_equal(arrays_of(example)["text_features"], features[0])
    assert example["text_len"] == lengths[0]
    assert example["audio_mean"].shape == (parts.dims.audio_length, parts.dims.audio_dim)


def test_statistics_and_codec_come_from_the_training_split(clips, prepared):
    parts = Parts.load(prepared[0])
    latents = np.concatenate([example["audio_mean"] for example in open_records(prepared[0], "train")])
    np.testing.assert_allclose(parts.latent_mean, latents.mean(axis=0, dtype=np.float64), atol=1e-5)
    np.testing.assert_allclose(parts.latent_std, latents.std(axis=0, dtype=np.float64), rtol=1e-5)
    waves = [read_audio(clips[0] / f"c{i}.mp4", sample_rate=16_000)[:16_384] for i in range(3)]
    mels = np.stack([log_mel(wave, MEL_16K) for wave in waves])
    np.testing.assert_allclose(parts.codec.mean, mels.reshape(-1, 160).mean(0), atol=1e-4)


def test_every_clip_that_cannot_be_used_is_listed_with_its_reason(clips, prepared):
    out, manifest = prepared
    header, *rows = ((out / "rejected.tsv").read_text()).splitlines()
    assert header == "id\tvideo_path\treason\tdetail"
    cells = [row.split("\t") for row in rows]
    assert {row[0]: row[2] for row in cells} == clips[2]
    details = {row[0]: row[3] for row in cells}
    assert "no such file" in details["absent"] and "-11" in details["crash"]
    assert "4.0" in details["truncated"] and "max_tokens=8" in details["talkative"]
    assert sum(manifest["rejected"].values()) == len(clips[2])
    assert manifest["rejected"]["picture"] == 2


def test_the_manifest_says_what_is_there_and_what_it_was_made_with(prepared):
    out, manifest = prepared
    assert json.loads((out / "manifest.json").read_text()) == manifest
    dataset = out / "clip_records/3.0.0"
    for name, file in manifest["files"].items():
        found = subprocess.run(["sha256sum", dataset / name], capture_output=True, text=True, check=True)
        assert found.stdout.split()[0] == file["sha256"]
    assert {file["examples"] for file in manifest["files"].values()} == {3, 1, 2}
    assert manifest["dims"]["audio_length"] == 32 and manifest["dims"]["feature_dtype"] == "float32"
    assert len(manifest["parts"]["latent_mean"]) == 4 and manifest["versions"]["apache-beam"]
    assert not [path for path in dataset.iterdir() if path.name.startswith(".")]


def test_a_decoder_that_hangs_is_given_up(tmp_path):
    unusable.write_hanging(tmp_path)
    unusable.write_clip(tmp_path / "good.mp4", seed=0)
    work = functools.partial(decode, SETTINGS)
    rejection = Decoder(work, time_limit=3.0)(str(tmp_path / "hanging.mp4"))
    assert (rejection.reason, rejection.detail) == ("timeout", "not read within 3 s")
    patient = Decoder(work, time_limit=60.0)
    assert patient(str(tmp_path / "good.mp4")).log_mel.shape == (64, 80)
    process = patient._process
    threading.Timer(0.5, process.kill).start()
    assert patient(str(tmp_path / "hanging.mp4")).reason == "crash"
    assert process.poll() == -9
    patient.close()


def test_a_pool_that_is_closed_waits_for_no_file(tmp_path):
    unusable.write_hanging(tmp_path)
    pool = DecoderPool(open, count=2, time_limit=300.0)
    reading = pool.map([(str(tmp_path / "hanging.mp4"),)] * 4)
    started = pool._decoders[0]
    while started._process is None:
        time.sleep(0.01)
    started_at = time.monotonic()
    pool.close()
    assert time.monotonic() - started_at < 60.0
    # It is not taken for one that cannot be read.
    with pytest.raises(concurrent.futures.CancelledError):
        next(reading)
    with pytest.raises(concurrent.futures.CancelledError):
        started("x")


def test_a_decoder_that_hangs_ends_with_the_program_that_was_killed(tmp_path):
    unusable.write_hanging(tmp_path)
    program = (
        "import threading, sys\n"
        "from data_prep.decoder import Decoder\n"
        "decoder = Decoder(open, 99.0)\n"
        "threading.Timer(0.5, lambda: print(decoder._process.pid, flush=True)).start()\n"
        f"decoder({str(tmp_path / 'hanging.mp4')!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        decoder = Path(f"/proc/{int(parent.stdout.readline())}")
        assert decoder.exists()
        parent.kill()
    deadline = time.monotonic() + 20.0
    while decoder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not decoder.exists()


class _Counted:
    """What is asked of the pipelines."""

    def __init__(self, patch):
        self.media, self.text = [], []
        for kind in ("media", "text"):
            name = f"make_{kind}_features"
            original = getattr(data_prep.prepare, name)

            def counted(items, *arguments, kind=kind, original=original, **options):
                getattr(self, kind).extend(item.source for item in items)
                return original(items, *arguments, **options)

            patch.setattr(data_prep.prepare, name, counted)


def test_a_second_run_does_nothing_and_other_settings_are_refused(clips, prepared, monkeypatch, capsys):
    monkeypatch.setattr(data_prep.prepare, "write_shards", None)
    counted = _Counted(monkeypatch)
    table = clips[0] / "clips.tsv"
    assert prepare_records(table, prepared[0], SETTINGS, RUNNING) == prepared[1]
    assert "made already" in capsys.readouterr().out and not counted.media and not counted.text
    with pytest.raises(FlowleyError, match=r"of other settings .*seconds is 1\.0 there, 0.5 here"):
        prepare_records(table, prepared[0], RecordSettings(seconds=0.5), RUNNING)


def _cut(path):
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("*/*/clip_records-train.array_record-00000", _cut),
        ("codec.npz", Path.unlink),
    ],
)
def test_records_that_are_not_whole_are_written_again(
    name, damage, clips, prepared, tmp_path, monkeypatch, capsys
):
    out = shutil.copytree(prepared[0], tmp_path / "out")
    (path,) = out.glob(name)
    damage(path)
    counted = _Counted(monkeypatch)
    assert prepare_records(clips[0] / "clips.tsv", out, SETTINGS, RUNNING) == prepared[1]
    assert "the records are written again" in capsys.readouterr().out
    assert not counted.media and not counted.text
    assert path.read_bytes() == (prepared[0] / path.relative_to(out)).read_bytes()


def test_damaged_features_are_made_anew_by_the_next_run(clips, prepared, tmp_path):
    out = shutil.copytree(prepared[0], tmp_path / "out")
    shutil.rmtree(out / "clip_records")
    path = next((out / "features/media").rglob("*.npz"))
    path.write_bytes(path.read_bytes()[:100])
    table = clips[0] / "clips.tsv"
    with pytest.raises(FlowleyError, match=rf"{path}: was damaged .* is removed; run again"):
        prepare_records(table, out, SETTINGS, RUNNING)
    assert prepare_records(table, out, SETTINGS, RUNNING) == prepared[1]


def test_what_changes_in_a_table_alone_is_made_anew(clips, tmp_path, monkeypatch):
    folder, rows, _ = clips
    full = [(row[0], str(folder / row[1]), *row[2:]) for row in rows]
    counted = _Counted(monkeypatch)

    def prepare(table):
        counted.media.clear(), counted.text.clear()
        return prepare_records(unusable.write_table(tmp_path, table), tmp_path / "out", SETTINGS, RUNNING)

    first = prepare(full[:5])
    assert len(counted.media) == len(counted.text) == 5
    full[1] = (*full[1][:2], "a jug", *full[1][3:])
    second = prepare(full[:5])
    assert counted.media == [] and counted.text == ["a jug"]
    changed = {name for name in first["files"] if first["files"][name] != second["files"][name]}
    assert changed == {"clip_records-train.array_record-00000"}
    assert {texts_of(one)["caption"] for one in open_records(tmp_path / "out", "train")} == {
        "a ball number 0",
        "a jug",
        "a ball number 2",
    }
    third = prepare(full)
    assert counted.media == [full[5][1]] and counted.text == ["a ball number 5"]
    assert third["examples"] == {"train": 3, "valid": 1, "test": 2}
    prepare(list(reversed(full)))
    assert not counted.media and not counted.text
    # The order of the table is no part of the result.
    assert json.loads((tmp_path / "out/manifest.json").read_text())["files"] == third["files"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 500}, "latent_dim=500 must be from 1 to 160 for mel 16k"),
        ({"mel": "48k"}, "mel front end '48k' does not exist"),
        ({"seconds": 0.01}, "seconds=0.01 has no frame at video_fps=12"),
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
    ],
)
def test_settings_that_make_no_record_are_refused_before_a_clip_is_read(
    clips, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(data_prep.prepare, "make_media_features", None)
    with pytest.raises(FlowleyError, match=message):
        settings = dataclasses.replace(SETTINGS, **changes)
        prepare_records(clips[0] / "clips.tsv", tmp_path, settings, RUNNING)
    assert not (tmp_path / "rejected.tsv").exists()


def test_two_do_not_write_to_one_folder(clips, tmp_path):
    with alone_in(tmp_path), pytest.raises(FlowleyError, match="another process is writing there"):
        prepare_records(clips[0] / "clips.tsv", tmp_path, SETTINGS, RUNNING)
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--direct_running_mod=multi_processing"], "DirectRunner has no flag --direct_running_mod"),
        (["--runner=DaskRunner", "--dask_partition_size=1", "--dusk=1"], "DaskRunner has no flag --dusk"),
        (["--runner=Nope"], "--runner=Nope: "),
    ],
)
def test_flags_that_an_engine_does_not_know(flags, message):
    with pytest.raises(FlowleyError, match=message):
        check_options(PipelineOptions(flags))


def test_flags_that_an_engine_knows():
    check_options(PipelineOptions(["--direct_running_mode=multi_processing", "--direct_num_workers=2"]))
    check_options(PipelineOptions(["--runner=DaskRunner", "--dask_client_address=tcp://x:1"]))


def test_a_strict_run_stops_and_a_retry_tries_again(clips, tmp_path, monkeypatch):
    folder, rows, _ = clips
    row = (rows[0][0], str(folder / rows[0][1]), *rows[0][2:])
    table = unusable.write_table(tmp_path, [row, ("late", "late.mp4", "x", "train", "x")])
    with pytest.raises(FlowleyError, match=r"late.mp4: no such file \(missing\)"):
        prepare_records(table, tmp_path / "out", SETTINGS, dataclasses.replace(RUNNING, strict=True))
    assert not (tmp_path / "out/manifest.json").exists()
    with pytest.raises(FlowleyError, match=r"1 clips cannot be used; see .*rejected.tsv"):
        prepare_records(table, tmp_path / "out", SETTINGS, dataclasses.replace(RUNNING, strict=True))
    assert prepare_records(table, tmp_path / "out", SETTINGS, RUNNING)["rejected"] == {"missing": 1}
    with pytest.raises(FlowleyError, match="1 clips cannot be used"):
        prepare_records(table, tmp_path / "out", SETTINGS, dataclasses.replace(RUNNING, strict=True))
    counted = _Counted(monkeypatch)
    assert prepare_records(table, tmp_path / "out", SETTINGS, dataclasses.replace(RUNNING, retry=True))[
        "rejected"
    ]
    assert counted.media == [str(tmp_path / "late.mp4")]
    counted.media.clear()
    unusable.write_clip(tmp_path / "late.mp4", seed=8)
    assert prepare_records(table, tmp_path / "out", SETTINGS, RUNNING)["examples"] == {"train": 2}
    assert counted.media == [str(tmp_path / "late.mp4")]


def test_clips_may_lack_a_stream_when_asked(clips, tmp_path):
    folder, rows, _ = clips
    full = [(row[0], str(folder / row[1]), *row[2:]) for row in rows[:2]]
    full += [(f"sound_{split}", str(folder / "sound.wav"), "x", split, "x") for split in ("train", "valid")]
    full += [(f"mute_{split}", str(folder / "silence.mp4"), "x", split, "x") for split in ("train", "test")]
    settings = dataclasses.replace(SETTINGS, audio_only=True, video_only=True)
    table = unusable.write_table(tmp_path, full)
    manifest = prepare_records(table, tmp_path / "out", settings, RUNNING)
    assert manifest["examples"] == {"train": 3, "test": 1}
    assert manifest["rejected"] == {"no_video": 1, "no_audio": 1}
    (mute,) = open_records(tmp_path / "out", "test")
    assert mute["has_video"] and not mute["has_audio"] and not mute["audio_mean"].any()
    train = {texts_of(one)["id"]: one for one in open_records(tmp_path / "out", "train")}
    sound = train["sound_train"]
    assert sound["has_audio"] and not sound["has_video"] and not sound["video_features"].any()
    assert not arrays_of(sound)["has_video"] and arrays_of(train["id0"])["has_video"]


def test_captions_of_other_sources_are_joined_by_id(clips, tmp_path, capsys):
    folder, rows, _ = clips
    full = [(row[0], str(folder / row[1]), *row[2:]) for row in rows]
    captions = tmp_path / "soundcap.tsv"
    talk = "word " * 99
    captions.write_text(f"id\tcaption\nid2\ta thud\nid0\tglass rings\nid1\t{talk}\nid9\tnobody\nid3\t\n")
    table = unusable.write_table(tmp_path, full)
    manifest = prepare_records(table, tmp_path / "out", SETTINGS, RUNNING, captions={"soundcap": captions})
    assert "soundcap has captions of 3 of 6 clips" in capsys.readouterr().out
    assert manifest["captions"] == {"soundcap": 2} and manifest["rejected"] == {}
    (rejected,) = (tmp_path / "out/rejected.tsv").read_text().splitlines()[1:]
    assert rejected.split("\t")[::2] == ["id1", "more_caption"]
    encoder = Parts.load(tmp_path / "out").text_encoder
    examples = {texts_of(one)["id"]: one for one in open_records(tmp_path / "out", "train")}
    assert caption_sources(examples["id0"]) == ["table", "soundcap"]
    assert caption_sources(examples["id1"]) == ["table"]
    thud, length = encoder(["a thud"])
    arrays = arrays_of(examples["id2"], captions="soundcap")
    np.testing.assert_array_equal(arrays["text_features"], thud[0])
    assert (
        arrays["text_len"] == length[0]
        and examples["id2"]["more_captions"]["soundcap"]["caption"] == b"a thud"
    )
    captions.write_text("id\tcaption\nx\ty\n")
    with pytest.raises(FlowleyError, match="no caption of any clip"):
        prepare_records(table, tmp_path / "out", SETTINGS, RUNNING, captions={"soundcap": captions})
    captions.write_text("id\tcaption\nx\ty\nx\tz\n")
    with pytest.raises(FlowleyError, match=r"soundcap.tsv, line 3: id 'x' occurs twice"):
        prepare_records(table, tmp_path / "out", SETTINGS, RUNNING, captions={"soundcap": captions})


def test_short_clips_are_padded_when_asked(clips, tmp_path):
    folder = clips[0]
    rows = [("a", "c0.mp4", "x", "train", "x"), ("b", "short.mp4", "x", "train", "x")]
    table = unusable.write_table(tmp_path, [(row[0], str(folder / row[1]), *row[2:]) for row in rows])
    settings = RecordSettings(seconds=0.6, latent_dim=2, video_fps=12.0, frame_size=64, pad_seconds=0.2)
    assert prepare_records(table, tmp_path / "records", settings, RUNNING)["examples"] == {"train": 2}


def test_a_table_without_a_usable_training_clip(clips, tmp_path):
    row = ("a", str(clips[0] / "unreadable.mp4"), "x", "train", "x")
    table = unusable.write_table(tmp_path, [row])
    with pytest.raises(FlowleyError, match=r"no training clip can be used \(1 unreadable\)"):
        prepare_records(table, tmp_path / "records", SETTINGS, RUNNING)
    assert "unreadable" in (tmp_path / "records/rejected.tsv").read_text()
