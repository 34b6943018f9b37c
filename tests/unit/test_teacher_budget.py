"""The budget of a teacher: never passed, used up to the last question, and known before the start."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppe_lora.corpus.teachers.llm.budget import (
    Budget,
    BudgetError,
    Ledger,
    Prices,
    Usage,
    estimate_cost,
    usage_of,
    worst_case,
)
from ppe_lora.corpus.teachers.llm.exchange import Question, Reply, Unavailable
from ppe_lora.corpus.teachers.llm.raw_log import RawLog, Shard, read_replies
from tests.teacher_fakes import FakeEndpoint, question, questions, reply_to
from tests.unit.test_teacher_client import ask

PRICES = Prices(prompt=2.0, completion=6.0)
REPLY = PRICES.cost(Usage(1, 20, 10))
"""20 prompt and 10 completion tokens: 0.0001."""
WORST = worst_case(question(100))


def stopped(folder: Path, endpoint: FakeEndpoint, budget: Budget, **options: Any) -> str:
    with pytest.raises(BudgetError) as error:
        ask(folder, questions(1000), endpoint, budget=budget, prices=PRICES, **options)
    return str(error.value)


def test_a_budget_in_requests_counts_every_attempt(tmp_path: Path) -> None:
    """Retries are requests too: a plan of 500 a day does not care why one was sent."""
    endpoint = FakeEndpoint(fault=lambda one, before: Unavailable("500") if before == 0 else None)
    message = stopped(tmp_path, endpoint, Budget(requests=100))
    assert len(endpoint.sent_at) == 100
    assert message.startswith("budget.requests: the limit of 100 has no room for another question; spent 100 requests,")
    assert message.endswith(
        "attempts without an answer at their worst case); every reply is kept: raise budget.requests and run the same "
        "command again"
    )


@pytest.mark.parametrize(
    ("budget", "name", "answers"),
    [
        (Budget(tokens=10_000), "tokens", (10_000 - WORST.tokens) // 30 + 1),
        (Budget(money=0.05), "money", int((0.05 - PRICES.cost(WORST)) / REPLY) + 1),
    ],
)
def test_a_budget_is_used_to_the_last_question_and_not_passed(
    tmp_path: Path, budget: Budget, name: str, answers: int
) -> None:
    """With 64 in flight at their worst case it seems spent long before: what they turn out to cost must come back."""
    endpoint = FakeEndpoint()
    message = stopped(tmp_path, endpoint, budget)
    assert f"budget.{name}: the limit of" in message
    assert abs(len(endpoint.sent_at) - answers) <= 1
    replies = read_replies(tmp_path)
    assert set(replies) == set(endpoint.asked)
    spent = sum((usage_of(one) for one in replies.values()), Usage())
    assert spent.tokens <= (budget.tokens or 1e9)
    assert PRICES.cost(spent) <= (budget.money or 1e9)
    assert f"spent {spent.requests:,} requests, {spent.tokens:,} tokens, cost {PRICES.cost(spent):,.4g}" in message


def test_a_budget_holds_over_all_runs_and_goes_on_when_raised(tmp_path: Path) -> None:
    """Twenty kills and resumes must not spend twenty budgets."""
    endpoint = FakeEndpoint()
    stopped(tmp_path, endpoint, Budget(requests=100))
    stopped(tmp_path, endpoint, Budget(requests=100))
    assert len(endpoint.sent_at) == 100
    stopped(tmp_path, endpoint, Budget(requests=150))
    assert len(endpoint.sent_at) == 150
    assert set(endpoint.asked.values()) == {1}


def test_an_attempt_that_may_be_billed_counts_at_its_worst(tmp_path: Path) -> None:
    """A time-out was answered on the other side as a rule, and billed; a refused connection was not."""
    budget = Budget(tokens=19 * 30 + WORST.tokens)
    for billed in (False, True):
        endpoint = FakeEndpoint(
            fault=lambda one, before, billed=billed: (
                Unavailable("no", may_be_billed=billed) if before == 0 and int(one.key, 16) % 2 else None
            )
        )
        with pytest.raises(BudgetError) as error:
            ask(tmp_path / str(billed), [question(number) for number in range(100, 400)], endpoint, budget=budget)
        worst = sum(endpoint.asked.values()) - sum(endpoint.answered.values())
        assert ("attempts without an answer at their worst case" in str(error.value)) is billed
        if billed:
            assert worst * WORST.tokens + 30 * len(read_replies(tmp_path / "True")) <= (budget.tokens or 0)
            assert (worst + 1) * WORST.tokens > (budget.tokens or 0) - 30 * len(read_replies(tmp_path / "True"))
        else:
            assert len(read_replies(tmp_path / "False")) == 20


def test_shards_share_the_budget(tmp_path: Path) -> None:
    """Four processes with the whole budget each would spend it four times."""
    endpoint = FakeEndpoint()
    for number in range(1, 5):
        stopped(tmp_path, endpoint, Budget(requests=40), shard=Shard(number, 4))
    assert len(endpoint.sent_at) == 40


@pytest.mark.parametrize(
    ("budget", "prices", "message"),
    [
        (
            Budget(requests=0),
            PRICES,
            "budget.requests: expected more than 0; got 0; leave it out for no limit, or do a dry run to see the cost "
            "without asking",
        ),
        (
            Budget(money=-0.5),
            PRICES,
            "budget.money: expected more than 0; got -0.5; leave it out for no limit, or do a dry run to see the cost "
            "without asking",
        ),
        (
            Budget(money=5.0),
            Prices(),
            "budget.money: expected prices beside a limit of 5; got none; set the prices per million prompt and "
            "completion tokens, or limit tokens instead",
        ),
    ],
)
def test_a_budget_without_sense_is_an_error(budget: Budget, prices: Prices, message: str) -> None:
    """A budget of zero taken as `no limit` is the most expensive typing error there is."""
    with pytest.raises(BudgetError) as error:
        Ledger(budget, prices, Usage())
    assert str(error.value) == message


def test_a_question_without_a_bound_is_refused_where_tokens_are_limited(tmp_path: Path) -> None:
    """Without `max_tokens` a model that rambles decides the bill."""
    unbounded = Question("m", ({"role": "user", "content": "x"},), {"temperature": 1.0})
    endpoint = FakeEndpoint()
    assert len(ask(tmp_path, [unbounded], endpoint).replies) == 1
    with pytest.raises(BudgetError, match=f"^question {unbounded.key}: expected max_tokens, since tokens or money are"):
        ask(tmp_path / "b", [unbounded], endpoint, budget=Budget(tokens=1000))
    assert len(endpoint.sent_at) == 1


@given(st.text(), st.integers(min_value=1, max_value=500))
def test_the_worst_case_is_no_less_than_any_tokenizer_of_bytes_says(text: str, most: int) -> None:
    """An estimate by characters is too small for emoji and rare kanji, which take several tokens each."""
    asked = Question(
        "m", ({"role": "system", "content": text}, {"role": "user", "content": text}), {"max_tokens": most}
    )
    assert worst_case(asked).prompt_tokens >= 2 * len(text.encode(errors="replace"))
    assert worst_case(asked).completion_tokens == most


def test_an_estimate_before_the_start(tmp_path: Path) -> None:
    """Wrong by a factor, a dry run is worse than none; 186 English characters are 42 tokens of Tekken."""
    english = (
        "Write the request as a person would say it, without numbers or the names of the scores. I'd like something "
        "calm and warm for a rainy evening, not too bright, with a hint of old memories."
    )
    japanese = (
        "雨上がりの夕方に合う、やわらかくて落ち着いた曲にしてほしい。数字や項目の名前は使わずに、その場の気分が伝わるように書いて"
        "ください。夜の通勤電車で聴きたい、少し懐かしい感じの曲がいいです。"
    )
    asked = [Question("m", ({"role": "user", "content": text},), {"max_tokens": 200}) for text in (english, japanese)]
    estimate = estimate_cost([*asked, *asked], PRICES, {})
    assert (estimate.questions, estimate.answered) == (2, 0)
    assert estimate.expected.prompt_tokens == pytest.approx(42 + 74 + 16, rel=0.1)
    assert estimate.expected.completion_tokens == estimate.worst.completion_tokens == 400
    assert estimate.worst_cost == pytest.approx((estimate.worst.prompt_tokens * 2.0 + 400 * 6.0) / 1e6)
    known = {asked[0].key: Reply(asked[0].key, "x", "stop", 50, 40)}
    estimate = estimate_cost(asked, PRICES, known)
    assert (estimate.questions, estimate.answered, estimate.expected.requests) == (2, 1, 1)
    assert estimate.expected.completion_tokens == 40
    assert estimate.expected_cost == PRICES.cost(estimate.expected) < estimate.worst_cost


def test_the_estimate_agrees_with_the_bill(tmp_path: Path) -> None:
    """What the dry run promised and what the ledger says afterwards must be the same questions."""
    asked = questions(40)
    with RawLog(tmp_path) as log:
        before = estimate_cost(asked, PRICES, log.replies)
    answers = ask(tmp_path, asked, FakeEndpoint(), prices=PRICES)
    assert answers.cost == pytest.approx(40 * REPLY)
    assert answers.spent.requests == before.expected.requests
    assert answers.cost <= before.worst_cost
    assert estimate_cost(asked, PRICES, answers.replies).expected_cost == 0.0
    assert answers.replies[asked[0].key] == reply_to(asked[0])
