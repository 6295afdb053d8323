"""JSON Lines files: rows come back, and a line cut by a crash costs that row only."""

import pytest

from flowley_jax.common.durations import format_duration
from flowley_jax.common.jsonl import append_json, read_jsonl
from flowley_jax.errors import FlowleyError

# U+2028 separates lines for str.splitlines, and not in JSON Lines.
ROWS = [{"id": "größe"}, {"id": "b\u2028c", "settings": {"steps": 3}}, {"id": "d\n"}]


@pytest.fixture
def path(tmp_path):
    for row in ROWS:
        append_json(tmp_path / "rows.jsonl", row)
    return tmp_path / "rows.jsonl"


def test_rows_are_read_in_the_order_of_writing(path):
    assert read_jsonl(path) == ROWS
    assert path.read_bytes().count(b"\n") == len(ROWS)


def test_a_missing_file_has_no_rows(tmp_path):
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_a_last_line_cut_at_any_byte_is_dropped_and_replaced(path):
    content = path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    for end in range(start + 1, len(content) - 1):
        path.write_bytes(content[:end])
        assert read_jsonl(path) == ROWS[:2]
        append_json(path, {"id": "e"})
        assert read_jsonl(path) == [*ROWS[:2], {"id": "e"}]
        assert path.read_bytes() == content[:start] + b'{"id": "e"}\n'


def test_a_first_line_cut_short_is_replaced(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes('{"id": "ö'.encode()[:-1])
    assert read_jsonl(tmp_path / "rows.jsonl") == []
    append_json(tmp_path / "rows.jsonl", {"id": "a"})
    assert (tmp_path / "rows.jsonl").read_bytes() == b'{"id": "a"}\n'


def test_a_whole_last_line_without_newline_is_kept(path):
    path.write_bytes(path.read_bytes()[:-1])
    assert read_jsonl(path) == ROWS
    append_json(path, {"id": "e"})
    assert read_jsonl(path) == [*ROWS, {"id": "e"}]


def test_a_damaged_line_in_the_middle_costs_its_row_only(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "a"}\n{"id"\n\n3\n{"id": "b"}\n')
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"id": "a"}, {"id": "b"}]


def test_errors_of_the_disk_name_the_file(tmp_path):
    with pytest.raises(FlowleyError, match=r"rows\.jsonl: cannot be written \(No such file or directory\)"):
        append_json(tmp_path / "none" / "rows.jsonl", {})
    with pytest.raises(FlowleyError, match=r"cannot be read \(Is a directory\)"):
        read_jsonl(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (36_061, "10:01:01")]
)
def test_durations_are_written_in_hours_minutes_and_seconds(seconds, text):
    assert format_duration(seconds) == text
