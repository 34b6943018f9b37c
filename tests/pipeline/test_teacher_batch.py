"""Batch files and the Mistral batch API against a loopback server, through the real client: nothing paid twice."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_lora.corpus.teachers.llm.batch import BatchAnswers, batch_keys, read_batch_results, write_batch_files
from ppe_lora.corpus.teachers.llm.exchange import Question, Refused, Throttled, Unavailable
from ppe_lora.corpus.teachers.llm.mistral_batch import MistralBatch
from ppe_lora.errors import DataError
from tests.teacher_servers import (
    KEY,
    FaultPlan,
    MistralServer,
    Reset,
    Status,
    Truncated,
    always,
    free_port,
    script,
    serve,
)

JOBS = "/v1/batch/jobs"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_API_KEY", KEY)


def some(count: int, model: str = "teacher-1", **sampling: Any) -> list[Question]:
    return [Question(model, ({"role": "user", "content": f"夜 {n}"},), sampling or {"seed": n}) for n in range(count)]


def run(questions: Sequence[Question], folder: Path, url: str) -> BatchAnswers:
    async def ask() -> BatchAnswers:
        batch = MistralBatch(folder, server_url=url, poll_s=0.01, timeout_s=20)
        try:
            return await batch.ask(questions)
        finally:
            await batch.close()

    return asyncio.run(ask())


def texts(answers: BatchAnswers) -> list[str]:
    return [reply.text for reply in answers.replies]


def said(questions: Iterable[Question]) -> list[str]:
    return [question.messages[-1]["content"] for question in questions]


def test_lines_of_both_formats(tmp_path: Path) -> None:
    """A line that Mistral or vLLM does not understand fails the whole job, hours later."""
    question = Question("m", ({"role": "user", "content": "夜"},), {"seed": 3}, {"type": "object"})
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True}}
    messages = [{"role": "user", "content": "夜"}]
    (mistral,) = write_batch_files([question], tmp_path, "mistral")
    (openai,) = write_batch_files([question], tmp_path, "openai")
    assert json.loads(mistral.path.read_text()) == {
        "custom_id": question.key, "body": {"messages": messages, "random_seed": 3, "response_format": schema}
    }  # fmt: skip
    assert json.loads(openai.path.read_text()) == {
        "custom_id": question.key, "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": messages, "seed": 3, "response_format": schema},
    }  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=30), st.integers(1, 7), st.integers(400, 900))
def test_files_hold_every_question_once_and_keep_the_limits(
    tmp_path_factory: pytest.TempPathFactory, requests: list[str], max_requests: int, max_bytes: int
) -> None:
    """A file over the limit is refused whole; a question in two files is paid twice."""
    folder = tmp_path_factory.mktemp("batch")
    questions = [Question(f"m{len(text) % 2}", ({"role": "user", "content": text},), {}) for text in requests]
    files = write_batch_files(questions, folder, "openai", max_requests=max_requests, max_bytes=max_bytes)
    assert [file.path for file in files] == sorted(folder.glob("requests-*.jsonl"))
    keys: list[str] = []
    for path, model, count in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) == count <= max_requests
        assert path.stat().st_size <= max_bytes
        assert {json.loads(line)["body"]["model"] for line in lines} == {model}
        keys += batch_keys(path)
    assert sorted(keys) == sorted({question.key for question in questions})


def result(question: Question, text: str, status: int = 200, error: Any = None) -> str:
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5}}
    shown = body if status == 200 else {"message": text}
    return json.dumps(
        {"custom_id": question.key, "response": {"status_code": status, "body": shown}, "error": error}
    )  # fmt: skip


def test_results_are_matched_by_key(tmp_path: Path) -> None:
    """Joined by line, every answer would belong to another request."""
    one, two, three, four, five, six = questions = some(6)
    stranger = Question("m", (), {})
    (tmp_path / "a.jsonl").write_text(
        "\n".join(
            [
                result(three, "three"), result(stranger, "?"), result(one, "one"), result(three, "three again"),
                result(two, "no such model", 404), result(four, "", error={"message": "lost"}), result(five, "x")[:40],
            ]
        )
    )  # fmt: skip
    (tmp_path / "b.jsonl").write_text(result(two, "two") + "\n")
    answers = read_batch_results([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], questions)
    assert [(reply.key, reply.text) for reply in answers.replies] == [
        (one.key, "one"), (two.key, "two"), (three.key, "three")
    ]  # fmt: skip
    assert answers.unanswered == {
        four.key: 'a.jsonl:6: the request failed with 200: {"message": "lost"}',
        five.key: "no line in the results",
        six.key: "no line in the results",
    }


def test_upload_job_poll_download(tmp_path: Path) -> None:
    server, questions = MistralServer(polls=3), some(50)
    with serve(server) as url:
        answers = run([*questions, questions[0]], tmp_path, url)
    assert texts(answers) == said(questions)
    assert answers.unanswered == {}
    assert len(server.jobs) == 1
    assert len(server.bodies) == 50


def shuffled_lossy(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = lines[5:] + lines[10:15]
    random.Random(3).shuffle(kept)
    return kept


def test_wrong_order_repeated_and_missing_rows(tmp_path: Path) -> None:
    """Rows that Mistral loses are named, and the next call asks for exactly these."""
    server, questions = MistralServer(deliver=shuffled_lossy), some(40)
    with serve(server) as url:
        first = run(questions, tmp_path, url)
        assert texts(first) == said(questions[5:])
        assert first.unanswered == dict.fromkeys((one.key for one in questions[:5]), "no line in the results")
        server.deliver = lambda lines: lines
        second = run(questions, tmp_path, url)
    assert texts(second) == said(questions)
    assert len(server.bodies) == 45


def test_requests_that_mistral_refuses_have_their_reason(tmp_path: Path) -> None:
    good, bad = some(2), some(1, temperature=9)
    with serve(MistralServer()) as url:
        answers = run([*good, *bad], tmp_path, url)
    assert texts(answers) == said(good)
    (reason,) = answers.unanswered.values()
    assert reason.startswith("errors-000.jsonl:1: the request failed with 422: ")
    assert "temperature" in reason


def test_one_job_for_each_model(tmp_path: Path) -> None:
    server = MistralServer(models=("a", "b"))
    questions = [*some(3, "a"), *some(3, "b")]
    with serve(server) as url:
        assert texts(run(questions, tmp_path, url)) == said(questions)
    assert [entry["job"]["model"] for entry in server.jobs.values()] == ["a", "b"]


@pytest.mark.parametrize(
    "faults",
    [
        script(Status(500), Reset(), Status(429), path="/v1/files"),
        script(Reset(), Status(503), path=JOBS),
        script(Reset(late=True), path=JOBS),
        script(Truncated(), path=JOBS),
        script(Status(500), Reset(), Truncated(), Status(429, {"retry-after": "0.01"}), path=f"{JOBS}/job-1"),
    ],
    ids=["upload", "create", "created, but not heard of", "created, but cut off", "poll"],
)
def test_failures_on_the_way_cost_nothing_twice(tmp_path: Path, faults: FaultPlan) -> None:
    """Most of all: a job that was made although the answer never came must be found, not made again."""
    server, questions = MistralServer(faults=faults), some(5)
    with serve(server) as url:
        assert texts(run(questions, tmp_path, url)) == said(questions)
    assert len(server.jobs) == 1
    assert len(server.bodies) == 5


@pytest.mark.parametrize("fault", [Truncated(promised=True), Reset(), Status(500)], ids=repr)
def test_a_broken_download_is_repeated(tmp_path: Path, fault: Any) -> None:
    """Half a file taken for the whole loses the other half, which was paid."""
    first = script(fault, path="/v1/files/file-2/content")
    server, questions = MistralServer(faults=first), some(20)
    with serve(server) as url:
        assert texts(run(questions, tmp_path, url)) == said(questions)
    assert server.received["/v1/files/file-2/content"] == 2


def test_a_server_that_stays_away_ends_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="the connection failed"):
        run(some(1), tmp_path, f"http://127.0.0.1:{free_port()}")
    limited = MistralServer(faults=always(Status(429, {"retry-after": "0.01"}), "/v1/files"))
    with serve(limited) as url, pytest.raises(Throttled):
        run(some(1), tmp_path, url)
    with serve(MistralServer()) as url:  # the same folder goes on
        assert texts(run(some(1), tmp_path, url)) == said(some(1))


@pytest.mark.parametrize("status", ["TIMEOUT_EXCEEDED", "CANCELLED"])
def test_a_job_that_ends_early_delivers_what_is_done(tmp_path: Path, status: str) -> None:
    server, questions = MistralServer(ends_as=status, deliver=lambda lines: lines[:3]), some(5)
    with serve(server) as url:
        answers = run(questions, tmp_path, url)
    assert texts(answers) == said(questions[:3])
    assert list(answers.unanswered) == [one.key for one in questions[3:]]


def test_a_failed_job_says_why_and_can_be_asked_again(tmp_path: Path) -> None:
    """Taken for missing rows, a file that Mistral cannot read would be uploaded for ever."""
    server, questions = MistralServer(ends_as="FAILED", deliver=lambda lines: []), some(2)
    with serve(server) as url:
        with pytest.raises(Refused, match=r"got FAILED for job-1 \(requests-000\.jsonl\): broken file"):
            run(questions, tmp_path, url)
        server.ends_as, server.deliver = "SUCCESS", lambda lines: lines
        assert texts(run(questions, tmp_path, url)) == said(questions)


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.pipeline.test_teacher_batch import some, MistralBatch
asyncio.run(MistralBatch(Path(sys.argv[1]), server_url=sys.argv[2], poll_s=0.01).ask(some(30)))
"""


def kill_when(condition: Any, folder: Path, url: str) -> None:
    """Ask 30 questions in a process of its own, and SIGKILL it once the condition holds."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), url], cwd=ROOT, env={**os.environ})
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("moment", ["uploading", "made, not written down", "polling", "downloaded"])
def test_killed_and_resumed_the_job_is_paid_once(tmp_path: Path, moment: str) -> None:
    """A resumed run that forgets its job pays a second time and throws the first results away."""
    server = MistralServer(polls=10**9)
    with serve(server) as url:
        if moment == "uploading":
            server.faults = always(Status(500), path="/v1/files")
            kill_when(lambda: server.received["/v1/files"], tmp_path, url)
            server.faults = script()
        else:
            kill_when(lambda: server.received[f"{JOBS}/job-1"] > 2, tmp_path, url)
        if moment == "made, not written down":
            state = json.loads((tmp_path / "jobs.json").read_text())
            (tmp_path / "jobs.json").write_text(json.dumps([{**job, "job": None} for job in state]))
        server.polls = server.received[f"{JOBS}/job-1"] + 2
        fewer = some(30)[7:] if moment == "polling" else some(30)
        answers = run(fewer, tmp_path, url)
        assert texts(answers) == said(fewer)
        if moment == "downloaded":
            requests = server.received.total()
            assert texts(run(fewer, tmp_path, url)) == said(fewer)
            assert server.received.total() == requests
    assert len(server.jobs) == 1
    assert len(server.bodies) == 30


def test_a_broken_list_of_jobs_is_no_reason_to_pay_again(tmp_path: Path) -> None:
    (tmp_path / "jobs.json").write_text('[{"requests": "requests-000.jsonl"')
    with serve(server := MistralServer()) as url, pytest.raises(DataError, match=r"jobs\.json: expected the list"):
        run(some(1), tmp_path, url)
    assert server.received.total() == 0


def test_a_refused_job_does_not_block_the_folder(tmp_path: Path) -> None:
    """The mended recipe must not be held up by the file of the broken one."""
    with serve(server := MistralServer()) as url:
        with pytest.raises(Refused, match="Invalid model: teacher-9"):
            run(some(3, "teacher-9"), tmp_path, url)
        assert texts(run(some(3), tmp_path, url)) == said(some(3))
    assert len(server.jobs) == 1


def test_a_job_of_another_account_says_what_to_do(tmp_path: Path) -> None:
    with serve(server := MistralServer()) as url:
        run(some(1), tmp_path, url)
        state = (tmp_path / "jobs.json").read_text()
        (tmp_path / "jobs.json").write_text(state.replace('"SUCCESS"', "null"))
        server.jobs.clear()
        with pytest.raises(Refused, match=r"batch job job-1 at Mistral; .*Job not found.*pay again"):
            run(some(1), tmp_path, url)
    assert server.jobs == {}
