"""Questions as a batch file, and its results as replies: for the Mistral batch API and for `vllm run-batch`.

Both read one JSON object a line with a `custom_id`, which here is the question's key, and write one a line that
carries it back, in any order.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ValidationError

from ppe_lora.artifacts import write_text
from ppe_lora.corpus.encodings import open_text
from ppe_lora.corpus.teachers.llm.chat_format import mistral_body, openai_body, read_reply, shortened
from ppe_lora.corpus.teachers.llm.exchange import Question, Reply, Unavailable

BatchFormat = Literal["mistral", "openai"]
"""`mistral`: lines of `custom_id` and `body`; the model is the job's. `openai`: as `vllm run-batch` wants it."""

MAX_REQUESTS = 100_000
MAX_BYTES = 512_000_000
"""Of one file at Mistral: 512 MB."""


class BatchFile(NamedTuple):
    """A file of requests to one model."""

    path: Path
    model: str
    requests: int


class BatchAnswers(NamedTuple):
    """What came back for the questions of a batch."""

    replies: list[Reply]
    """In the order of the questions; one for each that was answered."""
    unanswered: dict[str, str]
    """Key of each other question, and why: to be asked again."""


def write_batch_files(
    questions: Iterable[Question],
    folder: Path,
    batch_format: BatchFormat,
    *,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
) -> list[BatchFile]:
    """Write `requests-000.jsonl`, ...: equal questions once, one model a file, split where a file would be too big.

    Files that the folder already has are kept; numbers go on after theirs.

    Run those of the format `openai` with `vllm run-batch -i requests-000.jsonl -o results-000.jsonl --model MODEL`,
    and read them with `read_batch_results`.
    """
    by_model: dict[str, dict[str, Question]] = {}
    for question in questions:
        by_model.setdefault(question.model, {})[question.key] = question
    number = len(list(folder.glob("requests-*.jsonl")))
    files: list[BatchFile] = []
    for model, by_key in by_model.items():
        lines = [_line(question, batch_format) for question in by_key.values()]
        for part in _split(lines, max_requests, max_bytes):
            path = folder / f"requests-{number + len(files):03d}.jsonl"
            write_text(path, "".join(part), private=True)
            files.append(BatchFile(path, model, len(part)))
    return files


def batch_keys(path: Path) -> list[str]:
    """Keys of the questions in a file of requests."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["custom_id"] for line in file]


def read_batch_results(paths: Sequence[Path], questions: Iterable[Question]) -> BatchAnswers:
    """Match result files with questions by key; the order of lines says nothing.

    Of several replies to a question the first one counts. Lines that answer no question here are passed over. A line
    that cannot be read, a request that failed and a question without a line leave it unanswered.
    """
    wanted = list(dict.fromkeys(question.key for question in questions))
    replies: dict[str, Reply] = {}
    problems: dict[str, str] = {}
    asked = set(wanted)
    for path in paths:
        with open_text(path, errors="replace") as file:
            for number, line in enumerate(file, 1):
                key, outcome = _read_line(line, f"{path.name}:{number}")
                if key not in asked or key in replies:
                    continue
                if isinstance(outcome, Reply):
                    replies[key] = outcome
                else:
                    problems[key] = outcome
    unanswered = {key: problems.get(key, "no line in the results") for key in wanted if key not in replies}
    return BatchAnswers([replies[key] for key in wanted if key in replies], unanswered)


def _line(question: Question, batch_format: BatchFormat) -> str:
    line: dict[str, Any] = {"custom_id": question.key}
    if batch_format == "openai":
        line |= {"method": "POST", "url": "/v1/chat/completions", "body": openai_body(question)}
    else:
        line["body"] = {name: value for name, value in mistral_body(question).items() if name != "model"}
    # ASCII: some readers take U+2028 or U+0085 for the end of a line.
    return json.dumps(line, separators=(",", ":")) + "\n"


def _split(lines: Iterable[str], max_requests: int, max_bytes: int) -> list[list[str]]:
    parts: list[list[str]] = []
    size = 0
    for line in lines:
        if not parts or len(parts[-1]) == max_requests or size + len(line) > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(line)
        size += len(line)
    return parts


def _read_line(line: str, where: str) -> tuple[str | None, Reply | str]:
    """The key of a result line, and its reply or what is wrong with it; no key where the line cannot be read."""
    try:
        result = _Result.model_validate_json(line)
    except ValidationError:
        return None, "unreadable"
    key, response, error = result.custom_id, result.response or _Response(), result.error
    if error or response.status_code >= 400:
        reason = shortened(json.dumps(error or response.body, ensure_ascii=False))
        return key, f"{where}: the request failed with {response.status_code}: {reason}"
    try:
        return key, read_reply(where, key, response.body or {})
    except Unavailable as unreadable:
        return key, str(unreadable)


class _Response(BaseModel):
    status_code: int = 200
    body: dict[str, Any] | None = None


class _Result(BaseModel):
    custom_id: str
    response: _Response | None = None
    error: Any = None
