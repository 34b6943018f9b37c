"""The endpoints that share the work: weights, a gate before each, and failover when one dies."""

import asyncio
import math
from collections.abc import Sequence
from typing import NamedTuple

from ppe_lora.console import console
from ppe_lora.corpus.teachers.llm.exchange import (
    Endpoint,
    Question,
    RateLimit,
    Refused,
    Reply,
    Throttled,
    Unavailable,
)
from ppe_lora.corpus.teachers.llm.limits import Limiter, Ticket
from ppe_lora.errors import PpeError, RecipeError

_DEAD_AFTER = 8
"""Failures in a row. One request in ten failing by chance does not reach it in a hundred million."""
_FIRST_REST_S, _LONGEST_REST_S = 2.0, 60.0


class AskingFailed(PpeError):
    """Asking stopped, since going on cannot succeed."""


class Server(NamedTuple):
    """An endpoint and its part of the work."""

    endpoint: Endpoint
    weight: float = 1.0
    """Requests in flight relative to the other servers'."""
    limit: RateLimit = RateLimit()


class Member:
    """What a pool knows of one server."""

    def __init__(self, server: Server) -> None:
        if not server.weight > 0:
            raise RecipeError(f"{server.endpoint.name}: expected a weight above 0; got {server.weight:g}")
        self.endpoint = server.endpoint
        self.name = server.endpoint.name
        self.limiter = Limiter(server.limit)
        self.in_flight = 0
        """Requests sent or waiting at its gate."""
        self._weight = server.weight
        self._failures = 0
        self._rests = 0
        self.resting_until: float | None = None
        """When a dead server is tried again; None for one that lives."""

    @property
    def dead(self) -> bool:
        """Whether it is left alone, but for one request now and then."""
        return self.resting_until is not None

    @property
    def load(self) -> float:
        """What one more request would make of its part of the work."""
        return (self.in_flight + 1) / self._weight

    @property
    def wait_s(self) -> float:
        """Seconds until it may be asked: the rest of its rest, or of a 429's pause."""
        now = asyncio.get_running_loop().time()
        return max(self.limiter.pause_s, 0.0 if self.resting_until is None else self.resting_until - now)

    async def ask(self, question: Question, ticket: Ticket, timeout_s: float) -> Reply:
        """One attempt, within `timeout_s`; the limiter and the server's health hear of what comes.

        Raises:
            Throttled, Refused, Unavailable: As the endpoint, or for the time-out.
        """
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self.endpoint.ask(question)
        except TimeoutError as error:
            late = Unavailable(f"{self.name}: expected an answer within {timeout_s:g} s; got none")
            self._failed(late)
            raise late from error
        except Unavailable as error:
            if not error.may_be_billed:
                self.limiter.give_back(ticket)
            self._failed(error)
            raise
        except Throttled as error:
            self.limiter.throttle(ticket, error.retry_after_s, error.limit)
            self.answered()
            raise
        except Refused:
            self.limiter.give_back(ticket)
            self.answered()
            raise
        self.limiter.settle(ticket, reply.prompt_tokens + reply.completion_tokens or ticket.worst_tokens)
        self.answered()
        return reply

    def answered(self) -> None:
        """It lives, were it to say 429."""
        if self.dead:
            console.print(f"{self.name} answers again")
        self._failures, self._rests, self.resting_until = 0, 0, None

    def _failed(self, reason: PpeError) -> None:
        self._failures += 1
        if self.dead or self._failures >= _DEAD_AFTER:
            self.rest(reason)

    def rest(self, reason: PpeError) -> None:
        """Leave it alone for a while, each time longer until it answers."""
        now = asyncio.get_running_loop().time()
        if self.resting_until is not None and self.resting_until > now:
            return
        if self.resting_until is None:
            console.print(f"{self.name} gives no answers and is left alone for a while: {reason}")
        self.resting_until = now + min(_LONGEST_REST_S, _FIRST_REST_S * 2**self._rests)
        self._rests += 1


class Pool:
    """Chooses the server for each attempt.

    Args:
        servers: At least one.
        patience_s: How long all of them may give no answer before that is an error.

    Raises:
        RecipeError: No server, or a weight or limit that is not above 0.
    """

    def __init__(self, servers: Sequence[Server], patience_s: float) -> None:
        if not servers:
            raise RecipeError("teacher endpoints: expected at least one; got none")
        self._members = [Member(server) for server in servers]
        self._patience_s = patience_s
        self._answered_at = math.nan

    async def check(self, models: Sequence[str]) -> None:
        """Ask every endpoint whether it can answer at all. A dead one is an error where no other lives.

        Raises:
            PpeError: What the endpoint says, with the remedy.
        """
        self.answered()
        checks = [member.endpoint.check(model) for member in self._members for model in models]
        found = await asyncio.gather(*checks, return_exceptions=True)
        for number, member in enumerate(self._members):
            errors = [error for error in found[number * len(models) :][: len(models)] if error is not None]
            for error in errors:
                if not isinstance(error, Unavailable):
                    raise error
                member.rest(error)
            if not errors:
                member.answered()
        if all(member.dead for member in self._members):
            raise next(error for error in found if error is not None)

    async def pick(self, avoid: Member | None = None) -> Member:
        """The living server with the least to do for its weight; a dead one whose rest is over gets one request.

        Waits where all are dead.

        Args:
            avoid: Just failed at this question; taken only where there is no other.

        Raises:
            AskingFailed: All have been dead for too long.
        """
        while True:
            now = asyncio.get_running_loop().time()
            for member in self._members:
                if member.resting_until is not None and member.resting_until <= now and member.in_flight == 0:
                    return member
            living = [member for member in self._members if not member.dead]
            if living:
                return min(living, key=lambda one: (one is avoid, one.limiter.pause_s > 0, one.load))
            self.check_patience("none gives answers")
            await asyncio.sleep(min(1.0, max(0.1, self._wait_s)))

    def answered(self) -> None:
        """Note that some server gave an answer."""
        self._answered_at = asyncio.get_running_loop().time()

    def check_patience(self, state: str) -> None:
        """Raise where the next answer is too far from the last.

        Args:
            state: Why there are no answers, for the message.

        Raises:
            AskingFailed: No answer for `patience_s`, counting the time until some server may be asked.
        """
        silent_s = asyncio.get_running_loop().time() - self._answered_at + self._wait_s
        if silent_s > self._patience_s:
            names = ", ".join(member.name for member in self._members)
            raise AskingFailed(
                f"{names}: expected an answer within {self._patience_s:g} s; {silent_s:.0f} s pass without ({state}); "
                "every reply so far is kept: mend the endpoint, then run the same command again"
            )

    @property
    def _wait_s(self) -> float:
        """Seconds until some server may be asked."""
        return min(member.wait_s for member in self._members)

    async def close(self) -> None:
        """Give all connections back."""
        for member in self._members:
            await member.endpoint.close()
