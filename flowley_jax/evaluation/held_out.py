"""Score a trained model on clips that it has not seen: sample, write, read back, score."""

import dataclasses
from pathlib import Path

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.sounds import read_sounds
from flowley_jax.evaluation.synchrony import Synchrony, compare, read_events
from flowley_jax.sampling.inputs import find_inputs
from flowley_jax.sampling.outputs import write_sounds
from flowley_jax.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Scores of a model on held-out clips.

    Attributes:
      rows: scores by row, see `flowley_jax.evaluation.synchrony.compare`.
      videos: videos with their generated sound, by clip id.
      failed: one line for every clip that failed.
    """

    rows: dict[str, Synchrony]
    videos: dict[str, Path]
    failed: list[str]


def score_held_out(
    sampler: Sampler, clips: Path, out: Path, *, split: str = "test", seed: int = 0
) -> HeldOut:
    """Sample sounds for the clips of a split, write them, and score what the files hold.

    The sounds are read back from the .mp4 files, so that muxing and audio coding are part of what is
    measured.

    Args:
      sampler: the model.
      clips: folder with clips.tsv and events.jsonl, as `data_prep.impacts` writes it.
      out: folder for the .mp4 files; earlier files that were made in the same way are reused.
      split: rows of clips.tsv to take.
      seed: seed of the random draws.

    Raises:
      FlowleyError: no clip could be sampled and scored.
    """
    inputs = find_inputs(clips / "clips.tsv", split=split)
    results = write_sounds(sampler, inputs, out, seed=seed)
    if not results.written:
        raise FlowleyError(f"{clips}: no clip of the split {split} could be sampled: {results.failed[0]}")
    rate = sampler.components.sample_rate
    generated = read_sounds(out, sample_rate=rate)
    real = read_sounds(clips / split, sample_rate=rate)
    rows = compare(
        {name: wave for name, wave in generated.waves.items() if name in results.written},
        read_events(clips / "events.jsonl"),
        sample_rate=rate,
        real=real.waves,
        components=sampler.components,
    )
    return HeldOut(
        rows=rows,
        videos={name: paths[0] for name, paths in results.written.items()},
        failed=[*results.failed, *generated.unreadable, *real.unreadable],
    )
