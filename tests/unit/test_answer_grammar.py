"""The grammar takes exactly the answers that `render` writes: one text too few and an engine can never say it."""

import json
import re

import pytest

from ppe_lora.engines.grammar import answer_gbnf
from ppe_lora.tasks.scores import ScoresTask

TASKS = [
    ScoresTask(),
    ScoresTask(keys=("a",), low=1, high=5),
    ScoresTask(keys=("a",), low=-12, high=7),
    ScoresTask(keys=("a",), low=0, high=100, decimals=1),
    ScoresTask(keys=("a",), low=-3, high=12, decimals=1),
]


def as_regex(gbnf: str) -> re.Pattern[str]:
    """The grammar as a regular expression, read token by token as GBNF defines it."""
    rules = dict(line.split(" ::= ", 1) for line in gbnf.splitlines())

    def expression(rule: str) -> str:
        parts = []
        for token in re.findall(r'"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[()|?]|[a-z]+', rule):
            if token.startswith('"'):
                parts.append(f"(?:{re.escape(json.loads(token))})")
            else:
                parts.append(f"(?:{expression(rules[token])})" if token.isalpha() else token)
        return "".join(parts)

    return re.compile(expression(rules["root"]))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.low}..{task.high}/{task.decimals}")
def test_every_value_and_no_other(task: ScoresTask) -> None:
    pattern = as_regex(answer_gbnf(task))
    middle = task.round((task.low + task.high) / 2)
    step = 10**task.decimals
    for number in range((task.low - 30) * step, (task.high + 930) * step):
        value = number / step
        text = task.render(dict.fromkeys(task.keys, middle)).replace(
            f'"{task.keys[0]}":{task.render_value(middle)}', f'"{task.keys[0]}":{task.render_value(value)}'
        )
        assert bool(pattern.fullmatch(text)) == (task.low <= value <= task.high), text


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1,"b":2}',  # other white space than in training makes answers worse
        '{"b":2,"a":1}',
        '{"a":01,"b":2}',
        '{"a":1.0,"b":2}',
        '{"a":,"b":2}',
        '{"a":1}',
        '{"a":1,"b":2}\n',
        '{"a":-0,"b":2}',
    ],
)
def test_other_json_is_left_out(text: str) -> None:
    pattern = as_regex(answer_gbnf(ScoresTask(keys=("a", "b"))))
    assert pattern.fullmatch('{"a":1,"b":2}')
    assert not pattern.fullmatch(text)


def test_the_grammar_stays_small() -> None:
    """A list of 101 values per key would be a slow grammar; vLLM compiles it for every model."""
    assert answer_gbnf(ScoresTask()).splitlines()[1] == 'score ::= "0" | "1" ("0" "0"? | [1-9])? | [2-9] [0-9]?'
