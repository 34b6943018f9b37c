"""Ctrl-C and SIGTERM, in one place: the work under way ends soon, says what is kept and how to go on, with status 130.

Stages wrap their work in `interruptible`, the innermost one speaks. Work that can save itself first, as a training
between two steps or a teacher with requests in flight, takes the signals over while it lasts (`signals_to`).
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from ppe_lora.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def interruptible(kept: str | Callable[[], str]) -> Iterator[None]:
    """While it lasts, both signals end what is done, wherever it is.

    Args:
        kept: Says what is kept and how to go on; where that is known only then, a function that finds out.

    Raises:
        Interrupted: A signal came.
    """
    try:
        with signals_to(stop):
            yield
    except KeyboardInterrupt as signalled:
        told = kept if isinstance(kept, str) else kept()
        raise Interrupted(f"stopped by {str(signalled) or 'Ctrl-C'}; {told}") from None


@contextmanager
def signals_to(handler: Handler) -> Iterator[dict[int, Any]]:
    """Send both signals to `handler` while it lasts; yields the handlers before. Only the main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield before
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """The handler that ends what is done."""
    # No class of its own: libraries clean up at a KeyboardInterrupt, and their handlers know it.
    raise KeyboardInterrupt(signal.Signals(number).name)
