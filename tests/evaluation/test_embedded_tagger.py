"""The embedded tagger of a clip table: trained once on its real sounds, and kept in a file."""

import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
import soundfile

from flowley_jax.data.clip_table import TableClip
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.embedded_tagger import embedded_tagger, tagger_clips
from flowley_jax.evaluation.labels import accuracy, targets
from flowley_jax.evaluation.preparation import Preparation

RATE = 16_000


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Forty labelled sounds of a second, tones and noises in turn."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    time, made = np.arange(RATE) / RATE, []
    for index in range(40):
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(300, 900) * time)
        path, label = folder / f"{index}.wav", "tone" if index % 2 else "noise"
        soundfile.write(path, tone if index % 2 else 0.1 * rng.standard_normal(RATE), RATE)
        made.append(
            TableClip(id=path.stem, video_path=path, source="", caption="", split="train", label=label)
        )
    return made


@contextlib.contextmanager
def _in_this_process(preparation):
    yield lambda calls: itertools.starmap(preparation, calls)


def _must_not_read(preparation):
    raise AssertionError("sounds are read again")


def test_the_tagger_is_trained_once_and_hears_the_labels(clips, tmp_path):
    path = tmp_path / "out" / "tagger.safetensors"
    tagger = embedded_tagger(clips, path, seconds=1.0, readers=_in_this_process)
    log_mels = [Preparation(("tagger",), 1.0)(str(clip.video_path))["tagger"]["log_mels"] for clip in clips]
    logits = np.asarray(tagger(np.stack(log_mels))[1])
    named = targets([clip.label for clip in clips], tagger.config.classes)
    assert accuracy(logits, named, tagger.config.classes)["class"].mean() == 1.0
    again = embedded_tagger(clips, path, seconds=1.0, readers=_must_not_read)
    np.testing.assert_array_equal(again(np.stack(log_mels))[1], logits)
    with pytest.raises(FlowleyError, match="was trained on other clips or another --seconds"):
        embedded_tagger(clips[1:], path, seconds=1.0, readers=_must_not_read)
    with pytest.raises(FlowleyError, match="was trained on other clips or another --seconds"):
        embedded_tagger(clips, path, seconds=0.5, readers=_must_not_read)


def test_the_reason_is_told_if_too_few_sounds_can_be_used(clips, tmp_path):
    message = r"needs 32 .* of 2 s with sound; 0 of 40 can be used \(0: has 1\.00 s of sound; 2 s are"
    with pytest.raises(FlowleyError, match=message):
        embedded_tagger(clips, tmp_path / "tagger.safetensors", seconds=2.0, readers=_in_this_process)
    assert not list(tmp_path.iterdir())


def test_only_labelled_training_clips_of_few_classes_train_a_tagger(clips):
    others = [dataclasses.replace(clips[0], split="test"), dataclasses.replace(clips[0], label="")]
    assert tagger_clips([*clips, *others]) == clips
    assert tagger_clips(clips[:31]) == []
    assert tagger_clips([dataclasses.replace(clip, label="tone") for clip in clips]) == []
