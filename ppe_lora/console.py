"""What a person sees while work runs: one console, and progress that also makes sense in a log file."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)

_LOG_EVERY_S = 30.0


class Advance(Protocol):
    """Reports that `count` more units are done, with an optional remark such as the current loss."""

    def __call__(self, count: int = 1, note: str = "") -> None: ...


@contextmanager
def progress(title: str, total: int, *, done: int = 0, visible: bool = True) -> Iterator[Advance]:
    """A progress bar with time left on a terminal; elsewhere a plain line every half minute.

    Args:
        title: What is being done.
        total: Units of work in all.
        done: Units already done when the bar starts (a resumed run).
        visible: False on all processes but the first.
    """
    if visible and console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total, completed=done, note="")

            def advance(count: int = 1, note: str = "") -> None:
                bar.update(task, advance=count, note=note)

            yield advance
        return

    started = last = time.monotonic()
    finished = done

    def log(count: int = 1, note: str = "") -> None:
        nonlocal finished, last
        finished += count
        now = time.monotonic()
        if visible and now - last >= _LOG_EVERY_S and finished > done:
            last = now
            left_s = (now - started) / (finished - done) * (total - finished)
            console.print(f"{title}: {finished}/{total}, {left_s / 60:.1f} min left {note}".rstrip())

    yield log


def duration(seconds: float) -> str:
    """Seconds for people: `42 s`, `12 min`, `3.1 h`."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
