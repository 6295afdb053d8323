"""A server that speaks the part of the Hugging Face hub's protocol that models need."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PRIVATE = "someone/private"


class Hub:
    """Repositories by name, each with the content of its files by path."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict] = []
        self.address = ""


@contextmanager
def running() -> Iterator[Hub]:
    """Serve a hub while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def do_HEAD(self):
            self._answer_get(with_body=False)

        def do_GET(self):
            self._answer_get(with_body=True)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = unquote(urlparse(self.path).path).strip("/").split("/")
            if parts[:3] == ["api", "repos", "create"]:
                asked = json.loads(body)
                name = (
                    f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                )
                hub.created.append(asked)
                hub.repositories.setdefault(name, {})
                return self._json({"url": f"{hub.address}/{name}", "id": name})
            if parts[:2] == ["api", "validate-yaml"]:
                return self._json({"errors": [], "warnings": []})
            name, action = "/".join(parts[2:4]), parts[4]
            if action == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self._json({"files": files})
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            return self._json(
                {"commitUrl": f"{hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            )

        def _answer_get(self, *, with_body):
            parts = unquote(urlparse(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                return self._describe("/".join(parts[2:4]), as_tree=parts[4:5] == ["tree"])
            name, path = "/".join(parts[:2]), "/".join(parts[4:])
            content = hub.repositories.get(name, {}).get(path)
            if content is None:
                return self._json({"error": "not found"}, status=404, code="EntryNotFound")
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def _describe(self, name, *, as_tree):
            if name not in hub.repositories or name == PRIVATE:
                # The real hub answers like this for private repositories, too.
                return self._json({"error": "Repository not found"}, status=401, code="RepoNotFound")
            if as_tree:
                tree = [
                    {
                        "type": "file",
                        "path": path,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for path, content in sorted(hub.repositories[name].items())
                ]
                return self._json(tree)
            files = [{"rfilename": path} for path in sorted(hub.repositories[name])]
            return self._json({"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "tags": []})

        def _json(self, content, *, status=200, code=""):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", content["error"])
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler
