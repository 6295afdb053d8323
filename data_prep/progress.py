"""Progress of a pipeline, whatever engine it runs on: its results are files."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

from data_prep.store import FeatureStore, Kind

_LEAST_PAUSE = 2.0
# Looking takes at most this share of the time.
_SHARE = 0.05


@contextlib.contextmanager
def shown(store: FeatureStore, kind: Kind, keys: set[str], label: str) -> Iterator[None]:
    """Shows how many of some keys are there, for as long as the block lasts."""
    if not keys:
        yield
        return
    finished = threading.Event()
    with progress_bar(label, total=len(keys)) as bar:
        thread = threading.Thread(target=_watch, args=(store, kind, keys, bar, finished), daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()
            _look(store, kind, keys, bar)


def progress_bar(label: str, *, total: int) -> tqdm:
    """A bar that writes a line now and then where nobody watches: a log keeps every one."""
    pause = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=label, unit="", mininterval=pause)


def _watch(store: FeatureStore, kind: Kind, keys: set[str], bar: tqdm, finished: threading.Event) -> None:
    pause = _LEAST_PAUSE
    while not finished.wait(pause):
        started = time.monotonic()
        _look(store, kind, keys, bar)
        pause = max(_LEAST_PAUSE, (time.monotonic() - started) / _SHARE)


def _look(store: FeatureStore, kind: Kind, keys: set[str], bar: tqdm) -> None:
    made, refused = store.keys(kind)
    bar.update(len(keys & (made | refused)) - bar.n)
