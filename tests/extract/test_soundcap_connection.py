"""Servers that break the rules of HTTP, or of time, and what becomes of a request to them."""

import contextlib
import json
import socket
import threading
import time

import numpy as np
import pytest

from data_prep.soundcap.clip_view import ClipView
from data_prep.soundcap.server import ServerModel
from flowley_jax.errors import FlowleyError

CLIP = ClipView(np.zeros((2, 32, 32, 3), np.uint8), 4.0)
ANSWER = json.dumps({"choices": [{"message": {"content": "A thud."}}]}).encode()
_TIMEOUT = 0.2


@contextlib.contextmanager
def _server(*answers):
    """Run a server that sends each answer, a list of pieces of bytes, to one request; the last one again."""
    stop, remaining = threading.Event(), list(answers)

    def send(connection, pieces):
        with connection, contextlib.suppress(OSError):
            connection.recv(2**20)
            for piece in pieces:
                connection.sendall(piece)
                # Slower than a server that is worth waiting for.
                if len(pieces) > 1 and stop.wait(_TIMEOUT / 10):
                    return

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                pieces = remaining.pop(0) if len(remaining) > 1 else remaining[0]
                threading.Thread(target=send, args=(connection, pieces)).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _ask(url, *, pause=0.001):
    (answer,) = ServerModel(url, "m", batch_size=1, timeout=_TIMEOUT, pause=pause)([CLIP], "What is heard?")
    return answer


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 90],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", *[b" "] * 1000],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 1000],
        [b"HTTP/1.1 503 Busy\r\nContent-Length: 1000\r\n\r\n", *[b" "] * 1000],
        [b"HTTP/1.1 100 Continue\r\n\r\n"] * 1000,
    ],
    ids=["headers", "body", "chunks", "error", "continue"],
)
def test_server_that_drips_is_given_up_in_time(pieces):
    with _server(pieces) as url:
        start = time.monotonic()
        with pytest.raises(FlowleyError, match="no answer in 4 attempts"):
            _ask(url)
        # Four attempts, and as much again for a slow machine.
        assert time.monotonic() - start < 8 * _TIMEOUT + 2


@pytest.mark.parametrize(
    "content",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc",
        b"\x00\x1b[2J" * 20,
        b"",
    ],
)
def test_broken_answer_ends_in_one_plain_line(content):
    with _server([content]) as url, pytest.raises(FlowleyError, match="no answer in 4 attempts") as caught:
        _ask(url)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("wait", "seconds"), [(b"1", 1.0), (b"-1", 0.0), (b"Wed, 21 Oct 2065 07:28:00 GMT", 0.0)]
)
def test_busy_server_says_how_long_to_wait(wait, seconds):
    busy = b"HTTP/1.1 429 Busy\r\nContent-Length: 0\r\nRetry-After: " + wait + b"\r\n\r\n"
    good = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER
    with _server([busy], [good]) as url:
        start = time.monotonic()
        assert _ask(url) == "A thud."
        assert seconds <= time.monotonic() - start < seconds + 10
