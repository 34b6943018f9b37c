"""What the world does is told in words, and a bug keeps its traceback."""

import errno
import os
import pickle
import re
import sqlite3
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from ppe_lora.boundary import in_words, naming, run_to_status, world_error
from ppe_lora.console import console
from ppe_lora.errors import DataError, Interrupted, WorldError

ROOT = Path(__file__).parents[2]
KEPT = "then repeat the command; what was finished is kept"


def fails(error: BaseException) -> object:
    def work() -> None:
        raise error

    return work


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def named(module: str, name: str, *bases: type[Exception]) -> type[Exception]:
    return type(name, bases or (Exception,), {"__module__": module})


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a.json"),
            f"out/a.json: expected room on the disk; got No space left on device; free some space, {KEPT}",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", b"out/\xe3\x81\x82", None, "b"),
            "out/あ -> b: expected a folder that can be written; got Read-only file system; mount it writable, or work "
            f"in another one, {KEPT}",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a\nb"),
            "'a\\nb': expected access to it; got Permission denied; change its owner or permissions, or use another "
            f"folder, {KEPT}",
        ),
        (
            OSError(errno.ENOTDIR, "Not a directory", Path("a/b")),
            "a/b: expected folders on the way to it; got Not a directory; a file has the name of one; move that file, "
            "or choose another name",
        ),
        (
            MemoryError(),
            f"expected enough memory; got MemoryError; close other programs or use a machine with more, {KEPT}",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22"),
            "expected room on the disk; got [enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22; free "
            f"some space, {KEPT}",
        ),
        (
            RuntimeError("can't start new thread"),
            "expected room for another process or thread; got can't start new thread; close other programs or raise "
            f"`ulimit -u`, {KEPT}",
        ),
        (
            named("safetensors._x", "SafetensorError")("I/O error: No space left on device (os error 28)"),
            "expected room on the disk; got I/O error: No space left on device (os error 28); free some space, " + KEPT,
        ),
        (
            named("safetensors._x", "SafetensorError")("Error while deserializing header: header too large"),
            "expected whole weights; got Error while deserializing header: header too large; copy or download it "
            "again, or delete it and repeat the command that wrote it",
        ),
        (
            named("torch", "OutOfMemoryError", RuntimeError)("CUDA out of memory. Tried to allocate 20 MiB.\nmore"),
            "expected enough memory on the GPU; got CUDA out of memory. Tried to allocate 20 MiB; close what else runs "
            f"on it, or lower train.rows_per_micro_step and evaluate.batch_rows, {KEPT}",
        ),
        (
            caused(named("datasets.exceptions", "DatasetGenerationError")("x"), OSError(errno.EDQUOT, "Quota", "a")),
            f"a: expected room within the disk quota; got Quota; free some space or raise the quota, {KEPT}",
        ),
        (
            OSError("[Errno 28] Error writing bytes to file"),
            f"expected room on the disk; got [Errno 28] Error writing bytes to file; free some space, {KEPT}",
        ),
        (
            sqlite3.OperationalError("database or disk is full"),
            f"expected room on the disk; got database or disk is full; free some space, {KEPT}",
        ),
        (
            ExceptionGroup("two", [OSError(errno.EIO, "I/O", "a"), OSError(errno.EIO, "I/O", "a")]),
            "a: expected a healthy disk or network drive; got I/O; look at the system's log, mount it again, " + KEPT,
        ),
    ],
)  # fmt: skip
def test_what_the_world_does_is_told_in_words(error, words):
    """A full disk, a foreign owner or a cut file ended in a traceback in every stage but training."""
    assert str(world_error(error)) == words


@pytest.mark.parametrize("error", [zipfile.BadZipFile("x"), EOFError(), pickle.UnpicklingError("x")])
def test_cut_files_are_the_world(error):
    assert world_error(error) is not None


@pytest.mark.parametrize(
    "error",
    [
        KeyError("errno 28"),
        ValueError("x (os error 28)"),
        RuntimeError("x"),
        OSError(errno.EBADF, "Bad file descriptor"),
        ExceptionGroup("two", [OSError(errno.EIO, "I/O"), KeyError("x")]),
        sqlite3.OperationalError("no such table: x"),
    ],
)
def test_bugs_keep_their_traceback(error):
    """A boundary that catches everything hides mistakes of ours as bad luck of the user's."""
    assert world_error(error) is None
    with pytest.raises(type(error)), in_words():
        raise error


def test_an_error_while_another_one_is_handled_is_judged_by_itself():
    """A bug in a handler of a full disk is still a bug."""
    bug = KeyError("missing")
    bug.__context__ = OSError(errno.ENOSPC, "full", "a")
    assert world_error(bug) is None


def test_the_file_is_named_that_the_user_knows():
    """`write` on an open file says "No space left on device" and not where; a temporary file's name says nothing."""
    for names in ((), (".a.tmp",), (".a.tmp", None, "a")):
        with pytest.raises(OSError, match="full") as caught, naming(Path("out/a")):
            raise OSError(errno.ENOSPC, "full", *names)
        assert str(world_error(caught.value)).startswith("out/a: expected room on the disk; got full; ")


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (DataError("rows.csv:3: x"), 2, "error: rows.csv:3: x\n"),
        (Interrupted("saved"), 130, "saved\n"),
        (KeyboardInterrupt(), 130, "stopped; what was finished is kept, and the same command goes on from there\n"),
        (SystemExit(3), 3, ""),
        (SystemExit(None), 0, ""),
        (
            OSError(errno.ENFILE, "Too many open files in system", "a"),
            2,
            "error: a: expected room for another open file; got Too many open files in system; raise the limit (`ulimit"
            f" -n 65536`) or close other programs, {KEPT}\n",
        ),
    ],
)
def test_exit_status_and_words(error, status, told, capsys):
    assert run_to_status(fails(error)) == status
    assert capsys.readouterr().err == told


def test_what_was_going_on_stands_in_front():
    told = r"^step 3: a: expected room on the disk; .* kept\. Resume$"
    with pytest.raises(WorldError, match=told), in_words("step 3", "Resume"):
        raise OSError(errno.ENOSPC, "full", "a")


def test_a_thread_says_it_in_words(capsys):
    """A thread that meets a full disk printed a traceback of its own."""
    run_to_status(lambda: None)
    thread = threading.Thread(target=fails(OSError(errno.ENOSPC, "full", "a")))
    thread.start()
    thread.join()
    assert capsys.readouterr().err.startswith("error: a: expected room on the disk; got full;")


def shell(command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    ppe = f"{sys.executable} -m ppe_lora"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        ["bash", "-c", command.replace("ppe-lora", ppe)], cwd=cwd, env=environment, capture_output=True, text=True
    )


PLAN = "data build recipes/demo.yaml --dry-run"


@pytest.mark.parametrize(
    ("command", "status", "out", "err"),
    [
        (
            f"ppe-lora {PLAN} > /dev/full",
            2,
            "",
            "error: standard output: expected room on the disk; got No space left on device; free some space, "
            f"{KEPT}\n",
        ),
        (f"ppe-lora {PLAN} >&- 2>&-", 0, "", ""),
        (f"ppe-lora {PLAN} | true; exit ${{PIPESTATUS[0]}}", 0, "", ""),
        ("ppe-lora train nowhere.yaml 2> /dev/full", 2, "", ""),
        (
            "mkdir gone; cd gone; rmdir ../gone; ppe-lora doctor",
            2,
            "",
            "error: the working folder: expected it to be there; got No such file or directory; change to another "
            f"folder, {KEPT}\n",
        ),
    ],
)  # fmt: skip
def test_streams_and_folders_that_are_gone(command, status, out, err, tmp_path):
    """A log on a full disk, a closed terminal, `| head` and a deleted folder each ended in a traceback."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    done = shell(command, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


def test_an_ascii_terminal_gets_escapes(tmp_path):
    """Under PYTHONIOENCODING=ascii the first Japanese path ended in a UnicodeEncodeError."""
    done = shell("ppe-lora train 無い.yaml; ppe-lora data build 有る.yaml", tmp_path, PYTHONIOENCODING="ascii")
    assert done.stderr == (
        "error: \\u7121\\u3044.yaml: no such recipe; the shipped ones are in recipes/\n"
        "error: \\u6709\\u308b.yaml: no such recipe; the shipped ones are in recipes/\n"
    )


def test_the_console_prints_brackets_and_colons_as_they_are(capsys):
    """A folder `[bold]` vanished from messages, `[/x]` ended in a MarkupError, and `:smile:` became a picture."""
    console.print("a[bold]b [/x] :smile:")
    assert capsys.readouterr().out == "a[bold]b [/x] :smile:\n"


def test_no_module_writes_markup():
    """The console prints texts as they are: markup would be shown."""
    markup = re.compile(r"\[/?(?:bold|dim|red|green|yellow|blue|cyan)\]|rich\.markup|markup=True")
    found = [path.name for path in (ROOT / "ppe_lora").rglob("*.py") if markup.search(path.read_text())]
    assert found == []
