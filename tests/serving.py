"""A finished run to serve, and a server of the real application on a free port, in a thread of this process."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2

from ppe_lora.recipe import load_recipe
from ppe_lora.serving.backend import Ask, Backend, Reply
from ppe_lora.serving.gate import Gate
from ppe_lora.serving.metrics import Metrics
from ppe_lora.serving.server import DrainingServer, build_app, listen, make_server
from ppe_lora.serving.settings import Settings
from ppe_lora.serving.sources import name_models, open_models, parse_source
from tests.runs import TASK, make_data, make_recipe

SECTIONS = (
    "train: {epochs: 2, rows_per_step: 4, rows_per_micro_step: 4, learning_rate: 3e-3}",
    "evaluate: {gate: 0.5, latency_rows: 0, read_out: calibrated}",
    "export: {verify_rows: 5}",
)


def make_run(folder: Path, speaker: Path) -> Path:
    """Train, evaluate and export a tiny run with a calibration; return `checkpoints/run`."""
    from ppe_lora import pipeline

    make_data(folder / "data" / "d", train=60, valid=24, test=24)
    recipe = load_recipe(make_recipe(folder, speaker, *SECTIONS))
    before = Path.cwd()
    os.chdir(folder)
    try:
        for stage in (pipeline.train, pipeline.evaluate, pipeline.export):
            stage(recipe)
    finally:
        os.chdir(before)
    return folder / "checkpoints" / "run"


class Running(NamedTuple):
    """A server that answers."""

    url: str
    server: DrainingServer
    gate: Gate
    metrics: Metrics

    def client(self, **options: object) -> httpx2.Client:
        """A client of it."""
        return httpx2.Client(base_url=self.url, timeout=30, **options)


@contextmanager
def serving(
    models: Mapping[str, Backend] | str | list[str], api_key: str | None = None, **settings: object
) -> Iterator[Running]:
    """Serve backends, or what the sources name, until the block ends; then everything is stopped."""
    chosen = Settings(**{"port": 0, **settings})
    metrics = Metrics()
    if isinstance(models, str):
        models = [models]
    if isinstance(models, list):
        observe = lambda name, rows: metrics.batches.labels(name).observe(rows)  # noqa: E731
        models = open_models(name_models([parse_source(one) for one in models], chosen), chosen, observe)
    gate = build_app(dict(models), chosen, metrics, api_key)
    listener = listen(chosen)
    host, port = listener.getsockname()[:2]
    server = make_server(gate, listener, chosen)
    thread = threading.Thread(target=server.run, args=[[listener]])
    thread.start()
    running = Running(f"http://{host}:{port}", server, gate, metrics)
    try:
        _wait_until_it_answers(running)
        yield running
    finally:
        server.drain()
        thread.join(timeout=30)
        assert not thread.is_alive()


def _wait_until_it_answers(running: Running) -> None:
    deadline = time.monotonic() + 20
    with running.client() as client:
        while True:
            try:
                client.get("/health")
                return
            except httpx2.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.02)


class Scripted:
    """A backend that answers what it is told, or fails as it is told."""

    task = TASK
    kind = "scripted"
    waiting = 0

    def __init__(self, *values: float, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.values = values or (10, 20)
        self.error = error
        self.seconds = seconds
        self.asked: list[Ask] = []

    async def answer(self, asks: list[Ask]) -> list[Reply]:
        self.asked += asks
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return [Reply(dict(zip(self.task.keys, self.values, strict=True)), None, False, 7, 5) for _ in asks]

    def is_alive(self) -> bool:
        return self.error is None

    async def close(self) -> None:
        pass
