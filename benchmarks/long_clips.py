"""Compare sounds of long videos, sampled in windows, with those of single clips: make benchmark-long-clips

The held-out clips of demonstrations are joined to longer videos. Their sounds are sampled, written, read back
and scored: as a whole, near the seams of windows and elsewhere. Then the cost is measured: time and memory by
length, and a folder of clips of many lengths against one of equal clips. Running it again reuses finished
trainings and sounds; figures of other demonstrations, lengths and prompts are kept.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.common import header, host
from benchmarks.joined_clips import JoinedVideo, join_clips, join_sounds
from benchmarks.long_clips_tables import clips_table, length_table, quality_table
from flowley_jax.cli import STOPPED_EARLY, run_main
from flowley_jax.common.files import write_text
from flowley_jax.common.number_flags import define_floats, define_int
from flowley_jax.common.ranges import PROCESSES, SECONDS, Range
from flowley_jax.errors import FlowleyError

# Clips of 4 s: videos of 4 s, 16 s and 64 s.
COUNTS = (1, 4, 16)
PARTS = ("quality", "length", "clips")
# The prompt of a joined video: that of its first clip, or none. The clips' own prompts together are too long
# for the text encoder.
PROMPTS: dict[str, Callable[[JoinedVideo], str]] = {
    "first": lambda video: video.captions[0],
    "none": lambda _: "",
}
LENGTHS = (4.0, 60.0, 600.0, 3600.0)
SEED = 0

_OUT = flags.DEFINE_string("out", "benchmarks/results/long_clips", "Folder for the figures and tables.")
_SCRATCH = flags.DEFINE_string("scratch", "runs/long", "Folder for trainings, videos and sounds.")
_DEMOS = flags.DEFINE_list(
    "demos", [], "Folders of finished demonstrations; by default, models are trained with --seeds seeds."
)
_SEEDS = define_int("seeds", 3, "Number of trainings.", Range(least=1, most=1000))
_ONLY = flags.DEFINE_list("only", [], f"Parts to measure, of {', '.join(PARTS)}; all by default.")
_PROMPTS = flags.DEFINE_list("prompts", list(PROMPTS), f"Prompts of joined videos, of {', '.join(PROMPTS)}.")
_LENGTHS = define_floats("length", "Seconds of a video whose cost is measured; may be given again.", SECONDS)
_STEPS = define_int(
    "steps", None, "Solver steps where cost is measured; by default the model's.", Range(least=1, most=1000)
)
_WORKERS = define_int("workers", 2, "Processes that generate and read clips.", PROCESSES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A trained model and its clip set.

    Attributes:
      name: name in the figures.
      workdir: folder of the training run.
      clips: folder of the clip set.
    """

    name: str
    workdir: Path
    clips: Path


def main() -> int:
    """Measure the parts, print the tables and write them with the figures."""
    parts = _chosen("only", _ONLY.value or list(PARTS), PARTS)
    prompts = _chosen("prompts", _PROMPTS.value, PROMPTS)
    demonstrations = _demonstrations()
    if demonstrations is None:
        return STOPPED_EARLY
    if "quality" in parts:
        for demonstration in demonstrations:
            for rows in _measure_quality(demonstration, prompts):
                _save("quality", rows, ("demonstration", "seconds", "sound", "prompt"), quality_table)
    workdir, cost = demonstrations[0].workdir, Path(_SCRATCH.value) / "cost"
    if "length" in parts:
        for seconds in _LENGTHS.value or LENGTHS:
            row = _length_row(workdir, cost, seconds)
            _save("length", [row], ("seconds_of_video", "steps"), length_table)
    if "clips" in parts:
        _save("clips", _clips_rows(workdir, cost), ("kind", "folder", "steps"), clips_table)
    return 0


def _chosen(flag: str, names: list[str], known: Iterable[str]) -> list[str]:
    for name in names:
        if name not in known:
            raise FlowleyError(f"--{flag}={name} must be one or several of {', '.join(known)}")
    return names


def _demonstrations() -> list[Demonstration] | None:
    """Return the models to measure, trained if they are not given; None if a signal stopped a training."""
    if _DEMOS.value:
        folders = [Path(folder) for folder in _DEMOS.value]
        return [
            Demonstration(name=folder.name, workdir=folder / "train", clips=folder / "clips")
            for folder in folders
        ]
    from configs.impacts import get_config
    from data_prep.impacts.generate import ClipSetConfig
    from flowley_jax.config import experiment_from
    from flowley_jax.demo.stages import prepare_clips
    from flowley_jax.training.loop import train

    out = Path(_SCRATCH.value)
    clips, records = prepare_clips(ClipSetConfig(), out, workers=_WORKERS.value)
    found = []
    for seed in range(_SEEDS.value):
        config = get_config()
        config.update(seed=seed, data={"records": str(records)})
        found.append(Demonstration(name=f"seed_{seed}", workdir=out / f"seed_{seed}" / "train", clips=clips))
        if train(experiment_from(config.to_dict()), found[-1].workdir).interrupted:
            return None
    return found


def _measure_quality(demonstration: Demonstration, prompts: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield, for each length, a row per sound and prompt; real sounds have no prompt."""
    from benchmarks.long_clips_scores import Scorer

    name = demonstration.name
    scorer = Scorer(demonstration.workdir, demonstration.clips, seed=SEED)
    out, clip_sounds = Path(_SCRATCH.value) / "quality" / name, {}
    for count in COUNTS:
        videos = join_clips(demonstration.clips, out / f"videos_{count}", count=count)
        seconds = float(videos[0].bounds[-1])
        _say(f"{name}: {len(videos)} videos of {seconds:g} s")
        sounds = {}
        for prompt in prompts:
            captions = {video.id: PROMPTS[prompt](video) for video in videos}
            waves = scorer.sample(videos, captions, out / f"sounds_{count}_{prompt}")
            sounds["generated", prompt] = waves
            if count == 1:
                clip_sounds[prompt] = waves
            else:
                sounds["joined", prompt] = join_sounds(videos, clip_sounds[prompt], scorer.sample_rate)
        sounds |= {(sound, ""): waves for sound, waves in scorer.references(videos).items()}
        base = {"demonstration": name, "seconds": seconds, "videos": len(videos)}
        yield [
            {**base, "sound": sound, "prompt": prompt, **scorer.score(videos, waves)}
            for (sound, prompt), waves in sounds.items()
        ]


def _length_row(workdir: Path, scratch: Path, seconds: float) -> dict[str, Any]:
    from benchmarks.long_clips_cost import measure_length

    _say(f"cost of {seconds:g} s")
    row = measure_length(workdir, scratch / "length", seconds=seconds, steps=_STEPS.value)
    return {**row, "steps": _STEPS.value}


def _clips_rows(workdir: Path, scratch: Path) -> list[dict[str, Any]]:
    from benchmarks.long_clips_cost import clip_lengths, measure_clips
    from flowley_jax.runs.workdir import load_components

    rows = []
    for kind, folders in clip_lengths(load_components(workdir).seconds).items():
        for folder, frames in folders.items():
            _say(f"cost of {len(frames)} {kind} clips, {folder}")
            row = measure_clips(workdir, scratch / "clips", frames, steps=_STEPS.value)
            rows.append({"kind": kind, "folder": folder, **row, "steps": _STEPS.value})
    return rows


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _save(
    name: str,
    rows: list[dict[str, Any]],
    keys: tuple[str, ...],
    table: Callable[[list[dict[str, Any]]], str],
) -> None:
    """Add rows to a file of figures, where they replace those with equal keys; print and write its table."""
    path = Path(_OUT.value) / f"{name}.json"
    older = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {tuple(row[key] for key in keys): row for row in [*older, *rows]}
    result = {**header("long_clips"), "host": host(), "rows": list(merged.values())}
    write_text(path, json.dumps(result, indent=2) + "\n")
    text = table(result["rows"])
    write_text(path.with_suffix(".md"), text)
    print(text)
    print(f"figures: {path}", flush=True)


if __name__ == "__main__":
    run_main(main)
