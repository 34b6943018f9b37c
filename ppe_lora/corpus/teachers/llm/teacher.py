"""A teacher that is a language model: asks become questions, replies become requests, and every reply is kept."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ppe_lora.console import Advance, progress
from ppe_lora.corpus.teachers.base import Ask, Phrased
from ppe_lora.corpus.teachers.llm import budget
from ppe_lora.corpus.teachers.llm.asking import Settings
from ppe_lora.corpus.teachers.llm.client import Client
from ppe_lora.corpus.teachers.llm.exchange import Question, Refused, Reply
from ppe_lora.corpus.teachers.llm.limits import RateLimit
from ppe_lora.corpus.teachers.llm.meter import Meter
from ppe_lora.corpus.teachers.llm.prompt import ANSWER_SCHEMA, Prompter, prompt_version, read_request
from ppe_lora.corpus.teachers.llm.raw_log import RawLog, Shard, read_replies
from ppe_lora.corpus.teachers.llm.servers import AskingFailed, Server
from ppe_lora.errors import Interrupted
from ppe_lora.recipe.teachers import LlmTeacher as LlmSettings
from ppe_lora.recipe.teachers import MistralTeacher, OpenAICompatibleTeacher
from ppe_lora.tasks.scores import ScoresTask

_ANSWER_S = 3.0
"""Assumed for the estimate where no rate limit bounds the pace: one answer, among others under way."""


class Plan(NamedTuple):
    """What asking would take. Nothing was sent to know it."""

    model: str
    estimate: budget.Estimate
    seconds: float | None
    """Expected; None for batch jobs, which take minutes to a day."""
    pace: str
    """What that is reckoned from."""


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
            refused = self._ask([prompt.question for prompt in prompts], log)
            return [self._phrased(prompt, log.replies, refused) for prompt in prompts]

    def questions(self, asks: Sequence[Ask]) -> list[Question]:
        """What `phrase` asks, one question per ask, in the same order."""
        return [self._prompt(ask).question for ask in asks]

    def ask_shard(self, asks: Sequence[Ask], shard: Shard) -> Asked:
        """Ask one shard's part of the questions into a raw file of its own. Raises as `phrase` does."""
        questions = self.questions(asks)
        with RawLog(self._folder, shard, skip_corrupt=self._skip_corrupt) as log:
            self._ask(questions, log)
            keys = {question.key for question in questions}
            return Asked(len(keys & log.replies.keys()), sum(not shard.takes(key) for key in keys - log.replies.keys()))

    def plan(self, asks: Sequence[Ask], shard: Shard | None = None) -> Plan:
        """What asking would take, beyond the replies that are already there. Asks nothing."""
        questions = self.questions(asks)
        if shard:
            questions = [question for question in questions if shard.takes(question.key)]
        answered = read_replies(self._folder, skip_corrupt=self._skip_corrupt)
        estimate = budget.estimate_cost(questions, self._prices, answered)
        return Plan(self.name, estimate, *_duration(self._settings, estimate.expected))

    @property
    def _prices(self) -> budget.Prices:
        return budget.Prices(**self._settings.prices.model_dump())

    @property
    def _budget(self) -> budget.Budget:
        return budget.Budget(**self._settings.budget.model_dump())

    def _prompt(self, ask: Ask) -> "_Prompt":
        messages, scenario, seed = self._prompter.brief(ask)
        sampling = {"temperature": self._settings.temperature, "max_tokens": self._settings.max_tokens, "seed": seed}
        question = Question(self._settings.model, messages, sampling, ANSWER_SCHEMA)
        return _Prompt(question, question.key, scenario)

    def _ask(self, questions: Sequence[Question], log: RawLog) -> Mapping[str, str]:
        """Bring every reply that is missing into the log. Returns questions refused for good, and why, by key."""
        keys = {question.key for question in questions}
        mine = {key for key in keys - log.replies.keys() if log.shard is None or log.shard.takes(key)}
        if not mine:
            return {}
        if isinstance(self._settings, MistralTeacher) and self._settings.mode == "batch":
            self._ask_batch([question for question in questions if question.key in mine], log)
            return {}
        known = len(keys & log.replies.keys())
        with (
            progress(f"asking {self.name}", known + len(mine), done=known) as advance,
            Client(
                _servers(self._settings),
                log,
                budget=self._budget,
                prices=self._prices,
                settings=Settings(concurrency=self._settings.limits.concurrency, timeout_s=self._settings.timeout_s),
            ) as client,
        ):
            answers = client.ask_all(questions, _shown_by(advance, log, known))
        unanswered = {key: error for key, error in answers.failed.items() if not isinstance(error, Refused)}
        if unanswered:
            raise AskingFailed(
                f"{self._folder}: expected a reply to each of {len(keys):,} questions; {len(unanswered):,} got none in "
                f"several attempts (one of them: {next(iter(unanswered.values()))}); the others are kept: run the same "
                "command again for the rest"
            )
        return {key: str(error) for key, error in answers.failed.items()}

    def _ask_batch(self, questions: Sequence[Question], log: RawLog) -> None:
        """Ask by batch jobs until all have a reply. Jobs of a process that was killed are picked up."""
        from ppe_lora.corpus.teachers.llm import mistral_batch

        ledger = budget.Ledger(self._budget.share(log.shard.of if log.shard else 1), self._prices, log.spent)

        async def ask() -> Mapping[str, str]:
            await ledger.reserve(sum(map(budget.worst_case, questions), budget.Usage()))
            batch = mistral_batch.MistralBatch(log.path.with_suffix(".batch"))
            try:
                missing: Mapping[str, str] = {question.key: "" for question in questions}
                while missing:
                    answers = await batch.ask([question for question in questions if question.key in missing])
                    log.write(answers.replies, "mistral batch")
                    missing = answers.unanswered
                    if not answers.replies:
                        break
                return missing
            finally:
                await batch.close()

        try:
            missing = asyncio.run(ask())
        except KeyboardInterrupt:
            raise Interrupted(
                f"{self._folder}: stopped; batch jobs go on at Mistral, and the same command picks them up again"
            ) from None
        if missing:
            raise AskingFailed(
                f"{self._folder}: expected a batch reply to each of {len(questions):,} questions; {len(missing):,} got "
                f"none (one of them: {next(iter(missing.values()))}); the others are kept: run the same command again, "
                "or ask the rest in real time with data.source.teacher.mode=realtime"
            )

    def _phrased(self, prompt: "_Prompt", replies: Mapping[str, Reply], refused: Mapping[str, str]) -> Phrased:
        if prompt.key in refused:
            return Phrased("", prompt.scenario, refused[prompt.key])
        said = replies[prompt.key]
        request = read_request(said.text)
        if request is None:
            return Phrased("", prompt.scenario, f"{said.finish_reason}: {said.text}")
        return Phrased(request, prompt.scenario)


class _Prompt(NamedTuple):
    question: Question
    key: str
    """The question's, computed once."""
    scenario: tuple[str, ...]


def _shown_by(advance: Advance, log: RawLog, known: int) -> Callable[[Meter], None]:
    """Shows the meter in a progress bar, with the answers of this run that are no requests.

    Args:
        advance: Of a bar that starts at `known`.
        log: Its replies are in the order in which they came.
        known: Questions that had a reply before.
    """
    ended, looked_at, unusable = known, len(log.replies), 0

    def show(meter: Meter) -> None:
        nonlocal ended, looked_at, unusable
        new = list(islice(log.replies.values(), looked_at, None))
        looked_at += len(new)
        unusable += sum(read_request(reply.text) is None for reply in new)
        advance(meter.done + meter.failed - ended, f"{meter}, {unusable:,} unusable" if unusable else str(meter))
        ended = meter.done + meter.failed

    return show


def _servers(settings: LlmSettings) -> list[Server]:
    """The recipe's servers. The clients are imported here: they take a second, and an up-to-date data set needs none.

    Raises:
        Refused: An API key is missing.
    """
    limit = RateLimit(settings.limits.requests_per_minute, settings.limits.tokens_per_minute)
    if isinstance(settings, OpenAICompatibleTeacher):
        from ppe_lora.corpus.teachers.llm import openai_compatible

        return [
            Server(
                openai_compatible.OpenAICompatibleEndpoint(
                    server.url, key_variable=settings.api_key_env, timeout_s=settings.timeout_s
                ),
                server.weight,
                limit,
            )
            for server in settings.endpoints
        ]
    from ppe_lora.corpus.teachers.llm import mistral

    return [Server(mistral.MistralEndpoint(timeout_s=settings.timeout_s), limit=limit)]


def _duration(settings: LlmSettings, expected: budget.Usage) -> tuple[float | None, str]:
    """Seconds that asking should take, and what they are reckoned from."""
    if isinstance(settings, MistralTeacher) and settings.mode == "batch":
        return None, "batch jobs take minutes to a day"
    servers = len(settings.endpoints) if isinstance(settings, OpenAICompatibleTeacher) else 1
    limits = settings.limits
    bounds = {
        f"{limits.concurrency} questions at a time, {_ANSWER_S:g} s each (assumed)": expected.requests
        * _ANSWER_S
        / limits.concurrency
    }
    for count, per_minute, unit in (
        (expected.requests, limits.requests_per_minute, "requests"),
        (expected.tokens, limits.tokens_per_minute, "tokens"),
    ):
        if per_minute:
            bounds[f"{per_minute * servers:,g} {unit} a minute"] = 60.0 * count / (per_minute * servers)
    pace = max(bounds, key=lambda name: bounds[name])
    return bounds[pace], pace
