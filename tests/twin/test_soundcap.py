"""SoundCap with small random models of the real classes: both steps, and what is made of them."""

import json
import signal

import numpy as np
import pytest
import tiny_vlm
import unusable

from data_prep.rejection import Rejection
from data_prep.soundcap.captions import caption_clips
from data_prep.soundcap.look import Seen, Viewing
from data_prep.soundcap.prompts import CAPTIONS, TARGETS, Prompt
from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError

pytestmark = [
    pytest.mark.torch,
    # Of transformers, peft and PyTorch among each other.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
]

VIEWING = Viewing(seconds=1.0, fps=4.0, size=64)
TARGET = ("a dog barks at the gate", "rain falls on a tin roof")


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    return str(tiny_vlm.write_silent(tmp_path_factory.mktemp("models") / "vl"))


@pytest.fixture(scope="module")
def audio_visual(tmp_path_factory):
    return str(tiny_vlm.write_audio_visual(tmp_path_factory.mktemp("models") / "omni"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for index in range(5):
        unusable.write_clip(folder / f"c{index}.mp4", seed=index)
        rows.append((f"id{index}", f"c{index}.mp4", "x", "valid" if index == 4 else "train", "x"))
    (folder / "bad.mp4").write_bytes(b"not a film")
    rows.append(("bad", "bad.mp4", "x", "train", "x"))
    return read_clip_table(unusable.write_table(folder, rows))


def _seen(seed, *, sound=False, frames=4):
    rng = np.random.default_rng(seed)
    wave = rng.uniform(-0.3, 0.3, 16_000).astype(np.float32) if sound else None
    return Seen(rng.integers(0, 255, (frames, 48, 64, 3)).astype(np.uint8), 4.0, wave)


def _model(folder, **options):
    from data_prep.soundcap.local import LocalModel

    return LocalModel(folder, max_tokens=8, dtype="float32", **options)


@pytest.mark.parametrize("hears", [False, True])
def test_answers_do_not_depend_on_the_batch(silent, audio_visual, hears):
    model = _model(audio_visual if hears else silent, sound=hears)
    clips = [_seen(seed, sound=hears, frames=2 * seed + 2) for seed in range(3)]
    together = model(clips, "What is heard?")
    assert together == [model([clip], "What is heard?")[0] for clip in clips]
    assert all(together) and len(set(together)) > 1


def test_one_that_hears_reads_the_sound(audio_visual):
    import torch

    model = _model(audio_visual, sound=True)
    loud, soft = _seen(0, sound=True), _seen(0, sound=True)
    soft.wave[:] *= np.linspace(0, 1, 16_000)
    batches = [model.inputs([clip], "What is heard?") for clip in (loud, soft)]
    # One second of sound in tokens, in among those of the picture.
    hearing = batches[0]["input_ids"][0] == model.model.config.audio_token_id
    assert hearing.sum() == 25
    with torch.inference_mode():
        first, second = (model.model(**batch).logits[0, -1] for batch in batches)
    assert (first - second).abs().max() > 1e-4


def test_one_that_cannot_hear_is_refused_and_so_is_no_model(silent, tmp_path):
    with pytest.raises(FlowleyError, match="a qwen2_5_vl hears nothing"):
        _model(silent, sound=True)
    with pytest.raises(FlowleyError, match=r"nowhere: no such folder"):
        _model(str(tmp_path / "nowhere"))
    with pytest.raises(FlowleyError, match="cannot be loaded"):
        _model(str(tmp_path))
    with pytest.raises(FlowleyError, match="holds no adapter"):
        _model(silent, adapter=str(tmp_path))


def test_a_clip_that_a_model_cannot_take_costs_no_other(silent, monkeypatch):
    model = _model(silent)
    good, bad = _seen(0), _seen(1)
    answer = model._answers

    def failing(clips, prompt):
        if any(clip is bad for clip in clips):
            raise RuntimeError("CUDA out of memory")
        return answer(clips, prompt)

    monkeypatch.setattr(model, "_answers", failing)
    first, second = model([good, bad], "x")
    assert isinstance(first, str) and second == Rejection("model", "CUDA out of memory")


def test_targets_come_from_a_model_that_hears(clips, audio_visual, tmp_path):
    viewing = Viewing(seconds=1.0, fps=4.0, size=64, sound=True)
    model = _model(audio_visual, sound=True, at_once=2)
    captioned = caption_clips(clips, tmp_path, model, Prompt.read(TARGETS), viewing)
    answers = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert len(answers) == 6 and sum("text" in answer for answer in answers) == 5
    assert captioned.rejected["bad"].reason == "unreadable"
    assert {answer["model"] for answer in answers} == {audio_visual}


def test_fine_tuning_learns_and_its_adapter_is_used(clips, silent, tmp_path, monkeypatch):
    from data_prep.soundcap import training

    captions = {clip.id: TARGET[index % 2] for index, clip in enumerate(clips)}
    config = training.TuningConfig(
        rank=16, epochs=20.0, accumulation=2, learning_rate=1e-2, save_every=8, workers=0
    )
    prompt = Prompt.read(CAPTIONS)

    def tune(captions=captions):
        return training.finetune(clips, captions, _model(silent), prompt, VIEWING, config, tmp_path / "out")

    saved = training._Metrics.on_log
    seen = []

    def stopping(self, args, state, control, logs=None, **others):
        saved(self, args, state, control, logs, **others)
        seen.append(state.global_step)
        if len(seen) == 20:
            raise KeyboardInterrupt
        if len(seen) == 30:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training._Metrics, "on_log", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune()
    assert tune() is None
    adapter = tune()
    # It went on from the second checkpoint, and after Ctrl-C from the step itself.
    assert seen[19:21] == [20, 17] and seen[29:31] == [26, 27]
    logged = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in logged if "loss" in row]
    assert [row["step"] for row in logged if "loss" in row] == list(range(1, len(losses) + 1))
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
    assert "eval_loss" in logged[-1]
    # Once, of twenty epochs.
    (unreadable,) = (tmp_path / "out/unreadable.tsv").read_text().splitlines()
    assert unreadable.startswith("bad\tunreadable\t")
    plain, tuned = _model(silent), _model(silent, adapter=str(adapter))
    shown = [_seen(0)]
    assert plain(shown, prompt.text) != tuned(shown, prompt.text)
    assert any(
        word in tuned(shown, prompt.text)[0] for word in ("dog", "rain", "barks", "falls", "gate", "roof")
    )
    assert tuned.identity["adapter"] == str(adapter)
    changed = adapter.stat().st_mtime_ns
    assert tune() == adapter and adapter.stat().st_mtime_ns == changed
    with pytest.raises(FlowleyError, match="holds a training on other captions"):
        tune({**captions, "id0": "a bell"})
    with pytest.raises(FlowleyError, match="none of 6 clips has a caption"):
        tune({})


def test_the_same_captions_make_the_same_adapter(clips, silent, tmp_path):
    from data_prep.soundcap import training

    config = training.TuningConfig(rank=2, epochs=0.5, accumulation=1, workers=0)
    captions = dict.fromkeys(("id0", "id1"), TARGET[0])
    adapters = [
        training.finetune(
            clips, captions, _model(silent), Prompt.read(CAPTIONS), VIEWING, config, tmp_path / name
        )
        for name in "ab"
    ]
    first, second = ((adapter / "adapter_model.safetensors").read_bytes() for adapter in adapters)
    assert first == second


def test_only_the_answer_is_learned(silent):
    from data_prep.soundcap.training import _collated

    model = _model(silent)
    items = [(_seen(0), TARGET[0]), (None, TARGET[1]), (_seen(1, frames=8), TARGET[1])]
    batch = _collated(items, model=model, prompt="What is heard?", viewing=VIEWING)
    texts = [
        model.processor.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True).strip()
        for labels in batch["labels"]
    ]
    assert texts == [TARGET[0], "", TARGET[1]]
    assert (batch["labels"][0][-3:] >= 0).all()
