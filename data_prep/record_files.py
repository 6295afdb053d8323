"""Write the files of the records from stored features, after fitting the codec and measuring the latents."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from data_prep.beam_runner import run_pipeline
from data_prep.feature_store import DamagedError, DamagedFiles, FeatureStore
from data_prep.keyed_clips import KeyedCaption, KeyedClip
from data_prep.record_components import RecordComponents
from flowley_jax.audio.level_bounds import level_maxima
from flowley_jax.audio.mel import MelConfig
from flowley_jax.audio.protocols import AudioCodec
from flowley_jax.common.files import name_errors, sha256, write_text
from flowley_jax.common.json_files import read_json_object
from flowley_jax.common.progress import progress_bar
from flowley_jax.data.components import Components
from flowley_jax.data.dims import Dims
from flowley_jax.data.record import Example, Shard, shard_name, write_metadata, write_shard
from flowley_jax.errors import FlowleyError
from flowley_jax.media.level import integrated_loudness

# Training clips whose level is compared before and after encoding and decoding.
_GAIN_CLIPS = 64
# Clips that are not louder have no level to compare. No clip counts with a larger change than this.
_SILENT_LUFS, _MOST_CHANGE_DB = -70.0, 12.0
# Keys of the note that marks a file as complete.
_NOTE_KEYS = {"examples", "bytes", "size", "sha256"}


def fit_codec(training: Sequence[KeyedClip], components: RecordComponents, store: FeatureStore) -> AudioCodec:
    """Return the codec that the settings name, or else one that is fitted to the training clips."""
    if components.codec:
        return components.codec
    assert components.fitted_codec is not None
    log_mels = (features["log_mel"] for features in _read_features(training, store, "fitting the codec"))
    return components.fitted_codec.fit(
        log_mels, mel=components.mel, latent_dim=components.settings.latent_dim
    )


def measure_latents(
    codec: AudioCodec,
    training: Sequence[KeyedClip],
    components: RecordComponents,
    store: FeatureStore,
    *,
    source: str,
) -> Components:
    """Return the components of the records, with the statistics of the training clips.

    They are the mean and deviation of latents drawn from the posteriors, `level_maxima`, and the gain of
    decoded sounds. Features of earlier versions may lack what the last two need: the maxima are then None,
    and the gain is 1. It is also 1 if the codec or the vocoder has weights. The gain of a codec that was
    fitted to other clips stays as it is.

    Args:
      codec: the codec of the records.
      training: clips of the train split.
      components: settings of the records and their components.
      store: their features.
      source: name of the clip table.
    """
    count, total, squares = 0, np.zeros(codec.latent_dim), np.zeros(codec.latent_dim)
    highest: np.ndarray | None = np.full(codec.mel.bins + 1, -np.inf, np.float32)
    for features in _read_features(training, store, "measuring the latents"):
        mean, std = (x.astype(np.float64) for x in posterior(codec, features))
        count += len(mean)
        total += mean.sum(axis=0)
        squares += (np.square(mean) + np.square(std)).sum(axis=0)
        clip_highest = _log_mel_max(features, codec.mel)
        both_known = highest is not None and clip_highest is not None
        highest = np.maximum(highest, clip_highest) if both_known else None
    mean = total / count
    measured = Components(
        seconds=components.settings.seconds,
        video_encoder=components.video_encoder,
        text_encoder=components.text_encoder,
        codec=codec,
        vocoder=components.vocoder_for(codec),
        latent_mean=mean.astype(np.float32),
        latent_std=np.sqrt(np.maximum(squares / count - mean**2, 0.0)).astype(np.float32),
        log_mel_max=highest,
        source=source,
    )
    if components.model:
        # The gain belongs to the codec: other clips may hold sounds that it loses altogether.
        return dataclasses.replace(measured, wave_gain=components.model.wave_gain)
    if not (codec.needs_fitting and measured.vocoder.runs_on_host):
        return measured
    return dataclasses.replace(measured, wave_gain=_wave_gain(measured, training[:_GAIN_CLIPS], store))


def posterior(codec: AudioCodec | None, features: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of a clip's latents, each (Ta, C).

    Args:
      codec: codec that was fitted to the clips; any other codec has already encoded the clip.
      features: stored features of the clip.
    """
    if codec is not None and codec.needs_fitting:
        mean, std = codec.encode_log_mel(features["log_mel"][None])
        return mean[0], std[0]
    return features["audio_mean"], features["audio_std"]


def _wave_gain(components: Components, clips: Sequence[KeyedClip], store: FeatureStore) -> float:
    """Return the gain that restores, on average, the loudness that sounds had before encoding and decoding.

    Features of earlier versions lack the loudness; without any, the gain is 1.
    """
    differences = []
    for features in _read_features(clips, store, "measuring the level"):
        if features.get("loudness", -np.inf) <= _SILENT_LUFS:
            continue
        latents, _ = posterior(components.codec, features)
        wave = components.decode_audio(latents[None])[0]
        change = features["loudness"] - integrated_loudness(wave, components.sample_rate)
        # What the codec does not hold at all, such as a tone above its range, must not decide.
        differences.append(np.clip(change, -_MOST_CHANGE_DB, _MOST_CHANGE_DB))
    return 10.0 ** (float(np.mean(differences)) / 20.0) if differences else 1.0


def _log_mel_max(features: Mapping[str, np.ndarray], mel: MelConfig) -> np.ndarray | None:
    """Return `level_maxima` of a clip; features of earlier versions may lack them."""
    if "log_mel" in features:
        return level_maxima(features["log_mel"], mel)
    return features.get("log_mel_max")


def _read_features(
    clips: Sequence[KeyedClip], store: FeatureStore, label: str
) -> Iterator[dict[str, np.ndarray]]:
    damaged = DamagedFiles()
    with progress_bar(label, total=len(clips)) as bar:
        for clip in clips:
            with damaged.noted():
                yield store.read("media", clip.media_key)
            bar.update()
    damaged.check()


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One file to write: its split, its number in the split, and its clips."""

    split: str
    index: int
    clips: Sequence[KeyedClip]

    @property
    def name(self) -> str:
        """Name of the file."""
        return shard_name(self.split, self.index)


def write_shards(
    folder: Path,
    tasks: Sequence[ShardTask],
    dims: Dims,
    codec: AudioCodec,
    store: FeatureStore,
    options: PipelineOptions | None,
) -> dict[str, Any]:
    """Write the files of a data set. Files that an interrupted run finished are kept.

    Args:
      folder: folder of the data set.
      tasks: the files.
      dims: sizes of the records.
      codec: codec of the records.
      store: features of the clips.
      options: Beam's options.

    Returns:
      For every file: the number of examples, their size in bytes, the file's size and its SHA-256.

    Raises:
      FlowleyError: features are damaged, or a file cannot be written.
    """
    with name_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    missing = [task for task in tasks if not _is_written(folder, task)]
    fitted = codec if codec.needs_fitting else None
    run_pipeline(missing, {"write": beam.ParDo(_WriteShard(folder, dims, fitted, store))}, options)
    notes = {task.name: _read_note(folder, task) for task in tasks}
    shards: dict[str, list[Shard]] = {}
    for task in tasks:
        note = notes[task.name]
        shards.setdefault(task.split, []).append(Shard(note["examples"], note["bytes"]))
    write_metadata(folder, dims, shards)
    # Workers that were killed leave partial files.
    for path in set(folder.glob(".*")) - {_note_file(folder, task) for task in tasks}:
        path.unlink()
    return notes


def remove_notes(folder: Path) -> None:
    """Remove the notes that mark files as complete for `write_shards`."""
    for path in folder.glob(".*.json"):
        path.unlink()


class _WriteShard(beam.DoFn):
    def __init__(self, folder: Path, dims: Dims, codec: AudioCodec | None, store: FeatureStore):
        super().__init__()
        self._folder, self._dims, self._codec, self._store = folder, dims, codec, store

    def process(self, element: ShardTask) -> None:
        path = self._folder / element.name
        try:
            # Another worker may write the same file at the same time, with the same content.
            shard = write_shard(path, self._dims, self._examples(element))
        except DamagedError:
            # An error would end the pipeline before the other files have shown what else is damaged.
            return
        note = {
            "examples": shard.examples,
            "bytes": shard.size,
            "size": path.stat().st_size,
            "sha256": sha256(path),
        }
        write_text(_note_file(self._folder, element), json.dumps(note))

    def _examples(self, task: ShardTask) -> Iterator[Example]:
        damaged = DamagedFiles()
        for clip in task.clips:
            with damaged.noted():
                yield self._example(clip)
        damaged.check()

    def _example(self, clip: KeyedClip) -> Example:
        features = self._store.read("media", clip.media_key)
        example: dict[str, Any] = {
            "id": clip.table_clip.id,
            "label": clip.table_clip.label,
            **self._text(clip.caption),
            "more_captions": {source: self._text(caption) for source, caption in clip.more_captions.items()},
        }
        if "video_features" in features:
            example["video_features"] = features["video_features"]
        if features.keys() - {"video_features"}:
            example["audio_mean"], example["audio_std"] = posterior(self._codec, features)
        return example

    def _text(self, caption: KeyedCaption) -> dict[str, Any]:
        return {"caption": caption.text, **self._store.read("text", caption.key)}


def _note_file(folder: Path, task: ShardTask) -> Path:
    """Return the path of the note that marks a file as complete and describes it."""
    return folder / f".{task.name}.json"


def _read_note(folder: Path, task: ShardTask) -> dict[str, Any]:
    try:
        note = read_json_object(_note_file(folder, task))
    except FlowleyError as error:
        raise FlowleyError(
            f"{folder / task.name}: was not written; features were damaged, or a worker was lost; run again"
        ) from error
    if note.keys() != _NOTE_KEYS:
        raise FlowleyError(f"{_note_file(folder, task)}: was not made by this program; remove {folder}")
    return note


def _is_written(folder: Path, task: ShardTask) -> bool:
    """Return whether an interrupted run finished a file; a power failure can leave a part of it."""
    try:
        return _read_note(folder, task)["size"] == (folder / task.name).stat().st_size
    except (FlowleyError, OSError):
        return False
