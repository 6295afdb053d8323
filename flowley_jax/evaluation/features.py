"""Features of clips by clip id, in files: av-benchmark's caches, and our own.

A folder holds one side: generated or reference clips. av-benchmark writes one `.pth` file per network, a
dictionary of tensors by clip id. Our own files, `features-00000.safetensors` and so on, hold some clips each:
the arrays are named "kind/clip id". Their notes say how they were made.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from flowley_jax.common.files import name_errors
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.torch_files import StoredTensor, open_torch_file
from flowley_jax.interop.torch_writer import write_torch_file
from flowley_jax.interop.weight_files import read_notes, write_arrays

Features = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureKind:
    """One kind of features.

    Attributes:
      name: name in our own files.
      file: name of av-benchmark's file; empty if it has none.
      entry: entry of a clip's value in that file, if it holds several.
      ndim: dimensions of a clip's features.
      has_windows: whether the first dimension is that of windows, whose number varies.
      last: length of the last dimension, if it is fixed.
    """

    name: str
    file: str = ""
    entry: str = ""
    ndim: int = 1
    has_windows: bool = False
    last: int | None = None


KINDS = {
    kind.name: kind
    for kind in (
        FeatureKind(name="pann_2048", file="pann_features.pth", entry="2048"),
        FeatureKind(name="pann_logits", file="pann_features.pth", entry="logits"),
        FeatureKind(name="vggish", file="vggish_features.pth", ndim=2, has_windows=True),
        FeatureKind(name="passt_embed", file="passt_features_embed.pth"),
        FeatureKind(name="passt_logits", file="passt_logits.pth"),
        FeatureKind(name="imagebind_audio", file="imagebind_audio.pth"),
        FeatureKind(name="imagebind_video", file="imagebind_video.pth"),
        FeatureKind(name="synchformer_audio", file="synchformer_audio.pth", ndim=3),
        FeatureKind(name="synchformer_video", file="synchformer_video.pth", ndim=3),
        FeatureKind(name="clap_laion_audio", file="clap_laion_audio.pth"),
        FeatureKind(name="clap_laion_text", file="clap_laion_text.pth"),
        FeatureKind(name="clap_ms_audio", file="clap_ms_audio.pth"),
        FeatureKind(name="clap_ms_text", file="clap_ms_text.pth"),
        FeatureKind(name="tagger_embed"),
        FeatureKind(name="tagger_logits"),
        FeatureKind(name="tagger_labels"),
        FeatureKind(name="level", last=4),
        FeatureKind(name="audio_peaks", has_windows=True),
        FeatureKind(name="video_peaks", has_windows=True),
        FeatureKind(name="video_format", last=3),
        FeatureKind(name="onsets", has_windows=True),
        FeatureKind(name="protocol_onsets", ndim=2, has_windows=True, last=3),
        FeatureKind(name="events", has_windows=True),
    )
}
_PART = "features-{:05d}.safetensors"
_PARTS = "features-*.safetensors"


def present_kinds(folder: Path) -> list[str]:
    """Return the names of the features that a folder holds.

    Raises:
      FlowleyError: there is no such folder, a file is damaged, or the folder holds one kind in both formats.
    """
    if not folder.is_dir():
        raise FlowleyError(f"{folder}: no such folder; files of features are expected there")
    own = {kind for path in _parts(folder) for kind, _ in _names(path)}
    theirs = {kind.name for kind in KINDS.values() if kind.file and (folder / kind.file).is_file()}
    if both := sorted(own & theirs):
        raise FlowleyError(
            f"{folder}: holds {both[0]} in {KINDS[both[0]].file} and in {_PARTS}; remove one of the two"
        )
    return [name for name in KINDS if name in own | theirs]


@contextlib.contextmanager
def open_features(folder: Path, name: str) -> Iterator[dict[str, StoredTensor]]:
    """Open the features of one kind, and yield them by clip id; each is read when it is asked for.

    Args:
      folder: the folder.
      name: a key of `KINDS`.

    Raises:
      FlowleyError: the files are missing, damaged, or not of this kind; the message names the file.
    """
    kind = KINDS[name]
    if name not in present_kinds(folder):
        files = f"{kind.file} or {_PARTS}" if kind.file else _PARTS
        raise FlowleyError(f"{folder}: holds no {name}; it is expected in {files}")
    if kind.file and (folder / kind.file).is_file():
        with open_torch_file(folder / kind.file) as checkpoint:
            yield dict(_tensors(checkpoint, kind, folder / kind.file))
        return
    with contextlib.ExitStack() as stack:
        stored: dict[str, StoredTensor] = {}
        for path in _parts(folder):
            opened = stack.enter_context(_opened(path))
            for own, clip in _names(path):
                if own == name:
                    stored[clip] = _slice(opened, f"{own}/{clip}", path)
        yield dict(sorted(stored.items()))


def write_features(folder: Path, features: Mapping[str, Features], notes: Mapping[str, Any]) -> Path:
    """Add features to a folder as its next file, and return its path.

    Args:
      folder: the folder; it is created if necessary.
      features: features by kind and clip id.
      notes: values for JSON that say how they were made.

    Raises:
      FlowleyError: the features are not of their kind, or the file cannot be written.
    """
    for name, by_clip in features.items():
        check_features(by_clip, KINDS[name], folder)
    with name_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    number = max((int(path.stem.split("-")[1]) for path in _parts(folder)), default=-1) + 1
    path = folder / _PART.format(number)
    arrays = {
        f"{name}/{clip}": array for name, by_clip in features.items() for clip, array in by_clip.items()
    }
    write_arrays(path, arrays, {key: json.dumps(value) for key, value in notes.items()})
    return path


def check_features(features: Features, kind: FeatureKind, path: Path) -> None:
    """Refuse features that are not of a kind, and an empty set.

    Args:
      features: features by clip id.
      kind: the kind.
      path: the file or folder, for the message.

    Raises:
      FlowleyError: there is no clip, or an array has another type or shape.
    """
    if not features:
        raise FlowleyError(f"{path}: holds {kind.name} of no clip")
    first, fixed = next(iter(features)), slice(int(kind.has_windows), None)
    for clip, array in features.items():
        if array.ndim != kind.ndim or not np.issubdtype(array.dtype, np.floating):
            raise FlowleyError(
                f"{path}: {kind.name} of {clip} is {array.shape} of {array.dtype}; floating-point numbers "
                f"with {kind.ndim} axes are expected"
            )
        if kind.last is not None and array.shape[-1] != kind.last:
            raise FlowleyError(f"{path}: {kind.name} of {clip} is {array.shape}, expected (…, {kind.last})")
        if array.shape[fixed] != features[first].shape[fixed]:
            raise FlowleyError(
                f"{path}: {kind.name} of {clip} is {array.shape}, but that of {first} is "
                f"{features[first].shape}"
            )


def read_parts(folder: Path) -> Iterator[tuple[Path, dict[str, set[str]], dict[str, Any]]]:
    """Yield our own files of a folder: the path, the clip ids by kind, and the notes.

    Raises:
      FlowleyError: a file is damaged.
    """
    for path in _parts(folder):
        clips: dict[str, set[str]] = {}
        for kind, clip in _names(path):
            clips.setdefault(kind, set()).add(clip)
        try:
            yield path, clips, {key: json.loads(value) for key, value in read_notes(path).items()}
        except ValueError as error:
            raise FlowleyError(f"{path}: its notes are damaged ({error})") from error


def write_av_benchmark_features(folder: Path, features: Mapping[str, Features]) -> None:
    """Write features as av-benchmark's files, which it reads with `torch.load`.

    Args:
      folder: folder for the files; it is created if necessary.
      features: features by kind and clip id. The kinds that share a file must have the same clips.

    Raises:
      FlowleyError: features are not of their kind, kinds that share a file have different clips,
        av-benchmark has no file for them, or a file cannot be written.
    """
    if unknown := [name for name in features if not KINDS[name].file]:
        raise FlowleyError(f"{folder}: av-benchmark has no file for {', '.join(unknown)}")
    files: dict[str, dict[str, Features]] = {}
    for name, by_clip in features.items():
        check_features(by_clip, KINDS[name], folder / KINDS[name].file)
        files.setdefault(KINDS[name].file, {})[name] = by_clip
    with name_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for file, kinds in files.items():
        first = next(iter(kinds.values()))
        if any(by_clip.keys() != first.keys() for by_clip in kinds.values()):
            raise FlowleyError(f"{folder / file}: its features {', '.join(kinds)} are of different clips")
        if KINDS[next(iter(kinds))].entry:
            content = {clip: {KINDS[name].entry: kinds[name][clip] for name in kinds} for clip in first}
            write_torch_file(folder / file, content)
        else:
            write_torch_file(folder / file, first)


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(_PARTS) if path.stem.split("-")[1].isdigit())


def _names(path: Path) -> list[tuple[str, str]]:
    """Return the kind and clip id of each array of one of our own files."""
    with name_errors(path):
        status = path.stat()
    return _stored_names(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _stored_names(path: Path, size: int, mtime_ns: int) -> list[tuple[str, str]]:
    """Return the same names. Every kind is looked for in all files, so each is read once until it changes."""
    del size, mtime_ns
    with _opened(path) as opened:
        names = [tuple(name.split("/", 1)) for name in opened.keys()]  # noqa: SIM118
    for name in names:
        if len(name) != 2 or name[0] not in KINDS:
            raise FlowleyError(
                f"{path}: array {'/'.join(name)!r} is not named after a kind of features and a clip"
            )
    return names


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise FlowleyError(f"{path}: is damaged or not a safetensors file ({error})") from error


def _slice(opened: Any, name: str, path: Path) -> StoredTensor:
    def read() -> np.ndarray:
        try:
            return opened.get_tensor(name)
        except (AttributeError, TypeError, ValueError) as error:
            raise FlowleyError(f"{path}: {name} has a type that is not supported ({error})") from error

    return StoredTensor(read=read)


def _tensors(checkpoint: object, kind: FeatureKind, path: Path) -> Iterable[tuple[str, StoredTensor]]:
    if not isinstance(checkpoint, Mapping):
        raise FlowleyError(f"{path}: holds {type(checkpoint).__name__} instead of features by clip id")
    for clip, value in checkpoint.items():
        tensor = value.get(kind.entry) if kind.entry and isinstance(value, Mapping) else value
        if not isinstance(clip, str) or not isinstance(tensor, StoredTensor):
            what = f"a dictionary with the tensor {kind.entry!r}" if kind.entry else "a tensor"
            raise FlowleyError(f"{path}: entry {clip!r} is not a clip id with {what}")
        yield clip, tensor
