"""What is taken from a model's answer, and how soon and in which words asking stops when nothing can be.

600 of 600 answers were paid for and rejected, and the advice was to raise the number of rows: the model answered as
reasoning, or its thoughts held a brace.
"""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from ppe_lora.corpus.asks import make_asks
from ppe_lora.corpus.build import _Built, _check_splits
from ppe_lora.corpus.filters import Rejection
from ppe_lora.corpus.rows import Row
from ppe_lora.corpus.teachers import LlmTeacher
from ppe_lora.corpus.teachers.llm import fetch, openai_compatible
from ppe_lora.corpus.teachers.llm.answer import ENOUGH, cause_of, last_object, without_thoughts
from ppe_lora.corpus.teachers.llm.asking import Settings
from ppe_lora.corpus.teachers.llm.chat_format import read_reply
from ppe_lora.corpus.teachers.llm.exchange import Question, Reply, Unavailable
from ppe_lora.corpus.teachers.llm.http_failures import retry_after_s
from ppe_lora.corpus.teachers.llm.prompt import read_request
from ppe_lora.corpus.teachers.llm.servers import AskingFailed
from ppe_lora.errors import DataError
from ppe_lora.network import read_key
from ppe_lora.recipe.schema import Data, GenerateSource, Recipe, Student
from ppe_lora.recipe.teachers import OpenAICompatibleTeacher
from ppe_lora.tasks.scores import ScoresTask
from tests.teacher_fakes import FakeEndpoint

ROWS = 600
ANSWER = '{"request": "rain"}'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"<think>They want {{calm}}.</think>{ANSWER}", ANSWER),
        (f'<think>{{"request": "a draft"}}</think>\n```json\n{ANSWER}\n```', ANSWER),
        (f'The template wrote the start. {{"request": "a draft"}}</think>{ANSWER}', ANSWER),
        (f"[THINK]{{hm}}[/THINK]{ANSWER}", ANSWER),
        (f"<|channel|>analysis<|message|>{{hm}}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}", ANSWER),
        (f"<seed:think>{{</seed:think>{ANSWER}", ANSWER),
        (f"{ANSWER}\n<think>Was that good? {{", ANSWER),
        (f"{ANSWER}<think>{{}}</think>", ANSWER),
        (f'First {{"request": "a draft"}}, then better: {ANSWER} That is all }}.', ANSWER),
        (f"{{ {{ {ANSWER}", ANSWER),
        ('{"request": "a {soft} song </b>"}', '{"request": "a {soft} song </b>"}'),
        ('<think>{"request": "a draft"} and then', ""),
        ('{"request": "cut', ""),
        ("{" * 50_000, ""),
        ('{"a":' * 20_000, ""),
        ("", ""),
    ],
)
def test_the_last_whole_object_outside_of_thoughts(text: str, found: str) -> None:
    assert last_object(text) == found
    assert read_request(text) == ("a {soft} song </b>" if "soft" in found else "rain" if found else None)


def test_thoughts_are_left_out() -> None:
    assert without_thoughts("a<think>b</think>c<think>d</think>e") == "ace"
    assert without_thoughts("a</think>b</think>c") == "c"
    assert without_thoughts("a<think>b") == "a"


def message(**fields: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", **fields}, "finish_reason": "stop"}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_an_answer_that_the_server_takes_for_reasoning_is_read(name: str) -> None:
    """vLLM with another model's reasoning parser: the content is null, the whole answer is `reasoning_content`."""
    thoughts = f"They want calm. {ANSWER}"
    reply = read_reply("s", "k", {"choices": [message(content=None, **{name: thoughts})]})
    assert (reply.text, read_request(reply.text)) == (thoughts, "rain")
    answered = read_reply("s", "k", {"choices": [message(content=ANSWER, **{name: "{hm"})]})
    assert answered.text == ANSWER


def test_drafts_in_reasoning_that_was_cut_off_are_no_answers() -> None:
    cut = message(content="", reasoning_content=f"Perhaps {ANSWER}, or") | {"finish_reason": "length"}
    reply = read_reply("s", "k", {"choices": [cut]})
    assert (reply.text, read_request(reply.text)) == (f"<think>Perhaps {ANSWER}, or", None)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "{hm"}]}, {"type": "text", "text": ANSWER}],
            ANSWER,
        ),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": f"hm {ANSWER}"}]}], f"hm {ANSWER}"),
        ([{"type": "output_text", "text": ANSWER}], ANSWER),
        ([ANSWER], ANSWER),
        ({"request": "rain"}, ANSWER),
        ([], ""),
    ],
)
def test_content_in_pieces(content: Any, text: str) -> None:
    """Mistral's reasoning models give lists of thoughts and texts."""
    assert read_reply("s", "k", {"choices": [message(content=content)]}).text == text


def test_a_key_that_the_server_echoes_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its variable is called. Nothing else of an answer is touched: it becomes data."""
    monkeypatch.setenv("OUR_ACCESS", "abcdefgh12345678")
    read_key("OUR_ACCESS", "s")
    said = "your key is abcdefgh12345678; a song, api_key: 0123456789"
    reply = read_reply("s", "k", {"choices": [message(content=said)]})
    assert reply.text == "your key is ***; a song, api_key: 0123456789"
    with pytest.raises(Unavailable, match=r"^s: expected a chat completion; got .*: your key is \*\*\*$"):
        read_reply("s", "k", "your key is abcdefgh12345678")


def test_milliseconds_to_wait() -> None:
    """Read as nothing, they cost a pause of seconds where 80 ms were asked for."""
    assert retry_after_s({"Retry-After-Ms": "80", "Retry-After": "1"}) == pytest.approx(0.08)
    assert retry_after_s({"x-ms-retry-after-ms": "1500"}) == pytest.approx(1.5)
    assert retry_after_s({"retry-after-ms": "soon", "retry-after": "2"}) == pytest.approx(2.0)


# ------------------------------------------------------------------------------------------------------ asking stops

CUT = ("cut off at max_tokens", "raise data.source.teacher.max_tokens (now 400): a model that reasons before it "
       "answers needs some thousands")  # fmt: skip
NO_THOUGHTS = ("thoughts without an answer", "switch the model's reasoning off, or name one that ends it")
REFUSED = ("refused", "name another model in data.source.teacher")
EMPTY = ("empty", "look at the server's log: its chat template or its reasoning parser is not this model's, or it "
         "filters answers")  # fmt: skip
SCHEMA = ("use a server that holds answers to a JSON schema (`response_format`), or name a more capable model in "
          "data.source.teacher")  # fmt: skip
GARBAGE = [
    ("<think>hm, {", "length", CUT),
    (ANSWER[:-2], "length", CUT),
    ("", "length", CUT),
    ("<think>hm", "stop", NO_THOUGHTS),
    ("I'm sorry, I can't help with that.", "stop", REFUSED),
    ("", "content_filter", REFUSED),
    (" \n", "stop", EMPTY),
    ("rain in the evening", "stop", ("without a JSON object", SCHEMA)),
    ('{"text": "rain"}', "stop", ("a JSON object of other keys or values", SCHEMA)),
    ('{"request": ["rain"]}', "stop", ("a JSON object of other keys or values", SCHEMA)),
]


class Speaker(FakeEndpoint):
    """Says the same to everything, but for every `good`th question."""

    def __init__(self, text: str, finish_reason: str, good: int = 0) -> None:
        super().__init__(latency_s=0.0)
        self.text, self.finish_reason, self.good, self.count = text, finish_reason, good, 0

    async def ask(self, question: Question) -> Reply:
        self.count += 1
        good = bool(self.good) and self.count % self.good == 0
        reply = await super().ask(question)
        if good:
            return reply._replace(text=ANSWER)
        return reply._replace(text=self.text, finish_reason=self.finish_reason)


def teacher(monkeypatch: pytest.MonkeyPatch, folder: Path, speaker: Speaker) -> LlmTeacher:
    monkeypatch.setattr(openai_compatible, "OpenAICompatibleEndpoint", lambda url, **_: speaker)
    monkeypatch.setattr(fetch, "Settings", functools.partial(Settings, attempts=2, backoff_s=0.001))
    settings = {"kind": "openai_compatible", "model": "m", "endpoints": [{"url": "http://a"}]}
    return LlmTeacher(OpenAICompatibleTeacher.model_validate_json(json.dumps(settings)), ScoresTask(), 0, folder)


def asks(rows: int) -> Any:
    return [ask for ask, _ in make_asks(ScoresTask(), GenerateSource(rows=rows), 0)]


@pytest.mark.parametrize(("text", "finish_reason", "told"), GARBAGE)
def test_a_teacher_without_a_usable_answer_is_stopped_and_the_cause_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, finish_reason: str, told: tuple[str, str]
) -> None:
    speaker = Speaker(text, finish_reason)
    with pytest.raises(AskingFailed) as error:
        teacher(monkeypatch, tmp_path, speaker).phrase(asks(ROWS))
    assert str(error.value) == (
        f"data.source.teacher: expected answers that hold what was asked for; got {ENOUGH} of {ENOUGH} that do not "
        f"({ENOUGH} {told[0]}), so asking stopped; {told[1]}; one of them: {' '.join(text.split())!r}; all are kept in "
        f"{tmp_path / 'answers.jsonl'}"
    )
    assert speaker.count <= ENOUGH + 32  # those under way


def test_a_small_data_set_without_a_usable_answer_names_the_cause_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fewer rows than it takes to stop: the advice at the end was to raise the number of rows."""
    for _ in range(2):  # the second time all replies are there
        with pytest.raises(AskingFailed, match=r"got 9 of 9 that do not \(9 empty\), so no data can be made of them"):
            teacher(monkeypatch, tmp_path, Speaker("", "stop")).phrase(asks(9))


def test_a_teacher_with_one_usable_answer_in_five_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Filters throw much away; that is no reason to stop."""
    speaker = Speaker("no", "stop", good=5)
    phrased = teacher(monkeypatch, tmp_path, speaker).phrase(asks(100))
    assert (speaker.count, sum(one.fault is None for one in phrased)) == (100, 20)


def test_the_most_frequent_cause_is_the_one_that_is_mended() -> None:
    replies = [Reply("k", text, reason, 1, 1) for text, reason, _ in GARBAGE]
    assert [cause_of(reply).words for reply in replies] == [told[0] for _, _, told in GARBAGE]


def test_rows_that_most_answers_did_not_make_are_not_asked_for_again() -> None:
    """The advice was to raise data.source.rows: more of the same answers, to be paid for."""
    row = Row(id="0" * 16, request="rain", target=dict.fromkeys(ScoresTask().keys, 50.0), language="en", teacher="m")
    built = _Built({"train": [row], "valid": [], "test": []}, [Rejection(row, "teacher answer", "empty: ")] * 3, 4, {})
    recipe = Recipe(name="r", data=Data(name="d"), student=Student(model="none"))
    with pytest.raises(DataError) as error:
        _check_splits(recipe, built)
    assert str(error.value) == (
        "data d: expected rows in every split; got none for valid, test from 4 requests, 3 rejected (teacher answer "
        "3); most of the teacher's answers are of no use, such as: empty: "
    )
