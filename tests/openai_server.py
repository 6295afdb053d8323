"""A small server with an OpenAI-compatible API, for tests of `data_prep.soundcap`.

As a program it takes two arguments: the file to log requests to, and how many requests to answer with 503.
"""

import base64
import contextlib
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import children

MODEL = "listener"


@contextlib.contextmanager
def running(log, *, busy=0):
    """Run the server for the duration of the block; yield its address.

    The model MODEL:KIND gives an answer of another kind: a key of UNEXPECTED, or one that `_Handler` knows.
    """
    command = [sys.executable, __file__, log, busy]
    with children.started(command, stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"


def completion(content):
    """Return the JSON of an answer."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    answer = {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
    return json.dumps(answer).encode()


# What real servers, proxies and gateways answer with code 200 instead of what the API says.
UNEXPECTED = {
    "no_choices": json.dumps({"choices": []}).encode(),
    "null_choices": json.dumps({"choices": None}).encode(),
    "error_object": json.dumps({"error": {"message": "overloaded", "code": 429}}).encode(),
    "html": b"<!doctype html><title>Sign in</title>",
    "list": json.dumps([1, 2]).encode(),
    "list_content": completion([{"type": "text", "text": "A thud."}]),
    "number": completion(17),
    "no_message": json.dumps({"choices": [{"index": 0}]}).encode(),
    "not_utf8": completion("A thud.").replace(b"thud", b"th\xfcd"),
    "cut": completion("A thud over four pictures.")[:-30],
    "nested": b'{"choices": ' + b"[" * 100_000,
    "huge": completion("thud " * 300_000),
    "empty": b"",
}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, (model, _, kind) = self.server, request["model"].partition(":")
        if not self.path.startswith("/v1/chat/completions") or model != MODEL:
            return self._answer(404, _error(f"no model {request['model']} at {self.path}"))
        seen = {"key": self.headers.get("Authorization"), "path": self.path}
        with server.log.open("a") as file:
            file.write(json.dumps({**request, **seen}) + "\n")
        if server.busy > 0:
            server.busy -= 1
            return self._answer(503, _error("busy"))
        images, sounds = _media(request)
        if len(images) == 1:
            return self._answer(400, _error("one picture is not enough"))
        answers = {
            "": (200, completion(f"A thud over {len(images)} pictures, {len(sounds)} sounds.")),
            "redirect": (307, b"", ("Location", "https://me:secret@elsewhere.test/login?token=secret")),
            "broken": (500, _error("division by zero")),
            "leak": (200, _error(f"{50 * 'x'} wrong key {seen['key']} {500 * 'x'}")),
            "echo": (401, _error(f"wrong key {seen['key']}")),
            "truncated": (200, completion("A thud over four pictures.")[:-30], ("Content-Length", "1000")),
            **{name: (200, content) for name, content in UNEXPECTED.items()},
        }
        self._answer(*answers[kind])

    def _answer(self, code, content, *headers):
        self.send_response(code)
        named = {"Content-Type": "application/json", "Content-Length": len(content), **dict(headers)}
        for name, value in named.items():
            self.send_header(name, str(value))
        self.end_headers()
        # A client that reads no more than it needs closes the connection.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def _media(request):
    """Return the images and the sounds of a request, which must be JPEG and WAV."""
    parts = request["messages"][0]["content"]
    images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    sounds = [part["input_audio"]["data"] for part in parts if part["type"] == "input_audio"]
    assert all(
        base64.b64decode(image.removeprefix("data:image/jpeg;base64,"))[:2] == b"\xff\xd8" for image in images
    )
    assert all(base64.b64decode(sound)[:4] == b"RIFF" for sound in sounds)
    return images, sounds


def _error(message):
    return json.dumps({"error": {"message": message}}).encode()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.log, server.busy = Path(sys.argv[1]), int(sys.argv[2])
    print(server.server_address[1], flush=True)
    server.serve_forever()
