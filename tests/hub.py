"""A local server that speaks the protocol of the Hugging Face hub, as far as it is used here."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_tokenoftestsonly"
_LARGE = (".safetensors", ".gz", ".hdf5", ".bin")
"""Files of these kinds are stored by LFS, as the hub does."""


def oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    """Commits by hash, oldest first, and branches."""

    private: bool = False
    gated: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main", deleted: Collection[str] = ()) -> str:
        """Adds files to a branch, and removes others; returns the hash of the commit."""
        before = self.commits.get(self.branches.get(branch, ""), {})
        number = f"{len(self.commits)} {branch} {sorted(files)}"
        commit = hashlib.sha1(number.encode()).hexdigest()
        self.commits[commit] = {
            k: x for k, x in {**before, **files}.items() if k in files or k not in deleted
        }
        self.branches[branch] = commit
        return commit

    def find(self, revision: str) -> str | None:
        revision = unquote(revision)
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub:
    """The repositories of a server.

    Attributes:
        url: its address, for HF_ENDPOINT.
        repositories: by "models/OWNER/NAME" or "datasets/OWNER/NAME".
        requests: "METHOD /path" of all requests, in order.
        cut: the next download of a file with this name breaks off after so many bytes; used once.
        sizes: sizes that the server declares for files, whatever they have.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.cut: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.uploads: dict[str, bytes] = {}

    def add(self, name: str, files: Mapping[str, bytes], kind: str = "models", **options: Any) -> str:
        """Adds a commit to a repository, which is created if necessary; returns the commit."""
        repository = self.repositories.setdefault(f"{kind}/{name}", Repository(**options))
        return repository.commit(files)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} /{path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = path.split("/")
        if parts[0] == "upload":
            self.hub.uploads[parts[1]] = self.body
            self._send(200, b"")
        elif path == "api/validate-yaml":
            self._json({"warnings": [], "errors": []})
        elif path == "api/repos/create":
            self._create(json.loads(self.body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._lfs(json.loads(self.body))
        elif parts[0] == "api":
            self._api("/".join(parts[1:4]), parts[4:])
        else:
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[kind == "datasets" :]
            self._resolve(f"{kind}/{'/'.join(parts[:2])}", parts[3], "/".join(parts[4:]))

    # ------------------------------------------------------------------------------------------ answers

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str) -> None:
        self._send(status, b'{"error": "refused"}', {"X-Error-Code": code, "X-Error-Message": code})

    def _find(self, name: str) -> Repository | None:
        """Returns a repository that the caller may see; answers an error otherwise."""
        repository = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            self._fail(404 if known else 401, "RepoNotFound")
        elif repository.gated and not known:
            self._fail(403, "GatedRepo")
        else:
            return repository
        return None

    # ---------------------------------------------------------------------------------------- downloads

    def _api(self, name: str, rest: list[str]) -> None:
        repository = self._find(name)
        if repository is None:
            return
        if self.command == "POST":
            self._write(repository, rest[0], rest[1])
            return
        commit = repository.find(rest[1] if len(rest) > 1 else "main")
        if commit is None:
            self._fail(404, "RevisionNotFound")
            return
        entries = [self._entry(path, content) for path, content in repository.commits[commit].items()]
        if rest[:1] == ["tree"]:
            self._json(entries)
            return
        siblings = [
            {
                "rfilename": one["path"],
                "blobId": one["oid"],
                **{k: one[k] for k in ("size", "lfs") if k in one},
            }
            for one in entries
        ]
        info = {
            "id": name.partition("/")[2],
            "sha": commit,
            "cardData": repository.card,
            "siblings": siblings,
        }
        self._json({**info, "private": repository.private, "gated": repository.gated, "tags": []})

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        size = self.hub.sizes.get(path, len(content))
        entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": oid(content)[:40]}
        if path.endswith(_LARGE):
            entry["lfs"] = {"oid": oid(content), "size": size, "sha256": oid(content), "pointerSize": 130}
        return entry

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._find(name)
        if repository is None:
            return
        commit = repository.find(revision)
        if commit is None or path not in repository.commits[commit]:
            self._fail(404, "RevisionNotFound" if commit is None else "EntryNotFound")
            return
        content = repository.commits[commit][path]
        etag = oid(content) if path.endswith(_LARGE) else oid(content)[:40]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start, wanted = 0, self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        if self.command == "GET" and path in self.hub.cut:
            headers["Content-Length"] = str(len(content))
            content = content[: self.hub.cut.pop(path)]
            self.close_connection = True
        self._send(206 if wanted else 200, content, headers)

    # ------------------------------------------------------------------------------------------ uploads

    def _create(self, asked: dict[str, Any]) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._fail(401, "")
            return
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if f"models/{name}" in self.hub.repositories else 200
        if status == 200:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.repositories[f"models/{name}"] = Repository(private=private)
            self.hub.repositories[f"models/{name}"].commit({})
        self._send(status, json.dumps({"url": f"{self.hub.url}/{name}", "id": name}).encode())

    def _lfs(self, asked: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}", "header": {}}}}
            for one in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _write(self, repository: Repository, action: str, revision: str) -> None:
        if action == "branch":
            repository.branches[revision] = repository.branches["main"]
            self._json({})
        elif action == "preupload":
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(self.body)["files"]
            ]
            self._json({"files": modes})
        else:
            files, deleted = {}, []
            for line in self.body.splitlines():
                row = json.loads(line)
                value = row["value"]
                if row["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif row["key"] == "lfsFile":
                    files[value["path"]] = self.hub.uploads[value["oid"]]
                elif row["key"] == "deletedFile":
                    deleted.append(value["path"])
            commit = repository.commit(files, revision, deleted)
            url = f"{self.hub.url}/{self.path.split('/')[3]}/{self.path.split('/')[4]}/commit/{commit}"
            self._json({"commitUrl": url, "commitOid": commit, "success": True})


def connect(monkeypatch: pytest.MonkeyPatch, hub: Hub, cache: Path, token: str | None = TOKEN) -> None:
    """Makes `huggingface_hub` and vmr_zoo use a hub and empty caches below a folder."""
    import huggingface_hub

    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("VMR_CACHE", str(cache / "vmr_zoo"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # needs a server of its own
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(cache / "token"))
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Serves an empty hub until the body ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
