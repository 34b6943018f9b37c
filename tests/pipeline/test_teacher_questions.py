"""`ppe-lora data questions` and `data answers`: what another engine answers makes the same data set."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ppe_lora.artifacts import read_json
from tests.teacher_builds import compatible, data, write_recipe
from tests.teacher_fakes import write_request
from tests.teacher_servers import OpenAIServer, free_port, serve

ROWS = 120


def run_batch(requests: Path, server: OpenAIServer) -> list[dict[str, Any]]:
    """What `vllm run-batch` makes of a file of requests, in another order."""
    lines = [json.loads(line) for line in requests.read_text(encoding="utf-8").splitlines()]
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    random.Random(0).shuffle(lines)
    return [
        {
            "id": f"vllm-{number}",
            "custom_id": line["custom_id"],
            "response": {"status_code": 200, "request_id": f"r-{number}", "body": server.completion(line["body"])},
            "error": None,
        }
        for number, line in enumerate(lines)
    ]


def write_lines(path: Path, lines: list[dict[str, Any]], cut: int = 0) -> str:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text[: len(text) - cut])
    return str(path)


def test_another_engines_answers_make_the_same_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer that is matched with another question trains the student on wrong numbers, and nobody sees it."""
    server = OpenAIServer(answer=write_request)
    direct, offline = tmp_path / "direct", tmp_path / "offline"
    with serve(server) as url:
        write_recipe(direct, compatible(url), ROWS)
        assert data(monkeypatch, direct, "build") == 0
        write_recipe(offline, compatible(url), ROWS)
        asked = server.received.total()
        assert data(monkeypatch, offline, "questions", "--out", "q") == 0
        assert f"q/requests-000.jsonl: {ROWS} questions to teacher-1" in capsys.readouterr().out
        lines = run_batch(offline / "q/requests-000.jsonl", server)
        # Lost, failed, for another data set, twice; and a file that ends in the middle of a line.
        failed = {**lines[3], "response": {"status_code": 500, "body": {"error": {"message": "out of memory"}}}}
        stray = {**lines[9], "custom_id": "0" * 16}
        first = write_lines(offline / "first.jsonl", [*lines[5:60], failed, stray, *lines[10:20]])
        second = write_lines(offline / "second.jsonl", lines[60:], cut=20)
        assert data(monkeypatch, offline, "answers", "--results", first, "--results", second) == 0
        shown = capsys.readouterr().out
        assert f"data/raw/d: {ROWS - 6} new answers\n  6 questions have none (the first: " in shown
        assert data(monkeypatch, offline, "answers", "--results", first) == 0
        assert "data/raw/d: 0 new answers" in capsys.readouterr().out
        assert data(monkeypatch, offline, "questions", "--out", "rest") == 0
        rest = run_batch(offline / "rest/requests-000.jsonl", server)
        assert len(rest) == 6
        assert server.received.total() == asked
        write_lines(offline / "rest.jsonl", rest[:4])
        assert data(monkeypatch, offline, "answers", "--results", "rest.jsonl") == 0
        # Engine and server complete each other: the build asks the two that are left.
        before = len(server.bodies)
        assert data(monkeypatch, offline, "build") == 0
        assert len(server.bodies) - before == 2
    manifests = [read_json(folder / "data/d/manifest.json") for folder in (direct, offline)]
    assert manifests[0]["dataset_version"] == manifests[1]["dataset_version"]
    capsys.readouterr()
    assert data(monkeypatch, offline, "questions", "--out", "none") == 0
    assert "every question has a raw answer" in capsys.readouterr().out
    assert not (offline / "none").exists()


def test_what_cannot_be_asked_or_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Old files beside new ones are paid for twice; a misspelt file must not look like an engine without answers."""
    write_recipe(tmp_path, compatible(f"http://127.0.0.1:{free_port()}"), ROWS)
    assert data(monkeypatch, tmp_path, "questions", "--out", "q") == 0
    assert data(monkeypatch, tmp_path, "questions", "--out", "q") == 2
    assert capsys.readouterr().err == (
        "error: q: expected no requests-*.jsonl; got earlier ones; name another folder or delete them\n"
    )
    assert data(monkeypatch, tmp_path, "answers", "--results", "q/none.jsonl") == 2
    assert capsys.readouterr().err == "error: q/none.jsonl: expected a file of batch results; got none\n"
    write_recipe(tmp_path, "kind: scripted", rows=9)
    assert data(monkeypatch, tmp_path, "questions", "--out", "other") == 2
    assert capsys.readouterr().err.startswith("error: data questions: expected a teacher that is a language model; got")
