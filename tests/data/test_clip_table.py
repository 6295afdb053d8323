"""Clip tables: reading, writing and errors."""

import dataclasses

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
