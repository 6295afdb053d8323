"""Extract the features of clips into a folder, batch by batch; an interrupted extraction resumes."""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from flowley_jax.common.device_batches import DeviceBatches, Replicated
from flowley_jax.common.files import name_errors, remove_partials
from flowley_jax.common.locks import lock_folder
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.extractors import EXTRACTORS, Extractor
from flowley_jax.evaluation.features import read_parts, write_features

log = logging.getLogger(__name__)
# Clips of one file of features: what an interruption can lose.
PART_CLIPS = 64
# Bytes at both ends of a file that its fingerprint reads.
_END_BYTES = 2**16
# Clips that are read at once; their inputs are in memory together.
_READ_CLIPS = 16
_SHOWN_NAMES = 5

Arrays = dict[str, np.ndarray]
# Function from calls (source, names) to, in order, the result of `Preparation` for each, or why it has none.
Reader = Callable[[Iterable[tuple[str, tuple[str, ...]]]], Iterator[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A network that turns inputs into features.

    Attributes:
      identity: text that changes with its weights and its compute type.
      load: function that loads it.
      is_exact: whether its matrix products must be exact to float32 on accelerators.
    """

    identity: str
    load: Callable[[], nnx.Module]
    is_exact: bool = True

    def precision(self) -> contextlib.AbstractContextManager:
        """Return the context manager in which its programs must be called."""
        return jax.default_matmul_precision("highest") if self.is_exact else contextlib.nullcontext()


class Evaluators:
    """The networks of an evaluation, by the names of their bundles; each is loaded when it is needed."""

    def __init__(self, networks: Mapping[str, Evaluator]):
        """Create them; nothing is loaded yet."""
        self.networks = networks
        self._replicated: dict[str, Replicated] = {}
        self._batches: dict[tuple[str, Callable[..., Any]], DeviceBatches] = {}

    def identity(self, extractor: Extractor) -> str:
        """Return the identity of an extractor's network; empty if it needs none."""
        return self.networks[extractor.bundle].identity if extractor.bundle else ""

    def features(self, extractor: Extractor, inputs: Sequence[Arrays]) -> dict[str, np.ndarray]:
        """Return the features of clips whose inputs have equal shapes, (clips, …) by kind."""
        assert extractor.apply is not None
        arrays = [np.stack([clip[name] for clip in inputs]) for name in inputs[0]]
        return self.apply(extractor.bundle, extractor.apply, *arrays, batch=extractor.batch)

    def apply(self, name: str, function: Callable[..., Any], *arrays: np.ndarray, batch: int = 16) -> Any:
        """Apply a function of a network and of arrays (N, …), divided over the devices.

        Args:
          name: the network.
          function: the function; its programs are kept.
          arrays: arrays with one row per clip.
          batch: clips on a device at once.
        """
        if name not in self._replicated:
            self._replicated[name] = Replicated(self.networks[name].load())
        if (name, function) not in self._batches:
            model = self._replicated[name]
            self._batches[name, function] = DeviceBatches(function, model, batch_size=batch * model.mesh.size)
        with self.networks[name].precision():
            return self._batches[name, function](*arrays)


def available(names: Iterable[str], evaluators: Evaluators) -> list[str]:
    """Return those extractors that need no network, or one that is there."""
    return [n for n in names if EXTRACTORS[n].bundle in ("", *evaluators.networks)]


def extract(
    clips: Mapping[str, str],
    names: Sequence[str],
    evaluators: Evaluators,
    out: Path,
    *,
    seconds: float,
    read: Reader,
    fingerprint: Callable[[str], Any] = lambda source: source,
    progress: Callable[[int], object] = lambda clips: None,
) -> list[str]:
    """Extract features that are not in a folder yet, or whose file has changed since.

    Args:
      clips: sources by clip id: paths of files, or texts.
      names: extractors to use.
      evaluators: the networks.
      out: folder of the features.
      seconds: length that the networks take, from the start of each file.
      read: reader of the sources, such as `WorkerPool.map` of a `Preparation`.
      fingerprint: function from a source to a JSON value that changes with its content.
      progress: function that is called with the number of clips that were finished since the last call.

    Returns:
      One line for each clip, or each extractor of a clip, that gave no features. They are tried again next
      time.

    Raises:
      FlowleyError: the folder cannot be used: it holds features of other networks or seconds, or another
        process is writing to it.
    """
    failed: list[str] = []
    identities = {name: evaluators.identity(EXTRACTORS[name]) for name in names}
    sources = {clip: fingerprint(source) for clip, source in clips.items()}
    with lock_folder(out):
        remove_partials(out)
        done = _done(out, sources, identities, seconds)
        missing = {
            clip: needed
            for clip in clips
            if (needed := tuple(name for name in names if clip not in done.get(name, ())))
        }
        progress(len(clips) - len(missing))
        todo = iter(missing.items())
        while part := dict(itertools.islice(todo, PART_CLIPS)):
            features = _part_features(part, clips, evaluators, read, failed, progress)
            if features:
                notes = {
                    "seconds": seconds,
                    "networks": identities,
                    "sources": {clip: sources[clip] for clip in part},
                }
                write_features(out, features, notes)
    return failed


def _part_features(
    part: Mapping[str, tuple[str, ...]],
    clips: Mapping[str, str],
    evaluators: Evaluators,
    read: Reader,
    failed: list[str],
    progress: Callable[[int], object],
) -> dict[str, Arrays]:
    """Return the features of some clips by kind and clip id."""
    features: dict[str, Arrays] = {}
    waiting: dict[tuple, dict[str, Arrays]] = {}

    def finish(key: tuple) -> None:
        extractor, inputs = EXTRACTORS[key[0]], waiting.pop(key)
        for kind, rows in evaluators.features(extractor, list(inputs.values())).items():
            features.setdefault(kind, {}).update(zip(inputs, rows, strict=True))

    for clip, prepared in _prepared(part, clips, read):
        progress(1)
        if not isinstance(prepared, dict):
            failed.append(f"{clip}: {prepared.detail}")
            continue
        for name, inputs in prepared.items():
            if isinstance(inputs, str):
                failed.append(f"{clip}: {name}: {inputs}")
            elif EXTRACTORS[name].apply is None:
                for kind, array in inputs.items():
                    features.setdefault(kind, {})[clip] = array
            else:
                key = (name, *(array.shape for array in inputs.values()))
                waiting.setdefault(key, {})[clip] = inputs
                if len(waiting[key]) >= EXTRACTORS[name].batch * jax.local_device_count():
                    finish(key)
    for key in list(waiting):
        finish(key)
    return features


def _prepared(
    part: Mapping[str, tuple[str, ...]], clips: Mapping[str, str], read: Reader
) -> Iterator[tuple[str, Any]]:
    """Yield the inputs of clips; the next ones are read while the networks compute."""
    items, previous = iter(part.items()), None
    while chunk := list(itertools.islice(items, _READ_CLIPS)):
        following = [clip for clip, _ in chunk], read([(clips[clip], names) for clip, names in chunk])
        if previous:
            yield from zip(*previous, strict=True)
        previous = following
    if previous:
        yield from zip(*previous, strict=True)


def _done(
    out: Path, sources: Mapping[str, Any], identities: Mapping[str, str], seconds: float
) -> dict[str, set[str]]:
    """Return the clips whose features are stored, by extractor; remove files with features of changed clips.

    Raises:
      FlowleyError: stored features are of other networks or seconds.
    """
    done: dict[str, set[str]] = {}
    remedy = f"remove {out}, or choose another folder"
    for path, stored, notes in read_parts(out):
        if notes.get("seconds") != seconds:
            raise FlowleyError(
                f"{path}: has features of the first {notes.get('seconds')} s, not {seconds:g} s; {remedy}"
            )
        held = {
            name: set.intersection(*(stored.get(kind, set()) for kind in EXTRACTORS[name].kinds))
            for name in identities
        }
        for name, clips in held.items():
            if clips and notes.get("networks", {}).get(name) != identities[name]:
                raise FlowleyError(
                    f"{path}: its features of {name} are of other weights, or of another --dtype; {remedy}"
                )
        known, earlier = set().union(*held.values()) & sources.keys(), notes.get("sources", {})
        if changed := sorted(clip for clip in known if earlier.get(clip) != sources[clip]):
            log.info(
                "%s: extracting its clips again, because %d changed: %s",
                *(path, len(changed), ", ".join(changed[:_SHOWN_NAMES])),
            )
            with name_errors(path):
                path.unlink()
            continue
        for name, clips in held.items():
            done.setdefault(name, set()).update(clips)
    return done


def file_fingerprint(path: str) -> list[int | str] | None:
    """Return the size of a file, the time of its change, and a digest of its ends; None if it is missing."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        with open(path, "rb") as file:
            ends = file.read(_END_BYTES)
            file.seek(max(0, status.st_size - _END_BYTES))
            ends += file.read(_END_BYTES)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, hashlib.sha256(ends).hexdigest()[:16]]
