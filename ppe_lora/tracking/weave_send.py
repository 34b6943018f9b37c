"""Sends a write-ahead log of Weave to its server, and loses nothing when the server fails.

The SDK's own sender drops a record that the server did not take, and with the last record the whole log. This one
stops instead, and goes on from the same place the next time. It sends whole calls in batches, as the SDK does online.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weave.trace.env import weave_trace_server_url
from weave.trace.serialization.digest import compute_object_digest
from weave.trace_server_bindings.remote_http_trace_server import RemoteHTTPTraceServer
from weave.wandb_interface.context import get_wandb_auth_context

from ppe_lora.artifacts import write_text
from ppe_lora.errors import RunError

BATCH_CALLS = 200
_STARTED = (
    "project_id", "id", "trace_id", "op_name", "started_at", "display_name", "parent_id", "thread_id", "turn_id",
    "attributes", "inputs", "otel_dump", "wb_user_id", "wb_run_id", "wb_run_step",
)  # fmt: skip
_ENDED = ("ended_at", "output", "summary", "exception", "wb_run_step_end")


def send(log: Path, project: str) -> None:
    """Send every record of a finished log; returns when the server has acknowledged all of them.

    How many calls have arrived is kept beside the log, so a second try sends none of them again. Objects, tables and
    files are sent again: the server knows them by their content.

    Args:
        log: A log that is no longer written.
        project: `entity/project`; created where it does not exist.
    """
    server = RemoteHTTPTraceServer(weave_trace_server_url())
    credentials = get_wandb_auth_context()
    if credentials is not None:
        server.set_auth(credentials)
    entity, name = project.split("/")
    server.ensure_project_exists(entity, name)
    progress = progress_of(log)
    arrived = int(progress.read_text(encoding="utf-8")) if progress.is_file() else 0
    calls = itertools.islice(_calls(log, server), arrived, None)
    while batch := list(itertools.islice(calls, BATCH_CALLS)):
        server.calls_complete({"batch": batch})
        arrived += len(batch)
        write_text(progress, str(arrived))


def progress_of(log: Path) -> Path:
    """Where the number of a log's calls that have arrived is kept."""
    return log.with_suffix(".arrived")


def _calls(log: Path, server: RemoteHTTPTraceServer) -> Iterator[dict[str, Any]]:
    """The calls of a log in the order of their ends. What they refer to is sent on the way.

    References to objects are mended: an object that refers to others has another digest on the server, which stores
    references under an id of the project that nobody knows offline.
    """
    started: dict[str, dict[str, Any]] = {}
    renamed: dict[str, str] = {}
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            known = line
            for local, remote in renamed.items():
                known = known.replace(local, remote)
            record = json.loads(known)
            request = record["req"]
            match record["type"]:
                case "call_start":
                    started[request["start"]["id"]] = request["start"]
                case "call_end":
                    start, end = started.pop(request["end"]["id"]), request["end"]
                    yield {name: start.get(name) for name in _STARTED} | {name: end.get(name) for name in _ENDED}
                case "obj_create":
                    local = compute_object_digest(json.loads(line)["req"]["obj"]["val"])
                    renamed[local] = server.obj_create(request).digest
                case "table_create":
                    server.table_create(request)
                case "file_create":
                    content = request["content"].encode()
                    server.file_create({"project_id": request["project_id"], "file": (request["name"], content)})
                case other:
                    raise RunError(f"{log}: expected records of this package's Weave; got {other!r}")
