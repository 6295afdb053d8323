"""Scores the synchrony of sounds: python -m flowley_jax.evaluate --sounds DIR --events events.jsonl"""

import json
from pathlib import Path

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.errors import FlowleyError

_SOUNDS = flags.DEFINE_string(
    "sounds", None, "Folder of sounds or videos with sound, named by clip id.", required=True
)
_EVENTS = flags.DEFINE_string("events", None, "events.jsonl with the true event times.", required=True)
_REAL = flags.DEFINE_string("real", None, "Folder of the clips with their real sound, to be scored beside.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a training run, whose codec makes the ceiling out of --real."
)
_TOLERANCE = flags.DEFINE_float(
    "tolerance", 0.1, "Largest distance of a matched onset, in seconds.", lower_bound=0.0
)
_OUT = flags.DEFINE_string("out", None, "Also write the figures to this JSON file.")
SAMPLE_RATE = 16000


def main() -> int:
    """Prints the scores as JSON; unreadable files are named, counted and left out."""
    from flowley_jax.data.parts import Parts
    from flowley_jax.evaluation.sounds import read_sounds
    from flowley_jax.evaluation.synchrony import compare, read_events
    from flowley_jax.training.workdir import PARTS
    from flowley_jax.whole_files import write_text

    if _WORKDIR.value and not _REAL.value:
        raise FlowleyError("--workdir gives the ceiling of the real sounds, which --real must name")
    events = read_events(Path(_EVENTS.value))
    parts = Parts.load(Path(_WORKDIR.value) / PARTS) if _WORKDIR.value else None
    sample_rate = parts.sample_rate if parts else SAMPLE_RATE
    generated, unreadable = read_sounds(Path(_SOUNDS.value), sample_rate=sample_rate)
    real, unreadable_real = (
        read_sounds(Path(_REAL.value), sample_rate=sample_rate) if _REAL.value else (None, [])
    )
    rows = compare(
        generated, events, sample_rate=sample_rate, real=real, parts=parts, tolerance=_TOLERANCE.value
    )
    report = {
        "clips": len(rows["generated"].clips),
        "tolerance_s": _TOLERANCE.value,
        **{name: row.figures for name, row in rows.items()},
        "left_out": rows["generated"].left_out,
        "unreadable": unreadable + unreadable_real,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if _OUT.value:
        write_text(_OUT.value, text + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
