"""Sounds for files: names, kinds, reuse of what is made, and clips that cannot be used."""

import dataclasses
import json
import os

import numpy as np
import pytest
import tiny

from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import probe, read_audio
from flowley_jax.media.write import write_video
from flowley_jax.sampling import Sampler
from flowley_jax.sampling.clips import Source
from flowley_jax.sampling.files import check_out, write_sounds


@pytest.fixture(scope="module")
def sampler(tiny_run):
    return Sampler.load(tiny_run)


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "silent"
    folder.mkdir()
    made = []
    for index, name in enumerate("abc"):
        frames = np.random.default_rng(index).integers(0, 256, (10 + 2 * index, 32, 32, 3), dtype=np.uint8)
        write_video(folder / f"{name}.mp4", frames, tiny.FPS)
        made.append(Source(id=name, path=folder / f"{name}.mp4", prompt="a ball"))
    return made


@pytest.fixture
def drawn(monkeypatch):
    """Ids of the clips that are sampled."""
    ids = []
    original = Sampler._batch

    def counted(self, clips, *args, **options):
        ids.extend(clip.id for clip in clips)
        return original(self, clips, *args, **options)

    monkeypatch.setattr(Sampler, "_batch", counted)
    return ids


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", [".mp4", ".mkv", ".mov", ".wav", ".flac"])
def test_every_kind_has_a_sound_as_long_as_the_video(sampler, sources, tmp_path, kind):
    results = write_sounds(sampler, sources, tmp_path / "out", kind=kind)
    assert results.failed == []
    assert _names(tmp_path / "out") == ["a" + kind, "b" + kind, "c" + kind, "samples.jsonl"]
    for source in sources:
        (path,) = results.written[source.id]
        info = probe(path)
        assert info.has_audio and (info.width is None) == (kind in (".wav", ".flac"))
        seconds = probe(source.path).duration
        wave = read_audio(path, sample_rate=sampler.parts.sample_rate)
        assert len(wave) == pytest.approx(seconds * sampler.parts.sample_rate, abs=1024 + 1)
        assert np.abs(wave).max() > 1e-4


def test_one_file_is_called_as_asked_and_several_samples_are_numbered(sampler, sources, tmp_path):
    out = tmp_path / "new" / "sound.wav"
    write_sounds(sampler, sources[:1], out)
    assert _names(out.parent) == ["sound.wav"]
    write_sounds(sampler, sources[:1], out, num_samples=3)
    assert _names(out.parent) == ["sound.wav", "sound_0.wav", "sound_1.wav", "sound_2.wav"]
    waves = [read_audio(out.with_name(f"sound_{n}.wav"), sample_rate=16_000) for n in range(3)]
    assert all(np.abs(waves[n] - waves[n - 1]).max() > 1e-3 for n in range(3))
    np.testing.assert_allclose(waves[0], read_audio(out, sample_rate=16_000), atol=1e-3)


def test_what_is_made_is_not_made_again(sampler, sources, tmp_path, drawn):
    out = tmp_path / "out"
    first = write_sounds(sampler, sources, out)
    assert set(drawn) == set("abc")
    drawn.clear()
    assert write_sounds(sampler, sources, out) == first and drawn == []
    (out / "b.mp4").unlink()
    assert write_sounds(sampler, sources, out).written.keys() == set("abc")
    assert set(drawn) == {"b"}


def test_another_way_of_making_is_made_again(sampler, sources, tmp_path, drawn):
    out, one = tmp_path / "out", sources[:1]

    def made_again(sampler=sampler, one=one, **options):
        drawn.clear()
        write_sounds(sampler, one, out, **options)
        return bool(drawn)

    assert made_again() and not made_again()
    assert made_again(seed=1) and not made_again(seed=1)
    assert made_again(one=[dataclasses.replace(one[0], prompt="a bell")])
    assert made_again(
        dataclasses.replace(sampler, settings=dataclasses.replace(sampler.settings, guidance=4.0))
    )
    assert made_again(dataclasses.replace(sampler, origin={**sampler.origin, "step": 99}))
    assert made_again() and not made_again()
    os.utime(one[0].path, ns=(1, 1))
    assert made_again() and not made_again()
    assert made_again(kind=".wav") and made_again(num_samples=2)


def test_what_others_put_there_before_is_not_replaced(sampler, sources, tmp_path, drawn):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.mp4").write_bytes(b"a film of mine")
    results = write_sounds(sampler, sources, out)
    assert set(drawn) == results.written.keys() == {"a", "c"}
    assert "b.mp4: is there, and was not made by this program" in results.failed[0]
    assert (out / "b.mp4").read_bytes() == b"a film of mine"


def test_a_manifest_that_a_crash_cut_short_is_read_as_far_as_it_is_whole(sampler, sources, tmp_path, drawn):
    out = tmp_path / "out"
    write_sounds(sampler, sources, out)
    manifest = out / "samples.jsonl"
    lines = manifest.read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b", "c"]
    manifest.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])
    drawn.clear()
    write_sounds(sampler, sources, out)
    assert set(drawn) == {"c"}
    drawn.clear()
    write_sounds(sampler, sources, out)
    assert drawn == []


def test_bad_clips_are_listed_and_the_others_made(sampler, sources, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    bad = [
        Source(id="text", path=tmp_path / "text.mp4", prompt=""),
        Source(id="none", path=tmp_path / "none.mp4", prompt=""),
    ]
    results = write_sounds(sampler, [bad[0], *sources, bad[1]], tmp_path / "out")
    assert results.written.keys() == set("abc")
    assert [line.split(": ")[0] for line in results.failed] == [str(source.path) for source in bad]


def test_the_input_is_never_replaced(sampler, sources):
    source = sources[0]
    before = source.path.read_bytes()
    for out in (source.path, source.path.parent):
        results = write_sounds(sampler, [source], out)
        assert results.written == {} and "would replace the input video" in results.failed[0]
        assert source.path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "many", "message"),
    [
        ("a.mp4", True, "must be a folder"),
        ("a.mp3", False, "ending must be one of"),
        ("folder.wav", False, "folder with the name of a file"),
    ],
)
def test_impossible_targets(tmp_path, name, many, message):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(FlowleyError, match=message):
        check_out(tmp_path / name, many=many)


def test_possible_targets(tmp_path):
    check_out(tmp_path / "a.mp4", many=False)
    check_out(tmp_path / "folder", many=True)
    (tmp_path / "v1.2").mkdir()
    check_out(tmp_path / "v1.2", many=True)
