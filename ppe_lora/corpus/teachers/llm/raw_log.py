"""The raw replies of a teacher on disk, so that no answer that was paid for is ever asked for again."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ppe_lora.artifacts import make_folder, sync
from ppe_lora.console import console
from ppe_lora.corpus.teachers.llm.budget import Usage, usage_of
from ppe_lora.corpus.teachers.llm.exchange import Reply, Unavailable
from ppe_lora.errors import DataError, RunError
from ppe_lora.locks import holding
from ppe_lora.private import keep_out_of_git, opener


class Shard(NamedTuple):
    """Which part of the questions a process asks: number 1 to `of`."""

    number: int
    of: int

    def takes(self, key: str) -> bool:
        """Whether the question of that key is this process's. Each question is exactly one shard's."""
        return int(key, 16) % self.of == self.number - 1


class _Line(BaseModel):
    """One line of a raw log."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    endpoint: str
    """Who answered."""
    at: str
    """When, in UTC."""

    @property
    def reply(self) -> Reply:
        """The reply itself."""
        return Reply(self.key, self.text, self.finish_reason, self.prompt_tokens, self.completion_tokens)


def read_replies(folder: Path, stem: str = "answers", *, skip_corrupt: bool = False) -> dict[str, Reply]:
    """All replies in the raw logs of a folder, by the question's key, whichever process wrote them.

    Where two files answer the same question, the first file in the order of names counts. A last line without its
    end is the trace of a kill, or of a process that is writing now: it is left out.

    Args:
        folder: Holds the files. None is no error.
        stem: How their names begin.
        skip_corrupt: Leave corrupt lines out, with a word, instead of refusing the file.

    Raises:
        DataError: A whole line is not a reply: `file:line` and what to do.
    """
    return _merge(_read_folder(folder, stem, skip_corrupt))


def _read_folder(folder: Path, stem: str, skip_corrupt: bool) -> dict[Path, list[Reply]]:
    return {path: _read_file(path, skip_corrupt) for path in sorted(folder.glob(f"{stem}*.jsonl"))}


def _merge(by_file: Mapping[Path, Sequence[Reply]]) -> dict[str, Reply]:
    replies: dict[str, Reply] = {}
    for found in by_file.values():
        for reply in found:
            replies.setdefault(reply.key, reply)
    return replies


def _read_file(path: Path, skip_corrupt: bool) -> list[Reply]:
    replies = []
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            replies.append(_Line.model_validate_json(line).reply)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in problem["loc"]) or "line"
            message = f"{path}:{number}: expected a raw reply; got a corrupt line ({where}: {problem['msg']})"
            if not skip_corrupt:
                raise DataError(
                    f"{message}; restore it, or ask for corrupt lines to be skipped: their questions are asked again"
                ) from error
            console.print(f"{message}; skipped, its question is asked again")
    return replies


class RawLog:
    """The file that this process appends to, and all replies that its folder held at the start.

    Replies of other processes that appear later are not seen: shards ask different questions.

    Args:
        folder: Where the logs of one data set lie; made if missing.
        shard: Writes `answers-1of4.jsonl` rather than `answers.jsonl`. Without one no shard may be at work.
        stem: How its files are called. What is asked for another purpose, with a budget of its own, has another one.
        skip_corrupt: As in `read_replies`.

    Raises:
        DataError: A file there is corrupt.
        InUse: Another process appends to the same file.
    """

    def __init__(
        self, folder: Path, shard: Shard | None = None, *, stem: str = "answers", skip_corrupt: bool = False
    ) -> None:
        make_folder(folder)
        keep_out_of_git(folder)
        self.folder, self.shard = folder, shard
        self.path = folder / (f"{stem}-{shard.number}of{shard.of}.jsonl" if shard else f"{stem}.jsonl")
        self._open = ExitStack()
        # Who asks everything asks again what a shard is asking now: both would be paid.
        others = [] if shard else sorted(folder.glob(f"{stem}-*of*.jsonl"))
        for path in (self.path, *others):
            self._open.enter_context(_holding(path))
        self._file = self._open.enter_context(open(self.path, "ab", buffering=0, opener=opener))  # noqa: SIM115
        sync(folder)
        _cut_torn_line(self.path)
        try:
            by_file = _read_folder(folder, stem, skip_corrupt)
        except DataError:
            self.close()
            raise
        self.replies = _merge(by_file)
        paid = by_file[self.path] if shard else [reply for found in by_file.values() for reply in found]
        self.spent = sum((usage_of(reply) for reply in paid), Usage())
        """What the replies of earlier runs used: of all files, or of a shard's own."""
        self._waiting: list[tuple[Reply, bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, replies: Sequence[Reply], endpoint: str) -> None:
        """Append replies and return when they are on disk.

        Args:
            replies: Any number of them, for one fsync.
            endpoint: Who answered.

        Raises:
            RunError: The disk is full, or the file cannot be written.
            Unavailable: A text is no Unicode. Nothing is written then.
        """
        self._write(replies, b"".join([_line(reply, endpoint) for reply in replies]))

    async def append(self, reply: Reply, endpoint: str) -> None:
        """Append one reply and return when it is on disk; replies that come during one fsync share the next.

        Raises:
            RunError, Unavailable: As `write`.
        """
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((reply, _line(reply, endpoint), done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())
        await done

    async def flush(self) -> None:
        """Return when every reply handed to `append` is on disk, even where nobody waits for it any more."""
        if self._writer is not None:
            await self._writer

    def close(self) -> None:
        """Close the file and let other processes append to it."""
        self._open.close()

    async def _write_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            replies, lines, futures = zip(*batch, strict=True)
            try:
                await asyncio.to_thread(self._write, replies, b"".join(lines))
            except Exception as error:  # whatever it is, those who wait must hear of it
                for future in futures:
                    if not future.cancelled():
                        future.set_exception(error)
                continue
            for future in futures:
                if not future.cancelled():
                    future.set_result(None)

    def _write(self, replies: Sequence[Reply], lines: bytes) -> None:
        file, whole = self._file.fileno(), self._file.tell()
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        except OSError as error:
            os.ftruncate(file, whole)
            raise RunError(
                f"{self.path}: expected to append {len(replies)} replies; got {error.strerror}; make room and run the "
                "same command again"
            ) from error
        for reply in replies:
            self.replies[reply.key] = reply


def _holding(path: Path) -> AbstractContextManager[None]:
    """Be the only process that appends to a raw log. The lock lies beside the folder, which holds nothing but logs.

    Raises:
        InUse: Another one does.
    """
    lock = path.parent.resolve().with_name(f".{path.parent.resolve().name}.{path.stem}.lock")
    return holding(path, "wait for it to end, or give each process a shard of its own", lock=lock)


def _line(reply: Reply, endpoint: str) -> bytes:
    try:
        reply.text.encode()
    except UnicodeEncodeError as error:
        raise Unavailable(f"{endpoint}: expected text; got {reply.text!r}, which is no Unicode") from error
    line = _Line(**reply._asdict(), endpoint=endpoint, at=datetime.now(UTC).isoformat(timespec="seconds"))
    return line.model_dump_json().encode() + b"\n"


def _cut_torn_line(path: Path) -> None:
    """Cut what follows the last line's end, so that the next line starts on its own."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        console.print(
            f"{path}: the last line was cut off by a kill ({len(content) - whole} bytes); removed, its question is "
            "asked again",
        )
        os.truncate(path, whole)
