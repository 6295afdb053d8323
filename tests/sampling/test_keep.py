"""Parts of a video's own sound that stay, while the rest is sampled to fit."""

import dataclasses
import json

import numpy as np
import pytest
import shell
import tiny

from flowley_jax.errors import FlowleyError
from flowley_jax.media.mix import Mixing, mixed, own_share, parse_keep
from flowley_jax.media.read import read_audio, read_channels
from flowley_jax.media.write import write_video
from flowley_jax.sampling import Clip, Sampler
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.outputs import write_sounds

RATE = 44_100
SECONDS = 2.0
KEEP = ((0.0, 0.5), (1.2, 1.7))


@pytest.fixture(scope="module")
def sampler(tiny_run):
    return Sampler.from_run(tiny_run)


@pytest.fixture(scope="module")
def own():
    """Return noise in two channels."""
    return 0.1 * np.random.default_rng(1).standard_normal((round(SECONDS * RATE), 2)).astype(np.float32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, own):
    folder = tmp_path_factory.mktemp("video")
    frames = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    write_video(folder / "v.mkv", frames, tiny.FPS, audio=own, sample_rate=RATE)
    write_video(folder / "silent.mp4", frames, tiny.FPS)
    return InputClip(id="v", path=folder / "v.mkv", prompt="a ball")


def test_the_parts_are_read_from_text():
    assert parse_keep("0-2.5, 6-8") == ((0.0, 2.5), (6.0, 8.0))
    for text in ("", "1", "1-", "a-b", "-1-2", "1-2;3-4", "1e3-2e3"):
        with pytest.raises(FlowleyError, match=r"must name parts in seconds, such as 0-2\.5,6-8"):
            parse_keep(text)
    with pytest.raises(FlowleyError, match=r"--keep: the part 2-1 must start at 0 or later and end after"):
        parse_keep("2-1")


def test_kept_parts_are_faded_in_and_out():
    share = own_share(KEEP, round(SECONDS * RATE), RATE)
    time = np.arange(len(share)) / RATE
    assert share[0] == 1.0 and share[-1] == 0.0
    for start, end, value in ((0.0, 0.48, 1), (0.52, 1.18, 0), (1.22, 1.68, 1), (1.72, 2.0, 0)):
        assert (share[(time >= start) & (time < end)] == value).all()
    assert np.abs(np.diff(share)).max() < 1.01 / (0.04 * RATE)
    # To the end of the sound there is no fade.
    assert own_share(((1.0, 2.0),), len(share), RATE)[-1] == 1.0


def test_both_sounds_keep_their_power_at_the_joints(clip):
    new = 0.1 * np.random.default_rng(2).standard_normal(round(SECONDS * RATE)).astype(np.float32)
    wave, rate = mixed(new, RATE, Mixing(keep=KEEP), clip.path)
    assert wave.shape == (len(new), 2) and rate == RATE
    power = np.square(wave).reshape(-1, RATE // 50, 2).mean(axis=(1, 2))
    np.testing.assert_allclose(power, power.mean(), rtol=0.35)


def test_kept_parts_of_the_file_are_the_own_sound(sampler, clip, tmp_path):
    results = write_sounds(sampler, [clip], tmp_path, suffix=".wav", mixing=Mixing(keep=KEEP))
    assert results.failed == []
    planes, rate = read_channels(tmp_path / "v.wav")
    expected, _ = read_channels(clip.path)
    assert rate == RATE and planes.shape[0] == 2
    for start, end in ((0.0, 0.48), (1.22, 1.68)):
        span = slice(round(start * rate), round(end * rate))
        np.testing.assert_allclose(planes[:, span], expected[:, span], atol=2.0**-14)
    plain = write_sounds(sampler, [clip], tmp_path / "plain", suffix=".wav")
    alone = read_audio(plain.written["v"][0], sample_rate=RATE)
    span = slice(round(0.55 * rate), round(1.15 * rate))
    # Sampled to fit, so it is neither the own sound nor what is sampled without it.
    assert np.abs(planes[:, span] - expected[:, span]).max() > 1e-3
    assert np.abs(planes[0, span] - alone[span]).max() > 1e-3


def test_other_parts_replace_the_file_and_the_same_ones_keep_it(sampler, clip, tmp_path, caplog):
    caplog.set_level("INFO")
    for keep in (KEEP, KEEP, ((0.0, 1.0),)):
        assert write_sounds(sampler, [clip], tmp_path, suffix=".wav", mixing=Mixing(keep=keep)).failed == []
    assert sum("already have their sound" in line for line in caplog.messages) == 1
    assert any("replacing earlier sounds" in line and "made with keep" in line for line in caplog.messages)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["keep"] for row in rows if "keep" in row] == [[[0.0, 0.5], [1.2, 1.7]], [[0.0, 1.0]]]


def test_a_part_of_a_video_counts_from_its_own_start(sampler, clip, tmp_path):
    part = dataclasses.replace(clip, start=1.0)
    write_sounds(sampler, [part], tmp_path, suffix=".wav", mixing=Mixing(keep=((0.3, 0.9),)))
    planes, rate = read_channels(tmp_path / "v.wav")
    expected, _ = read_channels(clip.path)
    inner = slice(round(0.33 * rate), round(0.87 * rate))
    np.testing.assert_allclose(planes[:, inner], expected[:, rate:][:, inner], atol=2.0**-14)


def test_a_video_without_sound_fails_by_its_name(sampler, clip, tmp_path):
    silent = dataclasses.replace(clip, id="s", path=clip.path.with_name("silent.mp4"))
    results = write_sounds(sampler, [silent], tmp_path, mixing=Mixing(keep=KEEP))
    assert results.failed == [f"{silent.path}: has no audio stream"]
    frames = np.zeros((10, 32, 32, 3), np.uint8)
    with pytest.raises(FlowleyError, match="clip 'a': has no sound of its own of which parts could be kept"):
        Clip(id="a", frames=frames, keep=KEEP)


def test_the_command_keeps_parts(tiny_run, clip, tmp_path):
    out = tmp_path / "b.wav"
    result = shell.sample(tiny_run, clip.path, out, "--keep", "0-0.5,1.2-1.7", "--keep-original", 0.25)
    assert result.returncode == 0, result.stderr
    planes, rate = read_channels(out)
    expected, _ = read_channels(clip.path)
    np.testing.assert_allclose(planes[:, : rate // 4], expected[:, : rate // 4], atol=2.0**-14)
    for flags, message in (
        (["--keep", "1-2", "--loudness=-20"], "--keep does not go with a loudness (-20 LUFS"),
        (["--keep", "2-1"], "--keep: the part 2-1"),
    ):
        shell.fails_in_one_line(shell.sample(tiny_run, clip.path, tmp_path / "c.wav", *flags), message)
    text = shell.run("flowley_jax.sample", "--workdir", tiny_run, "--prompt=a", "--seconds=1", "--keep=0-1")
    shell.fails_in_one_line(text, "need --video")
