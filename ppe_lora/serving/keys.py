"""The API key: compared in constant time, and guessed at so many times a minute."""

import hmac

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from ppe_lora.serving.backend import ApiError

_MOST_KNOWN = 10_000


class KeyCheck:
    """Compares keys.

    Who shows wrong ones too often is not compared any more for a minute, so that nobody learns by trying which one is
    right. A client that has shown the right one is always compared: else one that shares its address could shut it out.

    Args:
        key: The right one.
        wrong_per_minute: How many wrong ones a client may show.
    """

    def __init__(self, key: str, wrong_per_minute: int) -> None:
        self._key = key.encode()
        self._wrong = RateLimitItemPerMinute(wrong_per_minute)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._known: set[str] = set()

    def check(self, client: str, authorization: str) -> None:
        """Raise ApiError unless a client shows the right key in its header `Authorization`."""
        if client not in self._known and not self._limiter.test(self._wrong, client):
            raise self._too_many()
        scheme, _, given = authorization.partition(" ")
        # Starlette reads the bytes of headers as Latin-1.
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip(" \t").encode("latin-1"), self._key):
            self._remember(client)
            return
        if given and not self._limiter.hit(self._wrong, client):
            raise self._too_many()
        raise ApiError(401, "authentication_error", "expected the header `Authorization: Bearer KEY`")

    def _remember(self, client: str) -> None:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known.add(client)

    def _too_many(self) -> ApiError:
        return ApiError(429, "rate_limit", f"expected at most {self._wrong.amount} wrong API keys a minute", 60)
