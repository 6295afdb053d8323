"""Level and timbre where a kept part of a video's own sound meets a sampled one: make benchmark-kept-parts

The first half of each test clip's own sound is kept, and a run samples the second half. It is compared with
the real sound, with the real sound whose second half went through codec and vocoder, and with a second half
that the run sampled without knowing the first one.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.common import header
from flowley_jax.audio.mel import MEL_16K, log_mel
from flowley_jax.cli import run_main
from flowley_jax.common.files import write_text
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.synchrony import round_trip
from flowley_jax.media.mix import Mixing
from flowley_jax.media.read import read_audio
from flowley_jax.sampling.inputs import find_inputs
from flowley_jax.sampling.outputs import write_sounds
from flowley_jax.sampling.sampler import Sampler

_RUN = flags.DEFINE_string("run", "runs/demo/train", "Folder of a trained run.")
_CLIPS = flags.DEFINE_string("clips", "runs/demo/clips", "Folder of the clip set.")
_OUT = flags.DEFINE_string("out", "runs/kept_parts", "Folder for sounds and the table.")
# The joint, and how far around it levels are compared, in seconds.
_JOINT, _REACH = 2.0, 0.25
# Frames whose level is this far below the loudest one, in decibels, have no timbre.
_QUIET = 40.0


def main() -> int:
    """Sample, measure and print the table; write it as JSON too."""
    out, clips = Path(_OUT.value), Path(_CLIPS.value)
    inputs, sampler = find_inputs(clips / "clips.tsv", split="test"), Sampler.from_run(_RUN.value)
    folders = {"kept": Mixing(keep=((0.0, _JOINT),)), "new": Mixing()}
    for name, mixing in folders.items():
        results = write_sounds(sampler, inputs, out / name, suffix=".wav", mixing=mixing)
        if results.failed:
            raise FlowleyError(f"{out / name}: {results.failed[0]}")
    figures: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for clip in inputs:
        real = read_audio(clips / "test" / f"{clip.id}.mp4", sample_rate=MEL_16K.sample_rate)
        kept, new = (
            read_audio(out / name / f"{clip.id}.wav", sample_rate=MEL_16K.sample_rate) for name in folders
        )
        coded = round_trip(real, sampler.components)
        joint, length = round(_JOINT * MEL_16K.sample_rate), min(map(len, (real, kept, new, coded)))
        for name, second in (
            ("real", real),
            ("real; codec and vocoder", coded),
            ("real; sampled to fit (--keep)", kept),
            ("real; sampled without knowing it", new),
        ):
            figures[name].append(_measures(np.concatenate([real[:joint], second[joint:length]])))
    rows = {name: _summary(values) for name, values in figures.items()}
    write_text(out / "table.json", json.dumps({**header("kept_parts"), "rows": rows}, indent=1) + "\n")
    print(
        "| halves | level step at the joint | level of the halves | timbre of the halves |\n|---|---|---|---|"
    )
    for name, row in rows.items():
        print(
            f"| {name} | {row['step']:.1f} dB | {row['level']:.1f} dB | {row['timbre']:.2f} |",
        )
    print(f"table: {out / 'table.json'}")
    return 0


def _measures(wave: np.ndarray) -> tuple[float, float, float]:
    """Return differences across the joint: of the level nearby, of the halves' level, and of their timbre.

    Levels are in decibels. The difference of timbre is 1 − the correlation of the mean log-mel spectra of the
    frames that are heard.
    """
    mel = 10.0 ** log_mel(wave, MEL_16K)
    power = (mel**2).sum(axis=1)
    rate = MEL_16K.sample_rate / MEL_16K.hop
    joint, reach = round(_JOINT * rate), round(_REACH * rate)
    step = abs(_decibels(power[joint - reach : joint]) - _decibels(power[joint : joint + reach]))
    level = abs(_decibels(power[:joint]) - _decibels(power[joint:]))
    heard = power > power.max() * 10.0 ** (-_QUIET / 10)
    halves = [part[loud] for part, loud in ((mel[:joint], heard[:joint]), (mel[joint:], heard[joint:]))]
    if not all(map(len, halves)):
        return step, level, float("nan")
    first, second = (np.log10(half).mean(axis=0) for half in halves)
    return step, level, 1.0 - float(np.corrcoef(first, second)[0, 1])


def _decibels(power: np.ndarray) -> float:
    return 10.0 * float(np.log10(power.mean() + 1e-10))


def _summary(values: list[tuple[float, float, float]]) -> dict[str, float]:
    step, level, timbre = np.nanmedian(np.array(values), axis=0)
    return {"step": float(step), "level": float(level), "timbre": float(timbre)}


if __name__ == "__main__":
    run_main(main)
