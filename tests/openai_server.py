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
    """Run the server for the duration of the block; yield its address."""
    command = [sys.executable, __file__, log, busy]
    with children.started(command, stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        if self.path != "/v1/chat/completions" or request["model"] != MODEL:
            return self._answer(404, {"error": {"message": f"no model {request['model']} at {self.path}"}})
        with server.log.open("a") as file:
            file.write(json.dumps({**request, "key": self.headers.get("Authorization")}) + "\n")
        if server.busy > 0:
            server.busy -= 1
            return self._answer(503, {"error": {"message": "busy"}})
        parts = request["messages"][0]["content"]
        images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        sounds = [part["input_audio"]["data"] for part in parts if part["type"] == "input_audio"]
        for image in images:
            assert base64.b64decode(image.removeprefix("data:image/jpeg;base64,"))[:2] == b"\xff\xd8"
        for sound in sounds:
            assert base64.b64decode(sound)[:4] == b"RIFF"
        if len(images) == 1:
            return self._answer(400, {"error": {"message": "one picture is not enough"}})
        text = f"A thud over {len(images)} pictures, {len(sounds)} sounds."
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        self._answer(
            200, {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
        )

    def _answer(self, code, value):
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.log, server.busy = Path(sys.argv[1]), int(sys.argv[2])
    print(server.server_address[1], flush=True)
    server.serve_forever()
