"""Parameters of chat completions: what cannot be met is refused by its name, what clients send anyway is taken."""

from typing import Any

import pytest

from ppe_lora.corpus.teachers.llm.reader import answer_schema
from ppe_lora.serving.backend import ApiError
from ppe_lora.serving.chat_parameters import check_parameters
from ppe_lora.tasks.scores import ScoresTask

TASK = ScoresTask(keys=("a", "b"))
NUMBER = {"type": "integer"}


def schema(**properties: Any) -> dict[str, Any]:
    wanted = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": wanted}}


NEUTRAL = {
    # what openai-python, LangChain, the Vercel ai sdk, promptfoo and lm-eval send without being asked to
    "sampling": {"temperature": 0.7, "top_p": 0.9, "seed": 1234, "presence_penalty": 0, "frequency_penalty": 0.0},
    "limits": {"max_tokens": 256, "max_completion_tokens": 4},
    "one answer": {"n": 1},
    "nulls": dict.fromkeys(["n", "tools", "stop", "logprobs", "response_format", "anything"]),
    "no tools": {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
    "no log-probabilities": {"logprobs": False, "top_logprobs": 0, "logit_bias": {}},
    "who asks": {"user": "u", "metadata": {"a": "b"}, "store": False},
    "stops that no answer holds": {"stop": ["\n\n", "<|im_end|>", "Q:"]},
    "no stop": {"stop": []},
    "text": {"response_format": {"type": "text"}},
    "JSON": {"response_format": {"type": "json_object"}},
    "the task's own schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": dict(answer_schema(TASK))}}
    },
    "a pydantic model's schema": {"response_format": schema(a={"title": "A", **NUMBER}, b={"title": "B", **NUMBER})},
    "optional numbers": {"response_format": schema(a={"anyOf": [NUMBER, {"type": "null"}]}, b={"type": ["number"]})},
}


@pytest.mark.parametrize("case", NEUTRAL)
def test_what_changes_nothing_is_taken(case: str) -> None:
    check_parameters(NEUTRAL[case], TASK)


CALLS = [{"type": "function", "function": {"name": "f"}}]
SCHEMA = "response_format.json_schema: expected a schema that the model's answers meet; got: "
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "three answers": ({"n": 3}, "n: expected 1; got 3; ask again for a further answer"),
    "true is not one": ({"n": True}, "n: expected 1; got true; ask again for a further answer"),
    "log-probabilities": (
        {"logprobs": True, "top_logprobs": 5},
        "logprobs: expected false; got true; POST /api/interpreter gives the uncertainty of every number; "
        "top_logprobs: expected 0; got 5; POST /api/interpreter gives the uncertainty of every number",
    ),
    "tools": (
        {"tools": CALLS, "tool_choice": "required"},
        'tools: expected []; got [{"type": "function", "function": {"name": "f"}}]; the model calls nothing; '
        'tool_choice: expected "none" or "auto"; got "required"; the model calls nothing',
    ),
    "bias": ({"logit_bias": {"1": 5}}, 'logit_bias: expected {}; got {"1": 5}; the answer\'s form is fixed'),
    "a stop inside the answer": ({"stop": ["}"]}, 'stop: expected [] or ""; got ["}"]; the answer ends by itself'),
    "a stop of digits": ({"stop": "42"}, 'stop: expected [] or ""; got "42"; the answer ends by itself'),
    "audio": ({"modalities": ["audio"]}, 'modalities: expected ["text"]; got ["audio"]; the answer is text'),
    "unknown": ({"guided_regex": "x"}, "guided_regex: expected a parameter that this server knows; leave it out"),
    "no such format": (
        {"response_format": {"type": "xml"}},
        'response_format: expected text, json_object or json_schema; got {"type": "xml"}',
    ),
    "no schema": ({"response_format": {"type": "json_schema", "json_schema": {}}}, f"{SCHEMA}a schema is missing"),
    "another task's keys": (
        {"response_format": schema(mood=NUMBER, a=NUMBER)},
        f"{SCHEMA}mood, where answers have a, b",
    ),
    "fewer keys": ({"response_format": schema(a=NUMBER)}, f"{SCHEMA}no b, which answers have"),
    "another type": (
        {"response_format": schema(a={"type": "string"}, b=NUMBER)},
        f"{SCHEMA}a type or range of a that is narrower than the model's",
    ),
    "a narrower range": (
        {"response_format": schema(a={**NUMBER, "maximum": 10}, b={**NUMBER, "exclusiveMinimum": 0})},
        f"{SCHEMA}a type or range of a, b that is narrower than the model's",
    ),
    "a list": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}},
        f'{SCHEMA}the type "array", where answers are objects',
    ),
    "a reference": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/$defs/A"}}}},
        f"{SCHEMA}$ref, which this server does not read",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_ignored_is_refused(case: str) -> None:
    """`n: 3` got one answer, tools none, a foreign schema our own keys: all with status 200."""
    parameters, message = REFUSED[case]
    with pytest.raises(ApiError) as refusal:
        check_parameters(parameters, TASK)
    assert (refusal.value.status, refusal.value.message) == (400, message)


def test_whole_numbers_are_no_schema_for_decimals() -> None:
    task = TASK.model_copy(update={"decimals": 1})
    with pytest.raises(ApiError, match="a type or range of a, b that is narrower"):
        check_parameters({"response_format": schema(a=NUMBER, b=NUMBER)}, task)
    check_parameters({"response_format": schema(a={"type": "number"}, b={"type": "number"})}, task)
