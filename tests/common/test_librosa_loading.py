"""Loading librosa: one process at a time compiles its functions."""

import os
import subprocess
import sys
import time

from children import started
from filelock import FileLock

_LOAD = """
import numpy as np
from flowley_jax.common.librosa_loading import load_librosa
print("loading", flush=True)
peaks = load_librosa().util.peak_pick(
    np.array([0, 1, 0, 0, 2, 0], np.float32),
    pre_max=1, post_max=2, pre_avg=1, post_avg=2, delta=0.1, wait=1,
)
print(peaks.tolist(), flush=True)
"""


def test_processes_compile_one_after_the_other(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    lock = FileLock(tmp_path / f".flowley_jax_{os.getuid()}.lock")
    command = [sys.executable, "-c", _LOAD]
    with lock, started(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "loading\n"
        time.sleep(1.0)
        # Nothing is compiled while another process may compile.
        assert process.poll() is None and not list(tmp_path.rglob("*.nbc"))
        lock.release()
        assert process.stdout.readline() == "[1, 4]\n"
    assert list(tmp_path.rglob("guf-utils.__peak_pick*.nbc"))
    # The next process loads what this one stored.
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == "[1, 4]"
