"""Real servers on loopback, started as an export's own scripts start them."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2

from ppe_lora.corpus.rows import Row
from ppe_lora.engines.client import Engine
from ppe_lora.errors import EngineError
from tests import serving as own_server
from tests.teacher_servers import free_port

READY_S = 1200
"""A server of Python may need minutes to import on a busy machine."""


@contextmanager
def serving(
    command: Sequence[str | Path], engine: type[Engine], model: str, log: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Start a server with `--host` and `--port` behind its command; yield its URL once it serves the model."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    started = time.monotonic()
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**own, "HF_HUB_OFFLINE": "1", **environment}, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        while (says := _check(engine, url, model)) is not None:
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() - started < READY_S, says
            time.sleep(1)
        print(f"\n{model} is ready after {time.monotonic() - started:.0f} s", flush=True)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _check(engine: type[Engine], url: str, model: str) -> str | None:
    async def run() -> None:
        async with engine(url, model) as one:
            await one.check()

    try:
        asyncio.run(run())
    except EngineError as error:
        return str(error)
    return None


def ask_client(folder: Path, url: str, model: str, request: str) -> dict[str, float]:
    """What the client beside an export prints for a request."""
    done = subprocess.run(
        ["python3", folder / "client.py", request, "--url", url, "--model", model],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scores: dict[str, float] = json.loads(done.stdout)
    return scores


def ask_in_front(folder: Path, url: str, model: str, rows: Sequence[Row]) -> list[dict[str, float]]:
    """What `ppe-lora serve FOLDER@URL` answers to rows' requests."""
    with own_server.serving(f"m={folder}@{url}/v1#{model}", answer_timeout_s=1800.0) as running:
        asked = [{"request": row.request, "language": row.language, "context": row.context} for row in rows]
        told = httpx2.post(f"{running.url}/api/interpreter/batch", json={"requests": asked}, timeout=1800)
    assert told.status_code == 200, told.text
    return [one["parameters"] for one in told.json()["results"]]
