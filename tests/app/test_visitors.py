"""Requests and files of the page's visitors; Gradio is not needed."""

import hashlib

import pytest

from flowley_jax.app.visitors import Visitors


@pytest.fixture
def files(tmp_path):
    """Return the folder of Gradio's files, with an example in it."""
    folder = tmp_path / "files"
    _stored(folder, "example.mp4")
    return folder


def _stored(files, name):
    """Store a file as Gradio stores uploads."""
    path = files / hashlib.sha256(name.encode()).hexdigest() / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"video")
    return path


@pytest.fixture
def visitors(files):
    visitors = Visitors(files)
    visitors.keep_present_files()
    return visitors


def test_files_of_a_visitor_go_with_the_visitor(visitors, files):
    upload = _stored(files, "a.mp4")
    folders = [visitors.new_folder(session, upload) for session in ("a", "b")]
    visitors.remove("a")
    # The other visitor uploaded the same file.
    assert upload.exists() and [folder.exists() for folder in folders] == [False, True]
    visitors.remove("b")
    assert not upload.exists() and not folders[1].exists()


def test_only_stored_uploads_are_removed(visitors, files, tmp_path):
    example = next(files.rglob("example.mp4"))
    other, outside = files / "made_by_the_page" / "a.mp4", tmp_path / "mine.mp4"
    for path in (other, outside):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"of someone else")
    link = _stored(files, "link.mp4")
    link.unlink()
    link.symlink_to(outside)
    before = sorted(tmp_path.rglob("*"))
    made_up = (files, files.parent, example, other, outside, link, files / ".." / "mine.mp4", example.parent)
    for path in made_up:
        visitors.new_folder("a", path)
    visitors.remove("a")
    assert sorted(tmp_path.rglob("*")) == before


def test_only_the_newest_request_of_a_visitor_counts(visitors):
    first, other = visitors.new_ticket("a"), visitors.new_ticket("b")
    second = visitors.new_ticket("a")
    assert visitors.is_cancelled("a", first) and not visitors.is_cancelled("a", second)
    for end in (visitors.cancel, visitors.remove):
        ticket = visitors.new_ticket("a")
        end("a")
        assert visitors.is_cancelled("a", ticket)
    assert not visitors.is_cancelled("b", other)
