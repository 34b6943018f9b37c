"""Endpoints and an event loop for tests of the teacher client: no server, no waiting."""

import asyncio
import json
import os
import random
import re
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ppe_lora.corpus.teachers import Ask
from ppe_lora.corpus.teachers.llm.client import Answers, Client
from ppe_lora.corpus.teachers.llm.exchange import Question, Reply, Unavailable
from ppe_lora.corpus.teachers.llm.raw_log import RawLog
from ppe_lora.corpus.teachers.llm.servers import Server
from ppe_lora.corpus.teachers.scripted import ScriptedTeacher
from ppe_lora.tasks.scores import ScoresTask

PROMPT_TOKENS, COMPLETION_TOKENS = 20, 10


def question(number: int, **sampling: Any) -> Question:
    """The question of that number; 100 tokens of completion at most."""
    message = {"role": "user", "content": f"question {number}"}
    return Question("m", (message,), {"max_tokens": 100, **sampling})


def questions(count: int) -> list[Question]:
    """Different questions."""
    return [question(number) for number in range(count)]


class FakeEndpoint:
    """Answers `answer to <prompt>` after `latency_s`, unless a fault comes first.

    Args:
        name: The endpoint's.
        latency_s: Seconds until an answer.
        fault: Called with the question and how often it was asked before; what it returns is raised.
    """

    def __init__(
        self,
        name: str = "fake",
        latency_s: float = 0.1,
        fault: Callable[[Question, int], Exception | None] = lambda question, before: None,
    ) -> None:
        self.name, self.latency_s, self.fault = name, latency_s, fault
        self.sent_at: list[float] = []
        self.answered: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0
        self.closed = False
        self.check_error: Exception | None = None

    async def check(self, model: str) -> None:
        if self.check_error is not None:
            raise self.check_error

    async def ask(self, question: Question) -> Reply:
        self.sent_at.append(asyncio.get_running_loop().time())
        before = self.asked[question.key]
        self.asked[question.key] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.latency_s)
        finally:
            self.in_flight -= 1
        if (error := self.fault(question, before)) is not None:
            raise error
        self.answered[question.key] += 1
        return reply_to(question)

    async def close(self) -> None:
        self.closed = True


def reply_to(question: Question) -> Reply:
    """The one answer every fake gives to a question."""
    text = f"answer to {question.messages[-1]['content']}"
    return Reply(question.key, text, "stop", PROMPT_TOKENS, COMPLETION_TOKENS)


def random_faults(share: float, seed: int = 0) -> Callable[[Question, int], Exception | None]:
    """Faults of all kinds by chance, but no 429."""
    rng = random.Random(seed)
    kinds = [
        lambda: Unavailable("fake: 500", may_be_billed=False),
        lambda: Unavailable("fake: connection reset"),
        lambda: Unavailable("fake: truncated JSON"),
        lambda: TimeoutError(),
    ]
    return lambda question, before: rng.choice(kinds)() if rng.random() < share else None


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when nothing else is to do; work for threads runs at once."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        self._now += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("deadlock: nothing is scheduled")
        if not ready and timeout > 0:
            self._loop.jump(timeout)
        return ready


def run_virtual(main: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def ask(folder: Path, asked: list[Question], *servers: Server | FakeEndpoint, **options: Any) -> Answers:
    """One run on a virtual clock, without fsync: every reply would be a commit of its own."""
    on_meter, shard = options.pop("on_meter", None), options.pop("shard", None)
    pool = [one if isinstance(one, Server) else Server(one) for one in servers]

    async def main() -> Answers:
        return await Client(pool, log, **options).answer(asked, on_meter)

    with pytest.MonkeyPatch.context() as patch, RawLog(folder, shard) as log:
        patch.setattr(os, "fsync", lambda file: None)
        answers: Answers = run_virtual(main())
    return answers


def most_in_a_window(times: Iterable[float], window_s: float) -> int:
    """The largest number of times in any half-open interval of that length."""
    ordered = sorted(times)
    most = first = 0
    for last, at in enumerate(ordered):
        while at - ordered[first] >= window_s - 1e-6:
            first += 1
        most = max(most, last - first + 1)
    return most


_SCRIPTED = ScriptedTeacher(ScoresTask(), 5.0, 0)


def write_request(body: Mapping[str, Any]) -> str:
    """What a model would answer: a request that depends on the question only, and now and then something else."""
    said, seed = body["messages"][-1]["content"], body.get("seed", body.get("random_seed"))
    if seed % 25 == 0:
        return "I'm sorry, I can't do that."
    if seed % 25 == 1:
        return json.dumps({"request": "energy please, lots of it"})
    target = {key: float(value) for key, value in re.findall(r"- (\w+)(?:: |：)(\d+)", said)}
    ask = Ask(seed, target, "en" if said.startswith("Scores") else "ja", "long", None)
    return json.dumps({"request": _SCRIPTED.phrase([ask])[0].text}, ensure_ascii=False)
