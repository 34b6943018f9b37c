"""What a person sees while work runs: one console, and progress that also makes sense in a log file.

Texts are printed as they are: what stands in brackets or between colons in a path, a request or an error is no markup.
Colour is a `rich.text.Text`.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


class _Console(Console):
    """Work does not end because nobody reads what it prints any more: a closed terminal, a full disk with its log."""

    lost: OSError | None = None
    """Why printing has stopped, unless only the reader has gone."""

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError as error:
            error.filename = "standard output"
            self.lost = error
            self._fall_silent()

    def on_broken_pipe(self) -> None:
        self._fall_silent()

    def _fall_silent(self) -> None:
        self.quiet = True
        with suppress(OSError, ValueError):  # else the interpreter would fail at its end, flushing what is left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if not os.environ.get("COLUMNS", "1").strip("0"):
    del os.environ["COLUMNS"]  # a terminal without a size: tables would have no width, and nothing would be shown
console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

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
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
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


def warn(text: str) -> None:
    """Print a warning; the work goes on."""
    console.print(Text.assemble(("warning:", "yellow"), " ", text))


def duration(seconds: float) -> str:
    """Seconds for people: `42 s`, `12 min`, `3.1 h`."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
