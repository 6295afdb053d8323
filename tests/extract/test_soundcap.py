"""SoundCap without a real model: prompts, filters, the journal, resuming, servers and the audit page."""

import importlib
import json
import logging

import numpy as np
import openai_server
import pytest
import unusable

from data_prep.caption_files import read_captions
from data_prep.rejection import Rejection
from data_prep.soundcap.audit import write_audit
from data_prep.soundcap.captions import caption_clips
from data_prep.soundcap.clip_view import ViewConfig
from data_prep.soundcap.filters import clean_answer, find_problem
from data_prep.soundcap.models import open_model
from data_prep.soundcap.prompts import CAPTIONS, TARGETS, Prompt
from data_prep.soundcap.server import ServerModel
from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError

VIEW = ViewConfig(seconds=1.0, fps=4.0, size=32)


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
        ("00:03 a dog barks", "speech"),
        ("bark bark bark bark bark", "repetition"),
        ("a dog barks and " * 4, "repetition"),
        ("一只狗在门口大声地叫", "language"),
        ("ein Hund bellt laut und der Regen fällt dabei leise", "language"),
        ("A dog barks twice, sharply, while rain drums on a tin roof.", None),
        ("A man speaks calmly, then a car passes.", None),
        ("Footsteps on gravel.", None),
        ('A "clang" of metal echoes.', None),
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


def test_a_finished_run_asks_nothing_unless_told_to_or_the_prompt_changes(clips, tmp_path):
    prompt, refused = Prompt.read(CAPTIONS), Rejection("model", "out of memory")
    model = _FakeModel(["A thud.", "I cannot hear.", "Glass rings.", refused, "Rain falls."])
    result = caption_clips(clips, tmp_path, model, prompt, VIEW)
    assert caption_clips(clips, tmp_path, _FakeModel([]), prompt, VIEW) == result
    retried = _FakeModel(["Bells.", "Drums."])
    captions = caption_clips(clips, tmp_path, retried, prompt, VIEW, retry=True).captions
    assert captions == {**result.captions, "id1": "Bells.", "id3": "Drums."} and len(retried.views) == 2
    other = _FakeModel(["One.", "Two.", "Three.", "Four.", "Five."])
    assert len(caption_clips(clips, tmp_path, other, Prompt("x", "y"), VIEW).captions) == 5


def test_a_model_that_refuses_every_clip_ends_the_run(clips, tmp_path):
    refused, prompt = Rejection("model", "too many pictures"), Prompt.read(CAPTIONS)
    model = _FakeModel([refused] * 5, batch_size=5)
    with pytest.raises(FlowleyError, match=r"refuses all of the first 5 clips \(too many pictures\)"):
        caption_clips(clips, tmp_path / "all", model, prompt, VIEW)
    # The refusals were not recorded: the same command asks again.
    model.answers = ["a dog barks at the gate", *[refused] * 4]
    result = caption_clips(clips, tmp_path / "all", model, prompt, VIEW)
    assert list(result.captions) == ["id0"] and len(result.rejected) == 5


def test_a_model_may_refuse_a_few_clips_at_a_time(clips, tmp_path):
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
