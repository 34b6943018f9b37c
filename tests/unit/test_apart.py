"""What is said of a process of another environment that failed."""

import pytest

from ppe_lora.export.apart import last_lines

TRACEBACK = b"""\
Loading weights: 100%
Traceback (most recent call last):
  File "a.py", line 3, in <module>
    work()
OSError: [Errno 28] No space left on device
"""


@pytest.mark.parametrize(
    ("status", "printed", "said"),
    [
        (1, TRACEBACK, "OSError: [Errno 28] No space left on device"),
        (1, b"a\nBPE \xff was not recognized\n", "a\nBPE \ufffd was not recognized"),
        (1, b"\n".join(b"%d" % number for number in range(20)), "\n".join(map(str, range(5, 20)))),
        (-9, b"Loading weights: 3%\n", "Loading weights: 3%\nended by SIGKILL, often for lack of memory"),
        (-11, b"", "ended by SIGSEGV"),
    ],
)
def test_the_error_is_said_and_not_the_traceback(status, printed, said):
    """A merge that could not be read back showed another process's traceback; one that was killed said nothing."""
    assert last_lines(status, printed) == said
