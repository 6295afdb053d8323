"""Read, write and list files on a local disk, or wherever Beam's file systems reach (gs://, s3://, hdfs://).

Remote files go through Beam rather than etils.epath: a cluster's workers already have Beam's drivers and
credentials, while epath needs TensorFlow or one fsspec driver per scheme on each of them. Beam also lists a
folder with sizes and times in one request, where epath asks about every file.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flowley_jax.common.files import is_partial, partial_name, remove_partials
from flowley_jax.errors import FlowleyError

# Size in bytes, and time of the last change in ns.
FileStamp = tuple[int, int]
_CHUNK = 4 * 2**20
# Number and size in bytes of the blocks that tell files apart.
_BLOCKS, _BLOCK = 8, 2048
# On a network disk, most of the time for a block is waiting.
_SAMPLING_THREADS = 16


def is_remote(path: str) -> bool:
    """Return whether only Beam's file systems can reach a path."""
    return "://" in path


def join(folder: str, *parts: str) -> str:
    """Return a path below a folder."""
    return "/".join([folder.rstrip("/"), *parts]) if is_remote(folder) else os.path.join(folder, *parts)


def read_bytes(path: str) -> bytes:
    """Return the content of a file.

    Raises:
      FlowleyError: the file cannot be read.
    """
    try:
        if not is_remote(path):
            return Path(path).read_bytes()
        with _file_systems().open(path) as file:
            return file.read()
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be read ({_reason(error)})") from error


def remove_old_partials(folder: str) -> None:
    """Remove temporary files that killed processes left in a local folder, which the caller has locked."""
    if not is_remote(folder):
        remove_partials(Path(folder))


def write_bytes(path: str, content: bytes) -> None:
    """Write a file atomically, and create its folder.

    Raises:
      FlowleyError: the file cannot be written.
    """
    try:
        if is_remote(path):
            # An object store shows an object only once it is closed.
            with _file_systems().create(path, mime_type="application/octet-stream") as file:
                file.write(content)
            return
        _write_local(Path(path), content)
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be written ({_reason(error)})") from error


def _write_local(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two workers may write the same file at once, each with the same content.
    partial = path.with_name(partial_name())
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def remove(path: str) -> None:
    """Remove a file if it exists.

    Raises:
      FlowleyError: the file cannot be removed.
    """
    try:
        if not is_remote(path):
            Path(path).unlink(missing_ok=True)
        elif _file_systems().exists(path):
            _file_systems().delete([path])
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be removed ({_reason(error)})") from error


def list_names(folder: str) -> list[str]:
    """Return the sorted names of a folder's entries; a missing folder has none.

    Raises:
      FlowleyError: the folder cannot be listed.
    """
    if is_remote(folder):
        return sorted(name for name, _ in _remote_files(folder))
    try:
        return sorted(name for name in os.listdir(folder) if not is_partial(name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise FlowleyError(f"{folder}: cannot be listed ({_reason(error)})") from error


def file_stamps(paths: Iterable[str]) -> dict[str, FileStamp | None]:
    """Return the size and the time of the last change of every file; None for a missing file."""
    stamps: dict[str, FileStamp | None] = {}
    remote: dict[str, list[str]] = {}
    for path in paths:
        if is_remote(path):
            remote.setdefault(path.rsplit("/", 1)[0], []).append(path)
        else:
            stamps[path] = _local_stamp(path)
    for folder, members in remote.items():
        # One request per folder: one per file would take hours.
        listed = dict(_remote_files(folder))
        stamps.update({path: listed.get(path.rsplit("/", 1)[-1]) for path in members})
    return stamps


def content_samples(paths: Iterable[str]) -> dict[str, str]:
    """Return a digest of some bytes of every file, from its start to its end.

    It tells files apart that have the same name, size and time. It is empty for a file that cannot be read,
    and for a remote one: reading 200,000 of them would take hours.
    """
    distinct = list(dict.fromkeys(paths))
    with concurrent.futures.ThreadPoolExecutor(_SAMPLING_THREADS) as threads:
        return dict(zip(distinct, threads.map(_content_sample, distinct), strict=True))


def path_below(path: str, folder: str | os.PathLike) -> str:
    """Return the part of a file's path that stays when it moves together with a folder.

    For a file that is not below the folder, it is its name and that of the folder that holds it; for a remote
    file, the whole address.
    """
    if is_remote(path):
        return path
    absolute, root = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    parts = absolute.relative_to(root).parts if absolute.is_relative_to(root) else absolute.parts[-2:]
    return "/".join(parts)


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """Yield a local path of a file; a remote file is copied, and the copy is removed after the block.

    Raises:
      FlowleyError: the file cannot be copied.
    """
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.rsplit("/", 1)[-1]
        try:
            with _file_systems().open(path) as source, open(copy, "wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
        except OSError as error:
            raise FlowleyError(f"{path}: cannot be copied to {folder} ({_reason(error)})") from error
        yield copy


def _local_stamp(path: str) -> FileStamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _content_sample(path: str) -> str:
    if is_remote(path):
        return ""
    try:
        # Opening a pipe would wait for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, "rb", buffering=0) as file:
            last = max(os.fstat(file.fileno()).st_size - _BLOCK, 0)
            starts = sorted({last * block // (_BLOCKS - 1) for block in range(_BLOCKS)})
            blocks = [os.pread(file.fileno(), _BLOCK, start) for start in starts]
    except OSError:
        return ""
    return hashlib.blake2b(b"".join(blocks), digest_size=12).hexdigest()


def _remote_files(folder: str) -> Iterator[tuple[str, FileStamp]]:
    for result in _file_systems().match([join(folder, "*")]):
        for entry in result.metadata_list:
            changed = int(1e9 * (entry.last_updated_in_seconds or 0))
            yield entry.path.rsplit("/", 1)[-1], (entry.size_in_bytes, changed)


def _file_systems() -> Any:
    # This import takes two seconds, which processes with only local files need not spend.
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _reason(error: OSError) -> str:
    return error.strerror or " ".join(str(error).split())
