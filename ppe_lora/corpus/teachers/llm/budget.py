"""What asking costs: usage, prices, a budget that is never passed, and an estimate before the start."""

import asyncio
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ppe_lora.corpus.teachers.llm.exchange import Question, Reply
from ppe_lora.errors import PpeError

_TEMPLATE_TOKENS = 64
"""What a server's chat template may add to a request (a default system prompt, the current date)."""
_ROLE_TOKENS = 8
"""What it adds to each message."""
_TOKENS_PER_ASCII, _TOKENS_PER_OTHER = 0.25, 0.8
"""Mistral's Tekken vocabulary on English and Japanese prompts, tokens per character."""


class BudgetError(PpeError):
    """The budget is spent, or does not make sense."""


@dataclass(frozen=True)
class Usage:
    """What was used: requests sent, and tokens as the endpoint counts them."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def __sub__(self, other: "Usage") -> "Usage":
        return self + Usage(-other.requests, -other.prompt_tokens, -other.completion_tokens)


def usage_of(reply: Reply) -> Usage:
    """What one reply used: one request and its tokens."""
    return Usage(1, reply.prompt_tokens, reply.completion_tokens)


class Prices(NamedTuple):
    """Money per million tokens, in whatever currency the bill is in. A server of one's own costs nothing."""

    prompt: float = 0.0
    completion: float = 0.0

    def cost(self, usage: Usage) -> float:
        """Money for a usage."""
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1e6


class Spent(NamedTuple):
    """What the answers of a data set used, whichever run paid for them. Attempts without an answer are not in it."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    money: float
    """By the recipe's prices, in their currency; 0 where it states none."""


def spent_on(replies: Iterable[Reply], prices: Prices) -> Spent:
    """What these replies used; a reply that is given twice counts once."""
    unique = {reply.key: reply for reply in replies}
    usage = sum(map(usage_of, unique.values()), Usage())
    return Spent(usage.requests, usage.prompt_tokens, usage.completion_tokens, prices.cost(usage))


class Budget(NamedTuple):
    """The most that one raw log may cost, all runs that append to it together. None is no limit."""

    requests: int | None = None
    tokens: int | None = None
    money: float | None = None
    """In the currency of the prices."""

    @property
    def counts_tokens(self) -> bool:
        """Whether a question needs a limit of its own before it may be sent."""
        return self.tokens is not None or self.money is not None

    def share(self, shards: int) -> "Budget":
        """What each of `shards` processes may use, so that together they stay within this budget."""
        return Budget(
            None if self.requests is None else self.requests // shards,
            None if self.tokens is None else self.tokens // shards,
            None if self.money is None else self.money / shards,
        )


def worst_case(question: Question) -> Usage:
    """The most one attempt can use: a byte of a prompt is at most one token, and `max_tokens` bounds the completion.

    The completion counts 0 where the question sets no `max_tokens`; `check_bounded` refuses such questions.
    """
    prompt = sum(len(one["content"].encode()) for one in question.messages) + len(_schema_text(question).encode())
    prompt += _TEMPLATE_TOKENS + _ROLE_TOKENS * len(question.messages)
    return Usage(1, prompt, int(question.sampling.get("max_tokens") or 0))


def check_bounded(questions: Iterable[Question]) -> None:
    """Refuse a question whose cost has no bound.

    Raises:
        BudgetError: A question sets no `max_tokens`.
    """
    for question in questions:
        if not question.sampling.get("max_tokens"):
            raise BudgetError(
                f"question {question.key}: expected max_tokens, since tokens or money are limited; got sampling "
                f"{dict(question.sampling)}; set max_tokens"
            )


class Ledger:
    """Keeps the books: what was spent, and what is in flight at its worst case.

    Args:
        budget: What may be spent.
        prices: For a budget in money, and for messages.
        spent: What earlier runs used.

    Raises:
        BudgetError: A limit is not above 0, or money is limited and nothing has a price.
    """

    def __init__(self, budget: Budget, prices: Prices, spent: Usage) -> None:
        for name, limit in budget._asdict().items():
            if limit is not None and not limit > 0:
                raise BudgetError(
                    f"budget.{name}: expected more than 0; got {limit:g}; leave it out for no limit, "
                    "or do a dry run to see the cost without asking"
                )
        if budget.money is not None and not prices.prompt + prices.completion > 0:
            raise BudgetError(
                f"budget.money: expected prices beside a limit of {budget.money:g}; got none; "
                "set the prices per million prompt and completion tokens, or limit tokens instead"
            )
        self.budget, self.prices, self.spent = budget, prices, spent
        self._unsure = Usage()
        self._reserved = Usage()
        self._changed = asyncio.Event()

    @property
    def cost(self) -> float:
        """Money spent so far."""
        return self.prices.cost(self.spent)

    async def reserve(self, worst: Usage) -> None:
        """Set `worst` aside for an attempt, waiting for those in flight to turn out cheaper where that may help.

        Raises:
            BudgetError: It does not fit, and nothing is in flight.
        """
        while (limit := self._passed(self.spent + self._reserved + worst)) is not None:
            if self._reserved.requests == 0:
                raise BudgetError(self._message(limit))
            self._changed.clear()
            await self._changed.wait()
        self._reserved += worst

    def settle(self, worst: Usage, used: Usage | None) -> None:
        """Book what a reserved attempt used; None where nobody knows: then its worst case counts."""
        self._reserved -= worst
        self.spent += worst if used is None else used
        self._unsure += worst if used is None else Usage()
        self._changed.set()

    def _passed(self, usage: Usage) -> str | None:
        """The first limit that a usage would pass, or None."""
        found = {"requests": usage.requests, "tokens": usage.tokens, "money": self.prices.cost(usage)}
        for name, limit in self.budget._asdict().items():
            if limit is not None and found[name] > limit:
                return name
        return None

    def _message(self, limit: str) -> str:
        return (
            f"budget.{limit}: the limit of {getattr(self.budget, limit):g} has no room for another question; spent "
            f"{self.describe()}; every reply is kept: raise budget.{limit} and run the same command again"
        )

    def describe(self) -> str:
        """What was spent, for people."""
        text = f"{self.spent.requests:,} requests, {self.spent.tokens:,} tokens"
        if self.prices != Prices():
            text += f", cost {self.cost:,.4g}"
        if self._unsure.requests:
            text += f" (counting {self._unsure.requests:,} attempts without an answer at their worst case)"
        return text


class Estimate(NamedTuple):
    """What asking will cost, before anything is sent."""

    questions: int
    """Different questions in all."""
    answered: int
    """Of them already in the raw log: they cost nothing."""
    expected: Usage
    """Usual text: a completion is as long as those in the log on average; without any, as the answers that the question
    itself gives as examples; without these, `max_tokens`."""
    worst: Usage
    """One attempt of each question at its longest."""
    expected_cost: float
    worst_cost: float
    """Money."""


def estimate_cost(questions: Iterable[Question], prices: Prices, answered: Mapping[str, Reply]) -> Estimate:
    """What asking `questions` will cost beyond the replies in `answered`. Sends nothing.

    Raises:
        BudgetError: A question sets no `max_tokens`.
    """
    unique = {question.key: question for question in questions}
    todo = [question for key, question in unique.items() if key not in answered]
    check_bounded(todo)
    known = [reply.completion_tokens for reply in answered.values()]
    usual = sum(known) / len(known) if known else None
    expected, worst = Usage(), Usage()
    for question in todo:
        most = worst_case(question)
        worst += most
        completion = min(round(usual or _example_tokens(question) or most.completion_tokens), most.completion_tokens)
        expected += Usage(1, _usual_prompt_tokens(question), completion)
    return Estimate(
        len(unique), len(unique) - len(todo), expected, worst, prices.cost(expected), prices.cost(worst)
    )  # fmt: skip


def _usual_prompt_tokens(question: Question) -> int:
    text = "".join(one["content"] for one in question.messages) + _schema_text(question)
    return round(_usual_tokens(text)) + _ROLE_TOKENS * len(question.messages)


def _example_tokens(question: Question) -> float:
    """Length of the answers among the messages, on average; 0 where there are none."""
    answers = [_usual_tokens(one["content"]) for one in question.messages if one["role"] == "assistant"]
    return sum(answers) / len(answers) if answers else 0.0


def _usual_tokens(text: str) -> float:
    others = len(re.sub(r"[\x00-\x7f]", "", text))
    return (len(text) - others) * _TOKENS_PER_ASCII + others * _TOKENS_PER_OTHER


def _schema_text(question: Question) -> str:
    """Some servers show the schema to the model."""
    return json.dumps(question.answer_schema, ensure_ascii=False) if question.answer_schema else ""
