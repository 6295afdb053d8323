"""Score the synchrony of sounds: python -m flowley_jax.evaluate --sounds DIR --events events.jsonl"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_float
from flowley_jax.common.ranges import Range
from flowley_jax.errors import FlowleyError

_SOUNDS = flags.DEFINE_string(
    "sounds", None, "Folder of sounds, or of videos with sound, named by clip id.", required=True
)
_EVENTS = flags.DEFINE_string("events", None, "File events.jsonl with the true event times.", required=True)
_REAL = flags.DEFINE_string("real", None, "Folder of the clips with their real sound, to score as well.")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of a training run; --real, encoded and decoded by its codec, is scored as the ceiling.",
)
_TOLERANCE = define_float(
    "tolerance", 0.1, "Largest distance of an onset from its event, in seconds.", Range(least=0, most=60)
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write the figures to as well.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the file --out if it exists.")
SAMPLE_RATE = 16000
_SHOWN_NAMES = 5
_NOT_SCORED = {
    "missing": "clips with events but without a sound, which are not scored",
    "missing_real": "scored clips without a real sound, so that the rows are of different clips",
    "left_out": "sounds without events, which are not scored",
    "unreadable": "files that cannot be used",
    "ignored": "files that are neither sound nor video",
}


def main() -> int:
    """Print the scores, and the names of clips and files that are not scored, as JSON."""
    from flowley_jax.common.files import check_new_file, write_text
    from flowley_jax.evaluation.sounds import read_sounds
    from flowley_jax.evaluation.synchrony import compare, read_events
    from flowley_jax.runs.workdir import load_components

    if _WORKDIR.value and not _REAL.value:
        raise FlowleyError(
            "--workdir needs --real, the folder of the sounds that its codec encodes and decodes"
        )
    if _OVERWRITE.value and not _OUT.value:
        raise FlowleyError("--overwrite needs --out, the file to replace")
    if _OUT.value:
        check_new_file(Path(_OUT.value), overwrite=_OVERWRITE.value)
    events = read_events(Path(_EVENTS.value))
    components = load_components(Path(_WORKDIR.value)) if _WORKDIR.value else None
    sample_rate = components.sample_rate if components else SAMPLE_RATE
    generated = read_sounds(Path(_SOUNDS.value), sample_rate=sample_rate)
    real = read_sounds(Path(_REAL.value), sample_rate=sample_rate) if _REAL.value else None
    rows = compare(
        generated.waves,
        events,
        sample_rate=sample_rate,
        real=real.waves if real else None,
        components=components,
        tolerance=_TOLERANCE.value,
    )
    report = {
        "clips": len(rows["generated"].clips),
        "tolerance_s": _TOLERANCE.value,
        **{name: {**row.figures, "clips": len(row.clips)} for name, row in rows.items()},
        "missing": rows["generated"].missing,
        "missing_real": rows["real"].missing if real else [],
        "left_out": rows["generated"].left_out,
        "unreadable": generated.unreadable + (real.unreadable if real else []),
        "ignored": generated.ignored + (real.ignored if real else []),
    }
    _say_what_is_not_scored(report)
    text = json.dumps(report, indent=2)
    print(text)
    if _OUT.value:
        write_text(_OUT.value, text + "\n")
    return 0


def _say_what_is_not_scored(report: dict[str, Any]) -> None:
    for key, what in _NOT_SCORED.items():
        if names := report[key]:
            more = ", …" if len(names) > _SHOWN_NAMES else ""
            print(f"{what}: {len(names)} ({', '.join(names[:_SHOWN_NAMES])}{more})", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
