"""A server on this machine that speaks as much of the Hub's protocol as a download takes."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Holds repositories: id -> path -> content, all at one commit."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.pulls: dict[str, list[tuple[str, str]]] = {}
        self.gated: set[str] = set()
        self.broken = False
        self.fetched: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server
        parts = self.path.strip("/").split("/")
        if "org" in parts:
            hub.tokens.add(self.headers.get("Authorization"))
        if hub.broken:
            self.answer(500, b"")
        elif parts[:2] == ["api", "models"] and parts[4:5] and parts[4].startswith("discussions"):
            self.discussions("/".join(parts[2:4]))
        elif parts[:2] == ["api", "models"]:
            self.model_info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        else:
            self.file("/".join(parts[:2]), "/".join(parts[4:]))

    def discussions(self, name: str) -> None:
        """Pull requests by (author, title), all of them open; a repository `name@refs/pr/N` holds the N-th's files."""
        pulls = [
            {
                "num": number,
                "author": {"name": author},
                "title": title,
                "status": "open",
                "isPullRequest": True,
                "createdAt": "2026-01-01T00:00:00.000Z",
                "repo": {"name": name, "type": "model"},
            }
            for number, (author, title) in enumerate(self.server.pulls.get(name, []), 1)
        ]
        self.answer(200, json.dumps({"count": len(pulls), "start": 0, "discussions": pulls}).encode())

    def model_info(self, name: str, revision: str) -> None:
        revision = unquote(revision)
        if revision.startswith("refs/pr/"):
            files, revision = self.server.repositories.get(f"{name}@{revision}"), "main"
        else:
            files = self.server.repositories.get(name)
        if files is None:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v1", COMMIT):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [{"rfilename": file} for file in files]
            self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())

    def file(self, name: str, file: str) -> None:
        if name in self.server.gated:
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            return
        # One commit for all revisions, so that what a pull request adds is found by it too.
        held = [files for key, files in self.server.repositories.items() if key == name or key.startswith(f"{name}@")]
        content = next((files[file] for files in held if file in files), None)
        if content is None:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            self.server.fetched.append(file)
        # As the Hub's: weights by their SHA-256 alone.
        large = file.endswith(".safetensors")
        etag = hashlib.sha256(content) if large else hashlib.sha1(file.encode() + content)
        self.answer(200, content, {"ETag": f'"{etag.hexdigest()}"', "X-Repo-Commit": COMMIT})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def serving(repositories: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    hub = Hub(repositories)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
