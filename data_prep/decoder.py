"""Processes that read media: what hangs in one is stopped, what kills one is known, and all cores work.

Run as a program, this is one of them: its input is pickled, a function and then arguments for it, and so are
the results that it gives.
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
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_prep.rejection import Reason, Rejection
from flowley_jax.errors import FlowleyError

_SIZE = struct.Struct("<Q")
_START_SECONDS = 300.0
_WATCH_SECONDS = 2.0
# One thread of linear algebra for each process: more of them only contend.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Decoder:
    """One such process, started when it is first needed and again whenever it has died."""

    def __init__(self, work: Callable, time_limit: float):
        """
        Args:
          work: a function that can be pickled.
          time_limit: seconds that one call of it may take.
        """
        self._work, self._time_limit = work, time_limit
        self._process: subprocess.Popen | None = None
        self._starting, self._stopped = threading.Lock(), False

    def __call__(self, *arguments: Any) -> Any:
        """What `work` gives, or the rejection that it took too long or killed the process.

        Raises:
          CancelledError: `stop` was called meanwhile.
        """
        process = self._process or self._start()
        try:
            _send(process.stdin, arguments)
            return _receive(process.stdout, self._time_limit)
        except TimeoutError:
            self.close()
            return Rejection(Reason.TIMEOUT, f"not read within {self._time_limit:g} s")
        except (EOFError, BrokenPipeError):
            code = process.wait()
            self.close()
            if self._stopped:
                raise concurrent.futures.CancelledError from None
            return Rejection(Reason.CRASH, f"the process that read it ended with {code}")

    def stop(self) -> None:
        """Ends the process for good, whatever it does; another thread may be waiting for it."""
        with self._starting:
            self._stopped = True
            # The thread that waits for it may close it at this moment.
            process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen:
        with self._starting:
            if self._stopped:
                raise concurrent.futures.CancelledError
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "data_prep.decoder"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ONE_THREAD, "JAX_PLATFORMS": "cpu"},
                # Ctrl-C is for the program; this process ends with its input.
                start_new_session=True,
            )
        try:
            _send(process.stdin, self._work)
            _receive(process.stdout, _START_SECONDS)
            return process
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            self.close()
            if self._stopped:
                raise concurrent.futures.CancelledError from None
            raise FlowleyError("a process that decodes media does not start; see the lines above") from error


class DecoderPool:
    """Several of them, for any number of threads; they end with `close`, or with this process."""

    def __init__(self, work: Callable, *, count: int, time_limit: float):
        self._decoders = [Decoder(work, time_limit) for _ in range(count)]
        self._free: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for decoder in self._decoders:
            self._free.put(decoder)
        self._threads = concurrent.futures.ThreadPoolExecutor(count)

    def map(self, tasks: Iterable[tuple]) -> Iterator[Any]:
        """Results in order, of one call for each tuple of arguments."""
        return self._threads.map(self._decode, tasks)

    def close(self) -> None:
        """Ends the processes; who still waits for one gets a CancelledError."""
        for decoder in self._decoders:
            decoder.stop()
        self._threads.shutdown(cancel_futures=True)
        for decoder in self._decoders:
            decoder.close()

    def _decode(self, arguments: tuple) -> Any:
        decoder = self._free.get()
        try:
            return decoder(*arguments)
        finally:
            self._free.put(decoder)


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
    """Does what it is told to until its input ends."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # What libraries print must not come between the results.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        work = _receive(sys.stdin, None)
        _send(results, "ready")
        while True:
            _send(results, work(*_receive(sys.stdin, None)))


def _end_with(parent: int) -> None:
    """Ends this process with the one that started it: in a file that hangs, it does not see its input end."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    _serve()
