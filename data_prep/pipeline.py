"""The work on clips as Beam pipelines.

Every pipeline is one line of steps over elements that are groups already, and its results are files: so it
runs on engines that know little more than that (docs/records.md).
"""

import contextlib
import dataclasses
import functools
import io
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data_prep.decode import Decoded, decode
from data_prep.decoder import DecoderPool
from data_prep.rejection import Reason, Rejection, one_line
from data_prep.settings import Lack, RecordSettings
from data_prep.store import FeatureStore, Kind
from flowley_jax.errors import FlowleyError

try:
    import apache_beam as beam
    from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise FlowleyError("data_prep needs Apache Beam: pip install 'flowley-jax[data]'") from error

# Elements that one worker takes at a time: enough to fill the encoders' batches.
GROUP = 16
# While one thread waits for the encoders, another has clips decoded.
IN_THREADS = ["--direct_running_mode=multi_threading", "--direct_num_workers=3"]
_DEFAULT, _DASK = "DirectRunner", "DaskRunner"
# The first would try to download another runner; Beam does not know the second by its name.
_RUNNERS = {_DEFAULT: "FnApiRunner", _DASK: "apache_beam.runners.dask.dask_runner.DaskRunner"}


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing to make features of.

    Attributes:
      key: of its features.
      source: the path of a clip, or a caption.
      may_lack: a stream without which a clip can be used.
    """

    key: str
    source: str
    may_lack: Lack = ""


Group = Sequence[Item]
Read = list[tuple[Item, Decoded | Rejection]]
Made = list[tuple[Item, dict[str, np.ndarray] | Rejection]]


def make_media_features(
    items: Sequence[Item],
    settings: RecordSettings,
    store: FeatureStore,
    options: PipelineOptions | None,
    *,
    decoders: int,
    time_limit: float,
    strict: bool,
) -> None:
    """Features of clips into the store.

    Args:
      decoders: processes that decode, for each worker.
      time_limit: seconds after which one clip's decoding is given up.
      strict: whether the first clip that cannot be used ends the run.

    Raises:
      FlowleyError: as it does.
    """
    encode = RunInference(Encoders(settings, _media_features))
    decode = beam.ParDo(_Decode(settings, decoders, time_limit))
    keep = beam.ParDo(_Keep("media", store, strict))
    run([*_groups(items)], {"decode": decode, "encode": encode, "keep": keep}, options)


def make_text_features(
    items: Sequence[Item],
    settings: RecordSettings,
    store: FeatureStore,
    options: PipelineOptions | None,
    *,
    strict: bool,
) -> None:
    """Features of captions into the store.

    Raises:
      FlowleyError: a caption cannot be used and that is strict.
    """
    encode = RunInference(Encoders(settings, _text_features))
    keep = beam.ParDo(_Keep("text", store, strict))
    run([*_groups(items)], {"encode": encode, "keep": keep}, options)


def run(elements: Sequence[Any], steps: dict[str, Any], options: PipelineOptions | None) -> None:
    """Runs elements through steps, each named, to the end.

    Args:
      options: of Beam, with the runner; by default threads of this process.

    Raises:
      FlowleyError: a step raised one, or the engine cannot be reached.
    """
    if not elements:
        return
    options = options or PipelineOptions(IN_THREADS)
    name, pipeline = _new_pipeline(options)
    collection = pipeline | "elements" >> beam.Create(elements) | "spread" >> beam.Reshuffle()
    for label, step in steps.items():
        collection = collection | label >> step
    try:
        with _quiet(), contextlib.ExitStack() as after:
            after.callback(_close_decoders)
            if name == _DASK:
                after.callback(_close_client)
            pipeline.run().wait_until_finish()
    except Exception as error:
        # Engines wrap what a step raises, often as the text of a traceback, and add where it was.
        raised = re.findall(
            rf"{FlowleyError.__name__}: (.*?)(?: \[while running.*)?$", str(error), re.MULTILINE
        )
        if isinstance(error, FlowleyError):
            raised = [str(error).split(" [while running")[0]]
        if raised:
            raise FlowleyError(raised[-1]) from None
        if name in _RUNNERS:
            raise
        raise FlowleyError(f"--runner={name}: {one_line(error)}") from error


def check_options(options: PipelineOptions) -> None:
    """Raises a FlowleyError for a runner that does not exist, and for flags that an engine of this machine
    would ignore; others hand theirs on."""
    name, _ = _new_pipeline(options)
    known, given = (options.get_all_options(retain_unknown_options=kept) for kept in (False, True))
    if name in _RUNNERS and (unknown := sorted(given.keys() - known.keys())):
        raise FlowleyError(f"--runner={name} has no flag --{unknown[0]}")


def _new_pipeline(options: PipelineOptions) -> tuple[str, beam.Pipeline]:
    name = options.get_all_options()["runner"] or _DEFAULT
    try:
        return name, beam.Pipeline(runner=_RUNNERS.get(name, name), options=options)
    except (ValueError, ImportError) as error:
        raise FlowleyError(f"--runner={name}: {one_line(error)}") from error


def _close_client() -> None:
    """Beam's runner leaves its client, and a cluster that it has started here, to the end of the program."""
    import distributed

    with contextlib.suppress(ValueError):
        distributed.default_client().close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Beam from printing tracebacks of what it raises as well, and of what is stopped by Ctrl-C."""
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    with contextlib.redirect_stderr(io.StringIO()):
        yield


class Encoders(ModelHandler[Sequence[Any], PredictionResult, RecordSettings]):
    """The encoders, one set for all threads of a worker."""

    def __init__(self, settings: RecordSettings, encode: Callable[[Any, RecordSettings], Made]):
        super().__init__()
        self._settings, self._encode = settings, encode

    def load_model(self) -> RecordSettings:
        # All of them now, before several threads ask for them.
        _ = self._settings.video_encoder, self._settings.text_encoder, self._settings.fixed_codec
        return self._settings

    def should_skip_batching(self) -> bool:
        """Elements are batches already; Beam's own batching loses the last of them on some engines."""
        return True

    def run_inference(
        self, batch: Sequence[Any], model: RecordSettings, inference_args: dict | None = None
    ) -> Iterable[PredictionResult]:
        return (PredictionResult(item, made) for item, made in self._encode(batch, model))


def _media_features(group: Read, settings: RecordSettings) -> Made:
    decoded = [read for _, read in group if isinstance(read, Decoded)]
    sounds = iter(_sounds([read.log_mel for read in decoded if read.log_mel is not None], settings))
    made: Made = []
    for item, read in group:
        if isinstance(read, Rejection):
            made.append((item, read))
        else:
            features = _video(read, settings) | (next(sounds) if read.log_mel is not None else {})
            made.append((item, _checked(features)))
    return made


def _sounds(log_mels: Sequence[np.ndarray], settings: RecordSettings) -> list[dict[str, np.ndarray]]:
    codec = settings.fixed_codec
    if codec is None or not log_mels:
        return [{"log_mel": log_mel} for log_mel in log_mels]
    mean, std = codec.encode_log_mel(_filled(np.stack(log_mels)))
    return [{"audio_mean": mean[row], "audio_std": std[row]} for row in range(len(log_mels))]


def _video(read: Decoded, settings: RecordSettings) -> dict[str, np.ndarray]:
    video = read.video_features if read.frames is None else settings.video_encoder(read.frames)
    return {} if video is None else {"video_features": _stored(video, settings)}


def _stored(features: np.ndarray, settings: RecordSettings) -> np.ndarray:
    with np.errstate(over="ignore"):
        return features.astype(settings.feature_dtype)


def _checked(features: dict[str, np.ndarray]) -> dict[str, np.ndarray] | Rejection:
    for name, array in features.items():
        if not np.isfinite(array).all():
            return Rejection(Reason.NOT_FINITE, f"{name} has values that are no finite {array.dtype}")
    return features


def _filled(rows: np.ndarray) -> np.ndarray:
    """As many rows as a group may have: a batch of another shape would round otherwise, and what a clip gets
    must not depend on where a run was stopped."""
    return np.pad(rows, ((0, GROUP - len(rows)), *((0, 0) for _ in rows.shape[1:])))


def _text_features(group: Group, settings: RecordSettings) -> Made:
    captions = [item.source for item in group]
    try:
        features, lengths = settings.text_encoder(captions + [""] * (GROUP - len(captions)))
    except FlowleyError as error:
        if len(group) == 1:
            return [(group[0], Rejection(Reason.CAPTION, one_line(error)))]
        return [made for item in group for made in _text_features([item], settings)]
    stored = _stored(features, settings)
    # The fillers come last.
    return [
        (item, _checked({"text_features": stored[row], "text_len": lengths[row]}))
        for row, item in enumerate(group)
    ]


class _Decode(beam.DoFn):
    def __init__(self, settings: RecordSettings, decoders: int, time_limit: float):
        super().__init__()
        self._arguments = settings, decoders, time_limit

    def process(self, element: Group):
        read = _decoders(*self._arguments).map((item.source, item.may_lack) for item in element)
        yield list(zip(element, read, strict=True))


_POOLS: dict[tuple[RecordSettings, int, float], DecoderPool] = {}
_LOCK = threading.Lock()


def _decoders(settings: RecordSettings, count: int, time_limit: float) -> DecoderPool:
    """Those of all threads of this process."""
    wanted = settings, count, time_limit
    with _LOCK:
        if wanted not in _POOLS:
            work = functools.partial(decode, settings)
            _POOLS[wanted] = DecoderPool(work, count=count, time_limit=time_limit)
        return _POOLS[wanted]


def _close_decoders() -> None:
    with _LOCK:
        while _POOLS:
            _POOLS.popitem()[1].close()


class _Keep(beam.DoFn):
    def __init__(self, kind: Kind, store: FeatureStore, strict: bool):
        super().__init__()
        self._kind: Kind = kind
        self._store, self._strict = store, strict

    def process(self, element: PredictionResult):
        item: Any = element.example
        features: Any = element.inference
        if not isinstance(features, Rejection):
            self._store.write(self._kind, item.key, features)
            return
        self._store.refuse(self._kind, item.key, features)
        if self._strict:
            raise FlowleyError(f"{item.source}: {features.detail} ({features.reason})")


def _groups(items: Sequence[Item]) -> Iterable[Group]:
    return (items[start : start + GROUP] for start in range(0, len(items), GROUP))
