"""From a clip table to training records.

Features of every clip and of every caption are made by Beam pipelines and kept in `OUT/features`. A run that
was stopped, or a table that has changed, makes what is not there. Then the embedded codec is fitted to the
training split, and the records are written in the order of the ids' hashes. A clip that cannot be used is in
`OUT/rejected.tsv` with the reason.
"""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import PipelineOptions

from data_prep.files import alone_in, is_remote
from data_prep.fitting import codec_of, parts_of
from data_prep.pipeline import Item, make_media_features, make_text_features
from data_prep.progress import shown
from data_prep.rejection import Reason, Rejection
from data_prep.rows import Row, read_captions, rows_of
from data_prep.settings import RecordSettings
from data_prep.shards import ShardTask, remove_notes, write_shards
from data_prep.store import FeatureStore, Kind, digest_of
from flowley_jax.data.clip_table import SPLITS, Clip, read_clip_table
from flowley_jax.data.parts import PARTS_FILE, Parts
from flowley_jax.data.record import EXAMPLES_PER_FILE, dataset_dir, has_records
from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import write_text

MANIFEST_FILE = "manifest.json"
REJECTED_FILE = "rejected.tsv"
_VERSIONS_OF = ("flowley-jax", "jax", "numpy", "av", "soxr", "pillow", "apache-beam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """How the work is done, which changes nothing in its result.

    Attributes:
      options: of Beam; by default the pipelines run in this process.
      decoders: processes that decode, for each worker.
      time_limit: seconds after which the decoding of one clip is given up.
      strict: whether the first clip that cannot be used ends the run.
      retry: whether clips that could not be used before are tried again.
      features: folder for the features, perhaps gs:// or the like; OUT/features where it is empty.
    """

    options: PipelineOptions | None = None
    decoders: int = 2
    time_limit: float = 120.0
    strict: bool = False
    retry: bool = False
    features: str = ""


def prepare_records(
    clips: str | Path,
    out: str | Path,
    settings: RecordSettings,
    running: Running,
    *,
    captions: Mapping[str, str | Path] | None = None,
) -> dict[str, Any]:
    """Makes records and parts of the clips in a table, or finds them made.

    Args:
      clips: the clip table.
      out: folder for features and records, made if missing; all workers have to see it.
      captions: files with captions of other sources (`read_captions`).

    Returns:
      The manifest, which is also in `out/manifest.json`.

    Raises:
      FlowleyError: the table is bad, no training clip can be used, a clip cannot and that is strict, or `out`
        holds records of other settings or is written to by another process.
    """
    table = read_clip_table(clips)
    settings.check()
    with alone_in(Path(out)):
        return _prepare(clips, table, Path(out), settings, running, captions or {})


def _prepare(
    clips: str | Path,
    table: Sequence[Clip],
    out: Path,
    settings: RecordSettings,
    running: Running,
    captions: Mapping[str, str | Path],
) -> dict[str, Any]:
    before = _manifest_of(out)
    if before:
        _check_settings(out, before, settings)
    rows = rows_of(table, _known_captions(captions, table), settings)
    identity = digest_of([settings.identity, sorted(row.identity for row in rows)])
    store = FeatureStore(running.features or str(out / "features"))
    if running.retry:
        _forget_rejections(rows, store)
    elif before and before["identity"] == identity and _is_whole(out, before):
        if running.strict and before["rejected"]:
            _refuse(clips, out, sum(before["rejected"].values()))
        print(f"records are made already in {out}: {_counts_line(before)}")
        return before
    _make_missing(rows, settings, store, running)
    rejections = _rejections(rows, store)
    _report_rejections(out / REJECTED_FILE, rows, rejections)
    if rejections.clips and running.strict:
        _refuse(clips, out, len(rejections.clips))
    accepted = _accepted(rows, rejections)
    training = [row for row in accepted if row.clip.split == "train"]
    if not training:
        detail = _by_reason(rejections) or "the table has none"
        raise FlowleyError(f"{clips}: no training clip can be used ({detail}); see {out / REJECTED_FILE}")
    codec = codec_of(training, settings, store)
    parts = parts_of(codec, training, settings, store, source=Path(clips).name)
    sources = tuple(sorted(captions))
    dims = dataclasses.replace(parts.dims, feature_dtype=settings.feature_dtype, more_captions=sources)
    partial = out / f".records-{digest_of([identity, [row.identity for row in accepted]])}"
    files = write_shards(partial, _tasks(accepted), dims, codec, store, _shard_options(running))
    _install(out, partial, parts)
    manifest = {
        "identity": identity,
        "settings_identity": digest_of(settings.identity),
        "settings": dataclasses.asdict(settings),
        "versions": {name: version(name) for name in _VERSIONS_OF},
        "table": {"name": Path(clips).name, "sha256": hashlib.sha256(Path(clips).read_bytes()).hexdigest()},
        "examples": dict(Counter(row.clip.split for row in accepted)),
        "captions": {source: sum(source in row.more for row in accepted) for source in sources},
        "rejected": dict(Counter(rejection.reason for rejection in rejections.clips.values())),
        "dims": dataclasses.asdict(dims),
        "parts": json.loads((out / PARTS_FILE).read_text()),
        "files": files,
    }
    # Last, since it says that all else is there.
    text = json.dumps(manifest, indent=2) + "\n"
    write_text(out / MANIFEST_FILE, text)
    remove_notes(dataset_dir(out))
    print(f"records are in {out}: {_counts_line(manifest)}")
    if "valid" not in manifest["examples"]:
        print("(no clip of the valid split is among them: training will not validate)")
    return json.loads(text)


def _refuse(clips: str | Path, out: Path, rejected: int) -> NoReturn:
    raise FlowleyError(f"{clips}: {rejected} clips cannot be used; see {out / REJECTED_FILE}")


def _manifest_of(out: Path) -> dict[str, Any] | None:
    """The manifest of what is there; None where nothing is finished.

    Raises:
      FlowleyError: it is damaged, or the records are none of this program's.
    """
    path = out / MANIFEST_FILE
    if not path.is_file():
        if has_records(out) and not list(out.glob(".records-*")) and not (out / "features").is_dir():
            raise FlowleyError(f"{out}: has records that this program did not make; choose another folder")
        return None
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FlowleyError(f"{path}: cannot be read ({error}); remove it and run again") from error


def _is_whole(out: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether what a manifest lists is still there; hashing terabytes of records would take hours."""
    if not has_records(out):
        return False
    try:
        Parts.load(out)
        for name, file in manifest["files"].items():
            path = dataset_dir(out) / name
            size = path.stat().st_size if path.is_file() else None
            # Manifests of earlier versions list no sizes.
            if size is None or size != file.get("size", size):
                raise FlowleyError(f"{path}: is missing or not as it was written")
    except FlowleyError as problem:
        print(f"{problem}; the records are written again")
        return False
    return True


def _check_settings(out: Path, manifest: Mapping[str, Any], settings: RecordSettings) -> None:
    if manifest["settings_identity"] == digest_of(settings.identity):
        return
    there = manifest["settings"]
    changed = [
        f"{name} is {there.get(name)!r} there, {value!r} here"
        for name, value in dataclasses.asdict(settings).items()
        if there.get(name) != value
    ]
    listed = "; ".join(changed) or "weights or the version of a part have changed"
    raise FlowleyError(f"{out}: has records of other settings ({listed}); choose another folder")


def _known_captions(files: Mapping[str, str | Path], table: Sequence[Clip]) -> dict[str, dict[str, str]]:
    captions, ids = read_captions(files), {clip.id for clip in table}
    for source, by_id in captions.items():
        known = sum(1 for clip_id, caption in by_id.items() if caption and clip_id in ids)
        print(
            f"{source} has captions of {known} of {len(table)} clips; {len(by_id) - known} others are unused"
        )
        if not known:
            raise FlowleyError(
                f"{files[source]}: has no caption of any clip of the table; are the ids the same?"
            )
    return captions


def _make_missing(
    rows: Sequence[Row], settings: RecordSettings, store: FeatureStore, running: Running
) -> None:
    media = _missing(
        store,
        "media",
        (Item(row.media, row.clip.source, settings.may_lack(row.clip.split)) for row in rows),
    )
    if len(media) < len(rows):
        print(f"{len(rows) - len(media)} of {len(rows)} clips are read already")
    with shown(store, "media", {item.key for item in media}, "reading clips"):
        make_media_features(
            media,
            settings,
            store,
            running.options,
            decoders=running.decoders,
            time_limit=running.time_limit,
            strict=running.strict,
        )
    texts = (text for row in rows for text in (row.text, *row.more.values()))
    captions = _missing(store, "text", (Item(text.key, text.caption) for text in texts))
    with shown(store, "text", {item.key for item in captions}, "reading captions"):
        make_text_features(captions, settings, store, running.options, strict=running.strict)


def _missing(store: FeatureStore, kind: Kind, wanted) -> list[Item]:
    """One item for each key that is not there, in a fixed order."""
    made, refused = store.keys(kind)
    items = {item.key: item for item in wanted if item.key not in made and item.key not in refused}
    return [items[key] for key in sorted(items)]


@dataclasses.dataclass(frozen=True)
class _Rejections:
    """Clips by id, in the order of the table, and captions of other sources by id and source."""

    clips: dict[str, Rejection]
    captions: dict[tuple[str, str], Rejection]


def _rejections(rows: Sequence[Row], store: FeatureStore) -> _Rejections:
    """What cannot be used.

    Raises:
      FlowleyError: features are neither there nor refused: the engine has lost some.
    """
    known = {kind: store.keys(kind) for kind in ("media", "text")}
    found = _Rejections({}, {})

    def rejection(row: Row, kind: Kind, key: str) -> Rejection | None:
        made, refused = known[kind]
        if key in refused:
            return store.rejection(kind, key)
        if key not in made:
            raise FlowleyError(f"{row.clip.id}: its {kind} features were not made; run again")
        return None

    for row in rows:
        refused = rejection(row, "media", row.media) or rejection(row, "text", row.text.key)
        if refused:
            found.clips[row.clip.id] = refused
            continue
        for source, text in row.more.items():
            if refused := rejection(row, "text", text.key):
                found.captions[row.clip.id, source] = refused
    return found


def _forget_rejections(rows: Sequence[Row], store: FeatureStore) -> None:
    media, text = store.keys("media")[1], store.keys("text")[1]
    for row in rows:
        if row.media in media:
            store.forget("media", row.media)
        for key in {row.text.key, *(other.key for other in row.more.values())} & text:
            store.forget("text", key)


def _accepted(rows: Sequence[Row], rejections: _Rejections) -> list[Row]:
    """Rows that can be used, with the captions that can be, in the order of their records."""

    def usable(row: Row) -> Row:
        more = {s: text for s, text in row.more.items() if (row.clip.id, s) not in rejections.captions}
        return dataclasses.replace(row, more=more)

    kept = (usable(row) for row in rows if row.clip.id not in rejections.clips)
    return sorted(kept, key=lambda row: row.place)


def _tasks(accepted: Sequence[Row]) -> list[ShardTask]:
    tasks = []
    for split in SPLITS:
        rows = [row for row in accepted if row.clip.split == split]
        for index, start in enumerate(range(0, len(rows), EXAMPLES_PER_FILE)):
            tasks.append(ShardTask(split, index, rows[start : start + EXAMPLES_PER_FILE]))
    return tasks


def _shard_options(running: Running) -> PipelineOptions | None:
    """Workers of a cluster that does not mount this machine's disk cannot write there."""
    return None if is_remote(running.features) else running.options


def _install(out: Path, partial: Path, parts) -> None:
    """Puts new records in the place of older ones; stopped within, the same command puts it right."""
    (out / MANIFEST_FILE).unlink(missing_ok=True)
    parts.save(out)
    target = dataset_dir(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for left in out.glob(".records-*"):
        shutil.rmtree(left, ignore_errors=True)


def _report_rejections(path: Path, rows: Sequence[Row], rejections: _Rejections) -> None:
    if listed := _by_reason(rejections):
        print(f"{len(rejections.clips)} of {len(rows)} clips cannot be used ({listed}); see {path}")
    if any(rejection.reason == Reason.TOO_SHORT for rejection in rejections.clips.values()):
        print("(config.seconds cuts clips shorter, config.pad_seconds pads those that are a little short)")
    if rejections.captions:
        print(f"{len(rejections.captions)} captions of other sources cannot be used; see {path}")
    lines = ["id\tvideo_path\treason\tdetail"]
    for row in rows:
        clip, listed = row.clip, []
        if clip.id in rejections.clips:
            listed.append(rejections.clips[clip.id])
        for source in row.more:
            if refused := rejections.captions.get((clip.id, source)):
                listed.append(Rejection(Reason.MORE_CAPTION, f"{source}: {refused.detail}; the clip is kept"))
        lines += ["\t".join((clip.id, clip.source, one.reason, one.detail)) for one in listed]
    write_text(path, "".join(line + "\n" for line in lines))


def _by_reason(rejections: _Rejections) -> str:
    counts = Counter(rejection.reason for rejection in rejections.clips.values())
    return ", ".join(f"{number} {reason}" for reason, number in counts.most_common())


def _counts_line(manifest: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{number} {split}" for split, number in manifest["examples"].items())
    return f"{counts}; {sum(manifest['rejected'].values())} rejected"
