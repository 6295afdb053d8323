"""Score a trained model on generated clips that it has not seen; nothing is downloaded."""

import functools
from pathlib import Path

from data_prep.worker_pool import mapping_pool
from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.embedded_tagger import tagger_clips
from flowley_jax.evaluation.run import Evaluation, EvaluationSettings, evaluate_clips
from flowley_jax.evaluation.synchrony import read_events
from flowley_jax.sampling.inputs import find_inputs
from flowley_jax.sampling.outputs import write_sounds
from flowley_jax.sampling.sampler import Sampler

# The row of the sampled sounds.
GENERATED = "generated"
_READ_SECONDS = 120.0


def score_impacts(
    sampler: Sampler,
    clips: Path,
    samples: Path,
    out: Path,
    *,
    seed: int = 0,
    workers: int = 2,
    tagger: Path | None = None,
) -> Evaluation:
    """Sample sounds for the test clips, write them, and score what the files hold.

    The sounds are read back from the .mp4 files, so that muxing and audio coding are part of what is
    measured.

    Args:
      sampler: the model.
      clips: folder with clips.tsv and events.jsonl, as `data_prep.impacts` writes it.
      samples: folder for the .mp4 files; earlier files that were made in the same way are reused.
      out: folder of the evaluation.
      seed: seed of the random draws.
      workers: processes that read files.
      tagger: file of the embedded tagger, which is trained if there is none; None for one in `out`.

    Raises:
      FlowleyError: no clip could be sampled and scored.
    """
    inputs = find_inputs(clips / "clips.tsv", split="test")
    sampled = write_sounds(sampler, inputs, samples, seed=seed)
    if not sampled.written:
        raise FlowleyError(f"{clips}: no clip could be sampled: {sampled.failed[0]}")
    table = read_clip_table(clips / "clips.tsv")
    evaluation = evaluate_clips(
        [clip for clip in table if clip.split == "test"],
        {GENERATED: samples},
        out,
        EvaluationSettings(seconds=sampler.components.seconds, tagger=tagger),
        readers=functools.partial(mapping_pool, count=workers, time_limit=_READ_SECONDS),
        training=tagger_clips(table),
        events=read_events(clips / "events.jsonl"),
        components=sampler.components,
    )
    evaluation.failed[GENERATED] = [*sampled.failed, *evaluation.failed.get(GENERATED, [])]
    return evaluation
