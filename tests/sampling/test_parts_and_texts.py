"""Parts of videos, sounds from text, and values of single clips, in the files that are written."""

import dataclasses
import json
import logging

import numpy as np
import pyloudnorm
import pytest
import shell
import tiny

from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import probe, read_audio, read_frames
from flowley_jax.media.write import write_video
from flowley_jax.sampling import Clip, Sampler
from flowley_jax.sampling.inputs import Choices, InputClip, find_inputs, text_input
from flowley_jax.sampling.outputs import check_out, write_sounds

# 16 bits per sample.
STEP = 2.0**-15
# The text has little effect on the sounds of a network that was trained for three steps.
GUIDANCE = 30.0


@pytest.fixture(scope="module")
def sampler(tiny_run):
    sampler = Sampler.from_run(tiny_run)
    return dataclasses.replace(sampler, settings=dataclasses.replace(sampler.settings, guidance=GUIDANCE))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    write_video(path, frames, tiny.FPS)
    return path


@pytest.fixture
def clip(video):
    return InputClip(id="v", path=video, prompt="a ball")


def _wave(path, sampler):
    return read_audio(path, sample_rate=sampler.components.sample_rate)


def _written(sampler, clip, out, **options):
    """Return the wave of the file that is written for a clip."""
    results = write_sounds(sampler, [clip], out, overwrite=True, **options)
    assert results.failed == []
    return _wave(results.written[clip.id][0], sampler)


def test_the_sound_of_a_part_is_that_of_a_video_of_its_frames(sampler, clip, tmp_path):
    part = dataclasses.replace(clip, start=5 / tiny.FPS, end=14 / tiny.FPS)
    wave = _written(sampler, part, tmp_path / "v.wav")
    size = sampler.components.video_encoder.frame_size
    frames = read_frames(clip.path, fps=tiny.FPS, size=size)[5:14]
    ((_, expected),) = sampler.sounds([Clip(id="v", frames=frames, prompt="a ball")])
    assert len(wave) == round(9 / tiny.FPS * sampler.components.sample_rate)
    np.testing.assert_allclose(wave, expected[0], atol=2 * STEP)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_the_picture_of_a_part_is_written_with_its_sound(sampler, clip, tmp_path, suffix):
    part = dataclasses.replace(clip, start=0.5, end=1.25)
    wave = _written(sampler, part, tmp_path / f"v{suffix}")
    frames = read_frames(tmp_path / f"v{suffix}", fps=tiny.FPS)
    # Coded twice, the second time well.
    expected = read_frames(clip.path, fps=tiny.FPS)[6:15]
    assert len(frames) == 9 and np.abs(frames.astype(int) - expected).mean() < 12
    assert 0 <= len(wave) - round(0.75 * sampler.components.sample_rate) < 2048


def test_a_part_ends_with_the_picture_and_starts_before_its_end(sampler, clip, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    parts = [
        dataclasses.replace(clip, id=name, start=start, end=end)
        for name, start, end in [("a", 1.5, 9.0), ("b", 2.0, None), ("c", 7.0, 9.0)]
    ]
    for suffix in (".wav", ".mp4"):
        results = write_sounds(sampler, parts, tmp_path / "out", suffix=suffix)
        assert results.written.keys() == {"a"}
        seconds = probe(results.written["a"][0]).duration
        assert seconds == pytest.approx(0.5, abs=0.13)
        message = f"{clip.path}: its picture ends at 2.00 s, before the start at"
        assert results.failed == [f"{message} 2 s", f"{message} 7 s"]
    # A part that is longer than the file is no incomplete file.
    assert not [line for line in caplog.messages if "its picture ends at" in line and "failed" not in line]


def test_a_sound_from_text_has_its_length_and_no_picture(sampler, tmp_path):
    rate = sampler.components.sample_rate
    choices = Choices(prompt="Rain on a roof", seconds=1.3)
    clip = text_input(choices)
    wave = _written(sampler, clip, tmp_path / "out", suffix=".flac")
    assert len(wave) == round(1.3 * rate) and np.abs(wave).max() > 1e-4
    assert (tmp_path / "out" / "rain-on-a-roof.flac").exists()
    other = _written(sampler, dataclasses.replace(clip, prompt="A bell"), tmp_path / "b.wav")
    assert np.abs(wave - other).max() > 5 * STEP
    # Among videos, it is a .wav file.
    results = write_sounds(sampler, [clip], tmp_path / "videos", suffix=".mp4")
    assert results.written == {"rain-on-a-roof": [tmp_path / "videos" / "rain-on-a-roof.wav"]}
    with pytest.raises(FlowleyError, match=r"out\.mp4: a sound from text has no picture; .* \.wav or \.flac"):
        check_out(tmp_path / "out.mp4", [clip])


def test_a_table_of_texts_needs_no_column_of_videos(tmp_path):
    table = tmp_path / "texts.tsv"
    table.write_text("id\ttext_description\tseconds\nrain\train on a roof\t2\nbell\ta bell\t1.5\n")
    clips = find_inputs(table)
    assert [(clip.id, clip.path, clip.prompt, clip.end) for clip in clips] == [
        ("rain", None, "rain on a roof", 2.0),
        ("bell", None, "a bell", 1.5),
    ]
    table.write_text("text_description\tseconds\nrain on a roof\t2\n")
    with pytest.raises(FlowleyError, match=r"line 2: has neither a video_path nor an id"):
        find_inputs(table)


def test_a_sound_has_at_least_a_hundredth_of_a_second(tmp_path):
    table = tmp_path / "texts.tsv"
    table.write_text("id\ttext_description\tseconds\nrain\train\t0.00001\n")
    with pytest.raises(FlowleyError, match=r"line 2: seconds '0\.00001' must be at least 0\.01 and at most"):
        find_inputs(table)


def test_a_row_s_seed_and_negative_prompt_are_as_those_of_the_call(sampler, video, tmp_path):
    table = tmp_path / "clips.tsv"
    table.write_text(
        "id\tvideo_path\ttext_description\tnegative_prompt\tseed\tseconds\n"
        f"v\t{video}\ta ball\thum\t5\t0.75\n"
        f"w\t{video}\ta ball\t\t\t\n"
        "t\t\ta ball\t\t5\t0.5\n"
    )
    clips = find_inputs(table)
    results = write_sounds(sampler, clips, tmp_path / "out", suffix=".wav", seed=2)
    waves = {name: _wave(paths[0], sampler) for name, paths in results.written.items()}
    lengths = {name: len(wave) / sampler.components.sample_rate for name, wave in waves.items()}
    assert lengths == {"v": 0.75, "w": 2.0, "t": 0.5}
    settings = dataclasses.replace(sampler.settings, negative_prompt="hum")
    alike = InputClip(id="v", path=video, prompt="a ball", end=0.75)
    wave = _written(dataclasses.replace(sampler, settings=settings), alike, tmp_path / "v.wav", seed=5)
    np.testing.assert_allclose(waves["v"], wave, atol=2 * STEP)
    for changed in ({"negative_prompt": None}, {"seed": 6}, {"prompt": "hum"}):
        other = _written(sampler, dataclasses.replace(clips[0], **changed), tmp_path / "v.wav", seed=2)
        assert np.abs(waves["v"] - other).max() > 5 * STEP


def test_a_negative_prompt_that_is_empty_overrides_that_of_the_settings(sampler, clip, tmp_path):
    settings = dataclasses.replace(sampler.settings, negative_prompt="hum")
    default = _written(sampler, clip, tmp_path / "v.wav")
    empty = dataclasses.replace(clip, negative_prompt="")
    wave = _written(dataclasses.replace(sampler, settings=settings), empty, tmp_path / "v.wav")
    np.testing.assert_allclose(wave, default, atol=2 * STEP)


def test_a_changed_value_replaces_a_sound_and_an_equal_one_keeps_it(sampler, clip, tmp_path, caplog):
    caplog.set_level(logging.INFO)

    def made(**changes):
        caplog.clear()
        write_sounds(sampler, [dataclasses.replace(clip, **changes)], tmp_path, suffix=".wav")
        return [line.partition(", made with ")[2] for line in caplog.messages if "replacing" in line]

    assert made() == made() == made(negative_prompt="", seed=0) == []
    assert made(negative_prompt="hum") == ["a different negative prompt"]
    assert made(negative_prompt="hum") == []
    assert made(negative_prompt="hum", start=0.5) == ["another start or end"]
    assert made(negative_prompt="hum", start=0.5, end=1.5) == ["another start or end"]
    assert made(negative_prompt="hum", start=0.5, end=1.5, seed=3) == ["seed 0"]
    assert made() == ["seed 3, a different negative prompt, another start or end"]


def test_sounds_of_earlier_versions_are_kept(sampler, clip, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_sounds(sampler, [clip], tmp_path, suffix=".wav")
    before = (tmp_path / "v.wav").stat()
    log = tmp_path / "samples.jsonl"
    made, request = map(json.loads, log.read_text().splitlines())
    for name in ("negative_prompt", "start", "end"):
        del request[name]
    for name in ("window", "overlap"):
        del request["settings"][name]
    log.write_text("".join(json.dumps(row) + "\n" for row in (made, request)))
    assert write_sounds(sampler, [clip], tmp_path, suffix=".wav").failed == []
    after = (tmp_path / "v.wav").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    changed = dataclasses.replace(clip, start=0.5)
    assert write_sounds(sampler, [changed], tmp_path, suffix=".wav").failed == []
    assert (tmp_path / "v.wav").stat().st_mtime_ns != before.st_mtime_ns


def test_the_flags_of_a_part_and_of_a_text_show_in_the_files(tiny_run, video, sampler, tmp_path):
    def wave_of(name, *flags):
        out = tmp_path / name
        options = ["--workdir", tiny_run, "--out", out, f"--guidance={GUIDANCE}"]
        result = shell.run("flowley_jax.sample", *options, *flags)
        assert result.returncode == 0, result.stderr
        return _wave(out, sampler)

    rate = sampler.components.sample_rate
    part = wave_of("v.wav", "--video", video, "--start=0.5", "--end=1.25")
    assert len(part) == round(0.75 * rate)
    clip = InputClip(id="v", path=video, prompt="", start=0.5, end=1.25)
    np.testing.assert_allclose(part, _written(sampler, clip, tmp_path / "again.wav"), atol=2 * STEP)
    led = wave_of("a/v.mkv", "--video", video, "--start=0.5", "--seconds=0.75", "--negative-prompt=hum")
    assert len(read_frames(tmp_path / "a/v.mkv", fps=tiny.FPS)) == 9
    plain = wave_of("v.mkv", "--video", video, "--start=0.5", "--seconds=0.75")
    assert np.abs(led - plain).max() > 0.1 * np.abs(plain).max()
    text = wave_of("t.flac", "--prompt=a bell", "--seconds=1.5")
    assert len(text) == round(1.5 * rate)


def test_loudness_window_and_overlap_show_in_the_files(tiny_run, sampler, tmp_path):
    flags = (
        "--prompt=a bell",
        "--seconds=3",
        "--loudness=-40",
        "--window=1.5",
        "--overlap=0.5",
    )
    result = shell.run("flowley_jax.sample", "--workdir", tiny_run, "--out", tmp_path / "bell.wav", *flags)
    assert result.returncode == 0, result.stderr
    rate = sampler.components.sample_rate
    measured = pyloudnorm.Meter(rate).integrated_loudness(_wave(tmp_path / "bell.wav", sampler))
    assert measured == pytest.approx(-40.0, abs=0.2)
    # Of 1.5 s, with a start every 0.75 s.
    assert "1 sound, 3.00 s in 3 windows" in result.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--out=a.wav"], "give --video; or, for a sound from text, --prompt and --seconds"),
        (["--out=a.mp4", "--prompt=x", "--seconds=2"], "--out a.mp4: a sound from text has no picture"),
        (["--out=folder", "--prompt=x", "--seconds=2"], "a sound from text has no picture; add --kind wav"),
        (["--out=a.wav", "--prompt=x", "--seconds=2", "--end=1"], "give either --seconds 2 or --end 1"),
        (["--out=a.wav", "--prompt=x", "--seconds=2", "--start=1"], "--start and --end take a part"),
        (["--out=a.wav", "--prompt=x", "--seconds=2", "--split=test"], "--split need --video"),
        (["--out=a.wav", "--video=v.mp4", "--start=2", "--end=1"], "--end 1 must be later than --start"),
        (["--out=a.wav", "--video=v.mp4", "--start=-1"], "--start='-1' must be at least 0"),
        (["--out=a.wav", "--video=v.mp4", "--soundcap=m", "--start=1"], "--soundcap captions whole videos"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, expected):
    shell.fails_in_one_line(shell.run("flowley_jax.sample", "--workdir=none", *flags), expected)
