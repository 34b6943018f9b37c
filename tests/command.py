"""The command line, run in this process."""

import sys

import pytest

from ppe_lora import cli


def ppe_lora(*arguments: str) -> int:
    """Run `ppe-lora` in the working directory; return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ppe-lora", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return int(end.value.code or 0)
