"""What people wrote and what was paid for: readable by its owner only, and no part of the next `git add .`."""

import asyncio
import os
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import Counter

from ppe_lora.artifacts import write_text
from ppe_lora.corpus.teachers.llm.batch import write_batch_files
from ppe_lora.corpus.teachers.llm.raw_log import RawLog
from ppe_lora.private import keep_file_out_of_git
from ppe_lora.serving import traces
from ppe_lora.serving.backend import Ask, Reply
from ppe_lora.serving.shadow import Shadow
from tests.serving import Scripted
from tests.teacher_fakes import question, reply_to

ASK = Ask("a secret wish", "en", None)
REPLY = Reply({"a": 1.0}, None, False, 1, 1)


@pytest.fixture(autouse=True, params=[0o022, 0o000], ids=["usual umask", "no umask"])
def _umask(request: pytest.FixtureRequest) -> Any:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's own repository, in which the product is used."""
    folder = tmp_path / "theirs"
    subprocess.run(["git", "init", "-q", folder], check=True)
    monkeypatch.chdir(folder)
    return folder


def added(repository: Path) -> list[str]:
    """What `git add .` would take."""
    done = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=repository, capture_output=True, text=True, check=True
    )
    return [line[3:] for line in done.stdout.splitlines() if not line.endswith(".lock")]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_raw_answers(repository: Path) -> None:
    folder = repository / "data" / "raw" / "d"
    with RawLog(folder) as log:
        log.write([reply_to(question(1))], "fake")
    write_batch_files([question(1)], folder / "answers.batch", "mistral")
    assert [mode(folder / "answers.jsonl"), mode(folder / "answers.batch" / "requests-000.jsonl")] == [0o600, 0o600]
    assert added(repository) == []


def test_an_earlier_versions_raw_answers_become_private(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").touch(mode=0o644)
    RawLog(tmp_path).close()
    assert mode(tmp_path / "answers.jsonl") == 0o600


def test_the_shadows_log(repository: Path) -> None:
    async def compare() -> None:
        shadow = Shadow("b", Scripted(1.0, 2.0), Path("shadow.jsonl"))
        shadow.compare([ASK], "a", [REPLY])
        await shadow.close()

    asyncio.run(compare())
    asyncio.run(compare())  # its line is written once
    assert mode(repository / "shadow.jsonl") == 0o600
    assert "a secret wish" in (repository / "shadow.jsonl").read_text()
    assert added(repository) == []
    assert (repository / ".git" / "info" / "exclude").read_text().count("shadow.jsonl") == 1


def test_traces(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "launch", lambda *_: SimpleNamespace(stdin=None))
    one = traces.Traces("me/p", Path("served_traces"), Counter("dropped_for_a_test", "x", registry=None))
    one.record([ASK], "m", [REPLY], 1.0)
    one.close()
    (segment,) = (repository / "served_traces" / "answered").glob("*.jsonl")
    assert mode(segment) == 0o600
    assert added(repository) == []


def test_a_file_in_no_repository_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shadow.jsonl").touch()
    keep_file_out_of_git(tmp_path / "shadow.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["shadow.jsonl"]


def test_other_files_keep_the_rights_of_the_umask(tmp_path: Path) -> None:
    """A report that colleagues cannot read would be a bug, too."""
    umask = os.umask(0)
    os.umask(umask)
    write_text(tmp_path / "report.html", "x")
    assert mode(tmp_path / "report.html") == 0o666 & ~umask
