"""Sample and score the sounds of joined clips with one trained model."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.joined_clips import JoinedVideo, join_sounds
from benchmarks.seams import flux_ratio, levels, seam_times, split_score
from flowley_jax.audio.onsets import aggregate
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.sounds import read_sounds
from flowley_jax.evaluation.synchrony import round_trip, score_sounds
from flowley_jax.flow.windows import plan_windows
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.outputs import write_sounds
from flowley_jax.sampling.sampler import Sampler


class Scorer:
    """Samples and scores sounds.

    Args:
      workdir: folder of a training run.
      clips: folder of the clip set.
      seed: seed of the random draws.
    """

    def __init__(self, workdir: Path, clips: Path, *, seed: int):
        self._sampler = Sampler.from_run(workdir)
        self._seed = seed
        self._real = read_sounds(clips / "test", sample_rate=self.sample_rate).waves

    @property
    def sample_rate(self) -> int:
        """Sample rate of all sounds in Hz."""
        return self._sampler.components.sample_rate

    def sample(
        self, videos: Sequence[JoinedVideo], prompts: Mapping[str, str], out: Path
    ) -> dict[str, np.ndarray]:
        """Return the sounds (N,) of videos by id, as they are read back from the .mp4 files in `out`.

        Args:
          videos: the videos.
          prompts: prompt of each video, by id.
          out: folder for the videos with sound; sounds of an earlier call that are the same are kept.

        Raises:
          FlowleyError: a video could not be sampled.
        """
        clips = [InputClip(id=video.id, path=video.path, prompt=prompts[video.id]) for video in videos]
        results = write_sounds(self._sampler, clips, out, seed=self._seed)
        if results.failed:
            raise FlowleyError(f"{out}: {results.failed[0]}")
        waves = read_sounds(out, sample_rate=self.sample_rate).waves
        return {name: waves[name] for name in results.written}

    def references(self, videos: Sequence[JoinedVideo]) -> dict[str, dict[str, np.ndarray]]:
        """Return the real sounds of videos by id as "real", and the same encoded and decoded as "ceiling"."""
        real = join_sounds(videos, self._real, self.sample_rate)
        components = self._sampler.components
        return {"ceiling": {name: round_trip(wave, components) for name, wave in real.items()}, "real": real}

    def score(self, videos: Sequence[JoinedVideo], waves: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the figures of the sounds (N,) of videos, by id."""
        seams = {video.id: self._seams(video) for video in videos}
        scored = score_sounds(
            waves, {video.id: video.events for video in videos}, sample_rate=self.sample_rate
        )
        halves = [split_score(clip, seams[clip.id]) for clip in scored.clips]
        near, elsewhere = (aggregate(scores) for scores in zip(*halves, strict=True))
        has_seams = any(len(times) for times in seams.values())
        return {
            **scored.figures,
            "f1_near": near["f1"] if has_seams else None,
            "f1_elsewhere": elsewhere["f1"] if has_seams else None,
            "median_abs_error_near_ms": near["median_abs_error_ms"] if has_seams else None,
            "flux_ratio": flux_ratio(waves, seams, self.sample_rate),
            **dataclasses.asdict(levels(waves.values(), self.sample_rate)),
        }

    def _seams(self, video: JoinedVideo) -> np.ndarray:
        sampler, seconds = self._sampler, float(video.bounds[-1])
        fps, window = sampler.components.video_fps, sampler.window
        windows = plan_windows(round(seconds * fps), window, overlap=sampler.settings.overlap)
        return seam_times(windows, window_frames=window.video, fps=fps, seconds=seconds)
