"""Garbage from a teacher: asking stops after two dozen answers with the cause; what reasoning models say is read.

`ppe-lora data build` of 600 rows against a loopback server, through the official client.
"""

import json
import sys
from pathlib import Path
from typing import Any

from case import Case, last_line, ppe, words_only

sys.path.insert(0, str(Path(__file__).parents[2]))

from ppe_lora.corpus.teachers.llm.answer import ENOUGH
from tests.garbage_server import COMMON, Garbage, GarbageServer
from tests.teacher_fakes import write_request
from tests.teacher_servers import serve

ROWS, AT_ONCE = 600, 8
CHAT = "/v1/chat/completions"
RECIPE = """\
data:
  name: d
  source: {{kind: generate, rows: {rows}, teacher: {{kind: openai_compatible, model: m,
    endpoints: [{{url: '{url}/v1'}}], limits: {{concurrency: {at_once}}}, timeout_s: 2}}}}
  split: {{valid: 0.2, test: 0.2}}
student: {{model: none}}
"""
UNUSABLE: dict[str, tuple[dict[str, Any], str, str]] = {
    "thoughts cut off": ({"content": "<think>hm, {"}, "length", "max_tokens"),
    "reasoning cut off": ({"content": None, "reasoning_content": "hm"}, "length", "max_tokens"),
    "nothing": ({"content": ""}, "stop", "empty"),
    "thoughts only": ({"content": "<think>hm"}, "stop", "thoughts"),
    "a refusal": ({"content": "I'm sorry, I can't help with that."}, "stop", "refused"),
    "a filtered answer": ({"content": ""}, "content_filter", "refused"),
    "a field of refusal": ({"content": None, "refusal": "No."}, "stop", "refused"),
    "no JSON": ({"content": "quiet and warm"}, "stop", "JSON schema"),
    "other keys": ({"content": '{"text": "quiet"}'}, "stop", "JSON schema"),
    "a tool call": ({"content": None, "tool_calls": []}, "stop", "empty"),
}
"""The message, how it finished, and what the remedy must speak of."""
USABLE = {
    "thoughts with braces": lambda text: {"content": f'<think>{{"request": "no"}} {{</think>\n{text}'},
    "thoughts without a start": lambda text: {"content": f"hm {{}}</think>{text}"},
    "a code fence": lambda text: {"content": f"```json\n{text}\n```"},
    "reasoning_content": lambda text: {"content": None, "reasoning_content": f"hm. {text}"},
    "chunks": lambda text: {
        "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "{"}]}, {"type": "text", "text": text}]
    },
}


def cases(quick: bool, scratch: Path) -> list[Case]:
    """Unusable answers, usable ones in disguise, and what is no answer at all."""
    found = [_stopped(name, *told, scratch / f"unusable-{name}") for name, told in UNUSABLE.items()]
    found += [_read(name, wrap, scratch / f"usable-{name}") for name, wrap in USABLE.items()]
    kinds = ("a bomb", "a redirect", *(() if quick else ("HTML",)))  # HTML is asked for again and again, for minutes
    return found + [_refused(name, scratch / f"refused-{name}") for name in kinds]


def _build(garbage: Garbage, folder: Path, rows: int = ROWS) -> tuple[Any, int]:
    """`ppe-lora data build`, and how many questions it sent."""
    folder.mkdir()
    server = GarbageServer(garbage, lambda at, body: {"data": [{"id": "m", "owned_by": "vllm"}]}, (CHAT,))
    with serve(server) as url:
        (folder / "r.yaml").write_text(RECIPE.format(rows=rows, url=url, at_once=AT_ONCE))
        done = ppe("data", "build", "r.yaml", cwd=folder)
    return done, server.received.count(CHAT)


def _completion(message: dict[str, Any], finish_reason: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 9, "completion_tokens": 9}
    return {"choices": [{"message": message, "finish_reason": finish_reason}], "usage": usage}


def _stopped(name: str, message: dict[str, Any], finish_reason: str, remedy: str, folder: Path) -> Case:
    done, paid = _build(Garbage(lambda at, body: _completion(message, finish_reason)), folder)
    most = ENOUGH + AT_ONCE
    passed = words_only(done) and paid <= most and remedy in done.stderr and "data.source.rows" not in done.stderr
    return Case(name, f"stopped after at most {most} of {ROWS}, '{remedy}'", f"{paid} paid, {last_line(done)}", passed)


def _read(name: str, wrap: Any, folder: Path) -> Case:
    done, paid = _build(Garbage(lambda at, body: _completion(wrap(write_request(body)), "stop")), folder, 200)
    folder = folder / "data" / "d"
    rows = sum(json.loads((folder / "manifest.json").read_text())["rows"].values()) if done.returncode == 0 else 0
    return Case(name, "read: over 100 rows of 200 answers", f"{rows} rows of {paid} answers", rows > 100)


def _refused(name: str, folder: Path) -> Case:
    done, _ = _build(COMMON[name], folder, 30)
    return Case(f"{name} for every answer", "refused in words", last_line(done), words_only(done))
