"""How well the score of `--candidates` finds the best of several sounds: make benchmark-ranking

Every run samples several sounds of each test clip of the generated clip set, where the true event times are
known. Sounds stay in --out, and are not made again next time.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from scipy.stats import spearmanr

from benchmarks.common import header
from flowley_jax.audio.onsets import OnsetScore, aggregate, detect_onsets, match_onsets
from flowley_jax.cli import run_main
from flowley_jax.common.files import write_text
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import Range
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.synchrony import read_events
from flowley_jax.media.read import read_audio
from flowley_jax.runs.workdir import read_config
from flowley_jax.sampling.inputs import find_inputs
from flowley_jax.sampling.outputs import write_sounds
from flowley_jax.sampling.ranking import best_first
from flowley_jax.sampling.sampler import Sampler

_RUNS = flags.DEFINE_multi_string("run", None, "Folder of a trained run; repeat it for more.", required=True)
_CLIPS = flags.DEFINE_string("clips", "runs/demo/clips", "Folder of the clip set.")
_OUT = flags.DEFINE_string("out", "runs/ranking", "Folder for sounds and the table.")
_CANDIDATES = define_int("candidates", 8, "Sounds per clip.", Range(least=3, most=1000))


def main() -> int:
    """Sample, score and print the table; write it as JSON too."""
    out = Path(_OUT.value)
    runs = [_figures(Path(run), out / f"run_{index}") for index, run in enumerate(_RUNS.value)]
    result = {**header("ranking"), "candidates": _CANDIDATES.value, "runs": runs}
    write_text(out / "table.json", json.dumps(result, indent=1) + "\n")
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"| {name} | {np.mean(values):.3f} ± {np.std(values, ddof=min(1, len(values) - 1)):.3f} |")
    print(f"table: {out / 'table.json'}")
    return 0


def _figures(run: Path, folder: Path) -> dict[str, float]:
    """Return F1 of each choice among the candidates, and the correlation of score and F1 within clips."""
    clips, sampler = Path(_CLIPS.value), Sampler.from_run(run)
    inputs = find_inputs(clips / "clips.tsv", split="test")
    results = write_sounds(
        sampler,
        inputs,
        folder,
        suffix=".wav",
        seed=read_config(run).seed,
        num_samples=_CANDIDATES.value,
    )
    if results.failed:
        raise FlowleyError(f"{folder}: {results.failed[0]}")
    events, rate = read_events(clips / "events.jsonl"), sampler.components.sample_rate
    matches, rankings = [], []
    for clip in inputs:
        if not len(events.get(clip.id, ())):
            continue
        waves = np.stack([read_audio(path, sample_rate=rate) for path in results.written[clip.id]])
        matches.append([match_onsets(detect_onsets(wave, rate)[0], events[clip.id]) for wave in waves])
        rankings.append(best_first(waves, rate))
    return {
        "F1 of all candidates": _f1([score for clip in matches for score in clip]),
        "F1 of the best by score": _chosen_f1(matches, lambda clip: rankings[clip][0][0]),
        "F1 of the worst by score": _chosen_f1(matches, lambda clip: rankings[clip][-1][0]),
        "F1 of the best by the true events": _chosen_f1(
            matches, lambda clip: int(np.argmax([score.f1 for score in matches[clip]]))
        ),
        "rank correlation of score and F1": _correlation(matches, rankings),
    }


def _f1(scores: Sequence[OnsetScore]) -> float:
    return float(aggregate(scores)["f1"] or 0.0)


def _chosen_f1(matches: Sequence[Sequence[OnsetScore]], choice: Callable[[int], int]) -> float:
    return _f1([candidates[choice(clip)] for clip, candidates in enumerate(matches)])


def _correlation(
    matches: Sequence[Sequence[OnsetScore]], rankings: Sequence[Sequence[tuple[int, float]]]
) -> float:
    """Return the mean Spearman correlation over the clips whose candidates differ in both."""
    found = []
    for candidates, ranking in zip(matches, rankings, strict=True):
        f1 = [candidates[index].f1 for index, _ in ranking]
        scores = [score for _, score in ranking]
        if np.ptp(f1) and np.ptp(scores):
            found.append(spearmanr(scores, f1)[0])
    return float(np.mean(found))


if __name__ == "__main__":
    run_main(main)
