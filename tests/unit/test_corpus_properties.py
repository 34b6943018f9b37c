"""What holds for any rows: filters lose, change and reorder nothing, and no request is in two splits."""

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppe_lora.corpus.filters import detect_language, filter_rows
from ppe_lora.corpus.leaks import find_key, find_number
from ppe_lora.corpus.meta import find_meta
from ppe_lora.corpus.rows import SPLITS, Row, row_id
from ppe_lora.corpus.similarity import grams, jaccard, normalized
from ppe_lora.corpus.split import BySplit, cap_rows, drop_held_out, drop_shared, split_rows
from ppe_lora.recipe.schema import Filters, Split
from ppe_lora.tasks.scores import ScoresTask

BRIEF = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy machines
TASK = ScoresTask()
FILTERS = Filters(length={"en": (8, 80), "ja": (5, 40)}, near_duplicate=0.7)
OF_A_ROW = {"empty", "meta answer", "numeric leak", "key-name leak", "length", "language"}
PIECES = (
    "a calm song", "for the evening", "quiet strings", "rain on the roof", "soft drums", "one of those tunes",
    "雨の夜に聴きたい", "静かな曲", "懐かしい感じで", "一緒に歩く朝の", "eine traurige Melodie",
    "energy", "very warm", "about seventy", "7", "８割", "七十くらい", "Here is a request:",
    "I'm sorry, I can't do that.",
)  # fmt: skip
JOINTS = ("", " ", "  ", ", ", "、", "\n", "\u3000")
LEAKS = ("seventy", "ninety percent", "out of ten", "75", "七割", "八十", "energy", "warmer", "Nostalgic", "brightness")
INVISIBLE = "\u200b\u2060\u00ad\ufeff"


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Requests of known pieces, good and bad, in all sorts of joints; now and then anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.text(max_size=30))
    pieces = draw(st.lists(st.sampled_from(PIECES), max_size=4))
    return "".join(piece + draw(st.sampled_from(JOINTS)) for piece in pieces)


def rows_of(requests: list[str], prefix: str = "") -> list[Row]:
    """Rows with ids by content; every third one is labelled as Japanese."""
    rows = []
    for number, request in enumerate(requests):
        language, target = ("ja", "en", "en")[number % 3], dict.fromkeys(TASK.keys, number % 2)
        name = prefix + row_id(request, target, language, None)
        rows.append(Row.model_construct(id=name, request=request, target=target, language=language))
    return rows


ROWS = st.lists(texts(), max_size=14).map(rows_of)


@given(ROWS)
@BRIEF
def test_every_row_is_kept_or_rejected_as_it_was(rows: list[Row]) -> None:
    """A row that vanishes, a text that a filter mends in silence, or an order that moves ids to other answers."""
    before = [row.model_copy(deep=True) for row in rows]
    filtered = filter_rows(rows, TASK, FILTERS)
    assert rows == before
    places = {id(row): place for place, row in enumerate(rows)}
    kept = [places[id(row)] for row in filtered.kept]
    assert kept == sorted(kept)
    assert sorted(kept + [places[id(rejection.row)] for rejection in filtered.rejected]) == list(range(len(rows)))
    assert sum(filtered.counts().values()) == len(filtered.rejected)
    assert all(rejection.evidence for rejection in filtered.rejected)


@given(ROWS)
@BRIEF
def test_kept_rows_break_no_rule_and_stay_kept(rows: list[Row]) -> None:
    """A build that runs over its own rows again must not lose any: a second pass that finds more is a rule that
    depends on what else was there."""
    kept = filter_rows(rows, TASK, FILTERS).kept
    assert filter_rows(kept, TASK, FILTERS).rejected == []
    for row in kept:
        assert find_number(row.request) is find_key(row.request, TASK) is find_meta(row.request) is None
        low, high = FILTERS.length[row.language]
        assert low <= len(row.request) <= high
        assert detect_language(row.request) == row.language


@given(ROWS, st.randoms(use_true_random=False))
@BRIEF
def test_what_a_row_says_is_judged_without_the_others(rows: list[Row], order: random.Random) -> None:
    """Only likeness to earlier rows may depend on the order; a rule with a memory gives other counts every time."""

    def judged(given_rows: list[Row]) -> dict[int, str]:
        rejected = filter_rows(given_rows, TASK, FILTERS).rejected
        return {id(rejection.row): rejection.rule for rejection in rejected if rejection.rule in OF_A_ROW}

    expected = judged(rows)
    shuffled = rows[:]
    order.shuffle(shuffled)
    assert judged(shuffled) == expected
    assert judged(rows[::2]) == {id(row): expected[id(row)] for row in rows[::2] if id(row) in expected}


@given(
    st.sampled_from(LEAKS),
    st.sampled_from(("", "please make it ", "もう少し、")),
    st.sampled_from((str, str.upper, str.title)),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(INVISIBLE)), max_size=3),
)
@settings(BRIEF, max_examples=150)
def test_disguise_hides_no_leak(
    leak: str, before: str, case: type[str], wide: bool, hidden: list[tuple[int, str]]
) -> None:
    """Case, full-width letters and invisible characters change nothing that a student would read."""
    said = case(leak)
    if wide:
        said = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in said)
    for place, character in hidden:
        said = said[: place % (len(said) + 1)] + character + said[place % (len(said) + 1) :]
    assert find_number(before + said) or find_key(before + said, TASK)


@given(st.lists(texts(), max_size=14).map(rows_of), st.integers(0, 9))
@settings(BRIEF, derandomize=True)  # a pair at the threshold is missed once in a thousand
def test_no_request_is_in_two_splits(rows: list[Row], seed: int) -> None:
    """Not even in other letters, other space or nearly: what was trained on must not be asked in a test."""
    by_split, rejected = split_rows(rows, Split(valid=0.3, test=0.3, group=0.6), seed)
    found = sorted(row.id for name in SPLITS for row in by_split[name])
    assert sorted(found + [rejection.row.id for rejection in rejected]) == sorted(row.id for row in rows)
    _assert_apart(by_split, 0.6)
    assert split_rows(rows, Split(valid=0.3, test=0.3, group=0.6), seed) == (by_split, rejected)


@given(ROWS, st.lists(texts(), max_size=8))
@settings(BRIEF, derandomize=True)
def test_nothing_like_a_held_out_row_is_trained_on(rows: list[Row], requests: list[str]) -> None:
    """A set that people wrote measures reading only as long as none of it, or nearly, is in the training rows."""
    held_out = rows_of(requests, "held-")
    kept, rejected = drop_held_out(rows, held_out, 0.6)
    assert len(kept) + len(rejected) == len(rows)
    assert [row for row in rows if row in kept] == [row for row in rows if row not in [r.row for r in rejected]]
    _assert_apart({"train": kept, "valid": [], "test": held_out}, 0.6)
    assert drop_held_out(kept, held_out, 0.6) == (kept, [])


@given(st.lists(texts(), max_size=8), st.lists(texts(), max_size=5), st.lists(texts(), max_size=5))
@BRIEF
def test_an_official_split_shares_no_text_and_its_test_stays(
    train: list[str], valid: list[str], test: list[str]
) -> None:
    """Cleaning that touches the test rows makes published figures incomparable."""
    official: BySplit = {"train": rows_of(train, "t"), "valid": rows_of(valid, "v"), "test": rows_of(test, "x")}
    kept, rejected = drop_shared(official)
    assert kept["test"] == official["test"]
    assert sum(map(len, kept.values())) + len(rejected) == sum(map(len, official.values()))
    said = [{normalized(row.request) for row in kept[name]} for name in SPLITS]
    assert sum(map(len, said)) == len(set().union(*said))
    assert drop_shared(kept) == (kept, [])


@given(st.sets(st.integers(0, 500), max_size=40), st.integers(0, 45), st.integers(0, 9), st.randoms())
@BRIEF
def test_a_cap_takes_the_same_rows_in_any_order(numbers: set[int], most: int, seed: int, order: random.Random) -> None:
    """A cap by position would take other rows whenever a filter changes what comes before them."""
    rows = rows_of([f"text {number}" for number in numbers])
    by_split: BySplit = {"train": rows, "valid": [], "test": []}
    capped = cap_rows(by_split, {"train": most}, seed)["train"]
    assert len(capped) == min(most, len(rows))
    assert capped == [row for row in rows if row in capped]
    shuffled = rows[:]
    order.shuffle(shuffled)
    again = cap_rows({**by_split, "train": shuffled}, {"train": most}, seed)["train"]
    assert {row.id for row in again} == {row.id for row in capped}


def _assert_apart(by_split: BySplit, threshold: float) -> None:
    """No request of one split is that much like one of another."""
    sets = {name: [grams(row.request) for row in by_split[name]] for name in SPLITS}
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert all(jaccard(left, right) < threshold for left in sets[one] for right in sets[other])
