"""Splits: alike requests stay together, on every machine; official splits are cleaned, never reshuffled."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_lora.corpus.rows import SPLITS, Row
from ppe_lora.corpus.seeding import unit_hash
from ppe_lora.corpus.similarity import grams, jaccard
from ppe_lora.corpus.split import cap_rows, drop_held_out, drop_shared, split_rows
from ppe_lora.recipe.schema import Split

PINNED = "ttxxtttttvvvvttxttvvxttttttxttvtttxvxxvt"
WORDS = st.text(alphabet="abcd ", min_size=1, max_size=20)


def rows_of(texts: list[str]) -> list[Row]:
    return [
        Row.model_construct(id=f"id{i:03}", request=text, target={"a": 1}, language="en")
        for i, text in enumerate(texts)
    ]


def test_hashes_are_the_same_everywhere() -> None:
    """Python's own `hash` differs from process to process. Pinned: the first 6 bytes of SHA-256 over 2**48."""
    assert unit_hash(0, "split", "a") == int.from_bytes(bytes.fromhex("c4c8ca76453c"), "big") / 2**48


def places(rows: list[Row], settings_: Split, seed: int) -> dict[str, str]:
    """Where each row went, by id; `between splits` for rejected ones."""
    by_split, rejected = split_rows(rows, settings_, seed)
    return {r.id: name for name in SPLITS for r in by_split[name]} | {r.row.id: r.rule for r in rejected}


def unlike(count: int, strata: list[int]) -> list[Row]:
    """Rows without anything in common; row i belongs to stratum strata[i % len(strata)] of eight."""
    texts = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]
    return [
        row.model_copy(
            update={
                "language": ("en", "ja")[strata[i % len(strata)] % 2],
                "style": ("short", "long")[strata[i % len(strata)] // 2 % 2],
                "sampler": ("uniform", "edge")[strata[i % len(strata)] // 4],
            }
        )
        for i, row in enumerate(rows_of(texts))
    ]


@given(st.lists(WORDS, max_size=25), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_nothing_alike_straddles_splits_and_nothing_is_lost(texts: list[str], seed: int) -> None:
    """A validation request that was nearly trained on measures memory, not reading."""
    rows = rows_of(texts)
    split, rejected = split_rows(rows, Split(valid=0.3, test=0.3, group=0.6), seed)
    assert sorted([r.id for name in SPLITS for r in split[name]] + [r.row.id for r in rejected]) == [r.id for r in rows]
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        for left in split[one]:
            assert all(jaccard(grams(left.request), grams(right.request)) < 0.6 for right in split[other])


@given(st.lists(WORDS, max_size=25), st.integers(0, 25), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_rows_added_later_never_move_old_ones(texts: list[str], old: int, seed: int) -> None:
    """A request that moves from test to train between two data versions makes their figures incomparable."""
    rows, settings_ = rows_of(texts), Split(valid=0.3, test=0.2, group=0.5)
    after = places(rows, settings_, seed)
    assert places(rows[:old], settings_, seed) == {row.id: after[row.id] for row in rows[:old]}


@given(
    strata=st.lists(st.integers(0, 7), min_size=1, max_size=40),
    count=st.integers(1, 400),
    shares=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45)),
    seed=st.integers(-(2**40), 2**40),
)
@settings(max_examples=30, deadline=None)
def test_shares_hold_in_every_stratum(strata: list[int], count: int, shares: tuple[float, float], seed: int) -> None:
    """By a plain hash, ten test rows of a rare style are four as easily as sixteen."""
    rows = unlike(count, strata)
    valid, test = shares
    split, _ = split_rows(rows, Split(valid=valid, test=test), seed)
    for stratum in {(r.language, r.style, r.sampler) for r in rows}:
        found = {n: sum((r.language, r.style, r.sampler) == stratum for r in split[n]) for n in SPLITS}
        total = sum(found.values())
        for name, share in (("train", 1 - valid - test), ("valid", valid), ("test", test)):
            assert -2.0001 < found[name] - share * total < 1.0001


def test_the_split_is_the_same_on_every_machine() -> None:
    """Pinned: a change of the hash, of the arithmetic or of the order of ties moves rows of data already published."""
    letters = {"train": "t", "valid": "v", "test": "x"}
    found = places(unlike(40, [0, 3]), Split(valid=0.2, test=0.2), 3)
    assert "".join(letters[found[f"id{i:03}"]] for i in range(40)) == PINNED
    assert found != places(unlike(40, [0, 3]), Split(valid=0.2, test=0.2), 4)


def test_a_row_less_moves_few_others() -> None:
    """Dealt by position alone, one row that a new filter drops would deal a third of the later ones anew."""
    rows, settings_ = unlike(1000, [0]), Split(valid=0.1, test=0.1)
    before = places(rows, settings_, 0)
    moved = []
    for left_out in range(0, 900, 50):
        after = places(rows[:left_out] + rows[left_out + 1 :], settings_, 0)
        moved.append(sum(before[name] != place for name, place in after.items()))
    assert sum(moved) / len(moved) < 0.12 * 1000


def test_a_row_between_two_splits_is_rejected() -> None:
    """6, 9 and 12 grams, the middle one like both others: kept, it would have a twin in another split."""
    near, far = "abcdefghij", "defghijklmnop"
    rows = rows_of([near, far, "abcdefghijklm", "ABCDEFGHIJKLM"])
    for seed in range(40):
        split, rejected = split_rows(rows, Split(valid=0.3, test=0.3, group=0.5), seed)
        home = {r.id: name for name in SPLITS for r in split[name]}
        if home["id000"] == home["id001"]:
            assert {home["id002"], home["id003"]} == {home["id000"]}
            continue
        assert [(r.row.id, r.rule, r.evidence) for r in rejected] == [
            ("id002", "between splits", f"like id000 in {home['id000']} and id001 in {home['id001']}"),
            ("id003", "between splits", "the same request as id002"),
        ]
        return
    raise AssertionError("no seed parted the two")


def test_what_is_alike_to_held_out_rows_is_dropped() -> None:
    """A generated request that repeats a person's held-out one, itself or through a twin, trains on the test."""
    held_out = rows_of(["a quiet song for the rain", "drums, drums, drums"])
    near = "a quiet song for the rain!"
    texts = rows_of(["A quiet song for the  rain", "something else entirely", near, near])
    rows = [row.model_copy(update={"id": f"new{i}"}) for i, row in enumerate(texts)]
    kept, rejected = drop_held_out(rows, held_out, 0.6)
    assert [row.id for row in kept] == ["new1"]
    assert [(r.row.id, r.rule, r.evidence) for r in rejected] == [
        ("new0", "like a held-out row", "1.00 like id000: a quiet song for the rain"),
        ("new2", "like a held-out row", "0.95 like id000: a quiet song for the rain"),
        ("new3", "like a held-out row", "1.00 like new2: a quiet song for the rain!"),
    ]


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
