"""A full disk in the stages that need no model: words, nothing half, and the same command succeeds once there is room.
`benchmarks/faults/disk.py` has all stages on a real one."""

import errno
import os
from pathlib import Path

import pytest

from tests.command import ppe_lora
from tests.runs import TASK_YAML, make_rows

SOURCE = "{kind: import, source_dir: ., files: {f: {path: rows.csv}}, request: f.text, target: {a: f.a, b: f.b}}"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cells = [f'{row.id},"{row.request}",{row.target["a"]},{row.target["b"]}\n' for row in make_rows(40, seed=3)]
    Path("rows.csv").write_text("".join(["id,text,a,b\n", *cells]))
    split = "{valid: 0.2, test: 0.2, group: 1.0}"
    Path("run.yaml").write_text(
        f"{TASK_YAML}\nstudent: {{model: ./none}}\ndata: {{name: d, source: {SOURCE}, split: {split}}}\n"
    )
    return tmp_path


COMMANDS = {
    "data build": ("data", "build", "run.yaml"),
    "data convert": ("data", "convert", "data/d", "converted", "--recipe", "run.yaml"),
    "data stats": ("data", "stats", "run.yaml"),
}


@pytest.mark.parametrize("stage", COMMANDS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_nothing_more_is_told(here, monkeypatch, capsys, stage, number):
    """Every one of these ended in a traceback, and a build or conversion left its half-written folder behind."""
    if stage != "data build":
        assert ppe_lora(*COMMANDS["data build"]) == 0
    before = {path for path in here.rglob("*") if "lock" not in path.name}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: _fail(number))
        assert ppe_lora(*COMMANDS[stage]) == 2
    told = capsys.readouterr().err
    assert "; got " + os.strerror(number) + "; " in told.splitlines()[-1]
    assert "Traceback" not in told
    left = {path for path in here.rglob("*") if "lock" not in path.name} - before
    assert {path.name for path in left} <= {"data"}
    assert ppe_lora(*COMMANDS[stage]) == 0


def _fail(number: int) -> None:
    raise OSError(number, os.strerror(number))
