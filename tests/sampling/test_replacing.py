"""Files in the output folder: which may be replaced, and what interrupted, killed and parallel runs leave."""

import dataclasses
import hashlib
import json
import logging
import os
import time
import unicodedata

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tone_sampler import ToneSampler

from flowley_jax.common.files import is_partial, partial_name
from flowley_jax.common.locks import LOCK_FILE
from flowley_jax.config import SampleConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.media.write import write_video
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.made_files import staged
from flowley_jax.sampling.outputs import write_sounds


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(path, np.zeros((4, 16, 16, 3), np.uint8), 10.0)
    return path


@pytest.fixture
def clips(video):
    return [InputClip(id=name, path=video, prompt="a ball") for name in "abc"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def _content(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in (LOCK_FILE, "samples.jsonl")
    }


def _write(clips, out, *, guidance=1.0, broken=(), **options):
    sampler = ToneSampler(SampleConfig(guidance=guidance), dict(broken))
    return write_sounds(sampler, clips, out, **{"suffix": ".wav", **options})


def test_a_file_put_there_after_an_interrupted_run_is_kept(clips, out):
    _write(clips[:1], out)
    with pytest.raises(KeyboardInterrupt):
        _write(clips, out, broken={"b": KeyboardInterrupt()})
    assert _content(out).keys() == {"a.wav"}
    (out / "c.wav").write_bytes(b"mine")
    for _ in range(2):
        results = _write(clips, out)
        assert results.written.keys() == {"a", "b"} and (out / "c.wav").read_bytes() == b"mine"
        assert "c.wav: already exists and was not written by this program" in results.failed[0]


def test_a_file_that_appears_during_the_sampling_is_kept(clips, out, monkeypatch):
    sample = ToneSampler.sample

    def slow(self, *arguments, **options):
        (out / "b.wav").write_bytes(b"mine")
        return sample(self, *arguments, **options)

    monkeypatch.setattr(ToneSampler, "sample", slow)
    results = _write(clips, out)
    assert results.written.keys() == {"a", "c"} and "b.wav: already exists" in results.failed[0]
    assert (out / "b.wav").read_bytes() == b"mine"


def test_a_sound_that_was_edited_is_kept(clips, out):
    _write(clips, out)
    (out / "b.wav").write_bytes(b"edited")
    results = _write(clips, out, guidance=2.0)
    assert results.written.keys() == {"a", "c"}
    assert results.failed == [
        f"{out / 'b.wav'}: was changed after this program wrote it; remove it or change --out"
    ]
    assert (out / "b.wav").read_bytes() == b"edited"


def test_an_output_that_is_the_input_of_another_row_is_refused(clips, out, video):
    _write(clips[:1], out)
    (out / "a.wav").unlink()
    (out / "a.mp4").write_bytes(video.read_bytes())
    rows = [clips[0], dataclasses.replace(clips[1], path=out / "a.mp4")]
    for _ in range(2):
        results = _write(rows, out, suffix=".mp4")
        assert results.written.keys() == {"b"}
        assert f"the output {out / 'a.mp4'} would replace an input video" in results.failed[0]
        assert (out / "a.mp4").read_bytes() == video.read_bytes()


def test_clips_whose_sounds_would_have_one_name_fail_and_the_others_are_sampled(out, video):
    def clip(name):
        return InputClip(id=name, path=video.with_name(f"{name}.mp4"), prompt="")

    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    for name in ["a", "b", "a_0", composed, decomposed]:
        clip(name).path.write_bytes(video.read_bytes())
    twins = [clip("b"), dataclasses.replace(clip("b"), path=clip("a").path), clip("a")]
    results = _write(twins, out)
    assert results.written.keys() == {"a"} and len(results.failed) == 2
    assert all("b.wav would replace that of" in line for line in results.failed)
    results = _write([clip(composed), clip(decomposed), clip("b")], out)
    assert results.written.keys() == {"b"} and len(results.failed) == 2
    assert all("differ only in their Unicode form" in line for line in results.failed)
    # Sounds a_0 and a_1 of one clip, and a_0_0 and a_0_1 of the other.
    results = _write([clip("a"), clip("a_0")], out / "two", num_samples=2)
    assert results.failed == [] and len(_content(out / "two")) == 4


def test_a_sample_does_not_replace_the_sound_of_another_clip(clips, out):
    other = dataclasses.replace(clips[0], id="a_0")
    _write([other], out)
    before = _content(out)
    results = _write(clips[:1], out, num_samples=2)
    assert results.failed == [
        f"{out / 'a_0.wav'}: is the sound of another clip, a_0; rename a clip or change --out"
        for _ in results.failed
    ]
    assert results.written == {} and _content(out) == before


@pytest.mark.parametrize("clip_id", ["x" * 252, "é" * 150, "x" * 300])
def test_a_clip_whose_name_is_too_long_fails_alone(clips, out, clip_id):
    long = dataclasses.replace(clips[0], id=clip_id)
    results = _write([long, *clips[1:]], out)
    assert results.written.keys() == {"b", "c"}
    assert "at most 255 are possible" in results.failed[0]


def test_the_longest_name_is_written(clips, out):
    long = dataclasses.replace(clips[0], id="x" * 251)
    assert _write([long], out).failed == [] and _content(out).keys() == {"x" * 251 + ".wav"}


def test_a_video_with_an_unusable_path_fails_alone(clips, out, video):
    paths = [video.with_name("y" * 300 + ".mp4"), video.with_name("\udcff.mp4"), video.parent]
    bad = [InputClip(id=f"{n}", path=path, prompt="") for n, path in enumerate(paths)]
    results = _write([*bad, *clips], out)
    assert results.written.keys() == {"a", "b", "c"} and len(results.failed) == 3
    for line in results.failed:
        line.encode()


@pytest.mark.parametrize(
    "error", [FlowleyError("did not reach t = 1"), MemoryError(), OSError(5, "Input/output error")]
)
def test_an_error_while_sampling_fails_only_its_clip(clips, out, error, caplog):
    caplog.set_level(logging.INFO)
    results = _write(clips, out, broken={"b": error})
    assert results.written.keys() == {"a", "c"}
    (line,) = results.failed
    assert line.startswith(f"{clips[1].path}: ") and "\n" not in line
    # Lines are logged at once, because the end of a long run may never be reached.
    assert f"failed: {line}" in caplog.messages


def test_a_fault_of_the_program_is_not_taken_for_one_of_a_clip(clips, out):
    with pytest.raises(TypeError, match="a bug"):
        _write(clips, out, broken={"b": TypeError("a bug")})


def test_a_picture_that_does_not_fit_is_refused_before_the_sampling(clips, out, tmp_path):
    webm = dataclasses.replace(clips[1], path=tmp_path / "b.webm")
    with av.open(str(webm.path), "w") as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")] * 4
        container.mux([packet for frame in [*frames, None] for packet in stream.encode(frame)])
    # Whatever is sampled fails with this.
    never = {"b": AssertionError("sampled")}
    for path, hint in ((out, " (such as --kind mkv)"), (tmp_path / "b.MP4", "")):
        results = _write([webm], path, suffix=".mp4", broken=never)
        assert results.written == {}
        assert results.failed[0].endswith(f"cannot hold {webm.path}'s vp8 video; .mkv can{hint}")
    assert _write([clips[0], webm], out, suffix=".mkv").failed == []


def test_a_file_is_replaced_only_if_that_is_allowed(clips, tmp_path):
    path = tmp_path / "a.WAV"
    path.write_bytes(b"mine")
    with pytest.raises(FlowleyError, match=r"a\.WAV: already exists.*--overwrite"):
        _write(clips[:1], path)
    assert path.read_bytes() == b"mine"
    assert _write(clips[:1], path, overwrite=True).written == {"a": [path]}
    assert path.read_bytes().startswith(b"RIFF")
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_files_of_killed_runs_are_removed(clips, out):
    out.mkdir()
    (out / partial_name(".mp4")).write_bytes(b"half")
    (out / ".mine.mp4").write_bytes(b"mine")
    _write(clips, out)
    assert _content(out).keys() == {"a.wav", "b.wav", "c.wav", ".mine.mp4"}


def test_temporary_files_beside_a_single_file_are_removed_after_a_day(clips, tmp_path):
    in_use, abandoned = tmp_path / partial_name(".wav"), tmp_path / partial_name(".wav")
    for path in (in_use, abandoned):
        path.write_bytes(b"half")
    os.utime(abandoned, (time.time() - 90_000, time.time() - 90_000))
    _write(clips[:1], tmp_path / "a.wav")
    assert _content(tmp_path).keys() == {"a.wav", in_use.name}


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path):
    path, seen = tmp_path / "a.WAV", []
    with staged([path], lambda made: seen.append((dict(made), path.exists()))) as (partial,):
        partial.write_bytes(b"new")
        # A process that is killed here leaves only a file that the next run removes.
        assert [left.name for left in tmp_path.iterdir()] == [partial.name] and is_partial(partial.name)
    assert seen == [({path: hashlib.sha256(b"new").hexdigest()}, False)]
    assert list(tmp_path.iterdir()) == [path]


def test_files_of_a_clip_get_their_names_together(clips, out, monkeypatch):
    _write(clips[:1], out, num_samples=2)
    before = _content(out)

    def failing(path, *arguments):
        if failing.calls:
            raise FlowleyError(f"{path}: cannot be written (No space left on device)")
        failing.calls += 1
        path.write_bytes(b"new")

    failing.calls = 0
    monkeypatch.setattr("flowley_jax.sampling.outputs.write_audio", failing)
    results = _write(clips[:1], out, num_samples=2, seed=1)
    assert results.failed == [f"{out / 'a_1.wav'}: cannot be written (No space left on device)"]
    assert _content(out) == before


@pytest.mark.parametrize(
    "row",
    [
        {"id": 3},
        {"id": "a"},
        {"id": "a", "settings": 3},
        {"id": "a", "settings": {}, "files": 7, "seed": [], "video": "x"},
        {"id": ["a"], "settings": {}},
        {"clip": "a", "made": ["a.wav"]},
        {"clip": "a", "made": {"a.wav": 3}},
        {"clip": {}, "made": {"a.wav": "0"}},
        {"made": {}},
        {"files": ["a.wav"]},
    ],
)
def test_rows_of_other_kinds_claim_nothing(clips, out, row):
    out.mkdir()
    (out / "samples.jsonl").write_text(json.dumps(row) + "\n")
    (out / "a.wav").write_bytes(b"mine")
    results = _write(clips, out)
    assert results.written.keys() == {"b", "c"} and (out / "a.wav").read_bytes() == b"mine"


def test_a_half_replaced_clip_is_sampled_again(clips, out, monkeypatch):
    """Settings, other settings interrupted after the first of two files, and the first settings again."""
    options = {"num_samples": 2}
    _write(clips[:1], out, **options)
    expected = _content(out)
    replace, calls = __import__("os").replace, []

    def once(source, target):
        calls.append(target)
        if len(calls) == 4:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", once)
        _write(clips[:1], out, guidance=2.0, **options)
    assert _content(out) != expected
    assert _write(clips[:1], out, **options).failed == []
    assert _content(out) == expected


@pytest.fixture(scope="module")
def finished(video, tmp_path_factory):
    """Return a finished folder: its clips, its files and its log."""
    out = tmp_path_factory.mktemp("finished")
    clips = [InputClip(id=name, path=video, prompt="Glöckchen 鈴") for name in ("ä", "鈴")]
    _write(clips, out)
    return clips, _content(out), (out / "samples.jsonl").read_bytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_log_that_is_cut_anywhere_costs_no_file(finished, tmp_path_factory, data):
    clips, files, content = finished
    cut = data.draw(st.integers(0, len(content)), label="cut")
    out = tmp_path_factory.mktemp("cut")
    for name, file in files.items():
        (out / name).write_bytes(file)
    (out / "samples.jsonl").write_bytes(content[:cut])
    (out / "mine.wav").write_bytes(b"mine")
    known = {name for name in files if json.dumps(name, ensure_ascii=False).encode() in content[:cut]}
    results = _write(clips, out, guidance=2.0)
    after = _content(out)
    assert after["mine.wav"] == b"mine"
    for clip in clips:
        name = f"{clip.id}.wav"
        # A file is new where the log knows it, and the old one, with a line that says so, where it does not.
        assert (after[name] != files[name]) == (clip.id in results.written)
        assert clip.id not in results.written or name in known
    assert len(results.written) + len(results.failed) == len(clips)
    again = _write(clips, out, guidance=2.0)
    assert again.written.keys() == results.written.keys() and _content(out) == after
