"""Score sounds, or features of sounds.

Level, and synchrony with known events: python -m flowley_jax.evaluate --sounds DIR [--events events.jsonl]
Metrics of features that are computed already:
  python -m flowley_jax.evaluate --generated-cache DIR --reference-cache DIR --out DIR
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import Range
from flowley_jax.errors import FlowleyError

if TYPE_CHECKING:
    import numpy as np

    from flowley_jax.data.components import Components
    from flowley_jax.evaluation.sounds import Sounds

_SOUNDS = flags.DEFINE_string("sounds", None, "Folder of sounds, or of videos with sound, named by clip id.")
_EVENTS = flags.DEFINE_string("events", None, "File events.jsonl with the true event times.")
_REAL = flags.DEFINE_string("real", None, "Folder of the clips with their real sound, to score as well.")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of a training run; --real, encoded and decoded by its codec, is scored as the ceiling.",
)
_TOLERANCE = define_float(
    "tolerance", 0.1, "Largest distance of an onset from its event, in seconds.", Range(least=0, most=60)
)
_GENERATED_CACHE = flags.DEFINE_string(
    "generated_cache", None, "Folder of the features of generated clips, such as av-benchmark's cache."
)
_REFERENCE_CACHE = flags.DEFINE_string(
    "reference_cache", None, "Folder of the features of the reference clips."
)
_PAIRS = flags.DEFINE_bool(
    "pairs", True, "Whether generated and reference clips belong together by id; see --generated-cache."
)
_KAD_BANDWIDTH = flags.DEFINE_enum(
    "kad_bandwidth",
    "reference",
    ["reference", "evaluated"],
    "Clips that decide the bandwidth of KAD's kernel; the published program takes the evaluated ones.",
)
_RESAMPLES = define_int(
    "resamples",
    100,
    "Resampled sets of clips for the 95 % intervals of distances, which take long; 0 for no intervals.",
    Range(least=0, most=100_000),
)
_OUT = flags.DEFINE_string(
    "out", None, "JSON file to write the figures to as well; with --generated-cache, a folder."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the files of --out if they exist.")
SAMPLE_RATE = 16000
# Files of --out with --generated-cache: av-benchmark's metrics under its names, and everything.
AV_BENCHMARK_FILE, SCORES_FILE = "output_metrics.json", "scores.json"
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
    _check_flags()
    if _GENERATED_CACHE.value and _REFERENCE_CACHE.value:
        return _score_caches(Path(_GENERATED_CACHE.value), Path(_REFERENCE_CACHE.value))
    assert _SOUNDS.value
    return _score_sounds(Path(_SOUNDS.value))


def _check_flags() -> None:
    caches = (_GENERATED_CACHE, _REFERENCE_CACHE)
    given = [flag for flag in caches if flag.value]
    if not given and not _SOUNDS.value:
        raise FlowleyError("--sounds must be given, or --generated-cache and --reference-cache")
    if given and (len(given) < 2 or _SOUNDS.value):
        raise FlowleyError(
            "--generated-cache and --reference-cache must be given together, and not with --sounds"
        )
    belonging = {
        "--sounds": (_EVENTS, _REAL, _WORKDIR, _TOLERANCE),
        "--generated-cache": (_PAIRS, _KAD_BANDWIDTH, _RESAMPLES),
    }
    missing = "--generated-cache" if _SOUNDS.value else "--sounds"
    if wrong := [_name(flag) for flag in belonging[missing] if flag.present]:
        raise FlowleyError(f"{wrong[0]} applies only to {missing}")
    if not _EVENTS.value and (wrong := [_name(flag) for flag in (_WORKDIR, _TOLERANCE) if flag.present]):
        raise FlowleyError(f"{wrong[0]} needs --events, the true times that onsets are compared with")


def _name(flag: Any) -> str:
    return f"--{flag.name.replace('_', '-')}"


def _score_caches(generated: Path, reference: Path) -> int:
    """Score features, and print the scores as JSON."""
    import dataclasses

    from flowley_jax.common.files import check_new_file, write_text
    from flowley_jax.evaluation.feature_scores import EXTRA, score_features

    out = Path(_OUT.value) if _OUT.value else None
    files = [out / name for name in (AV_BENCHMARK_FILE, SCORES_FILE)] if out else []
    for file in files:
        check_new_file(file, overwrite=_OVERWRITE.value)
    scores = score_features(
        generated,
        reference,
        pairs=_PAIRS.value,
        bandwidth=_KAD_BANDWIDTH.value,
        resamples=_RESAMPLES.value,
    )
    report = {**dataclasses.asdict(scores), "kad_bandwidth": _KAD_BANDWIDTH.value}
    text = json.dumps(report, indent=2)
    print(text)
    for kind, names in scores.without_reference.items():
        if names:
            print(f"{kind}: clips without a reference: {_listed(names)}", file=sys.stderr)
    for file, names in scores.not_finite.items():
        print(f"{file}: left out, because features are not finite: {_listed(names)}", file=sys.stderr)
    if out:
        theirs = {name: value for name, value in scores.metrics.items() if name not in EXTRA}
        for file, content in zip(files, (json.dumps(theirs, indent=2), text), strict=True):
            write_text(file, content + "\n")
        print(f"scores: {files[0]}; in full: {files[1]}", file=sys.stderr)
    return 0


def _score_sounds(folder: Path) -> int:
    """Score the level and the synchrony of sounds, and print the scores as JSON."""
    import dataclasses

    from flowley_jax.common.files import check_new_file, write_text
    from flowley_jax.evaluation.levels import levels
    from flowley_jax.evaluation.sounds import read_sounds
    from flowley_jax.evaluation.synchrony import read_events
    from flowley_jax.runs.workdir import load_components

    if _WORKDIR.value and not _REAL.value:
        raise FlowleyError(
            "--workdir needs --real, the folder of the sounds that its codec encodes and decodes"
        )
    if _OVERWRITE.value and not _OUT.value:
        raise FlowleyError("--overwrite needs --out, the file to replace")
    if _OUT.value:
        check_new_file(Path(_OUT.value), overwrite=_OVERWRITE.value)
    events = read_events(Path(_EVENTS.value)) if _EVENTS.value else None
    components = load_components(Path(_WORKDIR.value)) if _WORKDIR.value else None
    sample_rate = components.sample_rate if components else SAMPLE_RATE
    folders = {"generated": folder} | ({"real": Path(_REAL.value)} if _REAL.value else {})
    sounds = {name: read_sounds(path, sample_rate=sample_rate) for name, path in folders.items()}
    report = {
        **({} if events is None else _synchrony(sounds, events, components, sample_rate)),
        "level": {name: dataclasses.asdict(levels(row.waves, sample_rate)) for name, row in sounds.items()},
        "unreadable": [line for row in sounds.values() for line in row.unreadable],
        "ignored": [line for row in sounds.values() for line in row.ignored],
    }
    _say_what_is_not_scored(report)
    text = json.dumps(report, indent=2)
    print(text)
    if _OUT.value:
        write_text(_OUT.value, text + "\n")
    return 0


def _synchrony(
    sounds: "Mapping[str, Sounds]",
    events: "Mapping[str, np.ndarray]",
    components: "Components | None",
    sample_rate: int,
) -> dict[str, Any]:
    """Return the scores of onsets, and the ids of clips that are not scored."""
    from flowley_jax.evaluation.synchrony import compare

    real = sounds.get("real")
    rows = compare(
        sounds["generated"].waves,
        events,
        sample_rate=sample_rate,
        real=real.waves if real else None,
        components=components,
        tolerance=_TOLERANCE.value,
    )
    return {
        "clips": len(rows["generated"].clips),
        "tolerance_s": _TOLERANCE.value,
        **{name: {**row.figures, "clips": len(row.clips)} for name, row in rows.items()},
        "missing": rows["generated"].missing,
        "missing_real": rows["real"].missing if real else [],
        "left_out": rows["generated"].left_out,
    }


def _say_what_is_not_scored(report: dict[str, Any]) -> None:
    for key, what in _NOT_SCORED.items():
        if names := report.get(key):
            print(f"{what}: {_listed(names)}", file=sys.stderr)


def _listed(names: list[str]) -> str:
    more = ", …" if len(names) > _SHOWN_NAMES else ""
    return f"{len(names)} ({', '.join(names[:_SHOWN_NAMES])}{more})"


if __name__ == "__main__":
    run_main(main)
