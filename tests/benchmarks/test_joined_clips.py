"""Joined clips show their frames and have their events and sounds, one after the other."""

import json

import numpy as np
import pytest

from benchmarks.joined_clips import join_clips, join_pictures, join_sounds
from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_frames
from flowley_jax.media.write import write_video

FPS, RATE, SIZE = 12.0, 8000, 32
FRAMES = (12, 18, 9, 15, 12)


def _frames(index):
    coarse = np.random.default_rng(index).integers(0, 256, (FRAMES[index], 4, 4, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A clip set of five clips of five lengths; clip n has an event at 0.1 s and one at (n + 1)/10 s."""
    folder = tmp_path_factory.mktemp("clips")
    table, events = ["id\tvideo_path\ttext_description\tsplit\tlabel"], []
    for index in range(len(FRAMES)):
        write_video(folder / f"{index}.mp4", _frames(index), FPS)
        table.append(f"clip_{index}\t{index}.mp4\tclip number {index}\ttest\tnoise")
        events.append({"id": f"clip_{index}", "impacts": [{"time": 0.1}, {"time": (index + 1) / 10}]})
    (folder / "clips.tsv").write_text("\n".join(table) + "\n")
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events))
    return folder


def test_pictures_are_those_of_the_clips(clips, tmp_path):
    videos = join_clips(clips, tmp_path, count=2)
    assert [video.clips for video in videos] == [["clip_0", "clip_1"], ["clip_2", "clip_3"]]
    for video in videos:
        parts = [read_frames(clips / f"{name[-1]}.mp4", fps=FPS, size=SIZE) for name in video.clips]
        np.testing.assert_array_equal(read_frames(video.path, fps=FPS, size=SIZE), np.concatenate(parts))


def test_events_move_by_the_pictures_before_them(clips, tmp_path):
    first, second = join_clips(clips, tmp_path, count=2)
    np.testing.assert_allclose(first.bounds, [0.0, 1.0, 2.5])
    np.testing.assert_allclose(first.events, [0.1, 0.1, 1.1, 1.2])
    np.testing.assert_allclose(second.events, [0.1, 0.3, 0.85, 1.15])
    assert first.captions == ["clip number 0", "clip number 1"]


def test_sounds_begin_with_their_pictures(clips, tmp_path):
    videos = join_clips(clips, tmp_path, count=2)
    # Decoded sounds may be a little longer than the picture, or end before it.
    waves = {f"clip_{index}": np.full(7000 + 2000 * index, index + 1.0) for index in range(len(FRAMES))}
    first, second = join_sounds(videos, waves, RATE).values()
    np.testing.assert_array_equal(first, np.repeat([1.0, 0.0, 2.0, 0.0], [7000, 1000, 9000, 3000]))
    np.testing.assert_array_equal(second, np.repeat([3.0, 4.0], [6000, 10_000]))


def test_existing_videos_are_kept(clips, tmp_path):
    paths = [video.path for video in join_clips(clips, tmp_path, count=2)]
    times = [path.stat().st_mtime_ns for path in paths]
    assert [video.path for video in join_clips(clips, tmp_path, count=2)] == paths
    assert [path.stat().st_mtime_ns for path in paths] == times


def test_more_clips_than_there_are_is_refused(clips, tmp_path):
    with pytest.raises(FlowleyError, match="its split test has 5 clips, and 6 are to be joined"):
        join_clips(clips, tmp_path, count=6)


def test_pictures_of_other_settings_are_refused(clips, tmp_path):
    write_video(tmp_path / "large.mp4", np.zeros((3, 64, 64, 3), np.uint8), FPS)
    with pytest.raises(FlowleyError, match=r"large\.mp4: its picture was encoded in another way"):
        join_pictures([clips / "0.mp4", tmp_path / "large.mp4"], tmp_path / "joined.mp4")
    assert not (tmp_path / "joined.mp4").exists()
