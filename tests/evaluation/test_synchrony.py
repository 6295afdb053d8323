"""Onset detection, matching, and the scores of folders of sounds."""

import json
import os
import unicodedata

import numpy as np
import pytest
import shell
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from flowley_jax.audio.griffin_lim import GriffinLimVocoder
from flowley_jax.audio.mel import MEL_16K, log_mel
from flowley_jax.audio.onsets import OnsetScore, aggregate, detect_onsets, match_onsets
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.data.components import Components
from flowley_jax.encoders.hashed_text import HashedTextEncoder
from flowley_jax.encoders.pixels import PixelEncoder
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.sounds import read_sounds
from flowley_jax.evaluation.synchrony import (
    compare,
    read_events,
    round_trip,
    score_against_others,
    score_sounds,
)
from flowley_jax.media.write import write_audio

RATE = 16_000
A, B, C = np.array([0.4, 1.0, 1.7]), np.array([0.6, 1.3]), np.array([0.25, 0.85, 1.5])
times = st.lists(st.floats(0.0, 4.0), max_size=12).map(np.array)


def _hits(instants, seconds=2.0, rate=RATE):
    """Return decaying noise at each instant over faint noise."""
    rng = np.random.default_rng(0)
    wave = 1e-4 * rng.standard_normal(round(seconds * rate))
    ring = 0.5 * rng.standard_normal(rate // 4) * np.exp(-np.arange(rate // 4) / (0.02 * rate))
    for instant in instants:
        start = round(instant * rate)
        length = min(len(ring), len(wave) - start)
        wave[start : start + length] += ring[:length]
    return wave.astype(np.float32)


@pytest.fixture(scope="module")
def components():
    mels = log_mel(_hits(A), MEL_16K)
    return Components(
        seconds=2.0,
        video_encoder=PixelEncoder(fps=12.0),
        text_encoder=HashedTextEncoder(dim=8, max_tokens=5),
        codec=PcaCodec.fit(mels[None], mel=MEL_16K, latent_dim=20),
        vocoder=GriffinLimVocoder(mel=MEL_16K, iterations=8),
        latent_mean=np.zeros(20, np.float32),
        latent_std=np.ones(20, np.float32),
        source="clips.tsv",
    )


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_clicks_are_detected_within_ten_milliseconds(rate, gain):
    instants = np.array([0.3, 0.477, 0.9, 1.0831, 1.6])
    onsets, strengths = detect_onsets(gain * _hits(instants, rate=rate), rate)
    np.testing.assert_allclose(onsets, instants, atol=0.01)
    assert strengths.shape == onsets.shape and (strengths > 0).all()


@pytest.mark.parametrize("count", [0, 1, 2 * RATE])
def test_silence_has_no_onset(count):
    onsets, strengths = detect_onsets(np.zeros(count, np.float32), RATE)
    assert onsets.shape == strengths.shape == (0,)


def test_a_steady_tone_has_no_onset_after_its_start():
    t = np.arange(2 * RATE) / RATE
    onsets, _ = detect_onsets(np.where(t < 0.5, 0.0, np.sin(2 * np.pi * 500 * t)), RATE)
    np.testing.assert_allclose(onsets, [0.5], atol=0.01)


def test_matching_is_one_to_one():
    score = match_onsets(np.array([1.0, 1.06, 2.0]), np.array([1.05, 3.0]))
    assert (score.matched, score.detected, score.reference) == (1, 3, 2)
    assert np.abs(score.errors).max() <= 0.05 + 1e-12
    assert score.f1 == pytest.approx(2 / 5)


def test_matching_prefers_more_matches_to_nearer_ones():
    score = match_onsets(np.array([1.0, 1.09]), np.array([0.92, 1.01]))
    assert score.matched == 2
    np.testing.assert_allclose(score.errors, [0.08, 0.08], atol=1e-12)


def test_errors_are_detected_minus_true_times():
    score = match_onsets(np.array([2.03, 0.99, 5.0]), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(score.errors, [-0.01, 0.03], atol=1e-12)


@pytest.mark.parametrize(("distance", "matched"), [(0.125, 1), (-0.125, 1), (0.1251, 0), (-0.1251, 0)])
def test_the_tolerance_is_inclusive(distance, matched):
    assert match_onsets(np.array([1.0 + distance]), np.array([1.0]), 0.125).matched == matched


@pytest.mark.parametrize(("detected", "reference"), [([], []), ([], [1.0]), ([1.0], [])])
def test_no_onset_or_no_event_gives_no_match(detected, reference):
    score = match_onsets(np.array(detected), np.array(reference))
    assert (score.matched, len(score.errors), score.f1) == (0, 0, 0.0)


def _largest_matching(a, b, tolerance):
    allowed = np.abs(a[:, None] - b[None, :]) <= tolerance
    return int(allowed[linear_sum_assignment(allowed, maximize=True)].sum())


@given(times, times, st.floats(0.0, 0.5), st.randoms(use_true_random=False))
def test_matches_are_within_tolerance_and_independent_of_order(a, b, tolerance, random):
    score = match_onsets(a, b, tolerance)
    assert score.matched == len(score.errors) <= min(len(a), len(b))
    assert (np.abs(score.errors) <= tolerance + 1e-12).all()
    shuffled = [np.array(random.sample(list(x), len(x))) for x in (a, b)]
    np.testing.assert_array_equal(match_onsets(*shuffled, tolerance).errors, score.errors)
    mirrored = match_onsets(b, a, tolerance)
    assert mirrored.f1 == score.f1 <= 1.0
    assert (mirrored.detected, mirrored.reference) == (len(b), len(a))


@pytest.mark.parametrize("count", [3, 8, 20])
def test_the_matching_is_the_largest_one(count):
    rng = np.random.default_rng(count)
    for _ in range(100):
        a, b = rng.uniform(0.0, 1.0, count), rng.uniform(0.0, 1.0, rng.integers(1, count + 1))
        assert match_onsets(a, b, 0.1).matched == _largest_matching(a, b, 0.1)


@pytest.mark.parametrize("seed", range(5))
def test_well_separated_events_are_matched_to_their_own_onsets(seed):
    rng = np.random.default_rng(seed)
    reference = np.cumsum(rng.uniform(0.21, 0.6, 10))
    shifts = rng.uniform(-0.1, 0.1, 10)
    heard = rng.random(10) < 0.8
    score = match_onsets((reference + shifts)[heard], reference)
    np.testing.assert_allclose(score.errors, shifts[heard], atol=1e-12)


def test_figures_are_pooled_over_all_onsets():
    scores = [
        OnsetScore(matched=3, detected=4, reference=3, errors=np.array([0.01, -0.02, 0.03])),
        OnsetScore(matched=1, detected=1, reference=5, errors=np.array([-0.05])),
    ]
    assert aggregate(scores) == pytest.approx(
        {"precision": 0.8, "recall": 0.5, "f1": 0.8 / 1.3, "median_abs_error_ms": 25.0}
    )


@pytest.mark.parametrize("scores", [[], [match_onsets(np.array([1.0]), np.array([2.0]))]])
def test_figures_without_a_match_are_zero(scores):
    zero = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "median_abs_error_ms": None}
    assert aggregate(scores) == zero


def test_true_sounds_score_one_and_sounds_without_events_are_left_out():
    waves = {"a": _hits(A), "b": _hits(B), "silent": _hits([]), "unknown": _hits(A)}
    scores = score_sounds(waves, {"a": A, "b": B, "c": C, "silent": np.zeros(0)}, sample_rate=RATE)
    assert scores.figures["f1"] == 1.0 and scores.figures["median_abs_error_ms"] < 10.0
    assert [clip.id for clip in scores.clips] == ["a", "b"]
    assert scores.left_out == ["silent", "unknown"] and scores.missing == ["c"]


def test_no_clip_with_sound_and_events_is_an_error():
    with pytest.raises(
        FlowleyError, match="no clip has both a sound and true events; the sounds have ids like"
    ):
        score_sounds({"a": _hits(A)}, {"b": B}, sample_rate=RATE)


def test_the_floor_uses_the_events_of_the_next_clip():
    events = {"c": C, "a": A, "b": B, "d": np.array([9.0])}
    scores = score_sounds({"c": _hits(C), "a": _hits(A), "b": _hits(B)}, events, sample_rate=RATE)
    floor = score_against_others(scores, events)
    for clip, expected in zip(floor.clips, (B, C, A), strict=True):
        np.testing.assert_array_equal(clip.events, expected)
    assert [clip.id for clip in floor.clips] == ["a", "b", "c"]
    assert scores.figures["f1"] == 1.0 and floor.figures["f1"] == 0.0
    assert floor.figures == aggregate([clip.score for clip in floor.clips])


def test_a_comparison_has_the_rows_that_its_inputs_allow(components):
    events, late = {"a": A, "b": B}, {"a": _hits(A + 0.2), "b": _hits(B + 0.2)}
    real = {"a": _hits(A), "b": _hits(B), "more": _hits(C)}
    rows = compare(late, events, sample_rate=RATE, real=real, components=components)
    assert list(rows) == ["generated", "floor", "real", "ceiling"]
    assert rows["generated"].figures["f1"] == 0.0
    assert rows["real"].figures["f1"] == 1.0
    assert rows["ceiling"].figures["f1"] >= 0.9
    assert [clip.id for clip in rows["ceiling"].clips] == ["a", "b"]
    assert rows["real"].missing == rows["ceiling"].missing == []
    fewer = compare(late, events, sample_rate=RATE, real={"b": _hits(B), "more": _hits(C)})
    assert [clip.id for clip in fewer["real"].clips] == ["b"] and fewer["real"].missing == ["a"]
    with pytest.raises(FlowleyError, match="no real sound belongs to a clip"):
        compare(late, events, sample_rate=RATE, real={"more": _hits(C)})
    assert list(compare({"a": _hits(A)}, events, sample_rate=RATE)) == ["generated"]
    assert list(compare(late, events, sample_rate=RATE, real=real)) == ["generated", "floor", "real"]
    wide = compare(late, events, sample_rate=RATE, tolerance=0.25)
    assert wide["generated"].figures["f1"] == 1.0


@pytest.mark.parametrize("count", [16_000, 16_384, 20_001])
def test_the_round_trip_keeps_every_sample_of_the_wave(components, count):
    assert count <= len(round_trip(_hits(A)[:count], components)) < count + 2048


def test_events_are_read_by_id(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"id": "b", "impacts": [{"time": 0.5, "object": "ball"}]}\n{"id": "a", "impacts": []}\n')
    events = read_events(path)
    assert list(events) == ["b", "a"]
    np.testing.assert_array_equal(events["b"], [0.5])
    assert events["a"].shape == (0,)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "",
        "[1]",
        "3",
        '{"id": "a"}',
        '{"impacts": []}',
        '{"id": "a", "impacts": [{"object": "ball"}]}',
        '{"id": "a", "impacts": [3]}',
        '{"id": "a", "impacts": [{"time": "soon"}]}',
        '{"id": "a", "impacts": [{"time": NaN}]}',
        '{"id": "a", "impacts": [{"time": -1}]}',
        '{"id": "a", "impacts": [{"time": [1, 2]}]}',
        '{"id": 3, "impacts": []}',
        '{"id": ["a"], "impacts": []}',
        "[" * 100_000,
    ],
)
def test_a_bad_event_row_is_named_by_file_and_line(tmp_path, line):
    path = tmp_path / "events.jsonl"
    path.write_text('{"id": "a", "impacts": []}\n' + line + "\n")
    with pytest.raises(FlowleyError, match="line 2: not an event row") as caught:
        read_events(path)
    assert str(caught.value).startswith(f"{path}, line 2") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"id": "\xff", "impacts": []}\n', "line 1: not an event row"),
        (b'{"id": "a", "impacts": []}\n{"id": "a", "impacts": []}\n', "line 2: id 'a' occurs twice"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    ],
)
def test_a_wrong_event_file_is_refused(tmp_path, content, reason):
    path = tmp_path / "events.jsonl"
    path.write_bytes(content)
    with pytest.raises(FlowleyError, match=reason):
        read_events(path)
    with pytest.raises(FlowleyError, match="cannot be read"):
        read_events(tmp_path)


def test_ids_match_in_either_unicode_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "é\u2028") for form in ("NFC", "NFD"))
    path = tmp_path / "events.jsonl"
    for row in ({"id": composed, "impacts": []}, {"id": decomposed, "impacts": []}):
        path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8-sig")
        assert list(read_events(path)) == [composed]
    write_audio(tmp_path / f"{decomposed}.wav", _hits(A), RATE)
    assert list(read_sounds(tmp_path, sample_rate=RATE).waves) == [composed]


def test_a_missing_event_file_is_named(tmp_path):
    with pytest.raises(FlowleyError, match=r"none\.jsonl: no such file"):
        read_events(tmp_path / "none.jsonl")


def test_unreadable_sounds_are_named_and_the_others_are_read(tmp_path):
    # So quiet that no peak is turned down.
    quiet = 0.3 * _hits(A)
    write_audio(tmp_path / "a.wav", quiet, RATE)
    write_audio(tmp_path / "c.flac", _hits(C), RATE)
    (tmp_path / "b.mp4").write_text("no video")
    (tmp_path / "notes.txt").write_text("no sound")
    (tmp_path / "samples.jsonl").write_text("{}")
    (tmp_path / ".d.partial.wav").write_bytes(b"")
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    wave = _hits(B)
    wave[123] = np.nan
    soundfile.write(tmp_path / "nan.wav", wave, RATE, subtype="FLOAT")
    sounds = read_sounds(tmp_path, sample_rate=RATE)
    assert list(sounds.waves) == ["a", "c"] and sounds.ignored == ["notes.txt"]
    np.testing.assert_allclose(sounds.waves["a"], quiet, rtol=0, atol=1.1 / 32768)
    pipe, line, not_finite = sounds.unreadable
    assert pipe == f"{tmp_path / 'pipe.wav'}: is not a file"
    assert line.startswith(f"{tmp_path / 'b.mp4'}: ")
    assert not_finite.startswith(f"{tmp_path / 'nan.wav'}: ") and "NaN" in not_finite


def test_suffixes_count_in_any_case(tmp_path):
    for name in ("a.WAV", "b.Flac"):
        write_audio(tmp_path / name, _hits(A), RATE)
    assert list(read_sounds(tmp_path, sample_rate=RATE).waves) == ["a", "b"]


def test_a_second_sound_of_one_name_is_reported(tmp_path):
    quiet = 0.3 * _hits(A)
    write_audio(tmp_path / "a.flac", quiet, RATE)
    write_audio(tmp_path / "a.wav", _hits(B), RATE)
    sounds = read_sounds(tmp_path, sample_rate=RATE)
    np.testing.assert_allclose(sounds.waves["a"], quiet, rtol=0, atol=1.1 / 32768)
    (line,) = sounds.unreadable
    assert line.startswith(f"{tmp_path / 'a.wav'}: another sound")


def test_a_folder_without_a_sound_is_refused(tmp_path):
    with pytest.raises(FlowleyError, match="no readable sound"):
        read_sounds(tmp_path, sample_rate=RATE)
    with pytest.raises(FlowleyError, match="none: no such folder"):
        read_sounds(tmp_path / "none", sample_rate=RATE)


def _evaluate(*flags):
    return shell.run("flowley_jax.evaluate", *flags)


def test_the_command_prints_the_scores_as_json(tmp_path):
    sounds, events = tmp_path / "sounds", tmp_path / "events.jsonl"
    sounds.mkdir()
    for name, instants in (("a", A), ("b", B)):
        write_audio(sounds / f"{name}.wav", _hits(instants), RATE)
    (sounds / "c.mp4").write_bytes(b"")
    (sounds / "notes.txt").touch()
    real = tmp_path / "real"
    real.mkdir()
    write_audio(real / "b.WAV", _hits(B), RATE)
    rows = [{"id": n, "impacts": [{"time": t} for t in i]} for n, i in (("a", A), ("b", B), ("c", C))]
    events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = _evaluate("--sounds", sounds, "--events", events, "--real", real, "--out", tmp_path / "n/o.json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert json.loads((tmp_path / "n/o.json").read_text()) == report
    assert (report["clips"], report["tolerance_s"], report["left_out"]) == (2, 0.1, [])
    assert report["generated"]["f1"] == report["real"]["f1"] == 1.0
    assert report["floor"]["f1"] < 0.5
    assert [report[row]["clips"] for row in ("generated", "floor", "real")] == [2, 2, 1]
    assert (report["missing"], report["missing_real"]) == (["c"], ["a"])
    (line,) = report["unreadable"]
    assert "c.mp4" in line and report["ignored"] == ["notes.txt"]
    for words in ("without a sound, which are not scored: 1 (c)", "without a real sound", "notes.txt"):
        assert words in result.stderr


def test_the_command_fails_in_one_line(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"id": "a", "impacts": [{"time": 0.5}]}\n')
    result = _evaluate("--sounds", tmp_path / "none", "--events", tmp_path / "events.jsonl")
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error:") and str(tmp_path / "none") in line
    older = tmp_path / "figures.json"
    older.write_text("mine")
    result = _evaluate("--sounds", tmp_path, "--events", tmp_path / "events.jsonl", "--out", older)
    assert result.returncode == 2 and older.read_text() == "mine"
    assert f"{older}: already exists" in result.stderr and "--overwrite" in result.stderr
