"""Files of a preparation, on a disk that all workers mount or wherever Beam's file systems reach (gs://, s3://,
hdfs://, with the extras of apache-beam that these need)."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import naming

Stamp = tuple[int, int]
_PARTIAL = ".partial-"
_LOCK = ".lock"


def is_remote(path: str) -> bool:
    """Whether only Beam's file systems reach it."""
    return "://" in path


def join(folder: str, *parts: str) -> str:
    """A path below a folder."""
    return "/".join([folder.rstrip("/"), *parts]) if is_remote(folder) else os.path.join(folder, *parts)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other processes from writing there, as long as this one lives.

    Raises:
      FlowleyError: another one does.
    """
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _LOCK).touch()
    with open(folder / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FlowleyError(f"{folder}: another process is writing there") from error
        except OSError:
            # A file system without locks.
            pass
        yield


def read_bytes(path: str) -> bytes:
    """The content of a file.

    Raises:
      FlowleyError: naming the file, if it cannot be read.
    """
    try:
        if not is_remote(path):
            return Path(path).read_bytes()
        with _file_systems().open(path) as file:
            return file.read()
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be read ({_reason(error)})") from error


def write_bytes(path: str, content: bytes) -> None:
    """A file that appears whole or not at all; its folder is made.

    Raises:
      FlowleyError: naming the file, if it cannot be written.
    """
    try:
        if is_remote(path):
            # Object stores show an object once it is closed.
            with _file_systems().create(path, mime_type="application/octet-stream") as file:
                file.write(content)
            return
        _write_local(Path(path), content)
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be written ({_reason(error)})") from error


def _write_local(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two workers may be at the same file, each with the same content.
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=_PARTIAL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def remove(path: str) -> None:
    """Removes a file, where there is one.

    Raises:
      FlowleyError: naming the file, if it stays.
    """
    try:
        if not is_remote(path):
            Path(path).unlink(missing_ok=True)
        elif _file_systems().exists(path):
            _file_systems().delete([path])
    except OSError as error:
        raise FlowleyError(f"{path}: cannot be removed ({_reason(error)})") from error


def names_in(folder: str) -> list[str]:
    """Names of what is in a folder, sorted; none where there is no folder."""
    if is_remote(folder):
        return sorted(name for name, _ in _remote_files(folder))
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith(_PARTIAL))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise FlowleyError(f"{folder}: cannot be listed ({_reason(error)})") from error


def stamps_of(paths: Iterable[str]) -> dict[str, Stamp | None]:
    """Size in bytes and time of change in ns of every file; None where there is none."""
    stamps: dict[str, Stamp | None] = {}
    remote: dict[str, list[str]] = {}
    for path in paths:
        if is_remote(path):
            remote.setdefault(path.rsplit("/", 1)[0], []).append(path)
        else:
            stamps[path] = _local_stamp(path)
    for folder, members in remote.items():
        # An answer for each file would take hours.
        found = dict(_remote_files(folder))
        stamps.update({path: found.get(path.rsplit("/", 1)[-1]) for path in members})
    return stamps


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """The file, or for as long as the block lasts a copy of it, on a disk of this machine."""
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.rsplit("/", 1)[-1]
        copy.write_bytes(read_bytes(path))
        yield copy


def _local_stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _remote_files(folder: str) -> Iterator[tuple[str, Stamp]]:
    for result in _file_systems().match([join(folder, "*")]):
        for found in result.metadata_list:
            changed = int(1e9 * (found.last_updated_in_seconds or 0))
            yield found.path.rsplit("/", 1)[-1], (found.size_in_bytes, changed)


def _file_systems():
    # Takes two seconds, which processes that read local files alone need not spend.
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _reason(error: OSError) -> str:
    return error.strerror or " ".join(str(error).split())
