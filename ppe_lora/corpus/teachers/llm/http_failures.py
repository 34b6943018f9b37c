"""HTTP failures in the words of the exchange: who should wait, what may be tried again, what never will succeed."""

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from ppe_lora import network
from ppe_lora.corpus.teachers.llm.chat_format import shortened
from ppe_lora.corpus.teachers.llm.exchange import RateLimit, Refused, Throttled, Unavailable

_REMEDIES = {
    401: "check the API key in {key}",
    402: "check the account's credit",
    403: "check what the API key in {key} may do",
    404: "check the model's name and the server's address",
    413: "shorten the prompt",
}
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_STATED_LIMIT = re.compile(r"x-ratelimit-limit-(req|requests|tokens)-minute")
_EPOCH_S, _EPOCH_MS = 1e9, 1e12
"""From here on a number is a point in time: in seconds, in milliseconds."""


@asynccontextmanager
async def one_attempt(where: str, timeout_s: float) -> AsyncIterator[None]:
    """Bound an attempt in time, whatever drips in; time-outs and broken connections become `Unavailable`, and an answer
    that is too large or packed otherwise `Refused`."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
        raise Unavailable(f"{where}: expected an answer within {timeout_s:g} s; got none") from error
    except network.NetworkError as error:
        raise Refused(str(error)) from error
    except network.BROKEN as error:
        raise broken_connection(where, error) from error


def broken_connection(where: str, error: BaseException) -> Unavailable:
    """The connection was refused, reset, or closed too early; only the first is free for sure."""
    never_sent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
    return Unavailable(
        f"{where}: expected an answer; the connection failed ({type(error).__name__}: {error})",
        may_be_billed=not never_sent,
    )


def failure_of(
    where: str, status: int, headers: Mapping[str, str], body: str, key_variable: str | None
) -> Throttled | Unavailable | Refused:
    """What an HTTP response that is no answer means.

    Args:
        where: Who sent it, for the message.
        status: HTTP status; under 400 the body was unreadable.
        headers: Response headers, looked up without regard to case where the mapping does so.
        body: Response text: the error in any of the usual JSON shapes, or anything else.
        key_variable: Environment variable that holds the API key; None where no key was sent.

    Returns:
        `Throttled` for 429, `Unavailable` for 5xx, 408 and statuses under 400, `Refused` for redirects and the rest.
    """
    if moved := network.redirected(status, headers.get("location")):
        return Refused(f"{where}: expected an answer; got {moved}")
    got = f"{where}: expected an answer; got HTTP {status} ({_reason(body)})"
    if status == 429:
        wait_s = retry_after_s(headers)
        said = got if wait_s is None else f"{got}; it asks to wait {wait_s:.3g} s"
        return Throttled(said, wait_s, stated_limit(headers))
    if status >= 500 or status == 408 or status < 400:
        return Unavailable(got)
    remedy = _REMEDIES.get(status, "check the prompt, the sampling and the answer schema")
    if status == 401 and key_variable is None:
        remedy = "name the environment variable that holds its API key"
    return Refused(f"{got}; {remedy.format(key=key_variable)}")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds a 429 asks to wait; None where it does not say.

    `Retry-After-Ms` counts, then `Retry-After` (seconds or an HTTP date). Without them the `X-RateLimit-Reset*` headers
    do (seconds, a point in time, or a duration such as `6m0s`): the latest of those whose `Remaining` counterpart is 0
    or absent.

    Example:
        >>> retry_after_s({"x-ratelimit-reset-requests": "1.5s", "x-ratelimit-reset-tokens": "6m0s",
        ...                "x-ratelimit-remaining-requests": "0", "x-ratelimit-remaining-tokens": "900"})
        1.5
    """
    lower = {name.lower(): value.strip() for name, value in headers.items()}
    for name, unit_s in (("retry-after-ms", 0.001), ("x-ms-retry-after-ms", 0.001), ("retry-after", 1.0)):
        if (asked := _seconds(lower.get(name, ""), unit_s)) is not None:
            return asked
    resets = [
        seconds
        for name, value in lower.items()
        if "ratelimit" in name
        and "reset" in name
        and lower.get(name.replace("reset", "remaining"), "0") == "0"
        and (seconds := _seconds(value)) is not None
    ]
    return max(resets, default=None)


def stated_limit(headers: Mapping[str, str]) -> RateLimit:
    """The limits per minute that a response states, as Mistral's do.

    Only names that say minute count: `x-ratelimit-limit-requests` is a minute's limit here and a day's there.

    Example:
        >>> stated_limit({"X-RateLimit-Limit-Req-Minute": "720", "x-ratelimit-limit-tokens-month": "1000000"})
        RateLimit(requests_per_minute=720.0, tokens_per_minute=None)
    """
    found: dict[str, float] = {}
    for name, value in headers.items():
        stated = _STATED_LIMIT.fullmatch(name.lower())
        if stated and value.strip().isdecimal() and int(value) > 0:
            found["tokens" if stated[1] == "tokens" else "requests"] = float(value)
    return RateLimit(found.get("requests"), found.get("tokens"))


def _seconds(value: str, unit_s: float = 1.0) -> float | None:
    try:
        number = float(value) * unit_s
    except ValueError:
        return _duration_s(value)
    if not math.isfinite(number):
        return None
    if number >= _EPOCH_S:
        number = number / (1000 if number >= _EPOCH_MS else 1) - time.time()
    return max(0.0, number)


def _duration_s(value: str) -> float | None:
    if value and not _DURATION.sub("", value):
        return sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION.findall(value))
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return max(0.0, read(value).timestamp() - time.time())
        except ValueError:
            continue
    return None


def _reason(body: str) -> str:
    """The message inside an error body: `{"message": ...}`, `{"error": {"message": ...}}` or `{"detail": ...}`."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        return shortened(body) or "no text"
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    return shortened(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))
