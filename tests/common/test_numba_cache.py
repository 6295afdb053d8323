"""The lock of numba's cache: entries that two writers add at the same time stay apart."""

import threading
import time

import pytest
from numba.core import caching

from flowley_jax.common.numba_cache import lock_numba_cache


@pytest.mark.parametrize("locked", [False, True])
def test_entries_of_two_writers_stay_apart(tmp_path, monkeypatch, locked):
    lock_numba_cache()
    cache_file = caching.IndexDataCacheFile
    if not locked:
        # As numba has it: this shows the fault that the lock is for.
        monkeypatch.setattr(cache_file, "save", cache_file.save.__wrapped__)
    load = cache_file._load_index

    def slowly(self):
        overloads = load(self)
        time.sleep(0.2)
        return overloads

    monkeypatch.setattr(cache_file, "_load_index", slowly)
    writers = [
        threading.Thread(
            target=lambda key: cache_file(str(tmp_path), "function", 1.0).save(key, f"code for {key}"),
            args=(key,),
        )
        for key in ("float32", "float64")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
    found = [cache_file(str(tmp_path), "function", 1.0).load(key) for key in ("float32", "float64")]
    assert (found == ["code for float32", "code for float64"]) == locked
