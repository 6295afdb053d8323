"""Repositories on the Hugging Face hub: download some of their files, or take an earlier download."""

import errno
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def download(
    repository: str,
    choose: Callable[[Sequence[str]], list[str]],
    *,
    needed: Sequence[str],
    missing: str,
    advice: str,
) -> Path:
    """Return a folder with files of a repository; earlier downloads are taken from the hub's cache.

    Args:
      repository: its name, ORG/NAME.
      choose: returns the files to fetch, or patterns of them, given all names in the repository.
      needed: files of which an earlier download must have one, to be used without the hub.
      missing: the problem, for the message, if there is no such repository.
      advice: end of the message if the hub cannot be reached; {reason} in it becomes the name of the error.

    Raises:
      FlowleyError: the repository does not exist, is closed, or cannot be reached and was not downloaded
        before; or the disk refuses the files.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.utils import logging as hub_logging

    # The client warns about every attempt; the one error below says the same.
    hub_logging.set_verbosity_error()
    log.info("asking the Hugging Face hub for %s", repository)
    try:
        wanted = choose(HfApi().list_repo_files(repository))
        log.info("downloading %s from %s", ", ".join(wanted), repository)
        return Path(snapshot_download(repository, allow_patterns=wanted))
    except GatedRepoError as error:
        raise FlowleyError(
            f"{repository}: is open only to those who accept its conditions; do so at "
            f"https://huggingface.co/{repository}, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise FlowleyError(f"{repository}: {missing}") from error
    except FlowleyError as error:
        raise FlowleyError(f"{repository}: {error}") from error
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            return _earlier_download(repository, error, needed, advice)
        raise FlowleyError(f"{repository}: cannot be downloaded ({error.strerror})") from error
    # The exception of a failed connection depends on the version of the client and of its HTTP library.
    except Exception as error:
        return _earlier_download(repository, error, needed, advice)


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder to a repository, which is created if there is none; return its address.

    Raises:
      FlowleyError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api: Any = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository)
    # The exception depends on the version of the client, as in `download`.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise FlowleyError(
            f"{repository}: was not uploaded ({reason[0]}). {folder} is complete: log in with "
            f"`hf auth login`, then run `hf upload {repository} {folder}`"
        ) from error
    return str(address)


def _earlier_download(repository: str, error: Exception, needed: Sequence[str], advice: str) -> Path:
    cached = _cached(repository, needed)
    if cached is not None:
        log.info("the hub cannot be reached; using the earlier download of %s", repository)
        return cached
    raise FlowleyError(f"{repository}: {advice.format(reason=type(error).__name__)}") from error


def _cached(repository: str, needed: Sequence[str]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    # `snapshot_download` refuses an incomplete snapshot, and ours has only the chosen files.
    for name in needed:
        path = try_to_load_from_cache(repository, name)
        if isinstance(path, str):
            return Path(path).parent
    return None
