"""A trace of every answered request, handed to a process of its own that sends it to Weave.

Answering never waits for it: a thread writes what was answered to small files, another process does the rest, and
where the queue or the disk is full a trace is dropped and counted.
"""

import itertools
import json
import os
import queue
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prometheus_client import Counter

from ppe_lora.artifacts import write_text
from ppe_lora.errors import ServeError
from ppe_lora.locks import holding
from ppe_lora.private import keep_out_of_git
from ppe_lora.recipe.track import Track, WeaveTrack
from ppe_lora.serving.backend import Ask, Reply
from ppe_lora.tracking.follower import Place, answered_dir, launch

_QUEUE = 10_000
"""Answers that may wait for the thread."""
_SEGMENT_S = 1.0
"""How often what waits becomes a file."""
_MOST_FILES = 5_000
"""Files that may wait to be sent: over an hour of a busy server, then the newest traces are dropped."""


class Traces:
    """Records answers for the process that sends them.

    Args:
        project: `entity/project` of Weave.
        folder: Where traces wait until they are sent; what an earlier server left there is sent, too. It holds requests
            as people wrote them.
        dropped: Counts answers without a trace.

    Raises:
        ServeError: The folder cannot be written, or no process can be started.
        InUse: Another server writes there: its traces would go to this one's project.
    """

    def __init__(self, project: str, folder: Path, dropped: Counter) -> None:
        self._answered = answered_dir(folder)
        self._dropped = dropped
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue(_QUEUE)
        self._closing = threading.Event()
        self._lock = ExitStack()
        self._lock.enter_context(holding(folder, "name another folder with --trace-dir"))
        try:
            self._answered.mkdir(parents=True, exist_ok=True)
            keep_out_of_git(folder)
            self._follower = launch(Place(folder, "served"), folder, Track(weave=WeaveTrack(project=project)))
        except OSError as error:
            raise ServeError(f"--trace-dir: expected a folder that can be written; got {folder}: {error}") from error
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def record(self, asks: list[Ask], model: str, replies: list[Reply], latency_ms: float) -> None:
        """Hand answers over; returns at once."""
        now = time.time()
        for ask, reply in zip(asks, replies, strict=True):
            spread = {key: one._asdict() for key, one in reply.spread.items()} if reply.spread else None
            answered = {
                "time": now,
                "request": ask.request,
                "context": dict(ask.context) if ask.context else None,
                "language": ask.language,
                "model_id": model,
                "parameters": reply.parameters,
                "uncertainty": spread,
                "latency_ms": latency_ms,
            }
            try:
                self._queue.put_nowait(answered)
            except queue.Full:
                self._dropped.inc()

    def close(self) -> None:
        """Write what waits, and let the other process send the rest by itself."""
        self._closing.set()
        self._thread.join()
        if self._follower.stdin is not None:
            self._follower.stdin.close()
        self._lock.close()

    def _write(self) -> None:
        start = f"{time.time_ns():020d}-{os.getpid()}"
        for number in itertools.count():
            last = self._closing.wait(_SEGMENT_S)
            waiting = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
            if waiting:
                self._write_segment(f"{start}-{number:09d}", waiting)
            if last:
                return

    def _write_segment(self, name: str, waiting: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(answered) + "\n" for answered in waiting)
        try:
            if sum(1 for _ in self._answered.parent.glob("*/*.jsonl")) >= _MOST_FILES:
                raise OSError("too many files wait to be sent")
            write_text(self._answered / f"{name}.jsonl", lines, private=True)
        except OSError:
            self._dropped.inc(len(waiting))
