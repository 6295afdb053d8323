"""Guard numba's cache of compiled functions, which librosa uses, against processes that start together."""

import functools
from typing import Any


@functools.cache
def lock_numba_cache() -> None:
    """Let one process at a time add to the cache; call this before librosa compiles anything.

    Numba gives an entry the next free number of its function without a lock. On a new machine, two processes
    can give two entries the same number. From then on, the cache returns code for the wrong types, and every
    process that loads it crashes.
    """
    from filelock import FileLock
    from numba.core import caching

    cache_file: Any = caching.IndexDataCacheFile
    save = cache_file.save

    @functools.wraps(save)
    def save_alone(self: Any, key: Any, data: Any) -> None:
        with FileLock(f"{self._index_path}.lock"):
            save(self, key, data)

    cache_file.save = save_alone
