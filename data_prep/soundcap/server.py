"""Captions from a server with an OpenAI-compatible API, such as vLLM on many GPUs."""

import concurrent.futures
import time
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from data_prep.rejection import Rejection, one_line
from data_prep.soundcap.clip_view import ClipView
from data_prep.soundcap.models import REFUSED
from flowley_jax.errors import FlowleyError

_ATTEMPTS = 4
# HTTP status codes, besides those from 500 up, after which a request is repeated.
_RETRIED_CODES = (408, 409, 425, 429)


class ServerModel:
    """A caption model on a server.

    Frames are sent as JPEG images and audio as WAV, which every such server accepts.

    Args:
      url: base address of the API, such as http://HOST:8000/v1.
      model: the server's name for the model.
      batch_size: number of concurrent requests.
      max_tokens: longest answer in tokens.
      key: API key, if the server requires one.
      timeout: seconds to wait for an answer.
      pause: seconds before the first retry; the pause doubles with each retry.

    Raises:
      FlowleyError: the address is not an HTTP address.
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
        if not url.startswith(("http://", "https://")):
            raise FlowleyError(f"{url}: the address of a server must begin with http:// or https://")
        self.identity: Mapping[str, str] = {"model": model, "server": url}
        self.batch_size = batch_size
        self._model, self._max_tokens, self._pause, self._url = model, max_tokens, pause, url
        self._client = InferenceClient(base_url=url, api_key=key or "none", timeout=timeout)
        self._threads = concurrent.futures.ThreadPoolExecutor(batch_size)

    def __call__(self, clips: Sequence[ClipView], prompt: str) -> list[str | Rejection]:
        return list(self._threads.map(lambda clip: self._ask(clip, prompt), clips))

    def _ask(self, clip: ClipView, prompt: str) -> str | Rejection:
        content = [*_content_parts(clip), {"type": "text", "text": prompt}]
        messages: list[Any] = [{"role": "user", "content": content}]
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
                    detail = one_line(error)[:300]
                    raise FlowleyError(
                        f"{self._url}: answers {code} for model {self._model!r} ({detail})"
                    ) from error
                if code < 500 and code not in _RETRIED_CODES:
                    return Rejection(REFUSED, f"the server answers {code}: {one_line(error)[:200]}")
                problem = error
            except (InferenceTimeoutError, OSError) as error:
                problem = error
            except Exception as error:  # Transport errors, from whichever HTTP library is in use.
                if "http" not in type(error).__module__:
                    raise
                problem = error
        reason = one_line(problem)[:200] if problem else ""
        raise FlowleyError(
            f"{self._url}: no answer in {_ATTEMPTS} attempts ({reason}); run the same command again to resume"
        )


def _content_parts(clip: ClipView) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{frame}"}}
        for frame in clip.frames_as_jpeg()
    ]
    if clip.wave is not None:
        parts.append({"type": "input_audio", "input_audio": {"data": clip.wave_as_wav(), "format": "wav"}})
    return parts
