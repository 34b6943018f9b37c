"""A language model as teacher: what becomes of each kind of answer, of weights, limits and estimates."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppe_lora.corpus.asks import make_asks
from ppe_lora.corpus.planning import parse_shard
from ppe_lora.corpus.teachers import Ask, LlmTeacher
from ppe_lora.corpus.teachers.llm import fetch, openai_compatible
from ppe_lora.corpus.teachers.llm.asking import Settings
from ppe_lora.corpus.teachers.llm.exchange import Question, Refused, Reply, Unavailable
from ppe_lora.corpus.teachers.llm.meter import Meter
from ppe_lora.corpus.teachers.llm.prompt import Prompter, read_request
from ppe_lora.corpus.teachers.llm.raw_log import RawLog, Shard
from ppe_lora.corpus.teachers.llm.servers import AskingFailed
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import GenerateSource
from ppe_lora.recipe.teachers import OpenAICompatibleTeacher
from ppe_lora.tasks.scores import ScoresTask
from tests.teacher_fakes import FakeEndpoint

TASK = ScoresTask()
ASKS: list[Ask] = [ask for ask, _ in make_asks(TASK, GenerateSource(rows=40), 0)]


class Writer(FakeEndpoint):
    """Answers with a request that names the question's seed, unless `say` knows better."""

    def __init__(self, say: Callable[[Question], str | None] = lambda question: None, **options: Any) -> None:
        super().__init__(latency_s=0.0, **options)
        self.say = say
        self.keys: list[str] = []

    async def ask(self, question: Question) -> Reply:
        self.keys.append(question.key)
        reply = await super().ask(question)
        said = self.say(question)
        return reply._replace(text=json.dumps({"request": f"song {seed(question)}"}) if said is None else said)


def seed(question: Question) -> int:
    return int(question.sampling["seed"])


def settings(urls: tuple[str, ...] = ("http://a",), **options: Any) -> OpenAICompatibleTeacher:
    content = {"kind": "openai_compatible", "model": "m", "endpoints": [{"url": url} for url in urls], **options}
    return OpenAICompatibleTeacher.model_validate_json(json.dumps(content))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Writer]], None]:
    """Puts fakes where the recipe's addresses are."""

    def put(writers: dict[str, Writer]) -> None:
        monkeypatch.setattr(openai_compatible, "OpenAICompatibleEndpoint", lambda url, **_: writers[url])
        monkeypatch.setattr(fetch, "Settings", functools.partial(Settings, attempts=2, backoff_s=0.001))

    return put


def test_each_ask_gets_the_answer_to_its_own_question(tmp_path: Path, serve: Any) -> None:
    """Answers come in any order; a row with another row's text is noise that no filter finds."""
    writer = Writer()
    serve({"http://a": writer})
    made = LlmTeacher(settings(), TASK, 0, tmp_path)
    phrased = made.phrase(ASKS)
    assert [one.text for one in phrased] == [f"song {made._prompter.brief(ask).seed}" for ask in ASKS]
    assert [one.scenario for one in phrased] == [made._prompter.brief(ask).scenario for ask in ASKS]
    assert {one.fault for one in phrased} == {None}
    assert (made.name, made.version[:3]) == ("m", "v1-")
    assert LlmTeacher(settings(), TASK, 0, tmp_path).phrase(ASKS[::-1]) == phrased[::-1]
    assert len(writer.keys) == len(ASKS)
    assert writer.closed


def test_another_model_seed_or_temperature_asks_anew(tmp_path: Path, serve: Any) -> None:
    """Answers of one model under another's name make a comparison of teachers worthless."""
    writer = Writer()
    serve({"http://a": writer})
    for options, rng in (({}, 0), ({"model": "n"}, 0), ({"temperature": 0.5}, 0), ({}, 1), ({"timeout_s": 9.0}, 0)):
        LlmTeacher(settings(**options), TASK, rng, tmp_path).phrase(ASKS[:5])
    assert len(set(writer.keys)) == len(writer.keys) == 20


def test_an_answer_that_is_no_request_is_kept_as_evidence(tmp_path: Path, serve: Any) -> None:
    """An empty text without its cause cannot be told from a bug."""
    writer = Writer(say=lambda question: "I'd rather not." if seed(question) % 2 else None)
    serve({"http://a": writer})
    phrased = LlmTeacher(settings(), TASK, 0, tmp_path).phrase(ASKS)
    odd = [one for one in phrased if one.fault]
    assert 0 < len(odd) < len(ASKS)
    assert {(one.text, one.fault) for one in odd} == {("", "without a JSON object: I'd rather not.")}


def test_a_question_refused_for_good_does_not_stop_the_others(tmp_path: Path, serve: Any) -> None:
    """A content filter that dislikes one prompt must not block a whole data set for ever."""
    bad = [seed_of(ASKS[3])]
    serve({"http://a": Writer(fault=lambda asked, _: Refused("fake: 400") if seed(asked) in bad else None)})
    phrased = LlmTeacher(settings(), TASK, 0, tmp_path).phrase(ASKS)
    assert [(n, one.text, one.fault) for n, one in enumerate(phrased) if one.fault] == [(3, "", "fake: 400")]


def seed_of(ask: Ask) -> int:
    return Prompter(TASK, 0).brief(ask).seed


def test_a_question_without_an_answer_is_no_rejected_row(tmp_path: Path, serve: Any) -> None:
    """Rows lost to a bad quarter of an hour would make the data depend on the weather."""
    bad = [seed_of(ASKS[3])]
    flaky = Writer(fault=lambda asked, _: Unavailable("fake: 500") if seed(asked) in bad else None)
    serve({"http://a": flaky})
    with pytest.raises(AskingFailed) as error:
        LlmTeacher(settings(), TASK, 0, tmp_path).phrase(ASKS)
    assert str(error.value) == (
        f"{tmp_path}: expected a reply to each of 40 questions; 1 got none in several attempts (one of them: fake: "
        "500); the others are kept: run the same command again for the rest"
    )
    bad.clear()
    assert len(LlmTeacher(settings(), TASK, 0, tmp_path).phrase(ASKS)) == 40
    assert len(flaky.keys) == 40 + 2


def test_shards_ask_disjoint_parts(tmp_path: Path, serve: Any) -> None:
    """A shard that asks another's questions pays for them twice."""
    writer = Writer()
    serve({"http://a": writer})
    made = LlmTeacher(settings(), TASK, 0, tmp_path)
    plans = [made.plan(ASKS, Shard(number, 3)).estimate.questions for number in (1, 2, 3)]
    asked = [made.ask_shard(ASKS, Shard(number, 3)) for number in (1, 2, 3)]
    assert [one.elsewhere for one in asked] == [40 - plans[0], 40 - plans[0] - plans[1], 0]
    assert [one.replies for one in asked] == [plans[0], plans[0] + plans[1], 40]
    assert len(set(writer.keys)) == len(writer.keys) == 40
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == [f"answers-{n}of3.jsonl" for n in (1, 2, 3)]


def test_weights_share_the_work(tmp_path: Path, serve: Any) -> None:
    """Weights that are read and not used."""
    big, small = Writer(), Writer()
    big.latency_s = small.latency_s = 0.01
    serve({"http://a": big, "http://b": small})
    weighted = settings(("http://a", "http://b"), limits={"concurrency": 8})
    weighted = weighted.model_copy(
        update={"endpoints": (weighted.endpoints[0].model_copy(update={"weight": 3.0}), weighted.endpoints[1])}
    )
    LlmTeacher(weighted, TASK, 0, tmp_path).phrase(ASKS)
    assert big.most_in_flight == 6
    assert small.most_in_flight == 2


@pytest.mark.parametrize(
    ("limits", "minutes", "pace"),
    [
        ({"concurrency": 4}, 40 * 3 / 4 / 60, "4 questions at a time, 3 s each (assumed)"),
        ({"requests_per_minute": 5.0}, 40 / 10, "10 requests a minute"),
        ({"requests_per_minute": 5.0, "tokens_per_minute": 1.0}, None, "2 tokens a minute"),
    ],
)
def test_the_time_is_that_of_the_tightest_limit(
    tmp_path: Path, limits: dict[str, float], minutes: float | None, pace: str
) -> None:
    """40 questions to two servers, by hand; the assumed pace must not hide a rate limit."""
    plan = LlmTeacher(settings(("http://a", "http://b"), limits=limits), TASK, 0, tmp_path).plan(ASKS)
    expected = plan.estimate.expected.tokens / 2 if minutes is None else minutes
    assert (plan.seconds, plan.pace) == (pytest.approx(60 * expected), pace)


def test_answers_are_expected_to_be_as_long_as_the_examples(tmp_path: Path) -> None:
    """`max_tokens` as the usual length would make a plan five times too dear."""
    plan = LlmTeacher(settings(), TASK, 0, tmp_path).plan(ASKS)
    assert 20 * 40 < plan.estimate.expected.completion_tokens < 120 * 40
    assert plan.estimate.worst.completion_tokens == 400 * 40


def test_the_progress_bar_tells_unusable_answers(tmp_path: Path) -> None:
    """A model that never answers in JSON must be seen after a minute, not after the bill."""
    shown: list[tuple[int, str]] = []
    with RawLog(tmp_path) as log:
        log.write([Reply("a", "no", "stop", 1, 1)], "fake")
        show = fetch._shown_by(
            lambda count=1, note="": shown.append((count, note)), log, 1, lambda text: read_request(text) is not None
        )
        meter = Meter(
            total=4, done=1, failed=0, retries=0, throttles=0, requests=1, tokens=2, cost=0.5, answers_per_s=2.0,
            left_s=None,
        )  # fmt: skip
        show(meter)
        log.write([Reply("b", "no", "stop", 1, 1), Reply("c", '{"request": "x"}', "stop", 1, 1)], "fake")
        show(meter._replace(done=3, failed=1))
    assert shown == [
        (0, "2.0 answers/s, 2 tokens, cost 0.5"),
        (3, "2.0 answers/s, 1 failed, 2 tokens, cost 0.5, 1 unusable"),
    ]


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/", "-1/2", "1/2/3"])
def test_a_shard_that_does_not_exist(text: str) -> None:
    """Shard 0 of 2 would ask nothing, and nobody would miss it until the merge."""
    with pytest.raises(DataError) as error:
        parse_shard(text)
    assert str(error.value) == f"--shard: expected i/n, from 1/n to n/n, such as 1/4; got {text}"
