"""Files with what people wrote or paid for: for their owner's eyes only, and not for git.

Raw answers of teachers, batch files, traces and the shadow's log. Whatever the umask says, they are made 0600; an
earlier version's file becomes so when it is opened.
"""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

MODE = 0o600


def opener(path: str, flags: int) -> int:
    """For `open(..., opener=opener)`: what is made is 0600, and what was there becomes so where it is ours."""
    descriptor = os.open(path, flags, MODE)
    if hasattr(os, "fchmod"):  # Windows has other rights
        with suppress(PermissionError):
            os.fchmod(descriptor, MODE)
    return descriptor


def keep_out_of_git(folder: Path) -> None:
    """Have git pass over a folder of ours, in whatever repository it lies."""
    path = folder / ".gitignore"
    if not path.exists():
        path.write_text("*\n", encoding="utf-8")


def keep_file_out_of_git(path: Path) -> None:
    """Have git pass over a file in a folder that is not ours: a line in the repository's own `info/exclude`."""
    place = path.absolute()
    if _git(place.parent, "check-ignore", "-q", place.name) != "1":  # ignored, in no repository, or no git
        return
    top = _git(place.parent, "rev-parse", "--show-toplevel")
    exclude = _git(place.parent, "rev-parse", "--path-format=absolute", "--git-path", "info/exclude")
    with suppress(OSError, ValueError):
        line = f"/{place.resolve().relative_to(Path(top).resolve()).as_posix()}\n"
        Path(exclude).parent.mkdir(parents=True, exist_ok=True)
        with Path(exclude).open("a", encoding="utf-8") as file:
            file.write(line)


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, or its exit status where it prints nothing; empty where there is no git."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() or str(done.returncode)
