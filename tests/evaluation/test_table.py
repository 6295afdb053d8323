"""Evaluation on a clip table: all networks, rows of the table, the report, and files in the way."""

import dataclasses
import functools
import json
import os
import shutil

import numpy as np
import pytest
import shell
from evaluation_networks import write_networks

from data_prep.impacts.generate import ClipSetConfig, generate
from data_prep.worker_pool import mapping_pool
from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation import extraction
from flowley_jax.evaluation.classes import kl_divergences
from flowley_jax.evaluation.feature_sets import FeatureSet
from flowley_jax.evaluation.features import read_parts
from flowley_jax.evaluation.preparation import Preparation
from flowley_jax.evaluation.rows import CODEC, OTHER_CLIP, REAL
from flowley_jax.evaluation.run import EvaluationSettings, evaluate_clips
from flowley_jax.evaluation.table_report import Request, evaluate_table
from flowley_jax.interop.bundles import Bundle
from flowley_jax.media.read import read_audio
from flowley_jax.media.write import write_audio
from flowley_jax.runs.workdir import load_components

SECONDS = 5.0
READERS = functools.partial(mapping_pool, count=1, time_limit=60.0)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return write_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four clips of five seconds, and sounds: those of the clips, but for one that has another clip's."""
    folder = tmp_path_factory.mktemp("clips")
    generate(ClipSetConfig(train=0, valid=0, test=4, seconds=SECONDS), folder, workers=1)
    sounds = folder / "sounds"
    sounds.mkdir()
    for index, source in enumerate((0, 1, 2, 0)):
        wave = read_audio(folder / f"test/test_{source:05d}.mp4", sample_rate=16_000)
        # Suffixes count in any case.
        shutil.move(_written(sounds / f"{index}.flac", wave), sounds / f"test_{index:05d}.FLAC")
    return folder


def _written(path, wave):
    write_audio(path, wave, 16_000)
    return path


@pytest.fixture(scope="module")
def result(clips, networks, tmp_path_factory):
    """The evaluation with all networks, and its folder."""
    out = tmp_path_factory.mktemp("evaluation")
    request = Request(
        table=clips / "clips.tsv",
        split="test",
        out=out,
        systems=(f"mine={clips / 'sounds'}",),
        networks=networks,
        seconds=SECONDS,
        events=clips / "events.jsonl",
        resamples=3,
    )
    return request, evaluate_table(request, READERS)


def _scores(result):
    return json.loads(result[1].scores.read_text())


def test_every_metric_has_its_rows(result):
    rows = _scores(result)["rows"]
    assert list(rows) == ["mine", REAL, OTHER_CLIP]
    everywhere = {"DeSync", "IB-Score", "LAION-CLAP-Score", "AV-Align", "onset-F1", "Greatest-Hits-AP"}
    distances = {f"{kind}-{name}" for kind in ("FD", "KAD") for name in ("PANN", "VGG", "PASST")}
    divergences = {"KL-PANNS-softmax", "KL-PASST-softmax"}
    assert rows["mine"]["metrics"].keys() >= everywhere | distances | divergences
    assert rows[REAL]["metrics"].keys() >= everywhere | distances
    assert not rows[REAL]["metrics"].keys() & divergences
    assert rows[OTHER_CLIP]["metrics"].keys() >= everywhere | divergences
    assert not rows[OTHER_CLIP]["metrics"].keys() & distances
    # An Inception score needs ten clips.
    assert "at least 10" in rows["mine"]["undefined"]["ISC-PANNS-mean"]
    assert any("ISC-PANNS-mean has no value" in remark for remark in result[1].remarks)


def test_features_are_those_of_the_networks(result, networks, clips):
    request, _ = result
    features = FeatureSet(request.out / "features" / "mine").read("pann_2048")
    wave = read_audio(clips / "sounds/test_00001.FLAC", sample_rate=16_000)
    wave = (wave - wave.mean())[None, : int(16_000 * SECONDS)]
    embedding, _ = Bundle.open(networks / "panns").load()(wave)
    np.testing.assert_allclose(features["test_00001"], embedding[0], rtol=1e-4, atol=1e-5)
    # Sound coding apart, the sounds are the real ones.
    rows = _scores(result)["rows"]
    per_clip = rows["mine"]["per_clip"]["KL-PANNS-softmax"]
    assert max(per_clip[f"test_0000{index}"] for index in range(3)) < 0.1 * per_clip["test_00003"]


def test_the_floor_compares_with_the_next_clip(result):
    folder = result[0].out / "features"
    mine, real = (FeatureSet(folder / name).read("pann_logits") for name in ("mine", "reference"))
    names = sorted(mine)
    others = np.stack([real[name] for name in names[1:] + names[:1]])
    expected = kl_divergences(np.stack([mine[name] for name in names]), others).mean()
    assert _scores(result)["rows"][OTHER_CLIP]["metrics"]["KL-PANNS-softmax"] == pytest.approx(expected)


def test_the_report_shows_the_table_and_the_clips(result):
    page = result[1].report.read_text()
    assert page.count("<video") == 2 * len(_scores(result)["rows"]["mine"]["per_clip"]["onset-F1"])
    assert "F1 ↑" in page and "DeSync s ↓" in page
    assert "95 % interval" in page and "torchaudio" in page
    assert (result[0].out / "output_metrics.json").is_file()
    theirs = json.loads((result[0].out / "output_metrics.json").read_text())
    assert theirs.keys() >= {"FD-PANN", "IB-Score", "DeSync"} and "KAD-PANN" not in theirs
    assert "mine" in result[1].table and "other clip" in result[1].table


def test_the_same_request_resumes_without_reading_a_file(result):
    def readers(preparation):
        return mapping_pool(_must_not_read, count=1, time_limit=60.0)

    before = result[1].scores.read_text()
    again = evaluate_table(result[0], readers)
    assert again.table == result[1].table and again.scores.read_text() == before


def _must_not_read(path, names):
    raise AssertionError(f"{path} is read again for {names}")


def test_an_interrupted_extraction_resumes_with_the_clips_that_are_left(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "PART_CLIPS", 2)
    monkeypatch.setattr(extraction, "_READ_CLIPS", 1)
    files = {f"test_0000{index}": str(clips / f"test/test_0000{index}.mp4") for index in range(4)}
    read_files = []

    def read(calls, limit):
        for path, names in calls:
            if len(read_files) == limit:
                raise KeyboardInterrupt
            read_files.append(path)
            yield Preparation(names, SECONDS)(path)

    def extract_with(limit):
        return extraction.extract(
            files,
            ["level"],
            extraction.Evaluators({}),
            tmp_path,
            seconds=SECONDS,
            read=functools.partial(read, limit=limit),
        )

    with pytest.raises(KeyboardInterrupt):
        extract_with(3)
    assert extract_with(9) == [] and read_files[3:] == list(files.values())[2:]
    assert FeatureSet(tmp_path).read("level").keys() == files.keys()


def test_features_of_another_length_or_network_are_refused(result, clips, networks, tmp_path):
    request, _ = result
    out = tmp_path / "out"
    shutil.copytree(request.out, out)
    with pytest.raises(FlowleyError, match=r"00\.safetensors: has features of the first 5\.0 s, not 4 s"):
        _evaluate(clips, out, seconds=4.0)
    with pytest.raises(FlowleyError, match="features of panns are of other weights, or of another --dtype"):
        _evaluate(clips, out, networks=networks, dtype="bfloat16")


def _evaluate(clips, out, *, sounds=None, split="test", **settings):
    chosen = [clip for clip in read_clip_table(clips / "clips.tsv") if clip.split == split]
    return evaluate_clips(
        chosen,
        {"mine": sounds or clips / "sounds"},
        out,
        EvaluationSettings(**{"seconds": SECONDS, "resamples": 0, **settings}),
        readers=READERS,
    )


def test_only_given_events_count(clips, tmp_path):
    def evaluate(events):
        chosen = [clip for clip in read_clip_table(clips / "clips.tsv") if clip.split == "test"]
        settings = EvaluationSettings(seconds=SECONDS, resamples=0, av_align=False)
        return evaluate_clips(
            chosen,
            {"mine": clips / "sounds"},
            tmp_path / "out",
            settings,
            readers=READERS,
            events=events,
        ).rows["mine"]

    times = {f"test_{index:05d}": np.array([0.5, 1.5]) for index in range(4)}
    assert evaluate(times).clips["onset-F1"] == [4]
    assert evaluate({"test_00001": times["test_00001"]}).clips["onset-F1"] == [1]
    with pytest.raises(FlowleyError, match="names no clip of the table; its ids are like 'b', those of"):
        evaluate({"b": times["test_00001"]})


def test_sounds_of_the_same_size_and_time_are_told_apart(clips, tmp_path):
    rng = np.random.default_rng(0)
    for name, gain in (("a", 0.1), ("b", 0.01)):
        (tmp_path / name).mkdir()
        path = _written(
            tmp_path / name / "test_00000.wav", gain * rng.standard_normal(80_000).astype(np.float32)
        )
        os.utime(path, (1e9, 1e9))
    levels = [
        _evaluate(clips, tmp_path / "out", sounds=tmp_path / name, av_align=False)
        .rows["mine"]
        .metrics["LUFS"]
        for name in ("a", "b")
    ]
    # The gains are 20 dB apart.
    assert levels[0] - levels[1] == pytest.approx(20.0, abs=0.1)


def test_only_changed_sounds_are_extracted_again(clips, tmp_path, monkeypatch, caplog):
    sounds, extracted = shutil.copytree(clips / "sounds", tmp_path / "sounds"), []
    features = extraction._part_features

    def recorded(part, *args):
        extracted.append(sorted(part))
        return features(part, *args)

    monkeypatch.setattr(extraction, "_part_features", recorded)
    monkeypatch.setattr(extraction, "PART_CLIPS", 2)
    before = _evaluate(clips, tmp_path / "out", sounds=sounds, av_align=False)
    extracted.clear()
    sounds.joinpath("test_00002.FLAC").touch()
    caplog.set_level("INFO")
    after = _evaluate(clips, tmp_path / "out", sounds=sounds, av_align=False)
    assert len(extracted) == 1 and "test_00002" in extracted[0] and len(extracted[0]) <= 2
    assert "extracting its clips again, because 1 changed: test_00002" in caplog.text
    assert after.rows["mine"].metrics == before.rows["mine"].metrics


def test_sounds_of_the_codec_follow_the_videos_and_replace_no_other_file(clips, tiny_run, tmp_path):
    components, out = load_components(tiny_run), tmp_path / "out"
    video = tmp_path / "test_00000.mp4"
    shutil.copy(clips / "test/test_00000.mp4", video)
    table = [dataclasses.replace(read_clip_table(clips / "clips.tsv")[0], video_path=video)]
    settings = EvaluationSettings(seconds=1.0, resamples=0, av_align=False)
    run = functools.partial(
        evaluate_clips,
        table,
        {"mine": clips / "sounds"},
        out,
        settings,
        readers=READERS,
        components=components,
    )
    run()
    wave = (out / "codec/test_00000.wav").read_bytes()
    shutil.copy(clips / "test/test_00001.mp4", video)
    run()
    assert (out / "codec/test_00000.wav").read_bytes() != wave
    shutil.rmtree(out)
    (out / "codec").mkdir(parents=True)
    (out / "codec/test_00000.wav").write_text("mine")
    with pytest.raises(FlowleyError, match="codec: holds files of another program"):
        run()
    assert (out / "codec/test_00000.wav").read_text() == "mine"


def test_the_reason_is_told_if_no_clip_can_be_scored(clips, tmp_path):
    with pytest.raises(FlowleyError, match=r"are missing, the first: test_00000: .* s of sound; 9 s are"):
        _evaluate(clips, tmp_path / "out", seconds=9.0, av_align=False)


def test_clips_that_cannot_be_used_are_named_and_left_out(clips, tmp_path):
    sounds = tmp_path / "sounds"
    shutil.copytree(clips / "sounds", sounds)
    (sounds / "test_00000.FLAC").write_bytes(b"broken")
    _written(sounds / "other.wav", np.zeros(16_000, np.float32))
    (sounds / "test_00001.FLAC").unlink()
    _written(sounds / "test_00001.wav", np.ones(16_000, np.float32) * 0.1)
    (sounds / "test_00002.FLAC").unlink()
    evaluation = _evaluate(clips, tmp_path / "out", sounds=sounds)
    assert evaluation.missing == {"mine": ["test_00002"]} and evaluation.left_out == {"mine": ["other"]}
    failed = "\n".join(evaluation.failed["mine"])
    assert "test_00000: level: " in failed
    assert "test_00001: audio_peaks: has 1.00 s of sound; 5 s are needed" in failed
    assert evaluation.rows["mine"].clips["AV-Align"] == [1]
    with pytest.raises(
        FlowleyError, match=r"none of its sounds belongs to a clip of the table; .*'x' and 'test_0"
    ):
        strangers = tmp_path / "strangers"
        strangers.mkdir()
        _evaluate(clips, tmp_path / "out2", sounds=_written(strangers / "x.wav", np.zeros(16_000)).parent)


def test_another_number_of_clips_at_once_changes_nothing(result, monkeypatch):
    """Parts and batches that do not divide the clips."""
    request, _ = result
    monkeypatch.setattr(extraction, "PART_CLIPS", 3)
    monkeypatch.setattr(extraction, "_READ_CLIPS", 2)
    out = request.out.with_name("parts")
    changed = evaluate_table(dataclasses.replace(request, out=out), READERS)
    assert len(list(read_parts(out / "features" / "mine"))) == 2
    rows, expected = (
        json.loads(path.read_text())["rows"]["mine"]["metrics"] for path in (changed.scores, result[1].scores)
    )
    assert rows == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_clips_and_networks_of_an_earlier_evaluation_are_not_scored(result, clips, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(result[0].out, out)
    table = (clips / "clips.tsv").read_text().splitlines(keepends=True)
    (clips / "two.tsv").write_text("".join(table[:3]))
    request = dataclasses.replace(result[0], out=out, table=clips / "two.tsv", networks=None)
    scores = json.loads(evaluate_table(request, READERS).scores.read_text())
    assert not {"FD-PANN", "IB-Score"} & scores["rows"]["mine"]["metrics"].keys()
    assert scores["rows"]["mine"]["clips"]["LUFS"] == [2] and scores["facts"]["clips"] == 2


def test_desync_of_caches_takes_the_head_of_a_bundle(result, networks, tmp_path):
    """The same as of the table, after an export to av-benchmark's files."""
    features, caches = result[0].out / "features", []
    for name in ("mine", "reference"):
        caches.append(tmp_path / name)
        exported = shell.run(
            "flowley_jax.evaluate", f"--export-features={features / name}", f"--out={caches[-1]}"
        )
        assert exported.returncode == 0, exported.stderr
    flags = (f"--generated-cache={caches[0]}", f"--reference-cache={caches[1]}", "--resamples=0")
    found = shell.run("flowley_jax.evaluate", *flags, f"--networks={networks}")
    expected = _scores(result)["rows"]["mine"]["metrics"]
    metrics = json.loads(found.stdout)["metrics"]
    for metric in ("DeSync", "FD-PANN", "LAION-CLAP-Score"):
        assert metrics[metric] == pytest.approx(expected[metric], rel=1e-6)
    refused = shell.run("flowley_jax.evaluate", *flags, "--networks=nowhere")
    shell.fails_in_one_line(refused, "nowhere: holds none of the bundles")
    again = shell.run(
        "flowley_jax.evaluate", f"--export-features={features / 'mine'}", f"--out={features / 'mine'}"
    )
    shell.fails_in_one_line(again, "holds our own files of features")


def test_the_command_compares_systems_and_keeps_files_of_others(clips, tmp_path):
    flags = (
        f"--table={clips / 'clips.tsv'}",
        f"--sounds=ours={clips / 'sounds'}",
        f"--sounds={clips / 'test'}",
        f"--out={tmp_path / 'out'}",
        "--seconds=5",
        "--resamples=0",
        "--workers=1",
    )
    result = shell.run("flowley_jax.evaluate", *flags)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[:2] == ["ours", "test"] and "AV-Align" in result.stdout
    rows = json.loads((tmp_path / "out/scores.json").read_text())["rows"]
    assert {"ours", "test"} <= rows.keys() and CODEC not in rows
    assert json.loads((tmp_path / "out/output_metrics_ours.json").read_text()) == {}
    one = shell.run("flowley_jax.evaluate", *flags[:2], *flags[3:])
    assert one.returncode == 0, one.stderr
    assert [path.name for path in (tmp_path / "out").glob("output*")] == ["output_metrics.json"]
    (tmp_path / "out/report.html").write_text("mine")
    again = shell.run("flowley_jax.evaluate", *flags)
    shell.fails_in_one_line(again, "report.html: was changed after this program wrote it")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--table=a.tsv", "--sounds=b"], "--table needs --out, a folder for the features and the report"),
        (["--table=a.tsv", "--out=c"], "--table needs --sounds, or --workdir, the run that samples them"),
        (["--table=none.tsv", "--sounds=b", "--out=c"], "none.tsv: no such clip table"),
        (
            ["--table=a.tsv", "--sounds=b", "--out=c", "--nopairs"],
            "--pairs applies only to --generated-cache",
        ),
        (["--sounds=a", "--sounds=b"], "several --sounds need --table"),
        (["--sounds=a", "--split=test"], "--split applies only to --table"),
        (["--table=a.tsv", "--sounds=b", "--out=c", "--dtype=bfloat16"], "--dtype needs --networks"),
    ],
)
def test_flags_that_do_not_fit_are_named(flags, message):
    shell.fails_in_one_line(shell.run("flowley_jax.evaluate", *flags), message)
