"""A local server that answers the queries of wandb's own client."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VIEWER = {"id": "1", "entity": "me", "username": "me", "teams": {"edges": []}}
PROJECT = {"id": "UA==", "internalId": "UA==", "name": "mine", "entity": {"name": "me"}}


def run_node(number: int, run_id: str, config: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """A run of a project, as the server lists it."""
    shown: dict[str, Any] = dict.fromkeys(("sweepName", "group", "jobType", "commit", "description", "notes"))
    shown |= {"id": str(number), "name": run_id, "state": "finished", "tags": [], "user": {}}
    texts = {
        "config": {key: {"value": value} for key, value in config.items()},
        "summaryMetrics": summary,
        "systemMetrics": {},
    }
    return shown | {name: json.dumps(value) for name, value in texts.items()}


class WandbServer(BaseHTTPRequestHandler):
    """Lists runs page by page, and serves the artifacts of runs."""

    nodes: Sequence[dict[str, Any]]
    artifacts: dict[str, tuple[dict[str, Any], Path]]
    requests: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        data = self.answer(json.loads(body)) if self.path == "/graphql" else {}
        self.reply(json.dumps({"data": data}).encode())

    def do_GET(self) -> None:
        self.requests.append(self.path)
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "manifest":
            manifest = self.artifacts[rest][0]
            contents = {
                one["path"]: {"digest": one["digest"], "size": int(one["size"])}
                for one in manifest["contents"]
            }
            policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {}}
            self.reply(json.dumps({"version": 1, **policy, "contents": contents}).encode())
            return
        for manifest, folder in self.artifacts.values():
            for one in manifest["contents"]:
                if base64.b64decode(one["digest"]).hex() in rest:
                    self.reply((folder / one["path"]).read_bytes())
                    return
        self.send_error(404)

    def reply(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request["query"], request.get("variables") or {}
        if "query Runs(" in query:
            self.requests.append("page")
            first = int(variables.get("cursor") or 0)
            last = min(first + variables["perPage"], len(self.nodes))
            edges = [{"node": self.nodes[i], "cursor": str(i + 1)} for i in range(first, last)]
            more = {"endCursor": str(last), "hasNextPage": last < len(self.nodes)}
            runs = {"edges": edges, "pageInfo": more}
            return {"project": {"runCount": len(self.nodes), "runs": runs}}
        if "query ArtifactMembershipByName" in query:
            return {"project": {"artifactCollectionMembership": self.membership(variables["name"])}}
        if "query FetchArtifactManifest" in query:
            name = base64.b64decode(variables["id"]).decode()
            url = f"http://127.0.0.1:{self.server.server_address[1]}/manifest/{name}"
            return {"artifact": {"currentManifest": {"id": "TQ==", "file": {"directUrl": url}}}}
        return {"viewer": VIEWER, "serverInfo": {"features": []}}

    def membership(self, name: str) -> dict[str, Any] | None:
        stem = name.partition(":")[0]
        if stem not in self.artifacts:
            return None
        manifest = self.artifacts[stem][0]
        sequence = {"__typename": "ArtifactSequence", "id": "Uw==", "name": stem, "project": PROJECT}
        none = dict.fromkeys(("description", "metadata", "historyStep", "commitHash", "updatedAt"))
        artifact = {
            "__typename": "Artifact",
            "id": base64.b64encode(stem.encode()).decode(),
            "artifactSequence": sequence,
            "versionIndex": 0,
            "artifactType": {"id": "VA==", "name": "results"},
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "state": "COMMITTED",
            "size": 1,
            "digest": "0" * 32,
            "fileCount": len(manifest["contents"]),
            "createdAt": "2026-01-01T00:00:00",
            "aliases": [],
            **none,
        }
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": "TA==",
            "versionIndex": 0,
            "createdAt": "2026-01-01T00:00:00",
            "aliases": [{"id": "QQ==", "alias": "latest"}],
            "artifactCollection": sequence,
            "artifact": artifact,
        }

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving(
    nodes: Sequence[dict[str, Any]], artifacts: dict[str, tuple[dict[str, Any], Path]] | None = None
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Serves runs and artifacts; yields the environment of a client in another process, and the requests."""
    content = {"nodes": nodes, "artifacts": artifacts or {}, "requests": []}
    handler = type("Server", (WandbServer,), content)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        env |= {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "a" * 40}
        yield env | {"WANDB_ERROR_REPORTING": "false"}, handler.requests
        server.shutdown()
