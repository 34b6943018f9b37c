"""One rule for whatever two processes can share: the second one is refused, or waits where waiting is right.

The lock of a folder or file lies beside it, as `.<name>.lock`: deleting or replacing the folder leaves it alone. The
operating system holds it, so that it ends with the process, however that ends; the file stays and means nothing. Who
holds it is in `.<name>.lock.holder`.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ppe_lora.artifacts import make_folder, write_json
from ppe_lora.boundary import is_first_process
from ppe_lora.errors import InUse

_SAYS_WITHIN_S = 0.5
"""How long a process may take from getting a lock to saying who it is."""


@contextmanager
def holding(
    path: Path,
    remedy: str = "wait for it to end",
    wait: Callable[[str], None] | None = None,
    *,
    lock: Path | None = None,
) -> Iterator[None]:
    """Be the only one who works on a folder or file, until the block ends. It cannot be nested.

    Of an `accelerate launch` the first process holds it for all; where it waits, each takes its turn.

    Args:
        path: What is shared. It need not be there.
        remedy: What the second one is told to do.
        wait: Where waiting is right: called once with who holds the lock, in words, before this waits for it.
        lock: The lock's file, where it is not `.<name>.lock` beside `path`.

    Raises:
        InUse: Another process holds it.
    """
    if wait is None and not is_first_process():
        yield
        return
    file = lock or path.resolve().with_name(f".{path.resolve().name}.lock")
    holder = file.with_name(f"{file.name}.holder")
    held = _acquired(path, file, holder, remedy, wait)
    try:
        write_json(holder, _this_process())
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()


def _acquired(path: Path, file: Path, holder: Path, remedy: str, wait: Callable[[str], None] | None) -> FileLock:
    make_folder(file.parent)
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if wait is None:
            raise InUse(f"{path}: expected no other process at work there; got {_in_words(holder)}; {remedy}") from None
        wait(f"{path}: waiting for {_in_words(holder)}")
        lock.acquire()
    return lock


def _this_process() -> dict[str, Any]:
    program = Path(sys.argv[0]).name.replace("__main__.py", "ppe-lora")
    return {
        "pid": os.getpid(),
        "command": " ".join([program, *sys.argv[1:]]),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _in_words(holder: Path) -> str:
    until = time.monotonic() + _SAYS_WITHIN_S
    while True:
        try:
            one = json.loads(holder.read_text(encoding="utf-8"))
            return f"`{one['command']}` (process {one['pid']} on {one['host']}, since {one['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            if time.monotonic() > until:
                return "one that has not said who it is"
            time.sleep(0.02)
