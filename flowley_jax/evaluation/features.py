"""Features of the evaluation's networks by clip id, in files: av-benchmark's caches, and our own.

A folder holds one side: generated or reference clips. av-benchmark writes one `.pth` file per network, a
dictionary of tensors by clip id. Our own files, `<name>.safetensors`, hold the same arrays by clip id.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from flowley_jax.common.files import name_errors
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.torch_files import StoredTensor, open_torch_file
from flowley_jax.interop.torch_writer import write_torch_file
from flowley_jax.interop.weight_files import read_arrays, write_arrays

Features = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureKind:
    """One kind of features.

    Attributes:
      name: name of our own file, without its extension.
      file: name of av-benchmark's file.
      entry: entry of a clip's value in that file, if it holds several.
      ndim: dimensions of a clip's features.
      has_windows: whether the first dimension is that of windows, whose number varies.
    """

    name: str
    file: str
    entry: str = ""
    ndim: int = 1
    has_windows: bool = False


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
    )
}


def present_kinds(folder: Path) -> list[str]:
    """Return the names of the features that a folder holds.

    Raises:
      FlowleyError: there is no such folder, or it holds one kind in both formats.
    """
    if not folder.is_dir():
        raise FlowleyError(f"{folder}: no such folder; files of features are expected there")
    return [name for name in KINDS if _path(folder, name) is not None]


def read_features(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Return the features of one kind by clip id, in the order of the file.

    Args:
      folder: the folder.
      name: a key of `KINDS`.

    Raises:
      FlowleyError: the file is missing, damaged, or not a cache of this kind; its name is in the message.
    """
    path = _path(folder, name)
    if path is None:
        raise FlowleyError(f"{folder}: has neither {name}.safetensors nor {KINDS[name].file}")
    if path.suffix == ".safetensors":
        features = read_arrays(path)[0]
    else:
        with open_torch_file(path) as checkpoint:
            features = {clip: tensor.read() for clip, tensor in _tensors(checkpoint, KINDS[name], path)}
    _check(features, KINDS[name], path)
    return features


def write_features(folder: Path, name: str, features: Features) -> Path:
    """Write the features of one kind as `<name>.safetensors`, and return its path.

    Raises:
      FlowleyError: the features are not of this kind, or the file cannot be written.
    """
    path = folder / f"{name}.safetensors"
    _check(features, KINDS[name], path)
    with name_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_arrays(path, features, {})
    return path


def write_av_benchmark_features(folder: Path, features: Mapping[str, Features]) -> None:
    """Write features as av-benchmark's files, which it reads with `torch.load`.

    Args:
      folder: folder for the files.
      features: features by kind and clip id. The kinds that share a file must have the same clips.

    Raises:
      FlowleyError: features are not of their kind, or kinds of one file have other clips.
    """
    files: dict[str, dict[str, Features]] = {}
    for name, by_clip in features.items():
        _check(by_clip, KINDS[name], folder / KINDS[name].file)
        files.setdefault(KINDS[name].file, {})[name] = by_clip
    for file, kinds in files.items():
        first = next(iter(kinds.values()))
        if any(by_clip.keys() != first.keys() for by_clip in kinds.values()):
            raise FlowleyError(f"{folder / file}: its features {', '.join(kinds)} are of different clips")
        if KINDS[next(iter(kinds))].entry:
            content = {clip: {KINDS[name].entry: kinds[name][clip] for name in kinds} for clip in first}
            write_torch_file(folder / file, content)
        else:
            write_torch_file(folder / file, first)


def _path(folder: Path, name: str) -> Path | None:
    """Return the file of a kind, or None if there is none."""
    paths = [folder / f"{name}.safetensors", folder / KINDS[name].file]
    present = [path for path in paths if path.is_file()]
    if len(present) > 1:
        raise FlowleyError(f"{folder}: holds {paths[0].name} and {paths[1].name}; remove one of the two")
    return present[0] if present else None


def _tensors(checkpoint: object, kind: FeatureKind, path: Path) -> Iterable[tuple[str, StoredTensor]]:
    if not isinstance(checkpoint, Mapping):
        raise FlowleyError(f"{path}: holds {type(checkpoint).__name__} instead of features by clip id")
    for clip, value in checkpoint.items():
        tensor = value.get(kind.entry) if kind.entry and isinstance(value, Mapping) else value
        if not isinstance(clip, str) or not isinstance(tensor, StoredTensor):
            what = f"a dictionary with the tensor {kind.entry!r}" if kind.entry else "a tensor"
            raise FlowleyError(f"{path}: entry {clip!r} is not a clip id with {what}")
        yield clip, tensor


def _check(features: Features, kind: FeatureKind, path: Path) -> None:
    if not features:
        raise FlowleyError(f"{path}: holds no clip")
    first, fixed = next(iter(features)), slice(int(kind.has_windows), None)
    for clip, array in features.items():
        if array.ndim != kind.ndim or not np.issubdtype(array.dtype, np.floating):
            raise FlowleyError(
                f"{path}: {clip} has features {array.shape} of {array.dtype}; {kind.ndim} dimensions of "
                "floating-point numbers are expected"
            )
        if array.shape[fixed] != features[first].shape[fixed]:
            raise FlowleyError(
                f"{path}: {clip} has features {array.shape}, but {first} has {features[first].shape}"
            )
