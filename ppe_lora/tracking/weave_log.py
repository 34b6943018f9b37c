"""Weave's write-ahead log as the only thing its client writes to: no server is asked, and a log is whole or absent."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weave.durability import wal_manager
from weave.trace.context.weave_client_context import set_weave_client_global
from weave.trace.settings import UserSettings, parse_and_apply_settings
from weave.trace.weave_client import WeaveClient
from weave.trace_server_bindings.remote_http_trace_server import RemoteHTTPTraceServer


@contextmanager
def write_ahead(project: str, path: Path) -> Iterator[WeaveClient]:
    """A client whose records are in `path` when the block ends, one JSON record per line; an error leaves no log.

    Args:
        project: `entity/project`.
        path: The new log. The folder `.writing` beside it is used on the way.
    """
    staging = path.parent / ".writing"
    shutil.rmtree(staging, ignore_errors=True)
    client = _offline_client(project, staging)
    try:
        yield client
    finally:
        client.finish(use_progress_bar=False)  # waits for its threads, then closes the log
        set_weave_client_global(None)
    (written,) = staging.rglob("*.jsonl")
    written.rename(path)
    shutil.rmtree(staging)


def _offline_client(project: str, staging: Path) -> WeaveClient:
    parse_and_apply_settings(
        UserSettings(
            enable_wal=True,
            disable_wal_sender=True,
            print_call_link=False,
            implicitly_patch_integrations=False,
            capture_client_info=False,
            capture_system_info=False,
            client_parallelism=0,  # records in the order of the calls
        )
    )
    # The SDK has no setting for it, and its own place is shared by all runs.
    wal_manager.WAL_ROOT = str(staging)  # type: ignore[attr-defined]
    entity, name = project.split("/")
    client = WeaveClient(entity, name, RemoteHTTPTraceServer("http://127.0.0.1:9"), ensure_project_exists=False)
    set_weave_client_global(client)
    return client
