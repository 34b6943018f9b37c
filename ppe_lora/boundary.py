"""The boundary to the world: what disks, memory, terminals and broken files do becomes words, and exit status 2.

`cli.main` runs every command inside it, so that stages need no handlers of their own: files are written whole or not
at all (`artifacts`), and what was finished before an accident stays. A bug keeps its traceback: what belongs to the
world is decided by the type of an exception and its error number, here and nowhere else.
"""

import errno
import io
import os
import pickle
import re
import socket
import sqlite3
import ssl
import stat
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TextIO

from ppe_lora.errors import FileError, Interrupted, PpeError, WorldError

_KEPT = "then repeat the command; what was finished is kept"
_BROKEN = "copy or download it again, or delete it and repeat the command that wrote it"
_LATER_RANKS_S = 5.0
"""How long the other processes of a launch wait with their words: the launcher ends them once the first has spoken."""


class _Words(NamedTuple):
    """What was expected, and what to do."""

    expected: str
    remedy: str


_ROOM = _Words("room on the disk", f"free some space, {_KEPT}")
_ACCESS = _Words("access to it", f"change its owner or permissions, or use another folder, {_KEPT}")
_FOLDER = _Words("folders on the way to it", "a file has the name of one; move that file, or choose another name")
_SANE = _Words("a healthy disk or network drive", f"look at the system's log, mount it again, {_KEPT}")
_THERE = _Words("it to be there", f"it was moved or deleted, or never written; bring it back, {_KEPT}")
_FILES = _Words("room for another open file", f"raise the limit (`ulimit -n 65536`) or close other programs, {_KEPT}")
_MEMORY = _Words("enough memory", f"close other programs or use a machine with more, {_KEPT}")
_GPU_MEMORY = _Words(
    "enough memory on the GPU",
    f"close what else runs on it, or lower train.rows_per_micro_step and evaluate.batch_rows, {_KEPT}",
)
_PROCESSES = _Words("room for another process or thread", f"close other programs or raise `ulimit -u`, {_KEPT}")
_HOME = _Words("a home folder", "set HOME, or name the caches in PPE_LORA_CACHE and HF_HOME")
_ANSWER = _Words("an answer from the network", f"look at the network and the server's address, {_KEPT}")
_WHOLE = _Words("a whole file", _BROKEN)
_USABLE = _Words("a file that can be used", _BROKEN)
_WHOLE_WEIGHTS = _Words("whole weights", _BROKEN)

_BY_NAME = {
    "ENOSPC": _ROOM,
    "EDQUOT": _Words("room within the disk quota", f"free some space or raise the quota, {_KEPT}"),
    "EFBIG": _Words("larger files to be allowed", f"raise `ulimit -f`, or use another file system, {_KEPT}"),
    "EROFS": _Words("a folder that can be written", f"mount it writable, or work in another one, {_KEPT}"),
    "EACCES": _ACCESS,
    "EPERM": _ACCESS,
    "ENOTDIR": _FOLDER,
    "EISDIR": _Words("a file", "a folder has its name; move that folder, or choose another name"),
    "EEXIST": _Words("no such file yet", f"something else made it; move it, {_KEPT}"),
    "ENOTEMPTY": _Words("an empty folder", f"another program writes into it; end that program, {_KEPT}"),
    "ENOENT": _THERE,
    "ELOOP": _Words("a path that ends", "symbolic links lead in a circle; mend them"),
    "ENAMETOOLONG": _Words("a shorter name", "choose a shorter name or folder"),
    "EMFILE": _FILES,
    "ENFILE": _FILES,
    "ENOMEM": _MEMORY,
    "EAGAIN": _PROCESSES,
    "ESTALE": _SANE,
    "EIO": _SANE,
    "ENODEV": _SANE,
    "ENXIO": _Words("a file", "it is a socket or a device; name a file"),
    "EBUSY": _Words("a file that nobody holds", f"end the program that uses it, {_KEPT}"),
    "ETXTBSY": _Words("a file that nobody holds", f"end the program that uses it, {_KEPT}"),
    "EXDEV": _Words("one file system", "a mount lies inside the folder; use another folder"),
    "ENOLCK": _Words("locks on this drive", "use a local disk, or mount the network drive with locks"),
    "ENOTCONN": _SANE,
    "EREMOTEIO": _SANE,
    "EPIPE": _Words("a reader at the other end", f"the program that read has ended; start it again, {_KEPT}"),
}  # fmt: skip
_ERRNO = {getattr(errno, name): words for name, words in _BY_NAME.items() if hasattr(errno, name)}
"""Not every system has every number."""
_IN_TEXT = re.compile(r"(?:os error |[Ee]rrno )(\d+)")
"""How libraries in Rust and C++ quote an error number."""
_TYPES: tuple[tuple[str, str, _Words], ...] = (
    ("torch", "OutOfMemoryError", _GPU_MEMORY),
    ("safetensors", "SafetensorError", _WHOLE_WEIGHTS),
)
"""Exceptions of libraries that may not be loaded here: package and name."""
_TEXTS: tuple[tuple[type[Exception], str, _Words], ...] = (
    (RuntimeError, "file write failed", _ROOM),
    (RuntimeError, "unexpected pos", _ROOM),
    (RuntimeError, "PytorchStreamReader failed", _WHOLE_WEIGHTS),
    (RuntimeError, "can't allocate memory", _MEMORY),
    (RuntimeError, "CUDA error: out of memory", _GPU_MEMORY),
    (RuntimeError, "CUBLAS_STATUS_ALLOC_FAILED", _GPU_MEMORY),
    (RuntimeError, "can't start new thread", _PROCESSES),
    (RuntimeError, "Could not determine home directory", _HOME),
    (sqlite3.Error, "disk is full", _ROOM),
    (sqlite3.Error, "readonly", _ACCESS),
    (sqlite3.Error, "unable to open", _ACCESS),
    (sqlite3.Error, "malformed", _WHOLE),
    (sqlite3.Error, "not a database", _WHOLE),
)
"""Types that also stand for bugs, with what their texts say when the world is the cause."""
_NETWORK = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)
_ENDLESS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_BROKEN_FILES = (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError)


def world_error(error: BaseException) -> WorldError | None:
    """What a person is told of an exception that the world caused; None for a bug.

    Looks at the exception and at what it was explicitly raised from; a group is the world's if all its members are.
    """
    if isinstance(error, BaseExceptionGroup):
        told = [world_error(one) for one in error.exceptions]
        return WorldError("\n".join(dict.fromkeys(map(str, told)))) if all(told) else None
    words = _words_of(error)
    if words is None:
        return world_error(error.__cause__) if error.__cause__ is not None else None
    said = _said(error)
    return WorldError(f"{_where(error)}expected {words.expected}; got {said}; {words.remedy}")


@contextmanager
def in_words(doing: str = "", remedy: str = "") -> Iterator[None]:
    """Raise what the world does as a `WorldError`, and what no stage handled of Ctrl-C as `Interrupted`.

    Args:
        doing: What was going on, put in front of the message.
        remedy: What to do after the message's own advice.

    Raises:
        WorldError: The disk, the memory, a file or a terminal failed.
        Interrupted: Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("stopped; what was finished is kept, and the same command goes on from there") from None
    except PpeError:
        raise
    except Exception as error:
        told = world_error(error)
        if told is None:
            raise
        raise WorldError(f"{doing}{': ' if doing else ''}{told}{'. ' if remedy else ''}{remedy}") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError name this file: one from an open file names none, and one from a temporary file that one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def check_file(path: Path) -> None:
    """Raise unless a path that exists is a file or a folder: a pipe or a device may be read without end.

    Raises:
        FileError: It is neither.
    """
    found = path.stat().st_mode if path.exists() else stat.S_IFREG
    kind = next((words for is_kind, words in _ENDLESS if is_kind(found)), None)
    if kind is not None:
        raise FileError(f"{path}: expected a file; got {kind}; write its content into a file, and name that one")


def run_to_status(work: Callable[[], object]) -> int:
    """Run a command; say what stopped it on standard error, without a traceback unless it is a bug.

    Returns:
        The exit status: 0, 130 for a signal, 2 for an error a user can mend, or what `work` exits with.
    """
    try:
        _prepare()
        with in_words():
            work()
        status: object = 0
    except SystemExit as end:
        status = end.code
    except Interrupted as error:
        status = _tell(str(error), 130)
    except PpeError as error:
        status = _tell(f"error: {error}", 2)
    failed = _close(sys.stdout)
    if failed is not None and not status:
        status = _tell(f"error: standard output: {failed}", 2)
    return int(status) if isinstance(status, int) else 0 if status is None else _tell(str(status), 1)


def is_first_process() -> bool:
    """Whether this process is the first of a launch, which writes and speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _tell(text: str, status: int) -> int:
    if not is_first_process():
        time.sleep(_LATER_RANKS_S)
    with suppress(OSError, ValueError):  # nobody may be left to hear it
        print(text, file=sys.stderr, flush=True)
    return status


def _prepare() -> None:
    """Make the streams and threads safe, before anything is printed.

    Raises:
        WorldError: The working folder is gone.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would get this number, and what others print
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal shows \u3042 instead of ending the work
            stream.reconfigure(errors="backslashreplace")
    threading.excepthook = _thread_failed
    try:
        Path.cwd()
    except OSError as error:
        raise WorldError(
            f"the working folder: expected it to be there; got {_said(error)}; change to another folder, {_KEPT}"
        ) from None


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    told = world_error(failed.exc_value) if failed.exc_value is not None else None
    if told is None:
        threading.__excepthook__(failed)
    else:
        _tell(f"error: {told}", 2)


def _close(stream: TextIO) -> str | None:
    """Flush a stream; what went wrong in words, unless only its reader has gone, as with `| head`."""
    try:
        stream.flush()
    except OSError as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or the interpreter fails again at its end
        told = world_error(error)
        return None if isinstance(error, BrokenPipeError) else str(told or error)
    return None


def _words_of(error: BaseException) -> _Words | None:
    if isinstance(error, OSError) and not isinstance(error, io.UnsupportedOperation):
        if isinstance(error, _NETWORK) and not isinstance(error, BrokenPipeError):
            return _ANSWER
        number = error.errno if error.errno is not None else _number_in(error)
        # One without a number was made by a library, to say that a file is not as it should be.
        return _USABLE if number is None else _ERRNO.get(number)
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, _BROKEN_FILES):
        return _WHOLE
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    by_name = next((words for package, name, words in _TYPES if (package, name) in kinds), None)
    if by_name or type(error) is Exception or isinstance(error, RuntimeError):
        by_number = _ERRNO.get(_number_in(error) or 0)
        if by_number:
            return by_number
    by_text = next((words for kind, text, words in _TEXTS if isinstance(error, kind) and text in str(error)), None)
    return by_name or by_text


def _number_in(error: BaseException) -> int | None:
    found = _IN_TEXT.search(str(error))
    return int(found[1]) if found else None


def _where(error: BaseException) -> str:
    names = [getattr(error, "filename", None), getattr(error, "filename2", None)]
    shown = [os.fsdecode(name) for name in names if isinstance(name, (str, bytes, os.PathLike))]
    return f"{' -> '.join(name if name.isprintable() else repr(name) for name in shown)}: " if shown else ""


def _said(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = str(text).strip().splitlines()[0].rstrip(".")
    return line if len(line) < 300 else f"{line[:297]}..."
