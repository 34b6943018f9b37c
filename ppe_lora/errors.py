"""Errors a user can mend. They print without a traceback and exit with status 2; any other exception is a bug."""

from ppe_lora.redaction import mask


class PpeError(Exception):
    """Base of all errors whose message says where, what was expected, what was found, and what to do.

    Secrets in the message are masked: servers echo keys, and addresses of proxies hold passwords.
    """

    def __init__(self, *message: object) -> None:
        super().__init__(*(mask(part) if isinstance(part, str) else part for part in message))


class RecipeError(PpeError):
    """A recipe cannot be loaded: every problem found, one per line, each starting with `file:line`."""


class DataError(PpeError):
    """A data file or a data set breaks the row contract; the message starts with `file:line` where there is one."""


class ModelError(PpeError):
    """A base model, tokenizer, adapter or quantization cannot be used as asked."""


class FileError(PpeError, ValueError):
    """A file that the package wrote is torn, or somebody has changed it."""


class MetricError(PpeError):
    """A metric is undefined for its input (no rows, or shapes that differ)."""


class SelectionError(PpeError):
    """No epoch passes the recipe's format gate."""


class RunError(PpeError):
    """A run folder cannot be written, resumed or read as asked."""


class InUse(RunError):
    """Another process works on what this one would change; the message says which one."""


class ServeError(PpeError):
    """A server cannot be started as asked."""


class EngineError(PpeError):
    """A serving engine or its tools are missing, cannot be reached, or do not answer as asked."""


class WorldError(PpeError):
    """The disk, the memory, a file, the network or a terminal failed (see `ppe_lora.boundary`)."""


class Interrupted(PpeError):
    """Work stopped on a signal; what was done is saved, and the message says how to go on."""
