"""Parameters of chat completions: which change nothing, which are met only at one value, and which are refused."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ppe_lora.cells import shorten
from ppe_lora.serving.backend import ApiError
from ppe_lora.tasks.scores import ScoresTask

WITHOUT_EFFECT = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "max_tokens", "max_completion_tokens", "reasoning_effort", "verbosity", "parallel_tool_calls", "user",
        "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
        "safety_identifier",
    }
)  # fmt: skip
"""Accepted with any value. A model has one answer to a request, always whole: how texts are sampled, how long they get
and who asks changes nothing about it."""


class _Only(NamedTuple):
    """Values of a parameter that this server can meet, and what to write in their place."""

    values: Sequence[Any]
    remedy: str


_ONLY: Mapping[str, _Only] = {
    "n": _Only([1], "ask again for a further answer"),
    "best_of": _Only([1], "there is one answer to a request"),
    "stop": _Only([[], ""], "the answer ends by itself"),
    "logprobs": _Only([False], "POST /api/interpreter gives the uncertainty of every number"),
    "top_logprobs": _Only([0], "POST /api/interpreter gives the uncertainty of every number"),
    "logit_bias": _Only([{}], "the answer's form is fixed"),
    "tools": _Only([[]], "the model calls nothing"),
    "tool_choice": _Only(["none", "auto"], "the model calls nothing"),
    "functions": _Only([[]], "the model calls nothing"),
    "function_call": _Only(["none", "auto"], "the model calls nothing"),
    "modalities": _Only([["text"]], "the answer is text"),
    "store": _Only([False], "nothing is stored"),
}
_READ = frozenset(
    {
        "type", "properties", "required", "additionalProperties", "title", "description", "examples", "default",
        "$schema", "$id", "$defs"
    }
)  # fmt: skip
_COMBINED = ("anyOf", "oneOf", "allOf")


def check_parameters(parameters: Mapping[str, Any], task: ScoresTask) -> None:
    """Refuse what would be ignored otherwise: a client that asks for three answers should not get one in silence.

    Args:
        parameters: Those of a body, without `model`, `messages`, `stream` and `stream_options`. Null is none.
        task: What the model answers.

    Raises:
        ApiError: 400, with every parameter that cannot be met.
    """
    problems = [
        problem
        for name, value in parameters.items()
        if value is not None and name not in WITHOUT_EFFECT and (problem := _problem(name, value, task))
    ]
    if problems:
        raise ApiError(400, "invalid_request_error", "; ".join(problems[:5]))


def _problem(name: str, value: Any, task: ScoresTask) -> str | None:
    if name == "response_format":
        return _format_problem(value, task)
    if name == "stop" and _never_written(value, task):
        return None
    only = _ONLY.get(name)
    if only is None:
        return f"{shorten(name)}: expected a parameter that this server knows; leave it out"
    # Compared as JSON: in Python 1 == True.
    if json.dumps(value) in map(json.dumps, only.values):
        return None
    expected = " or ".join(json.dumps(one) for one in only.values)
    return f"{name}: expected {expected}; got {shorten(json.dumps(value))}; {only.remedy}"


def _never_written(stop: Any, task: ScoresTask) -> bool:
    """Whether no answer holds any of the texts to stop at: each has a character that answers do not have."""
    written = set(task.render(dict.fromkeys(task.keys, task.low))) | set("0123456789.-")
    texts = [stop] if isinstance(stop, str) else stop
    return isinstance(texts, list) and all(isinstance(text, str) and set(text) - written for text in texts)


def _format_problem(wanted: Any, task: ScoresTask) -> str | None:
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind in ("text", "json_object"):
        return None
    if kind != "json_schema" or not isinstance(wanted.get("json_schema"), dict):
        return f"response_format: expected text, json_object or json_schema; got {shorten(json.dumps(wanted))}"
    schema = wanted["json_schema"].get("schema")
    problem = _schema_problem(schema, task) if isinstance(schema, dict) else "a schema is missing"
    return problem and f"response_format.json_schema: expected a schema that the model's answers meet; got: {problem}"


def _schema_problem(schema: Mapping[str, Any], task: ScoresTask) -> str | None:
    """Why a task's answers may break a JSON schema; None where all of them meet it.

    It is read as far as clients write it for such answers: an object of numbers. What is beyond that is refused, too.
    """
    if unread := sorted(schema.keys() - _READ):
        return f"{shorten(', '.join(unread))}, which this server does not read"
    if schema.get("type", "object") != "object":
        return f"the type {shorten(json.dumps(schema['type']))}, where answers are objects"
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return "no object of properties, or no list of required ones"
    foreign = sorted({str(key) for key in [*required, *properties]} - set(task.keys))
    if foreign:
        return f"{shorten(', '.join(foreign))}, where answers have {shorten(', '.join(task.keys))}"
    if schema.get("additionalProperties", True) is not True:
        missing = [key for key in task.keys if key not in properties]
        if missing:
            return f"no {shorten(', '.join(missing))}, which answers have"
    unmet = [key for key, wanted in properties.items() if not _admits(wanted, task)]
    return f"a type or range of {shorten(', '.join(unmet))} that is narrower than the model's" if unmet else None


def _admits(schema: Any, task: ScoresTask) -> bool:
    """Whether a property's schema admits every score."""
    if not isinstance(schema, dict):
        return schema is True
    for word in _COMBINED:
        if isinstance(schema.get(word), list):
            among: Callable[[Any], bool] = all if word == "allOf" else any
            return among(_admits(one, task) for one in schema[word])
    kinds = schema.get("type", "number")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    whole = task.decimals == 0 and "integer" in kinds
    if not ("number" in kinds or whole) or {"enum", "const", "not", "$ref", "multipleOf"} & schema.keys():
        return False
    try:
        return bool(
            schema.get("minimum", task.low) <= task.low <= task.high <= schema.get("maximum", task.high)
            and schema.get("exclusiveMinimum", -math.inf) < task.low
            and task.high < schema.get("exclusiveMaximum", math.inf)
        )
    except TypeError:
        return False
