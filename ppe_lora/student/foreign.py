"""Folders of models that others made: what a library raises while it reads one is the folder's fault, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppe_lora.boundary import check_file, world_error
from ppe_lora.errors import ModelError, PpeError

_MISTAKES = (TypeError, AttributeError, LookupError, NameError, AssertionError, ArithmeticError)


@contextmanager
def reading_model(folder: Path, expected: str, remedy: str) -> Iterator[None]:
    """Turn what a library cannot read into words. A mistake of this package, and what the machine lacks, pass as they
    are.

    Args:
        folder: What is read.
        expected: What it should hold: `a tokenizer`.
        remedy: What to do.

    Raises:
        ModelError: The library cannot read it.
    """
    try:
        yield
    except PpeError:
        raise
    except Exception as error:  # a hostile configuration is any of them: ZeroDivisionError, KeyError, ...
        # An OSError without a number is a library's word for an odd file.
        of_machine = world_error(error) is not None and not (isinstance(error, OSError) and error.errno is None)
        if of_machine or _is_ours(error):
            raise
        said = " ".join(str(error).split())
        said = said if len(said) <= 300 else f"{said[:297]}..."
        raise ModelError(f"{folder}: expected {expected}; got {type(error).__name__}: {said}; {remedy}") from error


def check_folder(folder: Path) -> None:
    """Raise where a model folder holds a pipe or a device: a library would wait for it without end.

    Raises:
        FileError: It does.
    """
    for path in folder.iterdir():
        check_file(path)


def _is_ours(error: BaseException) -> bool:
    """Whether a line of this package made a mistake. Libraries in C and Rust have no lines, and errors of their own."""
    if not isinstance(error, _MISTAKES):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is None or str(trace.tb_frame.f_globals.get("__name__", "")).startswith("ppe_lora")
