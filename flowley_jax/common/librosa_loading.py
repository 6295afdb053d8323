"""Load librosa so that processes that start together on a new machine do not spoil its compiled functions."""

import functools
import importlib
import os
import tempfile
import threading
from pathlib import Path
from types import ModuleType

# Modules whose functions numba compiles when they are imported first, and keeps in files.
_COMPILED = ("librosa.util.utils", "librosa.core.audio", "librosa.core.pitch", "librosa.filters")


@functools.cache
def load_librosa() -> ModuleType:
    """Return librosa, after its functions were compiled, by one process at a time.

    Numba stores a compiled function and the wrapper that calls it in two files. They refer to each other by a
    number of the compiling process. If two processes compile at the same time, the files come from both, and
    every process that loads them later ends with a segmentation fault.
    """
    import librosa
    from filelock import FileLock

    assert librosa.__file__ is not None
    folder = os.environ.get("NUMBA_CACHE_DIR") or str(Path(librosa.__file__).parent)
    if not os.access(folder, os.W_OK):
        # Numba then keeps its files in a folder of the user.
        folder = tempfile.gettempdir()
    with FileLock(Path(folder) / f".flowley_jax_{os.getuid()}.lock"):
        for name in _COMPILED:
            importlib.import_module(name)
    return librosa


def load_librosa_in_background() -> None:
    """Start loading librosa in a thread: it takes over a second, in which the caller can compile."""
    threading.Thread(target=load_librosa, name="librosa").start()
