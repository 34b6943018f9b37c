"""Filters: what leaks, what only looks like it, and what counts as the same request."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_lora.corpus.filters import (
    Evidence,
    detect_language,
    drop_duplicate_ids,
    drop_near_duplicates,
    empty,
    filter_rows,
    key_leak,
    numeric_leak,
    wrong_language,
    wrong_length,
)
from ppe_lora.corpus.leaks import find_key, find_number
from ppe_lora.corpus.rows import Row
from ppe_lora.corpus.similarity import alike_pairs, grams, jaccard
from ppe_lora.recipe.schema import Filters
from ppe_lora.tasks.scores import ScoresTask

TASK = ScoresTask(
    aliases={"warmth": {"ja": ("温かさ",), "en": ("cosiness",)}, "complexity": {"ja": ("複雑",)}},
)
WORDS = st.text(alphabet="abcde fgh", min_size=1, max_size=40)


def row(request: str, **fields: Any) -> Row:
    given = {"id": request, "target": dict.fromkeys(TASK.keys, 50), "language": "en", **fields}
    return Row.model_construct(request=request, **given)


@pytest.mark.parametrize(
    ("request_text", "found"),
    [
        ("energy around 70", "7"),
        ("８０くらいで", "８"),
        ("mostly calm, ٣ parts", "٣"),
        ("① calm", "①"),
        ("½ the speed", "½"),
        ("full％", "％"),
        ("about Seventy-five, I think", "seventy"),
        ("one hundred percent calm", "one hundred"),
        ("a single percent less", "percent"),
        ("zero drums", "zero"),
        ("七十五くらい", "七十五"),
        ("一割だけ明るく", "一割"),
        ("百点の曲", "百点"),
        ("はちじゅうくらいで", "はちじゅうくらい"),
        ("ゼロに近い静けさ", "ぜろ"),
    ],
)
def test_numbers_are_found(request_text: str, found: str) -> None:
    """A request that states its score is answered by copying."""
    assert find_number(request_text) == found


@pytest.mark.parametrize(
    "request_text",
    [
        "one of those songs", "someone like me", "the first snow", "an often-heard tune", "a tense, weightless freight",
        "just for once", "一緒に歩きたい", "一番好きな季節", "一日の終わり", "二人で聴く曲", "十分に静かな曲",
        "四季を感じる曲", "ゼロから作る", "三味線の音", "一つだけお願い", "",
    ],
)  # fmt: skip
def test_harmless_words_are_no_numbers(request_text: str) -> None:
    """Dropping every 一緒 would remove a good part of natural Japanese."""
    assert find_number(request_text) is None


@pytest.mark.parametrize(
    ("request_text", "found"),
    [
        ("More ENERGY please", "energy"),
        ("low energies", "energies"),
        ("an energetic tune", "energetic"),
        ("something warmer", "warmer"),
        ("its warmth's glow", "warmth's"),
        ("ｗａｒｍ tones", "warm"),
        ("brightly lit", "brightly"),
        ("acoustic guitar", "acoustic"),
        ("a Nostalgic mood", "nostalgic"),
        ("utter cosiness", "cosiness"),
        ("温かい曲にして", "温かい"),
        ("とても温かく", "温かく"),
        ("複雑な曲", "複雑"),
    ],
)
def test_key_names_are_found_in_any_form(request_text: str, found: str) -> None:
    """A request that says the key and how much of it is a form, not a request."""
    assert find_key(request_text, TASK) == found


@pytest.mark.parametrize(
    "request_text", ["a swarm of bees", "in Brighton", "her complexion", "室温で", "lukewarm tea", "warmup"]
)
def test_words_that_only_contain_a_key_are_free(request_text: str) -> None:
    """Substring matching would reject whatever happens to contain a short key."""
    assert find_key(request_text, TASK) is None


def test_very_short_keys_count_only_as_labels() -> None:
    """A task with the key `a` would otherwise reject nearly every English request."""
    task = ScoresTask(keys=("a", "reader_valence"))
    assert find_key("a calm song", task) is None
    assert find_key("a: low", task) == "a:"
    assert find_key("some Reader Valence", task) == "reader valence"


@pytest.mark.parametrize("text", ["", " \n", "...", "……", "「」", "!!!", "N/A", "null", "なし。", "該当なし"])
def test_a_text_that_says_nothing_is_empty(text: str) -> None:
    """A teacher that fills in a blank form would have its targets taught with no wish at all."""
    assert empty(row(text)) == Evidence("empty", repr(text))


@pytest.mark.parametrize("text", ["☔️", "静", "q?", "何もなし、音だけ", "none of that noise"])
def test_the_shortest_wish_is_not_empty(text: str) -> None:
    """An emoji says something, and the words of a blank form occur in sentences."""
    assert empty(row(text)) is None


def test_each_rule_says_what_it_saw() -> None:
    """Evidence that does not show the offending piece makes a rejected file useless."""
    assert empty(row(" \n")) == Evidence("empty", "' \\n'")
    assert numeric_leak(row("ten drums")) == Evidence("numeric leak", "ten")
    assert key_leak(row("bright lights"), TASK) == Evidence("key-name leak", "bright")
    assert wrong_length(row("short"), {"en": (6, 9)}) == Evidence("length", "5 characters; allowed 6 to 9")
    assert wrong_length(row("sixsix"), {"en": (6, 9)}) is None
    assert wrong_length(row("x"), {"ja": (6, 9)}) is None
    assert wrong_language(row("静かな曲を")) == Evidence("language", "expected en; got ja")
    assert wrong_language(row("a calm song", language="ja")) == Evidence("language", "expected ja; got en")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("雨の夜", "ja"), ("静寂", "ja"), ("lo-fiなやつ", "ja"), ("ok beats", "en"), ("hushed, sepia", "en"),
        ("bossa nova tune", "en"), ("eine traurige Melodie für den Abend", "de"), ("like 夜 songs", "en"),
    ],
)  # fmt: skip
def test_short_texts_are_recognized(text: str, language: str) -> None:
    """A statistical detector alone calls short English Italian and short kanji Chinese."""
    assert detect_language(text) == language


def test_rules_apply_in_order_and_the_first_one_counts() -> None:
    """Evidence of a later rule would hide the worse fault; an order that moves changes every count."""
    rows = [
        row("", id="1"),
        row("Sure! Here is one: energy 7", id="1b"),
        row("energy 7", id="2"),
        row("energy", id="3"),
        row("tiny", id="4"),
        row("静かな夜にひとりで聴く落ち着いた曲", id="5"),
        row("a calm song for the evening", id="6"),
        row("a calm song for the morning", id="6"),
        row("A calm  song for the evening", id="7"),
        row("fast drums and shouting", id="8"),
    ]
    filtered = filter_rows(rows, TASK, Filters())
    assert [(r.row.id, r.rule) for r in filtered.rejected] == [
        ("1", "empty"),
        ("1b", "meta answer"),
        ("2", "numeric leak"),
        ("3", "key-name leak"),
        ("4", "length"),
        ("5", "language"),
        ("6", "duplicate id"),
        ("7", "near-duplicate"),
    ]
    assert filtered.rejected[-1].evidence == "1.00 like 6: a calm song for the evening"
    assert [r.id for r in filtered.kept] == ["6", "8"]
    assert len(rows) == 10


def test_language_rule_can_be_switched_off() -> None:
    """The switch in the recipe must reach the rule."""
    rows = [row("静かな夜に聴く落ち着いた曲", id="1")]
    assert filter_rows(rows, TASK, Filters(language=False)).counts() == {}
    assert filter_rows(rows, TASK, Filters()).counts() == {"language": 1}


def test_jaccard_by_hand() -> None:
    """abcdef has 2 grams, abcdefgh 4, all of the first among them: 2 / 4."""
    assert jaccard(grams("abcdef"), grams("ABC  DEF".replace("  ", ""))) == 1.0
    assert jaccard(grams("abcdef"), grams("abcdefgh")) == 0.5
    assert grams("ab") == {"ab"}


def test_near_duplicates_compare_with_kept_rows_only() -> None:
    """b is like a, c like b but not like a: dropping c because of the dropped b would lose a new request."""
    # 6, 7 and 9 grams: a-b 6/7, b-c 7/9, a-c 6/9
    rows = [row("abcdefghij"), row("abcdefghijk"), row("abcdefghijklm")]
    filtered = drop_near_duplicates(rows, 0.75)
    assert [r.request for r in filtered.kept] == ["abcdefghij", "abcdefghijklm"]
    assert filtered.rejected[0].evidence == "0.86 like abcdefghij: abcdefghij"


def test_the_threshold_itself_is_a_duplicate() -> None:
    """`>` for `>=` keeps pairs that are exactly as alike as the recipe forbids."""
    assert [s for *_, s in alike_pairs(["abcdefgh", "abcdefghi"], 0.8)] == [0.8]
    assert [s for *_, s in alike_pairs(["abcdefgh", "abcdefghi"], 0.81)] == []


def test_duplicate_ids_keep_the_first() -> None:
    """Two rows of one id make every later join by id wrong."""
    filtered = drop_duplicate_ids([row("x", id="1"), row("y", id="1"), row("z", id="2")])
    assert [r.request for r in filtered.kept] == ["x", "z"]
    assert filtered.counts() == {"duplicate id": 1}


@given(st.lists(WORDS, max_size=12), st.sampled_from((0.5, 0.8, 1.0)))
@settings(max_examples=40, deadline=None)
def test_near_duplicate_removal_is_exact_and_idempotent(texts: list[str], threshold: float) -> None:
    """What is dropped must really be like a kept earlier row, and a second pass must find nothing."""
    filtered = drop_near_duplicates([row(text, id=str(i)) for i, text in enumerate(texts)], threshold)
    assert len(filtered.kept) + len(filtered.rejected) == len(texts)
    for rejection in filtered.rejected:
        earlier = [k for k in filtered.kept if int(k.id) < int(rejection.row.id)]
        assert max(jaccard(grams(k.request), grams(rejection.row.request)) for k in earlier) >= threshold
    assert drop_near_duplicates(filtered.kept, threshold).rejected == []


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_leak_rules_take_any_text(text: str) -> None:
    """An odd script or a control character must not stop a build of thousands of rows."""
    assert find_number(text + " 5") is not None
    find_key(text, TASK)
    assert list(alike_pairs([text, text], 1.0)) == [(0, 1, 1.0)]
