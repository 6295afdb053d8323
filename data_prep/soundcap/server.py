"""Captions from a server with an OpenAI-compatible API, such as vLLM on many GPUs."""

import concurrent.futures
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.rejection import Rejection, one_line, plain_line
from data_prep.soundcap.clip_view import ClipView
from data_prep.soundcap.models import REFUSED
from data_prep.soundcap.server_address import ServerAddress, without_user
from data_prep.soundcap.timed_http import timed_handlers
from flowley_jax.errors import FlowleyError

_ATTEMPTS = 4
# HTTP status codes, besides those from 500 up, after which a request is repeated.
_RETRIED_CODES = (408, 409, 425, 429)
# Not the fault of a clip, but of the address, the key, the account or the model.
_FATAL_CODES = (401, 402, 403, 404, 405, 407)
# A chunk of negative size ends in a ValueError.
_CONNECTION_ERRORS = (OSError, http.client.HTTPException, ValueError)
_LONGEST_ANSWER = 2**20
_LONGEST_WAIT = 300.0
_CHUNK = 2**16


class _UnexpectedAnswerError(Exception):
    """The server answered, but not as the API says; the clip may be the reason."""

    wait = 0.0


class _NoAnswerError(Exception):
    """The server cannot be reached, is busy or out of order.

    Attributes:
      wait: seconds that the server asks to wait before the next request.
    """

    def __init__(self, text: str = "", wait: float = 0.0):
        super().__init__(text)
        self.wait = wait


class ServerModel:
    """A caption model on a server.

    Frames are sent as JPEG images and audio as WAV, which every such server accepts. Redirects are not
    followed: the key would go to an address that the user has not named.

    Args:
      url: base address of the API, such as http://HOST:8000/v1. A user name and password in it are sent to
        the server, and never written or logged.
      model: the server's name for the model.
      batch_size: number of concurrent requests.
      max_tokens: longest answer in tokens.
      key: API key, if the server requires one.
      timeout: seconds to wait for a whole answer.
      pause: seconds before the first retry; the pause doubles with each retry,
        and is longer where the server asks for it.

    Attributes:
      identity: the model's name and the server's address, for the provenance of captions.

    Raises:
      FlowleyError: the address is not an HTTP address, or the key cannot be sent.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        batch_size: int = 16,
        max_tokens: int = 128,
        key: str | None = None,
        timeout: float = 300.0,
        pause: float = 2.0,
    ):
        self._address = ServerAddress.parse(url, key)
        self.identity: Mapping[str, str] = {"model": model, "server": self._address.shown}
        self.batch_size = batch_size
        self._model, self._max_tokens = model, max_tokens
        self._timeout, self._pause = timeout, pause
        self._threads = concurrent.futures.ThreadPoolExecutor(batch_size)
        self._opener = urllib.request.build_opener(_NoRedirects, *timed_handlers())

    def __call__(self, clips: Sequence[ClipView], prompt: str) -> list[str | Rejection]:
        return list(self._threads.map(lambda clip: self._ask(clip, prompt), clips))

    def close(self) -> None:
        """Wait for open requests, and end their threads."""
        self._threads.shutdown()

    def _ask(self, clip: ClipView, prompt: str) -> str | Rejection:
        """Return the answer about a clip, or the reason why there is none.

        Raises:
          FlowleyError: the server cannot be reached or is out of order; or the address, key or model is
            wrong.
        """
        body = self._body(clip, prompt)
        problem: _UnexpectedAnswerError | _NoAnswerError = _NoAnswerError()
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(max(self._pause * 2 ** (attempt - 1), problem.wait))
            try:
                return self._answer(body)
            except (_UnexpectedAnswerError, _NoAnswerError) as error:
                problem = error
        reason = self._address.without_secrets(one_line(problem))[:200]
        if isinstance(problem, _UnexpectedAnswerError):
            return Rejection(REFUSED, f"no usable answer in {_ATTEMPTS} attempts: {reason}")
        raise FlowleyError(
            f"{self._address.shown}: no answer in {_ATTEMPTS} attempts ({reason}); "
            "run the same command again to resume"
        )

    def _body(self, clip: ClipView, prompt: str) -> bytes:
        content = [*_content_parts(clip), {"type": "text", "text": prompt}]
        request = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._max_tokens,
            "temperature": 0.0,
            "seed": 0,
        }
        return json.dumps(request).encode()

    def _answer(self, body: bytes) -> str | Rejection:
        """Return the text of one answer, or the reason why the server refuses the clip.

        Raises:
          FlowleyError: the address, key or model is wrong.
          _UnexpectedAnswerError: there is no text in the answer.
          _NoAnswerError: the server is out of order or cannot be reached.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self._address.headers}
        request = urllib.request.Request(self._address.of("chat/completions"), body, headers)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                content = response.read(_LONGEST_ANSWER + 1)
        except urllib.error.HTTPError as error:
            with error:
                return self._refusal(error)
        except _CONNECTION_ERRORS as error:
            raise _NoAnswerError(one_line(error)) from None
        if len(content) > _LONGEST_ANSWER:
            raise _UnexpectedAnswerError(f"an answer of more than {_LONGEST_ANSWER} bytes")
        return _text_of(content)

    def _refusal(self, error: urllib.error.HTTPError) -> Rejection:
        """Return the reason why the server refuses the clip; the errors are those of `_answer`."""
        code, detail = error.code, self._detail(error)
        if code in _FATAL_CODES or _is_redirect(error):
            # The cause is left out: its text may hold what the message must not.
            raise FlowleyError(
                f"{self._address.shown}: answers {code} for model {self._model!r} ({detail})"
            ) from None
        if code == 500:
            # One clip alone can make a server fail so; it must not keep the others from an answer.
            raise _UnexpectedAnswerError(f"{code}: {detail}")
        if code > 500 or code in _RETRIED_CODES:
            raise _NoAnswerError(f"{code}: {detail}", _wait_of(error))
        return Rejection(REFUSED, f"the server answers {code}: {detail}")

    def _detail(self, error: urllib.error.HTTPError) -> str:
        """Return the start of an error's text; of a redirect, where it leads."""
        if _is_redirect(error):
            target = without_user(error.headers.get("Location", "").partition("?")[0])
            return f"it redirects to {target[:200]}; if that is right, give that address"
        try:
            content = error.read(_CHUNK).decode(errors="replace")
        except _CONNECTION_ERRORS:
            content = ""
        text = plain_line(content) or plain_line(str(error.reason))
        return self._address.without_secrets(text)[:200]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Leave the redirect to the caller, as an HTTPError."""


def _is_redirect(error: urllib.error.HTTPError) -> bool:
    return 300 <= error.code < 400


def _wait_of(error: urllib.error.HTTPError) -> float:
    """Return the seconds of a Retry-After header, at most `_LONGEST_WAIT`; 0 if it has none."""
    seconds = error.headers.get("Retry-After", "").strip()
    return min(float(seconds), _LONGEST_WAIT) if re.fullmatch(r"[0-9]{1,9}", seconds) else 0.0


def _text_of(content: bytes) -> str:
    """Return the text of an answer; a model that had nothing to say gives an empty one.

    Raises:
      _UnexpectedAnswerError: the content is no answer of the API.
    """
    # Longer than what is shown of it: half a secret at its end could not be told from other text.
    start = content[:_CHUNK].decode(errors="replace")
    try:
        answer = json.loads(content.decode())
    except (ValueError, RecursionError):
        raise _UnexpectedAnswerError(f"an answer that is not JSON: {start}") from None
    try:
        text = answer["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        raise _UnexpectedAnswerError(f"an answer without a message: {start}") from None
    if text is not None and not isinstance(text, str):
        raise _UnexpectedAnswerError(f"an answer whose content is not text: {start}")
    return text or ""


def _content_parts(clip: ClipView) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{frame}"}}
        for frame in clip.frames_as_jpeg()
    ]
    if clip.wave is not None:
        parts.append({"type": "input_audio", "input_audio": {"data": clip.wave_as_wav(), "format": "wav"}})
    return parts
