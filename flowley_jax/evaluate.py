"""Score sounds, or features of sounds.

The field's table, from the videos of a clip table and the sounds that a run or another program made for them:
  python -m flowley_jax.evaluate --table clips.tsv --workdir RUN --out DIR
  python -m flowley_jax.evaluate --table clips.tsv --sounds DIR --networks BUNDLES --out DIR
Level, and synchrony with known events: python -m flowley_jax.evaluate --sounds DIR [--events events.jsonl]
Metrics of features that are computed already:
  python -m flowley_jax.evaluate --generated-cache DIR --reference-cache DIR --out DIR
Features of --table as av-benchmark's files: python -m flowley_jax.evaluate --export-features DIR --out DIR
"""

import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.compilation_cache import define_compilation_cache, use_compilation_cache
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import PROCESSES, SECONDS, SEEDS, Range
from flowley_jax.errors import FlowleyError

if TYPE_CHECKING:
    import numpy as np

    from flowley_jax.data.components import Components
    from flowley_jax.evaluation.sounds import Sounds
    from flowley_jax.evaluation.table_report import Request

_TABLE = flags.DEFINE_string("table", None, "Clip table (.tsv) whose videos are the reference.")
_SPLIT = flags.DEFINE_string("split", None, "Rows of --table to score; by default those of test.")
_SOUNDS = flags.DEFINE_multi_string(
    "sounds",
    None,
    "Folder of sounds, or of videos with sound, named by clip id. Repeat it with --table to compare systems; "
    "NAME=FOLDER gives a system a name.",
)
_NETWORKS = flags.DEFINE_string(
    "networks", None, "Folder of the bundles of evaluation networks that flowley_jax.convert has made."
)
_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    None,
    ["vggsound", "moviegen"],
    "Length, captions and reference sounds of a published benchmark (docs/evaluation.md).",
)
_SECONDS = define_float(
    "seconds",
    None,
    "Length that the networks take from the start of each clip; by default that of the clips of --workdir, "
    "or 8.",
    SECONDS,
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Compute type of the evaluation networks."
)
_SEED = define_int("seed", 0, "Random seed of the sounds that --workdir samples.", SEEDS)
_WORKERS = define_int("workers", 2, "Processes that read clips.", PROCESSES)
_EVENTS = flags.DEFINE_string("events", None, "File events.jsonl with the true event times.")
_AV_ALIGN = flags.DEFINE_bool(
    "av_align", True, "Compute AV-Align, whose optical flow takes long for large pictures."
)
_REAL = flags.DEFINE_string("real", None, "Folder of the clips with their real sound, to score as well.")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of a training run or of a shared model, or hf:ORG/NAME for one on the Hugging Face hub. With "
    "--table and without --sounds, it samples the sounds; its codec also encodes and decodes the real "
    "sounds, for a row of scores.",
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
_EXPORT_FEATURES = flags.DEFINE_string(
    "export_features", None, "Folder of features that --table wrote, to write as av-benchmark's .pth files."
)
_PAIRS = flags.DEFINE_bool(
    "pairs", True, "Whether clips of --generated-cache and --reference-cache with equal ids belong together."
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
    "Resampled sets of clips for the 95 % intervals of distances and Inception scores, which take long; 0 "
    "for no intervals and no differences.",
    Range(least=0, most=100_000),
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "JSON file to write the scores to as well; a folder with --table, --generated-cache and "
    "--export-features.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the files of --out if they exist.")
_COMPILATION_CACHE = define_compilation_cache()
SAMPLE_RATE = 16000
# Files of --out with --generated-cache: av-benchmark's metrics under its names; all metrics.
AV_BENCHMARK_FILE, SCORES_FILE = "output_metrics.json", "scores.json"
# Optical flow of a large picture takes about a second per frame.
_READ_SECONDS = 900.0
_SHOWN_NAMES = 5
_NOT_SCORED = {
    "missing": "clips with events but without a sound, which are not scored",
    "missing_real": "scored clips without a real sound, so that the rows are of different clips",
    "left_out": "sounds without events, which are not scored",
    "unreadable": "files that cannot be used",
    "ignored": "files that are neither sound nor video",
}
# Flags, and the modes that they belong to.
_BELONGING = (
    ((_SPLIT, _PROTOCOL, _SECONDS, _SEED, _WORKERS, _AV_ALIGN), ("--table",)),
    ((_PAIRS,), ("--generated-cache",)),
    ((_REAL,), ("--sounds without --table",)),
    ((_EVENTS, _WORKDIR, _TOLERANCE), ("--table", "--sounds without --table")),
    ((_NETWORKS, _DTYPE, _KAD_BANDWIDTH, _RESAMPLES), ("--table", "--generated-cache")),
)


def main() -> int:
    """Print the scores, and the names of clips and files that are not scored."""
    _check_flags()
    if _EXPORT_FEATURES.value:
        return _export_features(Path(_EXPORT_FEATURES.value), Path(_OUT.value or ""))
    if _TABLE.value:
        use_compilation_cache(_COMPILATION_CACHE.value)
        return _evaluate_table(Path(_TABLE.value))
    if _GENERATED_CACHE.value and _REFERENCE_CACHE.value:
        return _score_caches(Path(_GENERATED_CACHE.value), Path(_REFERENCE_CACHE.value))
    return _score_sounds(Path((_SOUNDS.value or [""])[0]))


def _check_flags() -> None:
    if _EXPORT_FEATURES.value:
        _check_export_flags()
        return
    caches = [flag for flag in (_GENERATED_CACHE, _REFERENCE_CACHE) if flag.value]
    if not _TABLE.value and not caches and not _SOUNDS.value:
        raise FlowleyError("give --table, --sounds, or --generated-cache and --reference-cache")
    if caches and (len(caches) < 2 or _SOUNDS.value or _TABLE.value):
        raise FlowleyError(
            "--generated-cache and --reference-cache must be given together, and not with --sounds or --table"
        )
    mode = "--table" if _TABLE.value else "--generated-cache" if caches else "--sounds without --table"
    for belonging, modes in _BELONGING:
        if mode not in modes and (wrong := [_name(flag) for flag in belonging if flag.present]):
            raise FlowleyError(f"{wrong[0]} applies only to {' or '.join(modes)}")
    if _RESAMPLES.value == 1:
        raise FlowleyError("--resamples 1: must be 0, or at least 2")
    if not _EVENTS.value and _TOLERANCE.present:
        raise FlowleyError("--tolerance needs --events, the true times that onsets are compared with")
    if _DTYPE.present and not _NETWORKS.value:
        raise FlowleyError("--dtype needs --networks")
    if _TABLE.value:
        _check_table_flags()
    elif mode.startswith("--sounds"):
        _check_sounds_flags()


def _check_export_flags() -> None:
    if not _OUT.value:
        raise FlowleyError("--export-features needs --out, a folder for av-benchmark's files")
    others = (_TABLE, _SOUNDS, _GENERATED_CACHE, _REFERENCE_CACHE, _EVENTS, _WORKDIR, _TOLERANCE)
    others += tuple(flag for belonging, _ in _BELONGING for flag in belonging)
    if wrong := [_name(flag) for flag in others if flag.present]:
        raise FlowleyError(f"{wrong[0]} does not go with --export-features")


def _check_table_flags() -> None:
    if not _OUT.value:
        raise FlowleyError("--table needs --out, a folder for the features and the report")
    if not _SOUNDS.value and not _WORKDIR.value:
        raise FlowleyError("--table needs --sounds, or --workdir, the run that samples them")
    if _OVERWRITE.value:
        raise FlowleyError("--overwrite does not apply to --table, which replaces only what it made")
    if _SEED.present and _SOUNDS.value:
        raise FlowleyError("--seed applies only to sounds that --workdir samples, not to --sounds")


def _check_sounds_flags() -> None:
    if len(_SOUNDS.value or []) > 1:
        raise FlowleyError("several --sounds need --table")
    if _WORKDIR.present and not _EVENTS.value:
        raise FlowleyError("--workdir needs --events, the true times that onsets are compared with")
    if _WORKDIR.value and not _REAL.value:
        raise FlowleyError(
            "--workdir needs --real, the folder of the sounds that its codec encodes and decodes"
        )
    if _OVERWRITE.value and not _OUT.value:
        raise FlowleyError("--overwrite needs --out, the file to replace")


def _name(flag: Any) -> str:
    return f"--{flag.name.replace('_', '-')}"


def _evaluate_table(table: Path) -> int:
    """Sample sounds if none are given, score them, and print the table."""
    from data_prep.worker_pool import mapping_pool
    from flowley_jax.evaluation.table_report import evaluate_table

    # A file that hangs or crashes its process must not end the run.
    readers = functools.partial(mapping_pool, count=_WORKERS.value, time_limit=_READ_SECONDS)
    result = evaluate_table(_request(table), readers)
    for line in result.remarks:
        print(line, file=sys.stderr)
    print(result.table)
    print(f"report: {result.report}; scores: {result.scores}", file=sys.stderr)
    return 0


def _request(table: Path) -> "Request":
    from flowley_jax.evaluation.table_report import Request
    from flowley_jax.runs.hub_models import local_folder

    return Request(
        table=table,
        split=_SPLIT.value or "test",
        out=Path(_OUT.value or ""),
        systems=tuple(_SOUNDS.value or ()),
        workdir=local_folder(_WORKDIR.value) if _WORKDIR.value else None,
        networks=Path(_NETWORKS.value) if _NETWORKS.value else None,
        protocol=_PROTOCOL.value,
        seconds=_SECONDS.value,
        dtype=_DTYPE.value,
        seed=_SEED.value,
        events=Path(_EVENTS.value) if _EVENTS.value else None,
        tolerance=_TOLERANCE.value,
        av_align=_AV_ALIGN.value,
        bandwidth=_KAD_BANDWIDTH.value,
        resamples=_RESAMPLES.value,
    )


def _export_features(folder: Path, out: Path) -> int:
    """Write features as av-benchmark's files, and print their paths."""
    from flowley_jax.common.files import check_new_file
    from flowley_jax.evaluation.feature_sets import FeatureSet
    from flowley_jax.evaluation.features import KINDS, read_parts, write_av_benchmark_features

    features = FeatureSet(folder)
    kinds = [kind for kind in features.kinds() if KINDS[kind].file]
    if not kinds:
        raise FlowleyError(f"{folder}: has no features that av-benchmark knows")
    if list(read_parts(out)):
        raise FlowleyError(f"{out}: holds our own files of features; choose another folder for --out")
    files = list(dict.fromkeys(out / KINDS[kind].file for kind in kinds))
    for file in files:
        check_new_file(file, overwrite=_OVERWRITE.value)
    write_av_benchmark_features(out, {kind: features.read(kind) for kind in kinds})
    print("\n".join(map(str, files)))
    return 0


def _score_caches(generated: Path, reference: Path) -> int:
    """Score features, and print the scores as JSON."""
    from flowley_jax.common.files import check_new_file, write_text
    from flowley_jax.evaluation.extraction import Evaluators
    from flowley_jax.evaluation.feature_metrics import ScoreOptions
    from flowley_jax.evaluation.feature_scores import score_features
    from flowley_jax.evaluation.feature_sets import FeatureSet
    from flowley_jax.evaluation.networks import find_networks, offset_head
    from flowley_jax.evaluation.tables import as_json, av_benchmark_metrics

    out = Path(_OUT.value) if _OUT.value else None
    files = [out / name for name in (AV_BENCHMARK_FILE, SCORES_FILE)] if out else []
    for file in files:
        check_new_file(file, overwrite=_OVERWRITE.value)
    networks = find_networks(Path(_NETWORKS.value), _DTYPE.value) if _NETWORKS.value else {}
    options = ScoreOptions(
        pairs=_PAIRS.value,
        bandwidth=_KAD_BANDWIDTH.value,
        resamples=_RESAMPLES.value,
        offset_logits=offset_head(Evaluators(networks)),
        cleans_ids=True,
    )
    sides = FeatureSet(generated), FeatureSet(reference)
    for side in sides:
        if not side.kinds():
            raise FlowleyError(f"{side.folder}: holds no file of features")
    scores = score_features(*sides, options)
    report = {**as_json(scores), "kad_bandwidth": _KAD_BANDWIDTH.value}
    text = json.dumps(report, indent=2)
    # The values of all clips would fill the screen.
    print(json.dumps({name: value for name, value in report.items() if name != "per_clip"}, indent=2))
    _say_what_is_on_one_side(*(side.kinds() for side in sides), has_head="synchformer" in networks)
    for kind, names in scores.without_reference.items():
        if names:
            print(f"{kind}: clips without a reference: {_listed(names)}", file=sys.stderr)
    for file, names in scores.not_finite.items():
        print(f"{file}: {_listed(names)} left out: their features are not finite", file=sys.stderr)
    for metric, reason in scores.undefined.items():
        print(f"{metric}: no value: {reason}", file=sys.stderr)
    if out:
        for file, content in zip(
            files, (json.dumps(av_benchmark_metrics(scores), indent=2, allow_nan=False), text), strict=True
        ):
            write_text(file, content + "\n")
        print(f"scores: {files[0]}; in full: {files[1]}", file=sys.stderr)
    return 0


def _say_what_is_on_one_side(generated: list[str], reference: list[str], *, has_head: bool) -> None:
    """Name features without the ones to compare them with."""
    from flowley_jax.evaluation.feature_metrics import compared_kinds

    for mine, theirs in compared_kinds():
        if (mine in generated) != (theirs in reference):
            there, lacking = ("generated", theirs) if mine in generated else ("reference", mine)
            found = mine if mine in generated else theirs
            print(
                f"{found} of the {there} clips: not compared, because there is no {lacking}", file=sys.stderr
            )
    if "synchformer_audio" in generated and not has_head:
        print("no DeSync: it needs Synchformer, see --networks", file=sys.stderr)


def _score_sounds(folder: Path) -> int:
    """Score the level and the synchrony of sounds, and print the scores as JSON."""
    import dataclasses

    from flowley_jax.common.files import check_new_file, write_text
    from flowley_jax.evaluation.levels import levels
    from flowley_jax.evaluation.sounds import read_sounds
    from flowley_jax.evaluation.synchrony import read_events
    from flowley_jax.runs.hub_models import local_folder
    from flowley_jax.runs.workdir import load_components

    if _OUT.value:
        check_new_file(Path(_OUT.value), overwrite=_OVERWRITE.value)
    events = read_events(Path(_EVENTS.value)) if _EVENTS.value else None
    components = load_components(local_folder(_WORKDIR.value)) if _WORKDIR.value else None
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
