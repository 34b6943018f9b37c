"""Asks many questions of a few servers: nothing is paid for twice, lost, or sent past a limit."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

from ppe_lora.corpus.teachers.llm.asking import Asking, OnMeter, OnReply, Settings
from ppe_lora.corpus.teachers.llm.budget import Budget, Ledger, Prices, Usage, check_bounded
from ppe_lora.corpus.teachers.llm.exchange import Question, Refused, Reply, Unavailable
from ppe_lora.corpus.teachers.llm.raw_log import RawLog
from ppe_lora.corpus.teachers.llm.servers import Pool, Server


class Answers(NamedTuple):
    """What came of asking."""

    replies: dict[str, Reply]
    """By the question's key; all of them are in the raw log."""
    failed: dict[str, Refused | Unavailable]
    """Why a question has no reply, by key: refused for good, or no answer in any attempt. Running again asks again."""
    elsewhere: int
    """Questions of other shards whose replies were not in the folder at the start."""
    spent: Usage
    """By this log in all runs; attempts that may have been billed count at their worst case."""
    cost: float
    """Money for it."""


class Client:
    """Asks questions through a pool of servers, with a raw log, rate limits, retries and a budget.

    Use it as a context manager: on leaving, the connections are given back. The log stays the caller's.

    Args:
        servers: Who answers.
        log: Where replies are kept. What it holds is not asked again.
        budget: For the log, all runs together; a shard is held to its share. None is no limit.
        prices: For a budget in money, and for the meter. None is free of charge.
        settings: How hard to try.

    Raises:
        BudgetError: A limit is not above 0, or money is limited and nothing has a price.
        RecipeError: No server, or a weight or rate limit that is not above 0.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        log: RawLog,
        *,
        budget: Budget | None = None,
        prices: Prices | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or Settings()
        self._log = log
        self._pool = Pool(servers, self._settings.patience_s)
        share = (budget or Budget()).share(log.shard.of if log.shard else 1)
        self._ledger = Ledger(share, prices or Prices(), log.spent)
        self._bounded = share.counts_tokens or any(server.limit.tokens_per_minute for server in servers)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._pool.close())
        self._runner.close()

    def ask_all(
        self, questions: Iterable[Question], on_meter: OnMeter | None = None, on_reply: OnReply | None = None
    ) -> Answers:
        """Ask every question that has no reply yet; equal questions once.

        Args:
            questions: In the order in which they are asked.
            on_meter: Told twice a second how it goes, and once at the end.
            on_reply: Given every new reply; what it raises stops the asking, and what is under way is kept.

        Returns:
            A reply or a reason for every question, but for other shards'.

        Raises:
            BudgetError: The budget has no room for another question, or cannot bound one (no `max_tokens`).
            AskingFailed: Going on cannot succeed.
            Interrupted: SIGTERM or Ctrl-C. In these three cases all replies so far are in the log, and the same call
                later asks for the rest.
            PpeError: What an endpoint's `check` says before the first question.
        """
        return self._runner.run(self.answer(questions, on_meter, on_reply))

    async def answer(
        self, questions: Iterable[Question], on_meter: OnMeter | None = None, on_reply: OnReply | None = None
    ) -> Answers:
        """`ask_all` inside a running event loop."""
        todo = {question.key: question for question in questions}
        replies = {key: self._log.replies[key] for key in todo if key in self._log.replies}
        missing = {key: question for key, question in todo.items() if key not in replies}
        mine = {key: one for key, one in missing.items() if self._log.shard is None or self._log.shard.takes(key)}
        failed: dict[str, Refused | Unavailable] = {}
        if mine:
            if self._bounded:
                check_bounded(mine.values())
            await self._pool.check(sorted({question.model for question in mine.values()}))
            told = on_meter or (lambda meter: None), on_reply or (lambda reply: None)
            asking = Asking(self._pool, self._ledger, self._log, self._settings, *told)
            failed = await asking.run(mine, replies)
        elsewhere = len(missing) - len(mine)
        return Answers(replies, failed, elsewhere, self._ledger.spent, self._ledger.cost)
