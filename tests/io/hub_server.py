"""A server on this machine that speaks as much of the Hub's protocol as a download and an upload take."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub.utils import disable_progress_bars

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WRITER = "hf_theTokenOfAWriterOfUser"
READER = "hf_theTokenOfSomebodyWhoOnlyReads"
LARGE = (".safetensors",)


@dataclass
class Fault:
    """What answers the next requests whose method and path fit; `status` 0 cuts the connection."""

    method: str
    path: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    times: int = 1


class Hub(ThreadingHTTPServer):
    """Holds repositories: id -> path -> content; branches and pull requests are `id@branch` and `id@refs/pr/N`.

    Attributes:
        commits: the last commit of each of them, COMMIT where nothing has been committed.
        messages: of each commit, in order.
        faults: what goes wrong next.
        requests: method and path of each request, in order.
        owner: the user whose token WRITER is.
        objects: large files that arrived, by SHA-256, whether or not a commit names them.
        part_size: larger files are to be sent in parts of so many bytes; in one if None.
        parts: those that arrived, by SHA-256 of the file and number.
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.pulls: dict[str, list[tuple[str, str]]] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.broken = False
        self.owner = "user"
        self.fetched: list[str] = []
        self.tokens: set[str | None] = set()
        self.commits: dict[str, str] = {}
        self.messages: list[str] = []
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}
        self.part_size: int | None = None
        self.parts: dict[tuple[str, int], bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def key(self, name: str, revision: str) -> str | None:
        """Name the state of a repository that a revision means."""
        if revision in ("main", "v1") and name in self.repositories:
            return name
        if f"{name}@{revision}" in self.repositories:
            return f"{name}@{revision}"
        keys = [key for key in self.repositories if key == name or key.startswith(f"{name}@")]
        return next((key for key in keys if self.commits.get(key, COMMIT) == revision), None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server
        parts = self.arrived()
        if parts is None:
            return
        if "org" in parts:
            hub.tokens.add(self.headers.get("Authorization"))
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if hub.broken:
            self.answer(500, b"")
        elif name in hub.private and self.user() is None:
            self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["discussions"]:
            self.discussions(name)
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["refs"]:
            self.refs(name)
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["xet-write-token"]:
            self.json({"error": "no Xet here"}, 404)
        elif parts[:2] == ["api", "models"]:
            self.model_info(name, parts[5] if len(parts) > 5 else "main")
        elif len(parts) > 4:
            self.file(name, parts[3], "/".join(parts[4:]))
        else:
            self.answer(404, b"")

    def arrived(self) -> list[str] | None:
        """Read a request and return the parts of its path; None where a fault has answered it."""
        hub = self.server
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        hub.requests.append((self.command, path))
        for fault in hub.faults:
            if fault.method == self.command and fault.path in path and fault.times:
                fault.times -= 1
                if fault.status:
                    self.answer(fault.status, fault.body, fault.headers)
                else:
                    self.close_connection = True
                return None
        return [unquote(part) for part in path.strip("/").split("/")]

    def user(self) -> str | None:
        return {f"Bearer {WRITER}": self.server.owner, f"Bearer {READER}": "reader"}.get(
            self.headers.get("Authorization") or ""
        )

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

    def refs(self, name: str) -> None:
        """Branches of a repository, and its one tag."""
        if name not in self.server.repositories:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        others = [key.removeprefix(f"{name}@") for key in self.server.repositories if key.startswith(f"{name}@")]
        branches = [ref for ref in ("main", *others) if not ref.startswith("refs/")]
        found = {"branches": [("heads", branch) for branch in branches], "tags": [("tags", "v1")], "converts": []}
        self.json({
            kind: [{"name": ref, "ref": f"refs/{of}/{ref}", "targetCommit": COMMIT} for of, ref in refs]
            for kind, refs in found.items()
        })  # fmt: skip

    def model_info(self, name: str, revision: str) -> None:
        hub = self.server
        key = hub.key(name, revision)
        if key is None:
            self.answer(
                404, b"{}", {"X-Error-Code": "RevisionNotFound" if name in hub.repositories else "RepoNotFound"}
            )
            return
        siblings = [{"rfilename": file} for file in hub.repositories[key]]
        sha = hub.commits.get(key, COMMIT)
        self.json({"id": name, "sha": sha, "private": name in hub.private, "siblings": siblings})

    def file(self, name: str, revision: str, file: str) -> None:
        hub = self.server
        if name in hub.gated:
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            return
        # All that was not committed here is one commit, so that what a pull request adds is found by it too.
        sha = hub.commits.get(hub.key(name, revision) or "", COMMIT)
        held = [
            files
            for key, files in hub.repositories.items()
            if (key == name or key.startswith(f"{name}@")) and hub.commits.get(key, COMMIT) == sha
        ]
        content = next((files[file] for files in held if file in files), None)
        if content is None:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            hub.fetched.append(file)
        # As the Hub's: weights by their SHA-256 alone.
        etag = hashlib.sha256(content) if file.endswith(LARGE) else hashlib.sha1(file.encode() + content)
        self.answer(200, content, {"ETag": f'"{etag.hexdigest()}"', "X-Repo-Commit": sha})

    def do_POST(self) -> None:
        parts = self.arrived()
        if parts is None:
            return
        hub, user = self.server, self.user()
        if parts == ["api", "validate-yaml"]:
            says = (
                [{"message": '"license" must be one of the known ones'}]
                if "license: wrong" in self.sent()["content"]
                else []
            )
            self.json({"errors": says, "warnings": []}, 400 if says else 200)
        elif parts[0] == "complete":
            self.complete(parts[1])
        elif user is None:
            self.json({"error": "Invalid credentials in Authorization header"}, 401)
        elif parts == ["api", "repos", "create"]:
            self.create(user)
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            self.large_files()
        elif parts[0] == "verify":
            self.answer(200 if self.sent()["oid"] in hub.objects else 404, b"{}")
        else:
            self.write("/".join(parts[2:4]), parts[4], "/".join(parts[5:]), user)

    def do_PUT(self) -> None:
        parts = self.arrived()
        if parts is not None and parts[0] == "parts":
            self.server.parts[parts[1], int(parts[2])] = self.body
            self.answer(200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})
        elif parts is not None:
            assert hashlib.sha256(self.body).hexdigest() == parts[1]
            self.server.objects[parts[1]] = self.body
            self.answer(200, b"")

    def create(self, user: str) -> None:
        hub, sent = self.server, self.sent()
        owner = sent["organization"] or user
        name = f"{owner}/{sent['name']}"
        if name in hub.repositories:
            self.json({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
        elif owner != user or user == "reader":
            self.json({"error": f'You don\'t have the rights to create a model under the namespace "{owner}"'}, 403)
        else:
            hub.repositories[name] = {".gitattributes": b"*.safetensors filter=lfs"}
            if sent.get("visibility") == "private" or sent.get("private"):
                hub.private.add(name)
            self.json({"url": f"{hub.url}/{name}", "name": name, "id": name})

    def write(self, name: str, verb: str, revision: str, user: str) -> None:
        """Answer what changes a repository: a branch, what is to be sent how, a commit, a pull request."""
        hub = self.server
        pull = parse_qs(urlsplit(self.path).query).get("create_pr") == ["1"]
        key = hub.key(name, revision)
        if name not in hub.repositories:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif user != name.split("/")[0] and not pull:
            self.json({"error": "Forbidden: you must use a token with write access"}, 403)
        elif verb == "branch":
            if key is None:
                hub.repositories[f"{name}@{revision}"] = dict(hub.repositories[name])
            self.answer(200 if key is None else 409, b"{}")
        elif key is None:
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif verb == "preupload":
            self.json({"files": [self.upload_mode(key, file) for file in self.sent()["files"]]})
        else:
            self.commit(name, key, pull=pull)

    def upload_mode(self, key: str, file: dict[str, Any]) -> dict[str, Any]:
        there = self.server.repositories[key].get(file["path"])
        large = file["path"].endswith(LARGE)
        oid = None
        if there is not None:
            oid = hashlib.sha256(there) if large else hashlib.sha1(b"blob %d\0" % len(there) + there)
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": oid and oid.hexdigest(),
        }

    def large_files(self) -> None:
        hub = self.server
        answers = []
        for one in self.sent()["objects"]:
            upload: dict[str, Any] = {"href": f"{hub.url}/objects/{one['oid']}?X-Amz-Signature=secret"}
            if hub.part_size is not None and one["size"] > hub.part_size:
                numbers = range(1, -(-one["size"] // hub.part_size) + 1)
                urls = {f"{n:05}": f"{hub.url}/parts/{one['oid']}/{n}?X-Amz-Signature=secret" for n in numbers}
                upload = {"href": f"{hub.url}/complete/{one['oid']}"}
                upload["header"] = {"chunk_size": str(hub.part_size), **urls}
            verify = {"href": f"{hub.url}/verify"}
            answers.append(
                one | ({} if one["oid"] in hub.objects else {"actions": {"upload": upload, "verify": verify}})
            )
        self.json({"transfer": "basic", "objects": answers})

    def complete(self, oid: str) -> None:
        """Put the parts of a file together, in the order and with the checksums that the client names."""
        hub, sent = self.server, self.sent()
        named = [(oid, part["partNumber"]) for part in sent["parts"]]
        tags = [part["etag"].strip('"') for part in sent["parts"]]
        assert tags == [hashlib.md5(hub.parts[part]).hexdigest() for part in named]
        whole = b"".join(hub.parts[part] for part in named)
        assert hashlib.sha256(whole).hexdigest() == sent["oid"] == oid
        hub.objects[oid] = whole
        self.answer(200, b"{}")

    def commit(self, name: str, key: str, *, pull: bool) -> None:
        hub = self.server
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", hub.commits.get(key, COMMIT)) != hub.commits.get(key, COMMIT):
            self.json({"error": "A commit has happened since. Please refresh and try again."}, 412)
            return
        files = dict(hub.repositories[key])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        number = 1 + sum(other.startswith(f"{name}@refs/pr/") for other in hub.repositories)
        key = f"{name}@refs/pr/{number}" if pull else key
        hub.messages.append(header["summary"])
        hub.repositories[key] = files
        hub.commits[key] = sha = hashlib.sha1(self.body + str(len(hub.messages)).encode()).hexdigest()
        url = f"{hub.url}/{name}"
        says = {"success": True, "commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "hookOutput": ""}
        self.json(says | ({"pullRequestUrl": f"{url}/discussions/{number}"} if pull else {}))

    def sent(self) -> dict[str, Any]:
        return json.loads(self.body)

    def json(self, value: object, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
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


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it the Hub of this process and of those that it starts, with the token of a writer, and no progress bars."""
    disable_progress_bars()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", WRITER)
