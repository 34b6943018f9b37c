"""The queue in front of a model: what waits is worked on together, and nobody pays for a neighbour."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError

import pytest

from ppe_lora.serving.batching import Batcher, QueueFull


class Work:
    """Doubles numbers, in batches it remembers; it can be held, and it chokes on 13."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.begun = threading.Event()

    def __call__(self, asked: Sequence[int]) -> list[int]:
        self.batches.append(list(asked))
        self.begun.set()
        self.go.wait(5)
        if 13 in asked:
            raise ValueError("thirteen")
        return [2 * one for one in asked]


@pytest.fixture
def work():
    return Work()


def batcher(work, batch_rows=4, queue_rows=8) -> Batcher[int, int]:
    return Batcher(work, batch_rows, queue_rows, threading.Lock())


def test_what_comes_during_a_batch_makes_the_next_one(work):
    """A server that decodes one at a time, or one that waits for a batch to fill up."""
    queue = batcher(work)
    first = queue.submit([1])
    assert work.begun.wait(5)
    later = [queue.submit([number])[0] for number in range(2, 8)]
    work.go.set()
    assert [future.result(5) for future in [*first, *later]] == [2, 4, 6, 8, 10, 12, 14]
    assert work.batches == [[1], [2, 3, 4, 5], [6, 7]]
    queue.close()


def test_a_full_queue_refuses_all_or_nothing(work):
    """Half a batch request in the queue would be decoded for nobody."""
    queue = batcher(work, queue_rows=3)
    running = queue.submit([1])
    assert work.begun.wait(5)
    waiting = queue.submit([2, 3])
    with pytest.raises(QueueFull):
        queue.submit([4, 5])
    assert queue.waiting == 2
    third = queue.submit([6])
    work.go.set()
    assert [future.result(5) for future in [*running, *waiting, *third]] == [2, 4, 6, 12]
    queue.close()


def test_one_bad_request_does_not_take_down_its_batch(work):
    queue = batcher(work)
    running = queue.submit([1])
    assert work.begun.wait(5)
    good, bad, other = queue.submit([2, 13, 4])
    work.go.set()
    assert (running[0].result(5), good.result(5), other.result(5)) == (2, 4, 8)
    with pytest.raises(ValueError, match="thirteen"):
        bad.result(5)
    assert queue.is_alive()
    queue.close()


def test_nobody_decodes_what_nobody_waits_for(work):
    """Clients that time out and try again would bury the model under answers for no one."""
    queue = batcher(work)
    running = queue.submit([1])
    assert work.begun.wait(5)
    gone, here = queue.submit([2, 3])
    assert gone.cancel()
    work.go.set()
    assert (running[0].result(5), here.result(5)) == (2, 6)
    with pytest.raises(CancelledError):
        gone.result(0)
    assert work.batches == [[1], [3]]
    queue.close()


def test_closing_answers_what_is_queued_and_takes_no_more(work):
    queue = batcher(work)
    futures = queue.submit([1, 2, 3])
    work.go.set()
    queue.close()
    assert [future.result(0) for future in futures] == [2, 4, 6]
    assert not queue.is_alive()
    with pytest.raises(QueueFull):
        queue.submit([4])


def test_models_of_one_device_take_turns(work):
    """Two models on two cores at once are slower than one after the other."""
    device, running, most = threading.Lock(), [], []

    def slow(asked):
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()
        return list(asked)

    queues = [Batcher(slow, 4, 8, device) for _ in range(2)]
    futures = [future for _ in range(3) for queue in queues for future in queue.submit([1])]
    assert [future.result(5) for future in futures] == [1] * 6
    assert max(most) == 1
    for queue in queues:
        queue.close()
