"""Atomic writes, when the block or the disk fails."""

import errno
import os
import time

import pytest

from flowley_jax.common.files import append_line, atomic_write, partial_name, remove_partials, write_text
from flowley_jax.errors import FlowleyError


def test_atomic_write_replaces_the_older_file_when_the_block_is_done(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("older")
    with atomic_write(path) as partial:
        partial.write_text("newer")
        assert path.read_text() == "older" and partial.suffix == ".txt"
    assert path.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("wrong"), FlowleyError("bad")])
def test_atomic_write_keeps_the_older_file_when_the_block_fails(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("older")
    with pytest.raises(type(error)) as caught, atomic_write(path) as partial:
        partial.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


def test_errors_of_the_disk_name_the_file(tmp_path):
    path = tmp_path / "a.txt"
    with (
        pytest.raises(FlowleyError, match=r"a\.txt: cannot be written \(No space left on device\)"),
        atomic_write(path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(FlowleyError, match=r"a\.txt: cannot be written \(codec\)"),
        atomic_write(path, LookupError),
    ):
        raise LookupError("codec") from None
    with pytest.raises(FlowleyError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        append_line("/dev/full", "x" * 10_000)
    with pytest.raises(FlowleyError, match="cannot be written"):
        append_line(tmp_path / "none" / "a.txt", "x")


def test_an_error_that_names_its_file_is_not_wrapped_again(tmp_path):
    error = FlowleyError("b.txt: bad")
    with pytest.raises(FlowleyError) as caught, atomic_write(tmp_path / "a.txt", ValueError):
        raise error
    assert caught.value is error


def test_only_abandoned_temporary_files_of_this_program_are_removed(tmp_path):
    in_use, abandoned = (tmp_path / partial_name(suffix) for suffix in (".wav", ""))
    foreign = [tmp_path / name for name in (".partial-notes", ".partial-0123456789abcdef0", "a.wav")]
    for path in (in_use, abandoned, *foreign):
        path.write_text("x")
        os.utime(path, (time.time() - 90, time.time() - 90))
    os.utime(abandoned, (1e9, 1e9))
    remove_partials(tmp_path, unchanged_seconds=100)
    assert sorted(tmp_path.iterdir()) == sorted([in_use, *foreign])
    remove_partials(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(foreign)


def test_write_text_creates_the_folder_and_append_line_adds_a_line(tmp_path):
    path = tmp_path / "new" / "ä.txt"
    write_text(path, "größe\n")
    append_line(path, "β")
    assert path.read_text(encoding="utf-8") == "größe\nβ\n"


def test_names_that_are_no_text_are_written_as_their_bytes(tmp_path):
    write_text(tmp_path / "a.txt", os.fsdecode(b"x \xff"))
    assert (tmp_path / "a.txt").read_bytes() == b"x \xff"
