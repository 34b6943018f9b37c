"""A real vLLM server, on this machine's processor, answers the client. Minutes: `make test-engines`.

SmolLM2 writes nonsense; that the questions, their schema, the replies and a killed server are handled is what counts.
"""

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ppe_lora.corpus.teachers.llm.asking import Settings
from ppe_lora.corpus.teachers.llm.batch import read_batch_results, write_batch_files
from ppe_lora.corpus.teachers.llm.client import Client
from ppe_lora.corpus.teachers.llm.exchange import Question, Refused, Reply, Unavailable
from ppe_lora.corpus.teachers.llm.meter import Meter
from ppe_lora.corpus.teachers.llm.openai_compatible import OpenAICompatibleEndpoint
from ppe_lora.corpus.teachers.llm.raw_log import RawLog
from ppe_lora.corpus.teachers.llm.servers import Server
from ppe_lora.recipe.schema import Student
from ppe_lora.student.base import resolve_base
from tests.teacher_servers import free_port

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
MODEL = "smollm2-135m"
COUNT = int(os.environ.get("VLLM_QUESTIONS", "48"))
SCHEMA = {
    "type": "object",
    "properties": {"request": {"type": "string", "minLength": 1, "maxLength": 40}},
    "required": ["request"],
    "additionalProperties": False,
}
# Without the last option a small model may fill its answer with blanks, which JSON allows.
OPTIONS = [
    "--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager",
    "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
]  # fmt: skip
# nobind: containers often do not let a process choose its cores. 1 GiB of keys and values is plenty.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"no {PYTHON}: `make test-engines` makes it"),
]


@pytest.fixture(scope="module")
def base() -> Path:
    return resolve_base(Student(model=MODEL))


def questions(count: int) -> list[Question]:
    return [
        Question(
            MODEL,
            ({"role": "user", "content": f"Ask for music for moment {number} of the day, in one short sentence."},),
            {"temperature": 0.7, "max_tokens": 32, "seed": number},
            SCHEMA,
        )
        for number in range(count)
    ]


class VllmServer:
    """One server process at a time on one port."""

    def __init__(self, base: Path, log: Path) -> None:
        self._base, self._log = base, log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once it serves the model."""
        started = time.monotonic()
        command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", self._base]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port), *OPTIONS],
                env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        while says := check(self.url, MODEL):
            assert "the connection failed" in says
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() - started < 600, self._log.read_text()[-3000:]
            time.sleep(1)
        print(f"\nready after {time.monotonic() - started:.0f} s", end=" ", flush=True)

    def kill(self) -> None:
        """SIGKILL the server and the engine process that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(base: Path, tmp_path: Path) -> Iterator[VllmServer]:
    server = VllmServer(base, tmp_path / "server.log")
    yield server
    server.kill()


def check(url: str, model: str) -> str:
    """What the endpoint's check says of a model; nothing where it is served."""

    async def run() -> str:
        endpoint = OpenAICompatibleEndpoint(url)
        try:
            await endpoint.check(model)
        except (Refused, Unavailable) as error:
            return str(error)
        finally:
            await endpoint.close()
        return ""

    return asyncio.run(run())


def test_killed_in_the_middle_and_restarted_nothing_is_lost(server: VllmServer, tmp_path: Path) -> None:
    """What the loopback servers imitate, and what they cannot: a schema that is held to, a server that dies at work."""
    asked = questions(COUNT)
    server.start()
    assert f"it serves {MODEL};" in check(server.url, "another-model")
    restarting: list[threading.Thread] = []
    retries = 0

    def crash_at_half(meter: Meter) -> None:
        nonlocal retries
        retries = meter.retries
        if meter.done >= COUNT // 2 and not restarting:
            print(f"\nkilled: {meter}", end="", flush=True)
            server.kill()
            restarting.append(threading.Thread(target=server.start))
            restarting[0].start()

    started = time.monotonic()
    with RawLog(tmp_path / "raw") as log, client(server.url, log) as asking:
        answers = asking.ask_all(asked, crash_at_half)
    print(f"\n{COUNT} questions in {time.monotonic() - started:.0f} s, the restart included")
    restarting[0].join()
    server.kill()
    assert retries > 0, "the kill went unnoticed: it came too late"
    assert answers.failed == {}
    assert sorted(answers.replies) == sorted(question.key for question in asked)
    with RawLog(tmp_path / "raw") as log, client(server.url, log) as asking:  # nobody listens, and nobody is asked
        assert asking.ask_all(asked).replies == answers.replies
    check_texts(answers.replies.values())


def client(url: str, log: RawLog) -> Client:
    settings = Settings(concurrency=16, timeout_s=300)
    return Client([Server(OpenAICompatibleEndpoint(url, timeout_s=300))], log, settings=settings)


def check_texts(replies: Collection[Reply]) -> None:
    assert all(reply.prompt_tokens > 0 and reply.completion_tokens > 0 for reply in replies)
    whole = [reply.text for reply in replies if reply.finish_reason == "stop"]
    assert len(whole) >= 0.8 * len(replies)  # the others ran into max_tokens
    for text in whole:
        answer = json.loads(text)
        assert list(answer) == ["request"]
        assert 1 <= len(answer["request"]) <= 40
    assert len(set(whole)) > 0.5 * len(whole)  # seeds arrive


def test_run_batch_reads_our_files_and_we_read_its_results(base: Path, tmp_path: Path) -> None:
    asked = questions(12)
    (file,) = write_batch_files(asked, tmp_path, "openai")
    results = tmp_path / "results-000.jsonl"
    done = subprocess.run(
        [PYTHON, "-m", "vllm.entrypoints.openai.run_batch", "-i", file.path, "-o", results, "--model", base, *OPTIONS],
        env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answers = read_batch_results([results], asked)
    assert answers.unanswered == {}
    assert [reply.key for reply in answers.replies] == [question.key for question in asked]
    for reply in answers.replies:
        assert reply.completion_tokens > 0
        assert reply.finish_reason != "stop" or list(json.loads(reply.text)) == ["request"]
