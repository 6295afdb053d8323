"""The choice among candidates: the sound that agrees best with the others."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tone_sampler import RATE, ToneSampler

from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_audio
from flowley_jax.media.write import write_video
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.outputs import write_sounds
from flowley_jax.sampling.ranking import best_first

SECONDS = 2.0


def _strikes(*times, level=0.3):
    """Return a wave with a decaying noise burst at each time."""
    rng, wave = np.random.default_rng(0), np.zeros(round(SECONDS * RATE), np.float32)
    burst = rng.normal(size=round(0.15 * RATE)) * np.exp(-np.arange(round(0.15 * RATE)) / (0.02 * RATE))
    for time in times:
        start = round(time * RATE)
        wave[start : start + len(burst)] += level * burst[: len(wave) - start].astype(np.float32)
    return wave


RIGHT = (0.3, 0.9, 1.5)
# One sound misses a strike, one has one too many, and one is late; the level says nothing.
SOUNDS = [
    _strikes(0.3, 0.9),
    _strikes(*RIGHT, level=0.1),
    _strikes(*RIGHT, 1.2),
    _strikes(0.3, 0.9, 1.75),
    _strikes(*RIGHT),
]


def test_sounds_with_a_mistake_of_their_own_come_last():
    ranking = best_first(np.stack(SOUNDS), RATE)
    assert {index for index, _ in ranking[:2]} == {1, 4}
    scores = dict(ranking)
    # F1 of the right onsets against: 2 of 3, the same, 3 of 3 and one more, 2 of 3 and one late.
    assert scores[4] == pytest.approx(np.mean([4 / 5, 1.0, 6 / 7, 4 / 6]), abs=1e-12)
    assert scores[0] == pytest.approx(np.mean([4 / 5, 4 / 6, 4 / 5, 4 / 5]), abs=1e-12)
    assert [score for _, score in ranking] == sorted(scores.values(), reverse=True)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(len(SOUNDS))))
def test_the_order_of_the_candidates_does_not_matter(order):
    scores = dict(best_first(np.stack(SOUNDS), RATE))
    permuted = dict(best_first(np.stack([SOUNDS[index] for index in order]), RATE))
    for position, index in enumerate(order):
        assert permuted[position] == pytest.approx(scores[index], abs=1e-12)


def test_sounds_without_onsets_are_sorted_by_their_envelopes():
    time = np.arange(round(SECONDS * RATE)) / RATE
    noise = np.random.default_rng(1).normal(size=(4, len(time)))
    swells = [np.sin(np.pi * time / SECONDS) ** 2] * 3 + [np.cos(np.pi * time / SECONDS) ** 2]
    ranking = best_first((0.1 * noise * np.stack(swells)).astype(np.float32), RATE)
    assert {score for _, score in ranking} == {1.0} and ranking[-1][0] == 3


def test_a_single_sound_has_the_full_score():
    assert best_first(SOUNDS[0][None], RATE) == [(0, 1.0)]


@dataclasses.dataclass(frozen=True)
class _StrikeSampler(ToneSampler):
    def sample(self, batch, *, seed):
        return [(track, SOUNDS[track.sample]) for track in batch]


def test_the_best_candidates_are_written_with_their_scores(tmp_path):
    video, out = tmp_path / "v.mp4", tmp_path / "out"
    write_video(video, np.zeros((20, 16, 16, 3), np.uint8), 10.0)
    clips = [InputClip(id="a", path=video, prompt="a ball")]
    options = {"suffix": ".wav", "candidates": len(SOUNDS)}
    results = write_sounds(_StrikeSampler(), clips, out, **options)
    assert results.written == {"a": [out / "a.wav"]}
    ranking = best_first(np.stack(SOUNDS), RATE)
    np.testing.assert_allclose(
        read_audio(out / "a.wav", sample_rate=RATE), SOUNDS[ranking[0][0]], atol=2.0**-15
    )
    row = json.loads((out / "samples.jsonl").read_text().splitlines()[-1])
    assert row["candidates"] == 5
    assert row["scores"] == pytest.approx([score for _, score in ranking], abs=1e-4)
    # The sound is kept by an equal run, and replaced by one with another number of candidates.
    before = (out / "samples.jsonl").read_text()
    write_sounds(_StrikeSampler(), clips, out, **options)
    assert (out / "samples.jsonl").read_text() == before
    write_sounds(_StrikeSampler(), clips, out, suffix=".wav", candidates=3)
    assert len((out / "samples.jsonl").read_text()) > len(before)
    results = write_sounds(_StrikeSampler(), clips, tmp_path / "two", num_samples=2, **options)
    assert [path.name for path in results.written["a"]] == ["a_0.wav", "a_1.wav"]
    with pytest.raises(FlowleyError, match="--candidates 5 must be at least --num-samples 6"):
        write_sounds(_StrikeSampler(), clips, out, num_samples=6, **options)
    with pytest.raises(FlowleyError, match="--candidates 2 must be 0 or at least 3"):
        write_sounds(_StrikeSampler(), clips, out, candidates=2)


def test_sounds_under_other_names_do_not_make_earlier_ones_outdated(tmp_path):
    video, out = tmp_path / "v.mp4", tmp_path / "out"
    write_video(video, np.zeros((20, 16, 16, 3), np.uint8), 10.0)
    clips = [InputClip(id="a", path=video, prompt="a ball")]
    for options in ({"candidates": 5}, {"candidates": 4, "num_samples": 2}):
        write_sounds(_StrikeSampler(), clips, out, suffix=".wav", **options)
    before = (out / "samples.jsonl").read_text()
    for options in ({"candidates": 5}, {"candidates": 4, "num_samples": 2}):
        assert write_sounds(_StrikeSampler(), clips, out, suffix=".wav", **options).failed == []
    assert (out / "samples.jsonl").read_text() == before
