"""Requests of the page: progress, candidates, cancelling and faults. Needs neither a browser nor Gradio."""

import concurrent.futures
import dataclasses
import threading

import numpy as np
import pytest
import tiny

from flowley_jax.app.service import MOST_CANDIDATES, Outcome, Progress, Request, Service
from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import probe, read_audio, read_frames
from flowley_jax.media.write import write_video
from flowley_jax.sampling import Sampler
from flowley_jax.sampling.ranking import best_first

STEPS = 3


@pytest.fixture(scope="module")
def service(tiny_run):
    return Service(Sampler.from_run(tiny_run))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8), tiny.FPS)
    return path


def _request(video, **changes):
    return dataclasses.replace(
        Request(video=video, prompt="a ball", seed=4, steps=STEPS, guidance=2.0, seconds=10.0), **changes
    )


def _outcome(service, request, folder):
    *_, last = service.generate(request, folder)
    assert isinstance(last, Outcome)
    return last


def test_progress_moves_by_solver_step_until_the_sounds_are_there(service, video, tmp_path):
    *progress, outcome = service.generate(_request(video), tmp_path)
    assert all(isinstance(event, Progress) for event in progress) and isinstance(outcome, Outcome)
    texts = [event.text for event in progress]
    steps = [text.split(",")[0] for text in texts if text.startswith("step")]
    assert steps == [f"step {number} of {STEPS}" for number in range(1, STEPS + 1)]
    assert all("left" in text for text in texts if text.startswith(("step 2", "step 3")))
    shares = [event.share for event in progress]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_the_sound_is_that_of_the_command_line(service, video, tmp_path):
    outcome = _outcome(service, _request(video, candidates=4), tmp_path)
    components = service.sampler.components
    frames = read_frames(video, fps=components.video_fps, size=components.video_encoder.frame_size)
    settings = dataclasses.replace(
        service.sampler.settings,
        guidance=2.0,
        solver=dataclasses.replace(service.sampler.settings.solver, steps=STEPS),
    )
    sampler = dataclasses.replace(service.sampler, settings=settings)
    waves = sampler.sound(frames, "a ball", clip_id="a", seed=4, num_samples=4)
    for candidate, (index, score) in zip(
        outcome.candidates, best_first(waves, components.sample_rate), strict=True
    ):
        np.testing.assert_allclose(candidate.wave, waves[index], atol=1e-4 * np.abs(waves).max())
        assert candidate.score == pytest.approx(score, abs=1e-9)
        info = probe(candidate.video)
        assert info.has_audio and info.duration == pytest.approx(20 / tiny.FPS, abs=0.1)
        heard = read_audio(candidate.video, sample_rate=components.sample_rate)
        assert np.abs(heard).max() > 1e-4
    assert outcome.seed == 4


def test_a_part_of_a_video_gives_a_video_of_that_length(service, video, tmp_path):
    (candidate,) = _outcome(service, _request(video, seconds=1.0), tmp_path).candidates
    assert probe(candidate.video).duration == pytest.approx(1.0, abs=0.1) and candidate.score is None


def test_a_drawn_seed_makes_the_same_sound_again(service, video, tmp_path):
    first = _outcome(service, _request(video, seed=-1), tmp_path)
    again = _outcome(service, _request(video, seed=first.seed), tmp_path)
    np.testing.assert_array_equal(first.candidates[0].wave, again.candidates[0].wave)


def test_closing_cancels_after_the_current_step(service, video, tmp_path, monkeypatch):
    steps, entered, proceed = [], threading.Event(), threading.Event()
    original = Sampler.sample

    def sample(self, batch, *, seed, progress):
        def counted(step):
            steps.append(step)
            entered.set()
            proceed.wait(timeout=60)
            progress(step)

        return original(self, batch, seed=seed, progress=counted)

    monkeypatch.setattr(Sampler, "sample", sample)
    events = service.generate(_request(video, steps=50), tmp_path)
    next(events)
    assert entered.wait(timeout=120)
    threading.Timer(0.2, proceed.set).start()
    events.close()
    assert len(steps) <= 2 and not list(tmp_path.iterdir())


def test_two_visitors_are_served_at_the_same_time(service, video, tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    requests = [_request(video, seed=seed) for seed in (1, 2)]
    alone = [_outcome(service, request, tmp_path).candidates[0].wave for request in requests]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        together = list(pool.map(_outcome, [service] * 2, requests, folders))
    for expected, outcome in zip(alone, together, strict=True):
        np.testing.assert_array_equal(outcome.candidates[0].wave, expected)
    assert not np.array_equal(*alone)


def test_a_file_that_is_no_video_and_values_out_of_range_are_refused(service, video, tmp_path):
    broken = tmp_path / "notes.mp4"
    broken.write_text("not a video")
    for request, message in (
        (_request(broken), r"notes\.mp4: "),
        (_request(video, candidates=MOST_CANDIDATES + 1), "the number must be from 1 to 8"),
        (_request(video, steps=0), "steps"),
        (_request(video, guidance=float("nan")), "guidance"),
        (_request(video, loudness=-500.0), "loudness"),
        (_request(video, prompt="ball " * 100), "has 101 tokens"),
    ):
        with pytest.raises(FlowleyError, match=message) as caught:
            _outcome(service, request, tmp_path)
        assert "\n" not in str(caught.value)
