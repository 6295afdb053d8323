"""Sounds for one request of the page: progress by solver step, candidates with scores, and cancelling."""

import dataclasses
import queue
import secrets
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowley_jax.common.durations import format_duration
from flowley_jax.errors import FlowleyError
from flowley_jax.media.write import mux_audio
from flowley_jax.sampling.batches import Gathered
from flowley_jax.sampling.clips import check_seed
from flowley_jax.sampling.failures import CLIP_ERRORS, failure_line
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.outputs import encode_input
from flowley_jax.sampling.ranking import FEWEST_CANDIDATES, best_first
from flowley_jax.sampling.sampler import Sampler
from flowley_jax.sampling.sound_levels import SoundLevels

MOST_CANDIDATES = 8
# Asks for a random seed.
RANDOM = -1
_SEEDS = 2**31


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A visitor's request.

    Attributes:
      video: the video.
      prompt, negative_prompt: texts; empty for none.
      seed: seed of the random draws; -1 draws one.
      steps: solver steps.
      guidance: guidance scale; a flow map has its own.
      seconds: most seconds to use of the video.
      candidates: number of sounds to choose from.
      loudness: integrated loudness in LUFS; None for the model's own level.
    """

    video: Path
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = RANDOM
    steps: int
    guidance: float
    seconds: float
    candidates: int = 1
    loudness: float | None = None


class Progress(NamedTuple):
    """The share of a request that is done, and what is being done."""

    share: float
    text: str


class Candidate(NamedTuple):
    """One sound.

    Attributes:
      video: the video with this sound.
      wave: (N,) float32.
      score: see `ranking.best_first`; None for one or two candidates.
    """

    video: Path
    wave: np.ndarray
    score: float | None


class Outcome(NamedTuple):
    """The candidates (ranked if three or more), the seed that gives them again, and remarks."""

    candidates: list[Candidate]
    seed: int
    remarks: list[str]


class _CancelledError(Exception):
    """The visitor has cancelled the request."""


class Service:
    """Serves requests with one model; several threads may ask at the same time.

    Args:
      sampler: the model, with the settings that requests do not name.
    """

    def __init__(self, sampler: Sampler):
        self.sampler = sampler

    def generate(self, request: Request, folder: Path) -> Generator[Progress | Outcome, None, None]:
        """Yield progress, and at the end the outcome. Closing the generator cancels after the current step.

        Args:
          request: what to make.
          folder: existing folder for the videos.

        Raises:
          FlowleyError: the video or a value cannot be used; the message is one line.
        """
        messages: queue.SimpleQueue[Progress | Outcome | Exception] = queue.SimpleQueue()
        cancelled = threading.Event()

        def report(share: float, text: str) -> None:
            if cancelled.is_set():
                raise _CancelledError
            messages.put(Progress(share, text))

        def work() -> None:
            try:
                messages.put(self._outcome(request, folder, report))
            except CLIP_ERRORS as error:
                messages.put(FlowleyError(failure_line(request.video.name, error)))
            # Handed over to the visitor's thread, which raises it.
            except Exception as error:
                messages.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while True:
                message = messages.get()
                if isinstance(message, Exception):
                    raise message
                yield message
                if isinstance(message, Outcome):
                    return
        finally:
            cancelled.set()
            thread.join()

    def _outcome(self, request: Request, folder: Path, report: Callable[[float, str], None]) -> Outcome:
        sampler = self._sampler_for(request)
        components = sampler.components
        report(0.0, "reading the video")
        clip = InputClip(
            id=request.video.stem,
            path=request.video,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt or None,
            end=request.seconds,
        )
        encoded = encode_input(sampler, clip)
        seed = secrets.randbelow(_SEEDS) if request.seed == RANDOM else request.seed
        batches = list(sampler.batches([encoded], request.candidates))
        steps = _Steps(len(batches) * sampler.settings.solver.steps, report)
        gathered, waves = Gathered(request.candidates), None
        for batch in batches:
            for track, wave in sampler.sample(batch, seed=seed, progress=steps):
                waves = gathered.add(track, wave)
        assert waves is not None
        levels = SoundLevels(components.sample_rate, request.loudness)
        paths = [folder / f"{request.video.stem}_{number}.mp4" for number in range(request.candidates)]
        levelled = levels.levelled(paths, waves)
        candidates = []
        for number, (path, wave) in enumerate(zip(paths, levelled, strict=True), start=1):
            report(1.0, f"writing sound {number} of {request.candidates}")
            mux_audio(
                request.video, wave, components.sample_rate, path, end=request.seconds, for_browsers=True
            )
            candidates.append(Candidate(path, wave, None))
        if len(candidates) >= FEWEST_CANDIDATES:
            order = best_first(waves, components.sample_rate)
            candidates = [candidates[index]._replace(score=score) for index, score in order]
        # On the page these are settings, not flags.
        return Outcome(candidates, seed, [line.replace("--", "") for line in levels.remarks()])

    def _sampler_for(self, request: Request) -> Sampler:
        if not 1 <= request.candidates <= MOST_CANDIDATES:
            raise FlowleyError(
                f"{request.candidates} candidates: the number must be from 1 to {MOST_CANDIDATES}"
            )
        if request.seed != RANDOM:
            check_seed(request.seed)
        settings = self.sampler.settings
        is_flow_map = settings.solver.name == "flow_map"
        settings = dataclasses.replace(
            settings,
            solver=dataclasses.replace(settings.solver, steps=request.steps),
            guidance=settings.guidance if is_flow_map else request.guidance,
            loudness=request.loudness,
        )
        return dataclasses.replace(self.sampler, settings=settings)


class _Steps:
    """Reports solver steps, and the time that is left.

    Args:
      total: number of steps of all batches.
      report: called with the share that is done and a text.
    """

    def __init__(self, total: int, report: Callable[[float, str], None]):
        self._total, self._report, self._done = total, report, 0
        self._first = 0.0
        report(0.0, "preparing the network, which takes longest the first time")

    def __call__(self, _: int) -> None:
        self._done += 1
        now = time.monotonic()
        # The first step includes the compilation.
        if self._done == 1:
            self._first = now
        text = f"step {self._done} of {self._total}"
        if self._done > 1:
            left = (now - self._first) / (self._done - 1) * (self._total - self._done)
            text += f", {format_duration(left)} left"
        self._report(self._done / self._total, text)
