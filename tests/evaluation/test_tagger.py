"""The embedded tagger: labels, training on a few sounds, its file, and what it is not trained for."""

import numpy as np
import pytest

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.labels import accuracy, all_classes, classes_of, targets
from flowley_jax.evaluation.tagger import (
    SAMPLE_RATE,
    front_end,
    load_tagger,
    save_tagger,
)
from flowley_jax.evaluation.tagger_training import TaggerTraining, train_tagger
from flowley_jax.interop.weight_files import write_arrays

CLASSES = ("glass bounces", "glass swings", "metal bounces", "saw")


def test_labels_name_classes():
    assert classes_of("metal bounces + saw") == ("metal bounces", "saw")
    assert classes_of("") == () and all_classes(["b + a", "", "a"]) == ("a", "b")
    np.testing.assert_array_equal(targets(["saw + glass swings", ""], CLASSES), [[0, 1, 0, 1], [0, 0, 0, 0]])
    with pytest.raises(FlowleyError, match=r"class 'bell' is not among the tagger's glass bounces, "):
        targets(["bell"], CLASSES)


def test_a_clip_is_right_if_its_classes_are_the_likeliest():
    named = targets(["glass swings", "glass bounces + metal bounces", "saw"], CLASSES)
    logits = np.array([[3.0, 2.0, 0.0, 1.0], [1.0, 0.0, 2.0, 1.5], [0.0, 1.0, 0.0, 9.0]])
    right = accuracy(logits, named, CLASSES)
    np.testing.assert_array_equal(right["class"], [0, 0, 1])
    # The first clip's material is found by another class of the same material; the last one has none.
    np.testing.assert_array_equal(right["material"], [1, 1, np.nan])
    np.testing.assert_array_equal(right["motion"], [0, 1, np.nan])
    with pytest.raises(FlowleyError, match=r"logits \(1, 4\) and labels \(3, 4\) must both be \(clips, 4\)"):
        accuracy(logits[:1], named, CLASSES)


def _sounds(count, seed):
    """Return the log-mels of one-second tones and noises in turn, and their labels."""
    rng = np.random.default_rng(seed)
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    sounds, labels = [], []
    for index in range(count):
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(300, 900) * time)
        noise = 0.1 * rng.standard_normal(SAMPLE_RATE)
        sounds.append(front_end(tone if index % 2 else noise))
        labels.append("tone" if index % 2 else "noise")
    return np.stack(sounds), labels


TRAINING = TaggerTraining(epochs=4, batch=8)


@pytest.fixture(scope="module")
def tagger():
    return train_tagger(*_sounds(32, seed=0), training=TRAINING)


def test_sounds_that_differ_are_told_apart(tagger):
    log_mels, labels = _sounds(16, seed=1)
    embeddings, logits = tagger(log_mels)
    assert embeddings.shape == (16, 128)
    right = accuracy(np.asarray(logits), targets(labels, tagger.config.classes), tagger.config.classes)
    assert right.keys() == {"class"} and right["class"].mean() == 1.0


def test_the_same_seed_gives_the_same_tagger(tagger):
    again = train_tagger(*_sounds(32, seed=0), training=TRAINING)
    log_mels, _ = _sounds(4, seed=2)
    np.testing.assert_allclose(again(log_mels)[1], tagger(log_mels)[1], atol=1e-5)


def test_a_file_holds_the_tagger_and_its_classes(tagger, tmp_path):
    save_tagger(tagger, tmp_path / "tagger.safetensors", {"seen": "x"})
    loaded, notes = load_tagger(tmp_path / "tagger.safetensors")
    assert loaded.config == tagger.config and notes["seen"] == "x"
    log_mels, _ = _sounds(3, seed=3)
    for value, expected in zip(loaded(log_mels), tagger(log_mels), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_quiet_noise_below_the_floor_changes_nothing(tagger):
    log_mels, _ = _sounds(2, seed=4)
    quiet = np.minimum(log_mels, -4.0)
    np.testing.assert_array_equal(tagger(quiet)[1], tagger(quiet - 0.7)[1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b"] * 15, "at least 32 labelled clips; there are 30"),
        (["a"] * 40, "the labels name 1 classes; a tagger is trained for 2 to 64"),
        ([f"{index}" for index in range(70)], "the labels name 70 classes"),
    ],
)
def test_too_few_clips_or_classes_are_refused(labels, message):
    with pytest.raises(FlowleyError, match=message):
        train_tagger(np.zeros((len(labels), 10, 80), np.float32), labels)


def test_other_files_are_refused(tagger, tmp_path):
    path = tmp_path / "x.safetensors"
    write_arrays(path, {"a": np.zeros(3, np.float32)}, {})
    with pytest.raises(FlowleyError, match=r"x\.safetensors: is not a tagger; its notes name no classes"):
        load_tagger(path)
    write_arrays(path, {"a": np.zeros(3, np.float32)}, {"classes": "a + b"})
    with pytest.raises(FlowleyError, match=r"x\.safetensors: the weights do not fit the tagger; 44 "):
        load_tagger(path)
