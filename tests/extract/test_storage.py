"""Files that are read, wherever they are: memory, temporary copies, and time spent on foreign text."""

import io
import os
import tempfile
import time
from pathlib import Path, PurePosixPath

import pytest

import data_prep.storage
from data_prep import folder
from data_prep.beam_runner import _step_error
from data_prep.caption_files import read_captions
from data_prep.lint.check import LintOptions, lint
from data_prep.storage import local_copy
from data_prep.table_formats import read_table
from data_prep.worker_pool import Worker
from flowley_jax.errors import FlowleyError

HEADER = "id\tvideo_path\ttext_description\tsplit\tlabel\n"


class _RemoteFile(io.BytesIO):
    """A remote file that refuses to be read whole."""

    def read(self, size=-1):
        assert 0 < size <= 16 * 2**20
        return super().read(size)


class _FileSystems:
    def __init__(self, content):
        self._content = content

    def open(self, path):
        if path.endswith("missing.mp4"):
            raise OSError("no such object")
        return _RemoteFile(self._content)


def test_a_remote_file_is_copied_piece_by_piece(monkeypatch):
    content = os.urandom(2**20) * 33
    monkeypatch.setattr(data_prep.storage, "_file_systems", lambda: _FileSystems(content))
    with local_copy("gs://bucket/a.mp4") as copy:
        assert copy.name == "a.mp4" and copy.read_bytes() == content
    assert not copy.parent.exists()
    with (
        pytest.raises(FlowleyError, match=r"gs://bucket/missing.mp4: cannot be copied"),
        local_copy("gs://bucket/missing.mp4"),
    ):
        pass


def _leave_a_copy(report):
    Path(tempfile.mkdtemp(), "copy.mp4").write_bytes(b"x")
    Path(report).write_text(tempfile.gettempdir())
    time.sleep(60.0)


def test_copies_of_a_killed_reader_are_removed(tmp_path):
    rejection = Worker(_leave_a_copy, time_limit=1.0)(str(tmp_path / "report"))
    assert rejection.reason == "timeout"
    temporary = Path((tmp_path / "report").read_text())
    assert temporary != Path(tempfile.gettempdir()) and not temporary.exists()


# Text on which an expression with nested or overlapping repetitions takes quadratic time or longer.
PIECES = (
    "a",
    "_",
    "a_",
    " ",
    "a ",
    ".",
    "-",
    '"',
    "ing",
    "é",
    "1",
    "FlowleyError: ",
    " [while running",
    "\\",
    "\t",
)


@pytest.mark.parametrize("piece", PIECES)
def test_foreign_text_of_any_kind_takes_linear_time(tmp_path, piece):
    text = piece * (200_000 // len(piece)) + "!"
    started = time.monotonic()
    assert folder.id_of(PurePosixPath(f"{text}.mp4"))
    _step_error(RuntimeError(f"FlowleyError: {text}\n{text}\n{text}"))
    cells = " ".join(text.split("\t"))
    table = tmp_path / "clips.tsv"
    table.write_text(HEADER + "".join(f"{i}\t{i}.mp4\t{cells}\ttrain\t{cells}\n" for i in range(12)))
    lint(table, options=LintOptions(fingerprints=False))
    for kind in ("mmaudio", "vggsound", "moviegen"):
        table.write_text(f"id\tlabel\n{text}\tx\n{text},{text},{text},{text}\n{{{text}\n")
        assert read_table(table, kind).faults
    table.write_text(f"id\tcaption\na\t{cells[:100_000]}\n")
    read_captions({"other": table})
    # Linear code takes a fifth of a second here; a quadratic expression takes minutes.
    assert time.monotonic() - started < 20.0
