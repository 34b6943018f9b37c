"""A crowd at the server: nobody gets an error or another's answer, and memory does not grow."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.runs import make_rows

ROOT = Path(__file__).parents[2]
CLIENTS = 32
SECONDS = 30


@pytest.mark.slow
def test_thirty_two_clients_get_their_own_answers_and_memory_stays_flat(served_run: Path) -> None:
    """Answers that go to the wrong client, a cache that keeps every request, a queue that loses one. One score in
    thousands may round to its neighbour, since a batch adds up in another order."""
    requests = [row.request for row in make_rows(60, seed=11)]
    process = subprocess.Popen(
        [sys.executable, "-m", "ppe_lora", "serve", str(served_run), "--port", "0"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        with httpx2.Client(base_url=address, timeout=60) as one:
            alone = {request: ask(one, request) for request in requests}
        server = psutil.Process(process.pid)
        memory_mb = []
        end = time.monotonic() + SECONDS
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            watching = pool.submit(watch, server, memory_mb, end)
            crowd = [pool.submit(keep_asking, address, requests, number, end) for number in range(CLIENTS)]
            answers = [answer for client in crowd for answer in client.result()]
            watching.result()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
    far = [max(abs(found[key] - alone[request][key]) for key in found) for request, found in answers]
    assert len(answers) > 10 * CLIENTS
    assert max(far) <= 1
    assert sum(far) <= len(answers) / 200
    half = len(memory_mb) // 2
    assert max(memory_mb[half:]) <= max(memory_mb[:half]) * 1.05


def ask(client: httpx2.Client, request: str) -> dict[str, float]:
    response = client.post("/api/interpreter", json={"request": request})
    assert response.status_code == 200, response.text
    return response.json()["parameters"]


def keep_asking(address: str, requests: list[str], number: int, end: float) -> list[tuple[str, dict[str, float]]]:
    answers = []
    with httpx2.Client(base_url=address, timeout=60) as client:
        while time.monotonic() < end:
            request = requests[number % len(requests)]
            answers.append((request, ask(client, request)))
            number += 7
    return answers


def watch(server: psutil.Process, memory_mb: list[float], end: float) -> None:
    """Anonymous resident memory, twice a second."""
    while time.monotonic() < end:
        memory = server.memory_info()
        memory_mb.append((memory.rss - memory.shared) / 2**20)
        time.sleep(0.5)
