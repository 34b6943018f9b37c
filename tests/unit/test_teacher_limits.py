"""Rate limits on a virtual clock: used to the full, never passed, and what a 429 changes."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppe_lora.corpus.teachers.llm.asking import Settings
from ppe_lora.corpus.teachers.llm.exchange import Question, RateLimit, Reply, Throttled, Unavailable
from ppe_lora.corpus.teachers.llm.servers import Server
from tests.teacher_fakes import FakeEndpoint, ask, most_in_a_window, questions, random_faults


def throttles_at(*numbers: int) -> Callable[[Question, int], Exception | None]:
    """A tenth of all requests fails, and those of these numbers get a 429 that asks for a second."""
    faults, count = random_faults(0.1), itertools.count(1)
    return lambda one, before: (
        Throttled("slow down", retry_after_s=1.0) if next(count) in numbers else faults(one, before)
    )


def test_the_rate_limit_is_used_and_never_passed(tmp_path: Path) -> None:
    """Above the limit every further request is a 429; far below it a data set takes days longer.

    A 429 at a stated limit says little (another process of the account, a busy minute): to creep back from each by a
    percent a second leaves 7 % of the limit unused.
    """
    limit = 3300
    endpoint = FakeEndpoint(latency_s=0.7, fault=throttles_at(3000, 7000))
    asked = questions(10_000)
    answers = ask(tmp_path, asked, Server(endpoint, limit=RateLimit(requests_per_minute=limit)))
    assert len(answers.replies) == len(asked)
    took_s = endpoint.sent_at[-1] - endpoint.sent_at[0]
    assert most_in_a_window(endpoint.sent_at, 60.0) <= limit
    assert len(endpoint.sent_at) / (took_s / 60.0) >= 0.95 * limit


def test_late_timers_do_not_lose_the_limit(tmp_path: Path) -> None:
    """A busy processor wakes the gate a fifth of a second too late now and then; what that missed must be made up."""

    class Busy(FakeEndpoint):
        async def ask(self, question: Question) -> Reply:
            if len(self.sent_at) % 60 == 59:
                asyncio.get_running_loop().jump(0.2)  # type: ignore[attr-defined]
            return await super().ask(question)

    limit, endpoint = 3300, Busy(latency_s=0.7)
    ask(tmp_path, questions(8000), Server(endpoint, limit=RateLimit(requests_per_minute=limit)))
    took_s = endpoint.sent_at[-1] - endpoint.sent_at[0]
    assert most_in_a_window(endpoint.sent_at, 60.0) <= limit
    assert len(endpoint.sent_at) / (took_s / 60.0) >= 0.97 * limit


class Strict(FakeEndpoint):
    """Turns away what is more than `limit` requests in 60 s; with `says` it states that limit and how long to wait."""

    def __init__(self, limit: int, *, says: bool) -> None:
        super().__init__(latency_s=0.2, fault=self.turned_away)
        self.limit, self.says, self.taken, self.refused = limit, says, deque[float](), 0

    def turned_away(self, *_: Any) -> Exception | None:
        now = asyncio.get_running_loop().time()
        while self.taken and self.taken[0] <= now - 60.0:
            self.taken.popleft()
        if len(self.taken) < self.limit:
            self.taken.append(now)
            return None
        self.refused += 1
        if self.says:
            return Throttled("slow down", self.taken[0] + 60.0 - now, RateLimit(requests_per_minute=self.limit))
        return Throttled("slow down")


def test_a_limit_that_the_endpoint_states_is_kept(tmp_path: Path) -> None:
    """Mistral's 429 says what a minute allows; a client that goes on guessing meets hundreds of them."""
    endpoint = Strict(600, says=True)
    assert len(ask(tmp_path, questions(6000), endpoint).replies) == 6000
    assert endpoint.refused <= 64  # what was under way when the first came
    took_s = endpoint.sent_at[-1] - endpoint.sent_at[0]
    assert 6000 / (took_s / 60.0) >= 0.95 * 600
    afterwards = [at for at in endpoint.sent_at if at > endpoint.sent_at[0] + 120.0]
    assert most_in_a_window(afterwards, 1.0) <= 13  # 10 a second and what makes up for late timers


def test_a_stated_limit_that_is_not_granted_is_found_out(tmp_path: Path) -> None:
    """Two processes share an account: if each went back to the whole limit at once, half of all would be 429s."""
    endpoint = Strict(600, says=False)
    asked = questions(6000)
    assert len(ask(tmp_path, asked, Server(endpoint, limit=RateLimit(requests_per_minute=1200))).replies) == len(asked)
    assert endpoint.refused <= 0.1 * len(asked)


def test_a_small_limit_spreads_requests_evenly(tmp_path: Path) -> None:
    """Five a minute: a bucket that starts with a burst and goes on at the full rate lets six through."""
    endpoint = FakeEndpoint()
    ask(tmp_path, questions(41), Server(endpoint, limit=RateLimit(requests_per_minute=5)))
    assert most_in_a_window(endpoint.sent_at, 60.0) <= 5
    assert endpoint.sent_at[-1] - endpoint.sent_at[0] <= 40 * 12.0 / 0.95


def test_the_token_limit_is_used_and_never_passed(tmp_path: Path) -> None:
    """Reserving `max_tokens` for each request and never giving the rest back would use a sixth of the limit."""
    limit = 30_000
    endpoint = FakeEndpoint(latency_s=2.0)
    ask(tmp_path, questions(3000), Server(endpoint, limit=RateLimit(tokens_per_minute=limit)))
    took_s = endpoint.sent_at[-1] - endpoint.sent_at[0]
    assert 30 * most_in_a_window(endpoint.sent_at, 60.0) <= limit
    assert 30 * len(endpoint.sent_at) / (took_s / 60.0) >= 0.95 * limit


def test_attempts_that_used_no_tokens_do_not_count_for_the_token_limit(tmp_path: Path) -> None:
    """A server that fails every third request would otherwise be asked at two thirds of its limit."""
    limit, used_at = 30_000, []

    def fault(asked: Question, before: int) -> Exception | None:
        if before == 0 and int(asked.key, 16) % 2:
            return Unavailable("fake: 500", may_be_billed=False)
        used_at.append(asyncio.get_running_loop().time())
        return None

    ask(
        tmp_path,
        questions(3000),
        Server(FakeEndpoint(fault=fault), limit=RateLimit(tokens_per_minute=limit)),
        settings=Settings(backoff_s=0.1),
    )
    assert 30 * most_in_a_window(used_at, 60.0) <= limit
    assert 30 * len(used_at) / ((used_at[-1] - used_at[0]) / 60.0) >= 0.95 * limit


def test_a_429_with_a_header_holds_everybody_back(tmp_path: Path) -> None:
    """If only the unlucky request waits, the other 63 go on hammering the endpoint."""
    turned_away: list[float] = []

    def fault(_: Question, before: int) -> Exception | None:
        if len(endpoint.sent_at) > 100 and not turned_away:
            turned_away.append(asyncio.get_running_loop().time())
            return Throttled("slow down", retry_after_s=20.0)
        return None

    endpoint = FakeEndpoint(fault=fault)
    answers = ask(tmp_path, questions(400), endpoint)
    assert len(answers.replies) == 400
    assert [at for at in endpoint.sent_at if turned_away[0] < at < turned_away[0] + 20.0] == []


def test_a_429_without_a_header_pauses_longer_each_time_and_slows_down(tmp_path: Path) -> None:
    """An endpoint that allows 5 requests a second and does not say so: the client must find out, not die of it."""
    allowed, turned_away = 5, []

    def fault(*_: Any) -> Exception | None:
        now = asyncio.get_running_loop().time()
        if sum(1 for at in endpoint.sent_at if now - 1.0 < at <= now) > allowed:
            turned_away.append(now)
            return Throttled("slow down")
        return None

    endpoint = FakeEndpoint(fault=fault, latency_s=0.05)
    answers = ask(tmp_path, questions(1500), endpoint)
    assert len(answers.replies) == 1500
    took_s = endpoint.sent_at[-1] - endpoint.sent_at[0]
    assert 1500 / took_s >= 0.5 * allowed
    assert len(turned_away) < 0.2 * 1500
