"""Sounds written to files: names, formats, reuse of earlier files, and clips that cannot be used."""

import dataclasses
import json
import logging
import os
import weakref

import numpy as np
import pytest
import tiny

from flowley_jax.common.locks import LOCK_FILE
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import probe, read_audio
from flowley_jax.media.write import write_video
from flowley_jax.sampling import Sampler, outputs
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.outputs import check_out, write_sounds


@pytest.fixture(scope="module")
def sampler(tiny_run):
    return Sampler.from_run(tiny_run)


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "silent"
    folder.mkdir()
    clips = []
    for index, name in enumerate("abc"):
        frames = np.random.default_rng(index).integers(0, 256, (10 + 2 * index, 32, 32, 3), dtype=np.uint8)
        write_video(folder / f"{name}.mp4", frames, tiny.FPS)
        clips.append(InputClip(id=name, path=folder / f"{name}.mp4", prompt="a ball"))
    return clips


@pytest.fixture
def sampled(monkeypatch):
    """Ids of the clips that are sampled."""
    ids = []
    original = Sampler.sample

    def counted(self, batch, **options):
        ids.extend(track.clip.id for track in batch)
        return original(self, batch, **options)

    monkeypatch.setattr(Sampler, "sample", counted)
    return ids


def _names(folder):
    """Return the names of all files but the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK_FILE)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".wav", ".flac"])
def test_every_format_has_a_sound_as_long_as_the_video(sampler, clips, tmp_path, suffix):
    results = write_sounds(sampler, clips, tmp_path / "out", suffix=suffix)
    assert results.failed == []
    assert _names(tmp_path / "out") == ["a" + suffix, "b" + suffix, "c" + suffix, "samples.jsonl"]
    for clip in clips:
        (path,) = results.written[clip.id]
        info = probe(path)
        assert info.has_audio and (info.width is None) == (suffix in (".wav", ".flac"))
        seconds = probe(clip.path).duration
        wave = read_audio(path, sample_rate=sampler.components.sample_rate)
        assert len(wave) == pytest.approx(seconds * sampler.components.sample_rate, abs=1024 + 1)
        assert np.abs(wave).max() > 1e-4


def test_one_file_gets_its_name_and_several_samples_get_numbers(sampler, clips, tmp_path):
    out = tmp_path / "new" / "sound.wav"
    write_sounds(sampler, clips[:1], out)
    assert _names(out.parent) == ["sound.wav"]
    write_sounds(sampler, clips[:1], out, num_samples=3)
    assert _names(out.parent) == ["sound.wav", "sound_0.wav", "sound_1.wav", "sound_2.wav"]
    waves = [read_audio(out.with_name(f"sound_{n}.wav"), sample_rate=16_000) for n in range(3)]
    assert all(np.abs(waves[n] - waves[n - 1]).max() > 1e-3 for n in range(3))
    np.testing.assert_allclose(waves[0], read_audio(out, sample_rate=16_000), atol=1e-3)


def test_a_prompt_is_encoded_once(sampler, clips, tmp_path, monkeypatch):
    prompts = []
    encoder = type(sampler.components.text_encoder)
    original = encoder.__call__

    def counted(self, captions):
        prompts.extend(captions)
        return original(self, captions)

    monkeypatch.setattr(encoder, "__call__", counted)
    clips = [dataclasses.replace(clip, prompt=f"ball {clip.id}") for clip in clips]
    write_sounds(sampler, clips, tmp_path / "out", num_samples=2)
    assert sorted(prompts) == ["ball a", "ball b", "ball c"]


def test_existing_sounds_are_kept(sampler, clips, tmp_path, sampled):
    out = tmp_path / "out"
    first = write_sounds(sampler, clips, out)
    assert set(sampled) == set("abc")
    sampled.clear()
    assert write_sounds(sampler, clips, out) == first and sampled == []
    (out / "b.mp4").unlink()
    assert write_sounds(sampler, clips, out).written.keys() == set("abc")
    assert set(sampled) == {"b"}


def test_a_sound_is_sampled_again_if_anything_that_it_depends_on_changes(sampler, clips, tmp_path, sampled):
    out, one = tmp_path / "out", clips[:1]

    def samples(sampler=sampler, one=one, **options):
        sampled.clear()
        write_sounds(sampler, one, out, **options)
        return bool(sampled)

    assert samples() and not samples()
    assert samples(seed=1) and not samples(seed=1)
    assert samples(one=[dataclasses.replace(one[0], prompt="a bell")])
    assert samples(_with_guidance(sampler, 4.0))
    assert samples(dataclasses.replace(sampler, origin={**sampler.origin, "step": 99}))
    assert samples() and not samples()
    os.utime(one[0].path, ns=(1, 1))
    assert samples() and not samples()
    assert samples(suffix=".wav") and samples(num_samples=2)


def test_the_log_says_what_is_replaced(sampler, clips, tmp_path, caplog):
    def replaced(*arguments, **options):
        caplog.clear()
        write_sounds(*arguments, tmp_path / "out", **options)
        return [line for line in caplog.messages if line.startswith("replacing")]

    caplog.set_level(logging.INFO)
    assert replaced(sampler, clips) == []
    assert replaced(sampler, clips) == []
    assert replaced(_with_guidance(sampler, 4.0), clips) == [
        f"replacing earlier sounds of 3 clips in {tmp_path / 'out'}, made with guidance 1.5"
    ]
    one = [dataclasses.replace(clips[0], prompt="a bell")]
    assert replaced(_with_guidance(sampler, 4.0), one, seed=2) == [
        f"replacing earlier sounds of 1 clip in {tmp_path / 'out'}, made with seed 0, a different prompt"
    ]


def test_the_log_says_which_clips_have_no_prompt(sampler, clips, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    silent = [dataclasses.replace(clips[0], prompt=" "), *clips[1:]]
    write_sounds(sampler, silent, tmp_path / "out")
    assert "no prompt for 1 of 3 clips: their sound follows the picture only" in caplog.messages


def test_the_log_says_that_the_picture_ends_before_the_file(sampler, tmp_path, caplog):
    frames, sound = np.zeros((24, 64, 64, 3), np.uint8), np.zeros(32_000, np.float32)
    write_video(tmp_path / "a.mp4", frames, 24.0, audio=sound, sample_rate=16_000)
    write_video(tmp_path / "b.mp4", frames, 24.0, audio=sound[:16_000], sample_rate=16_000)
    clips = [InputClip(id=name, path=tmp_path / f"{name}.mp4", prompt="") for name in "ab"]
    with caplog.at_level(logging.INFO):
        write_sounds(sampler, clips, tmp_path / "out", suffix=".wav")
    (line,) = [line for line in caplog.messages if "its picture ends" in line]
    assert line.startswith(f"{tmp_path}/a.mp4: its picture ends at 1.00 s of 2.0")


def test_the_log_says_when_the_network_is_compiled(sampler, clips, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    sampler = dataclasses.replace(sampler)
    for _ in range(2):
        write_sounds(sampler, clips[:1], tmp_path / "out.wav", overwrite=True)
    compilations = [line for line in caplog.messages if line.startswith("compiling")]
    assert compilations == ["compiling for 1 window …"]


@pytest.mark.parametrize("loudness", [None, -16.0])
def test_the_log_names_sounds_far_above_full_scale(sampler, clips, tmp_path, caplog, monkeypatch, loudness):
    def loud(self, log_mels):
        return np.tile([0.0, 1.0], 10_000)[None] * np.array([[1.4], [1.5], [2.0]])[: len(log_mels)]

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(Components, "vocode", loud)
    levelled = dataclasses.replace(sampler, settings=dataclasses.replace(sampler.settings, loudness=loudness))
    write_sounds(levelled, [dataclasses.replace(clips[0], prompt="")], tmp_path / "a.wav", num_samples=3)
    assert "2 of 3 sounds (a_1.wav, a_2.wav) had peaks far above full scale" in caplog.text


def test_files_of_others_are_never_replaced(sampler, clips, tmp_path, sampled):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.mp4").write_bytes(b"not ours")
    for expected in ({"a", "c"}, set()):
        sampled.clear()
        results = write_sounds(sampler, clips, out)
        assert set(sampled) == expected and results.written.keys() == {"a", "c"}
        assert "b.mp4: already exists and was not written by this program" in results.failed[0]
        assert (out / "b.mp4").read_bytes() == b"not ours"


def test_files_of_a_killed_run_are_replaced(sampler, clips, tmp_path, monkeypatch):
    def killed(self, request, scores):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("flowley_jax.sampling.sample_log.SampleLog.add", killed)
        write_sounds(sampler, clips, tmp_path / "out")
    assert len(_names(tmp_path / "out")) == 2
    results = write_sounds(sampler, clips, tmp_path / "out")
    assert results.written.keys() == set("abc") and results.failed == []


def test_a_sample_log_cut_by_a_crash_loses_only_its_last_row(sampler, clips, tmp_path, sampled):
    out = tmp_path / "out"
    write_sounds(sampler, clips, out)
    sample_log = out / "samples.jsonl"
    lines = sample_log.read_text().splitlines()
    ids = [json.loads(line).get("id") for line in lines]
    assert ids[::2] == [None] * 3 and sorted(ids[1::2]) == ["a", "b", "c"]
    sample_log.write_text("\n".join(lines[:5]) + "\n" + lines[5][:20])
    sampled.clear()
    write_sounds(sampler, clips, out)
    assert set(sampled) == {ids[5]}
    sampled.clear()
    write_sounds(sampler, clips, out)
    assert sampled == []


def test_bad_clips_are_listed_and_the_others_are_sampled(sampler, clips, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    bad = [
        InputClip(id="text", path=tmp_path / "text.mp4", prompt=""),
        InputClip(id="none", path=tmp_path / "none.mp4", prompt=""),
        dataclasses.replace(clips[0], id="long", prompt="word " * 99),
    ]
    results = write_sounds(sampler, [bad[0], *clips, *bad[1:]], tmp_path / "out")
    assert results.written.keys() == set("abc")
    text, none, long = results.failed
    assert text.startswith(f"{bad[0].path}: ") and none.startswith(f"{bad[1].path}: ")
    assert "has 100 tokens" in long


def test_a_pipe_fails_alone_and_is_not_waited_for(sampler, clips, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    pipe = InputClip(id="pipe", path=tmp_path / "pipe.mp4", prompt="")
    results = write_sounds(sampler, [pipe, clips[0]], tmp_path / "out", suffix=".wav")
    assert list(results.written) == ["a"]
    assert results.failed == [f"{tmp_path}/pipe.mp4: is not a file, and a pipe or a device cannot be sampled"]


def test_few_frames_are_in_memory_at_a_time(sampler, clips, tmp_path, monkeypatch):
    class Frames(np.ndarray):
        """An array that can be referred to weakly."""

    read, others = outputs.frame_blocks, []

    def counted(*arguments, **options):
        for block in read(*arguments, block=2, **options):
            frames = Frames(block.shape, block.dtype)
            frames[...] = block
            others.append(weakref.ref(frames))
            yield frames
            del frames
            assert sum(other() is not None for other in others) <= 3

    monkeypatch.setattr(outputs, "frame_blocks", counted)
    assert write_sounds(sampler, clips, tmp_path / "out").failed == []
    assert len(others) == 5 + 6 + 7


def test_a_solver_that_does_not_finish_fails_only_its_clip(sampler, clips, tmp_path, monkeypatch):
    original = Sampler.sample

    def sample(self, batch, **options):
        if any(track.clip.id == "b" for track in batch):
            raise FlowleyError("the solver tsit5 did not reach t = 1")
        return original(self, batch, **options)

    monkeypatch.setattr(Sampler, "sample", sample)
    same = [dataclasses.replace(clips[0], id=name) for name in "abc"]
    results = write_sounds(sampler, same, tmp_path / "out")
    assert results.written.keys() == {"a", "c"}
    assert results.failed == [f"{clips[0].path}: the solver tsit5 did not reach t = 1"]


def test_the_input_is_never_replaced(sampler, clips):
    clip = clips[0]
    before = clip.path.read_bytes()
    for out in (clip.path, clip.path.parent):
        results = write_sounds(sampler, [clip], out)
        assert results.written == {} and "would replace an input video" in results.failed[0]
        assert clip.path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("a.mp4", 2, "must name a folder"),
        ("a.MP4", 2, "must name a folder"),
        ("a.mp3", 1, "extension must be one of"),
        ("a.mp3", 2, "extension must be one of"),
        ("a.WebM", 1, "extension must be one of"),
        ("silent/a.mp4", 1, "would replace the input video"),
        ("there.wav", 1, "already exists.*--overwrite"),
    ],
)
def test_impossible_targets_are_refused(clips, tmp_path, name, count, message):
    (tmp_path / "there.wav").touch()
    with pytest.raises(FlowleyError, match=message):
        check_out(tmp_path / name, clips[:count])


def test_possible_targets_are_accepted(clips, tmp_path):
    for name in ("a.mp4", "b.MP4", "results_v1.0", "new/folder"):
        check_out(tmp_path / name, clips[:1])
    for name in ("folder", "results_v2.0"):
        check_out(tmp_path / name, clips)
        assert (tmp_path / name).is_dir()
    (tmp_path / "is_there.mp4").mkdir()
    check_out(tmp_path / "is_there.mp4", clips)
    (tmp_path / "there.wav").touch()
    check_out(tmp_path / "there.wav", clips[:1], overwrite=True)
    # With several samples, other files are written.
    check_out(tmp_path / "there.wav", clips[:1], num_samples=2)


def _with_guidance(sampler, guidance):
    return dataclasses.replace(sampler, settings=dataclasses.replace(sampler.settings, guidance=guidance))
