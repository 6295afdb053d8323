"""Processes that decode media: what hangs in one is stopped, what kills one is known, and all cores work.

Run as a program, this is one of them: its input is pickled tasks, its output their pickled results.
"""

import concurrent.futures
import contextlib
import os
import pickle
import queue
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from data_prep.rejection import Reason, Rejection
from data_prep.settings import Lack, RecordSettings
from flowley_jax.errors import FlowleyError

_SIZE = struct.Struct("<Q")
_START_SECONDS = 300.0
# One thread of linear algebra for each process: more of them only contend.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Decoder:
    """One such process, started when it is first needed and again whenever it has died."""

    def __init__(self, settings: RecordSettings, time_limit: float):
        self._settings, self._time_limit = settings, time_limit
        self._process: subprocess.Popen | None = None

    def __call__(self, path: str, *, may_lack: Lack):
        """What `decode` makes of a file, or that it took too long or killed the process."""
        if self._process is None:
            self._process = self._start()
        try:
            _send(self._process.stdin, (path, may_lack))
            return _receive(self._process.stdout, self._time_limit)
        except TimeoutError:
            self.close()
            return Rejection(Reason.TIMEOUT, f"not read within {self._time_limit:g} s")
        except (EOFError, BrokenPipeError):
            code = self._process.wait()
            self.close()
            return Rejection(Reason.CRASH, f"the process that read it ended with {code}")

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "data_prep.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD, "JAX_PLATFORMS": "cpu"},
            # Ctrl-C is for the program; this process ends with its input.
            start_new_session=True,
        )
        try:
            _send(process.stdin, self._settings)
            _receive(process.stdout, _START_SECONDS)
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            process.kill()
            process.communicate()
            raise FlowleyError("a process that decodes media does not start; see the lines above") from error
        return process


class DecoderPool:
    """Several of them."""

    def __init__(self, settings: RecordSettings, count: int, time_limit: float):
        self._free: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(Decoder(settings, time_limit))
        self._threads = concurrent.futures.ThreadPoolExecutor(count)

    def decode(self, files: Sequence[tuple[str, Lack]]) -> list:
        """Results in order of files, each a path and a stream that it may lack."""
        return list(self._threads.map(self._decode, files))

    def close(self) -> None:
        """Ends the processes."""
        self._threads.shutdown(cancel_futures=True)
        while not self._free.empty():
            self._free.get().close()

    def _decode(self, file: tuple[str, Lack]):
        path, may_lack = file
        decoder = self._free.get()
        try:
            return decoder(path, may_lack=may_lack)
        finally:
            self._free.put(decoder)


def decoder_pool(settings: RecordSettings, count: int, time_limit: float) -> DecoderPool:
    """That of all threads of this process, until `close_decoders`; the decoders end when it does, since their
    input ends."""
    wanted = settings, count, time_limit
    with _LOCK:
        if wanted not in _POOLS:
            _POOLS[wanted] = DecoderPool(*wanted)
        return _POOLS[wanted]


def close_decoders() -> None:
    """Ends those of this process."""
    with _LOCK:
        while _POOLS:
            _POOLS.popitem()[1].close()


_LOCK = threading.Lock()
_POOLS: dict[tuple[RecordSettings, int, float], DecoderPool] = {}


def _send(stream, value) -> None:
    content = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_SIZE.pack(len(content)))
    stream.write(content)
    stream.flush()


def _receive(stream, seconds: float | None):
    """The next value.

    Raises:
      TimeoutError: it is not there in time.
      EOFError: the other side has ended.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    (size,) = _SIZE.unpack(_read(stream.fileno(), _SIZE.size, deadline))
    return pickle.loads(_read(stream.fileno(), size, deadline))


def _read(descriptor: int, size: int, deadline: float | None) -> bytearray:
    content, waiting = bytearray(size), select.poll()
    view, filled = memoryview(content), 0
    waiting.register(descriptor, select.POLLIN)
    while filled < size:
        left = None if deadline is None else 1000 * max(deadline - time.monotonic(), 0.0)
        if not waiting.poll(left):
            raise TimeoutError
        got = os.readv(descriptor, [view[filled:]])
        if not got:
            raise EOFError
        filled += got
    return content


def _serve() -> None:
    """Decodes whatever it is told to until its input ends."""
    from data_prep.decode import decode

    # What libraries print must not come between the results.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        settings = _receive(sys.stdin, None)
        _send(results, "ready")
        while True:
            path, may_lack = _receive(sys.stdin, None)
            _send(results, decode(path, settings, may_lack=may_lack))


if __name__ == "__main__":
    _serve()
