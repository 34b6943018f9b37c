"""Splits: alike requests stay together, on every machine; official splits are cleaned, never reshuffled."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_lora.corpus.rows import SPLITS, Row
from ppe_lora.corpus.seeding import unit_hash
from ppe_lora.corpus.similarity import grams, jaccard
from ppe_lora.corpus.split import cap_rows, drop_shared, group_keys, split_rows
from ppe_lora.recipe.schema import Split

WORDS = st.text(alphabet="abcd ", min_size=1, max_size=20)


def rows_of(texts: list[str]) -> list[Row]:
    return [
        Row.model_construct(id=f"id{i:03}", request=text, target={"a": 1}, language="en")
        for i, text in enumerate(texts)
    ]


def test_hashes_are_the_same_everywhere() -> None:
    """Python's own `hash` differs from process to process. Pinned: the first 6 bytes of SHA-256 over 2**48."""
    assert unit_hash(0, "split", "a") == int.from_bytes(bytes.fromhex("c4c8ca76453c"), "big") / 2**48


def test_groups_reach_through_others() -> None:
    """a-b 6/7 and b-c 7/9 are alike, a-c 6/9 is not: all three must still share a split."""
    rows = rows_of(["abcdefghij", "abcdefghijk", "abcdefghijklm", "something else"])
    assert group_keys(rows, 0.75) == ["id000", "id000", "id000", "id003"]
    assert group_keys(rows, 0.8) == ["id000", "id000", "id002", "id003"]


@given(st.lists(WORDS, max_size=25), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_nothing_alike_straddles_splits_and_nothing_is_lost(texts: list[str], seed: int) -> None:
    """A validation request that was nearly trained on measures memory, not reading."""
    rows = rows_of(texts)
    split = split_rows(rows, Split(valid=0.3, test=0.3, group=0.6), seed)
    assert sorted(row.id for name in SPLITS for row in split[name]) == [row.id for row in rows]
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        for left in split[one]:
            assert all(jaccard(grams(left.request), grams(right.request)) < 0.6 for right in split[other])


def test_a_row_keeps_its_split_when_rows_are_reordered() -> None:
    """A split by position changes with every row that a filter drops."""
    rows = rows_of([f"request {i * 7919} {chr(97 + i % 26) * 9}" for i in range(60)])
    settings_ = Split(valid=0.2, test=0.2)
    where = {row.id: name for name, found in split_rows(rows, settings_, 3).items() for row in found}
    assert where == {row.id: name for name, found in split_rows(rows[::-1], settings_, 3).items() for row in found}
    assert where != {row.id: name for name, found in split_rows(rows, settings_, 4).items() for row in found}
    assert set(where.values()) == set(SPLITS)


def test_smaller_caps_are_nested_in_larger_ones() -> None:
    """A learning curve over unrelated subsets compares subsets, not sizes."""
    split = {"train": rows_of([f"text {i}" for i in range(40)]), "valid": rows_of(["v"]), "test": rows_of(["t"])}
    ten = cap_rows(split, {"train": 10}, 0)
    twenty = cap_rows(split, {"train": 20}, 0)
    assert len(ten["train"]) == 10
    assert len(twenty["train"]) == 20
    assert {r.id for r in ten["train"]} <= {r.id for r in twenty["train"]}
    assert [r.id for r in ten["train"]] == sorted(r.id for r in ten["train"])
    assert ten["valid"] == split["valid"]
    assert cap_rows(split, {"train": 10}, 1)["train"] != ten["train"]


def test_official_splits_lose_shared_texts_but_test_stays_whole() -> None:
    """A published split that shares texts rewards memorizing; a test set that shrinks compares with nothing."""
    split = {
        "train": rows_of(["In  Test", "in valid", "only here", "only here"]),
        "valid": rows_of(["in valid", "ｉｎ ｔｅｓｔ"]),
        "test": rows_of(["in test", "in test"]),
    }
    kept, rejected = drop_shared(split)
    assert {name: [r.request for r in kept[name]] for name in SPLITS} == {
        "train": ["only here", "only here"],
        "valid": ["in valid"],
        "test": ["in test", "in test"],
    }
    assert [(r.row.request, r.rule, r.evidence) for r in rejected] == [
        ("ｉｎ ｔｅｓｔ", "also in test", "id000"),
        ("In  Test", "also in test", "id000"),
        ("in valid", "also in valid", "id000"),
    ]
