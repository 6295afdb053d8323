"""Clip tables: reading, writing and errors."""

import dataclasses
import os
import unicodedata

import pytest

from flowley_jax.data.clip_table import TableClip, read_clip_table, write_clip_table
from flowley_jax.errors import FlowleyError

HEADER = "id\tvideo_path\ttext_description\tsplit\tlabel\n"


def _table(folder, text):
    path = folder / "clips.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_are_read_in_order_with_paths_relative_to_the_table(tmp_path):
    path = _table(tmp_path, HEADER + 'b\ttrain/x.mp4\ta "red" ball\ttrain\tball\na\t/data/y.mp4\t\ttest\t\n')
    first, second = read_clip_table(path)
    assert first == TableClip(
        id="b",
        video_path=tmp_path / "train/x.mp4",
        source=str(tmp_path / "train/x.mp4"),
        caption='a "red" ball',
        split="train",
        label="ball",
    )
    assert (second.id, str(second.video_path), second.caption) == ("a", "/data/y.mp4", "")


def test_missing_id_is_the_stem_of_the_file(tmp_path):
    path = _table(tmp_path, "video_path\ttext_description\tsplit\tlabel\nsub/x_1.mp4\tc\tvalid\tl\n")
    assert read_clip_table(path)[0].id == "x_1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the clip table is empty; expected video_path"),
        (HEADER, "no rows"),
        ("id\tvideo_path\tsplit\tlabel\n", "no column text_description"),
        (HEADER + "a\tx.mp4\tc\tholdout\tl\n", "line 2: split 'holdout' must be one of train, valid, test"),
        (HEADER + "a\t\tc\ttrain\tl\n", "line 2: empty video_path"),
        (HEADER + "a\tx.mp4\tc\ttrain\n", "line 2: has 4 fields; the header has 5"),
        (HEADER + "a\tx.mp4\tc\ttrain\tl\tmore\n", "line 2: has 6 fields; the header has 5"),
        (HEADER + "../a\tx.mp4\tc\ttrain\tl\n", "line 2: id '../a' must be usable as a file name"),
        (HEADER + ".a\tx.mp4\tc\ttrain\tl\n", "line 2: id '.a' must be usable as a file name"),
        (HEADER + "a\tx.mp4\tc\ttrain\tl\na\ty.mp4\tc\ttest\tl\n", "'a' occurs twice"),
        (HEADER + "a\0\tx.mp4\tc\ttrain\tl\n", r"line 2: id 'a\\x00' must be usable as a file name"),
        (HEADER + "a\tx\0.mp4\tc\ttrain\tl\n", r"line 2: video_path 'x\\x00.mp4' must be usable"),
        (
            HEADER + "\u00e9\tx.mp4\tc\ttrain\tl\ne\u0301\ty.mp4\tc\ttest\tl\n",
            r"line 3: id 'e\\u0301' is '\\xe9' in another Unicode form; ids must be unique",
        ),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
            "is not a clip table; it is a Git LFS pointer",
        ),
    ],
)
def test_invalid_tables_are_named_in_the_error(tmp_path, text, message):
    with pytest.raises(FlowleyError, match=message) as caught:
        read_clip_table(_table(tmp_path, text))
    assert "clips.tsv" in str(caught.value)


def test_missing_table_is_named_in_the_error(tmp_path):
    with pytest.raises(FlowleyError, match=r"none\.tsv: no such clip table"):
        read_clip_table(tmp_path / "none.tsv")


def test_byte_order_mark_is_not_part_of_a_column(tmp_path):
    path = tmp_path / "clips.tsv"
    path.write_text(HEADER + "a\tx.mp4\tc\ttrain\tl\n", encoding="utf-8-sig")
    assert [clip.id for clip in read_clip_table(path)] == ["a"]


def test_folder_instead_of_a_table_suggests_how_to_make_one(tmp_path):
    with pytest.raises(FlowleyError, match=r"is a folder, not a clip table; python -m data_prep\.folder"):
        read_clip_table(tmp_path)


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_files_are_found_by_names_in_another_unicode_form(tmp_path, written, stored):
    name = "Cão é/이름 が.mp4"
    file = tmp_path / unicodedata.normalize(stored, name)
    file.parent.mkdir()
    file.write_bytes(b"x")
    path = _table(tmp_path, HEADER + f"a\t{unicodedata.normalize(written, name)}\tc\ttrain\tl\n")
    (clip,) = read_clip_table(path)
    assert clip.video_path.exists() and clip.source == str(clip.video_path)
    missing = _table(tmp_path, HEADER + "a\té/nothing.mp4\tc\ttrain\tl\n")
    assert read_clip_table(missing)[0].video_path == tmp_path / "é/nothing.mp4"


def test_every_folder_is_listed_once_for_names_in_another_form(tmp_path, monkeypatch):
    listed = []
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or [])
    # Names that are too long for the disk are missing too.
    names = [f"é{index}.mp4" for index in range(99)] + ["é" * 300]
    text = HEADER + "".join(f"{index}\t{name}\tc\ttrain\tl\n" for index, name in enumerate(names))
    assert len(read_clip_table(_table(tmp_path, text))) == 100
    assert listed == [tmp_path]


def test_a_film_instead_of_a_table_is_not_read(tmp_path):
    with open(tmp_path / "a.mp4", "wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(FlowleyError, match=r"a.mp4: is not a clip table; it has 3.0 GiB"):
        read_clip_table(tmp_path / "a.mp4")


def test_utf_16_and_repeated_columns_are_refused(tmp_path):
    """Some spreadsheets write UTF-16."""
    path = _table(tmp_path, "")
    path.write_text(HEADER + "a\tx.mp4\tc\ttrain\tl\n", encoding="utf-16")
    with pytest.raises(FlowleyError, match=r"clips.tsv: is text in UTF-16; save it as UTF-8"):
        read_clip_table(path)
    with pytest.raises(FlowleyError, match=r"clips.tsv: has two columns video_path"):
        read_clip_table(_table(tmp_path, "video_path\t" + HEADER + "y.mp4\ta\tx.mp4\tc\ttrain\tl\n"))


def test_a_pipe_is_not_read_as_a_table(tmp_path):
    os.mkfifo(tmp_path / "clips.tsv")
    with pytest.raises(FlowleyError, match=r"clips.tsv: is a pipe or a device, not a clip table"):
        read_clip_table(tmp_path / "clips.tsv")


def test_captions_that_are_not_text_are_refused(tmp_path):
    (clip,) = read_clip_table(_table(tmp_path, HEADER + "a\tx.mp4\tc\ttrain\tl\n"))
    clip = dataclasses.replace(clip, caption="half \ud83d")
    with pytest.raises(FlowleyError, match=r"the row of 'a' contains '\\ud83d', which is not a character"):
        write_clip_table(tmp_path / "copy.tsv", [clip])


def test_written_table_is_read_back_with_relative_paths(tmp_path):
    path = _table(tmp_path, HEADER + 'b\ttrain/x.mp4\ta "red" ball\ttrain\tball\na\t/data/y.mp4\t\ttest\t\n')
    clips = read_clip_table(path)
    write_clip_table(tmp_path / "copy.tsv", clips)
    assert (tmp_path / "copy.tsv").read_text() == path.read_text()
    with pytest.raises(FlowleyError, match=r"none\.tsv: not written, because there are no clips"):
        write_clip_table(tmp_path / "none.tsv", [])
    named = dataclasses.replace(clips[0], video_path=tmp_path / "a\tb.mp4")
    with pytest.raises(FlowleyError, match="rename the file"):
        write_clip_table(tmp_path / "copy.tsv", [named])
