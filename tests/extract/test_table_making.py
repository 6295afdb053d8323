"""Making the clip tables of VGGSound, of MovieGen Audio Bench and of folders of videos."""

import json
import os
from pathlib import PurePosixPath

import pytest
import shell

from data_prep import folder, moviegen, vggsound
from data_prep.table_making import hash_fraction
from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError


def _touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def _vggsound_csv(path, clips=40):
    lines = [f'{i:011d},{i},"label, {i % 3}",{"test" if i % 4 == 0 else "train"}' for i in range(clips)]
    path.write_text("\n".join(lines) + "\n")
    return [f"{i:011d}_{i:06d}" for i in range(clips)]


def test_vggsound_holds_out_the_same_clips_whatever_files_exist(tmp_path, capsys):
    ids = _vggsound_csv(tmp_path / "vggsound.csv")
    _touch(*(tmp_path / f"videos/{one}.mp4" for one in ids[:-1]))
    out = tmp_path / "clips.tsv"
    vggsound.make_table(tmp_path / "vggsound.csv", tmp_path / "videos", out, valid=7)
    clips = read_clip_table(out)
    assert "39 of 40 clips" in capsys.readouterr().out
    assert clips[1].video_path.exists() and clips[1].caption == clips[1].label == "label, 1"
    assert (tmp_path / "clips_missing.tsv").read_text().splitlines()[1].startswith(ids[-1])
    before = {clip.id: clip.split for clip in clips}
    assert [before[one] for one in ids[:-1:4]] == ["test"] * 10
    _touch(tmp_path / f"videos/{ids[-1]}.webm")
    for one in ids[:9]:
        (tmp_path / f"videos/{one}.mp4").unlink()
    vggsound.make_table(tmp_path / "vggsound.csv", tmp_path / "videos", out, valid=7, overwrite=True)
    after = {clip.id: clip.split for clip in read_clip_table(out)}
    assert len(after) == 31 and all(after[one] == before[one] for one in ids[9:-1])
    assert list({**before, **after}.values()).count("valid") == 7


def test_vggsound_puts_no_video_into_two_splits_unless_the_csv_does(tmp_path, capsys):
    lines = [f"video{i:06d},{start},x,train" for i in range(9) for start in (0, 10)]
    lines += ["video000003,50,x,test"]
    (tmp_path / "v.csv").write_text("\n".join(lines))
    _touch(*(tmp_path / f"video{i:06d}_{s:06d}.mp4" for i in range(9) for s in (0, 10, 50)))
    vggsound.make_table(tmp_path / "v.csv", tmp_path, tmp_path / "out.tsv", valid=4)
    assert (
        "1 YouTube videos have clips in both train and test, such as video000003" in capsys.readouterr().out
    )
    splits = {}
    for clip in read_clip_table(tmp_path / "out.tsv"):
        splits.setdefault(vggsound.youtube_id(clip.id), []).append(clip.split)
    assert splits.pop("video000003") == ["train", "train", "test"]
    assert sorted(splits.values()) == [["train"] * 2] * 6 + [["valid"] * 2] * 2


@pytest.mark.parametrize(
    ("text", "valid", "message"),
    [
        ("abc,1,x,train\nabc,1,x,train\n", 0, r"v.csv, line 2: clip 'abc_000001' is already in line 1"),
        ("abc,1,x,train\nabc,one,x,train\n", 0, r"v.csv, line 2: start 'one' must be"),
        ("abc,1,x,train\n", 2, "--valid=2 must be at most 1, the training clips"),
        ("abc,1,x,train\n", 0, "has none of the 1 clips, such as abc_000001.mp4"),
    ],
)
def test_unusable_vggsound_data_is_refused(tmp_path, text, valid, message):
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(FlowleyError, match=message):
        vggsound.make_table(tmp_path / "v.csv", tmp_path, tmp_path / "out.tsv", valid=valid)
    assert not (tmp_path / "out.tsv").exists()


def test_moviegen_reads_all_prompts_from_one_file(tmp_path, capsys):
    root = tmp_path / "bench"
    # Some numbers are left out, as in the published benchmark.
    ids = [i for i in range(moviegen.CLIPS + 11) if i % 49 != 31]
    assert len(ids) == moviegen.CLIPS
    _touch(*(root / f"a/video_with_audio/{i}.mp4" for i in ids if i != 17))
    _touch(root / "0.mp4")
    lines = [json.dumps({"id": i, "audio_prompt": f"sound\t{i}"}) for i in ids[:-1]]
    (root / "a" / moviegen.PROMPTS_FILE).write_text("\n".join(lines))
    moviegen.make_table(root, tmp_path / "out.tsv")
    printed = capsys.readouterr().out
    assert "525 of 527 clips" in printed
    assert "found 526 prompts; the benchmark has 527" in printed
    assert "without a video: 1 (17)\n" in printed and "without a prompt: 1 (537)\n" in printed
    clips = read_clip_table(tmp_path / "out.tsv")
    assert clips[0].video_path == root / "a/video_with_audio/0.mp4" and clips[0].caption == "sound 0"
    assert {clip.split for clip in clips} == {"test"} and len(clips) == 525
    assert (tmp_path / "out_missing.tsv").read_text() == "id\tlacks\n17\tvideo\n537\tprompt\n"


def test_moviegen_reads_one_file_per_prompt(tmp_path, capsys):
    _touch(tmp_path / "3.mp4", tmp_path / "4.mp4")
    for i in (3, 5):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps({"audio_prompt": f"sound {i}"}))
    moviegen.make_table(tmp_path, tmp_path / "out.tsv")
    assert [(clip.id, clip.caption) for clip in read_clip_table(tmp_path / "out.tsv")] == [("3", "sound 3")]
    printed = capsys.readouterr().out
    assert "without a video: 1 (5)\n" in printed and "without a prompt: 1 (4)\n" in printed
    assert "found 2 prompts; the benchmark has 527" in printed


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has neither MovieGenAudioBenchSfx.jsonl nor files such as 0.jsonl"),
        ({"0.jsonl": "{}"}, r"0.jsonl: must be one JSON object with the key audio_prompt"),
        ({"0.jsonl": '{"audio_prompt": 1}'}, "audio_prompt=1 must be a string"),
        (
            {"a/0.jsonl": '{"audio_prompt": ""}', "0.jsonl": '{"audio_prompt": ""}'},
            "a second file with the prompt",
        ),
        (
            {moviegen.PROMPTS_FILE: '{"id": "x", "audio_prompt": ""}'},
            "prompt of clip 'x'; .* are numbers",
        ),
        ({moviegen.PROMPTS_FILE: '{"id": 5, "audio_prompt": ""}\n' * 2}, "line 2: id 5 occurs twice"),
        ({moviegen.PROMPTS_FILE: "{", f"a/{moviegen.PROMPTS_FILE}": "{"}, "choose one with --prompts"),
        ({"0.jsonl": '{"audio_prompt": ""}'}, "has no video of the benchmark"),
    ],
)
def test_unusable_moviegen_data_is_refused(tmp_path, files, message):
    for name, text in files.items():
        _touch(tmp_path / name)
        (tmp_path / name).write_text(text)
    with pytest.raises(FlowleyError, match=message):
        moviegen.make_table(tmp_path, tmp_path / "out.tsv")


def test_a_folder_becomes_a_table_and_other_files_are_reported(tmp_path, capsys):
    root = tmp_path / "my videos"
    _touch(
        root / "dog/Dog_barking-01.MP4",
        root / "dog/b.webm",
        root / "a.mp4",
        root / "notes.md",
        root / "dog/c.gif",
        root / "._a.mp4",
    )
    (root / "dog/b.txt").write_text("a dog\nin a yard\n")
    folder.make_table(root, tmp_path / "out.tsv", valid=0.0, test=0.0)
    rows = [(clip.id, clip.caption, clip.label, clip.split) for clip in read_clip_table(tmp_path / "out.tsv")]
    assert rows == [
        ("a", "", "my videos", "train"),
        ("dog__Dog_barking-01.MP4", "Dog barking", "dog", "train"),
        ("dog__b.webm", "a dog in a yard", "dog", "train"),
    ]
    printed = capsys.readouterr().out
    assert "3 clips: 3 train" in printed and "captions from .txt files: 1;" in printed
    # Hidden files and captions are not counted.
    assert f"not videos: 2 (1 .gif, 1 .md), such as {root}/dog/c.gif\n" in printed
    assert "file name): 1\n" in printed
    assert all(clip.video_path.exists() for clip in read_clip_table(tmp_path / "out.tsv"))


def test_adding_files_to_a_folder_moves_no_clip_to_another_split(tmp_path):
    names = [f"{i % 7}/{i}.mp4" for i in range(200)]
    _touch(*(tmp_path / "root" / name for name in names))

    def splits():
        folder.make_table(tmp_path / "root", tmp_path / "out.tsv", valid=0.2, test=0.2, overwrite=True)
        return {clip.id: clip.split for clip in read_clip_table(tmp_path / "out.tsv")}

    before = splits()
    _touch(*(tmp_path / "root" / f"0/more{i}.mp4" for i in range(50)), tmp_path / "root/0__0.mp4")
    after = splits()
    assert len(after) == 251 and {one: after[one] for one in before} == before
    assert 20 < list(before.values()).count("test") < 60 and 20 < list(before.values()).count("valid") < 60


def test_ids_of_a_folder_are_unique_and_usable_as_file_names():
    names = ["a/b.mp4", "a__b.mp4", "a_/b.mp4", "a/_b.mp4", "a b.mp4", "a_b.mp4", "ä.mp4", "b.mkv", "b.mp4"]
    names += ["x" * 200 + ".mp4", "x" * 199 + ".mp4", "$.mp4"]
    ids = [folder.id_of(PurePosixPath(name)) for name in names]
    assert len(set(ids)) == len(ids) and max(map(len, ids)) < 140
    assert ids[0] == "a__b" and ids[5] == "a_b"
    assert all(one.isascii() and "/" not in one and " " not in one for one in ids)


@pytest.mark.parametrize(
    ("options", "text", "message"),
    [
        ({}, None, "has no video"),
        ({"valid": 0.5, "test": 0.5}, None, "must add up to less than 1"),
        ({}, b"\xff", r"a.txt: must be UTF-8 text"),
        ({}, b"x" * 100_001, r"a.txt: must be a caption, not 100001 bytes of text"),
    ],
)
def test_unusable_folders_are_refused(tmp_path, options, text, message):
    if text:
        _touch(tmp_path / "a.mp4")
        (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(FlowleyError, match=message):
        folder.make_table(tmp_path, tmp_path / "out.tsv", **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"a\tb.mp4", r"'a\\tb.mp4': the file name contains a tab or a line break"),
        (b"a\nb.mp4", r"'a\\nb.mp4': the file name contains a tab or a line break"),
        (b"caf\xe9.mp4", r"'caf\\udce9.mp4': the file name is not text in UTF-8"),
    ],
)
def test_file_names_that_a_table_cannot_hold_are_refused(tmp_path, name, message):
    _touch(tmp_path / os.fsdecode(name))
    with pytest.raises(FlowleyError, match=message):
        folder.make_table(tmp_path, tmp_path / "out.tsv")
    assert not (tmp_path / "out.tsv").exists()


def test_all_other_names_are_listed_and_hidden_files_and_folders_are_not(tmp_path):
    names = [
        "Screen Recording at 4.02.01\u202fPM.mov",
        "a\u00a0b.mp4",
        "全角\u3000空白.mp4",
        "family \U0001f468\u200d\U0001f469\u200d\U0001f467.mp4",
        "line\u2028separator\x85.mp4",
        "clip-10:20.mp4",
        "quote\"s and '.mp4",
        "NFC é.mp4",
        "NFD e\u0301.mp4",
    ]
    _touch(
        *(tmp_path / "root" / name for name in names), tmp_path / "root/._a.mp4", tmp_path / "root/.b/c.mp4"
    )
    (tmp_path / "root/folder.mp4").mkdir()
    folder.make_table(tmp_path / "root", tmp_path / "out.tsv")
    clips = read_clip_table(tmp_path / "out.tsv")
    assert sorted(clip.video_path.name for clip in clips) == sorted(names)
    assert all(clip.video_path.is_file() for clip in clips)


def test_existing_tables_are_replaced_only_if_asked_for(tmp_path):
    _touch(tmp_path / "v/abc_000001.mp4", tmp_path / "v/3.mp4")
    (tmp_path / "v.csv").write_text("abc,1,x,train\n")
    (tmp_path / "v/3.jsonl").write_text('{"audio_prompt": "x"}')
    out = tmp_path / "out.tsv"
    makers = (
        lambda **options: folder.make_table(tmp_path / "v", out, **options),
        lambda **options: moviegen.make_table(tmp_path / "v", out, **options),
        lambda **options: vggsound.make_table(tmp_path / "v.csv", tmp_path / "v", out, valid=0, **options),
    )
    for make in makers:
        out.write_text("captions that took a week")
        with pytest.raises(FlowleyError, match=rf"--out {out}: already exists; .*--overwrite"):
            make()
        assert out.read_text() == "captions that took a week"
        make(overwrite=True)
        assert len(read_clip_table(out)) >= 1
    out.unlink()
    (tmp_path / "out_missing.tsv").write_text("mine")
    for make in makers[1:]:
        with pytest.raises(FlowleyError, match=r"out_missing.tsv: already exists"):
            make()
    assert (tmp_path / "out_missing.tsv").read_text() == "mine"


@pytest.mark.parametrize("depth", [100_000])
def test_nested_and_odd_prompts_are_refused_in_one_line(tmp_path, depth):
    (tmp_path / "0.jsonl").write_text("[" * depth)
    with pytest.raises(FlowleyError, match=r"0.jsonl: must be one JSON object"):
        moviegen.make_table(tmp_path, tmp_path / "out.tsv")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": 0, "audio_prompt": "x"}\n{"id": 1, "audio_prompt": ' + "[" * depth + "\n")
    with pytest.raises(FlowleyError, match=r"prompts.jsonl, line 2: is not JSON"):
        moviegen.make_table(tmp_path, tmp_path / "out.tsv", prompts=prompts)
    prompts.write_text('{"id": 0, "audio_prompt": "half \\ud83d"}\n')
    with pytest.raises(
        FlowleyError, match=r"line 1: audio_prompt contains '\\ud83d', which is not a character"
    ):
        moviegen.make_table(tmp_path, tmp_path / "out.tsv", prompts=prompts)


def test_hash_fractions_are_uniform_and_the_same_on_every_machine():
    assert hash_fraction("abc") == 0.07729014664450418
    assert sum(hash_fraction(str(i)) < 0.25 for i in range(4000)) == pytest.approx(1000, abs=100)


@pytest.mark.parametrize("module", ["vggsound", "moviegen", "folder"])
def test_table_makers_fail_in_one_line(tmp_path, module):
    given = {"vggsound": ("--csv", tmp_path / "none", "--videos", tmp_path)}.get(
        module, ("--root", tmp_path / "none")
    )
    result = shell.run(f"data_prep.{module}", *given, "--out", tmp_path / "out.tsv")
    shell.fails_in_one_line(result, tmp_path / "none")
