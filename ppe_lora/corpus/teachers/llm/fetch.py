"""Brings what is missing into a raw log, from wherever a recipe's section says: real time or batch jobs."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ppe_lora.console import Advance, progress
from ppe_lora.corpus.teachers.llm import budget
from ppe_lora.corpus.teachers.llm.answer import ENOUGH, Judge
from ppe_lora.corpus.teachers.llm.asking import OnMeter, Settings
from ppe_lora.corpus.teachers.llm.client import Client
from ppe_lora.corpus.teachers.llm.exchange import Question, RateLimit, Refused, Reply
from ppe_lora.corpus.teachers.llm.meter import Meter
from ppe_lora.corpus.teachers.llm.raw_log import RawLog
from ppe_lora.corpus.teachers.llm.servers import AskingFailed, Server
from ppe_lora.errors import Interrupted
from ppe_lora.recipe.teachers import LlmTeacher as LlmSettings
from ppe_lora.recipe.teachers import MistralTeacher, OpenAICompatibleTeacher

_TRIAL_FROM = 10 * ENOUGH
"""Questions for batch jobs from which on a trial is made first."""
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


def plan_questions(settings: LlmSettings, questions: Sequence[Question], answered: Mapping[str, Reply]) -> Plan:
    """What asking would take, beyond the replies in `answered`. Asks nothing."""
    estimate = budget.estimate_cost(questions, prices_of(settings), answered)
    return Plan(settings.model, estimate, *_duration(settings, estimate.expected))


def fetch_replies(
    settings: LlmSettings,
    questions: Sequence[Question],
    log: RawLog,
    *,
    section: str,
    doing: str,
    usable: Callable[[str], bool],
) -> Mapping[str, str]:
    """Bring every reply that is missing into the log.

    Args:
        settings: Model, servers, limits, budget.
        questions: Of which a shard's log takes its part.
        log: Stays open.
        section: Where the recipe names the model.
        doing: For the progress bar, before the model's name.
        usable: Whether a reply's text is an answer. Others are counted in the bar, and kept; where hardly any is one,
            asking stops.

    Returns:
        Questions refused for good, and why, by key.

    Raises:
        PpeError: The model cannot be reached, refuses everything, gives nothing of use, or the budget is spent.
            Replies so far are kept, and the same call later asks for the rest.
        Interrupted: By a signal, likewise.
    """
    keys = {question.key for question in questions}
    mine = {key for key in keys - log.replies.keys() if log.shard is None or log.shard.takes(key)}
    judge = Judge(section, settings.max_tokens, usable, log.path)
    refused: Mapping[str, str] = {}
    if mine and isinstance(settings, MistralTeacher) and settings.mode == "batch":
        todo = [question for question in questions if question.key in mine]
        if len(todo) >= _TRIAL_FROM and not _batch_folder(log).exists():
            # What a job answers comes hours later and all at once: a few in real time say whether it is of any use.
            _fetch_now(settings, todo[:ENOUGH], log, lambda meter: None, judge)
        _fetch_batch(settings, [question for question in todo if question.key not in log.replies], log)
    elif mine:
        known = len(keys & log.replies.keys())
        with progress(f"{doing} {settings.model}", known + len(mine), done=known) as advance:
            refused = _fetch_now(settings, questions, log, _shown_by(advance, log, known, usable), judge)
    judge.conclude(log.replies[key] for key in keys & log.replies.keys())
    return refused


def _fetch_now(
    settings: LlmSettings, questions: Sequence[Question], log: RawLog, on_meter: OnMeter, judge: Judge
) -> Mapping[str, str]:
    """Ask in real time; returns as `fetch_replies`."""
    with Client(
        _servers(settings),
        log,
        budget=_budget(settings),
        prices=prices_of(settings),
        settings=Settings(concurrency=settings.limits.concurrency, timeout_s=settings.timeout_s),
    ) as client:
        answers = client.ask_all(questions, on_meter, judge.look)
    unanswered = {key: error for key, error in answers.failed.items() if not isinstance(error, Refused)}
    if unanswered:
        asked = len({question.key for question in questions})
        raise AskingFailed(
            f"{log.folder}: expected a reply to each of {asked:,} questions; {len(unanswered):,} got none in "
            f"several attempts (one of them: {next(iter(unanswered.values()))}); the others are kept: run the same "
            "command again for the rest"
        )
    return {key: str(error) for key, error in answers.failed.items()}


def _fetch_batch(settings: LlmSettings, questions: Sequence[Question], log: RawLog) -> None:
    """Ask by batch jobs until all have a reply. Jobs of a process that was killed are picked up."""
    from ppe_lora.corpus.teachers.llm import mistral, mistral_batch

    ledger = budget.Ledger(_budget(settings).share(log.shard.of if log.shard else 1), prices_of(settings), log.spent)

    async def ask() -> Mapping[str, str]:
        await ledger.reserve(sum(map(budget.worst_case, questions), budget.Usage()))
        account = mistral.MistralEndpoint(timeout_s=settings.timeout_s)
        try:
            await account.check(settings.model)  # a job's own word on a wrong name comes after the upload, and is short
        finally:
            await account.close()
        batch = mistral_batch.MistralBatch(_batch_folder(log))
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
            f"{log.folder}: stopped; batch jobs go on at Mistral, and the same command picks them up again"
        ) from None
    if missing:
        raise AskingFailed(
            f"{log.folder}: expected a batch reply to each of {len(questions):,} questions; {len(missing):,} got "
            f"none (one of them: {next(iter(missing.values()))}); the others are kept: run the same command again, "
            "or ask the rest in real time (mode: realtime)"
        )


def _batch_folder(log: RawLog) -> Path:
    """Where the log's batch jobs are kept."""
    return log.path.with_suffix(".batch")


def prices_of(settings: LlmSettings) -> budget.Prices:
    """The recipe's prices."""
    return budget.Prices(**settings.prices.model_dump())


def _budget(settings: LlmSettings) -> budget.Budget:
    return budget.Budget(**settings.budget.model_dump())


def _shown_by(advance: Advance, log: RawLog, known: int, usable: Callable[[str], bool]) -> Callable[[Meter], None]:
    """Shows the meter in a progress bar, with the answers of this run that are of no use.

    Args:
        advance: Of a bar that starts at `known`.
        log: Its replies are in the order in which they came.
        known: Questions that had a reply before.
        usable: Whether a reply's text is an answer.
    """
    ended, looked_at, unusable = known, len(log.replies), 0

    def show(meter: Meter) -> None:
        nonlocal ended, looked_at, unusable
        new = list(islice(log.replies.values(), looked_at, None))
        looked_at += len(new)
        unusable += sum(not usable(reply.text) for reply in new)
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
