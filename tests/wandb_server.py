"""A loopback server for the part of W&B's API that its client uses for runs and artifacts.

Runs keep what was sent (a step sent twice is kept twice), artifacts the names of their files, and whether the run
made or used them. Queries it does not know get an empty answer and are listed.
"""

import contextlib
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.tracker_server import serve

_PROJECT = {"id": "p1", "name": "ppe", "entity": {"id": "e1", "name": "team"}}


@dataclass
class SentRun:
    """One run as the server has it."""

    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    times_finished: int = 0


@dataclass
class SentArtifact:
    """One version of an artifact: which files it has, and which of them were uploaded."""

    name: str
    kind: str
    digest: str
    uploaded: list[str] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    committed: bool = False
    used: bool = False


@dataclass
class WandbReceived:
    """Everything the clients sent."""

    runs: dict[str, SentRun] = field(default_factory=dict)
    artifacts: list[SentArtifact] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    requests: int = 0
    changes: int = 0
    """Requests that changed something; logging in asks questions only."""

    def artifact(self, name: str) -> SentArtifact:
        """The only version of an artifact."""
        (found,) = [artifact for artifact in self.artifacts if artifact.name == name]
        return found


class WandbApi:
    """Answers the client's GraphQL operations by name, the stream of a run's files, and uploads."""

    def __init__(self) -> None:
        self.received = WandbReceived()
        self.url = ""

    def answer(self, path: str, body: bytes, headers: Any) -> tuple[int, Any]:
        self.received.requests += 1
        if headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            name = operation.group(1) if operation else ""
            self.received.changes += asked["query"].strip().startswith("mutation")
            variables = asked.get("variables") or {}
            handler = getattr(self, f"_{name}", None)
            if handler is None:
                self.received.unknown.append(name)
                return 200, {"data": {}}
            return 200, {"data": handler(variables.get("input", variables))}
        if path.endswith("/file_stream"):
            self.received.changes += 1
            self._stream(path.split("/")[-2], json.loads(body))
        if path.startswith("/manifest/"):
            self.received.artifacts[int(path.split("/")[-1])].manifest = json.loads(body)
        return 200, {}

    def _stream(self, run_id: str, body: dict[str, Any]) -> None:
        run = self.received.runs[run_id]
        for name, part in body.get("files", {}).items():
            if name == "wandb-history.jsonl":
                run.history += [json.loads(line) for line in part["content"]]
            if name == "wandb-summary.json":
                run.summary |= json.loads(part["content"][-1])
        run.times_finished += bool(body.get("complete"))

    def _Viewer(self, _: Any) -> Any:  # noqa: N802 (the names of the operations)
        viewer = {"id": "u1", "entity": "team", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer}

    def _Project(self, asked: Any) -> Any:  # noqa: N802
        return {"project": {"name": asked["name"]}}

    def _ServerFeaturesQuery(self, _: Any) -> Any:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, asked: Any) -> Any:  # noqa: N802
        run = self.received.runs.get(asked["name"])
        bucket = None
        if run is not None:
            bucket = {
                "id": "b1", "name": asked["name"], "displayName": "run", "tags": [], "notes": "",
                "summaryMetrics": json.dumps(run.summary), "config": json.dumps(run.config), "wandbConfig": '{"t": 1}',
                "logLineCount": 0, "historyLineCount": len(run.history), "eventsLineCount": 0, "eventsTail": "[]",
                "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
            }  # fmt: skip
        return {"model": {**_PROJECT, "bucket": bucket}}

    def _UpsertBucket(self, asked: Any) -> Any:  # noqa: N802
        inserted = asked["name"] not in self.received.runs
        run = self.received.runs.setdefault(asked["name"], SentRun())
        run.config |= json.loads(asked.get("config") or "{}")
        bucket = {
            "id": "b1", "name": asked["name"], "displayName": asked["displayName"], "description": "",
            "config": json.dumps(run.config), "sweepName": None, "project": _PROJECT,
            "historyLineCount": len(run.history),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _CreateRunFiles(self, asked: Any) -> Any:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in asked["files"]]
        return {"createRunFiles": {"runID": "b1", "uploadHeaders": [], "files": files}}

    def _OrganizationCoreWeaveOrganizationID(self, _: Any) -> Any:  # noqa: N802
        return {"entity": {"organization": None}}

    def _ArtifactType(self, _: Any) -> Any:  # noqa: N802
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, asked: Any) -> Any:  # noqa: N802
        name, digest = asked["artifactCollectionName"], asked["digest"]
        versions = [
            number for number, one in enumerate(self.received.artifacts) if (one.name, one.digest) == (name, digest)
        ]
        if not versions:
            self.received.artifacts.append(SentArtifact(name, asked["artifactTypeName"], digest))
            versions = [len(self.received.artifacts) - 1]
        state = "COMMITTED" if self.received.artifacts[versions[0]].committed else "PENDING"
        artifact = {"id": str(versions[0]), "state": state, "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _manifest(self, number: str) -> Any:
        return {"id": number, "file": {"id": "f", "uploadUrl": f"{self.url}/manifest/{number}", "uploadHeaders": []}}

    def _CreateArtifactManifest(self, asked: Any) -> Any:  # noqa: N802
        return {"createArtifactManifest": {"artifactManifest": self._manifest(asked["artifactID"])}}

    def _UpdateArtifactManifest(self, asked: Any) -> Any:  # noqa: N802
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(asked["artifactManifestID"])}}

    def _CreateArtifactFiles(self, asked: Any) -> Any:  # noqa: N802
        edges = []
        for spec in asked["artifactFiles"]:
            self.received.artifacts[int(spec["artifactID"])].uploaded.append(spec["name"])
            node = {"storagePath": spec["name"], "uploadUrl": f"{self.url}/upload", "uploadHeaders": []}
            edges.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": spec["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, asked: Any) -> Any:  # noqa: N802
        artifact = self.received.artifacts[int(asked["artifactID"])]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": artifact.digest}}}

    def _ArtifactByID(self, asked: Any) -> Any:  # noqa: N802
        artifact = self.received.artifacts[int(asked["id"])]
        when = "2026-01-01T00:00:00Z"
        project = {**_PROJECT, "internalId": "p1"}
        sequence = {"__typename": "ArtifactSequence", "name": artifact.name, "project": project}
        found = {
            "__typename": "Artifact", "id": asked["id"], "artifactSequence": sequence, "versionIndex": 0,
            "artifactType": {"name": artifact.kind}, "description": None, "metadata": None, "ttlDurationSeconds": -1,
            "ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED", "size": 1,
            "digest": artifact.digest, "commitHash": None, "fileCount": 1, "createdAt": when, "updatedAt": when,
            "aliases": [],
        }  # fmt: skip
        return {"artifact": found}

    def _UseArtifact(self, asked: Any) -> Any:  # noqa: N802
        self.received.artifacts[int(asked["artifactID"])].used = True
        return {"useArtifact": {"artifact": {"id": asked["artifactID"]}}}


@contextlib.contextmanager
def wandb_server() -> Iterator[tuple[str, WandbReceived]]:
    """A W&B server on a free port, and what it gets."""
    api = WandbApi()
    with serve(api.answer) as url:
        api.url = url
        yield url, api.received
