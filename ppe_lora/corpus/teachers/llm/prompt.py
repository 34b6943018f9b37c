"""The teacher's prompt: from one ask to the messages a language model gets.

The wording is in `prompts/<version>.<language>.yaml`. What varies from row to row (person, occasion, way of saying it,
examples) is drawn by the row's own generator, so that texts do not converge and equal asks make equal prompts.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

from jinja2 import Environment, StrictUndefined, Template
from pydantic import Field
from ruamel.yaml import YAML

from ppe_lora.cells import parse_json
from ppe_lora.corpus.seeding import row_rng
from ppe_lora.corpus.teachers import occasions, phrasebook_en, phrasebook_ja, phrases
from ppe_lora.corpus.teachers.base import Ask, extreme_tags
from ppe_lora.corpus.teachers.llm.answer import last_object
from ppe_lora.corpus.teachers.llm.exchange import Message
from ppe_lora.corpus.teachers.occasions import draw_occasion
from ppe_lora.corpus.teachers.phrases import Dice
from ppe_lora.recipe.schema import Style
from ppe_lora.section import Section
from ppe_lora.tasks.scores import Language, ScoresTask

PROMPT = "v1"
"""The version in use: the stem of the files in `prompts/`."""
ANSWER_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"request": {"type": "string"}},
    "required": ["request"],
    "additionalProperties": False,
}
"""What the prompt asks a model to answer with."""
EXAMPLE_KEYS = ("energy", "warmth", "brightness", "acousticness", "complexity", "nostalgia")
"""What the scores of an example stand for; they go from 0 to 100."""
_EXAMPLE_TASK = ScoresTask(keys=EXAMPLE_KEYS, low=0, high=100, decimals=0)
_EXAMPLES = 3
_PERSON_SHARE = 0.7
_MANNER_SHARE = 0.7


class Brief(NamedTuple):
    """What is sent for one ask."""

    messages: tuple[Message, ...]
    """The rules, then examples as earlier turns, then the row."""
    scenario: tuple[str, ...]
    """Tags of the situation and of extreme scores, sorted."""
    seed: int
    """For the model's sampling; it also keeps two rows with the same words two questions."""


class Example(Section):
    """A request worth imitating, and the scores it stands for."""

    scores: tuple[int, ...] = Field(min_length=len(EXAMPLE_KEYS), max_length=len(EXAMPLE_KEYS))
    request: str


class PromptFile(Section):
    """One language of one version: two Jinja templates and what they are filled with."""

    system: str
    """May use `instruction`, `forbidden` and `foreign`."""
    brief: str
    """May use `low`, `high`, `scores`, `style`, `persona`, `occasion`, `context` and `manner`."""
    grades: tuple[str, ...]
    """Words for a score from low to high, each for an equal part of the range."""
    styles: dict[Style, str]
    personas: tuple[str, ...]
    manners: tuple[str, ...]
    examples: dict[Style, tuple[Example, ...]]


class Prompter:
    """Makes the prompts of one task and seed."""

    def __init__(self, task: ScoresTask, seed: int) -> None:
        self._task = task
        self._seed = seed
        self._own_examples = set(task.keys) <= set(EXAMPLE_KEYS)

    def brief(self, ask: Ask) -> Brief:
        """The prompt of one row. It depends on the task, the seed and the ask only.

        The examples have the row's language and style. They show the task's scores where the task's keys are among
        those of the examples; for any other task they keep their own, and the prompt says so.
        """
        task = self._task
        prompt = load_prompt(ask.language)
        dice = Dice(row_rng(self._seed, "prompt", ask.number))
        turns = [self._rules(ask.language)]
        for pair in dice.shuffled(self._examples(ask.language, ask.style))[:_EXAMPLES]:
            turns += pair
        energy = (ask.target["energy"] - task.low) / task.span if "energy" in ask.target else 0.5
        occasion = draw_occasion(ask, energy, dice)
        stated = {
            "persona": dice.pick(prompt.personas) if dice.chance(_PERSON_SHARE) else None,
            "manner": dice.pick(prompt.manners) if dice.chance(_MANNER_SHARE) else None,
            "occasion": occasion.text if occasion else None,
            "context": ", ".join(f"{name}={text}" for name, text in sorted((ask.context or {}).items())),
        }
        target = {key: ask.target[key] for key in dice.shuffled(task.keys)}
        turns.append(_brief(ask.language, ask.style, task, target, **stated))
        tags = {*extreme_tags(ask.target, task.low, task.high), *(occasion.tags if occasion else ())}
        return Brief(tuple(turns), tuple(sorted(tags)), int(dice.rng.integers(2**31)))

    @lru_cache(maxsize=2)  # noqa: B019 - a teacher has one prompter, for as long as it asks
    def _rules(self, language: Language) -> Message:
        task = self._task
        words = [*(key.replace("_", " ") for key in task.keys)]
        words += [name for names in task.aliases.values() for aliases in names.values() for name in aliases]
        return {
            "role": "system",
            "content": _template(language, "system").render(
                instruction=task.instruction_text(language),
                forbidden=", ".join(dict.fromkeys(words)),
                foreign=not self._own_examples,
            ),
        }

    @lru_cache(maxsize=8)  # noqa: B019
    def _examples(self, language: Language, style: Style) -> list[tuple[Message, Message]]:
        shown = self._task if self._own_examples else _EXAMPLE_TASK
        turns: list[tuple[Message, Message]] = []
        for example in load_prompt(language).examples[style]:
            unit = {key: score / _EXAMPLE_TASK.span for key, score in zip(EXAMPLE_KEYS, example.scores, strict=True)}
            target = {key: shown.round(shown.low + unit[key] * shown.span) for key in shown.keys}
            answer = json.dumps({"request": example.request}, ensure_ascii=False)
            turns.append((_brief(language, style, shown, target), {"role": "assistant", "content": answer}))
        return turns


def read_request(text: str) -> str | None:
    """The request in a model's answer, without white space around it; None where there is none.

    It stands under `request` in the last whole JSON object of the answer (see `answer.last_object`).
    """
    try:
        answer = parse_json(last_object(text))
    except ValueError:
        return None
    request = answer.get("request") if isinstance(answer, dict) else None
    return request.strip() if isinstance(request, str) and request.strip() else None


@cache
def load_prompt(language: Language) -> PromptFile:
    """The prompt in use, in one language."""
    tree = YAML(typ="safe").load(_text(language))
    return PromptFile.model_validate_json(json.dumps(tree))


@cache
def prompt_version() -> str:
    """The version's name and a hash of everything that decides a prompt: words, situations and this module."""
    modules = (phrases, occasions, phrasebook_en, phrasebook_ja, sys.modules[__name__])
    parts = [_text("en"), _text("ja"), *(inspect.getsource(module) for module in modules)]
    return f"{PROMPT}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}"


def _text(language: Language) -> str:
    folder = files("ppe_lora.corpus.teachers.llm") / "prompts"
    return (folder / f"{PROMPT}.{language}.yaml").read_text(encoding="utf-8")


@cache
def _template(language: Language, part: Literal["system", "brief"]) -> Template:
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(getattr(load_prompt(language), part))


def _brief(
    language: Language, style: Style, task: ScoresTask, target: Mapping[str, float], **stated: str | None
) -> Message:
    """The turn that states one row: its scores in the order of `target`, its style, and what else is known."""
    prompt = load_prompt(language)
    top = len(prompt.grades) - 1
    scores = [
        {
            "key": key,
            "value": task.render_value(value),
            "grade": prompt.grades[min(int((value - task.low) / task.span * (top + 1)), top)],
        }
        for key, value in target.items()
    ]
    optional = dict.fromkeys(("persona", "manner", "occasion", "context")) | stated
    content = _template(language, "brief").render(
        low=task.low, high=task.high, scores=scores, style=prompt.styles[style], **optional
    )
    return {"role": "user", "content": content.strip()}
