"""`ppe-lora data build` with a language model as teacher: over loopback, through the real client libraries."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ppe_lora.artifacts import read_json
from ppe_lora.corpus.rows import SPLITS, split_path
from ppe_lora.corpus.teachers.llm.mistral import MistralEndpoint
from ppe_lora.corpus.teachers.llm.mistral_batch import MistralBatch
from tests.teacher_builds import PRICED, build, compatible, write_recipe
from tests.teacher_fakes import write_request
from tests.teacher_servers import (
    CHAT,
    KEY,
    Fault,
    MistralServer,
    OpenAIServer,
    Reset,
    Status,
    Truncated,
    free_port,
    serve,
)

REPOSITORY = Path(__file__).parents[2]
ROWS = 200


def write_slowly(body: Mapping[str, Any]) -> str:
    time.sleep(0.01)
    return write_request(body)


def some_faults(path: str, number: int) -> Fault | None:
    """One request in ten fails, in every way."""
    faults = (Status(500), Truncated(), Reset(), Truncated(promised=True))
    if path == CHAT and number == 52:
        return Status(429, {"retry-after": "0.1"})
    return faults[number // 10 % 4] if path == CHAT and number % 10 == 9 else None


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ppe_lora", "data", "build", "r.yaml"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stop_at(process: subprocess.Popen[str], server: OpenAIServer, answers: int, number: signal.Signals) -> None:
    deadline = time.monotonic() + 60
    while len(server.bodies) < answers and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)


def content(folder: Path) -> dict[str, str]:
    """Everything of a data set that its rows decide."""
    names = [split_path(Path(), name).name for name in SPLITS] + ["rejected.jsonl", "stats.json"]
    return {name: (folder / "data" / "d" / name).read_text(encoding="utf-8") for name in names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a build that met no fault."""
    folder = tmp_path_factory.mktemp("whole")
    with serve(OpenAIServer(answer=write_request)) as url, pytest.MonkeyPatch.context() as patch:
        write_recipe(folder, compatible(url), ROWS)
        assert build(patch, folder) == 0
    return folder


def test_the_data_set_holds_what_the_model_wrote(whole: Path) -> None:
    """An answer that is no request must be counted and kept with its text, not lost or trained on."""
    manifest = read_json(whole / "data" / "d" / "manifest.json")
    lines = [json.loads(line) for line in (whole / "data" / "d" / "rejected.jsonl").read_text().splitlines()]
    said = Counter(line["evidence"] for line in lines if line["rule"] == "teacher answer")
    assert said == {"refused: I'm sorry, I can't do that.": manifest["rejected"]["teacher answer"]}
    assert manifest["rejected"]["key-name leak"] >= 1
    assert sum(manifest["rows"].values()) > 0.8 * ROWS
    assert sum(manifest["rows"].values()) + sum(manifest["rejected"].values()) == ROWS
    raw = [json.loads(line) for line in (whole / "data" / "raw" / "d" / "answers.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in raw}) == len(raw) == ROWS
    tokens = [sum(line[name] for line in raw) for name in ("prompt_tokens", "completion_tokens")]
    assert manifest["spent"] == {
        "writing": {
            "requests": ROWS,
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "money": pytest.approx((tokens[0] * 1.0 + tokens[1] * 2.0) / 1e6),
        }
    }
    row = json.loads(split_path(whole / "data" / "d", "train").read_text().splitlines()[0])
    assert row["teacher"] == "teacher-1"
    assert manifest["inputs"]["teacher"]["version"].startswith("v1-")


def test_killed_interrupted_and_among_faults_it_ends_with_the_same_data(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill that loses answers costs money; one that changes the data makes results nobody can repeat."""
    server = OpenAIServer(answer=write_slowly, faults=some_faults)
    with serve(server) as url:
        write_recipe(tmp_path, compatible(url), ROWS)
        for answers, number, status in ((60, signal.SIGKILL, -9), (120, signal.SIGINT, 130)):
            process = start(tmp_path)
            stop_at(process, server, answers, number)
            out, err = process.communicate(timeout=60)
            assert process.returncode == status, out + err
            assert not (tmp_path / "data" / "d").exists()
        assert "run the same command again for the rest" in out + err
        assert build(monkeypatch, tmp_path) == 0
    assert content(tmp_path) == content(whole)
    asked = Counter(body["seed"] for body in server.bodies)
    assert len(asked) == ROWS
    # Asked twice: what was in flight at the kill, and answers that were cut off on their way.
    cut_off = sum(isinstance(some_faults(CHAT, n), Truncated) for n in range(server.received[CHAT]))
    assert sum(asked.values()) - ROWS <= 8 + cut_off


def test_two_shards_make_the_unsharded_set(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards that overlap pay twice, shards that leave a gap lose rows."""
    server = OpenAIServer(answer=write_request)
    here, there = tmp_path / "here", tmp_path / "there"
    with serve(server) as url:
        for folder, shard in ((here, "1/2"), (there, "2/2")):
            write_recipe(folder, compatible(url), ROWS)
            assert build(monkeypatch, folder, "--shard", shard) == 0
            assert not (folder / "data" / "d").exists()
    assert len(server.bodies) == len({body["seed"] for body in server.bodies}) == ROWS
    raw = (here / "data/raw/d/answers-1of2.jsonl", there / "data/raw/d/answers-2of2.jsonl")
    first, second = (len(path.read_text().splitlines()) for path in raw)
    assert first + second == ROWS
    assert min(first, second) > 70
    assert f"data/raw/d: {first} questions have a raw answer; {second} are other shards'" in capsys.readouterr().out
    raw[1].rename(raw[0].with_name(raw[1].name))
    # Nobody listens any more: a build that asked anything would fail.
    assert build(monkeypatch, here) == 0
    assert content(here) == content(whole)


def test_a_dry_run_asks_nothing_and_adds_up(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An estimate that asks, or that forgets what is answered already, is worse than none."""
    server = OpenAIServer(answer=write_request)
    with serve(server) as url:
        write_recipe(tmp_path, compatible(url), rows=50)
        assert build(monkeypatch, tmp_path, "--dry-run", "data.source.teacher.limits.requests_per_minute=10") == 0
    shown = capsys.readouterr().out
    assert "data/d: 50 rows; 50 requests still to ask teacher-1, 0 answered already\n" in shown
    assert "300 s at 10 requests a minute" in shown.replace("5 min", "300 s")
    prompt, completion = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) of (?:prompts|answers)", shown))
    assert f"money   {(prompt + 2 * completion) / 1e6:.2f} expected" in shown
    assert server.received == {}
    assert not (tmp_path / "data" / "d").exists()
    assert build(monkeypatch, whole, "--dry-run", f"data.source.rows={ROWS + 30}") == 0
    assert f"30 requests still to ask teacher-1, {ROWS} answered already" in capsys.readouterr().out


def test_a_spent_budget_stops_and_a_larger_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A budget that is passed, or that throws away what was paid for."""
    server = OpenAIServer(answer=write_request)
    with serve(server) as url:
        write_recipe(tmp_path, compatible(url), rows=60)
        assert build(monkeypatch, tmp_path, "data.source.teacher.budget.requests=25") == 2
        assert "budget.requests: the limit of 25 has no room for another question" in capsys.readouterr().err
        assert len(server.bodies) == 25
        assert build(monkeypatch, tmp_path, "data.source.teacher.budget.requests=60") == 0
        assert len(server.bodies) == 60
    # Neither the budget nor an address is content: nothing is made again, and nobody needs to listen.
    version = read_json(tmp_path / "data/d/manifest.json")["dataset_version"]
    capsys.readouterr()
    assert build(monkeypatch, tmp_path, "data.source.teacher.budget.requests=1") == 0
    assert capsys.readouterr().out.startswith("data/d: ")
    assert read_json(tmp_path / "data/d/manifest.json")["dataset_version"] == version


def test_a_corrupt_raw_line_is_named_and_skipped_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Skipping in silence would pay again; refusing for ever would lose the rest."""
    server = OpenAIServer(answer=write_request)
    with serve(server) as url:
        write_recipe(tmp_path, compatible(url), rows=40)
        assert build(monkeypatch, tmp_path) == 0
        raw = tmp_path / "data/raw/d/answers.jsonl"
        lines = raw.read_text().splitlines()
        raw.write_text("\n".join([*lines[:9], lines[9][:40], *lines[10:]]) + "\n")
        before = content(tmp_path)
        capsys.readouterr()
        for arguments in (["data.split.valid=0.3"], ["--dry-run"]):
            assert build(monkeypatch, tmp_path, *arguments) == 2
            assert capsys.readouterr().err.startswith("error: data/raw/d/answers.jsonl:10: expected a raw reply; ")
        (tmp_path / "data/d/manifest.json").unlink()
        assert build(monkeypatch, tmp_path, "--skip-corrupt") == 0
    assert len(server.bodies) == 41
    assert content(tmp_path) == before


def test_no_server_no_model_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each must be said at once, with the remedy, not after an hour of retries."""
    url = f"http://127.0.0.1:{free_port()}"
    write_recipe(tmp_path, compatible(url), rows=10)
    assert build(monkeypatch, tmp_path) == 2
    assert f"start a server, for example `vllm serve teacher-1 --port {url[-5:].lstrip(':')}" in capsys.readouterr().err
    assert build(monkeypatch, tmp_path, "data.source.teacher.api_key_env=NO_SUCH_KEY") == 2
    assert "NO_SUCH_KEY: expected the API key of" in capsys.readouterr().err
    with serve(OpenAIServer(models=("other",))) as url:
        write_recipe(tmp_path, compatible(url), rows=10)
        assert build(monkeypatch, tmp_path) == 2
    assert "expected a served model; got 'teacher-1'; it serves other" in capsys.readouterr().err
    monkeypatch.delenv("MISTRAL_API_KEY", raising=False)
    write_recipe(tmp_path, "kind: mistral, model: teacher-1", rows=10)
    assert build(monkeypatch, tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: MISTRAL_API_KEY: expected an API key")


@pytest.mark.parametrize("mode", ["realtime", "batch"])
def test_mistral_in_both_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    """A lost line of a batch loses a row; another mode must not ask, and pay, again."""
    monkeypatch.setenv("MISTRAL_API_KEY", KEY)
    lost = iter([True])
    server = MistralServer(answer=write_request, deliver=lambda lines: lines[:-5] if next(lost, False) else lines)
    with serve(server) as url:
        at_url = functools.partialmethod(MistralEndpoint.__init__, server_url=url)
        monkeypatch.setattr(MistralEndpoint, "__init__", at_url)
        at_url_too = functools.partialmethod(MistralBatch.__init__, server_url=url, poll_s=0.02)
        monkeypatch.setattr(MistralBatch, "__init__", at_url_too)
        write_recipe(tmp_path, f"kind: mistral, model: teacher-1, mode: {mode}, {PRICED}", rows=40)
        assert build(monkeypatch, tmp_path, "data.source.teacher.model=teacher-9") == 2
        assert "expected one of the 2 models of the account; got 'teacher-9'; did you mean" in capsys.readouterr().err
        assert set(server.received) == {"/v1/models"}
        money = "data.source.teacher.budget.money=0.01"
        assert build(monkeypatch, tmp_path, money) == 2
        assert "budget.money: the limit of 0.01 has no room for another question" in capsys.readouterr().err
        assert build(monkeypatch, tmp_path) == 0
        assert build(monkeypatch, tmp_path, "data.source.teacher.mode=realtime", "data.filters.near_duplicate=1") == 0
    raw = [json.loads(line) for line in (tmp_path / "data/raw/d/answers.jsonl").read_text().splitlines()]
    assert len(raw) == 40
    assert {line["endpoint"] for line in raw} == {"mistral batch" if mode == "batch" else "mistral"}
    assert len(server.jobs) == (2 if mode == "batch" else 0)  # the second job asks what the first one lost
    lines = [json.loads(line) for name in SPLITS for line in split_path(tmp_path / "data/d", name).open()]
    assert {line["teacher"] for line in lines} == {"teacher-1"}


def test_batch_jobs_begin_only_when_some_answers_are_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job cannot be stopped at its 24th useless answer: all would be paid for before anybody sees one."""
    monkeypatch.setenv("MISTRAL_API_KEY", KEY)
    says = ["<think>hm"]
    server = MistralServer(answer=lambda body: says[0] or write_request(body))
    with serve(server) as url:
        at_url = functools.partialmethod(MistralEndpoint.__init__, server_url=url)
        monkeypatch.setattr(MistralEndpoint, "__init__", at_url)
        at_url_too = functools.partialmethod(MistralBatch.__init__, server_url=url, poll_s=0.02)
        monkeypatch.setattr(MistralBatch, "__init__", at_url_too)
        write_recipe(tmp_path, f"kind: mistral, model: teacher-1, mode: batch, {PRICED}", rows=300)
        assert build(monkeypatch, tmp_path) == 2
        assert "(24 thoughts without an answer), so asking stopped" in " ".join(capsys.readouterr().err.split())
        assert (len(server.bodies), server.jobs) == (24, {})
        says[0] = ""
        assert build(monkeypatch, tmp_path, "data.source.teacher.temperature=0.9") == 0
    (job,) = server.jobs.values()
    assert job["job"]["total_requests"] == 300 - 24
