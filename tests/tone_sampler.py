"""A stand-in for a sampler, for tests of what happens to files: its sounds are constants."""

import dataclasses
import types

import numpy as np

from flowley_jax.config import SampleConfig
from flowley_jax.flow.windows import WindowLengths, plan_windows
from flowley_jax.sampling.batches import Track
from flowley_jax.sampling.clips import EncodedClip

RATE = 16_000
COMPONENTS = types.SimpleNamespace(
    video_fps=10.0, sample_rate=RATE, video_encoder=types.SimpleNamespace(frame_size=16)
)
WINDOW = WindowLengths(video=4, audio=4, latents_per_frame=1.0)


@dataclasses.dataclass(frozen=True)
class ToneSampler:
    """Stands for a sampler: its sounds are constants that differ with the settings and the seed.

    Attributes:
      broken: what is raised for a clip, by id.
    """

    settings: SampleConfig = SampleConfig()
    broken: dict[str, Exception] = dataclasses.field(default_factory=dict)
    rooms = (1, 2)
    origin = types.MappingProxyType({"step": 3})
    components = COMPONENTS

    def encode(self, clip):
        frames, text = sum(map(len, clip.frames)), np.zeros((1, 1))
        return EncodedClip(
            id=clip.id,
            seconds=frames / COMPONENTS.video_fps,
            windows=plan_windows(frames, WINDOW, overlap=0.25),
            video=np.zeros((frames, 1)),
            text=text,
            text_len=1,
            negative_text=text,
            negative_len=1,
            seed=clip.seed,
        )

    def batches(self, clips, num_samples):
        yield [Track(clip, number) for clip in clips for number in range(num_samples)]

    def sample(self, batch, *, seed):
        for track in batch:
            if track.clip.id in self.broken:
                raise self.broken[track.clip.id]
        level = (self.settings.guidance + seed) / 100
        return [(track, np.full(800, level + track.sample / 1000, np.float32)) for track in batch]
