"""Whole files, under failures of the block and of the disk."""

import errno
import os

import pytest

from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import append_line, replacing, write_text


def test_a_file_takes_the_place_of_the_older_one_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("older")
    with replacing(path) as partial:
        partial.write_text("newer")
        assert path.read_text() == "older" and partial.suffix == ".txt"
    assert path.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("wrong"), FlowleyError("bad")])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("older")
    with pytest.raises(type(error)) as caught, replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


def test_errors_of_the_disk_name_the_file(tmp_path):
    path = tmp_path / "a.txt"
    with (
        pytest.raises(FlowleyError, match=r"a\.txt: cannot be written \(No space left on device\)"),
        replacing(path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(FlowleyError, match=r"a\.txt: cannot be written \(codec\)"),
        replacing(path, LookupError),
    ):
        raise LookupError("codec") from None
    with pytest.raises(FlowleyError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        append_line("/dev/full", "x" * 10_000)
    with pytest.raises(FlowleyError, match="cannot be written"):
        append_line(tmp_path / "none" / "a.txt", "x")


def test_text_makes_its_folder_and_lines_are_added(tmp_path):
    path = tmp_path / "new" / "ä.txt"
    write_text(path, "größe\n")
    append_line(path, "β")
    assert path.read_text(encoding="utf-8") == "größe\nβ\n"
