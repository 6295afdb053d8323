"""Which clips a path names."""

import logging
import unicodedata

import pytest

from flowley_jax.common.files import sha256
from flowley_jax.errors import FlowleyError
from flowley_jax.sampling.inputs import find_inputs
from flowley_jax.sampling.made_files import MadeFiles

HEADER = "id\tvideo_path\ttext_description\tsplit\tlabel\n"


def _inputs(video, prompt=None, split=None):
    return [(clip.id, clip.path.name, clip.prompt) for clip in find_inputs(video, prompt=prompt, split=split)]


def test_a_file_is_one_clip(tmp_path):
    (tmp_path / "a.b.mp4").touch()
    assert _inputs(tmp_path / "a.b.mp4") == [("a.b", "a.b.mp4", "")]
    assert _inputs(tmp_path / "a.b.mp4", "rain") == [("a.b", "a.b.mp4", "rain")]


def test_a_folder_gives_its_videos_in_the_order_of_names(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in ("b.MP4", "a.webm", "d.ts", ".hidden", "._b.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    expected = [("a", "a.webm", "rain"), ("b", "b.MP4", "rain"), ("d", "d.ts", "rain")]
    assert _inputs(tmp_path, "rain") == expected
    assert caplog.text == ""
    (tmp_path / "c.wav").touch()
    assert _inputs(tmp_path, "rain") == expected
    assert caplog.messages == ["skipped 1 file that is not a video: c.wav"]


def test_a_link_to_a_missing_video_is_not_passed_over(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").symlink_to(tmp_path / "gone.mp4")
    assert [name for name, _, _ in _inputs(tmp_path)] == ["a", "b"]


def test_files_of_a_folder_that_are_not_videos_are_named_in_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in ("a.mp4", "b.gif", "c.m4a", "d.txt"):
        (tmp_path / name).touch()
    _inputs(tmp_path)
    for number in range(5):
        (tmp_path / f"e{number}.flac").touch()
    _inputs(tmp_path)
    assert caplog.messages == [
        "skipped 3 files that are not videos: b.gif, c.m4a, d.txt",
        "skipped 8 files that are not videos: b.gif, c.m4a, d.txt, e0.flac, e1.flac, …",
    ]


def test_a_table_gives_its_captions_or_one_prompt_for_all(tmp_path):
    table = tmp_path / "clips.tsv"
    table.write_text(
        HEADER + "one\tv/1.mp4\ta bell\ttest\tbell\n" + "two\t/abs/2.mp4\ta dog\ttrain\tdog\n",
        encoding="utf-8",
    )
    assert _inputs(table) == [("one", "1.mp4", "a bell"), ("two", "2.mp4", "a dog")]
    assert _inputs(table, split="test") == [("one", "1.mp4", "a bell")]
    assert _inputs(table, prompt="") == [("one", "1.mp4", ""), ("two", "2.mp4", "")]
    paths = [clip.path for clip in find_inputs(table, prompt=None, split=None)]
    assert [str(path) for path in paths] == [str(tmp_path / "v/1.mp4"), "/abs/2.mp4"]


def test_a_text_beside_a_video_is_its_prompt(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text(" rain on a roof\n", encoding="utf-8-sig")
    (tmp_path / "b.txt").write_bytes("Glöckchen".encode("latin-1"))
    assert _inputs(tmp_path) == [("a", "a.mp4", "rain on a roof"), ("b", "b.mp4", ""), ("c", "c.mp4", "")]
    assert caplog.messages == ["prompts from .txt files: 1 of 3 clips"]
    faults = [clip.fault for clip in find_inputs(tmp_path, prompt=None, split=None)]
    assert faults == ["", f"{tmp_path / 'b.txt'}: must be UTF-8 text, because it is the prompt", ""]
    assert _inputs(tmp_path / "a.mp4") == [("a", "a.mp4", "rain on a roof")]
    assert [prompt for *_, prompt in _inputs(tmp_path, "bang")] == ["bang"] * 3


def test_earlier_sounds_in_the_folder_of_the_videos_are_no_videos(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in ("a.mp4", "a.mkv", "b.mkv"):
        (tmp_path / name).write_text(name)
    made = MadeFiles(tmp_path / "samples.jsonl")
    made.claim("c", {tmp_path / "c.mkv": sha256(tmp_path / "a.mkv")})
    (tmp_path / "a.mkv").rename(tmp_path / "c.mkv")
    # A file of the name that this program used, with other content.
    made.claim("d", {tmp_path / "d.mkv": "0" * 64})
    (tmp_path / "d.mkv").write_text("a film")

    def ids(out):
        return [clip.id for clip in find_inputs(tmp_path, prompt="", split=None, out=out)]

    assert ids(tmp_path) == ["a", "b", "d"]
    assert caplog.messages == [f"left out 1 sounds that this program wrote to {tmp_path}"]
    assert ids(tmp_path / "out") == ids(None) == ["a", "b", "c", "d"]


def test_names_are_found_in_either_unicode_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Glöckchen é.mp4") for form in ("NFC", "NFD"))
    assert composed != decomposed
    (tmp_path / decomposed).touch()
    assert [clip.path for clip in find_inputs(tmp_path / composed, prompt="", split=None)] == [
        tmp_path / decomposed
    ]
    table = tmp_path / "clips.tsv"
    table.write_text(HEADER + f"one\t{composed}\ta bell\ttest\tbell\n", encoding="utf-8")
    assert [clip.path for clip in find_inputs(table, prompt=None, split=None)] == [tmp_path / decomposed]


def test_a_path_that_names_no_clip_is_refused(tmp_path):
    def refused(path, message, **options):
        with pytest.raises(FlowleyError, match=message) as caught:
            _inputs(path, **options)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    refused(tmp_path / "none.mp4", "no such file or folder")
    refused(tmp_path, "no video in this folder")
    (tmp_path / "a.mp4").touch()
    for path in (tmp_path, tmp_path / "a.mp4"):
        refused(path, "only a clip table has splits", split="test")
    table = tmp_path / "clips.tsv"
    table.write_text("")
    refused(table, "empty")
    table.write_text(HEADER)
    refused(table, "no rows")
    table.write_text("video_path\tcaption\nx.mp4\tx\n")
    refused(table, "text_description")
    table.write_text(HEADER + "one\t1.mp4\ta bell\ttest\tbell\n")
    refused(table, "no row of the split 'valid'", split="valid")
