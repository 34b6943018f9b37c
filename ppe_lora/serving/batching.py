"""Requests of many clients, decoded together: one thread per model, which takes what waits whenever it is free."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from ppe_lora.serving.failures import log_failure

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class QueueFull(Exception):
    """More requests wait than may."""


class Batcher(Generic[Asked, Answered]):
    """A thread that works on batches of what was submitted, oldest first.

    Nothing waits for a batch to fill up: the first request is worked on at once, and those that come meanwhile make
    the next batch.

    Args:
        work: Answers a batch, in order. Should it raise, each of the batch is tried alone, so that one request cannot
            take down its neighbours.
        batch_rows: Largest batch.
        queue_rows: How many may wait.
        device: Held while working: models on one device take turns instead of slowing each other down.
        observe: Called with the size of each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Asked]], Sequence[Answered]],
        batch_rows: int,
        queue_rows: int,
        device: threading.Lock,
        observe: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._work = work
        self._batch_rows = batch_rows
        self._queue_rows = queue_rows
        self._device = device
        self._observe = observe
        self._waiting: deque[tuple[Asked, Future[Answered]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, asked: Sequence[Asked]) -> list[Future[Answered]]:
        """Queue all of them, or none. A future that is cancelled before its turn costs nothing.

        Raises:
            QueueFull: Not all of them fit, or the thread has stopped.
        """
        with self._changed:
            while self._waiting and self._waiting[0][1].cancelled():
                self._waiting.popleft()
            if self._closed or len(self._waiting) + len(asked) > self._queue_rows:
                raise QueueFull
            futures: list[Future[Answered]] = [Future() for _ in asked]
            self._waiting.extend(zip(asked, futures, strict=True))
            self._changed.notify()
        return futures

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def is_alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive() and not self._closed

    def close(self, wait_s: float = 10.0) -> None:
        """Answer what is queued, then stop. Returns when the thread has ended, or after `wait_s`: by then nobody waits
        for an answer, and a process must be able to end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(wait_s)

    def _run(self) -> None:
        while self._wait():
            with self._device:
                batch = self._take()  # now, not before the wait for the device: more may have come meanwhile
                if batch:
                    self._observe(len(batch))
                    self._answer(batch)

    def _wait(self) -> bool:
        """Wait for requests; False when there are none and will be none."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return bool(self._waiting)

    def _take(self) -> list[tuple[Asked, "Future[Answered]"]]:
        batch: list[tuple[Asked, Future[Answered]]] = []
        with self._changed:
            while self._waiting and len(batch) < self._batch_rows:
                asked, future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    batch.append((asked, future))
        return batch

    def _answer(self, batch: Sequence[tuple[Asked, "Future[Answered]"]]) -> None:
        try:
            answers = self._work([asked for asked, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)  # who asked logs it
            else:
                log_failure(f"a batch of {len(batch)}; each request is tried alone", error)
                for one in batch:
                    self._answer([one])
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)
