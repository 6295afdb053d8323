"""Progress bars. A pipeline's progress is the number of its result files, whatever engine runs it."""

import contextlib
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

from data_prep.feature_store import FeatureKind, FeatureStore
from flowley_jax.common.progress import progress_bar

_MIN_PAUSE_SECONDS = 2.0
# Counting files takes at most this share of the time.
_MAX_SHARE = 0.05


@contextlib.contextmanager
def show_progress(store: FeatureStore, kind: FeatureKind, keys: set[str], label: str) -> Iterator[None]:
    """Show how many of the keys are in the store while the block runs."""
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
            _update(store, kind, keys, bar)


def _watch(
    store: FeatureStore, kind: FeatureKind, keys: set[str], bar: tqdm, finished: threading.Event
) -> None:
    pause = _MIN_PAUSE_SECONDS
    while not finished.wait(pause):
        started = time.monotonic()
        _update(store, kind, keys, bar)
        pause = max(_MIN_PAUSE_SECONDS, (time.monotonic() - started) / _MAX_SHARE)


def _update(store: FeatureStore, kind: FeatureKind, keys: set[str], bar: tqdm) -> None:
    stored, rejected = store.keys(kind)
    bar.update(len(keys & (stored | rejected)) - bar.n)
