"""Which requests are alike: the Jaccard similarity of their character 5-grams, found through MinHash bands.

Letters: N texts, G grams of all texts one after the other, B bands, P pairs of texts.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import ceil, log
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

_GRAM = 5
_PADDING = "\udfff"
"""Makes a gram of a shorter text. A lone surrogate stands in no UTF-8 file."""
_MISSED = 0.001
"""Share of the pairs exactly at the threshold that no band finds; of more similar ones far fewer are missed."""
_PERMUTATIONS = 512
"""Most hash functions of a search. More allow longer bands, which let fewer unlike texts meet."""
_CHUNK_TEXTS = 1000
"""The grams of so many texts stay in the cache while all hash functions go over them."""
_CHUNK_PAIRS = 20_000
_PENDING_PAIRS = 20_000_000
"""Most candidates held before repeated ones are removed: 160 MB."""
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F],
    dtype=np.uint64,
)

Ints = NDArray[np.int64]


class _Grams(NamedTuple):
    """The grams of all texts as 63-bit hashes: those of text n are hashes_G[starts_N[n] : starts_N[n + 1]]."""

    hashes_G: Ints
    starts_N: Ints
    """One more than there are texts."""


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

    Candidates come from MinHash bands that miss a pair at the threshold with a chance of one in a thousand, and each
    is verified exactly. A threshold under 0.1 is searched as 0.1: texts with next to nothing in common are not
    compared. A text that repeats an earlier one word for word (`normalized`) is paired with the first such text only,
    so that a text given m times makes m pairs instead of m * m. The same texts always give the same pairs.

    Args:
        texts: Requests.
        threshold: Lowest similarity of a pair, 0 to 1.

    Yields:
        Pairs by ascending later index, then by ascending earlier index.
    """
    first_of: dict[str, int] = {}
    firsts = [first_of.setdefault(normalized(text), i) for i, text in enumerate(texts)]
    found = [(first, i, 1.0) for i, first in enumerate(firsts) if first < i]
    if len(first_of) > 1:
        places = list(first_of.values())
        one_P, other_P, similarity_P = _alike(_gram_hashes(list(first_of)), threshold)
        pairs = zip(one_P.tolist(), other_P.tolist(), similarity_P.tolist(), strict=True)
        found += [(places[one], places[other], similarity) for one, other, similarity in pairs]
    yield from sorted(found, key=lambda pair: (pair[1], pair[0]))


def _gram_hashes(plain: Sequence[str]) -> _Grams:
    """63-bit hashes of the 5-grams of texts: a weighted sum of five code points, then mixed. Repeats are kept."""
    length_N = np.array([max(len(text), _GRAM) for text in plain], dtype=np.int64)
    starts_N = np.concatenate([[0], np.cumsum(length_N - _GRAM + 1)])
    hashes_G = np.empty(starts_N[-1], dtype=np.int64)
    for begin in range(0, len(plain), _CHUNK_TEXTS):
        end = min(begin + _CHUNK_TEXTS, len(plain))
        joined = "".join(text.ljust(_GRAM, _PADDING) for text in plain[begin:end])
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
        windows = np.lib.stride_tricks.sliding_window_view(codes + np.uint64(1), _GRAM)
        mixed = windows @ _FACTORS
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
        ends = np.cumsum(length_N[begin:end])
        inside = np.ones(len(codes), dtype=bool)
        inside[(ends[:, None] - np.arange(1, _GRAM)).ravel()] = False  # windows that reach into the next text
        hashes_G[starts_N[begin] : starts_N[end]] = (mixed[inside[: len(mixed)]] >> np.uint64(1)).view(np.int64)
    return _Grams(hashes_G, starts_N)


def _alike(grams_N: _Grams, threshold: float) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """All pairs at least `threshold` alike: one, the other, similarity."""
    sets = _gram_sets(grams_N)
    candidates = (pairs_P for keys_N in _band_keys(grams_N, *_bands(threshold)) for pairs_P in _sharing(keys_N))
    passed = [_verified(sets, pairs_P, threshold) for pairs_P in _distinct(candidates)]
    one_P, other_P = np.divmod(np.unique(np.concatenate(passed)), sets.shape[0])
    return one_P, other_P, _similarities(sets, one_P, other_P)


def _distinct(parts: Iterable[Ints]) -> Iterator[Ints]:
    """The numbers of all parts in few arrays: each once in an array, and in one array unless they are very many."""
    pending = [np.empty(0, dtype=np.int64)]
    waiting = 0
    for part in parts:
        pending.append(part)
        waiting += len(part)
        if waiting >= _PENDING_PAIRS:
            pending = [np.unique(np.concatenate(pending))]
            waiting = len(pending[0])
            if waiting > _PENDING_PAIRS // 2:
                yield pending[0]
                pending, waiting = [pending[0][:0]], 0
    yield np.unique(np.concatenate(pending))


def _bands(threshold: float) -> tuple[int, int]:
    """(bands, hash functions per band): the longest bands that find nearly all pairs at the threshold.

    Two texts agree in one hash function with the probability of their similarity, and are compared if they agree in
    all of any band.
    """
    sought = min(max(threshold, 0.1), 0.95)
    best = (1, 1)
    for length in range(1, _PERMUTATIONS + 1):
        bands = ceil(log(_MISSED) / log(1 - sought**length))
        if bands * length > _PERMUTATIONS:
            break
        best = (bands, length)
    return best


def _band_keys(grams_N: _Grams, bands: int, length: int) -> NDArray[np.uint64]:
    """What texts of one bucket have in common: per band and text, the hash of its `length` minima."""
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 2**31, (bands, length), dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    starts_N = grams_N.starts_N
    count = len(starts_N) - 1
    keys_BN = np.zeros((bands, count), dtype=np.uint64)
    for begin in range(0, count, _CHUNK_TEXTS):
        end = min(begin + _CHUNK_TEXTS, count)
        short_G = (grams_N.hashes_G[starts_N[begin] : starts_N[end]] >> 31).astype(np.uint32)
        firsts_N = starts_N[begin:end] - starts_N[begin]
        permuted_G = np.empty_like(short_G)
        for band in range(bands):
            key_N = keys_BN[band, begin:end]
            for factor in factors[band]:
                np.multiply(short_G, factor, out=permuted_G)
                key_N ^= np.minimum.reduceat(permuted_G, firsts_N)
                key_N *= _FACTORS[0]
                key_N ^= key_N >> np.uint64(29)
    return keys_BN


def _sharing(keys_N: NDArray[np.uint64]) -> Iterator[Ints]:
    """All pairs of texts with equal keys, each as earlier * N + later, in several arrays."""
    count = len(keys_N)
    order_N = np.argsort(keys_N, kind="stable")  # stable: within a bucket the texts stay in order
    sorted_N = keys_N[order_N]
    at = np.flatnonzero(sorted_N[1:] == sorted_N[:-1])
    distance = 1
    while len(at):
        yield order_N[at] * count + order_N[at + distance]
        distance += 1
        at = at[at + distance < count]
        at = at[sorted_N[at + distance] == sorted_N[at]]


def _gram_sets(grams_N: _Grams) -> Any:
    """Texts by gram hashes, as a sparse matrix of ones: a row is the set of a text's grams."""
    from scipy.sparse import csr_array  # slow to import, and only builders of data need it

    count = len(grams_N.starts_N) - 1
    ones_G = np.ones(len(grams_N.hashes_G), dtype=np.int8)
    sets = csr_array((ones_G, grams_N.hashes_G, grams_N.starts_N), shape=(count, 2**63 - 1), copy=True)
    sets.sum_duplicates()
    sets.data[:] = 1
    return sets


def _verified(sets: Any, codes_P: Ints, threshold: float) -> Ints:
    """Those of some candidates, each given as one * N + other, that are at least `threshold` alike."""
    one_P, other_P = np.divmod(codes_P, sets.shape[0])
    return codes_P[_similarities(sets, one_P, other_P) >= threshold]


def _similarities(sets: Any, one_P: Ints, other_P: Ints) -> NDArray[np.float64]:
    size_N = np.diff(sets.indptr)
    shared_P = np.empty(len(one_P), dtype=np.int64)
    for begin in range(0, len(one_P), _CHUNK_PAIRS):
        part = slice(begin, begin + _CHUNK_PAIRS)
        shared_P[part] = np.diff(sets[one_P[part]].multiply(sets[other_P[part]]).indptr)
    return shared_P / (size_N[one_P] + size_N[other_P] - shared_P)
