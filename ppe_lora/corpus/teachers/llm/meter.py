"""How asking goes on: what a progress bar shows."""

import asyncio
from collections import deque
from typing import NamedTuple

_OVER_S = 30.0


class Meter(NamedTuple):
    """One look at a run."""

    total: int
    """Different questions."""
    done: int
    """Of them with a reply on disk, those of earlier runs included."""
    failed: int
    """Given up, each with its reason."""
    retries: int
    """Attempts that failed and were made again."""
    throttles: int
    """429 answers."""
    requests: int
    tokens: int
    cost: float
    """Spent, earlier runs included; money."""
    answers_per_s: float
    """Over the last half minute."""
    left_s: float | None
    """Seconds until the end at that rate; None while there is no rate."""

    def __str__(self) -> str:
        parts = [f"{self.answers_per_s:.1f} answers/s"]
        counts = {"failed": self.failed, "tried again": self.retries, "times 429": self.throttles}
        parts += [f"{count:,} {name}" for name, count in counts.items() if count]
        parts += [f"{self.tokens:,} tokens"]
        parts += [f"cost {self.cost:,.4g}"] if self.cost else []
        return ", ".join(parts)


class Pace:
    """Answers per second over the last half minute."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._started = asyncio.get_running_loop().time()

    def count(self) -> None:
        """One more answer, now."""
        self._times.append(asyncio.get_running_loop().time())

    @property
    def per_s(self) -> float:
        """Answers per second."""
        now = asyncio.get_running_loop().time()
        since = max(self._started, now - _OVER_S)
        while self._times and self._times[0] < since:
            self._times.popleft()
        return len(self._times) / (now - since) if now > since else 0.0
