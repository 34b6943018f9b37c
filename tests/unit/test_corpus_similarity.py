"""The search for alike requests against a comparison of each with each."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_lora.corpus import similarity
from ppe_lora.corpus.filters import drop_near_duplicates
from ppe_lora.corpus.rows import Row
from ppe_lora.corpus.similarity import alike_pairs, grams, jaccard

LETTERS = list("abcdefghijklmnopqrstuvwxyzあいうえお雨音 ")


def edited_copies(count: int, seed: int) -> list[str]:
    """Distinct texts of 30 to 120 characters, most of them another one with a few characters replaced."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(LETTERS, 60))]
    while len(texts) < count:
        if rng.random() < 0.2:
            texts.append("".join(rng.choice(LETTERS, rng.integers(30, 121))))
            continue
        letters = list(texts[int(rng.integers(len(texts)))])
        for at in rng.integers(0, len(letters), rng.integers(1, 5)):
            letters[at] = str(rng.choice(LETTERS))
        texts.append("".join(letters))
    return list(dict.fromkeys(map(similarity.normalized, texts)))


def by_brute_force(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    sets = [grams(text) for text in texts]
    alike = {(i, j): jaccard(sets[i], sets[j]) for i, j in combinations(range(len(texts)), 2)}
    return {pair: value for pair, value in alike.items() if value >= threshold}


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.8])
def test_nearly_every_alike_pair_is_found_and_none_is_invented(threshold: float) -> None:
    """Bands that miss a few percent leave twins of training requests in the test rows."""
    texts = edited_copies(700, seed=1)
    true = by_brute_force(texts, threshold)
    found = {(i, j): value for i, j, value in alike_pairs(texts, threshold)}
    assert len(true) > 80
    assert found.items() <= true.items()
    assert len(found) >= 0.998 * len(true)


def test_pairs_come_in_the_order_of_the_later_text() -> None:
    """Dropping duplicates compares with kept rows only, so it must hear of earlier rows first."""
    pairs = [(later, earlier) for earlier, later, _ in alike_pairs(edited_copies(200, seed=2), 0.5)]
    assert pairs == sorted(pairs)
    assert all(earlier < later for later, earlier in pairs)


def test_many_candidates_are_verified_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of a few thousand alike texts has millions of pairs; parts must neither lose nor repeat one."""
    texts = edited_copies(300, seed=3)
    whole = list(alike_pairs(texts, 0.5))
    monkeypatch.setattr(similarity, "_PENDING_PAIRS", 50)
    monkeypatch.setattr(similarity, "_CHUNK_PAIRS", 7)
    monkeypatch.setattr(similarity, "_CHUNK_TEXTS", 11)
    assert list(alike_pairs(texts, 0.5)) == whole


def test_a_repeated_text_is_paired_with_its_first_only() -> None:
    """A teacher that gives one text ten thousand times would make fifty million pairs."""
    assert list(alike_pairs(["abcdefgh", "ABCDEFGH", "abcdefgh ", "abcdefghi"], 0.8)) == [
        (0, 1, 1.0), (0, 2, 1.0), (0, 3, 0.8),
    ]  # fmt: skip


def templated(count: int, seed: int) -> list[str]:
    """Texts from five templates of twelve words, a third of them drawn from forty; with a number of their own."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(LETTERS[:26], rng.integers(4, 9))) for _ in range(40)]
    fixed = [["".join(rng.choice(LETTERS[:26], rng.integers(4, 9))) for _ in range(12)] for _ in range(5)]
    texts = []
    for number in range(count):
        own = [*fixed[rng.integers(5)]]
        for place in (1, 4, 7, 10):
            own[place] = words[rng.integers(40)]
        texts.append(" ".join([*own, str(number)]))
    return texts


def candidates(texts: list[str], threshold: float, monkeypatch: pytest.MonkeyPatch) -> int:
    counts = []
    verified = similarity._verified

    def counted(sets: Any, sketch_NH: Any, codes_P: Any, threshold: float) -> Any:
        counts.append(len(codes_P))
        return verified(sets, sketch_NH, codes_P, threshold)

    with monkeypatch.context() as patch:
        patch.setattr(similarity, "_verified", counted)
        list(alike_pairs(texts, threshold))
    return sum(counts)


def test_texts_from_templates_are_compared_with_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the texts took four times as long: 10,000 took a second, 20,000 took 4.4."""
    few, many = templated(1500, seed=5), templated(3000, seed=5)
    assert candidates(many, 0.6, monkeypatch) > 3.5 * candidates(few, 0.6, monkeypatch)
    monkeypatch.setattr(similarity, "_MATES", 30)
    monkeypatch.setattr(similarity, "_LEADERS", 1)
    assert candidates(many, 0.6, monkeypatch) < 2.1 * candidates(few, 0.6, monkeypatch)
    assert candidates(many, 0.6, monkeypatch) < 30 * len(many)


def test_a_bounded_search_misses_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the candidates, those that lie next to each other, hold nearly all pairs."""
    texts = templated(2500, seed=6)
    whole = list(alike_pairs(texts, 0.6))
    asked = candidates(texts, 0.6, monkeypatch)
    monkeypatch.setattr(similarity, "_MATES", round(asked / len(texts) / 3))
    assert candidates(texts, 0.6, monkeypatch) < 0.5 * asked
    found = set(alike_pairs(texts, 0.6))
    assert len(whole) > 300
    assert found <= set(whole)
    assert len(found) > 0.97 * len(whole)


def test_a_large_cluster_loses_the_same_rows_in_a_bounded_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near-duplicates are dropped for the sake of the first one, which must be compared with all of them."""
    rng = np.random.default_rng(7)
    first = "".join(rng.choice(LETTERS, 200))
    texts = [first]
    for _ in range(400):
        letters = list(first)
        letters[int(rng.integers(200))] = "x"
        texts.append("".join(letters) + "".join(rng.choice(LETTERS, 4)))
    texts = list(dict.fromkeys(map(similarity.normalized, [*texts, *templated(400, seed=8)])))
    rows = [Row.model_construct(id=str(at), request=text) for at, text in enumerate(texts)]
    whole = drop_near_duplicates(rows, 0.8)
    assert len(whole.rejected) >= 400
    monkeypatch.setattr(similarity, "_MATES", 8)
    assert drop_near_duplicates(rows, 0.8) == whole


@given(st.lists(st.text(max_size=12) | st.text("ab\x00", max_size=7), max_size=20), st.sampled_from((0.0, 0.4, 1.0)))
@settings(max_examples=60, deadline=None)
def test_any_text_is_taken(texts: list[str], threshold: float) -> None:
    """Empty texts, texts shorter than a gram and characters outside the basic plane meet at the borders of arrays."""
    for earlier, later, value in alike_pairs(texts, threshold):
        assert earlier < later
        assert value == jaccard(grams(texts[earlier]), grams(texts[later])) >= threshold
