"""Beam pipelines that compute the features of clips and captions, and put them into the feature store."""

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from data_prep.beam_runner import run_pipeline
from data_prep.feature_store import FeatureKind, FeatureStore
from data_prep.read_clip import ClipReader, DecodedClip, DecodedSound
from data_prep.record_components import RecordComponents
from data_prep.rejection import Reason, Rejection, one_line
from data_prep.settings import OptionalStream, RecordSettings
from data_prep.worker_pool import WorkerPool
from flowley_jax.audio.level_bounds import level_maxima
from flowley_jax.errors import FlowleyError

# Items that a worker takes at a time: enough to fill the encoders' batches.
GROUP_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Item:
    """A clip or caption whose features are computed.

    Attributes:
      key: key of its features.
      source: path of the clip, or the caption.
      optional: the stream that the clip may lack.
    """

    key: str
    source: str
    optional: OptionalStream = ""


Group = Sequence[Item]
DecodedGroup = list[tuple[Item, DecodedClip | Rejection]]
EncodedGroup = list[tuple[Item, dict[str, np.ndarray] | Rejection]]


def make_media_features(
    items: Sequence[Item],
    components: RecordComponents,
    store: FeatureStore,
    options: PipelineOptions | None,
    *,
    decoders: int,
    time_limit: float,
    strict: bool,
) -> None:
    """Compute the features of clips and store them.

    Args:
      items: clips without features.
      components: settings of the records and their components.
      store: store for features and rejections.
      options: Beam's options.
      decoders: processes that read clips, per Beam worker.
      time_limit: time limit for reading one clip, in seconds.
      strict: stop at the first unusable clip.

    Raises:
      FlowleyError: in strict mode, at the first unusable clip.
    """
    steps = {
        "decode": beam.ParDo(_Decode(ClipReader.create(components), decoders, time_limit)),
        "encode": RunInference(Encoders(components.settings, _encode_media)),
        "store": beam.ParDo(_Store("media", store, strict)),
    }
    run_pipeline(_groups(items), steps, options, close=_close_pools)


def make_text_features(
    items: Sequence[Item],
    components: RecordComponents,
    store: FeatureStore,
    options: PipelineOptions | None,
    *,
    strict: bool,
) -> None:
    """Compute the features of captions and store them.

    Args:
      items: captions without features.
      components: settings of the records and their components.
      store: store for features and rejections.
      options: Beam's options.
      strict: stop at the first unusable caption.

    Raises:
      FlowleyError: in strict mode, at the first unusable caption.
    """
    steps = {
        "encode": RunInference(Encoders(components.settings, _encode_text)),
        "store": beam.ParDo(_Store("text", store, strict)),
    }
    run_pipeline(_groups(items), steps, options)


def _groups(items: Sequence[Item]) -> list[Group]:
    return [items[start : start + GROUP_SIZE] for start in range(0, len(items), GROUP_SIZE)]


class _Decode(beam.DoFn):
    def __init__(self, reader: ClipReader, count: int, time_limit: float):
        super().__init__()
        self._arguments = reader, count, time_limit

    def process(self, element: Group):
        decoded = _shared_pool(*self._arguments).map((item.source, item.optional) for item in element)
        yield list(zip(element, decoded, strict=True))


_POOLS: dict[tuple[ClipReader, int, float], WorkerPool] = {}
_LOCK = threading.Lock()


def _shared_pool(reader: ClipReader, count: int, time_limit: float) -> WorkerPool:
    """Return the pool that all threads of this process share."""
    key = reader, count, time_limit
    with _LOCK:
        if key not in _POOLS:
            _POOLS[key] = WorkerPool(reader, count=count, time_limit=time_limit, prepare=reader.prepare)
        return _POOLS[key]


def _close_pools() -> None:
    with _LOCK:
        while _POOLS:
            _POOLS.popitem()[1].close()


class Encoders(ModelHandler[Sequence[Any], PredictionResult, RecordComponents]):
    """The encoders, one set for all threads of a Beam worker."""

    def __init__(
        self, settings: RecordSettings, encode: Callable[[Any, RecordComponents], EncodedGroup]
    ) -> None:
        """Create the handler; nothing is opened yet, since every worker opens its own encoders.

        Args:
          settings: settings of the records.
          encode: function of a group and the components.
        """
        super().__init__()
        self._settings, self._encode = settings, encode

    def load_model(self) -> RecordComponents:
        """Return the components, all of them opened."""
        components = RecordComponents(self._settings)
        components.open_all()
        return components

    def should_skip_batching(self) -> bool:
        """Return True: elements already are batches, and Beam's batching loses the last on some engines."""
        return True

    def run_inference(
        self, batch: Sequence[Any], model: RecordComponents, inference_args: dict | None = None
    ) -> Iterable[PredictionResult]:
        """Encode a group."""
        return (PredictionResult(item, features) for item, features in self._encode(batch, model))


def _encode_media(group: DecodedGroup, components: RecordComponents) -> EncodedGroup:
    clips = [clip for _, clip in group if isinstance(clip, DecodedClip)]
    audio = iter(_encode_audio([clip.sound for clip in clips if clip.sound is not None], components))
    encoded: EncodedGroup = []
    for item, clip in group:
        if isinstance(clip, Rejection):
            encoded.append((item, clip))
        else:
            features = _encode_video(clip, components) | (next(audio) if clip.sound is not None else {})
            encoded.append((item, _check_finite(features)))
    return encoded


def _encode_audio(
    sounds: Sequence[DecodedSound], components: RecordComponents
) -> list[dict[str, np.ndarray]]:
    codec, log_mels = components.reading_codec, [sound.log_mel for sound in sounds]
    if codec is None or not sounds:
        # A codec that is fitted to clips encodes these later.
        return [{"log_mel": sound.log_mel, "loudness": np.asarray(sound.loudness)} for sound in sounds]
    mean, std = codec.encode_log_mel(_pad_group(np.stack(log_mels)))
    return [
        {"audio_mean": mean[row], "audio_std": std[row], "log_mel_max": level_maxima(log_mel, codec.mel)}
        for row, log_mel in enumerate(log_mels)
    ]


def _encode_video(clip: DecodedClip, components: RecordComponents) -> dict[str, np.ndarray]:
    features = clip.video_features if clip.frames is None else components.video_encoder(clip.frames)
    return {} if features is None else {"video_features": _to_stored_type(features, components)}


def _encode_text(group: Group, components: RecordComponents) -> EncodedGroup:
    captions = [item.source for item in group]
    try:
        features, lengths = components.text_encoder(captions + [""] * (GROUP_SIZE - len(captions)))
    except FlowleyError as error:
        if len(group) == 1:
            return [(group[0], Rejection(Reason.CAPTION, one_line(error)))]
        return [encoded for item in group for encoded in _encode_text([item], components)]
    stored = _to_stored_type(features, components)
    # The padding comes last, so the rows of the group are the first ones.
    return [
        (item, _check_finite({"text_features": stored[row], "text_len": lengths[row]}))
        for row, item in enumerate(group)
    ]


def _to_stored_type(features: np.ndarray, components: RecordComponents) -> np.ndarray:
    with np.errstate(over="ignore"):
        return features.astype(components.settings.feature_dtype)


def _check_finite(features: dict[str, np.ndarray]) -> dict[str, np.ndarray] | Rejection:
    for name, array in features.items():
        if not np.isfinite(array).all():
            return Rejection(Reason.NOT_FINITE, f"{name} has values that are not finite as {array.dtype}")
    return features


def _pad_group(rows: np.ndarray) -> np.ndarray:
    """Pad to the size of a group.

    A batch of a different shape would round differently, and features must not depend on where a run stopped.
    """
    return np.pad(rows, ((0, GROUP_SIZE - len(rows)), *((0, 0) for _ in rows.shape[1:])))


class _Store(beam.DoFn):
    def __init__(self, kind: FeatureKind, store: FeatureStore, strict: bool):
        super().__init__()
        self._kind: FeatureKind = kind
        self._store, self._strict = store, strict

    def process(self, element: PredictionResult) -> None:
        item: Any = element.example
        features: Any = element.inference
        if not isinstance(features, Rejection):
            self._store.write(self._kind, item.key, features)
            return
        self._store.reject(self._kind, item.key, features)
        if self._strict:
            raise FlowleyError(f"{item.source}: {features.detail} ({features.reason})")
