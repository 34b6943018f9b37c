"""A language model that reads requests back: it never sees the target, and estimates the scores from the words alone.

The wording is in `prompts/<version>.<language>.yaml`. Readings have raw files of their own beside the written texts,
and so a budget of their own.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from ruamel.yaml import YAML

from ppe_lora.artifacts import hash_json
from ppe_lora.corpus.rows import Row
from ppe_lora.corpus.teachers.llm.answer import last_object
from ppe_lora.corpus.teachers.llm.budget import spent_on
from ppe_lora.corpus.teachers.llm.exchange import Message, Question
from ppe_lora.corpus.teachers.llm.fetch import Plan, fetch_replies, plan_questions, prices_of
from ppe_lora.corpus.teachers.llm.prompt import EXAMPLE_KEYS, load_prompt
from ppe_lora.corpus.teachers.llm.raw_log import RawLog, read_replies
from ppe_lora.recipe.teachers import LlmTeacher
from ppe_lora.section import Section
from ppe_lora.tasks.scores import Answer, Language, ScoresTask

READING_PROMPT = "relabel_v1"
"""The version in use: the stem of the files in `prompts/`."""
_STEM = "readings"
_LANGUAGES: tuple[Language, ...] = ("en", "ja")


class ReadingPrompt(Section):
    """One language of one version: a Jinja template and what it is filled with."""

    system: str
    """May use `instruction`, `low`, `high`, `middle`, `decimals`, `scores`, `grades` and `form`."""
    meanings: dict[str, str]
    """What a score of that name means; for others the task's instruction must do."""


class Reader:
    """Asks a language model for the scores of requests."""

    def __init__(
        self,
        settings: LlmTeacher,
        task: ScoresTask,
        folder: Path,
        *,
        section: str = "data.filters.relabel.teacher",
        skip_corrupt: bool = False,
    ) -> None:
        """Reach for nothing yet.

        Args:
            settings: Model, servers, limits, budget.
            task: Names the scores.
            folder: Where raw readings are kept.
            section: Where the recipe names the model.
            skip_corrupt: Pass over corrupt lines there; their questions are asked again.
        """
        self.name = settings.model
        self._settings, self._task, self._folder, self._skip_corrupt = settings, task, folder, skip_corrupt
        self._section = section
        self._schema = answer_schema(task)
        self.spent = spent_on([], prices_of(settings))
        """What the answers to `read` used."""

    @property
    def version(self) -> str:
        """The prompt's version, and a hash of what it says for this task."""
        return f"{READING_PROMPT}-{hash_json([self._turns(language) for language in _LANGUAGES])}"

    def read(self, rows: Sequence[Row]) -> list[Answer | None]:
        """The scores read from each request, in the same order; None where the model's answer is none.

        Only what no raw reading answers is asked.

        Raises:
            PpeError, Interrupted: As `fetch_replies`.
        """
        questions = [self.question(row) for row in rows]
        with RawLog(self._folder, stem=_STEM, skip_corrupt=self._skip_corrupt) as log:
            fetch_replies(
                self._settings,
                questions,
                log,
                section=self._section,
                doing="reading back with",
                usable=lambda text: self._scores(text) is not None,
            )
            replies = [log.replies.get(question.key) for question in questions]
        self.spent = spent_on([reply for reply in replies if reply], prices_of(self._settings))
        return [self._scores(reply.text) if reply else None for reply in replies]

    def _scores(self, text: str) -> Answer | None:
        found = self._task.parse(last_object(text))
        return found if isinstance(found, Answer) else None

    def plan(self, rows: Sequence[Row]) -> Plan:
        """What reading would take, beyond the raw readings that are already there. Asks nothing."""
        answered = read_replies(self._folder, _STEM, skip_corrupt=self._skip_corrupt)
        return plan_questions(self._settings, [self.question(row) for row in rows], answered)

    def question(self, row: Row) -> Question:
        """What is asked about a row: its request and context as the student sees them, and nothing else of it."""
        request = self._task.messages(row.request, row.language, row.context)[-1]
        sampling = {"temperature": self._settings.temperature, "max_tokens": self._settings.max_tokens}
        return Question(self._settings.model, (*self._turns(row.language), request), sampling, self._schema)

    @lru_cache(maxsize=2)  # noqa: B019 - a build has one reader
    def _turns(self, language: Language) -> tuple[Message, ...]:
        """The rules, then a request of every style with its scores: the same examples that the row teacher may see.

        Only a task whose keys are among those of the examples has any.
        """
        task, turns = self._task, [self._rules(language)]
        examples = load_prompt(language).examples.values() if set(task.keys) <= set(EXAMPLE_KEYS) else ()
        for example, *_ in examples:
            unit = {key: score / 100 for key, score in zip(EXAMPLE_KEYS, example.scores, strict=True)}
            answer = task.render({key: task.round(task.low + unit[key] * task.span) for key in task.keys})
            turns += [task.messages(example.request, language)[-1], {"role": "assistant", "content": answer}]
        return tuple(turns)

    def _rules(self, language: Language) -> Message:
        task, prompt = self._task, _load(language)
        environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
        middle = task.render_value(task.round((task.low + task.high) / 2))
        content = environment.from_string(prompt.system).render(
            instruction=task.instruction_text(language),
            low=task.low,
            high=task.high,
            middle=middle,
            decimals=task.decimals,
            scores=[{"key": key, "meaning": prompt.meanings.get(key)} for key in task.keys],
            grades=load_prompt(language).grades,
            form="{" + ", ".join(f'"{key}": ...' for key in task.keys) + "}",
        )
        return {"role": "system", "content": content}


def answer_schema(task: ScoresTask) -> Mapping[str, Any]:
    """The JSON schema of an answer: every key of the task, each a number in its range."""
    score = {"type": "number" if task.decimals else "integer", "minimum": task.low, "maximum": task.high}
    return {
        "type": "object",
        "properties": dict.fromkeys(task.keys, score),
        "required": list(task.keys),
        "additionalProperties": False,
    }


@cache
def _load(language: Language) -> ReadingPrompt:
    path = files("ppe_lora.corpus.teachers.llm") / "prompts" / f"{READING_PROMPT}.{language}.yaml"
    tree = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return ReadingPrompt.model_validate_json(json.dumps(tree))
