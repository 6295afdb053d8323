"""A pool of processes that read media: a file that hangs or crashes one of them costs only that file.

It is written by hand because pebble.ProcessPool starts its workers through multiprocessing: each would import
the parent's main module, and with it JAX, and could have no environment other than the parent's. A pebble
worker that hangs in a file would also outlive a parent that was killed.

Run as a program, this module is one worker. Its input is pickled: first a function and what prepares it, then
tuples of arguments. Its output is the pickled results.
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
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_prep.rejection import Reason, Rejection
from flowley_jax.errors import FlowleyError

_SIZE = struct.Struct("<Q")
_START_SECONDS = 300.0
_PARENT_POLL_SECONDS = 2.0
# One thread of linear algebra and of OpenCV per process: more only contend for the cores.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)


class Worker:
    """One process, started when it is first needed, and again whenever it has died."""

    def __init__(
        self,
        function: Callable[..., Any],
        time_limit: float,
        *,
        prepare: Callable[[], object] | None = None,
    ):
        """Create the worker; no process is started yet.

        Args:
          function: picklable function to call in the process.
          time_limit: maximum duration of one call, in seconds.
          prepare: picklable function to call once in a new process. It loads what the calls need, so that
            their time limit does not include that.
        """
        self._function, self._prepare, self._time_limit = function, prepare, time_limit
        self._process: subprocess.Popen | None = None
        # Temporary files of a process that is killed for its time limit would stay.
        self._folder: tempfile.TemporaryDirectory | None = None
        self._starting, self._stopped = threading.Lock(), False

    def __call__(self, *arguments: Any) -> Any:
        """Return the function's result, or a Rejection if the call timed out or killed the process.

        Raises:
          CancelledError: `stop` was called in the meantime.
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
            return Rejection(Reason.CRASH, f"the process that read it exited with {code}")

    def stop(self) -> None:
        """Kill the process for good, whatever it does. Another thread may be waiting for its result."""
        with self._starting:
            self._stopped = True
            # The waiting thread may set this to None at any moment.
            process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Kill the process; the next call starts a new one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> subprocess.Popen:
        with self._starting:
            if self._stopped:
                raise concurrent.futures.CancelledError
            self._folder = tempfile.TemporaryDirectory(prefix="reading-", ignore_cleanup_errors=True)
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "data_prep.worker_pool"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ONE_THREAD, "JAX_PLATFORMS": "cpu", "TMPDIR": self._folder.name},
                # Ctrl-C is for the parent; this process ends when its input does.
                start_new_session=True,
            )
        try:
            _send(process.stdin, (self._function, self._prepare))
            _receive(process.stdout, _START_SECONDS)
            return process
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            self.close()
            if self._stopped:
                raise concurrent.futures.CancelledError from None
            raise FlowleyError("a worker process failed to start; see the lines above") from error


class WorkerPool:
    """Several workers for any number of threads. They end with `close`, or with this process."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        count: int,
        time_limit: float,
        prepare: Callable[[], object] | None = None,
    ):
        """Create the workers; their processes start when they are needed.

        Args:
          function: picklable function to call in the processes.
          count: number of processes.
          time_limit: maximum duration of one call, in seconds.
          prepare: as for `Worker`.
        """
        self._workers = [Worker(function, time_limit, prepare=prepare) for _ in range(count)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._threads = concurrent.futures.ThreadPoolExecutor(count)

    def map(self, arguments: Iterable[tuple]) -> Iterator[Any]:
        """Yield the results of one call per tuple of arguments, in order."""
        return self._threads.map(self._call, arguments)

    def close(self) -> None:
        """Kill the processes. Threads that still wait for a result get a CancelledError."""
        for worker in self._workers:
            worker.stop()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _call(self, arguments: tuple) -> Any:
        worker = self._free.get()
        try:
            return worker(*arguments)
        finally:
            self._free.put(worker)


@contextlib.contextmanager
def mapping_pool(
    function: Callable[..., Any], *, count: int, time_limit: float
) -> Iterator[Callable[[Iterable[tuple]], Iterator[Any]]]:
    """Yield `WorkerPool.map` of workers that end with the block; see `WorkerPool` for the arguments."""
    with contextlib.closing(WorkerPool(function, count=count, time_limit=time_limit)) as pool:
        yield pool.map


def _send(stream: Any, value: Any) -> None:
    content = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_SIZE.pack(len(content)))
    stream.write(content)
    stream.flush()


def _receive(stream: Any, seconds: float | None) -> Any:
    """Return the next value.

    Raises:
      TimeoutError: it did not arrive in time.
      EOFError: the other side has ended.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    (size,) = _SIZE.unpack(_read(stream.fileno(), _SIZE.size, deadline))
    return pickle.loads(_read(stream.fileno(), size, deadline))


def _read(descriptor: int, size: int, deadline: float | None) -> bytearray:
    content, poll = bytearray(size), select.poll()
    view, filled = memoryview(content), 0
    poll.register(descriptor, select.POLLIN)
    while filled < size:
        left = None if deadline is None else 1000 * max(deadline - time.monotonic(), 0.0)
        if not poll.poll(left):
            raise TimeoutError
        count = os.readv(descriptor, [view[filled:]])
        if not count:
            raise EOFError
        filled += count
    return content


def _serve() -> None:
    """Call the function with each tuple of arguments until the input ends."""
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    # Text that libraries print must not come between the results.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        function, prepare = _receive(sys.stdin, None)
        if prepare is not None:
            prepare()
        _send(results, "ready")
        while True:
            _send(results, function(*_receive(sys.stdin, None)))


def _exit_with_parent(parent: int) -> None:
    """Exit when the parent does: a process that hangs in a file does not see its input end."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    _serve()
