"""SoundCap without a real model: prompts, filters, the journal, resuming, servers and the audit page."""

import dataclasses
import importlib
import json
import logging
import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import hypothesis.strategies as st
import numpy as np
import openai_server
import pytest
import shell
import unusable
from hypothesis import given, settings

from data_prep.caption_files import read_captions
from data_prep.rejection import Rejection
from data_prep.soundcap.audit import write_audit
from data_prep.soundcap.captions import caption_clips
from data_prep.soundcap.clip_view import ClipView, ViewConfig
from data_prep.soundcap.examples import split_examples
from data_prep.soundcap.filters import clean_answer, find_problem
from data_prep.soundcap.models import open_model
from data_prep.soundcap.prompting import with_captions
from data_prep.soundcap.prompts import CAPTIONS, TARGETS, Prompt
from data_prep.soundcap.server import ServerModel
from flowley_jax.common.locks import lock_folder
from flowley_jax.config import ExperimentConfig
from flowley_jax.data.clip_table import TableClip, read_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.sampling.inputs import InputClip

VIEW = ViewConfig(seconds=1.0, fps=4.0, size=32)
LOADED = ClipView(np.zeros((2, 32, 32, 3), np.uint8), 4.0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four clips with audio, one without, and one file that is no video."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for index in range(5):
        unusable.write_clip(folder / f"c{index}.mp4", seed=index, audio=index != 4)
        rows.append((f"id{index}", f"c{index}.mp4", "a <label>", "train", "x"))
    (folder / "bad.mp4").write_bytes(b"not a film")
    rows.append(("bad", "bad.mp4", "x", "valid", "x"))
    return read_clip_table(unusable.write_table(folder, rows))


class _InProcess:
    """Reader of clips like `WorkerPool`, but without the time that processes need to start."""

    def __init__(self, function, **_):
        self.function = function

    def map(self, arguments):
        return map(self.function, *zip(*arguments, strict=True))

    def close(self):
        pass


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr("data_prep.soundcap.captions.WorkerPool", _InProcess)


class _FakeModel:
    """Model with prepared answers that records the views; after the last one, raises KeyboardInterrupt."""

    def __init__(self, answers, batch_size=2):
        self.identity = {"model": "fake"}
        self.batch_size = batch_size
        self.answers, self.views = list(answers), []

    def __call__(self, clips, prompt):
        self.views.extend(clips)
        answers, self.answers = self.answers[: len(clips)], self.answers[len(clips) :]
        if len(answers) < len(clips):
            raise KeyboardInterrupt
        return answers


def _read_journal(out):
    return [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]


def test_a_mismatched_torchvision_is_reported(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FlowleyError, match=r"torch and torchvision do not match \(operator"):
        importlib.import_module("data_prep.soundcap.local")


def test_the_prompts_ask_for_what_the_paper_asks_for():
    targets, captions = Prompt.read(TARGETS), Prompt.read(CAPTIONS)
    for phrase in ("out of the picture", "background", "hiss", "voice-over", "not the words"):
        assert phrase in targets.text
    assert "no sound track" in captions.text and targets.sha256 != captions.sha256


def test_a_prompt_can_be_a_file_and_must_not_be_empty(tmp_path):
    path = tmp_path / "mine_v2.txt"
    path.write_text("What is heard?\n")
    assert (Prompt.read(str(path)).name, Prompt.read(str(path)).text) == ("mine_v2", "What is heard?")
    with pytest.raises(
        FlowleyError, match="prompt='poems' must be one of captions_v1, targets_v1, or a text file"
    ):
        Prompt.read("poems")
    path.write_text(" \n")
    with pytest.raises(FlowleyError, match="the prompt is empty"):
        Prompt.read(str(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"A dog barks."', "A dog barks."),
        ("Caption: a bell\n rings", "a bell rings"),
        ("**A crowd cheers**", "A crowd cheers"),
        ("- rain", "rain"),
        ("<think>\nWheels, so gravel?\n</think>\n\nGravel crunches.", "Gravel crunches."),
        ("It is a bell, I think.</think> A bell rings.", "A bell rings."),
        ("A bell rings. <Thinking>Or is it a gong", "A bell rings."),
        ("<think>one</think>A bell<think>two</think> rings.", "A bell rings."),
        ("<think>Is it <think>a gong</think> or a bell?</think>A bell rings.", "A bell rings."),
        ("<think>Wheels, so gravel", ""),
        ("a\x00 bell \ud83d rings\x1b", "a bell rings"),
        ("a man's 5'-long saw hums", "a man's 5'-long saw hums"),
    ],
)
def test_answers_are_cleaned(text, expected):
    assert clean_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty"),
        ("…", "empty"),
        ("a dog barks " * 30, "too_long"),
        ("I'm sorry, but there is no sound.", "refusal"),
        ("As an AI language model I do not hear.", "refusal"),
        ("I cannot hear anything in this clip.", "refusal"),
        ('A man says "come over here right now" and a door shuts.', "speech"),
        ("Speaker 1: hello there", "speech"),
        ("A door creaks. Speaker 2: hello there", "speech"),
        ('A man shouts "watch out for the', "speech"),
        ("A man shouts “watch out " + "and mind the step below " * 9, "speech"),
        ("a" * 1001, "too_long"),
        ("00:03 a dog barks", "speech"),
        ("bark bark bark bark bark", "repetition"),
        ("a dog barks and " * 4, "repetition"),
        ("一只狗在门口大声地叫", "language"),
        ("ein Hund bellt laut und der Regen fällt dabei leise", "language"),
        ("A dog barks twice, sharply, while rain drums on a tin roof.", None),
        ("A man speaks calmly, then a car passes.", None),
        ("Footsteps on gravel.", None),
        ('A "clang" of metal echoes.', None),
        ('A "clang" of metal, then a "bang" on wood.', None),
        ('A 5" saw hums through wood.', None),
    ],
)
def test_filters_reject_answers_that_do_not_describe_sound(text, code):
    assert (find_problem(text) or (None,))[0] == code


def test_an_interrupted_run_resumes_and_records_provenance(clips, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    prompt = Prompt.read(CAPTIONS)
    first = _FakeModel(["A thud.", "I'm sorry, I cannot hear."])
    with pytest.raises(KeyboardInterrupt):
        caption_clips(clips, tmp_path, first, prompt, VIEW)
    assert len(_read_journal(tmp_path)) == 2
    # A crash in the middle of a line.
    with open(tmp_path / "captions.jsonl", "a") as file:
        file.write('{"id": "id2", "te')
    second = _FakeModel(["Glass rings.", Rejection("model", "out of memory"), "Rain falls."])
    result = caption_clips(clips, tmp_path, second, prompt, VIEW)
    assert "2 of 6 clips already have an answer" in caplog.text
    assert result.captions == {"id0": "A thud.", "id2": "Glass rings.", "id4": "Rain falls."}
    reasons = {clip_id: rejection.reason for clip_id, rejection in result.rejected.items()}
    assert reasons == {"id1": "refusal", "id3": "model", "bad": "unreadable"}
    assert second.views[0].frames.shape == (4, 32, 32, 3) and second.views[0].wave is None
    assert read_captions({"soundcap": tmp_path / "captions.tsv"})["soundcap"] == result.captions
    rejected = (tmp_path / "rejected.tsv").read_text().splitlines()
    assert [row.split("\t")[:2] for row in rejected[1:]] == [
        ["id1", "refusal"],
        ["id3", "model"],
        ["bad", "unreadable"],
    ]
    answer = _read_journal(tmp_path)[0]
    assert answer["model"] == "fake" and answer["prompt"] == CAPTIONS and answer["date"].startswith("20")
    assert answer["text"] == "A thud." and answer["prompt_sha256"] == prompt.sha256


def test_a_finished_run_asks_nothing_unless_told_to_or_the_prompt_changes(clips, tmp_path, in_process):
    prompt, refused = Prompt.read(CAPTIONS), Rejection("model", "out of memory")
    model = _FakeModel(["A thud.", "I cannot hear.", "Glass rings.", refused, "Rain falls."])
    result = caption_clips(clips, tmp_path, model, prompt, VIEW)
    assert caption_clips(clips, tmp_path, _FakeModel([]), prompt, VIEW) == result
    retried = _FakeModel(["Bells.", "Drums."])
    captions = caption_clips(clips, tmp_path, retried, prompt, VIEW, retry=True).captions
    assert captions == {**result.captions, "id1": "Bells.", "id3": "Drums."} and len(retried.views) == 2
    other = _FakeModel(["One.", "Two.", "Three.", "Four.", "Five."])
    assert len(caption_clips(clips, tmp_path, other, Prompt("x", "y"), VIEW).captions) == 5


def test_a_model_that_refuses_every_clip_ends_the_run(clips, tmp_path, in_process):
    refused, prompt = Rejection("model", "too many pictures"), Prompt.read(CAPTIONS)
    model = _FakeModel([refused] * 5, batch_size=5)
    with pytest.raises(FlowleyError, match=r"refuses all of the first 5 clips \(too many pictures\)"):
        caption_clips(clips, tmp_path / "all", model, prompt, VIEW)
    # The refusals were not recorded: the same command asks again.
    model.answers = ["a dog barks at the gate", *[refused] * 4]
    result = caption_clips(clips, tmp_path / "all", model, prompt, VIEW)
    assert list(result.captions) == ["id0"] and len(result.rejected) == 5


def test_a_model_may_refuse_a_few_clips_at_a_time(clips, tmp_path, in_process):
    model = _FakeModel([Rejection("model", "too many pictures")] * 5)
    result = caption_clips(clips, tmp_path, model, Prompt.read(CAPTIONS), VIEW)
    assert not result.captions and len(result.rejected) == 6


def test_a_changed_file_is_captioned_again(tmp_path, caplog):
    unusable.write_clip(tmp_path / "a.mp4", seed=0)
    unusable.write_clip(tmp_path / "b.mp4", seed=1)
    rows = [("a", "a.mp4", "x", "train", "x"), ("b", "b.mp4", "x", "train", "x")]
    clips = read_clip_table(unusable.write_table(tmp_path, rows))
    prompt = Prompt.read(CAPTIONS)
    caption_clips(clips, tmp_path / "out", _FakeModel(["One.", "Two."]), prompt, VIEW)
    unusable.write_clip(tmp_path / "b.mp4", seed=2)
    result = caption_clips(clips, tmp_path / "out", _FakeModel(["Three."]), prompt, VIEW)
    assert result.captions == {"a": "One.", "b": "Three."}
    assert "replaced" not in caplog.text
    caption_clips(clips, tmp_path / "out", _FakeModel(["Four.", "Five."]), Prompt("x", "y"), VIEW)
    assert (
        "captions.tsv: captions will be replaced, because the model, prompt or view has changed"
        in caplog.text
    )


def test_a_server_gets_images_and_audio(clips, tmp_path):
    view = ViewConfig(seconds=1.0, fps=4.0, size=32, sound=True)
    log = tmp_path / "requests.jsonl"
    with openai_server.running(log, busy=2) as url:
        model = ServerModel(url, openai_server.MODEL, batch_size=3, key="secret", pause=0.05)
        result = caption_clips(clips, tmp_path / "out", model, Prompt.read(TARGETS), view)
    assert result.captions == {f"id{index}": "A thud over 4 pictures, 1 sounds." for index in range(4)}
    assert {clip_id: rejection.reason for clip_id, rejection in result.rejected.items()} == {
        "id4": "no_audio",
        "bad": "unreadable",
    }
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(requests) == 6 and requests[0]["key"] == "Bearer secret"
    assert requests[0]["temperature"] == 0.0 and requests[0]["max_tokens"] == 128
    assert requests[0]["messages"][0]["content"][-1] == {"type": "text", "text": Prompt.read(TARGETS).text}


def test_server_errors_reject_a_clip_or_end_the_run(clips, tmp_path):
    one_frame, prompt = ViewConfig(seconds=0.25, fps=4.0, size=32), Prompt.read(CAPTIONS)
    with openai_server.running(tmp_path / "requests.jsonl") as url:
        model = ServerModel(url, openai_server.MODEL, pause=0.01)
        rejected = caption_clips(clips[:1], tmp_path / "out", model, prompt, one_frame).rejected
        assert rejected["id0"].reason == "model" and "400" in rejected["id0"].detail
        with pytest.raises(FlowleyError, match=r"/v1: answers 404 for model 'other' \(.*no model other"):
            caption_clips(clips[:1], tmp_path, ServerModel(url, "other"), prompt, VIEW)
    with pytest.raises(FlowleyError, match="must begin with http"):
        ServerModel("localhost:8000", "x")
    stopped = ServerModel(url, openai_server.MODEL, pause=0.01)
    with pytest.raises(FlowleyError, match=r"no answer in 4 attempts .*run the same command again to resume"):
        caption_clips(clips[:1], tmp_path, stopped, prompt, VIEW)
    with pytest.raises(FlowleyError, match="adapter=lora must be empty with a server"):
        open_model("x", server=url, adapter="lora")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Run a server; yield its address and the file of its requests."""
    log = tmp_path_factory.mktemp("server") / "requests.jsonl"
    with openai_server.running(log) as url:
        yield url, log


def _server_model(url, kind="", **options):
    name = f"{openai_server.MODEL}:{kind}" if kind else openai_server.MODEL
    return ServerModel(url, name, pause=0.001, **options)


@pytest.mark.parametrize("kind", [*openai_server.UNEXPECTED, "broken", "truncated"])
def test_an_unexpected_answer_is_repeated_and_then_rejects_the_clip(server, kind):
    url, log = server
    log.write_text("")
    (rejection,) = _server_model(url, kind)([LOADED], "What is heard?")
    assert rejection.reason == "model" and "no usable answer in 4 attempts" in rejection.detail
    assert len(rejection.detail) < 400 and len(log.read_text().splitlines()) == 4


def test_a_redirect_is_not_followed(server):
    with pytest.raises(FlowleyError, match=r"307 .*redirects to https://elsewhere\.test/login;") as caught:
        _server_model(server[0], "redirect", key="key")([LOADED], "x")
    assert "secret" not in str(caught.value)


def test_rows_that_are_no_answers_are_asked_again(clips, tmp_path, caplog, in_process):
    prompt = Prompt.read(CAPTIONS)
    caption_clips(clips[:1], tmp_path, _FakeModel(["One."]), prompt, VIEW)
    row = _read_journal(tmp_path)[0]
    without = [{name: row[name] for name in row if name != missing} for missing in ("id", "made_by", "text")]
    for wrong in (*without, row | {"text": ["One."]}, row | {"text": 17}, row | {"id": 1}, [1], "x"):
        (tmp_path / "captions.jsonl").write_text(json.dumps(wrong) + "\n")
        result = caption_clips(clips[:1], tmp_path, _FakeModel(["Two."]), prompt, VIEW)
        assert result.captions == {"id0": "Two."}
    assert "1 rows are no answers" in caplog.text


@given(cut=st.integers(0, 3000))
@settings(max_examples=60, deadline=None)
def test_a_journal_that_is_cut_anywhere_keeps_every_row_before_the_cut(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cut")
    clip = TableClip(id="", video_path=folder, source=str(folder / "ä"), caption="", split="", label="")
    clips = [dataclasses.replace(clip, id=f"ü{number}") for number in range(4)]
    prompt, journal = Prompt("vögel", "Was hört man? 🔔"), folder / "captions.jsonl"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("data_prep.soundcap.captions.WorkerPool", _InProcess)
        first = caption_clips(clips, folder, _FakeModel([]), prompt, VIEW)
        content = journal.read_bytes()
        cut %= len(content) + 1
        journal.write_bytes(content[:cut])
        assert caption_clips(clips, folder, _FakeModel([]), prompt, VIEW) == first
    assert [row["id"] for row in _read_journal(folder)] == [clip.id for clip in clips]
    assert journal.read_bytes().startswith(content[: content.rfind(b"\n", 0, cut) + 1])


def test_two_processes_do_not_write_to_one_folder(clips, tmp_path):
    with lock_folder(tmp_path), pytest.raises(FlowleyError, match="another process is writing to it"):
        caption_clips(clips, tmp_path, _FakeModel([]), Prompt.read(CAPTIONS), VIEW)


def test_half_a_surrogate_pair_in_an_answer_does_no_harm(clips, tmp_path, in_process):
    for _ in range(2):
        result = caption_clips(
            clips[:1], tmp_path, _FakeModel(["A bell \ud83d rings 🔔."]), Prompt.read(CAPTIONS), VIEW
        )
        assert result.captions == {"id0": "A bell rings 🔔."}
    assert _read_journal(tmp_path)[0]["text"] == "A bell \ud83d rings 🔔."


@pytest.mark.parametrize(
    ("userinfo", "sent"),
    [
        ("me:s%2Fcret@", "Basic bWU6cy9jcmV0"),
        ("tok-secret@", "Basic dG9rLXNlY3JldDo="),
        ("", "Bearer key-secret"),
    ],
)
def test_no_secret_reaches_a_message(server, userinfo, sent):
    url, log = server
    secret_url = url.replace("://", f"://{userinfo}") + "/?token=query-secret"
    model = _server_model(secret_url, key="key-secret")
    assert model([LOADED], "x") == ["A thud over 2 pictures, 0 sounds."]
    request = json.loads(log.read_text().splitlines()[-1])
    assert request["key"] == sent and request["path"] == "/v1/chat/completions?token=query-secret"
    with pytest.raises(FlowleyError, match="answers 401") as refused:
        _server_model(secret_url, "echo", key="key-secret")([LOADED], "x")
    with pytest.raises(FlowleyError, match="no answer in 4 attempts") as unreachable:
        _server_model(f"http://{userinfo}127.0.0.1:9/v1", key="key-secret")([LOADED], "x")
    (rejection,) = _server_model(secret_url, "leak", key="key-secret")([LOADED], "x")
    assert "wrong key" in rejection.detail
    shown = f"{refused.value} {unreachable.value} {rejection} {model.identity} {model._address}"
    assert model.identity["server"] == url
    assert not [secret for secret in ("cret", sent.split()[1]) if secret in shown]


def test_no_secret_reaches_a_file(clips, tmp_path, server, caplog, in_process):
    url = server[0].replace("://", "://me:secret@")
    for folder, kind in (("good", ""), ("bad", "error_object")):
        model = _server_model(url, kind, key="key-secret")
        caption_clips(clips[:1], tmp_path / folder, model, Prompt.read(CAPTIONS), VIEW)
    files = [path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()]
    assert len(files) >= 6 and not [text for text in (*files, caplog.text) if "secret" in text]
    assert _read_journal(tmp_path / "good")[0]["server"] == server[0]


@pytest.mark.parametrize(
    "url",
    [
        "me:secret@host:8000/v1",
        "ftp://me:secret@host/v1",
        "https://me:secret@host:99999/v1",
        "https://me:secret@:80/v1",
        "https://me:se/cret@host/v1",
        "https://me:se?cret@host/v1",
        "https://me:se#cret@host/v1",
        "https://me:secret@ho st/v1",
        "https://me:secret@" + "h" * 70 + "/v1",
        "https://me:secret@[::1/v1",
        "https://me:secret@hóst/v1",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_password(url):
    with pytest.raises(FlowleyError) as caught:
        ServerModel(url, "x")
    message = str(caught.value)
    assert not [part for part in ("me:", "secret", "cret", "se/") if part in message] and "\n" not in message


def test_a_key_that_cannot_be_sent_is_refused_without_being_shown():
    with pytest.raises(FlowleyError, match="the key of the server must be printable ASCII") as caught:
        ServerModel("http://localhost/v1", "x", key="secret\r\nHost: other")
    assert "secret" not in str(caught.value)


def test_the_audit_page_shows_clips_with_their_captions(clips, tmp_path):
    page = tmp_path / "audit.html"
    write_audit(page, clips, {"id0": "A <thud> & more."}, number=6, title="Captions")
    text = page.read_text()
    assert text.count("<article>") == 6 and "A &lt;thud&gt; &amp; more." in text
    assert text.count("class='none'") == 5 and "a &lt;label&gt;" in text
    assert text.count("poster='data:image/jpeg;base64,") == 5
    write_audit(page, clips, {}, number=2, title="Captions", seed=3)
    assert page.read_text().count("<article>") == 2
    assert np.sum(["c0.mp4" in text, "bad.mp4" in text]) == 2


def test_the_audit_page_links_to_names_that_an_address_cannot_hold(tmp_path):
    names = ["My dog #shorts 100%? 'a' & \"b\".mp4", "vögel.mp4", "a:b.mp4"]
    clips = read_clip_table(
        unusable.write_table(
            tmp_path, [(str(number), name, "x", "train", "x") for number, name in enumerate(names)]
        )
    )
    (tmp_path / "page").mkdir()
    write_audit(tmp_path / "page/audit.html", clips, {}, number=3, title="x")
    sources = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: sources.append(dict(attributes).get("src"))
    parser.feed((tmp_path / "page/audit.html").read_text())
    page = (tmp_path / "page/audit.html").as_uri()
    files = [urlsplit(urljoin(page, source)) for source in sources if source]
    assert not [file for file in files if file.query or file.fragment]
    assert sorted(unquote(file.path) for file in files) == sorted(str(tmp_path / name) for name in names)


def test_a_clip_that_blocks_its_reader_does_not_stop_the_audit_page(tmp_path):
    clips = read_clip_table(unusable.write_table(tmp_path, [unusable.write_hanging(tmp_path)]))
    write_audit(tmp_path / "audit.html", clips, {}, number=1, title="x", time_limit=0.5)
    text = (tmp_path / "audit.html").read_text()
    assert "<article>" in text and "poster=" not in text


def _table_clips(**splits):
    return [
        TableClip(id=f"{split}{number}", video_path=Path(), source="", caption="", split=split, label="")
        for split, count in splits.items()
        for number in range(count)
    ]


def _ids(examples):
    return [clip.id for clip, _ in examples]


def test_fine_tuning_never_sees_the_test_split():
    clips = _table_clips(train=3, valid=2, test=4)
    train, valid = split_examples(clips, {clip.id: "a bell" for clip in clips})
    assert _ids(train) == ["train0", "train1", "train2"] and _ids(valid) == ["valid0", "valid1"]
    train, valid = split_examples(clips, {clip.id: "a bell" for clip in clips if clip.split == "test"})
    assert not train and not valid


def test_a_part_of_the_train_split_is_held_out_if_valid_has_no_captions():
    clips = _table_clips(train=200, valid=5, test=5)
    captions = {clip.id: "a bell" for clip in clips if clip.split != "valid"}
    train, valid = split_examples(clips, captions)
    assert (len(train), len(valid)) == (190, 10)
    assert sorted(_ids(train) + _ids(valid)) == sorted(clip.id for clip in clips[:200])
    # One caption less changes at most one of the clips that are held out.
    fewer = {clip_id: caption for clip_id, caption in captions.items() if clip_id != train[0][0].id}
    assert len(set(_ids(split_examples(clips, fewer)[1])) - set(_ids(valid))) <= 1
    assert [len(part) for part in split_examples(clips[1:3], captions)] == [1, 1]
    assert [len(part) for part in split_examples(clips[1:2], captions)] == [1, 0]
    many = _table_clips(train=20_000)
    assert len(split_examples(many, {clip.id: "a bell" for clip in many})[1]) == 500


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--fps=100", "--seconds=60"), "--seconds=60 at --fps=100 are 6000 frames, at most 768 are allowed"),
        (("--key-variable=sk-secret",), "--key-variable must name a variable of the environment"),
        (("--server=word",), "word: the address of a server must begin with http:// or https://"),
        (("--adapter=word",), "adapter=word must be empty with a server"),
        (("--prompt=word",), "prompt='word' must be one of captions_v1, targets_v1"),
        (("--table=word",), "word: no such clip table"),
        (("--table=",), "--table='' must not be empty"),
        (("--fps=nan",), "--fps='nan' must be a finite number"),
        (("--at-once=100000000000000000000",), "must be at least 1 and at most 1024"),
    ],
)
def test_the_command_line_names_a_wrong_flag(clips, tmp_path, flags, expected):
    table = clips[0].video_path.parent / "clips.tsv"
    first = (f"--table={table}", f"--out={tmp_path}", "--model=x", "--server=http://127.0.0.1:9/v1")
    result = shell.run("data_prep.soundcap", *first, *flags)
    shell.fails_in_one_line(result, expected)
    assert "secret" not in result.stderr and not list(tmp_path.glob("*.tsv"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--epochs=0",), "--epochs='0' must be above 0"),
        (("--learning-rate=1e20",), "--learning-rate='1e20' must be above 0 and at most 1"),
        (("--device=word",), "device=word must be cpu or empty"),
        (("--captions=word",), "word: no such file"),
        (("--prompt=word",), "prompt='word' must be one of"),
    ],
)
def test_fine_tuning_names_a_wrong_flag(clips, tmp_path, flags, expected):
    table = clips[0].video_path.parent / "clips.tsv"
    first = (f"--table={table}", f"--captions={table}", f"--out={tmp_path}", "--model=x")
    shell.fails_in_one_line(shell.run("data_prep.soundcap.finetune", *first, *flags), expected)


def test_sample_asks_for_captions_with_its_key_before_it_makes_the_sampler(clips, tmp_path, server):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(dataclasses.asdict(ExperimentConfig())))
    url, log = server
    log.write_text("")
    first = (f"--workdir={tmp_path / 'run'}", f"--video={clips[0].video_path}", f"--out={tmp_path / 'a.mp4'}")
    flags = (f"--soundcap={openai_server.MODEL}", f"--soundcap-server={url}", "--key-variable=HOME")
    result = shell.run("flowley_jax.sample", *first, *flags)
    # The run has no weights, so there is no sampler.
    assert result.returncode == 2 and str(tmp_path / "run") in result.stderr.splitlines()[-1]
    (request,) = (json.loads(line) for line in log.read_text().splitlines())
    assert request["key"] == f"Bearer {os.environ['HOME']}"
    result = shell.run("flowley_jax.sample", *first, "--key-variable=HOME")
    shell.fails_in_one_line(result, "--key-variable needs --soundcap-server")


def test_captions_become_prompts_and_clips_with_a_fault_stay(clips, tmp_path, in_process):
    inputs = [
        InputClip(id="a", path=clips[0].video_path, prompt="of the table"),
        InputClip(id="b", path=clips[1].video_path, prompt="", fault="b: no such file"),
        InputClip(id="c", path=clips[2].video_path, prompt=""),
    ]
    captioned, failed = with_captions(inputs, _FakeModel(["A thud.", "I cannot hear."]), tmp_path)
    assert captioned == [dataclasses.replace(inputs[0], prompt="A thud."), inputs[1]]
    assert len(failed) == 1 and failed[0].startswith(f"{clips[2].video_path}: no caption")
