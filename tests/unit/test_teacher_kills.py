"""SIGKILL at any moment of asking, then the same command again: nothing lost, nothing logged is asked twice."""

import asyncio
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

from ppe_lora.corpus.teachers.llm.asking import Settings
from ppe_lora.corpus.teachers.llm.client import Client
from ppe_lora.corpus.teachers.llm.exchange import Question, Reply
from ppe_lora.corpus.teachers.llm.raw_log import RawLog, read_replies
from ppe_lora.corpus.teachers.llm.servers import Server
from tests.teacher_fakes import FakeEndpoint, questions, random_faults, reply_to

COUNT, IN_FLIGHT, KILLS = 2000, 16, 20
KEY_BYTES = 17
"""Of a key and its line end."""


class Witness(FakeEndpoint):
    """Notes every question in a file before it answers, as a server's own log would."""

    def __init__(self, notes: Path, seed: int) -> None:
        super().__init__(latency_s=0.03, fault=random_faults(0.02, seed))
        self._notes = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def ask(self, question: Question) -> Reply:
        os.write(self._notes, f"{question.key}\n".encode())
        return await super().ask(question)


def run(folder: Path, notes: Path, seed: int) -> None:
    """What a process does that may be killed."""
    settings = Settings(concurrency=IN_FLIGHT, backoff_s=0.05)
    with RawLog(folder) as log, Client([Server(Witness(notes, seed))], log, settings=settings) as client:
        client.ask_all(questions(COUNT))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_twenty_kills_lose_nothing_and_ask_nothing_twice(tmp_path: Path) -> None:
    """A reply in a buffer, a half line, or a key forgotten at a restart: each costs money or rows, and silently."""
    processes = multiprocessing.get_context("fork")  # the others import everything again for each process
    rng = random.Random(7)
    folder, notes = tmp_path / "log", tmp_path / "notes"
    killed = known = 0
    for number in range(KILLS + 1):
        logged = set(read_replies(folder))
        assert len(logged) >= known
        known = len(logged)
        seen = len(notes.read_text().splitlines()) if notes.exists() else 0
        process = processes.Process(target=run, args=(folder, notes, number))
        process.start()
        if number < KILLS:
            # Every fifth kill comes at the start, while the log is read; the others while questions are asked.
            while number % 5 and process.is_alive() and _size(notes) <= KEY_BYTES * seen:
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.25))
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join(60)
        killed += process.exitcode == -signal.SIGKILL
        asked = notes.read_text().splitlines()[seen:] if notes.exists() else []
        assert not logged & set(asked)
        # Beyond what was logged now, only what was in flight and what failed by chance has been asked for.
        assert len(set(asked) - set(read_replies(folder))) <= IN_FLIGHT + 0.1 * len(asked)
    assert killed == KILLS
    asked_for = questions(COUNT)
    assert read_replies(folder) == {one.key: reply_to(one) for one in asked_for}
    assert known > 100
    run(tmp_path / "uninterrupted", tmp_path / "notes2", 0)
    assert read_replies(tmp_path / "uninterrupted") == read_replies(folder)
    assert len(notes.read_text().splitlines()) <= 1.1 * COUNT + KILLS * IN_FLIGHT


def test_a_cancelled_run_leaves_the_log_usable(tmp_path: Path) -> None:
    """A notebook that is interrupted cancels the task: nothing may hang, and what is in the log stays."""

    async def main(log: RawLog) -> None:
        client = Client([Server(FakeEndpoint(latency_s=0.02))], log)
        with_limit = asyncio.wait_for(client.answer(questions(5000)), 0.3)
        try:
            await with_limit
        except TimeoutError:
            return
        raise AssertionError("not cancelled")

    with RawLog(tmp_path) as log:
        asyncio.run(main(log))
        assert log.replies
        assert read_replies(tmp_path) == log.replies
