"""Which clips a path names."""

import logging
import unicodedata

import pytest

from flowley_jax.common.files import sha256
from flowley_jax.errors import FlowleyError
from flowley_jax.sampling.inputs import Choices, InputClip, find_inputs, text_input
from flowley_jax.sampling.made_files import MadeFiles

HEADER = "id\tvideo_path\ttext_description\tsplit\tlabel\n"


def _inputs(video, prompt=None, split=None):
    return [
        (clip.id, clip.path and clip.path.name, clip.prompt)
        for clip in find_inputs(video, choices=Choices(prompt=prompt), split=split)
    ]


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
    paths = [clip.path for clip in find_inputs(table)]
    assert [str(path) for path in paths] == [str(tmp_path / "v/1.mp4"), "/abs/2.mp4"]


def test_a_text_beside_a_video_is_its_prompt(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text(" rain on a roof\n", encoding="utf-8-sig")
    (tmp_path / "b.txt").write_bytes("Glöckchen".encode("latin-1"))
    assert _inputs(tmp_path) == [("a", "a.mp4", "rain on a roof"), ("b", "b.mp4", ""), ("c", "c.mp4", "")]
    assert caplog.messages == ["prompts from .txt files: 1 of 3 clips"]
    faults = [clip.fault for clip in find_inputs(tmp_path)]
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
        return [clip.id for clip in find_inputs(tmp_path, choices=Choices(prompt=""), out=out)]

    assert ids(tmp_path) == ["a", "b", "d"]
    assert caplog.messages == [f"left out 1 sounds that this program wrote to {tmp_path}"]
    assert ids(tmp_path / "out") == ids(None) == ["a", "b", "c", "d"]


def test_names_are_found_in_either_unicode_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Glöckchen é.mp4") for form in ("NFC", "NFD"))
    assert composed != decomposed
    (tmp_path / decomposed).touch()
    assert [clip.path for clip in find_inputs(tmp_path / composed)] == [tmp_path / decomposed]
    table = tmp_path / "clips.tsv"
    table.write_text(HEADER + f"one\t{composed}\ta bell\ttest\tbell\n", encoding="utf-8")
    assert [clip.path for clip in find_inputs(table)] == [tmp_path / decomposed]


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


TABLE = "id\tvideo_path\ttext_description\tnegative_prompt\tseed\tseconds\n"


def _rows(tmp_path, *rows):
    table = tmp_path / "clips.tsv"
    table.write_text(TABLE + "".join(row + "\n" for row in rows))
    return table


def test_a_table_gives_values_of_single_clips_and_flags_override_them(tmp_path):
    table = _rows(tmp_path, "a\ta.mp4\tA bell\thum\t7\t2.5", "b\tb.mp4\t\t\t\t", "c\t\tRain\t\t0\t4")
    base = {"id": "a", "path": tmp_path / "a.mp4", "prompt": "A bell"}
    assert find_inputs(table) == [
        InputClip(**base, negative_prompt="hum", seed=7, end=2.5),
        InputClip(id="b", path=tmp_path / "b.mp4", prompt=""),
        InputClip(id="c", path=None, prompt="Rain", seed=0, end=4.0),
    ]
    choices = Choices(prompt="Wind", negative_prompt="", seed=1, start=1.0, seconds=3.0)
    assert find_inputs(table, choices=choices) == [
        InputClip(
            id=name, path=path, prompt="Wind", negative_prompt="", seed=1, start=1.0 * bool(path), end=end
        )
        for name, path, end in [
            ("a", tmp_path / "a.mp4", 4.0),
            ("b", tmp_path / "b.mp4", 4.0),
            ("c", None, 3.0),
        ]
    ]
    parts = [(clip.start, clip.end) for clip in find_inputs(table, choices=Choices(start=1.0))]
    assert parts == [(1.0, 3.5), (1.0, None), (0.0, 4.0)]
    parts = [(clip.start, clip.end) for clip in find_inputs(table, choices=Choices(end=9.0))]
    assert parts == [(0.0, 9.0), (0.0, 9.0), (0.0, 4.0)]


def test_a_part_is_taken_of_every_video_of_a_folder(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    for choices, part in [
        (Choices(start=2.0, end=5.0), (2.0, 5.0)),
        (Choices(start=2.0, seconds=1.5), (2.0, 3.5)),
        (Choices(seconds=1.5), (0.0, 1.5)),
        (Choices(), (0.0, None)),
    ]:
        assert [(clip.start, clip.end) for clip in find_inputs(tmp_path, choices=choices)] == [part] * 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a\ta.mp4\tx\t\t1.5\t", "line 2: seed '1.5' must be an int"),
        ("a\ta.mp4\tx\t\t-1\t", "line 2: seed '-1' must be at least 0"),
        ("a\ta.mp4\tx\t\t\tlong", "line 2: seconds 'long' must be a number"),
        ("a\ta.mp4\tx\t\t\tnan", "line 2: seconds 'nan' must be a finite number"),
        ("a\ta.mp4\tx\t\t\t0", "line 2: seconds '0' must be at least 0.01"),
        ("a\t\tx\t\t\t", "line 2: has no video_path, so it needs a text_description and seconds"),
        ("a\t\t\t\t\t4", "line 2: has no video_path, so it needs a text_description and seconds"),
        ("\t\tx\t\t\t4", "line 2: has neither a video_path nor an id"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, message):
    table = _rows(tmp_path, row)
    with pytest.raises(FlowleyError) as caught:
        find_inputs(table)
    assert str(caught.value).startswith(f"{table}, {message}")


def test_a_sound_from_text_is_named_after_its_prompt_or_its_file():
    def named(prompt, **options):
        return text_input(Choices(prompt=prompt, seconds=2.0), **options)

    assert named("A bell, far away!") == InputClip(
        id="a-bell-far-away", path=None, prompt="A bell, far away!", end=2.0
    )
    assert named("x", clip_id="out").id == "out"
    assert named("Glöckchen 鈴").id == "glöckchen-鈴"
    assert named("…/../?").id == "sound"
    long = named("鈴" * 300).id
    assert long == "鈴" * 40 and len(long.encode()) < 200


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give --video; or, for a sound from text, --prompt and --seconds"),
        ({"prompt": "x"}, "give --video; or"),
        ({"seconds": 2.0}, "give --video; or"),
        ({"prompt": " ", "seconds": 2.0}, "give --video; or"),
        ({"prompt": "x", "seconds": 2.0, "start": 1.0}, "--start and --end take a part of a --video"),
        ({"prompt": "x", "seconds": 2.0, "end": 1.0}, "give either --seconds 2 or --end 1"),
        ({"start": 2.0, "end": 2.0}, "--end 2 must be later than --start, which is 2"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(FlowleyError, match=message):
        text_input(Choices(**values))
