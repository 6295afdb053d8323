"""Which clips a path means."""

import pytest

from flowley_jax.errors import FlowleyError
from flowley_jax.sampling.clips import find_sources

HEADER = "id\tvideo_path\ttext_description\tsplit\tlabel\n"


def _sources(video, prompt=None, split=None):
    return [
        (source.id, source.path.name, source.prompt)
        for source in find_sources(video, prompt=prompt, split=split)
    ]


def test_a_file(tmp_path):
    (tmp_path / "a.b.mp4").touch()
    assert _sources(tmp_path / "a.b.mp4") == [("a.b", "a.b.mp4", "")]
    assert _sources(tmp_path / "a.b.mp4", "rain") == [("a.b", "a.b.mp4", "rain")]


def test_a_folder_in_order_of_names_without_other_files(tmp_path):
    for name in ("b.MP4", "a.webm", "notes.txt", "c.wav"):
        (tmp_path / name).touch()
    assert _sources(tmp_path, "rain") == [("a", "a.webm", "rain"), ("b", "b.MP4", "rain")]


def test_a_table_with_its_captions_or_one_prompt_for_all(tmp_path):
    table = tmp_path / "clips.tsv"
    table.write_text(
        HEADER + "one\tv/1.mp4\ta bell\ttest\tbell\n" + "two\t/abs/2.mp4\ta dog\ttrain\tdog\n",
        encoding="utf-8",
    )
    assert _sources(table) == [("one", "1.mp4", "a bell"), ("two", "2.mp4", "a dog")]
    assert _sources(table, split="test") == [("one", "1.mp4", "a bell")]
    assert _sources(table, prompt="") == [("one", "1.mp4", ""), ("two", "2.mp4", "")]
    paths = [source.path for source in find_sources(table, prompt=None, split=None)]
    assert [str(path) for path in paths] == [str(tmp_path / "v/1.mp4"), "/abs/2.mp4"]


def test_what_cannot_be_meant(tmp_path):
    def refused(path, message, **options):
        with pytest.raises(FlowleyError, match=message) as caught:
            _sources(path, **options)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    refused(tmp_path / "none.mp4", "no such file or folder")
    refused(tmp_path, "no video in this folder")
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.mkv").touch()
    refused(tmp_path, "several videos are called a")
    table = tmp_path / "clips.tsv"
    table.write_text("")
    refused(table, "empty")
    table.write_text(HEADER)
    refused(table, "no rows")
    table.write_text("video_path\tcaption\nx.mp4\tx\n")
    refused(table, "text_description")
    table.write_text(HEADER + "one\t1.mp4\ta bell\ttest\tbell\n")
    refused(table, "no row of the split 'valid'", split="valid")
