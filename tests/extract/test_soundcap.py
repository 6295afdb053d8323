"""Captions of sound: what is asked, which answers are taken, and how a run goes on."""

import importlib
import json
import logging

import numpy as np
import openai_server
import pytest
import unusable

from data_prep.rejection import Rejection
from data_prep.rows import read_captions
from data_prep.soundcap.audit import write_audit
from data_prep.soundcap.captions import caption_clips
from data_prep.soundcap.filters import cleaned, fault_of
from data_prep.soundcap.look import Viewing
from data_prep.soundcap.prompts import CAPTIONS, TARGETS, Prompt
from data_prep.soundcap.server import ServerModel
from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError

VIEWING = Viewing(seconds=1.0, fps=4.0, size=32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for index in range(5):
        unusable.write_clip(folder / f"c{index}.mp4", seed=index, audio=index != 4)
        rows.append((f"id{index}", f"c{index}.mp4", "a <label>", "train", "x"))
    (folder / "bad.mp4").write_bytes(b"not a film")
    rows.append(("bad", "bad.mp4", "x", "valid", "x"))
    return read_clip_table(unusable.write_table(folder, rows))


class _Model:
    """Answers from a list, and remembers what it was shown."""

    at_once = 2

    def __init__(self, answers):
        self.identity = {"model": "fake"}
        self.answers, self.seen = list(answers), []

    def __call__(self, clips, prompt):
        self.seen.extend(clips)
        given, self.answers = self.answers[: len(clips)], self.answers[len(clips) :]
        if len(given) < len(clips):
            raise KeyboardInterrupt
        return given


def test_a_torchvision_of_another_torch_is_told(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FlowleyError, match=r"torch and torchvision do not fit each other \(operator"):
        importlib.import_module("data_prep.soundcap.local")


def test_the_prompts_say_what_the_paper_asks_for():
    targets, captions = Prompt.read(TARGETS), Prompt.read(CAPTIONS)
    for word in ("out of the picture", "background", "hiss", "voice-over", "not the words"):
        assert word in targets.text
    assert "no sound track" in captions.text and targets.sha256 != captions.sha256


def test_prompts_of_ones_own_and_none(tmp_path):
    path = tmp_path / "mine_v2.txt"
    path.write_text("What is heard?\n")
    assert (Prompt.read(str(path)).name, Prompt.read(str(path)).text) == ("mine_v2", "What is heard?")
    with pytest.raises(FlowleyError, match="'poems' is none of captions_v1, targets_v1"):
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
    assert cleaned(text) == expected


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
def test_answers_that_are_no_captions_of_sound(text, code):
    assert (fault_of(text) or (None,))[0] == code


def test_captions_come_with_provenance_and_a_stopped_run_goes_on(clips, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    prompt = Prompt.read(CAPTIONS)
    first = _Model(["A thud.", "I'm sorry, I cannot hear."])
    with pytest.raises(KeyboardInterrupt):
        caption_clips(clips, tmp_path, first, prompt, VIEWING)
    journal = tmp_path / "captions.jsonl"
    assert len(journal.read_text().splitlines()) == 2
    with open(journal, "a") as file:
        file.write('{"id": "id2", "te')
    second = _Model(["Glass rings.", Rejection("model", "out of memory"), "Rain falls."])
    captioned = caption_clips(clips, tmp_path, second, prompt, VIEWING)
    assert "2 of 6 clips have an answer already" in caplog.text
    assert captioned.captions == {"id0": "A thud.", "id2": "Glass rings.", "id4": "Rain falls."}
    reasons = {key: one.reason for key, one in captioned.rejected.items()}
    assert reasons == {"id1": "refusal", "id3": "model", "bad": "unreadable"}
    assert second.seen[0].frames.shape == (4, 32, 32, 3) and second.seen[0].wave is None
    assert read_captions({"soundcap": tmp_path / "captions.tsv"})["soundcap"] == captioned.captions
    rejected = (tmp_path / "rejected.tsv").read_text().splitlines()
    assert [row.split("\t")[:2] for row in rejected[1:]] == [
        ["id1", "refusal"],
        ["id3", "model"],
        ["bad", "unreadable"],
    ]
    answer = json.loads(journal.read_text().splitlines()[0])
    assert answer["model"] == "fake" and answer["prompt"] == CAPTIONS and answer["date"].startswith("20")
    assert answer["text"] == "A thud." and answer["prompt_sha256"] == prompt.sha256
    nothing = _Model([])
    assert caption_clips(clips, tmp_path, nothing, prompt, VIEWING) == captioned
    again = _Model(["Bells.", "Drums."])
    better = caption_clips(clips, tmp_path, again, prompt, VIEWING, retry=True).captions
    assert better == {**captioned.captions, "id1": "Bells.", "id3": "Drums."} and len(again.seen) == 2
    # Another model, another prompt, another way of looking: all is asked anew.
    other = _Model(["One.", "Two.", "Three.", "Four.", "Five."])
    assert len(caption_clips(clips, tmp_path, other, Prompt("x", "y"), VIEWING).captions) == 5


def test_a_model_that_refuses_everything_ends_the_run_and_a_few_clips_do_not(clips, tmp_path):
    refused, ask = Rejection("model", "too many pictures"), Prompt.read(CAPTIONS)
    model = _Model([refused] * 5)
    model.at_once = 5
    with pytest.raises(FlowleyError, match=r"refuses all of the first 5 clips \(too many pictures\)"):
        caption_clips(clips, tmp_path / "all", model, ask, VIEWING)
    # Nothing of it is kept: the same command asks again.
    answers = ["a dog barks at the gate", *[refused] * 4]
    model.answers = list(answers)
    captioned = caption_clips(clips, tmp_path / "all", model, ask, VIEWING)
    assert list(captioned.captions) == ["id0"] and len(captioned.rejected) == 5
    few = caption_clips(clips, tmp_path / "few", _Model([refused] * 5), ask, VIEWING)
    assert not few.captions and len(few.rejected) == 6


def test_a_file_that_has_changed_is_asked_about_again(tmp_path, caplog):
    unusable.write_clip(tmp_path / "a.mp4", seed=0)
    unusable.write_clip(tmp_path / "b.mp4", seed=1)
    rows = [("a", "a.mp4", "x", "train", "x"), ("b", "b.mp4", "x", "train", "x")]
    clips = read_clip_table(unusable.write_table(tmp_path, rows))
    prompt = Prompt.read(CAPTIONS)
    caption_clips(clips, tmp_path / "out", _Model(["One.", "Two."]), prompt, VIEWING)
    unusable.write_clip(tmp_path / "b.mp4", seed=2)
    again = caption_clips(clips, tmp_path / "out", _Model(["Three."]), prompt, VIEWING)
    assert again.captions == {"a": "One.", "b": "Three."}
    assert "now" not in caplog.text
    caption_clips(clips, tmp_path / "out", _Model(["Four.", "Five."]), Prompt("x", "y"), VIEWING)
    assert "captions.tsv gets captions of this model, prompt and way of showing now" in caplog.text


def test_a_server_is_shown_pictures_and_sound(clips, tmp_path):
    viewing = Viewing(seconds=1.0, fps=4.0, size=32, sound=True)
    log = tmp_path / "requests.jsonl"
    with openai_server.running(log, busy=2) as url:
        model = ServerModel(url, openai_server.MODEL, at_once=3, key="secret", pause=0.05)
        captioned = caption_clips(clips, tmp_path / "out", model, Prompt.read(TARGETS), viewing)
    said = "A thud over 4 pictures, 1 sounds."
    assert captioned.captions == {f"id{index}": said for index in range(4)}
    assert {key: one.reason for key, one in captioned.rejected.items()} == {
        "id4": "no_audio",
        "bad": "unreadable",
    }
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(requests) == 6 and requests[0]["key"] == "Bearer secret"
    assert requests[0]["temperature"] == 0.0 and requests[0]["max_tokens"] == 128
    assert requests[0]["messages"][0]["content"][-1] == {"type": "text", "text": Prompt.read(TARGETS).text}


def test_what_a_server_refuses_and_one_that_is_not_there(clips, tmp_path):
    single, prompt = Viewing(seconds=0.25, fps=4.0, size=32), Prompt.read(CAPTIONS)
    with openai_server.running(tmp_path / "requests.jsonl") as url:
        model = ServerModel(url, openai_server.MODEL, pause=0.01)
        rejected = caption_clips(clips[:1], tmp_path / "out", model, prompt, single).rejected
        assert rejected["id0"].reason == "model" and "400" in rejected["id0"].detail
        with pytest.raises(FlowleyError, match=r"/v1: answers 404 for 'other' \(.*no model other"):
            caption_clips(clips[:1], tmp_path, ServerModel(url, "other"), prompt, VIEWING)
    with pytest.raises(FlowleyError, match="must begin with http"):
        ServerModel("localhost:8000", "x")
    gone = ServerModel(url, openai_server.MODEL, pause=0.01)
    with pytest.raises(FlowleyError, match=r"no answer in 4 attempts .*run again to go on"):
        caption_clips(clips[:1], tmp_path, gone, prompt, VIEWING)


def test_the_sheet_shows_clips_with_their_captions(clips, tmp_path):
    page = tmp_path / "audit.html"
    write_audit(page, clips, {"id0": "A <thud> & more."}, number=6, title="Captions")
    text = page.read_text()
    assert text.count("<article>") == 6 and "A &lt;thud&gt; &amp; more." in text
    assert text.count("class='none'") == 5 and "a &lt;label&gt;" in text
    assert text.count("poster='data:image/jpeg;base64,") == 5
    write_audit(page, clips, {}, number=2, title="Captions", seed=3)
    assert page.read_text().count("<article>") == 2
    assert np.sum(["c0.mp4" in text, "bad.mp4" in text]) == 2
