"""Ctrl-C and SIGTERM end any work with words; the part of the work that was under way speaks."""

import os
import signal
import threading

import pytest

from ppe_lora.errors import Interrupted
from ppe_lora.interruption import interruptible, signals_to


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_both_signals_end_the_work_and_the_innermost_speaks(number, name):

    def work() -> None:
        with interruptible("an inner part that has ended"):
            pass
        with interruptible(lambda: "the inner part is kept; go on"):
            send(number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as error, interruptible("all is lost"):
        work()
    assert str(error.value) == f"stopped by {name}; the inner part is kept; go on"
    assert signal.getsignal(number) == before


def test_an_interrupt_that_was_no_signal_is_told_as_ctrl_c():
    with pytest.raises(Interrupted, match=r"^stopped by Ctrl-C; go on$"), interruptible("go on"):
        raise KeyboardInterrupt


def test_work_that_saves_itself_first_gets_the_signals():
    """And what is around it does not, until it has ended."""
    seen = []

    def work() -> None:
        with signals_to(lambda number, frame: seen.append(number)):
            send(signal.SIGTERM)
        seen.append("saved")
        send(signal.SIGTERM)

    with pytest.raises(Interrupted), interruptible("go on"):
        work()
    assert seen == [signal.SIGTERM, "saved"]


def test_other_threads_work_without_signals():
    """Python gives them to the main thread only; a server that evaluates in a thread must not fail at that."""
    results = []

    def work() -> None:
        with interruptible("go on"):
            results.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == ["done"]
