"""Making records and components from a table of good and bad clips."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import children
import numpy as np
import pytest
import shell
import soundfile
import tiny
import unusable
from apache_beam.options.pipeline_options import PipelineOptions

import data_prep.records
from data_prep.beam_runner import check_options
from data_prep.feature_pipeline import Item, _encode_media
from data_prep.feature_store import digest
from data_prep.read_clip import ClipReader, DecodedClip
from data_prep.record_components import RecordComponents
from data_prep.records import RunOptions, prepare_records
from data_prep.settings import RecordSettings
from data_prep.worker_pool import Worker, WorkerPool
from flowley_jax.audio.level_bounds import level_maxima
from flowley_jax.audio.mel import MEL_16K, log_mel
from flowley_jax.audio.protocols import samples_for
from flowley_jax.common.locks import lock_folder
from flowley_jax.data.components import Components
from flowley_jax.data.record import arrays_of, caption_sources, open_records
from flowley_jax.errors import FlowleyError
from flowley_jax.media.level import integrated_loudness
from flowley_jax.media.read import read_audio, read_frames

SETTINGS = unusable.SETTINGS
SPLITS = ("train", "train", "train", "valid", "test", "test")
# One worker: starting a process takes longer than reading all these clips.
RUN = RunOptions(decoders=1, time_limit=60.0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Write six good clips, and at least one unusable file for every reason but a hanging one."""
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
        return out, prepare_records(clips[0] / "clips.tsv", out, SETTINGS, RUN)


def test_good_clips_become_records(clips, prepared):
    out, manifest = prepared
    assert manifest["examples"] == {"train": 3, "valid": 1, "test": 2}
    components = Components.load(out)
    example = next(one for one in open_records(out, "test") if one["id"] == b"id5")
    assert tiny.texts_of(example) == {"id": "id5", "caption": "a ball number 5", "label": "ball"}
    frames = read_frames(clips[0] / "c5.mp4", fps=12.0, size=64, seconds=1.0)
    np.testing.assert_array_equal(example["video_features"], components.features_of_video(frames))
    wave = read_audio(clips[0] / "c5.mp4", sample_rate=16_000)[: samples_for(components.seconds, MEL_16K)]
    np.testing.assert_allclose(example["audio_mean"], components.encode_audio(wave[None])[0][0], atol=1e-5)
    assert example["audio_std"].max() == 0 and example["has_audio"] and example["has_video"]
    features, lengths = components.features_of_text(["a ball number 5"])
    np.testing.assert_array_equal(arrays_of(example)["text_features"], features[0])
    assert example["text_len"] == lengths[0]
    assert example["audio_mean"].shape == (components.dims.audio_length, components.dims.audio_dim)


def test_statistics_and_codec_come_from_the_training_split(clips, prepared):
    components = Components.load(prepared[0])
    latents = np.concatenate([example["audio_mean"] for example in open_records(prepared[0], "train")])
    np.testing.assert_allclose(components.latent_mean, latents.mean(axis=0, dtype=np.float64), atol=1e-5)
    np.testing.assert_allclose(components.latent_std, latents.std(axis=0, dtype=np.float64), rtol=1e-5)
    waves = [read_audio(clips[0] / f"c{i}.mp4", sample_rate=16_000)[:16_384] for i in range(3)]
    mels = np.stack([log_mel(wave, MEL_16K) for wave in waves])
    np.testing.assert_allclose(components.codec.mean, mels.reshape(-1, 160).mean(0), atol=1e-4)
    np.testing.assert_array_equal(components.log_mel_max, level_maxima(mels, MEL_16K))
    decoded = components.decode_audio(components.codec.encode_log_mel(mels)[0])
    before, after = ([integrated_loudness(wave, 16_000) for wave in sounds] for sounds in (waves, decoded))
    assert np.mean(after) == pytest.approx(np.mean(before), abs=0.01)


def test_every_unusable_clip_is_listed_with_its_reason(clips, prepared):
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


def test_the_manifest_lists_files_sizes_and_versions(prepared):
    out, manifest = prepared
    assert json.loads((out / "manifest.json").read_text()) == manifest
    dataset = out / "clip_records/3.0.0"
    for name, file in manifest["files"].items():
        result = children.run(["sha256sum", dataset / name], check=True)
        assert result.stdout.split()[0] == file["sha256"]
    assert {file["examples"] for file in manifest["files"].values()} == {3, 1, 2}
    assert manifest["dims"]["audio_length"] == 32 and manifest["dims"]["feature_dtype"] == "float32"
    assert len(manifest["components"]["latent_mean"]) == 4 and manifest["versions"]["apache-beam"]
    assert not [path for path in dataset.iterdir() if path.name.startswith(".")]


def test_a_worker_that_hangs_or_crashes_costs_one_file(tmp_path):
    unusable.write_hanging(tmp_path)
    unusable.write_clip(tmp_path / "good.mp4", seed=0)
    reader = ClipReader.create(RecordComponents(SETTINGS))
    rejection = Worker(reader, time_limit=3.0)(str(tmp_path / "hanging.mp4"))
    assert (rejection.reason, rejection.detail) == ("timeout", "not read within 3 s")
    patient = Worker(reader, time_limit=60.0)
    assert patient(str(tmp_path / "good.mp4")).sound.log_mel.shape == (64, 80)
    process = patient._process
    threading.Timer(0.5, process.kill).start()
    assert patient(str(tmp_path / "hanging.mp4")).reason == "crash"
    assert process.poll() == -9
    patient.close()


def test_loading_does_not_count_towards_the_time_limit_of_a_call():
    worker = Worker(len, time_limit=1.0, prepare=functools.partial(time.sleep, 2.0))
    with contextlib.closing(worker):
        assert worker("four") == 4


def test_a_process_that_reads_clips_does_not_import_jax():
    reader = ClipReader.create(RecordComponents(SETTINGS))
    program = (
        "import pickle, sys\n"
        f"reader = pickle.loads({pickle.dumps(reader)!r})\n"
        "reader.prepare()\n"
        "reader('none.mp4')\n"
        "print('jax' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program]
    result = children.run(command, limit=120, check=True)
    assert result.stdout == "False\n"


def test_channels_in_opposite_phase_are_not_silent(tmp_path):
    wave = 0.5 * np.sin(np.arange(24_000) / 10.0)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, -wave], axis=1), 16_000, "FLOAT")
    clip = ClipReader.create(RecordComponents(SETTINGS))(str(tmp_path / "a.wav"), "video")
    expected = log_mel(wave.astype(np.float32)[:16_384], MEL_16K)
    # The sign of the louder channel does not matter.
    np.testing.assert_allclose(clip.sound.log_mel, expected, atol=1e-3)


def test_features_that_are_not_finite_in_the_stored_type_are_a_reason():
    clip = DecodedClip(video_features=np.full((12, 4), 1e6, np.float32))
    components = RecordComponents(dataclasses.replace(SETTINGS, feature_dtype="float16"))
    ((item, rejection),) = _encode_media([(Item("key", "a.mp4"), clip)], components)
    assert item.source == "a.mp4"
    assert (rejection.reason, "float16" in rejection.detail) == ("not_finite", True)


def test_flags_after_a_lone_separator_are_for_the_runner(clips, tmp_path):
    flags = ("--table", clips[0] / "clips.tsv", "--out", tmp_path / "out")
    result = shell.run("data_prep.extract", *flags, "--", "--direct_num_worker=2")
    shell.fails_in_one_line(result, "--runner=DirectRunner has no flag --direct_num_worker")
    result = shell.run("data_prep.extract", *flags, "--direct_num_workers=2")
    shell.fails_in_one_line(result, "direct_num_workers")


def test_closing_a_pool_does_not_wait_for_a_file(tmp_path):
    unusable.write_hanging(tmp_path)
    pool = WorkerPool(open, count=2, time_limit=300.0)
    reading = pool.map([(str(tmp_path / "hanging.mp4"),)] * 4)
    started = pool._workers[0]
    deadline = time.monotonic() + 60.0
    while started._process is None and time.monotonic() < deadline:
        time.sleep(0.01)
    pool.close()
    assert time.monotonic() < deadline
    # The file is not recorded as one that cannot be read.
    with pytest.raises(concurrent.futures.CancelledError):
        next(reading)
    with pytest.raises(concurrent.futures.CancelledError):
        started("x")


def test_a_hanging_worker_exits_after_its_parent_is_killed(tmp_path):
    unusable.write_hanging(tmp_path)
    program = (
        "import threading, sys\n"
        "from data_prep.worker_pool import Worker\n"
        "worker = Worker(open, 99.0)\n"
        "threading.Timer(0.5, lambda: print(worker._process.pid, flush=True)).start()\n"
        f"worker({str(tmp_path / 'hanging.mp4')!r})\n"
    )
    command = [sys.executable, "-c", program]
    with children.started(command, limit=60, stdout=subprocess.PIPE, text=True) as parent:
        worker = Path(f"/proc/{int(parent.stdout.readline())}")
        assert worker.exists()
        # Only the parent: the end of the block would kill the worker too.
        parent.kill()
        deadline = time.monotonic() + 20.0
        while worker.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not worker.exists()


def test_features_of_earlier_versions_are_found():
    # Other digests would make users compute all features again.
    components = RecordComponents(RecordSettings())
    assert digest(components.media_identity) == "14a0704828f89589de6a33d4"
    assert digest(components.text_identity) == "63dd1804ce4f0f2b6311cc9a"
    assert digest(components.identity) == "c704d141e35dcb20360ba42a"


class _PipelineCalls:
    """Recorder of the sources that the pipelines get."""

    def __init__(self, patch):
        self.media, self.text = [], []
        for kind in ("media", "text"):
            name = f"make_{kind}_features"
            original = getattr(data_prep.records, name)

            def recorded(items, *arguments, kind=kind, original=original, **options):
                getattr(self, kind).extend(item.source for item in items)
                return original(items, *arguments, **options)

            patch.setattr(data_prep.records, name, recorded)


def test_a_second_run_reads_nothing_and_other_settings_are_refused(clips, prepared, monkeypatch, capsys):
    monkeypatch.setattr(data_prep.records, "write_shards", None)
    calls = _PipelineCalls(monkeypatch)
    table = clips[0] / "clips.tsv"
    assert prepare_records(table, prepared[0], SETTINGS, RUN) == prepared[1]
    assert "already exist" in capsys.readouterr().out and not calls.media and not calls.text
    with pytest.raises(FlowleyError, match=r"with different settings .*seconds was 1\.0, is now 0\.5"):
        prepare_records(table, prepared[0], RecordSettings(seconds=0.5), RUN)


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
def test_incomplete_records_are_written_again(name, damage, clips, prepared, tmp_path, monkeypatch, capsys):
    out = shutil.copytree(prepared[0], tmp_path / "out")
    (path,) = out.glob(name)
    damage(path)
    calls = _PipelineCalls(monkeypatch)
    assert prepare_records(clips[0] / "clips.tsv", out, SETTINGS, RUN) == prepared[1]
    assert "the records are written again" in capsys.readouterr().out
    assert not calls.media and not calls.text
    assert path.read_bytes() == (prepared[0] / path.relative_to(out)).read_bytes()


def test_damaged_features_are_made_again_in_the_same_run(clips, prepared, tmp_path, capsys):
    out = shutil.copytree(prepared[0], tmp_path / "out")
    shutil.rmtree(out / "clip_records")
    paths = [*(out / "features/media").rglob("*.npz"), *(out / "features/text").rglob("*.npz")]
    for path in paths:
        path.write_bytes(path.read_bytes()[:100])
    notes = list((out / "features").rglob("*.json"))
    notes[0].write_text('{"reason": 5}')
    # Another program's file is no note.
    notes[1].with_name(".DS_Store").write_text("x")
    assert prepare_records(clips[0] / "clips.tsv", out, SETTINGS, RUN) == prepared[1]
    assert "was damaged" in capsys.readouterr().out


def test_only_changed_rows_of_a_table_are_read_again(clips, tmp_path, monkeypatch):
    folder, rows, _ = clips
    full = [(row[0], str(folder / row[1]), *row[2:]) for row in rows]
    calls = _PipelineCalls(monkeypatch)

    def prepare(table):
        calls.media.clear(), calls.text.clear()
        return prepare_records(unusable.write_table(tmp_path, table), tmp_path / "out", SETTINGS, RUN)

    first = prepare(full[:5])
    assert len(calls.media) == len(calls.text) == 5
    full[1] = (*full[1][:2], "a jug", *full[1][3:])
    second = prepare(full[:5])
    assert calls.media == [] and calls.text == ["a jug"]
    changed = {name for name in first["files"] if first["files"][name] != second["files"][name]}
    assert changed == {"clip_records-train.array_record-00000"}
    assert {tiny.texts_of(one)["caption"] for one in open_records(tmp_path / "out", "train")} == {
        "a ball number 0",
        "a jug",
        "a ball number 2",
    }
    third = prepare(full)
    assert calls.media == [full[5][1]] and calls.text == ["a ball number 5"]
    assert third["examples"] == {"train": 3, "valid": 1, "test": 2}
    prepare(list(reversed(full)))
    assert not calls.media and not calls.text
    # The order of the table does not change the result.
    assert json.loads((tmp_path / "out/manifest.json").read_text())["files"] == third["files"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 200}, "latent_dim=200 must be from 1 to 160 for mel 16k"),
        ({"mel": "48k"}, "mel='48k' must be one of 16k, 44k"),
        ({"seconds": 0.01}, "seconds=0.01 has no frame at video_fps=12"),
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
    ],
)
def test_impossible_settings_are_refused_before_any_clip_is_read(
    clips, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(data_prep.records, "make_media_features", None)
    with pytest.raises(FlowleyError, match=message):
        settings = dataclasses.replace(SETTINGS, **changes)
        prepare_records(clips[0] / "clips.tsv", tmp_path, settings, RUN)
    assert not (tmp_path / "rejected.tsv").exists()


def test_two_processes_cannot_write_to_one_folder(clips, tmp_path):
    with lock_folder(tmp_path), pytest.raises(FlowleyError, match="another process is writing to it"):
        prepare_records(clips[0] / "clips.tsv", tmp_path, SETTINGS, RUN)
    with lock_folder(tmp_path):
        pass


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--direct_running_mod=multi_processing"], "DirectRunner has no flag --direct_running_mod"),
        (["--runner=DaskRunner", "--dask_partition_size=1", "--dusk=1"], "DaskRunner has no flag --dusk"),
        (["--runner=Nope"], "--runner=Nope: "),
    ],
)
def test_unknown_flags_of_an_engine_are_refused(flags, message):
    with pytest.raises(FlowleyError, match=message):
        check_options(PipelineOptions(flags))


def test_known_flags_of_an_engine_are_accepted():
    check_options(PipelineOptions(["--direct_running_mode=multi_processing", "--direct_num_workers=2"]))
    check_options(PipelineOptions(["--runner=DaskRunner", "--dask_client_address=tcp://x:1"]))


def test_a_strict_run_stops_and_a_retry_tries_again(clips, tmp_path, monkeypatch):
    folder, rows, _ = clips
    row = (rows[0][0], str(folder / rows[0][1]), *rows[0][2:])
    table = unusable.write_table(tmp_path, [row, ("late", "late.mp4", "x", "train", "x")])
    with pytest.raises(FlowleyError, match=r"late.mp4: no such file \(missing\)"):
        prepare_records(table, tmp_path / "out", SETTINGS, dataclasses.replace(RUN, strict=True))
    assert not (tmp_path / "out/manifest.json").exists()
    with pytest.raises(FlowleyError, match=r"1 clips cannot be used; see .*rejected.tsv"):
        prepare_records(table, tmp_path / "out", SETTINGS, dataclasses.replace(RUN, strict=True))
    assert prepare_records(table, tmp_path / "out", SETTINGS, RUN)["rejected"] == {"missing": 1}
    with pytest.raises(FlowleyError, match="1 clips cannot be used"):
        prepare_records(table, tmp_path / "out", SETTINGS, dataclasses.replace(RUN, strict=True))
    calls = _PipelineCalls(monkeypatch)
    assert prepare_records(table, tmp_path / "out", SETTINGS, dataclasses.replace(RUN, retry=True))[
        "rejected"
    ]
    assert calls.media == [str(tmp_path / "late.mp4")]
    calls.media.clear()
    unusable.write_clip(tmp_path / "late.mp4", seed=8)
    assert prepare_records(table, tmp_path / "out", SETTINGS, RUN)["examples"] == {"train": 2}
    assert calls.media == [str(tmp_path / "late.mp4")]


def test_clips_may_lack_a_stream_if_the_settings_allow_it(clips, tmp_path):
    folder, rows, _ = clips
    full = [(row[0], str(folder / row[1]), *row[2:]) for row in rows[:2]]
    full += [(f"sound_{split}", str(folder / "sound.wav"), "x", split, "x") for split in ("train", "valid")]
    full += [(f"mute_{split}", str(folder / "silence.mp4"), "x", split, "x") for split in ("train", "test")]
    settings = dataclasses.replace(SETTINGS, audio_only=True, video_only=True)
    table = unusable.write_table(tmp_path, full)
    manifest = prepare_records(table, tmp_path / "out", settings, RUN)
    assert manifest["examples"] == {"train": 3, "test": 1}
    assert manifest["rejected"] == {"no_video": 1, "no_audio": 1}
    (silent,) = open_records(tmp_path / "out", "test")
    assert silent["has_video"] and not silent["has_audio"] and not silent["audio_mean"].any()
    train = {tiny.texts_of(one)["id"]: one for one in open_records(tmp_path / "out", "train")}
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
    manifest = prepare_records(table, tmp_path / "out", SETTINGS, RUN, captions={"soundcap": captions})
    assert "soundcap has captions for 3 of 6 clips" in capsys.readouterr().out
    assert manifest["captions"] == {"soundcap": 2} and manifest["rejected"] == {}
    (rejected,) = (tmp_path / "out/rejected.tsv").read_text().splitlines()[1:]
    assert rejected.split("\t")[::2] == ["id1", "more_caption"]
    encoder = Components.load(tmp_path / "out").text_encoder
    examples = {tiny.texts_of(one)["id"]: one for one in open_records(tmp_path / "out", "train")}
    assert caption_sources(examples["id0"]) == ["table", "soundcap"]
    assert caption_sources(examples["id1"]) == ["table"]
    thud, length = encoder(["a thud"])
    arrays = arrays_of(examples["id2"], caption_source="soundcap")
    np.testing.assert_array_equal(arrays["text_features"], thud[0])
    assert (
        arrays["text_len"] == length[0]
        and examples["id2"]["more_captions"]["soundcap"]["caption"] == b"a thud"
    )
    captions.write_text("id\tcaption\nx\ty\n")
    with pytest.raises(FlowleyError, match="no caption is for a clip in the table"):
        prepare_records(table, tmp_path / "out", SETTINGS, RUN, captions={"soundcap": captions})
    captions.write_text("id\tcaption\nx\ty\nx\tz\n")
    with pytest.raises(FlowleyError, match=r"soundcap.tsv, line 3: id 'x' occurs twice"):
        prepare_records(table, tmp_path / "out", SETTINGS, RUN, captions={"soundcap": captions})


def test_short_clips_are_padded_if_the_settings_allow_it(clips, tmp_path):
    folder = clips[0]
    rows = [("a", "c0.mp4", "x", "train", "x"), ("b", "short.mp4", "x", "train", "x")]
    table = unusable.write_table(tmp_path, [(row[0], str(folder / row[1]), *row[2:]) for row in rows])
    settings = RecordSettings(seconds=0.6, latent_dim=2, video_fps=12.0, frame_size=64, pad_seconds=0.2)
    assert prepare_records(table, tmp_path / "records", settings, RUN)["examples"] == {"train": 2}


def test_a_table_without_usable_training_clips_is_refused(clips, tmp_path):
    row = ("a", str(clips[0] / "unreadable.mp4"), "x", "train", "x")
    table = unusable.write_table(tmp_path, [row])
    with pytest.raises(FlowleyError, match=r"no training clip can be used \(1 unreadable\)"):
        prepare_records(table, tmp_path / "records", SETTINGS, RUN)
    assert "unreadable" in (tmp_path / "records/rejected.tsv").read_text()
