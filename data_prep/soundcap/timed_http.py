"""HTTP requests whose timeout holds for the whole answer, however slowly its bytes arrive."""

import http.client
import io
import socket
import time
import urllib.request
from typing import Any


def timed_handlers() -> tuple[urllib.request.BaseHandler, ...]:
    """Return the handlers for `urllib.request.build_opener`.

    By itself, `urllib` applies the timeout to each piece that it receives: a server that sends one byte now
    and then is never given up. With these handlers, reading ends in a TimeoutError.
    """
    return _TimedHttp(), _TimedHttps()


class _TimedReader(io.RawIOBase):
    """Reader of a socket; the timeout holds for all reads together, not for each one."""

    def __init__(self, received: socket.socket):
        self._socket, self._raw = received, received.makefile("rb", buffering=0)
        self._deadline = time.monotonic() + (received.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer is not complete in time")
        self._socket.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any):
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReader(sock))


class _Timed(urllib.request.AbstractHTTPHandler):
    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        timed = type(http_class.__name__, (http_class,), {"response_class": _TimedResponse})
        return super().do_open(timed, req, **options)


class _TimedHttp(_Timed, urllib.request.HTTPHandler):
    """Handler of http addresses."""


class _TimedHttps(_Timed, urllib.request.HTTPSHandler):
    """Handler of https addresses."""
