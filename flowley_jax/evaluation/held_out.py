"""A trained model on clips that it has not seen: sample, write, read back, score."""

import dataclasses
from pathlib import Path

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.sounds import read_sounds
from flowley_jax.evaluation.synchrony import Synchrony, compare, read_events
from flowley_jax.sampling.clips import find_sources
from flowley_jax.sampling.files import write_sounds
from flowley_jax.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Scores by row (`evaluation.synchrony.compare`), the videos by clip id, and a line per failed clip."""

    rows: dict[str, Synchrony]
    videos: dict[str, Path]
    failed: list[str]


def score_held_out(
    sampler: Sampler, clips: Path, out: Path, *, split: str = "test", seed: int = 0
) -> HeldOut:
    """Gives the clips of a split their sounds and scores what the files then hold.

    The sounds are read back from the .mp4 files, so that muxing and audio coding are part of the measure.

    Args:
      clips: folder with clips.tsv and events.jsonl (`data_prep.impacts`).
      out: folder for the .mp4 files; those that were made before are reused.

    Raises:
      FlowleyError: no clip could be sampled and scored.
    """
    sources = find_sources(clips / "clips.tsv", prompt=None, split=split)
    results = write_sounds(sampler, sources, out, seed=seed)
    if not results.written:
        raise FlowleyError(f"{clips}: no clip of the split {split} could be sampled: {results.failed[0]}")
    rate = sampler.parts.sample_rate
    generated, unreadable = read_sounds(out, sample_rate=rate)
    real, unreadable_real = read_sounds(clips / split, sample_rate=rate)
    rows = compare(
        {name: wave for name, wave in generated.items() if name in results.written},
        read_events(clips / "events.jsonl"),
        sample_rate=rate,
        real=real,
        parts=sampler.parts,
    )
    return HeldOut(
        rows=rows,
        videos={name: paths[0] for name, paths in results.written.items()},
        failed=[*results.failed, *unreadable, *unreadable_real],
    )
