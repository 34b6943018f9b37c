"""Work beside the event loop: whatever takes milliseconds in Python would keep everybody else waiting."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_ONE_THREAD = ThreadPoolExecutor(1, thread_name_prefix="aside")
"""One, since tokenizers are not safe to share, and since threads of Python only slow each other down."""

Result = TypeVar("Result")


async def aside(work: Callable[[], Result]) -> Result:
    """Do something in the server's side thread, in turn; what is given up before its turn is not done."""
    return await asyncio.get_running_loop().run_in_executor(_ONE_THREAD, work)
