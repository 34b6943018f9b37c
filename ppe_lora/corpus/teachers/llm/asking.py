"""The workers of the client: attempts, backoff, and a clean stop on a signal, a spent budget or a hopeless cause."""

import asyncio
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from ppe_lora.corpus.teachers.llm.budget import Ledger, Usage, usage_of, worst_case
from ppe_lora.corpus.teachers.llm.exchange import Question, Refused, Reply, Throttled, Unavailable
from ppe_lora.corpus.teachers.llm.meter import Meter, Pace
from ppe_lora.corpus.teachers.llm.raw_log import RawLog
from ppe_lora.corpus.teachers.llm.servers import AskingFailed, Member, Pool
from ppe_lora.errors import Interrupted

OnMeter = Callable[[Meter], None]
OnReply = Callable[[Reply], None]
_METER_EVERY_S = 0.5
_NUMBERS = re.compile(r"[0-9a-f]{8,}|\d+")
"""What differs between two messages of one reason: identifiers, times."""


class Settings(NamedTuple):
    """How hard to try."""

    concurrency: int = 64
    """Questions under way at once, over all servers."""
    attempts: int = 8
    """Per question. A 429 does not count: it says nothing about the question."""
    timeout_s: float = 120.0
    """Of one attempt."""
    backoff_s: float = 0.5
    """Upper end of the random wait before the second attempt; it doubles with each further one."""
    longest_backoff_s: float = 30.0
    patience_s: float = 300.0
    """Without a single answer from any server, while all are dead or answer 429: then asking stops."""
    grace_s: float = 10.0
    """After SIGTERM or Ctrl-C, for the requests in flight."""
    hopeless_after: int = 20
    """First questions that all fail for one reason: then asking stops."""


class Asking:
    """Workers that take questions from one list until it is empty or something stops them.

    Args:
        pool: Who answers.
        ledger: What may be spent.
        log: Where replies are kept.
        settings: How hard to try.
        on_meter: Told regularly how it goes.
        on_reply: Given every reply that is on disk; what it raises stops the asking.
    """

    def __init__(
        self, pool: Pool, ledger: Ledger, log: RawLog, settings: Settings, on_meter: OnMeter, on_reply: OnReply
    ) -> None:
        self._pool, self._ledger, self._log, self._settings = pool, ledger, log, settings
        self._on_meter, self._on_reply = on_meter, on_reply
        self._replies: dict[str, Reply] = {}
        self._failed: dict[str, Refused | Unavailable] = {}
        self._total = self._known = self._retries = self._throttles = 0
        self._pace = Pace()
        self._workers: list[asyncio.Task[None]] = []
        self._in_flight: set[asyncio.Task[Any] | None] = set()
        self._signal: str | None = None
        self._error: BaseException | None = None

    async def run(
        self, questions: Mapping[str, Question], replies: dict[str, Reply]
    ) -> dict[str, Refused | Unavailable]:
        """Ask every question, once per object.

        Args:
            questions: By key.
            replies: Those known already; each reply is added when it is on disk.

        Returns:
            Why a question has no reply, by key.

        Raises:
            BudgetError, AskingFailed, Interrupted: As `Client.ask_all`.
        """
        self._replies, self._known, self._total = replies, len(replies), len(questions) + len(replies)
        todo = iter(questions.items())
        count = min(self._settings.concurrency, len(questions))
        self._workers = [asyncio.create_task(self._work(todo)) for _ in range(count)]
        metering = asyncio.create_task(self._keep_metering())
        for task in (*self._workers, metering):
            task.add_done_callback(self._ended)
        try:
            with _signals_to(self._on_signal):
                await asyncio.wait(self._workers)
        finally:
            for task in (*self._workers, metering):
                task.cancel()
            await asyncio.gather(*self._workers, metering, return_exceptions=True)
            await self._log.flush()
        self._on_meter(self._meter())
        if self._error is not None:
            raise self._error
        if self._signal is not None:
            raise Interrupted(
                f"{self._log.path}: stopped by {self._signal} with {len(replies):,} of {self._total:,} replies, spent "
                f"{self._ledger.describe()}; every reply is kept, run the same command again for the rest"
            )
        return self._failed

    async def _work(self, todo: Iterator[tuple[str, Question]]) -> None:
        settings = self._settings
        for key, question in todo:
            retrying = AsyncRetrying(
                stop=stop_after_attempt(settings.attempts),
                wait=wait_random_exponential(settings.backoff_s, settings.longest_backoff_s),
                retry=retry_if_exception_type(Unavailable),
                before_sleep=self._count_retry,
                reraise=True,
            )
            try:
                await retrying(self._attempt, question, worst_case(question), [])
            except (Refused, Unavailable) as error:
                self._give_up(key, error)
            if self._stopping:
                return

    async def _attempt(self, question: Question, worst: Usage, failed_on: list[Member]) -> None:
        """One attempt that counts, on another server than the attempt before where there is one."""
        while not self._stopping:
            member = await self._pool.pick(failed_on[-1] if failed_on else None)
            member.in_flight += 1
            try:
                if await self._send(member, question, worst):
                    return
            except Unavailable:
                failed_on.append(member)
                raise
            finally:
                member.in_flight -= 1
        raise asyncio.CancelledError

    async def _send(self, member: Member, question: Question, worst: Usage) -> bool:
        """Send within the budget and the rate; True with the reply on disk, False where nothing came of it yet."""
        task, probing = asyncio.current_task(), member.dead
        await self._ledger.reserve(worst)
        used: Usage | None = Usage()
        try:
            ticket = await member.limiter.acquire(worst.tokens)
            if member.dead and not probing:
                member.limiter.give_back(ticket)
                return False
            self._in_flight.add(task)
            used = None
            reply = await member.ask(question, ticket, self._settings.timeout_s)
            used = usage_of(reply) if reply.prompt_tokens else None
            await self._log.append(reply, member.name)
        except Throttled as error:
            used = Usage(1)
            self._throttles += 1
            self._pool.check_patience(str(error))
            return False
        except Refused:
            used = Usage(1)
            self._pool.answered()
            raise
        except Unavailable as error:
            if not error.may_be_billed:
                used = Usage(1)
            raise
        finally:
            self._in_flight.discard(task)
            self._ledger.settle(worst, used)
        self._pool.answered()
        self._replies[reply.key] = reply
        self._pace.count()
        self._on_reply(reply)
        return True

    def _count_retry(self, _: RetryCallState) -> None:
        if self._stopping:
            raise asyncio.CancelledError
        self._retries += 1

    def _give_up(self, key: str, error: Refused | Unavailable) -> None:
        """Record why a question has no reply; raise where it seems that none ever will."""
        self._failed[key] = error
        if len(self._replies) > self._known or len(self._failed) < self._settings.hopeless_after:
            return
        if len({_NUMBERS.sub("#", str(reason)) for reason in self._failed.values()}) == 1:
            raise AskingFailed(f"the first {len(self._failed)} questions all failed, so asking stopped: {error}")

    @property
    def _stopping(self) -> bool:
        return self._signal is not None or self._error is not None

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self._error is None:
            self._error = error
            self._send_no_more()

    def _on_signal(self, number: int) -> None:
        """The first signal keeps what is in flight for a while, the second does not."""
        again = self._signal is not None
        self._signal = signal.Signals(number).name
        self._send_no_more()
        grace_s = 0.0 if again else self._settings.grace_s
        for task in self._workers:
            asyncio.get_running_loop().call_later(grace_s, task.cancel)

    def _send_no_more(self) -> None:
        for task in self._workers:
            if task not in self._in_flight:
                task.cancel()

    async def _keep_metering(self) -> None:
        while True:
            self._on_meter(self._meter())
            await asyncio.sleep(_METER_EVERY_S)

    def _meter(self) -> Meter:
        ledger, done, per_s = self._ledger, len(self._replies), self._pace.per_s
        left = self._total - done - len(self._failed)
        return Meter(
            total=self._total,
            done=done,
            failed=len(self._failed),
            retries=self._retries,
            throttles=self._throttles,
            requests=ledger.spent.requests,
            tokens=ledger.spent.tokens,
            cost=ledger.cost,
            answers_per_s=per_s,
            left_s=left / per_s if per_s else None,
        )


@contextmanager
def _signals_to(handler: Callable[[int], None]) -> Iterator[None]:
    """Send SIGTERM and Ctrl-C to `handler`. Only the main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, handler, number)
    try:
        yield
    finally:
        for number, previous in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, previous)
