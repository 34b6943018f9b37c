"""A teacher that is a language model: asks become questions, replies become requests, and every reply is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ppe_lora.corpus.teachers.base import Ask, Phrased
from ppe_lora.corpus.teachers.llm.answer import cause_of
from ppe_lora.corpus.teachers.llm.budget import spent_on
from ppe_lora.corpus.teachers.llm.exchange import Question, Reply
from ppe_lora.corpus.teachers.llm.fetch import Plan, fetch_replies, plan_questions, prices_of
from ppe_lora.corpus.teachers.llm.prompt import ANSWER_SCHEMA, Prompter, prompt_version, read_request
from ppe_lora.corpus.teachers.llm.raw_log import RawLog, Shard, read_replies
from ppe_lora.recipe.teachers import LlmTeacher as LlmSettings
from ppe_lora.tasks.scores import ScoresTask


class Asked(NamedTuple):
    """What a shard has: counts of questions."""

    replies: int
    """With a reply on disk, of the shard's own and of other files in the folder."""
    elsewhere: int
    """Other shards', not seen in the folder."""


class LlmTeacher:
    """Asks a language model for every request, through as many servers as the recipe names."""

    def __init__(
        self, settings: LlmSettings, task: ScoresTask, seed: int, folder: Path, *, skip_corrupt: bool = False
    ) -> None:
        """Reach for nothing yet: a data set that is up to date needs no key and no server.

        Args:
            settings: Model, servers, limits, budget.
            task: Whose scores the requests imply.
            seed: The recipe's seed.
            folder: Where raw replies are kept.
            skip_corrupt: Pass over corrupt lines there; their questions are asked again.
        """
        self.name = settings.model
        self.version = prompt_version()
        self.spent = spent_on([], prices_of(settings))
        """What the answers to `phrase` used."""
        self._settings = settings
        self._prompter = Prompter(task, seed)
        self._folder = folder
        self._skip_corrupt = skip_corrupt

    def phrase(self, asks: Sequence[Ask]) -> list[Phrased]:
        """One `Phrased` per ask, in the same order. Only what no raw reply answers is asked.

        Raises:
            PpeError: The teacher cannot be reached, refuses everything, or its budget is spent. Replies so far are
                kept, and the same call later asks for the rest.
            Interrupted: By a signal, likewise.
        """
        prompts = [self._prompt(ask) for ask in asks]
        with RawLog(self._folder, skip_corrupt=self._skip_corrupt) as log:
            refused = self._fetch([prompt.question for prompt in prompts], log)
            replies = [log.replies[prompt.key] for prompt in prompts if prompt.key not in refused]
            self.spent = spent_on(replies, prices_of(self._settings))
            return [self._phrased(prompt, log.replies, refused) for prompt in prompts]

    def questions(self, asks: Sequence[Ask]) -> list[Question]:
        """What `phrase` asks, one question per ask, in the same order."""
        return [self._prompt(ask).question for ask in asks]

    def ask_shard(self, asks: Sequence[Ask], shard: Shard) -> Asked:
        """Ask one shard's part of the questions into a raw file of its own. Raises as `phrase` does."""
        questions = self.questions(asks)
        with RawLog(self._folder, shard, skip_corrupt=self._skip_corrupt) as log:
            self._fetch(questions, log)
            keys = {question.key for question in questions}
            return Asked(len(keys & log.replies.keys()), sum(not shard.takes(key) for key in keys - log.replies.keys()))

    def phrased(self, asks: Sequence[Ask]) -> list[Phrased | None]:
        """What the raw replies that are there say, one for each ask; None where there is no reply. Asks nothing."""
        replies = read_replies(self._folder, skip_corrupt=self._skip_corrupt)
        prompts = [self._prompt(ask) for ask in asks]
        return [self._phrased(prompt, replies, {}) if prompt.key in replies else None for prompt in prompts]

    def plan(self, asks: Sequence[Ask], shard: Shard | None = None) -> Plan:
        """What asking would take, beyond the replies that are already there. Asks nothing."""
        questions = self.questions(asks)
        if shard:
            questions = [question for question in questions if shard.takes(question.key)]
        answered = read_replies(self._folder, skip_corrupt=self._skip_corrupt)
        return plan_questions(self._settings, questions, answered)

    def _prompt(self, ask: Ask) -> "_Prompt":
        messages, scenario, seed = self._prompter.brief(ask)
        sampling = {"temperature": self._settings.temperature, "max_tokens": self._settings.max_tokens, "seed": seed}
        question = Question(self._settings.model, messages, sampling, ANSWER_SCHEMA)
        return _Prompt(question, question.key, scenario)

    def _fetch(self, questions: Sequence[Question], log: RawLog) -> Mapping[str, str]:
        return fetch_replies(
            self._settings,
            questions,
            log,
            section="data.source.teacher",
            doing="asking",
            usable=lambda text: read_request(text) is not None,
        )

    def _phrased(self, prompt: "_Prompt", replies: Mapping[str, Reply], refused: Mapping[str, str]) -> Phrased:
        if prompt.key in refused:
            return Phrased("", prompt.scenario, refused[prompt.key])
        said = replies[prompt.key]
        request = read_request(said.text)
        if request is None:
            return Phrased("", prompt.scenario, f"{cause_of(said).words}: {said.text}")
        return Phrased(request, prompt.scenario)


class _Prompt(NamedTuple):
    question: Question
    key: str
    """The question's, computed once."""
    scenario: tuple[str, ...]
