"""A small Hugging Face Hub on this machine, as far as the real client asks: repositories, commits, LFS, tokens."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writes"
USER = "someone"


@dataclass
class Repository:
    """Its commits, oldest first, each with all its files; `main` is the last."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], message: str = "") -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid] = (self.files("main") or {}) | dict(files)
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return next(reversed(self.commits), None)
        return revision if revision in self.commits else None

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.resolve(revision) or "")


class Hub:
    """Serves `repositories` at `endpoint` while it is used as a context manager; large files lie at another host, as on the
    real one. `requests` holds what was asked, and `failing` paths that are answered with 503."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failing: str | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        port = self._server.server_address[1]
        self.endpoint, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}/storage"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, files: Mapping[str, bytes], **settings: bool) -> str:
        """Add a commit to a repository, which is made if need be."""
        self.objects |= {hashlib.sha256(data).hexdigest(): data for data in files.values()}
        return self.repositories.setdefault(name, Repository(**settings)).commit(files)

    def count(self, request: str) -> int:
        return sum(bool(re.match(request, asked)) for asked in self.requests)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815

    def _answer(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.failing and re.search(self.hub.failing, self.path):
            return self._send(503)
        for pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, f"{self.command} {self.path}")
            if found:
                return answer(self, **found.groupdict())
        return self._send(404)

    def _send(
        self, status: int = 200, body: object = b"", headers: Mapping[str, str] | None = None, error: str = ""
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        values = {"Content-Length": str(len(data))} | ({"X-Error-Code": error} if error else {}) | dict(headers or {})
        for name, value in values.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # --- who ---

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _readable(self, name: str) -> Repository | None:
        """The repository, if whoever asks may read it; answers if not."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.known):
            self._send(404 if self.known else 401, error="RepoNotFound")
            return None
        if repository.gated:
            self._send(403 if self.known else 401, error="GatedRepo")
            return None
        return repository

    def whoami(self) -> None:
        if self.known:
            return self._send(body={"type": "user", "name": USER, "orgs": []})
        return self._send(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})

    # --- in ---

    def resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._readable(name)
        if repository is None:
            return None
        commit = repository.resolve(revision)
        if commit is None:
            return self._send(404, error="RevisionNotFound")
        if file not in repository.commits[commit]:
            return self._send(404, headers={"X-Repo-Commit": commit}, error="EntryNotFound")
        data = repository.commits[commit][file]
        oid, large = hashlib.sha256(data).hexdigest(), _is_large(file)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{oid}"'}
        if not large:
            return self._send(body=data, headers=headers)
        linked = {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(data)), "Location": f"{self.hub.storage}/{oid}"}
        return self._send(302, headers=headers | linked)

    def stored(self, oid: str) -> None:
        assert "Authorization" not in self.headers, "a token left the Hub"
        self._send(body=self.hub.objects[oid])

    def tree(self, name: str, revision: str) -> None:
        repository = self._readable(name)
        if repository is not None:
            files = repository.files(revision) or {}
            self._send(body=[{"type": "file", "path": path, "size": len(files[path]), "oid": "0"} for path in files])

    def info(self, name: str) -> None:
        repository = self._readable(name)
        if repository is not None:
            self._send(body={"id": name, "private": repository.private, "sha": repository.resolve("main")})

    # --- out ---

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self.known:
            return self._send(401)
        if asked["organization"] != USER:
            return self._send(403, headers={"X-Error-Message": "You don't have the rights"})
        if name in self.hub.repositories:
            return self._send(409, {"error": "You already created this repo", "url": f"{self.hub.endpoint}/{name}"})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private=private)
        return self._send(body={"url": f"{self.hub.endpoint}/{name}"})

    def validate(self) -> None:
        text = json.loads(self.body)["content"]
        errors = [] if re.match(r"---\n.*\n---\n", text, re.DOTALL) else [{"message": "no metadata"}]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, name: str) -> None:
        def mode(path: str) -> dict[str, Any]:
            return {"path": path, "uploadMode": "lfs" if _is_large(path) else "regular", "shouldIgnore": False}

        self._send(body={"files": [mode(file["path"]) for file in json.loads(self.body)["files"]]})

    def batch(self, name: str) -> None:
        def upload(asked: dict[str, Any]) -> dict[str, Any]:
            return asked | {"actions": {"upload": {"href": f"{self.hub.storage}/{asked['oid']}"}}}

        self._send(body={"transfer": "basic", "objects": [upload(asked) for asked in json.loads(self.body)["objects"]]})

    def store(self, oid: str) -> None:
        assert "Authorization" not in self.headers, "a token left the Hub"
        right = hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self._send(200 if right else 400)

    def commit(self, name: str) -> None:
        if not self.known:
            return self._send(401)
        lines = [json.loads(line) for line in self.body.splitlines()]
        files: dict[str, bytes] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        summary = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        oid = self.hub.repositories[name].commit(files, summary)
        return self._send(body={"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid})


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".onnx", ".png"))


_NAME = r"(?P<name>[^/]+/[^/]+)"
_ROUTES = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST /api/models/{_NAME}/preupload/main", _Handler.preupload),
    (rf"POST /api/models/{_NAME}/commit/main", _Handler.commit),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /storage/(?P<oid>\w+)", _Handler.store),
    (r"GET /storage/(?P<oid>\w+)", _Handler.stored),
    (rf"GET /api/models/{_NAME}/tree/(?P<revision>.+)", _Handler.tree),
    (rf"GET /api/models/{_NAME}", _Handler.info),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
]
