"""The search for alike requests against a comparison of each with each."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_lora.corpus import similarity
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


@given(st.lists(st.text(max_size=12) | st.text("ab\x00", max_size=7), max_size=20), st.sampled_from((0.0, 0.4, 1.0)))
@settings(max_examples=60, deadline=None)
def test_any_text_is_taken(texts: list[str], threshold: float) -> None:
    """Empty texts, texts shorter than a gram and characters outside the basic plane meet at the borders of arrays."""
    for earlier, later, value in alike_pairs(texts, threshold):
        assert earlier < later
        assert value == jaccard(grams(texts[earlier]), grams(texts[later])) >= threshold
