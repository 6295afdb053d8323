"""Score the synchrony of sounds: python -m flowley_jax.evaluate --sounds DIR --events events.jsonl"""

import json
from pathlib import Path

from absl import flags

from flowley_jax.cli import run_main
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
_TOLERANCE = flags.DEFINE_float(
    "tolerance", 0.1, "Largest distance of an onset from its event, in seconds.", lower_bound=0.0
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write the figures to as well.")
SAMPLE_RATE = 16000


def main() -> int:
    """Print the scores and the names of unreadable files, which are not scored, as JSON."""
    from flowley_jax.common.files import write_text
    from flowley_jax.data.components import Components
    from flowley_jax.evaluation.sounds import read_sounds
    from flowley_jax.evaluation.synchrony import compare, read_events
    from flowley_jax.runs.workdir import components_folder

    if _WORKDIR.value and not _REAL.value:
        raise FlowleyError(
            "--workdir needs --real, the folder of the sounds that its codec encodes and decodes"
        )
    events = read_events(Path(_EVENTS.value))
    components = Components.load(components_folder(Path(_WORKDIR.value))) if _WORKDIR.value else None
    sample_rate = components.sample_rate if components else SAMPLE_RATE
    generated, unreadable = read_sounds(Path(_SOUNDS.value), sample_rate=sample_rate)
    real, unreadable_real = (
        read_sounds(Path(_REAL.value), sample_rate=sample_rate) if _REAL.value else (None, [])
    )
    rows = compare(
        generated,
        events,
        sample_rate=sample_rate,
        real=real,
        components=components,
        tolerance=_TOLERANCE.value,
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
