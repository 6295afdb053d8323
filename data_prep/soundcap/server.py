"""Captions from a server that speaks OpenAI's protocol, such as vLLM, which uses many GPUs."""

import concurrent.futures
import time
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from data_prep.rejection import Rejection, one_line
from data_prep.soundcap.look import Seen
from data_prep.soundcap.models import REFUSED
from flowley_jax.errors import FlowleyError

_ATTEMPTS = 4
_PAUSE = 2.0
_BUSY = (408, 409, 425, 429)


class ServerModel:
    """A model of a server. Frames are sent as JPEG pictures and sound as WAV, which any such server takes.

    Args:
      url: of its API, http://HOST:8000/v1.
      model: name that the server knows it by.
      at_once: requests at a time.
      key: its API key, if it wants one.

    Raises:
      FlowleyError: the address is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        at_once: int = 16,
        max_tokens: int = 128,
        key: str | None = None,
        timeout: float = 300.0,
        pause: float = _PAUSE,
    ):
        if not url.startswith(("http://", "https://")):
            raise FlowleyError(f"{url}: the address of a server must begin with http:// or https://")
        self.identity: Mapping[str, str] = {"model": model, "server": url}
        self.at_once = at_once
        self._model, self._max_tokens, self._pause, self._url = model, max_tokens, pause, url
        self._client = InferenceClient(base_url=url, api_key=key or "none", timeout=timeout)
        self._threads = concurrent.futures.ThreadPoolExecutor(at_once)

    def __call__(self, clips: Sequence[Seen], prompt: str) -> list[str | Rejection]:
        return list(self._threads.map(lambda clip: self._ask(clip, prompt), clips))

    def _ask(self, clip: Seen, prompt: str) -> str | Rejection:
        messages: list[Any] = [{"role": "user", "content": [*_parts(clip), {"type": "text", "text": prompt}]}]
        problem: Exception | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1))
            try:
                answer = self._client.chat_completion(
                    messages, model=self._model, max_tokens=self._max_tokens, temperature=0.0, seed=0
                )
                return answer.choices[0].message.content or ""
            except HfHubHTTPError as error:
                code = error.response.status_code
                if code in (401, 403, 404):
                    said = one_line(error)[:300]
                    raise FlowleyError(f"{self._url}: answers {code} for {self._model!r} ({said})") from error
                if code < 500 and code not in _BUSY:
                    return Rejection(REFUSED, f"the server answers {code}: {one_line(error)[:200]}")
                problem = error
            except (InferenceTimeoutError, OSError) as error:
                problem = error
            except Exception as error:  # Errors of the transport, whichever library is beneath.
                if "http" not in type(error).__module__:
                    raise
                problem = error
        reason = one_line(problem)[:200] if problem else ""
        raise FlowleyError(f"{self._url}: no answer in {_ATTEMPTS} attempts ({reason}); run again to go on")


def _parts(clip: Seen) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{frame}"}}
        for frame in clip.frames_as_jpeg()
    ]
    if clip.wave is not None:
        parts.append({"type": "input_audio", "input_audio": {"data": clip.wave_as_wav(), "format": "wav"}})
    return parts
