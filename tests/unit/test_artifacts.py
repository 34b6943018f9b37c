"""Files that say what they were made from, how they reach the disk, and what is said when they are broken."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ppe_lora.artifacts import (
    changed_files,
    check_files,
    hash_file,
    is_current,
    new_folder,
    read_json,
    read_jsonl,
    write_json,
    write_manifest,
    write_text,
)
from ppe_lora.errors import FileError, PpeError


@pytest.mark.parametrize("content", [b'{"inputs": {', b"\xff"])
def test_a_torn_manifest_is_named_with_its_remedy(tmp_path, content):
    """A full disk or a copy that was cut off ended in a traceback of the JSON module."""
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(PpeError) as error:
        is_current(tmp_path, {})
    where, _, rest = str(error.value).partition(" (")
    assert where == f"{path}: expected JSON; got a torn or changed file"
    assert rest.endswith("); copy or download it again, or delete it and repeat the command that wrote it")
    path.unlink()
    write_manifest(tmp_path, {"made": "from this"})
    assert is_current(tmp_path, read_json(path)["inputs"])


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b'{"a": 1}\n{"a"', 2, "Expecting"),
        (b"\xff\n", 1, "'utf-8'"),
        (b"[" * 100_000, 1, "maximum recursion"),
        (b"{}\n7\n", 2, "'int' object"),
    ],
)
def test_a_torn_line_is_named(tmp_path, content, line, problem):
    """Predictions cut by a full disk ended report and compare in a traceback."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(PpeError) as error:
        read_jsonl(path)
    assert str(error.value).startswith(f"{path}:{line}: expected JSON; got a torn or changed file ({problem}")


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed, in order, by the names of files."""
    told: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def on_sync(descriptor: int) -> None:
        told.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def on_move(move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def moved(path: Path, target: Path) -> Path:
            told.append(f"name {target.name}")
            return move(path, target)

        return moved

    monkeypatch.setattr(os, "fsync", on_sync)
    monkeypatch.setattr(Path, "rename", on_move(rename))
    monkeypatch.setattr(Path, "replace", on_move(replace))
    return told


@pytest.mark.skipif(sys.platform != "linux", reason="names of descriptors are read from /proc")
def test_a_file_and_its_name_are_on_the_disk_before_the_next_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a manifest said "whole" of files whose names were not on the disk yet."""
    told = recorded(monkeypatch)
    write_text(tmp_path / "run" / "a.json", "{}")
    temporary = f".a.json.{os.getpid()}.tmp"
    assert told == [f"sync {tmp_path.name}", f"sync {temporary}", "name a.json", "sync run"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of descriptors are read from /proc")
def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epoch adapters, shards and `best/` were written by libraries, which sync nothing."""
    (tmp_path / "best").mkdir()
    told = recorded(monkeypatch)
    with new_folder(tmp_path / "best") as made:
        (made / "adapter").mkdir()
        (made / "adapter" / "weights").write_bytes(b"1")
        (made / "metrics").write_bytes(b"2")
    *synced, moved, named, parent = told
    assert sorted(synced) == sorted(["sync adapter", "sync weights", "sync metrics", f"sync {made.name}"])
    assert (moved, named, parent) == ("name .best.earlier.tmp", "name best", f"sync {tmp_path.name}")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_an_exception_leaves_the_earlier_folder(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "old").touch()
    (tmp_path / ".best.1.tmp").mkdir()  # of a process that was killed
    (tmp_path / ".best.of.2.tmp").mkdir()  # of another folder, `best.of`
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "best") as made:
        (made / "none" / "new").touch()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        ".best.of.2.tmp",
        "best",
        "best/old",
    ]


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    """A folder with a manifest that notes two files, and that a third one is not there."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("1")
    write_manifest(tmp_path, {"made": "from this"}, files=["a", "b", "c"])
    return tmp_path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "a").write_text("2"), "a differs"),
        (lambda folder: (folder / "b").unlink(), "b is missing"),
        (lambda folder: (folder / "c").touch(), "c was not there"),
    ],
)
def test_a_changed_file_is_named_with_what_to_do(noted: Path, change: Callable[[Path], object], words: str) -> None:
    """Files edited or deleted by hand were "complete and unchanged"."""
    assert is_current(noted, {"made": "from this"})
    change(noted)
    assert not is_current(noted, {"made": "from this"})
    with pytest.raises(FileError) as error:
        check_files(noted, "make it again")
    assert str(error.value) == (
        f"{noted}: expected the files that manifest.json notes; got others: {words}; make it again"
    )


def test_a_change_with_its_time_set_back_is_seen(noted: Path) -> None:
    """Size and time of writing are those noted; what the system itself keeps is not."""
    before = (noted / "a").stat()
    time.sleep(0.02)
    (noted / "a").write_text("2")
    os.utime(noted / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [*map(str, changed_files(noted, read_json(noted / "manifest.json")))] == ["a differs"]


def test_files_whose_times_are_as_noted_are_not_read(noted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tens of gigabytes of weights are looked at by every command. A copy has other times: it is read."""
    copy = noted / "copy"
    shutil.copytree(noted, copy, ignore=shutil.ignore_patterns("copy"))
    check_files(copy, "")
    monkeypatch.setattr("ppe_lora.artifacts.sha256", lambda path: pytest.fail(f"{path} was read"))
    check_files(noted, "")
    with pytest.raises(pytest.fail.Exception):
        check_files(copy, "")


def test_a_manifest_of_an_earlier_version_passes(tmp_path: Path) -> None:
    """Names without hashes, or none: what lies there is believed, as it was then."""
    write_json(tmp_path / "manifest.json", {"files": ["a"]})
    check_files(tmp_path, "")
    write_json(tmp_path / "manifest.json", {})
    check_files(tmp_path, "")
    (tmp_path / "a").write_text("1")
    write_json(tmp_path / "manifest.json", {"files": {"a": hash_file(tmp_path / "a")}})
    check_files(tmp_path, "")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", "[1]", "expected a JSON object; got a list"),
        ("a.json", "null", "expected a JSON object; got null"),
        ("manifest.json", '{"inputs": "x"}', 'inputs: expected a valid dictionary; got "x"'),
        ("manifest.json", '{"inputs": {}, "selected_epoch": "1"}', 'selected_epoch: expected a valid integer; got "1"'),
        ("eval_metrics.json", '{"mse_norm": "0.1"}', 'mse_norm: expected a valid number; got "0.1"'),
        ("parity.json", '{"requests": {}}', "requests: expected a valid list; got {}"),
        ("config.json", '{"text_config": [1]}', "text_config: expected a valid dictionary; got [1]"),
        ("model.safetensors.index.json", "{}", "weight_map: expected the key; got none"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path, name, content, problem):
    """A list in place of an object was an AttributeError somewhere behind, a text in place of a number a TypeError."""
    (tmp_path / name).write_text(content)
    with pytest.raises(PpeError) as error:
        read_json(tmp_path / name)
    mend = "copy or download it again, or delete it and repeat the command that wrote it"
    assert str(error.value) == f"{tmp_path / name}: {problem}; {mend}"


def test_a_missing_key_is_the_file_s_fault(tmp_path):
    """A manifest without what every version has ended in a KeyError."""
    write_manifest(tmp_path, {"made": {}})
    (tmp_path / "a.jsonl").write_text('{}\n{"id": 1}\n')
    for read, where in (
        (lambda: read_json(tmp_path / "manifest.json")["inputs"]["made"]["x"], "manifest.json"),
        (lambda: read_jsonl(tmp_path / "a.jsonl")[1]["x"], "a.jsonl:2"),
    ):
        with pytest.raises(PpeError, match=rf"{where}: expected the key 'x'; got none; copy or download"):
            read()
