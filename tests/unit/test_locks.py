"""What two processes can share has one lock, which the operating system holds."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ppe_lora.errors import InUse
from ppe_lora.locks import holding
from tests.command import ppe_lora

RECIPE = "data: {name: d, source: {kind: generate, rows: 60}}\nstudent: {model: smollm2-135m}\n"
_HOLDER = """
import sys, time
from pathlib import Path
from ppe_lora.locks import holding
sys.argv = ["__main__.py", "run", "recipes/demo.yaml"]
with holding(Path({path!r})):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a path until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER.format(path=str(path))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_second_one_is_told_who_works_there(tmp_path: Path) -> None:
    """Two runs of one recipe trained in one folder, and both ended with status 0."""
    run = tmp_path / "checkpoints" / "demo"
    with another_process(run) as other, pytest.raises(InUse) as error, holding(run, "use another name"):
        pass
    where, _, rest = str(error.value).partition(" on ")
    assert where == (
        f"{run}: expected no other process at work there; got `ppe-lora run recipes/demo.yaml` (process {other.pid}"
    )
    assert rest.endswith("); use another name")
    assert f", since {time.strftime('%Y-%m-%d')}" in rest


def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path) -> None:
    """A lock that is a file would have to be deleted by hand after every crash."""
    with another_process(tmp_path / "run") as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        with holding(tmp_path / "run"):
            pass
    with holding(tmp_path / "run"):
        pass


def test_a_lock_outlives_its_folder(tmp_path: Path) -> None:
    """`--fresh` deletes the run folder while it works: nobody else may start there meanwhile, nor is a lock lost."""
    run = tmp_path / "run"
    run.mkdir()
    with another_process(run):
        run.rmdir()
        with pytest.raises(InUse), holding(run):
            pass
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_same_folder_by_another_name_has_the_same_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with holding(Path("run")), pytest.raises(InUse), holding(Path("other/../run")):
        pass


def test_waiting_says_for_whom(tmp_path: Path) -> None:
    """A base model that another process converts is waited for, not refused."""
    told: list[str] = []
    with another_process(tmp_path / "base") as other:

        def end(line: str) -> None:
            told.append(line)
            other.kill()

        with holding(tmp_path / "base", wait=end):
            pass
    assert len(told) == 1
    start = f"{tmp_path / 'base'}: waiting for `ppe-lora run recipes/demo.yaml` (process {other.pid} on "
    assert told[0].startswith(start)


def test_processes_of_one_launch_share_the_first_ones_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `accelerate launch` the second process would otherwise be refused by the first."""
    with another_process(tmp_path / "run"):
        monkeypatch.setenv("RANK", "1")
        with holding(tmp_path / "run"):
            pass
        with pytest.raises(AssertionError, match="asked to wait"), holding(tmp_path / "run", wait=_refuse):
            pass


def _refuse(line: str) -> None:
    raise AssertionError("asked to wait")


@pytest.mark.parametrize(
    ("command", "shared"),
    [
        ("data build r.yaml", "data/d"),
        ("data stats r.yaml", "data/d"),
        ("data questions r.yaml --out q", "q"),
        ("data convert a.jsonl b", "b"),
        ("train r.yaml", "checkpoints/r"),
        ("train r.yaml --resume", "checkpoints/r"),
        ("train r.yaml --fresh", "checkpoints/r"),
        ("run r.yaml", "checkpoints/r"),
        ("run r.yaml --fresh", "checkpoints/r"),
        ("evaluate r.yaml", "checkpoints/r"),
        ("export r.yaml", "checkpoints/r"),
        ("report r.yaml", "checkpoints/r"),
        ("prove r.yaml merged --url http://127.0.0.1:1", "checkpoints/r"),
        ("compare r base", "checkpoints/r"),
        ("push checkpoints/r/merged a/b", "checkpoints/r"),
    ],
)
def test_every_command_that_writes_is_refused_beside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, shared: str
) -> None:
    """With status 2, at once, and before anything is read or changed."""
    monkeypatch.chdir(tmp_path)
    Path("checkpoints/r").mkdir(parents=True)
    for place in (Path("r.yaml"), Path("checkpoints/r/config.yaml")):
        place.write_text(RECIPE)
    before = sorted(str(path) for path in Path().rglob("*"))
    with holding(Path(shared)):
        assert ppe_lora(*command.split()) == 2
    message = f"error: {shared}: expected no other process at work there; got `"
    assert capsys.readouterr().err.startswith(message)
    left = sorted(str(path) for path in Path().rglob("*") if ".lock" not in path.name and path != Path("data"))
    assert left == before


def test_two_sweeps_of_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both would start the same runs, and write one log each into the other's file."""
    monkeypatch.chdir(tmp_path)
    Path("ranks").mkdir()
    Path("ranks/r.yaml").write_text(RECIPE)
    with holding(Path("x"), lock=Path("checkpoints/.ranks.sweep.lock")):
        assert ppe_lora("sweep", "ranks") == 2
    assert capsys.readouterr().err.startswith("error: checkpoints/ranks: expected no other process")


def test_a_build_is_refused_beside_a_shard(tmp_path: Path) -> None:
    """It would ask again what the shard is asking, and pay for it twice; two shards share nothing."""
    from ppe_lora.corpus.teachers.llm.raw_log import RawLog, Shard

    with RawLog(tmp_path / "d", Shard(1, 2)):
        RawLog(tmp_path / "d", Shard(2, 2)).close()
        with pytest.raises(InUse, match="answers-1of2"):
            RawLog(tmp_path / "d")
    RawLog(tmp_path / "d").close()
