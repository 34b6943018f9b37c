"""The teacher client: every question answered once, whatever the endpoints do."""

import asyncio
import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ppe_lora.corpus.teachers.llm.asking import Settings
from ppe_lora.corpus.teachers.llm.client import Client
from ppe_lora.corpus.teachers.llm.exchange import Question, RateLimit, Refused, Reply, Throttled, Unavailable
from ppe_lora.corpus.teachers.llm.meter import Meter
from ppe_lora.corpus.teachers.llm.raw_log import RawLog, Shard, read_replies
from ppe_lora.corpus.teachers.llm.servers import AskingFailed, Server
from ppe_lora.errors import Interrupted, RecipeError, RunError
from tests.teacher_fakes import (
    FakeEndpoint,
    ask,
    question,
    questions,
    random_faults,
    reply_to,
)


def test_ten_thousand_questions_with_faults_give_ten_thousand_answers(tmp_path: Path) -> None:
    """One lost answer in a thousand is a hole in the data nobody sees; one asked twice is paid for twice."""
    endpoint = FakeEndpoint(fault=random_faults(0.1))
    asked = questions(10_000)
    answers = ask(tmp_path, asked, endpoint)
    assert answers.replies == {one.key: reply_to(one) for one in asked}
    assert answers.failed == {}
    assert read_replies(tmp_path) == answers.replies
    assert set(endpoint.answered.values()) == {1}
    assert endpoint.most_in_flight <= 64
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 10_000


def test_nothing_in_the_log_is_asked_again_and_equal_questions_once(tmp_path: Path) -> None:
    """Resuming must cost nothing, and needs no server once all is there."""
    endpoint = FakeEndpoint()
    assert len(ask(tmp_path, questions(30) * 2, endpoint).replies) == 30
    assert ask(tmp_path, questions(50), endpoint).spent.requests == 50
    assert set(endpoint.asked.values()) == {1}
    dead = FakeEndpoint()
    dead.check_error = Unavailable("nobody listens")
    assert len(ask(tmp_path, questions(50), dead).replies) == 50


def test_a_429_does_not_use_up_attempts(tmp_path: Path) -> None:
    """A busy minute must not turn into failed questions."""

    def fault(_: Question, before: int) -> Exception | None:
        return Throttled("slow down", retry_after_s=0.5) if before < 4 else None

    answers = ask(tmp_path, questions(3), FakeEndpoint(fault=fault), settings=Settings(attempts=1))
    assert len(answers.replies) == 3


def test_a_quota_for_the_month_is_an_error_now(tmp_path: Path) -> None:
    """Waiting a day for `Retry-After: 86400` looks like a hang."""
    endpoint = FakeEndpoint(fault=lambda *_: Throttled("quota used up", retry_after_s=86400.0))
    with pytest.raises(AskingFailed) as error:
        ask(tmp_path, questions(3), endpoint)
    assert str(error.value) == (
        "fake: expected an answer within 300 s; 86400 s pass without (quota used up); every reply so far is kept: mend "
        "the endpoint, then run the same command again"
    )


def test_a_refused_question_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    """One prompt that a content filter refuses must not cost the other 199,999."""

    def fault(asked: Question, before: int) -> Exception | None:
        number = int(asked.messages[0]["content"].split()[-1])
        if number % 10 == 3:
            return Refused(f"fake: 400 for {number}")
        return Unavailable("fake: 500") if number == 50 else None

    endpoint = FakeEndpoint(fault=fault)
    answers = ask(tmp_path, questions(100), endpoint)
    assert {key: str(why) for key, why in answers.failed.items()} == {
        **{question(number).key: f"fake: 400 for {number}" for number in range(3, 100, 10)},
        question(50).key: "fake: 500",
    }
    assert len(answers.replies) == 89
    assert endpoint.asked[question(3).key] == 1
    assert endpoint.asked[question(50).key] == Settings().attempts


def test_a_hopeless_cause_stops_early(tmp_path: Path) -> None:
    """A wrong key refused 200,000 times is an hour of waiting for an empty data set."""
    endpoint = FakeEndpoint(fault=lambda asked, _: Refused(f"fake: 401 no such key (request {asked.key})"))
    with pytest.raises(AskingFailed, match=r"^the first 20 questions all failed, so asking stopped: fake: 401"):
        ask(tmp_path, questions(1000), endpoint, settings=Settings(concurrency=4))
    assert len(endpoint.sent_at) <= 24


def test_the_first_failures_of_different_reasons_do_not_stop(tmp_path: Path) -> None:
    """Thirty bad prompts at the head of the list say nothing about the rest."""

    def fault(asked: Question, before: int) -> Exception | None:
        number = int(asked.messages[0]["content"].split()[-1])
        return Refused("fake: too long" if number % 2 else "fake: content filter") if number < 30 else None

    assert len(ask(tmp_path, questions(100), FakeEndpoint(fault=fault)).replies) == 70


def test_a_server_that_dies_hands_its_work_to_the_others_and_comes_back(tmp_path: Path) -> None:
    """A dead vLLM server fails fast, so the least busy server is the dead one: it would swallow every question."""

    def fault(*_: Any) -> Exception | None:
        down = 1010.0 < asyncio.get_running_loop().time() < 1020.0
        return Unavailable("b: connection refused", may_be_billed=False) if down else None

    first, second = FakeEndpoint("a", 0.5), FakeEndpoint("b", 0.5, fault)
    answers = ask(tmp_path, questions(6000), first, second)
    assert len(answers.replies) == 6000
    assert answers.failed == {}
    assert sum(1 for at in second.sent_at if 1011.5 < at < 1019.5) <= 4
    assert sum(1 for at in second.sent_at if at > 1040.0) > 100


def test_a_second_attempt_goes_to_another_server(tmp_path: Path) -> None:
    """What one server cannot do (a prompt longer than its context, say) must not use up all attempts there."""
    limited = FakeEndpoint("limited", fault=lambda one, _: Unavailable("no") if one.key == question(5).key else None)
    for weight in (1.0, 9.0):
        servers = Server(limited, weight), Server(FakeEndpoint("able"))
        answers = ask(tmp_path / str(weight), questions(40), *servers, settings=Settings(attempts=2, concurrency=4))
        assert answers.failed == {}
    assert limited.asked[question(5).key] >= 1


def test_a_server_that_was_dead_at_the_start_is_tried_now_and_then(tmp_path: Path) -> None:
    """Each try costs a question an attempt: eight tries before the first rest are too many."""
    dead = FakeEndpoint("dead", 0.01, fault=lambda *_: Unavailable("dead: connection refused"))
    dead.check_error = Unavailable("dead: connection refused")
    alive = FakeEndpoint("alive", 1.0)
    ask(tmp_path, questions(1500), dead, alive)
    assert 1 <= len(dead.sent_at) <= 4


def test_weights_share_the_work(tmp_path: Path) -> None:
    """A server with four GPUs should do three times the work of one with a quarter of its weight, or more."""
    small, large = FakeEndpoint("small"), FakeEndpoint("large")
    ask(tmp_path, questions(2000), Server(small, 1.0), Server(large, 4.0))
    assert 3.0 <= len(large.sent_at) / len(small.sent_at) <= 5.0


def test_an_outage_is_waited_for_and_one_without_end_is_an_error(tmp_path: Path) -> None:
    """A server that restarts in a minute is no reason to lose the run; one that stays away is no reason to hang."""

    def down_until(end: float) -> FakeEndpoint:
        def fault(*_: Any) -> Exception | None:
            now = asyncio.get_running_loop().time()
            return Unavailable("a: connection refused") if 1002.0 < now < end else None

        return FakeEndpoint("a", fault=fault)

    answers = ask(tmp_path / "short", questions(3000), down_until(1060.0))
    assert len(answers.replies) == 3000
    with pytest.raises(AskingFailed, match=r"^a: expected an answer within 300 s; 30\d s pass without \(none gives"):
        ask(tmp_path / "long", questions(3000), down_until(1e9))
    assert len(read_replies(tmp_path / "long")) > 500


def test_endpoints_are_checked_before_the_first_question(tmp_path: Path) -> None:
    """Nobody listening is an error with its remedy at once, unless another server of the cluster lives."""
    dead, alive = FakeEndpoint("dead"), FakeEndpoint("alive")
    dead.check_error = Unavailable("dead: nobody listens; start it with `vllm serve m`")
    with pytest.raises(Unavailable, match="vllm serve"):
        ask(tmp_path, questions(5), dead)
    assert len(ask(tmp_path, questions(5), dead, alive).replies) == 5
    alive.check_error = Refused("alive: no model m")
    with pytest.raises(Refused, match="no model m"):
        ask(tmp_path, questions(9), FakeEndpoint("other"), alive)
    assert dead.sent_at == []


def test_a_hanging_endpoint_is_given_up_after_the_time_out(tmp_path: Path) -> None:
    """Without an end to each attempt one silent connection holds a worker for ever."""
    hanging = FakeEndpoint("hanging", latency_s=1e6)
    answers = ask(tmp_path, questions(2), hanging, settings=Settings(attempts=2, timeout_s=30.0))
    assert {str(why) for why in answers.failed.values()} == {"hanging: expected an answer within 30 s; got none"}
    assert hanging.in_flight == 0


def test_shards_ask_disjoint_questions_and_merge(tmp_path: Path) -> None:
    """A question in two shards is paid for twice, one in none is missing."""
    asked, endpoint = questions(200), FakeEndpoint()
    for number in range(1, 5):
        answers = ask(tmp_path, asked, endpoint, shard=Shard(number, 4))
        assert answers.spent.requests == sum(Shard(number, 4).takes(one.key) for one in asked)
    assert set(endpoint.asked.values()) == {1}
    assert answers.elsewhere == 0
    assert ask(tmp_path, asked, endpoint).replies == {one.key: reply_to(one) for one in asked}
    assert len(endpoint.sent_at) == 200


def test_the_meter_counts_everything(tmp_path: Path) -> None:
    """A bar that stands still or forgets the rejects makes people stop a healthy run."""
    looks: list[Meter] = []
    fault = random_faults(0.1)
    bad = question(7).key
    endpoint = FakeEndpoint(fault=lambda one, before: Refused("no") if one.key == bad else fault(one, before))
    ask(tmp_path, questions(100), FakeEndpoint())
    ask(tmp_path / "other", questions(1000), endpoint, on_meter=looks.append)
    assert [one.done for one in looks] == sorted(one.done for one in looks)
    assert looks[0].done == 0
    last = looks[-1]
    assert (last.total, last.done, last.failed, last.left_s) == (1000, 999, 1, 0.0)
    assert last.retries == len(endpoint.sent_at) - 1000
    assert any(100 < one.answers_per_s < 900 and one.left_s for one in looks)
    assert str(last).startswith(f"{last.answers_per_s:.1f} answers/s, 1 failed, {last.retries} tried again, ")


def test_bad_servers_are_named(tmp_path: Path) -> None:
    """A weight of zero would be a server that is configured and never asked."""
    with pytest.raises(RecipeError, match="expected at least one"):
        ask(tmp_path, questions(1))
    with pytest.raises(RecipeError, match=r"^fake: expected a weight above 0; got 0$"):
        ask(tmp_path, questions(1), Server(FakeEndpoint(), 0.0))
    with pytest.raises(RecipeError, match=r"^requests_per_minute: expected more than 0; got 0; leave it out"):
        ask(tmp_path, questions(1), Server(FakeEndpoint(), limit=RateLimit(requests_per_minute=0)))


class Signalling(FakeEndpoint):
    """Sends SIGTERM to this process some seconds after its 61st request."""

    def __init__(self, latency_s: float, signals_after_s: tuple[float, ...]) -> None:
        super().__init__(latency_s=latency_s)
        self._signals_after_s = signals_after_s

    async def ask(self, question: Question) -> Reply:
        if len(self.sent_at) == 60:
            for after_s in self._signals_after_s:
                asyncio.get_running_loop().call_later(after_s, os.kill, os.getpid(), signal.SIGTERM)
        return await super().ask(question)


def in_real_time(folder: Path, endpoint: FakeEndpoint, grace_s: float) -> str:
    """A run in this process that gets SIGTERM; the message of `Interrupted`."""
    before = signal.getsignal(signal.SIGTERM)
    with (
        RawLog(folder) as log,
        Client([Server(endpoint)], log, settings=Settings(grace_s=grace_s)) as client,
        pytest.raises(Interrupted) as error,
    ):
        client.ask_all(questions(2000))
    assert signal.getsignal(signal.SIGTERM) is before
    assert endpoint.closed
    return str(error.value)


def test_a_signal_keeps_what_is_in_flight_and_says_how_to_resume(tmp_path: Path) -> None:
    """Requests in flight are paid for: dropping them pays for nothing."""
    endpoint = Signalling(0.3, (0.4,))
    message = in_real_time(tmp_path, endpoint, 5.0)
    kept = read_replies(tmp_path)
    assert set(kept) == set(endpoint.asked)
    assert message == (
        f"{tmp_path}/answers.jsonl: stopped by SIGTERM with {len(kept)} of 2,000 replies, spent {len(kept)} requests, "
        f"{30 * len(kept):,} tokens; every reply is kept, run the same command again for the rest"
    )


def test_the_grace_is_short_and_a_second_signal_ends_it(tmp_path: Path) -> None:
    """A hanging server must not keep a job from ending before the machine is taken away."""
    assert "with 0 of 2,000" in in_real_time(tmp_path / "a", Signalling(60.0, (0.1,)), 0.2)
    assert "with 0 of 2,000" in in_real_time(tmp_path / "b", Signalling(60.0, (0.1, 0.3)), 60.0)


def test_a_full_disk_stops_the_run_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies that cannot be kept must not be paid for."""
    endpoint = FakeEndpoint()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunError) as error:
        ask(tmp_path, questions(1000), endpoint)
    assert str(error.value) == (
        f"{tmp_path}/answers.jsonl: expected to append 64 replies; got No space left on device; make room and run the "
        "same command again"
    )
    assert len(endpoint.sent_at) == 64
