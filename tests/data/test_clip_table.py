"""Reading of clip tables."""

import pytest

from flowley_jax.data.clip_table import Clip, read_clip_table
from flowley_jax.errors import FlowleyError

HEADER = "id\tvideo_path\ttext_description\tsplit\tlabel\n"


def _table(folder, text):
    path = folder / "clips.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_are_read_in_order_with_paths_beside_the_table(tmp_path):
    path = _table(tmp_path, HEADER + 'b\ttrain/x.mp4\ta "red" ball\ttrain\tball\na\t/data/y.mp4\t\ttest\t\n')
    first, second = read_clip_table(path)
    assert first == Clip(
        id="b",
        video_path=tmp_path / "train/x.mp4",
        source=str(tmp_path / "train/x.mp4"),
        caption='a "red" ball',
        split="train",
        label="ball",
    )
    assert (second.id, str(second.video_path), second.caption) == ("a", "/data/y.mp4", "")


def test_a_missing_id_is_the_name_of_the_file(tmp_path):
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
        (HEADER + "a\tx.mp4\tc\ttrain\n", "line 2: has not as many fields as the header"),
        (HEADER + "a\tx.mp4\tc\ttrain\tl\tmore\n", "line 2: has not as many fields as the header"),
        (HEADER + "../a\tx.mp4\tc\ttrain\tl\n", "line 2: id '../a' must do as the name of a file"),
        (HEADER + ".a\tx.mp4\tc\ttrain\tl\n", "line 2: id '.a' must do as the name of a file"),
        (HEADER + "a\tx.mp4\tc\ttrain\tl\na\ty.mp4\tc\ttest\tl\n", "'a' occurs twice"),
    ],
)
def test_bad_tables_are_refused_by_name(tmp_path, text, message):
    with pytest.raises(FlowleyError, match=message) as caught:
        read_clip_table(_table(tmp_path, text))
    assert "clips.tsv" in str(caught.value)


def test_missing_table(tmp_path):
    with pytest.raises(FlowleyError, match=r"none\.tsv: no such clip table"):
        read_clip_table(tmp_path / "none.tsv")


def test_a_spreadsheet_s_byte_order_mark_is_no_part_of_a_column(tmp_path):
    path = tmp_path / "clips.tsv"
    path.write_text(HEADER + "a\tx.mp4\tc\ttrain\tl\n", encoding="utf-8-sig")
    assert [clip.id for clip in read_clip_table(path)] == ["a"]
