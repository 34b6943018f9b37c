"""Which requests are alike: the Jaccard similarity of their character 5-grams, found through MinHash buckets."""

from collections.abc import Iterator, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np

_GRAM = 5
_PERMUTATIONS = 128
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F],
    dtype=np.uint64,
)


def normalized(text: str) -> str:
    """NFKC, lower case, single spaces: what decides whether two requests are the same.

    Example:
        >>> normalized("  Ｒａｉｎｙ  night ")
        'rainy night'
    """
    return " ".join(normalize("NFKC", text).lower().split())


def grams(text: str) -> frozenset[str]:
    """The character 5-grams of the normalized text; a shorter text is its own only gram."""
    plain = normalized(text)
    return frozenset(plain[i : i + _GRAM] for i in range(len(plain) - _GRAM + 1)) or frozenset([plain])


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Shared grams over all grams, 0 to 1.

    Example:
        >>> jaccard(grams("abcdef"), grams("abcdefg"))  # 2 shared of 3
        0.6666666666666666
    """
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def alike_pairs(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Pairs of texts at least `threshold` alike, as (earlier index, later index, exact Jaccard).

    Candidates come from MinHash buckets, tuned to miss as few as possible, and each is verified exactly. A threshold
    under 0.1 is searched as 0.1: texts with next to nothing in common are not compared.

    Args:
        texts: Requests; the later index comes in ascending order.
        threshold: Lowest similarity of a pair, 0 to 1.
    """
    index = _lsh(min(max(threshold, 0.1), 0.95))  # higher leaves datasketch too few bands
    shingles = [grams(text) for text in texts]
    for later, text in enumerate(texts):
        signature = _signature(normalized(text))
        for earlier in sorted(index.query(signature)):
            similarity = jaccard(shingles[earlier], shingles[later])
            if similarity >= threshold:
                yield earlier, later, similarity
        index.insert(later, signature, check_duplication=False)


def _lsh(threshold: float) -> Any:
    from datasketch import MinHashLSH  # slow to import, and only builders of data need it

    return MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(0.05, 0.95))


def _signature(plain: str) -> Any:
    from datasketch import MinHash

    signature = MinHash(num_perm=_PERMUTATIONS, hashfunc=_itself)
    signature.update_batch(_gram_hashes(plain))
    return signature


def _gram_hashes(plain: str) -> list[int]:
    """32-bit hashes of the 5-grams, all at once: a weighted sum of five code points, then mixed."""
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    codes = np.pad(codes, (0, max(0, _GRAM - len(codes))))
    windows = np.lib.stride_tricks.sliding_window_view(codes, _GRAM)
    mixed = ((windows + np.uint64(1)) * _FACTORS).sum(axis=1, dtype=np.uint64)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    hashes: list[int] = np.unique(mixed >> np.uint64(32)).tolist()
    return hashes


def _itself(value: int) -> int:
    return value
