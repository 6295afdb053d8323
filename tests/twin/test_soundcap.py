"""SoundCap with small random models of the real classes: captioning, fine-tuning, and use of the adapter."""

import json
import signal
import weakref

import numpy as np
import pytest
import tiny_vlm
import unusable

from data_prep.rejection import Rejection
from data_prep.soundcap.captions import caption_clips
from data_prep.soundcap.clip_view import ClipView, ViewConfig
from data_prep.soundcap.prompts import CAPTIONS, TARGETS, Prompt
from flowley_jax.common.locks import lock_folder
from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError

pytestmark = [
    pytest.mark.torch,
    # Warnings of transformers, peft and PyTorch about each other.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
]

VIEW = ViewConfig(seconds=1.0, fps=4.0, size=64)
ANSWERS = ("a dog barks at the gate", "rain falls on a tin roof")


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory):
    return str(tiny_vlm.write_silent(tmp_path_factory.mktemp("models") / "vl"))


@pytest.fixture(scope="module")
def audio_visual_model(tmp_path_factory):
    return str(tiny_vlm.write_audio_visual(tmp_path_factory.mktemp("models") / "omni"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four training clips, a validation clip, and a file that is no video."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for index in range(5):
        unusable.write_clip(folder / f"c{index}.mp4", seed=index)
        rows.append((f"id{index}", f"c{index}.mp4", "x", "valid" if index == 4 else "train", "x"))
    (folder / "bad.mp4").write_bytes(b"not a film")
    rows.append(("bad", "bad.mp4", "x", "train", "x"))
    return read_clip_table(unusable.write_table(folder, rows))


def _view(seed, *, sound=False, frames=4):
    rng = np.random.default_rng(seed)
    wave = rng.uniform(-0.3, 0.3, 16_000).astype(np.float32) if sound else None
    return ClipView(rng.integers(0, 255, (frames, 48, 64, 3)).astype(np.uint8), 4.0, wave)


def _model(folder, **options):
    from data_prep.soundcap.local import LocalModel

    return LocalModel(folder, max_tokens=8, dtype="float32", **options)


@pytest.mark.parametrize("hears", [False, True])
def test_answers_do_not_depend_on_the_batch(vision_model, audio_visual_model, hears):
    model = _model(audio_visual_model if hears else vision_model, sound=hears)
    views = [_view(seed, sound=hears, frames=2 * seed + 2) for seed in range(3)]
    batched = model(views, "What is heard?")
    assert batched == [model([view], "What is heard?")[0] for view in views]
    assert all(batched) and len(set(batched)) > 1


def test_an_audio_visual_model_reads_the_audio(audio_visual_model):
    import torch

    model = _model(audio_visual_model, sound=True)
    constant, fading = _view(0, sound=True), _view(0, sound=True)
    fading.wave[:] *= np.linspace(0, 1, 16_000)
    batches = [model.inputs([view], "What is heard?") for view in (constant, fading)]
    # One second of audio is 25 tokens, interleaved with those of the frames.
    is_audio = batches[0]["input_ids"][0] == model.model.config.audio_token_id
    assert is_audio.sum() == 25
    with torch.inference_mode():
        first, second = (model.model(**batch).logits[0, -1] for batch in batches)
    assert (first - second).abs().max() > 1e-4


def test_models_that_cannot_be_used_are_named_in_the_error(vision_model, tmp_path):
    with pytest.raises(FlowleyError, match="qwen2_5_vl has no audio input"):
        _model(vision_model, sound=True)
    with pytest.raises(FlowleyError, match=r"nowhere: no such folder"):
        _model(str(tmp_path / "nowhere"))
    with pytest.raises(FlowleyError, match="cannot be loaded"):
        _model(str(tmp_path))
    with pytest.raises(FlowleyError, match="not a LoRA adapter"):
        _model(vision_model, adapter=str(tmp_path))


def test_a_clip_that_the_model_refuses_does_not_affect_the_others(vision_model, monkeypatch):
    model = _model(vision_model)
    good, bad = _view(0), _view(1)
    generate = model._generate

    def failing_for_one(views, prompt):
        if any(view is bad for view in views):
            raise RuntimeError("CUDA out of memory")
        return generate(views, prompt)

    monkeypatch.setattr(model, "_generate", failing_for_one)
    first, second = model([good, bad], "x")
    assert isinstance(first, str) and second == Rejection("model", "CUDA out of memory")


def test_an_audio_visual_model_captions_clips(clips, audio_visual_model, tmp_path):
    view = ViewConfig(seconds=1.0, fps=4.0, size=64, sound=True)
    model = _model(audio_visual_model, sound=True, batch_size=2)
    result = caption_clips(clips, tmp_path, model, Prompt.read(TARGETS), view)
    answers = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert len(answers) == 6 and sum("text" in answer for answer in answers) == 5
    assert result.rejected["bad"].reason == "unreadable"
    assert {answer["model"] for answer in answers} == {audio_visual_model}


def test_fine_tuning_learns_resumes_and_writes_an_adapter(clips, vision_model, tmp_path, monkeypatch):
    from data_prep.soundcap import training

    captions = {clip.id: ANSWERS[index % 2] for index, clip in enumerate(clips)}
    config = training.FinetuneConfig(
        rank=16, epochs=20.0, accumulation=2, learning_rate=1e-2, save_every=8, workers=0
    )
    prompt = Prompt.read(CAPTIONS)

    def finetune(captions=captions):
        return training.finetune(
            clips, captions, _model(vision_model), prompt, VIEW, config, tmp_path / "out"
        )

    on_log = training._Metrics.on_log
    steps = []

    def interrupting_on_log(self, args, state, control, logs=None, **others):
        on_log(self, args, state, control, logs, **others)
        steps.append(state.global_step)
        if len(steps) == 20:
            raise KeyboardInterrupt
        if len(steps) == 30:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training._Metrics, "on_log", interrupting_on_log)
    with pytest.raises(KeyboardInterrupt):
        finetune()
    # A kill while the next checkpoint was written.
    (tmp_path / "out/checkpoint-24").mkdir()
    (tmp_path / "out/checkpoint-24/adapter_model.safetensors").write_bytes(b"half")
    (tmp_path / "out/checkpoint-24/trainer_state.json").write_text('{"epoch": 8')
    assert finetune() is None
    adapter = finetune()
    # After the crash it resumed from the second checkpoint, and after Ctrl-C from the last step.
    assert steps[19:21] == [20, 17] and steps[29:31] == [26, 27]
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, len(losses) + 1))
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
    assert "eval_loss" in rows[-1]
    # The unreadable clip is listed once, not in each of the twenty epochs.
    (unreadable,) = (tmp_path / "out/unreadable.tsv").read_text().splitlines()
    assert unreadable.startswith("bad\tunreadable\t")
    original, tuned = _model(vision_model), _model(vision_model, adapter=str(adapter))
    views = [_view(0)]
    assert original(views, prompt.text) != tuned(views, prompt.text)
    answer = tuned(views, prompt.text)[0]
    assert any(word in answer for word in ("dog", "rain", "barks", "falls", "gate", "roof"))
    assert tuned.identity["adapter"] == str(adapter)
    written = adapter.stat().st_mtime_ns
    assert finetune() == adapter and adapter.stat().st_mtime_ns == written
    with pytest.raises(FlowleyError, match="holds a training run with different captions"):
        finetune({**captions, "id0": "a bell"})
    with pytest.raises(FlowleyError, match="none of 6 clips has a caption"):
        finetune({})


def test_fine_tuning_refuses_a_folder_in_use_or_with_a_damaged_description(clips, vision_model, tmp_path):
    from data_prep.soundcap import training

    def finetune():
        captions = {clip.id: ANSWERS[0] for clip in clips}
        config = training.FinetuneConfig(workers=0)
        return training.finetune(
            clips, captions, _model(vision_model), Prompt.read(CAPTIONS), VIEW, config, tmp_path
        )

    with lock_folder(tmp_path), pytest.raises(FlowleyError, match="another process is writing to it"):
        finetune()
    (tmp_path / "provenance.json").write_text('{"model": "x"')
    with pytest.raises(FlowleyError, match=r"provenance\.json: is not valid JSON"):
        finetune()


def test_an_unreadable_clip_is_listed_once_also_after_a_line_that_was_cut(clips, tmp_path):
    from data_prep.soundcap.training import _Examples

    bad = next(clip for clip in clips if clip.id == "bad")
    (tmp_path / "unreadable.tsv").write_bytes("ü\tunreadable\tü".encode()[:-1])
    examples = _Examples([(bad, "a bell")], VIEW, 60.0, tmp_path)
    try:
        assert [examples[0], examples[0]] == [(None, "a bell")] * 2
    finally:
        examples.close()
    lines = (tmp_path / "unreadable.tsv").read_bytes().split(b"\n")[1:-1]
    assert len(lines) == 1 and lines[0].startswith(b"bad\tunreadable\t")


def test_a_closed_model_frees_its_network(vision_model):
    model = _model(vision_model)
    network = weakref.ref(model.model)
    model.close()
    assert network() is None


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("word", "device='word' must be a device of PyTorch"),
        ("cuda", "device='cuda': PyTorch finds no GPU"),
        ("mps", "cannot be loaded"),
    ],
)
def test_a_device_that_is_not_there_is_named(vision_model, monkeypatch, device, expected):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FlowleyError, match=expected):
        _ = _model(vision_model, device=device).model


def test_fine_tuning_is_reproducible(clips, vision_model, tmp_path):
    from data_prep.soundcap import training

    config = training.FinetuneConfig(rank=2, epochs=0.5, accumulation=1, workers=0)
    captions = dict.fromkeys(("id0", "id1"), ANSWERS[0])
    adapters = [
        training.finetune(
            clips, captions, _model(vision_model), Prompt.read(CAPTIONS), VIEW, config, tmp_path / name
        )
        for name in "ab"
    ]
    first, second = ((adapter / "adapter_model.safetensors").read_bytes() for adapter in adapters)
    assert first == second


def test_only_tokens_of_the_answer_have_labels(vision_model):
    from data_prep.soundcap.training import _collate

    model = _model(vision_model)
    first, second = ANSWERS
    items = [(_view(0), first), (None, second), (_view(1, frames=8), second)]
    batch = _collate(items, model=model, prompt="What is heard?", view=VIEW)
    texts = [
        model.processor.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True).strip()
        for labels in batch["labels"]
    ]
    assert texts == [first, "", second]
    assert (batch["labels"][0][-3:] >= 0).all()
