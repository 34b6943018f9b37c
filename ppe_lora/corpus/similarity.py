"""Which requests are alike: the Jaccard similarity of their character 5-grams, found through MinHash bands.

Letters: N texts, G grams of all texts one after the other, B bands, P pairs of texts.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import ceil, log, sqrt
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
_MATES = 512
"""Most candidates per text, on average, that the bands of a search may name. Texts from a few templates share buckets
by the thousand, and more of them the more texts there are."""
_SKETCH = 256
"""Most minima of a text, a byte each, that say whether a candidate is worth an exact comparison."""
_SKETCH_DEVIATIONS = 4.0
"""A pair at the threshold agrees in so few minima as to be passed over in 3 of 100,000."""
_LEADERS = 4
"""The first texts of a bucket: candidates for all others of it, whatever its size. Near-duplicates are dropped for
the sake of the first one."""
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F],
    dtype=np.uint64,
)

_BYTE_FACTOR = np.uint32(0x9E3779B1)

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
    is verified exactly. Where texts from templates fill the buckets with more than `_MATES` candidates a text, only
    those of a bucket that lie next to each other in the order of further hashes are compared, and all with its first
    ones: the time grows as n log n, and of pairs near the threshold some are missed. A threshold under 0.1 is searched
    as 0.1: texts with next to nothing in common are not compared. A text that repeats an earlier one word for word
    (`normalized`) is paired with the first such text only, so that a text given m times makes m pairs instead of m * m.
    The same texts always give the same pairs.

    Args:
        texts: Requests.
        threshold: Lowest similarity of a pair, 0 to 1.

    Yields:
        Pairs by ascending later index, then by ascending earlier index.
    """
    first_of: dict[str, int] = {}
    firsts = [first_of.setdefault(normalized(text), i) for i, text in enumerate(texts)]
    first_N = np.array(firsts, dtype=np.int64)
    later_P = np.flatnonzero(first_N < np.arange(len(firsts)))
    one_P, similarity_P = first_N[later_P], np.ones(len(later_P))
    if len(first_of) > 1:
        places = np.array(list(first_of.values()), dtype=np.int64)
        one, other, similarity = _alike(_gram_hashes(list(first_of)), threshold)
        one_P, later_P = np.concatenate([one_P, places[one]]), np.concatenate([later_P, places[other]])
        similarity_P = np.concatenate([similarity_P, similarity])
    order_P = np.lexsort((one_P, later_P))
    for begin in range(0, len(order_P), _CHUNK_PAIRS):
        part = order_P[begin : begin + _CHUNK_PAIRS]
        yield from zip(one_P[part].tolist(), later_P[part].tolist(), similarity_P[part].tolist(), strict=True)


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


class _Minima(NamedTuple):
    """What the hash functions tell of the texts."""

    keys_BN: NDArray[np.uint64]
    """What texts of one bucket have in common: per band the hash of its minima."""
    ties_BN: NDArray[np.uint32]
    """An order within buckets, in which alike texts are near each other: by the minima of the next band."""
    sketch_NH: NDArray[np.uint8]
    """A byte of each of the first minima."""


def _alike(grams_N: _Grams, threshold: float) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """All pairs at least `threshold` alike: one, the other, similarity."""
    sets = _gram_sets(grams_N)
    minima = _minima(grams_N, *_bands(threshold))
    farthest = _farthest(minima.keys_BN)
    bands = zip(minima.keys_BN, minima.ties_BN, strict=True)
    candidates = (pairs_P for keys_N, ties_N in bands for pairs_P in _sharing(keys_N, ties_N, farthest))
    passed = [_verified(sets, minima.sketch_NH, pairs_P, threshold) for pairs_P in _distinct(candidates)]
    codes_P, similarity_P = (np.concatenate(parts) for parts in zip(*passed, strict=True))
    codes_P, first_P = np.unique_all(codes_P)[:2] if len(passed) > 1 else (codes_P, slice(None))
    one_P, other_P = np.divmod(codes_P, sets.shape[0])
    return one_P, other_P, similarity_P[first_P]


def _distinct(parts: Iterable[Ints]) -> Iterator[Ints]:
    """The numbers of all parts in few arrays: each once in an array, and in one array unless they are very many."""
    pending = [np.empty(0, dtype=np.int64)]
    waiting = 0
    for part in parts:
        pending.append(part)
        waiting += len(part)
        if waiting >= _PENDING_PAIRS:
            pending = [_unique(pending)]
            waiting = len(pending[0])
            if waiting > _PENDING_PAIRS // 2:
                yield pending[0]
                pending, waiting = [pending[0][:0]], 0
    yield _unique(pending)


def _unique(parts: Sequence[Ints]) -> Ints:
    """The numbers of all parts, each once, ascending. numpy's own `unique` hashes them: ten times as slow."""
    numbers: Ints = np.sort(np.concatenate(parts))
    first_P = np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)]
    distinct: Ints = numbers[first_P]
    return distinct


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


def _minima(grams_N: _Grams, bands: int, length: int) -> _Minima:
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 2**31, (bands, length), dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    starts_N = grams_N.starts_N
    count = len(starts_N) - 1
    keys_BN = np.zeros((bands, count), dtype=np.uint64)
    ties_BN = np.zeros((bands, count), dtype=np.uint32)
    sketch_HN = np.zeros((min(_SKETCH, bands * length), count), dtype=np.uint8)
    for begin in range(0, count, _CHUNK_TEXTS):
        end = min(begin + _CHUNK_TEXTS, count)
        short_G = (grams_N.hashes_G[starts_N[begin] : starts_N[end]] >> 31).astype(np.uint32)
        firsts_N = starts_N[begin:end] - starts_N[begin]
        permuted_G = np.empty_like(short_G)
        for band in range(bands):
            key_N, tie_N = keys_BN[band, begin:end], ties_BN[band - 1, begin:end]
            for place, factor in enumerate(factors[band], band * length):
                np.multiply(short_G, factor, out=permuted_G)
                minima_N = np.minimum.reduceat(permuted_G, firsts_N)
                key_N ^= minima_N
                key_N *= _FACTORS[0]
                key_N ^= key_N >> np.uint64(29)
                byte_N = (minima_N * _BYTE_FACTOR) >> np.uint32(24)
                tie_N <<= np.uint32(8)
                tie_N |= byte_N
                if place < len(sketch_HN):
                    sketch_HN[place, begin:end] = byte_N
    return _Minima(keys_BN, ties_BN, np.ascontiguousarray(sketch_HN.T))


def _farthest(keys_BN: NDArray[np.uint64]) -> int:
    """How far from each other, in the order of their bucket, texts may be that are compared: so far that the bands name
    at most `_MATES` candidates per text."""
    sizes = np.bincount(np.concatenate([np.unique(keys_N, return_counts=True)[1] for keys_N in keys_BN]))
    size_S = np.arange(len(sizes))
    most = _MATES * keys_BN.shape[1]
    low, high = 1, len(sizes)  # with `high` all texts of a bucket are compared

    def named(distance: int) -> int:
        near_S = np.minimum(size_S, distance)
        return int(sizes @ (near_S * size_S - near_S * (near_S + 1) // 2))

    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if named(middle) <= most else (low, middle - 1)
    return low


def _sharing(keys_N: NDArray[np.uint64], ties_N: NDArray[np.uint32], farthest: int) -> Iterator[Ints]:
    """Pairs of texts with equal keys, each as earlier * N + later, in several arrays: those at most `farthest` from
    each other in their bucket, and those with one of its first texts."""
    count = len(keys_N)
    order_N = np.argsort(keys_N, kind="stable")  # stable: within a bucket the texts stay in order
    sorted_N = keys_N[order_N]
    if farthest < count and np.any(sorted_N[farthest + 1 :] == sorted_N[: -farthest - 1]):
        yield from _with_leaders(order_N, sorted_N)
        order_N = np.lexsort((ties_N, keys_N))
    at = np.flatnonzero(sorted_N[1:] == sorted_N[:-1])
    distance = 1
    while len(at) and distance <= farthest:
        one, other = order_N[at], order_N[at + distance]
        yield np.minimum(one, other) * count + np.maximum(one, other)
        distance += 1
        at = at[at + distance < count]
        at = at[sorted_N[at + distance] == sorted_N[at]]


def _with_leaders(order_N: Ints, sorted_N: NDArray[np.uint64]) -> Iterator[Ints]:
    """Every text with the first texts of its bucket."""
    count = len(order_N)
    start_N = np.searchsorted(sorted_N, sorted_N)
    for place in range(_LEADERS):
        at = np.flatnonzero(np.arange(count) > start_N + place)
        yield order_N[start_N[at] + place] * count + order_N[at]


def _gram_sets(grams_N: _Grams) -> Any:
    """Texts by gram hashes, as a sparse matrix of ones: a row is the set of a text's grams."""
    from scipy.sparse import csr_array  # slow to import, and only builders of data need it

    count = len(grams_N.starts_N) - 1
    ones_G = np.ones(len(grams_N.hashes_G), dtype=np.int8)
    sets = csr_array((ones_G, grams_N.hashes_G, grams_N.starts_N), shape=(count, 2**63 - 1), copy=True)
    sets.sum_duplicates()
    sets.data[:] = 1
    return sets


def _verified(
    sets: Any, sketch_NH: NDArray[np.uint8], codes_P: Ints, threshold: float
) -> tuple[Ints, NDArray[np.float64]]:
    """Those of some candidates, each given as one * N + other, that are at least `threshold` alike, and how much."""
    hashes = sketch_NH.shape[1]
    fewest = hashes * threshold - _SKETCH_DEVIATIONS * sqrt(hashes * threshold * (1 - threshold))
    codes, similarities = [codes_P[:0]], [np.empty(0)]
    for begin in range(0, len(codes_P), _CHUNK_PAIRS):
        part_P = codes_P[begin : begin + _CHUNK_PAIRS]
        one_P, other_P = np.divmod(part_P, sets.shape[0])
        likely_P = np.count_nonzero(sketch_NH[one_P] == sketch_NH[other_P], axis=1) >= fewest
        similarity_P = _similarities(sets, one_P[likely_P], other_P[likely_P])
        codes.append(part_P[likely_P][similarity_P >= threshold])
        similarities.append(similarity_P[similarity_P >= threshold])
    return np.concatenate(codes), np.concatenate(similarities)


def _similarities(sets: Any, one_P: Ints, other_P: Ints) -> NDArray[np.float64]:
    size_N = np.diff(sets.indptr)
    shared_P = np.empty(len(one_P), dtype=np.int64)
    for begin in range(0, len(one_P), _CHUNK_PAIRS):
        part = slice(begin, begin + _CHUNK_PAIRS)
        shared_P[part] = np.diff(sets[one_P[part]].multiply(sets[other_P[part]]).indptr)
    return shared_P / (size_N[one_P] + size_N[other_P] - shared_P)
