"""Comparison of onsets with those of the real sound, and average precision, against scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.onset_protocol import (
    Onsets,
    average_precision,
    compare_clip,
    published_onsets,
)

RATE = 22_050
detections = st.lists(
    st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=15
)


def _onsets(*rows):
    """Return onsets of rows of time and confidence, and level if it differs."""
    table = np.array([(*row, row[-1])[:3] for row in rows], np.float64).reshape(-1, 3)
    return Onsets(times=table[:, 0], confidences=table[:, 1], levels=table[:, 2])


def _hits(instants, gains, seconds=2.0, rate=RATE):
    """Return decaying noise at each instant over faint noise."""
    rng = np.random.default_rng(0)
    wave = 1e-4 * rng.standard_normal(round(seconds * rate))
    ring = rng.standard_normal(rate // 4) * np.exp(-np.arange(rate // 4) / (0.02 * rate))
    for instant, gain in zip(instants, gains, strict=True):
        start = round(instant * rate)
        length = min(len(ring), len(wave) - start)
        wave[start : start + length] += gain * ring[:length]
    return (0.3 * wave).astype(np.float32)


@given(detections)
def test_average_precision_of_what_was_found_is_that_of_scikit_learn(rows):
    confidences, is_hit = (np.array(column) for column in zip(*rows, strict=True))
    if is_hit.any():
        found = average_precision(confidences, is_hit, int(is_hit.sum()))
        assert found == pytest.approx(average_precision_score(is_hit, confidences), abs=1e-12)


@given(detections, st.integers(1, 5))
def test_what_is_never_found_lowers_average_precision(rows, missed):
    confidences, is_hit = (np.array(column) for column in zip(*rows, strict=True))
    hits = int(is_hit.sum())
    if hits:
        all_found = average_precision(confidences, is_hit, hits)
        found = average_precision(confidences, is_hit, hits + missed)
        assert found == pytest.approx(all_found * hits / (hits + missed), abs=1e-12)


def test_average_precision_by_hand():
    # Precision 1, 1/2 and 2/3; the recall rises at the first and at the third.
    confidences, is_hit = np.array([0.3, 0.9, 0.6]), np.array([True, True, False])
    assert average_precision(confidences, is_hit, 4) == pytest.approx(1 / 4 + 2 / 3 / 4)


def test_average_precision_without_detections_is_zero():
    assert average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0.0
    with pytest.raises(FlowleyError, match="needs something to detect"):
        average_precision(np.ones(1), np.zeros(1, bool), 0)


def test_a_reference_time_takes_the_onset_of_the_highest_level():
    onsets = _onsets((0.94, 0.9, 0.1), (1.0, 0.5, 0.2), (1.08, 0.4, 0.9))
    clip = compare_clip(onsets, np.array([1.0]))
    np.testing.assert_array_equal(clip.is_hit, [False, False, True])
    assert not clip.has_same_count


def test_pairs_are_one_to_one_and_nearer_than_the_tolerance():
    onsets = _onsets((0.5, 0.9), (1.0, 0.8))
    clip = compare_clip(onsets, np.array([1.125, 0.5, 0.53125]), tolerance=0.125)
    np.testing.assert_array_equal(clip.is_hit, [True, False])
    assert clip.references == 3


def test_quiet_onsets_near_louder_ones_only_count_in_number():
    onsets = _onsets((0.50, 0.3), (0.53, 0.9), (0.57, 0.5), (0.60, 0.4), (1.0, 0.1))
    clip = compare_clip(onsets, np.array([0.4, 0.53, 0.62, 0.8, 1.0]))
    np.testing.assert_array_equal(clip.confidences, [0.9, 0.4, 0.1])
    assert clip.has_same_count


def test_published_average_precision_forgives_what_is_missed():
    references = np.array([0.3, 0.8, 1.3])
    silent = compare_clip(_onsets(), references)
    assert not silent.is_hit.any()
    assert silent.published_average_precision == 1.0
    some = compare_clip(_onsets((0.3, 0.5), (1.8, 0.9)), references)
    labels, scores = [1, 0, 1, 1], [0.5, 0.9, 0.0, 0.0]
    assert some.published_average_precision == pytest.approx(average_precision_score(labels, scores))


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])
def test_hits_are_found_and_louder_ones_are_surer(rate):
    instants, gains = [0.4, 1.0, 1.5], [0.1, 1.0, 0.3]
    onsets = published_onsets(_hits(instants, gains, rate=rate), rate)
    np.testing.assert_allclose(onsets.times, instants, atol=0.03)
    assert onsets.confidences.shape == onsets.levels.shape == (3,)
    assert list(np.argsort(onsets.confidences)) == [0, 2, 1]


def test_loudness_is_relative_to_the_peak():
    wave = _hits([0.4, 1.0], [0.5, 1.0])
    onsets = published_onsets(wave, RATE)
    np.testing.assert_allclose(onsets.confidences, [0.5, 1.0], atol=0.01)
    assert (onsets.levels <= onsets.confidences).all()
    np.testing.assert_allclose(published_onsets(0.1 * wave, RATE).confidences, onsets.confidences, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 100, RATE])
def test_silence_has_no_onset(count):
    onsets = published_onsets(np.zeros(count, np.float32), RATE)
    assert onsets.times.shape == onsets.confidences.shape == onsets.levels.shape == (0,)


def test_a_real_sound_agrees_with_itself_and_others_do_not():
    a, b = (
        published_onsets(_hits(instants, gains), RATE)
        for instants, gains in (([0.4, 1.0], [1.0, 0.6]), ([0.7, 1.4, 1.8], [0.5, 1.0, 0.7]))
    )
    same, other = compare_clip(a, a.times), compare_clip(a, b.times)
    assert same.has_same_count and same.is_hit.all() and same.published_average_precision == 1.0
    assert not other.has_same_count and not other.is_hit.any()
    again = Onsets.of_columns(a.columns())
    np.testing.assert_array_equal(again.columns(), a.columns())


def test_a_clip_without_a_reference_time_is_an_error():
    with pytest.raises(FlowleyError, match="at least one reference time"):
        compare_clip(_onsets((0.5, 1.0)), np.zeros(0))
