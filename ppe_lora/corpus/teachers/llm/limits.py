"""Rate limits that are used to the full and not passed: a token bucket per limit, and what a 429 does to it."""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ppe_lora.corpus.teachers.llm.exchange import RateLimit
from ppe_lora.errors import RecipeError

_WINDOW_S = 60.0
_USED = 0.98
"""Share of a limit that is asked for. Requests spread out on their way; the rest keeps the server's count below it."""
_BURST = 1 / 240
"""What passes at once after a silence, as a share of the limit: a quarter of a second's, so that timers may be late."""
_UNLIMITED = 6e7
"""Per minute. A missing limit is this one, so that a 429 can slow it like any other."""
_SLOWER = 0.7
_SEARCHING_PER_S = 1.01
"""Recovery towards a rate of which nobody knows whether it is allowed."""
_RETURNING_PER_S = 1.1
"""Recovery towards a limit that was stated: four seconds from `_SLOWER`."""
_LONGEST_PAUSE_S = 60.0


@dataclass(slots=True, eq=False)
class Ticket:
    """Leave to send one request."""

    sent_at: float
    """Seconds of the event loop's clock."""
    worst_tokens: int
    tokens: float
    """Taken from the limit: what such a request uses on average, then what it used."""


class _Bucket:
    """Lets units through at an even rate."""

    def __init__(self, per_window: float) -> None:
        self._per_window = per_window
        self._burst = max(1.0, _BURST * per_window)
        self._speed, self._faster_per_s = 1.0, _SEARCHING_PER_S
        self._level = self._burst
        self._given_back = 0.0
        """Apart from the level, so that the bucket goes on filling."""
        self._at = -math.inf

    @property
    def _top(self) -> float:
        """Units per second when nothing slows it."""
        return _USED * self._per_window / _WINDOW_S

    @property
    def rate(self) -> float:
        """Units per second now."""
        return self._speed * self._top

    def refill(self, now: float, units: float) -> None:
        """Add what the time since the last call brings, and make room for a request of `units`."""
        elapsed = min(now - self._at, 10 * _WINDOW_S)
        self._at = now
        self._burst = max(1.0, _BURST * self._per_window, units)
        capacity = max(1.0, self._speed * self._burst, units)
        self._level = max(self._level, min(capacity, self._level + self.rate * elapsed))
        self._speed = min(1.0, self._speed * self._faster_per_s**elapsed)

    def wait_s(self, units: float) -> float:
        """Seconds until `units` may pass."""
        missing = units - self._level - self._given_back
        return missing / self.rate if missing > 1e-6 else 0.0

    def take(self, units: float) -> None:
        """Let `units` pass."""
        from_given = min(units, self._given_back)
        self._given_back -= from_given
        self._level -= units - from_given

    def give_back(self, units: float) -> None:
        """Return units that passed and were not used; below 0: more were used than passed."""
        self._given_back += max(0.0, units)
        self._level += min(0.0, units)

    def lower(self, per_window: float) -> None:
        """Take over a lower limit than the one so far; what was found out about that one counts no more."""
        self._per_window, self._speed = per_window, 1.0
        self._burst = max(1.0, _BURST * per_window)
        self._level = min(self._level, self._burst)

    def slow_down(self, found_rate: float, faster_per_s: float) -> None:
        """Let through less than `found_rate` (units per second), and `faster_per_s` times as much each second after."""
        self._speed = _SLOWER * min(self._speed, found_rate / self._top)
        self._level = min(self._level, self._speed * self._burst)
        self._faster_per_s = faster_per_s


class _Window:
    """What passed in the last 60 seconds.

    A bucket alone would let too much through: a full one passes at once, and a reply may give back tokens that an
    earlier minute was charged for.

    Args:
        limit: Units in any 60 seconds.
        units: What a request counts for.
    """

    def __init__(self, limit: float, units: Callable[[Ticket], float]) -> None:
        self.limit = limit
        self._units = units
        self._tickets: deque[Ticket] = deque()
        self._passed = 0.0

    def wait_s(self, now: float, units: float) -> float:
        """Seconds until some of it leaves the window, or 0 where `units` more fit in."""
        while self._tickets and self._tickets[0].sent_at <= now - _WINDOW_S:
            self._passed -= self._units(self._tickets.popleft())
        if not self._tickets or self.limit == math.inf or self._passed + units <= math.ceil(_USED * self.limit):
            return 0.0
        return self._tickets[0].sent_at + _WINDOW_S - now

    def add(self, ticket: Ticket) -> None:
        """Count a request."""
        self._tickets.append(ticket)
        self._passed += self._units(ticket)

    def correct(self, ticket: Ticket, more: float) -> None:
        """Count `more` units for a request than so far."""
        if self._tickets and ticket.sent_at >= self._tickets[0].sent_at:
            self._passed += more


class Limiter:
    """The gate before one endpoint. First come, first served, and a 429 holds everybody back.

    Args:
        limit: What the endpoint allows.

    Raises:
        RecipeError: A limit is not above 0.
    """

    def __init__(self, limit: RateLimit) -> None:
        for name, value in limit._asdict().items():
            if value is not None and not value > 0:
                raise RecipeError(f"{name}: expected more than 0; got {value:g}; leave it out for no limit")
        self._requests = _Bucket(limit.requests_per_minute or _UNLIMITED)
        self._tokens = _Bucket(limit.tokens_per_minute or _UNLIMITED)
        self._request_window = _Window(limit.requests_per_minute or math.inf, lambda ticket: 1.0)
        self._token_window = _Window(limit.tokens_per_minute or math.inf, lambda ticket: ticket.tokens)
        self._turn = asyncio.Lock()
        self._paused_until = -math.inf
        self._throttled_at = -math.inf
        self._throttles = 0
        self._sent: deque[float] = deque(maxlen=1000)
        self._used_tokens, self._worst_tokens = 1.0, 1.0

    async def acquire(self, worst_tokens: int) -> Ticket:
        """Wait for leave to send a request that uses at most `worst_tokens`.

        What is taken is what such a request has used so far on average; `settle` corrects it.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            while True:
                now = loop.time()
                tokens = worst_tokens * min(1.0, self._used_tokens / self._worst_tokens)
                self._requests.refill(now, 1)
                self._tokens.refill(now, tokens)
                buckets_s = max(self._requests.wait_s(1), self._tokens.wait_s(tokens))
                windows_s = max(self._request_window.wait_s(now, 1), self._token_window.wait_s(now, tokens))
                wait_s = max(self._paused_until - now, buckets_s, windows_s)
                if wait_s <= 0:
                    break
                await asyncio.sleep(wait_s)
            ticket = Ticket(now, worst_tokens, tokens)
            self._requests.take(1)
            self._tokens.take(tokens)
            self._request_window.add(ticket)
            self._token_window.add(ticket)
            self._sent.append(now)
            return ticket

    def settle(self, ticket: Ticket, used_tokens: int) -> None:
        """Correct what a request took, now that its reply says what it used."""
        self._correct(ticket, used_tokens)
        self._used_tokens += used_tokens
        self._worst_tokens += ticket.worst_tokens
        self._throttles = 0

    def give_back(self, ticket: Ticket) -> None:
        """Return the tokens of a request that used none. The request itself still counts."""
        self._correct(ticket, 0)

    def _correct(self, ticket: Ticket, tokens: float) -> None:
        self._tokens.give_back(ticket.tokens - tokens)
        self._token_window.correct(ticket, tokens - ticket.tokens)
        ticket.tokens = tokens

    def throttle(self, ticket: Ticket, retry_after_s: float | None, stated: RateLimit) -> None:
        """A 429: hold everybody back, and be slower afterwards.

        Where the recipe or the endpoint states the limit, one 429 says nothing against it, and the rate is back there
        within seconds. Where nothing is stated, or the last 429 was less than a minute ago, the rate at which it came
        is too high, and is approached slowly. Requests that were under way when the first 429 came bring more of them;
        those do not slow any further.

        Args:
            ticket: Of the request that was turned away. Its tokens are given back.
            retry_after_s: What the endpoint asks for; without it the pause doubles from a second, with jitter.
            stated: What the endpoint says it allows. It counts where it is lower than what is known.
        """
        now = asyncio.get_running_loop().time()
        self.give_back(ticket)
        until = now + retry_after_s if retry_after_s is not None else now
        if ticket.sent_at > self._throttled_at:
            again = now - self._throttled_at < _WINDOW_S
            self._throttled_at = now
            self._throttles += 1
            learned = self._learn(stated)
            if learned or (self._is_stated and not again):
                self._requests.slow_down(self._requests.rate, _RETURNING_PER_S)
                self._tokens.slow_down(self._tokens.rate, _RETURNING_PER_S)
            else:
                self._requests.slow_down(self._found_rate(now), _SEARCHING_PER_S)
                self._tokens.slow_down(self._tokens.rate, _SEARCHING_PER_S)
            if retry_after_s is None:
                until = now + min(_LONGEST_PAUSE_S, 2.0 ** (self._throttles - 1)) * random.uniform(0.75, 1.25)
        longer_s = until - max(now, self._paused_until)
        if longer_s > 0:
            self._paused_until = until
            # Pauses do not count in the rate that was found too high.
            self._sent = deque((at + longer_s for at in self._sent), maxlen=self._sent.maxlen)

    @property
    def _is_stated(self) -> bool:
        return min(self._request_window.limit, self._token_window.limit) < math.inf

    def _learn(self, stated: RateLimit) -> bool:
        """Keep to the limits that an endpoint states; whether one was lower than what was known."""
        learned = False
        for bucket, window, limit in (
            (self._requests, self._request_window, stated.requests_per_minute),
            (self._tokens, self._token_window, stated.tokens_per_minute),
        ):
            if limit is not None and limit < window.limit:
                bucket.lower(limit)
                window.limit = limit
                learned = True
        return learned

    def _found_rate(self, now: float) -> float:
        """Requests per second over the last minute."""
        recent = [at for at in self._sent if at > now - _WINDOW_S]
        return len(recent) / max(1.0, now - recent[0]) if recent else self._requests.rate

    @property
    def pause_s(self) -> float:
        """Seconds for which a 429 holds everybody back from now on."""
        return max(0.0, self._paused_until - asyncio.get_running_loop().time())
