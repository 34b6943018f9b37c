"""A second model that answers the same requests, for the log only: how would it have done?"""

import asyncio
import errno
import json
import logging
import time
from contextlib import ExitStack
from pathlib import Path

from ppe_lora.locks import holding
from ppe_lora.private import keep_file_out_of_git, opener
from ppe_lora.serving.backend import ApiError, Ask, Backend, Reply
from ppe_lora.serving.failures import log_failure

logger = logging.getLogger(__name__)


class Shadow:
    """Asks the shadow model behind every answer that was given, and appends both to a JSONL file.

    It never delays or fails an answer: where the shadow model has no room or fails, the line says so.

    Args:
        name: The shadow model's name.
        backend: The shadow model.
        path: The log. It holds requests as people wrote them.

    Raises:
        InUse: Another server writes this log.
    """

    def __init__(self, name: str, backend: Backend, path: Path) -> None:
        self.name = name
        self._backend = backend
        self._open = ExitStack()
        # Unbuffered: what a full disk does not take is gone, and not tried again at every line.
        self._log = self._open.enter_context(open(path, "ab", buffering=0, opener=opener))  # noqa: SIM115
        self._open.enter_context(holding(path, "name another file with --shadow-log"))
        self._torn = False
        keep_file_out_of_git(path)
        self._under_way: set[asyncio.Task[None]] = set()

    def compare(self, asks: list[Ask], answered_by: str, replies: list[Reply]) -> None:
        """Begin to ask the shadow model what another one has answered."""
        task = asyncio.get_running_loop().create_task(self._compare(asks, answered_by, replies))
        self._under_way.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._under_way.discard)

    async def _compare(self, asks: list[Ask], answered_by: str, replies: list[Reply]) -> None:
        own: list[Reply] | None = None
        problem: str | None = None
        try:
            own = await self._backend.answer(asks)
        except ApiError as error:
            problem = error.message
        except Exception as error:
            problem = f"failure {log_failure('the shadow model', error)} of the log"
        lines = []
        for index, (ask, reply) in enumerate(zip(asks, replies, strict=True)):
            line = {
                "time": round(time.time(), 3),
                "request": ask.request,
                "context": ask.context,
                "language": ask.language,
                "answers": {answered_by: reply.parameters, self.name: own[index].parameters if own else None},
                "problem": problem,
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        self._write("".join(lines).encode())

    def _write(self, text: bytes) -> None:
        try:
            whole = b"\n" + text if self._torn else text
            if (written := self._log.write(whole)) < len(whole):
                raise OSError(errno.ENOSPC, f"{written} of {len(whole)} bytes were written")
            self._torn = False
        except OSError as error:
            if not self._torn:
                logger.warning(
                    "shadow's log: expected room; got: %s; comparisons are lost until there is", error.strerror
                )
            self._torn = True

    async def close(self) -> None:
        """Wait for the comparisons under way and close the log."""
        await asyncio.gather(*self._under_way)
        self._open.close()
