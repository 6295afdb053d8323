"""Reading clip tables in four formats, their faults, and finding their files."""

import json

import pytest

from data_prep.clip_files import ClipFiles
from data_prep.table_formats import TableFormat, read_table
from flowley_jax.data.clip_table import TableFault
from flowley_jax.errors import FlowleyError

HEADER = "id\tvideo_path\ttext_description\tsplit\tlabel\n"


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _find(table, root=None):
    files = ClipFiles(table.path.parent, root)
    return [files.find(row) for row in table.rows]


def test_a_flowley_table_is_recognised(tmp_path):
    text = '\ufeffvideo_path\ttext_description\tsplit\tlabel\r\na/b.mp4\ta "ball" falls\ttrain\tball\r\n'
    table = read_table(_write(tmp_path / "t.tsv", text))
    assert table.format is TableFormat.FLOWLEY and not table.faults
    (row,) = table.checked_rows()
    assert (row.line, row.id, row.path, row.split, row.label) == (2, "b", "a/b.mp4", "train", "ball")
    assert row.caption == 'a "ball" falls'


@pytest.mark.parametrize(
    ("name", "header", "split"),
    [
        ("vgg3-train.tsv", "id\tlabel", "train"),
        ("vgg3-val.tsv", "label\tid", "valid"),
        ("audiocaps-test.tsv", "id\tcaption", "test"),
    ],
)
def test_the_split_of_an_mmaudio_table_is_in_its_file_name(tmp_path, name, header, split):
    cells = {"id": "abc_000010", "label": "dog barking", "caption": "dog barking"}
    line = "\t".join(cells[column] for column in header.split("\t"))
    table = read_table(_write(tmp_path / name, f"{header}\n{line}\n"))
    assert table.format is TableFormat.MMAUDIO
    (row,) = table.checked_rows()
    assert (row.id, row.caption, row.split) == ("abc_000010", "dog barking", split)


def test_the_vggsound_csv_is_recognised(tmp_path):
    text = '---g-f_I2yQ,1,people marching,test\n-abc,30,"eating, chewing",train\n'
    table = read_table(_write(tmp_path / "v.csv", text))
    assert table.format is TableFormat.VGGSOUND
    rows = table.checked_rows()
    assert [(row.line, row.id, row.label, row.split) for row in rows] == [
        (1, "---g-f_I2yQ_000001", "people marching", "test"),
        (2, "-abc_000030", "eating, chewing", "train"),
    ]
    assert rows[1].caption == "eating, chewing"


def test_moviegen_prompts_are_recognised(tmp_path):
    line = json.dumps({"id": 0, "video_prompt": "a lake", "audio_prompt": "lapping waves"})
    table = read_table(_write(tmp_path / "p.jsonl", line + "\n\n"))
    assert table.format is TableFormat.MOVIEGEN
    (row,) = table.checked_rows()
    assert (row.id, row.caption, row.split, row.label) == ("0", "lapping waves", "test", "")


@pytest.mark.parametrize(
    ("name", "text", "faults"),
    [
        (
            "t.tsv",
            HEADER + "a\ta.mp4\tx\ttrain\n\tb.mp4\tx\tval\tx\n.c\tc.mp4\tx\ttest\tx\nd\t\tx\ttest\tx\n",
            [
                (2, "has 4 fields; the header has 5"),
                (3, "split 'val' must be one of train, valid, test"),
                (4, "id '.c' must be usable as a file name"),
                (5, "empty video_path"),
            ],
        ),
        (
            "t.tsv",
            "video_path\tsplit\na.mp4\ttrain\n",
            [(1, "the header has no columns text_description, label")],
        ),
        ("t.tsv", HEADER.encode() + b"a\ta.mp4\t\xff\ttrain\tx\n", [(2, "is not UTF-8 text")]),
        ("mine.tsv", "id\tlabel\na\tx\n", [(1, "the file's name has none of train, val, test")]),
        ("train_val.tsv", "id\tlabel\na\tx\n", [(1, "the file's name has more than one")]),
        (
            "v.csv",
            'abc,1,x,train\nabc,2,x\nabc,now,x,train\nabc,3,x,val\n"abc,3,x,train\n',
            [
                (2, "has 3 fields; expected YouTube id, start, label, split"),
                (3, "start 'now' must be a whole number"),
                (4, "split 'val' must be one of train, test"),
                (5, "has 1 fields"),
            ],
        ),
        (
            "p.jsonl",
            '{"id": 0, "audio_prompt": "x"}\n{"id": 1}\n{\n{"id": 2, "audio_prompt": 3}\n',
            [(2, "must be an object with id and audio_prompt"), (3, "is not JSON"), (4, "id must be")],
        ),
    ],
)
def test_bad_lines_are_reported_with_their_numbers(tmp_path, name, text, faults):
    table = read_table(_write(tmp_path / name, text))
    assert [fault.line for fault in table.faults] == [line for line, _ in faults]
    for fault, (_, detail) in zip(table.faults, faults, strict=True):
        assert isinstance(fault, TableFault) and detail in fault.detail
    line, detail = faults[0]
    with pytest.raises(FlowleyError, match=rf"{name}, line {line}: "):
        table.checked_rows()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the clip table is empty"),
        (
            "path\tcaption\n",
            r"its first line is 'path\\tcaption'; expected a TSV with the columns video_path",
        ),
    ],
)
def test_unknown_tables_are_refused(tmp_path, text, message):
    with pytest.raises(FlowleyError, match=message):
        read_table(_write(tmp_path / "t.tsv", text))


def test_a_format_can_be_named(tmp_path):
    path = _write(tmp_path / "v.csv", "abc,1,x\n")
    assert read_table(path, "vggsound").faults
    with pytest.raises(FlowleyError, match="no column video_path in its first line 'abc,1,x'"):
        read_table(path, "flowley")
    with pytest.raises(FlowleyError, match="kind='other' must be one of flowley, mmaudio"):
        read_table(path, "other")
    with pytest.raises(FlowleyError, match="no such clip table"):
        read_table(tmp_path / "none.tsv")


def test_files_are_found_next_to_the_table_and_below_root(tmp_path):
    root = tmp_path / "root"
    files = [
        tmp_path / "tables/a.mp4",
        root / "b.mp4",
        root / "videos/train/c.mp4",
        root / "train/c.mp4",
        tmp_path / "elsewhere/d.mp4",
        root / "e.mp4",
    ]
    for file in files:
        _write(file, "x")
    names = [
        "a.mp4",
        "b.mp4",
        "/home/other/videos/train/c.mp4",
        str(files[4]),
        r"D:\data\e.mp4",
        "none.mp4",
        "gs://bucket/f.mp4",
    ]
    rows = "".join(f"{i}\t{name}\tx\ttrain\tx\n" for i, name in enumerate(names))
    table = read_table(_write(tmp_path / "tables/t.tsv", HEADER + rows))
    expected = [str(files[i]) for i in (0, 1, 2, 4, 5)]
    assert _find(table, root) == [*expected, None, "gs://bucket/f.mp4"]
    assert _find(table) == [expected[0], None, None, expected[3], None, None, "gs://bucket/f.mp4"]


def test_files_of_tables_without_paths_are_found_by_id(tmp_path):
    root = tmp_path / "root"
    names = ("0.mkv", "1.webm", "video_with_audio/2.mp4", "0.txt")
    for name in names:
        _write(root / name, "x")
    _write(tmp_path / "3.mp4", "x")
    lines = "".join(json.dumps({"id": i, "audio_prompt": "x"}) + "\n" for i in range(5))
    table = read_table(_write(tmp_path / "p.jsonl", lines))
    assert _find(table, root) == [*(str(root / name) for name in names[:3]), str(tmp_path / "3.mp4"), None]


def test_every_folder_is_listed_once(tmp_path, monkeypatch):
    import data_prep.clip_files as clip_files

    listed = []
    scandir = clip_files.os.scandir
    monkeypatch.setattr(clip_files.os, "scandir", lambda path: listed.append(path) or scandir(path))
    rows = "".join(f"{i}\tv/{i}.mp4\tx\ttrain\tx\n" for i in range(99))
    _write(tmp_path / "v/7.mp4", "x")
    found = _find(read_table(_write(tmp_path / "t.tsv", HEADER + rows)), tmp_path / "root")
    assert sum(path is not None for path in found) == 1
    assert len(listed) == len(set(listed)) == 4
