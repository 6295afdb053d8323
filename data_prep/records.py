"""Make training records from a clip table.

Beam pipelines compute the features of every clip and caption and store them in `OUT/features`. A run after an
interruption, or with a changed table, computes only what is missing. Then the PCA codec is fitted to the
training split, and the records are written in the order of the hashes of their ids. Clips that cannot be used
are listed in `OUT/rejected.tsv` with the reason.
"""

import contextlib
import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import PipelineOptions

from data_prep.caption_files import read_captions
from data_prep.feature_pipeline import Item, make_media_features, make_text_features
from data_prep.feature_store import DamagedFiles, FeatureKind, FeatureStore, digest
from data_prep.keyed_clips import KeyedCaption, KeyedClip, key_clips
from data_prep.progress import show_progress
from data_prep.record_components import RecordComponents
from data_prep.record_files import ShardTask, fit_codec, measure_latents, remove_notes, write_shards
from data_prep.records_manifest import (
    MANIFEST_FILE,
    REJECTED_FILE,
    REJECTED_HEADER,
    check_settings,
    is_complete,
    read_manifest,
)
from data_prep.rejection import Reason, Rejection
from data_prep.settings import RecordSettings
from data_prep.storage import is_remote
from flowley_jax.common.files import remove_partials, sha256, write_text
from flowley_jax.common.locks import lock_folder
from flowley_jax.data.clip_table import SPLITS, TableClip, read_clip_table
from flowley_jax.data.components import COMPONENTS_FILE, Components
from flowley_jax.data.record import (
    EXAMPLES_PER_FILE,
    METADATA_FILES,
    dataset_dir,
)
from flowley_jax.errors import FlowleyError

# A pass that finds damaged features makes them again.
_MAX_DAMAGED_PASSES = 5
_PACKAGES = ("flowley-jax", "jax", "numpy", "av", "soxr", "pillow", "apache-beam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run that do not change its result.

    Attributes:
      beam_options: Beam's options; by default the pipelines run in this process.
      decoders: processes that read clips, per Beam worker.
      time_limit: time limit for reading one clip, in seconds.
      strict: whether to stop at the first unusable clip.
      retry: whether to retry clips that could not be used before.
      verify: whether to compare the content of existing record files with their checksums.
      features: folder of the features, which may be remote (gs://…); OUT/features if empty.
    """

    beam_options: PipelineOptions | None = None
    decoders: int = 2
    time_limit: float = 120.0
    strict: bool = False
    retry: bool = False
    verify: bool = False
    features: str = ""


def prepare_records(
    clips: str | Path,
    out: str | Path,
    settings: RecordSettings,
    run: RunOptions,
    *,
    captions: Mapping[str, str | Path] | None = None,
) -> dict[str, Any]:
    """Make the records and components of the clips in a table, unless they already exist.

    Args:
      clips: the clip table.
      out: folder for features and records, created if missing; all workers must see it.
      settings: settings of the records.
      run: options of the run.
      captions: files with captions from other sources, by source (`read_captions`).

    Returns:
      The manifest, which is also in `out/manifest.json`.

    Raises:
      FlowleyError: the table is invalid, no training clip can be used, a clip cannot be used in strict mode,
        or `out` holds files of another program, holds records with different settings or is being written by
        another process.
    """
    table = read_clip_table(clips)
    components = RecordComponents(settings)
    components.check()
    with _lock_folders(Path(out), run):
        return _prepare(Path(clips), table, Path(out), components, run, captions or {})


@contextlib.contextmanager
def _lock_folders(out: Path, run: RunOptions) -> Iterator[None]:
    """Keep other processes from the folders that a run writes to; remove what killed ones left there."""
    with contextlib.ExitStack() as locks:
        locks.enter_context(lock_folder(out))
        if run.features and not is_remote(run.features):
            locks.enter_context(lock_folder(Path(run.features)))
        remove_partials(out)
        _feature_store(out, run).remove_partials()
        yield


def _prepare(
    clips: Path,
    table: Sequence[TableClip],
    out: Path,
    components: RecordComponents,
    run: RunOptions,
    captions: Mapping[str, str | Path],
) -> dict[str, Any]:
    previous = read_manifest(out)
    if previous:
        check_settings(out, previous, components)
    keyed = key_clips(table, clips.parent, _read_known_captions(captions, table), components)
    identity = digest([components.identity, sorted(clip.identity for clip in keyed)])
    store = _feature_store(out, run)
    if run.retry:
        _forget_rejections(keyed, store)
    elif previous and previous["identity"] == identity and is_complete(out, previous, verify=run.verify):
        if run.strict and previous["rejected"]:
            _raise_unusable(clips, out, sum(previous["rejected"].values()))
        print(f"{out}: the records already exist: {_describe_counts(previous)}")
        return previous
    sources = tuple(sorted(captions))
    for _ in range(_MAX_DAMAGED_PASSES):
        _make_missing_features(keyed, components, store, run)
        try:
            return _use_features(clips, out, keyed, components, run, sources, identity)
        except FlowleyError as error:
            # Errors of Beam's workers arrive as text, so the store tells whether damaged files were removed.
            if not _lacks_features(keyed, store):
                raise
            print(f"{error}; damaged features are made again")
    raise FlowleyError(f"{store.folder}: features keep being damaged; check the disk and run again")


def _use_features(
    clips: Path,
    out: Path,
    keyed: Sequence[KeyedClip],
    components: RecordComponents,
    run: RunOptions,
    sources: tuple[str, ...],
    identity: str,
) -> dict[str, Any]:
    rejections = _find_rejections(keyed, _feature_store(out, run))
    _report_rejections(out / REJECTED_FILE, keyed, rejections)
    if rejections.clips and run.strict:
        _raise_unusable(clips, out, len(rejections.clips))
    accepted = _accepted(keyed, rejections)
    return _write_records(clips, out, components, run, accepted, rejections, sources, identity)


def _write_records(
    clips: Path,
    out: Path,
    components: RecordComponents,
    run: RunOptions,
    accepted: Sequence[KeyedClip],
    rejections: "_Rejections",
    sources: tuple[str, ...],
    identity: str,
) -> dict[str, Any]:
    training = [clip for clip in accepted if clip.table_clip.split == "train"]
    if not training:
        detail = _count_reasons(rejections) or "the table has none"
        raise FlowleyError(f"{clips}: no training clip can be used ({detail}); see {out / REJECTED_FILE}")
    store = _feature_store(out, run)
    codec = fit_codec(training, components, store)
    fitted = measure_latents(codec, training, components, store, source=clips.name)
    if fitted.log_mel_max is None:
        print("(features of an earlier version lack the highest log-mel values: sounds will not be bounded)")
    dtype = components.settings.feature_dtype
    dims = dataclasses.replace(fitted.dims, feature_dtype=dtype, more_captions=sources)
    # An interrupted run of the same clips finds its finished files here.
    partial = out / f".records-{digest([identity, [clip.identity for clip in accepted]])}"
    files = write_shards(partial, _shard_tasks(accepted), dims, codec, store, _shard_options(run))
    _install(out, partial, fitted)
    manifest = {
        "identity": identity,
        "settings_identity": digest(components.identity),
        "settings": dataclasses.asdict(components.settings),
        "versions": {name: version(name) for name in _PACKAGES},
        "table": {"name": clips.name, "sha256": sha256(clips)},
        "examples": dict(Counter(clip.table_clip.split for clip in accepted)),
        "captions": {source: sum(source in clip.more_captions for clip in accepted) for source in sources},
        "rejected": dict(Counter(rejection.reason for rejection in rejections.clips.values())),
        "dims": dataclasses.asdict(dims),
        "components": json.loads((out / COMPONENTS_FILE).read_text()),
        "files": files,
        "metadata": {name: sha256(dataset_dir(out) / name) for name in METADATA_FILES},
    }
    # The manifest comes last: it says that everything else exists.
    text = json.dumps(manifest, indent=2) + "\n"
    write_text(out / MANIFEST_FILE, text)
    remove_notes(dataset_dir(out))
    print(f"{out}: records: {_describe_counts(manifest)}")
    if "valid" not in manifest["examples"]:
        print("(no clip is in the valid split: training will not validate)")
    return json.loads(text)


def _feature_store(out: Path, run: RunOptions) -> FeatureStore:
    return FeatureStore(run.features or str(out / "features"))


def _raise_unusable(clips: Path, out: Path, rejected: int) -> NoReturn:
    raise FlowleyError(f"{clips}: {rejected} clips cannot be used; see {out / REJECTED_FILE}")


def _read_known_captions(
    files: Mapping[str, str | Path], table: Sequence[TableClip]
) -> dict[str, dict[str, str]]:
    captions, ids = read_captions(files), {clip.id for clip in table}
    for source, by_id in captions.items():
        known = sum(1 for clip_id, caption in by_id.items() if caption and clip_id in ids)
        print(
            f"{source} has captions for {known} of {len(table)} clips; {len(by_id) - known} rows are unused"
        )
        if not known:
            raise FlowleyError(f"{files[source]}: no caption is for a clip in the table; do the ids agree?")
    return captions


def _make_missing_features(
    clips: Sequence[KeyedClip], components: RecordComponents, store: FeatureStore, run: RunOptions
) -> None:
    optional = components.settings.optional_stream
    media_items = (
        Item(clip.media_key, clip.table_clip.source, optional(clip.table_clip.split)) for clip in clips
    )
    media = _missing_items(store, "media", media_items)
    if len(media) < len(clips):
        print(f"{len(clips) - len(media)} of {len(clips)} clips have already been read")
    with show_progress(store, "media", {item.key for item in media}, "reading clips"):
        make_media_features(
            media,
            components,
            store,
            run.beam_options,
            decoders=run.decoders,
            time_limit=run.time_limit,
            strict=run.strict,
        )
    captions = _missing_items(
        store, "text", (Item(caption.key, caption.text) for caption in _captions(clips))
    )
    with show_progress(store, "text", {item.key for item in captions}, "reading captions"):
        make_text_features(captions, components, store, run.beam_options, strict=run.strict)


def _captions(clips: Sequence[KeyedClip]) -> Iterator[KeyedCaption]:
    return (caption for clip in clips for caption in (clip.caption, *clip.more_captions.values()))


def _lacks_features(clips: Sequence[KeyedClip], store: FeatureStore) -> bool:
    """Return whether a clip or caption has neither features nor a rejection."""
    media, text = (set().union(*store.keys(kind)) for kind in ("media", "text"))
    wanted = {clip.media_key for clip in clips}, {caption.key for caption in _captions(clips)}
    return not (wanted[0] <= media and wanted[1] <= text)


def _missing_items(store: FeatureStore, kind: FeatureKind, items: Iterable[Item]) -> list[Item]:
    """Return one item for each key that the store lacks, in a fixed order."""
    stored, rejected = store.keys(kind)
    missing = {item.key: item for item in items if item.key not in stored and item.key not in rejected}
    return [missing[key] for key in sorted(missing)]


@dataclasses.dataclass(frozen=True)
class _Rejections:
    """Rejected clips by id, in the order of the table, and captions from other sources by id and source."""

    clips: dict[str, Rejection]
    captions: dict[tuple[str, str], Rejection]


def _find_rejections(clips: Sequence[KeyedClip], store: FeatureStore) -> _Rejections:
    """Return the clips and captions that cannot be used.

    Raises:
      FlowleyError: a clip has neither features nor a rejection, because the engine lost some, or stored
        rejections were damaged and have been removed.
    """
    damaged = DamagedFiles()
    keys = {kind: store.keys(kind) for kind in ("media", "text")}
    rejections = _Rejections({}, {})

    def find(clip: KeyedClip, kind: FeatureKind, key: str) -> Rejection | None:
        stored, rejected = keys[kind]
        if key in rejected:
            with damaged.noted():
                return store.rejection(kind, key)
        elif key not in stored:
            raise FlowleyError(f"{clip.table_clip.id}: its {kind} features were not made; run again")
        return None

    for clip in clips:
        rejection = find(clip, "media", clip.media_key) or find(clip, "text", clip.caption.key)
        if rejection:
            rejections.clips[clip.table_clip.id] = rejection
            continue
        for source, caption in clip.more_captions.items():
            if rejection := find(clip, "text", caption.key):
                rejections.captions[clip.table_clip.id, source] = rejection
    damaged.check()
    return rejections


def _forget_rejections(clips: Sequence[KeyedClip], store: FeatureStore) -> None:
    media, text = store.keys("media")[1], store.keys("text")[1]
    for clip in clips:
        if clip.media_key in media:
            store.forget_rejection("media", clip.media_key)
        for key in {clip.caption.key, *(other.key for other in clip.more_captions.values())} & text:
            store.forget_rejection("text", key)


def _accepted(clips: Sequence[KeyedClip], rejections: _Rejections) -> list[KeyedClip]:
    """Return the usable clips with their usable captions, in the order of their records."""

    def without_rejected_captions(clip: KeyedClip) -> KeyedClip:
        clip_id, rejected = clip.table_clip.id, rejections.captions
        more = {
            source: caption
            for source, caption in clip.more_captions.items()
            if (clip_id, source) not in rejected
        }
        return dataclasses.replace(clip, more_captions=more)

    usable = (without_rejected_captions(clip) for clip in clips if clip.table_clip.id not in rejections.clips)
    return sorted(usable, key=lambda clip: clip.sort_key)


def _shard_tasks(accepted: Sequence[KeyedClip]) -> list[ShardTask]:
    tasks = []
    for split in SPLITS:
        clips = [clip for clip in accepted if clip.table_clip.split == split]
        for index, start in enumerate(range(0, len(clips), EXAMPLES_PER_FILE)):
            tasks.append(ShardTask(split, index, clips[start : start + EXAMPLES_PER_FILE]))
    return tasks


def _shard_options(run: RunOptions) -> PipelineOptions | None:
    """Return None for remote features: workers that do not mount this machine's disk cannot write to it."""
    return None if is_remote(run.features) else run.beam_options


def _install(out: Path, partial: Path, components: Components) -> None:
    """Replace older records with new ones; if this is interrupted, the same command repairs it."""
    (out / MANIFEST_FILE).unlink(missing_ok=True)
    components.save(out)
    target = dataset_dir(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for leftover in out.glob(".records-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _report_rejections(path: Path, clips: Sequence[KeyedClip], rejections: _Rejections) -> None:
    if counts := _count_reasons(rejections):
        print(f"{len(rejections.clips)} of {len(clips)} clips cannot be used ({counts}); see {path}")
    if any(rejection.reason == Reason.TOO_SHORT for rejection in rejections.clips.values()):
        print("(--config.seconds sets the length of the clips; --config.pad_seconds pads shorter ones)")
    if rejections.captions:
        print(f"{len(rejections.captions)} captions from other sources cannot be used; see {path}")
    lines = [REJECTED_HEADER]
    for keyed in clips:
        clip, listed = keyed.table_clip, []
        if clip.id in rejections.clips:
            listed.append(rejections.clips[clip.id])
        for source in keyed.more_captions:
            if rejection := rejections.captions.get((clip.id, source)):
                detail = f"{source}: {rejection.detail}; the clip is kept"
                listed.append(Rejection(Reason.MORE_CAPTION, detail))
        lines += ["\t".join((clip.id, clip.source, one.reason, one.detail)) for one in listed]
    write_text(path, "".join(line + "\n" for line in lines))


def _count_reasons(rejections: _Rejections) -> str:
    counts = Counter(rejection.reason for rejection in rejections.clips.values())
    return ", ".join(f"{number} {reason}" for reason, number in counts.most_common())


def _describe_counts(manifest: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{number} {split}" for split, number in manifest["examples"].items())
    return f"{counts}; {sum(manifest['rejected'].values())} rejected"
