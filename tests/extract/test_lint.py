"""Findings of lint in tables, and in the files that they name."""

import json
import os
import unicodedata

import distinct
import pytest
import shell
import unusable

import data_prep.lint.fingerprint_cache
from data_prep.lint import fingerprint_cache
from data_prep.lint.check import LintOptions, lint
from data_prep.lint.fingerprints import Fingerprints
from data_prep.lint.shift import check_shift
from data_prep.rejection import Rejection
from data_prep.table_formats import read_table
from flowley_jax.common.jsonl import append_json
from flowley_jax.common.locks import lock_folder
from flowley_jax.data.clip_table import TableRow
from flowley_jax.errors import FlowleyError

ROWS_ONLY = LintOptions(fingerprints=False)
THINGS = (
    "dog",
    "rain",
    "glass",
    "engine",
    "violin",
    "thunder",
    "keyboard",
    "goat",
    "river",
    "hammer",
    "bell",
)


def _table(folder, rows, *, files=True):
    """Write a clip table, and a file for each row."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows if files else ():
        (folder / row[1]).write_bytes(b"x")
    return unusable.write_table(folder, rows)


def _by_code(findings):
    return {finding.code: finding for finding in findings}


def _lines(finding):
    return [case.line for case in finding.cases]


def _clean(number, split="train"):
    return [(f"c{i}", f"c{i}.mp4", f"sound of {i}", split, "a label") for i in range(number)]


def test_a_clean_table_gets_only_notes(tmp_path, capsys):
    findings = lint(_table(tmp_path, _clean(4)), options=ROWS_ONLY)
    assert {finding.severity for finding in findings} <= {"note"}
    printed = capsys.readouterr().out
    assert "4 clips (flowley): 4 train" in printed and "findings: 2 notes" in printed


def test_faults_of_rows_ids_captions_and_files_are_found(tmp_path):
    rows = _clean(3)
    rows += [
        ("c0", "d.mp4", "", "valid", "a label"),
        ("e", "c1.mp4", "x", "test", "other label"),
        ("f", "c2.mp4", "x", "train", "a label"),
        ("gone", "gone.mp4", "x", "train", "a label"),
        ("odd", "odd.mp4", "x", "trian", "a label"),
        ("short", "short.mp4", "x"),
    ]
    table = _table(tmp_path, rows)
    (tmp_path / "gone.mp4").unlink()
    findings = _by_code(lint(table, options=ROWS_ONLY))
    lines = {code: _lines(findings[code]) for code in findings if findings[code].severity != "note"}
    assert lines == {
        "malformed": [9, 10],
        "duplicate_id": [5],
        "clip_in_splits": [5],
        "no_caption": [5],
        "missing": [8],
        "file_in_splits": [6],
        "duplicate_file": [7],
        "untrained_label": [6],
    }
    assert findings["no_caption"].severity == findings["duplicate_file"].severity == "warning"
    assert str(findings["clip_in_splits"].cases[0]) == "line 5, c0: valid, but c0 in line 2 is train"


def test_youtube_videos_in_more_than_one_split_are_found(tmp_path):
    (tmp_path / "v.csv").write_text("abcdefghi-_,1,x,train\nabcdefghi-_,11,x,test\nother678901,1,x,test\n")
    findings = _by_code(lint(tmp_path / "v.csv", options=ROWS_ONLY))
    (case,) = findings["video_in_splits"].cases
    assert case.line == 2 and "abcdefghi-__000001 in line 1 is train" in case.detail


def test_captions_made_of_youtube_ids_are_reported(tmp_path):
    rows = [
        ("a", "F8Zt3mYlOqU_000094.mp4", "F Zt mYlOqU", "train", "a label"),
        ("b", "F8Zt3mYlOqU_000104.mp4", "a dog barks", "train", "a label"),
        ("c", "Dog_barking.mp4", "Dog barking", "train", "a label"),
        ("d", "hello_world_01.mp4", "hello world", "train", "a label"),
    ]
    finding = _by_code(lint(_table(tmp_path, rows), options=ROWS_ONLY))["caption_is_a_file_name"]
    assert finding.severity == "warning"
    assert [str(case) for case in finding.cases] == ["line 2, a: 'F Zt mYlOqU'"]


def test_files_that_exist_only_below_root_are_reported(tmp_path):
    table = unusable.write_table(tmp_path, [("a", "/far/away/a.mp4", "x", "train", "x")])
    (tmp_path / "root/away").mkdir(parents=True)
    (tmp_path / "root/away/a.mp4").write_bytes(b"x")
    assert "missing" in _by_code(lint(table, options=ROWS_ONLY))
    findings = _by_code(lint(table, root=tmp_path / "root", options=ROWS_ONLY))
    assert "missing" not in findings and "root/away/a.mp4" in findings["elsewhere"].cases[0].detail


def test_a_broken_link_is_a_missing_file(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    table = unusable.write_table(tmp_path, [(name, f"{name}.mp4", "x", "train", "x") for name in "ab"])
    (tmp_path / "a.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "there.mp4").write_bytes(b"x")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "there.mp4")
    findings = _by_code(lint(table, options=ROWS_ONLY))
    assert [case.id for case in findings["missing"].cases] == ["a"]


def test_the_balance_of_labels_is_reported(tmp_path):
    rows = [(f"c{i}", f"c{i}.mp4", "x", "train", "common" if i else "rare") for i in range(9)]
    rows += [("t", "t.mp4", "x", "test", "common"), ("u", "u.mp4", "x", "valid", "unseen")]
    findings = _by_code(lint(_table(tmp_path, rows), out=tmp_path / "out", options=ROWS_ONLY))
    assert findings["balance"].summary == "3 labels with 1 to 9 clips"
    assert findings["balance"].cases[0].detail == "frequent: 'common' has 8 train, 1 test"
    assert _lines(findings["untrained_label"]) == [12]
    report = json.loads((tmp_path / "out/lint.json").read_text())
    assert report["balance"] == {
        "common": {"train": 8, "test": 1},
        "rare": {"train": 1},
        "unseen": {"valid": 1},
    }
    assert {finding["code"]: finding["count"] for finding in report["findings"]} == {
        code: len(finding.cases) for code, finding in findings.items()
    }


def _described(number, caption_of, *, named=True):
    things = [THINGS[(i * i + i // 11) % len(THINGS)] for i in range(number)]
    captions = [f"the {thing} sounds loudly" for thing in things]
    return [
        TableRow(
            line=i + 2,
            id=f"c{i}",
            path=f"{i}_{thing}.mp4" if named else f"{i}.mp4",
            caption=caption_of(captions, i),
            split="train",
            label=thing,
        )
        for i, thing in enumerate(things)
    ]


@pytest.mark.parametrize("shift", [-3, -1, 1, 2])
def test_shifted_captions_are_found_with_their_first_line(shift):
    rows = _described(200, lambda captions, i: captions[i] if i < 80 else captions[(i - shift) % 200])
    (finding,) = check_shift(rows)
    assert finding.code == "shifted_captions" and finding.severity == "error"
    (case,) = finding.cases
    assert abs(case.line - 82) <= 4
    direction = "down" if shift > 0 else "up"
    assert f"{abs(shift)} row" in case.detail and direction in case.detail


def test_fitting_captions_are_not_reported_as_shifted():
    assert check_shift(_described(200, lambda captions, i: captions[i])) == []
    # With labels in blocks, a neighbour's caption fits as well as the row's own.
    blocks = [
        TableRow(line=i, id=str(i), caption=f"a {THINGS[i // 20]}", split="", label=THINGS[i // 20])
        for i in range(200)
    ]
    assert check_shift(blocks) == []


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (_described(5, lambda captions, i: captions[i]), "too few rows have words to compare"),
        (_described(50, lambda captions, i: "noise"), "share hardly any words"),
        (
            [TableRow(line=i, id=f"{i}", caption="dog", split="", label="dog") for i in range(50)],
            "captions are the labels and file names have no words",
        ),
    ],
)
def test_shifts_that_cannot_be_checked_are_noted(rows, reason):
    (finding,) = check_shift(rows)
    assert finding.severity == "note" and reason in finding.cases[0].detail


def test_unknown_and_lacking_captions_of_other_sources_are_found(tmp_path):
    table = _table(tmp_path, _clean(3))
    captions = tmp_path / "other.tsv"
    captions.write_text("id\tcaption\nc0\ta\nc1\t\nc9\tb\n")
    findings = _by_code(lint(table, captions={"other": captions}, options=ROWS_ONLY))
    assert [case.id for case in findings["captions_unknown"].cases] == ["c9"]
    assert [case.id for case in findings["captions_lacking"].cases] == ["c1", "c2"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Write clips with copies within and across splits, and files that cannot be read."""
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(3):
        distinct.write(folder / f"{seed}.mp4", seed)
    distinct.write_copy(folder / "copy0.mp4", 0)
    distinct.write_copy(folder / "copy1.mp4", 1, size=(96, 80))
    distinct.write(folder / "dubbed.mp4", 2, sound=7)
    (folder / "same2.mp4").write_bytes((folder / "2.mp4").read_bytes())
    unusable.write_clip(folder / "plain.mp4", 0, audio=False)
    unusable.write_clip(folder / unusable.CRASHING, 1)
    (folder / "broken.mp4").write_bytes(b"no film" * 99)
    names = ["0", "1", "2", "copy0", "copy1", "dubbed", "same2", "plain", "crash", "broken"]
    splits = ["train"] * 3 + ["test", "train", "valid", "train"] + ["train"] * 3
    rows = [(name, f"{name}.mp4", "x", split, "x") for name, split in zip(names, splits, strict=True)]
    return unusable.write_table(folder, [*rows, unusable.write_hanging(folder)])


def test_copies_and_unreadable_files_are_found_and_no_file_is_read_twice(clips, tmp_path, monkeypatch):
    codec = unusable.write_crashing_codec(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(codec))
    options = LintOptions(workers=1, time_limit=4.0)
    findings = _by_code(lint(clips, out=tmp_path / "out", options=options))
    assert {case.id: case.detail.split(" (")[0] for case in findings["copy_in_splits"].cases} == {
        "copy0": "test, near 0 in line 2, train",
        "dubbed": "valid, near 2 in line 4, train",
    }
    assert findings["copy_in_splits"].severity == "error" and findings["copy"].severity == "note"
    assert {case.id for case in findings["copy"].cases} == {"copy1", "same2"}
    assert [case.id for case in findings["not_compared"].cases] == ["plain"]
    assert [(one.id, one.detail) for one in findings["lacks_a_stream"].cases] == [("plain", "no sound")]
    reasons = {case.id: case.detail.split(":")[0] for case in findings["unreadable"].cases}
    assert reasons == {"crash": "crash", "broken": "unreadable", "hanging": "timeout"}
    cache = tmp_path / "out/fingerprints.jsonl"
    whole = cache.read_text()
    assert len(whole.splitlines()) == 11
    monkeypatch.setattr(data_prep.lint.fingerprint_cache, "WorkerPool", None)
    assert _by_code(lint(clips, out=tmp_path / "out", options=options)) == findings
    assert cache.read_text() == whole


def test_an_empty_table_and_a_missing_root_are_refused(tmp_path):
    with pytest.raises(FlowleyError, match="the table has no rows"):
        lint(_table(tmp_path, []))
    with pytest.raises(FlowleyError, match=r"--root=.*nowhere: no such folder"):
        lint(_table(tmp_path, _clean(2)), root=tmp_path / "nowhere")


def test_an_interrupted_run_resumes(clips, tmp_path, monkeypatch):
    rows = [row.split("\t") for row in clips.read_text().splitlines()[1:5]]
    rows = [(row[0], str(clips.parent / row[1]), *row[2:]) for row in rows]
    table, out = unusable.write_table(tmp_path, rows), tmp_path / "out"
    first = lint(table, out=out)
    cache = out / "fingerprints.jsonl"
    lines = cache.read_text().splitlines()
    cache.write_text("\n".join([*lines[:3], lines[3][:40]]))
    read = []
    original = data_prep.lint.fingerprint_cache._read_files
    monkeypatch.setattr(
        data_prep.lint.fingerprint_cache,
        "_read_files",
        lambda paths, *more: read.extend(paths) or original(paths, *more),
    )
    assert lint(table, out=out) == first
    assert read == [rows[3][1]] and sorted(cache.read_text().splitlines()) == sorted(lines)
    row = json.loads(lines[0])
    for change in (
        {"file": ["a"]},
        {"picture": 5},
        {"sound": "00"},
        {"lacks": None},
        {"offset": "0"},
        {"version": "3"},
        {"reason": "silent", "detail": 5},
    ):
        cache.write_text(json.dumps({**row, **change}) + "\n")
        with pytest.raises(FlowleyError, match=r"fingerprints.jsonl: is damaged .* remove it"):
            lint(table, out=out)
    cache.write_text('{"version": 3}\n')
    with pytest.raises(FlowleyError, match=r"fingerprints.jsonl: is damaged .* remove it"):
        lint(table, out=out)


def test_files_of_equal_name_size_and_time_are_all_read(tmp_path):
    for name, seed in (("a/0", 0), ("b/0", 1)):
        distinct.write(tmp_path / f"{name}.mp4", seed)
    size = max((tmp_path / f"{name}.mp4").stat().st_size for name in ("a/0", "b/0"))
    for name in ("a/0", "b/0"):
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, ns=(1, 1))
    rows = [(name, f"{name}/0.mp4", "x", split, "x") for name, split in (("a", "train"), ("b", "test"))]
    table = unusable.write_table(tmp_path, rows)
    for _ in range(2):
        assert "copy_in_splits" not in _by_code(lint(table, out=tmp_path / "out"))
    assert len((tmp_path / "out/fingerprints.jsonl").read_text().splitlines()) == 2


def test_a_cache_cut_at_any_byte_is_read(tmp_path):
    cache = tmp_path / "fingerprints.jsonl"
    results = {
        f"Glöckchen 鐘 {index}.mp4": Fingerprints("0f" * 32, None, "sound")
        if index
        else Rejection("silent", "é")
        for index in range(3)
    }
    for name, result in results.items():
        append_json(cache, fingerprint_cache._to_row((name, 1, 2, ""), result))
    content = cache.read_bytes()
    for length in range(len(content) + 1):
        cache.write_bytes(content[:length])
        kept = fingerprint_cache._read_cache(cache)
        assert kept.items() <= {(name, 1, 2, ""): result for name, result in results.items()}.items()
        assert len(kept) >= content[:length].count(b"\n")
        append_json(cache, fingerprint_cache._to_row(("last", 1, 2, ""), results["Glöckchen 鐘 1.mp4"]))
        assert ("last", 1, 2, "") in fingerprint_cache._read_cache(cache)


def test_a_report_of_another_program_is_not_replaced(tmp_path):
    table = _table(tmp_path, _clean(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/lint.json").write_text('{"rules": []}')
    with pytest.raises(FlowleyError, match=r"lint.json: data_prep.lint did not write it, .* change --out"):
        lint(table, out=tmp_path / "out", options=ROWS_ONLY)
    assert (tmp_path / "out/lint.json").read_text() == '{"rules": []}'
    with lock_folder(tmp_path / "other"), pytest.raises(FlowleyError, match="another process"):
        lint(table, out=tmp_path / "other", options=ROWS_ONLY)


def test_folders_are_missing_files_and_names_in_another_unicode_form_are_found(tmp_path):
    names = ("folder", "Ca\u0303o", "日が")
    rows = [(f"c{index}", f"sub é/{name}.mp4", "x", "train", "x") for index, name in enumerate(names)]
    table = unusable.write_table(tmp_path, rows)
    folder = tmp_path / unicodedata.normalize("NFD", "sub é")
    (folder / "folder.mp4").mkdir(parents=True)
    for name in names[1:]:
        (folder / unicodedata.normalize("NFC" if "\u0303" in name else "NFD", f"{name}.mp4")).write_bytes(
            b"x"
        )
    findings = _by_code(lint(table, options=ROWS_ONLY))
    assert [case.id for case in findings["missing"].cases] == ["c0"]
    assert "elsewhere" not in findings


@pytest.mark.parametrize(("split", "code"), [("train", 0), ("tain", 3)])
def test_the_exit_code_is_3_for_errors(tmp_path, split, code):
    table = _table(tmp_path, _clean(2, split))
    result = shell.run("data_prep.lint", "--table", table, "--no-fingerprints", "--kind=flowley")
    assert result.returncode == code, result.stderr
    assert ("error malformed (2)" in result.stdout) == (code == 3)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--table=none.tsv",), ["none.tsv: no such clip table"]),
        (("--table=README.md",), ["README.md: unknown table format", "expected a TSV"]),
        (("--table=README.md", "--kind=csv"), ["kind", "csv"]),
        (("--table=README.md", "--captions=x"), ["--captions=x must be NAME=FILE"]),
    ],
)
def test_wrong_flags_fail_in_one_line(flags, expected):
    shell.fails_in_one_line(shell.run("data_prep.lint", *flags), *expected)


def test_tables_of_other_formats_can_be_checked(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": 0, "audio_prompt": "x"}\n')
    (tmp_path / "my_test.tsv").write_text("id\tlabel\n0\tx\n")
    for name in ("p.jsonl", "my_test.tsv"):
        assert {"missing"} <= set(_by_code(lint(tmp_path / name, options=ROWS_ONLY)))
        (row,) = read_table(tmp_path / name).rows
        assert row.split == "test"
