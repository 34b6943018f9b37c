"""What should not happen: one line of the log with an id, which the client is told, too."""

import logging
import traceback
import uuid
from pathlib import Path

logger = logging.getLogger(__name__)

_FRAMES = 3
_LONGEST = 300


def log_failure(doing: str, error: BaseException) -> str:
    """Log what failed, why, and where in the code; return the id of the line.

    A traceback for each request that meets the same bug would fill the log within minutes.
    """
    failure = uuid.uuid4().hex[:8]
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    reason = repr(str(error)[:_LONGEST])
    logger.error("failure %s: %s: %s: %s; at %s", failure, doing, type(error).__name__, reason, places)
    return failure
