"""Generated clips are reproducible and varied, and their picture and sound agree with the event times."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import shell

from data_prep.impacts.contact_sheet import draw_contact_sheet
from data_prep.impacts.generate import ClipSetConfig, GeneratedClip, generate
from data_prep.impacts.materials import MATERIALS
from data_prep.impacts.motions import MIN_GAP
from data_prep.impacts.render import FPS, render
from data_prep.impacts.scene import (
    CONTINUOUS_ONLY_SHARE,
    CONTINUOUS_SHARE,
    SECOND_OBJECT_SHARE,
    SIZE,
)
from data_prep.impacts.sound import SAMPLE_RATE, synthesise
from data_prep.record_components import RecordComponents
from data_prep.settings import RecordSettings
from flowley_jax.audio.onsets import aggregate, detect_onsets, match_onsets
from flowley_jax.common.files import partial_name
from flowley_jax.common.locks import lock_folder
from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.synchrony import read_events
from flowley_jax.media.read import probe, read_audio, read_frames

SECONDS = 3.0
SMALL = ClipSetConfig(train=2, valid=1, test=1, seconds=SECONDS, seed=5)
LARGE = ClipSetConfig(train=4, valid=2, test=1, seconds=SECONDS, seed=5)


def _clip(index, split="train", seed=0, seconds=4.0):
    return GeneratedClip(split=split, index=index, seed=seed, seconds=seconds)


def _times(scene):
    return np.asarray([time for time, _, _ in scene.impacts])


@pytest.fixture(scope="module")
def scenes():
    return [_clip(index).draw()[0] for index in range(300)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    generate(SMALL, folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    generate(LARGE, folder, workers=2)
    return folder


def _videos(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*.mp4")}


def test_drawing_a_clip_is_deterministic():
    (scene, caption, rng), (again, same_caption, same_rng) = _clip(3).draw(), _clip(3).draw()
    assert caption == same_caption
    np.testing.assert_array_equal(_times(scene), _times(again))
    np.testing.assert_array_equal(render(scene), render(again))
    np.testing.assert_array_equal(synthesise(scene, rng), synthesise(again, same_rng))


def test_clips_splits_seeds_and_lengths_all_differ():
    clips = [_clip(index, split) for split in ("train", "valid", "test") for index in range(150)]
    clips += [_clip(index, seed=1) for index in range(50)]
    clips += [_clip(index, seconds=5.0) for index in range(50)]
    drawn = [clip.draw()[0] for clip in clips]
    with_impacts = [tuple(_times(scene)) for scene in drawn if scene.actors]
    assert len(with_impacts) > 400
    assert len(set(with_impacts)) == len(with_impacts)
    assert len({scene.wall_colour for scene in drawn}) == len(drawn)


def test_captions_fit_into_the_embedded_text_encoder():
    captions = [_clip(index).draw()[1] for index in range(3000)]
    encoder = RecordComponents(RecordSettings()).text_encoder
    _, lengths = encoder(captions)
    assert encoder.max_tokens - 8 < lengths.max() <= encoder.max_tokens


def test_impacts_are_apart_and_inside_the_clip(scenes):
    for scene in scenes:
        if scene.actors:
            times = _times(scene)
            assert len(times) >= 2
            assert times.min() > 0.0 and times.max() < scene.seconds
            assert np.diff(times).min() >= MIN_GAP


def test_every_material_motion_shape_and_drone_appears(scenes):
    actors = [actor for scene in scenes for actor in scene.actors]
    assert {actor.material.name for actor in actors} == set(MATERIALS)
    assert {actor.motion for actor in actors} == {"bounces", "strikes", "swings"}
    assert {actor.shape for actor in actors} == {"ball", "cube"}
    assert {scene.drone.kind for scene in scenes if scene.drone} == {"wheel", "saw"}
    assert min(Counter(actor.material.name for actor in actors).values()) > 0.1 * len(actors)
    assert any(scene.distractors for scene in scenes) and not all(scene.distractors for scene in scenes)


def test_share_of_scenes_with_a_continuous_sound(scenes):
    share = np.mean([scene.drone is not None for scene in scenes])
    continuous_only = np.mean([not scene.actors for scene in scenes])
    assert share == pytest.approx(CONTINUOUS_SHARE, abs=0.08)
    assert continuous_only == pytest.approx(CONTINUOUS_SHARE * CONTINUOUS_ONLY_SHARE, abs=0.06)


def test_share_of_scenes_with_two_objects(scenes):
    with_objects = [len(scene.actors) for scene in scenes if scene.actors]
    assert np.mean(np.equal(with_objects, 2)) == pytest.approx(SECOND_OBJECT_SHARE, abs=0.08)


def test_objects_touch_the_surface_exactly_at_their_events(scenes):
    for actor in (actor for scene in scenes for actor in scene.actors):
        times, begin = actor.hops.times, actor.hops.times[0] - 0.5 * actor.hops.first_span
        np.testing.assert_allclose(actor.hops.distance(times), 0.0, atol=1e-9)
        t = np.linspace(0.0, times[-1], 1000)
        away = np.abs(t[:, None] - times).min(axis=1) > 0.005
        assert actor.hops.distance(t[away]).min() > 0.0
        np.testing.assert_array_equal(actor.hops.distance(times[-1] + np.linspace(0.01, 2.0, 20)), 0.0)
        np.testing.assert_allclose(actor.hops.distance(np.array([0.0, begin])), actor.hops.heights[0])
        assert actor.hops.strengths.max() == 1.0 and actor.hops.strengths.min() >= 0.25


def test_the_picture_moves_until_the_last_impact_and_then_rests(scenes):
    plain = [s for s in scenes if s.actors and not s.drone and not s.distractors][:5]
    assert len(plain) == 5
    for scene in plain:
        frames = render(scene)
        assert frames.shape == (96, SIZE, SIZE, 3) and frames.dtype == np.uint8
        changes = np.abs(np.diff(frames.astype(int), axis=0)).max(axis=(1, 2, 3))
        last = np.flatnonzero(changes)[-1] + 1
        assert last == int(np.ceil(_times(scene).max() * FPS))


def test_sounds_start_at_the_true_times():
    scores = []
    for index in range(40):
        scene, _, rng = _clip(index, "valid").draw()
        if scene.actors:
            onsets, _ = detect_onsets(synthesise(scene, rng), SAMPLE_RATE)
            scores.append(match_onsets(onsets, _times(scene), 0.03))
    figures = aggregate(scores)
    assert len(scores) > 30
    assert figures["f1"] >= 0.97
    assert figures["median_abs_error_ms"] < 5.0


def test_scenes_without_impacts_have_hardly_any_onsets():
    onsets = []
    for index in range(400):
        scene, _, rng = _clip(index).draw()
        if not scene.actors:
            onsets.append(len(detect_onsets(synthesise(scene, rng), SAMPLE_RATE)[0]))
    assert len(onsets) > 10
    assert np.mean(onsets) < 0.5


def test_a_larger_set_by_more_workers_starts_with_the_smaller_one(small, large):
    few, many = _videos(small), _videos(large)
    assert set(few) == {
        "train/train_00000.mp4",
        "train/train_00001.mp4",
        "valid/valid_00000.mp4",
        "test/test_00000.mp4",
    }
    assert len(many) == 7
    assert {name: many[name] for name in few} == few
    assert len(set(many.values())) == 7
    rows = [set((folder / "events.jsonl").read_text().splitlines()) for folder in (small, large)]
    assert rows[0] < rows[1]


def test_table_events_and_videos_agree(large):
    clips, events = read_clip_table(large / "clips.tsv"), read_events(large / "events.jsonl")
    assert [clip.split for clip in clips] == ["train"] * 4 + ["valid"] * 2 + ["test"]
    assert [clip.id for clip in clips] == list(events)
    for clip in clips:
        info = probe(clip.video_path)
        assert (info.video_fps, info.width, info.height, info.sample_rate) == (FPS, SIZE, SIZE, SAMPLE_RATE)
        assert info.duration == pytest.approx(SECONDS, abs=0.07)
        scene, caption, rng = _clip(int(clip.id[-5:]), clip.split, seed=5, seconds=SECONDS).draw()
        assert clip.caption == caption and clip.label
        np.testing.assert_allclose(events[clip.id], _times(scene), atol=1e-5)
        frames = read_frames(clip.video_path, fps=FPS)
        assert len(frames) == SECONDS * FPS
        assert np.abs(frames.astype(int) - render(scene)).mean() < 4.0
        wave = read_audio(clip.video_path, sample_rate=SAMPLE_RATE, seconds=SECONDS)
        assert np.corrcoef(wave, synthesise(scene, rng))[0, 1] > 0.8


def test_continuous_events_are_listed_with_their_speed(tmp_path, large):
    for line in (large / "events.jsonl").read_text().splitlines():
        row = json.loads(line)
        scene = _clip(int(row["id"][-5:]), row["id"][:-6], seed=5, seconds=SECONDS).draw()[0]
        assert (row["continuous"] is None) == (scene.drone is None)
        if scene.drone is not None:
            speed = scene.drone.speed(np.asarray(row["continuous"]["time"]))
            np.testing.assert_allclose(row["continuous"]["speed"], speed, atol=1e-4)


def test_a_deleted_clip_is_generated_again_and_no_other(small):
    before = _videos(small)
    deleted = small / "train/train_00001.mp4"
    ages = {path: path.stat().st_mtime_ns for path in small.glob("*/*.mp4") if path != deleted}
    deleted.unlink()
    generate(SMALL, small, workers=1)
    assert _videos(small) == before
    assert {path: path.stat().st_mtime_ns for path in ages} == ages


@pytest.mark.parametrize("change", [{"seed": 6}, {"seconds": 4.0}])
def test_a_set_with_a_different_seed_or_length_is_refused(small, change):
    before = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
    settings = {"train": 2, "valid": 1, "test": 1, "seconds": SECONDS, "seed": 5, **change}
    with pytest.raises(FlowleyError, match=r"set\.json: the folder holds a clip set with"):
        generate(ClipSetConfig(**settings), small, workers=1)
    assert {path: path.read_bytes() for path in small.rglob("*") if path.is_file()} == before


def test_a_damaged_set_file_is_named_in_the_error(tmp_path):
    (tmp_path / "set.json").write_text("{")
    with pytest.raises(FlowleyError, match=r"set\.json: is not valid JSON"):
        generate(SMALL, tmp_path, workers=1)


@pytest.mark.parametrize("name", ["clips.tsv", "events.jsonl", "train/train_00001.mp4"])
def test_files_of_other_programs_are_not_replaced(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(FlowleyError, match=rf"{tmp_path / name}: data_prep.impacts did not write it"):
        generate(SMALL, tmp_path, workers=1)
    assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "set.json").exists()


def test_one_process_at_a_time_writes_a_set_and_partial_files_are_removed(small, tmp_path):
    with lock_folder(tmp_path), pytest.raises(FlowleyError, match="another process is writing to it"):
        generate(SMALL, tmp_path, workers=1)
    left = [small / partial_name(".tsv"), small / "train" / partial_name(".mp4")]
    for path in left:
        path.write_bytes(b"half")
    generate(SMALL, small, workers=1)
    assert not any(path.exists() for path in left)


def test_events_of_another_set_are_refused(small, tmp_path):
    shutil.copytree(small, tmp_path / "set")
    for content in ("", '{"id": "test_00000"}\n', '{"id": 5, "seconds": 1, "impacts": []}\n'):
        (tmp_path / "set/events.jsonl").write_text(content)
        with pytest.raises(FlowleyError, match=r"events.jsonl: has no events of clip test_00000"):
            draw_contact_sheet(tmp_path / "set", tmp_path / "sheet.png", clips=1)
    assert not (tmp_path / "sheet.png").exists()


def test_an_existing_contact_sheet_is_not_replaced(tmp_path):
    (tmp_path / "sheet.png").write_text("mine")
    result = shell.run(
        "data_prep.impacts", "--out", tmp_path / "set", "--contact_sheet", tmp_path / "sheet.png"
    )
    shell.fails_in_one_line(result, f"--contact_sheet {tmp_path}/sheet.png: already exists", "--overwrite")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(train=0, valid=0, test=0), "nor all zero"),
        (dict(train=-1), "train=-1, valid=32, test=64 must not be negative"),
        (dict(seconds=2.9), "seconds=2.9 must be between 3 and 60"),
        (dict(seconds=61.0), "must be between"),
        (dict(seconds=float("nan")), "must be between"),
    ],
)
def test_impossible_clip_sets_are_refused(settings, message):
    with pytest.raises(FlowleyError, match=message):
        ClipSetConfig(**settings)


def test_contact_sheets_grow_with_a_second_sound(tmp_path, large):
    sizes = []
    for generated in (None, large / "test"):
        path = tmp_path / "sheet.png"
        draw_contact_sheet(large, path, generated=generated, clips=1)
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        sizes.append(int.from_bytes(content[20:24], "big"))
    assert sizes[1] > 1.3 * sizes[0]
