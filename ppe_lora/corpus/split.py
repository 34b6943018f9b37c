"""Which rows train, validate and test: requests that are alike stay together, strata are cut in the same shares.

Rows are dealt in their order, and where a row goes depends on the rows before it only. So rows added at the end move
none, on any machine, and the shares hold in every stratum to within two rows, where a plain hash is off by the square
root of their number. The price: a row taken out of the middle moves some of the later rows of its stratum (one in
seven, measured on a thousand rows), and rows in another order are split anew.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ppe_lora.corpus.filters import Rejection
from ppe_lora.corpus.rows import SPLITS, Row
from ppe_lora.corpus.seeding import unit_hash
from ppe_lora.corpus.similarity import alike_pairs, normalized
from ppe_lora.recipe.schema import Split, SplitName

BySplit = dict[SplitName, list[Row]]


def split_rows(rows: Sequence[Row], settings: Split, seed: int) -> tuple[BySplit, list[Rejection]]:
    """Deal rows to the splits.

    A row that is alike to earlier rows goes where they are. Where they are in two splits there is no place for it: it
    is rejected, for in either split it would have a twin in the other, and moving the others would move old rows.
    All other rows are dealt by a hash of the seed and the row, unless that split is ahead of its share among the
    rows of the same language, style and sampler; then the split that lacks most takes it.

    Args:
        rows: Rows with ids, in the order they were made.
        settings: The shares, and how alike requests must be to share a split.
        seed: The recipe's seed.

    Returns:
        The rows of each split in their first order, and those between two splits.
    """
    by_split: BySplit = {name: [] for name in SPLITS}
    rejected: list[Rejection] = []
    shares: dict[SplitName, float] = {
        "train": 1 - settings.valid - settings.test,
        "valid": settings.valid,
        "test": settings.test,
    }
    dealt: dict[tuple[str | None, ...], dict[SplitName, int]] = defaultdict(lambda: dict.fromkeys(SPLITS, 0))
    place: dict[int, SplitName] = {}
    for index, (row, alike) in enumerate(zip(rows, _earlier_alike(rows, settings.group), strict=True)):
        found = {place[other]: rows[other].id for other, _ in alike if other in place}
        twins = [other for other, similarity in alike if similarity == 1.0 and other not in place]
        if twins or len(found) > 1:
            where = " and ".join(f"{other} in {name}" for name, other in found.items())
            evidence = f"like {where}" if found else f"the same request as {rows[twins[0]].id}"
            rejected.append(Rejection(row, "between splits", evidence))
            continue
        counts = dealt[row.language, row.style, row.sampler]
        name = next(iter(found), None) or _dealt_to(unit_hash(seed, "split", row.id), shares, counts)
        counts[name] += 1
        place[index] = name
        by_split[name].append(row)
    return by_split, rejected


def _dealt_to(place: float, shares: Mapping[SplitName, float], counts: Mapping[SplitName, int]) -> SplitName:
    """The split at `place` of the unit interval, or the one that lacks most if that one is ahead of its share."""
    total = sum(counts.values()) + 1
    lacking = {name: share * total - counts[name] for name, share in shares.items()}
    test, valid = shares["test"], shares["valid"]
    hashed: SplitName = "test" if place < test else "valid" if place < test + valid else "train"
    return hashed if lacking[hashed] >= 0 else max(lacking, key=lambda name: lacking[name])


def _earlier_alike(rows: Sequence[Row], threshold: float) -> Iterator[list[tuple[int, float]]]:
    """For every row the earlier rows that are alike, and how much."""
    pairs = alike_pairs([row.request for row in rows], threshold)
    pair = next(pairs, None)
    for index in range(len(rows)):
        alike = []
        while pair is not None and pair[1] == index:
            alike.append((pair[0], pair[2]))
            pair = next(pairs, None)
        yield alike


def drop_held_out(rows: Sequence[Row], held_out: Sequence[Row], threshold: float) -> tuple[list[Row], list[Rejection]]:
    """The rows that are less than `threshold` alike with every held-out row, and the others."""
    count = len(held_out)
    together = [*held_out, *rows]
    rejected: dict[int, Rejection] = {}
    for earlier, later, similarity in alike_pairs([row.request for row in together], threshold):
        # A repeated request is paired with its first only, so it shares the fate of that one.
        twin = similarity == 1.0 and earlier in rejected
        if later >= count and later not in rejected and (earlier < count or twin):
            evidence = f"{similarity:.2f} like {together[earlier].id}: {together[earlier].request}"
            rejected[later] = Rejection(together[later], "like a held-out row", evidence)
    return [row for i, row in enumerate(rows, count) if i not in rejected], list(rejected.values())


def cap_rows(by_split: Mapping[SplitName, Sequence[Row]], max_rows: Mapping[SplitName, int], seed: int) -> BySplit:
    """Keep at most `max_rows` of a split, chosen by a hash of the seed and the row, in their first order.

    The rows of a smaller cap are among those of a larger one, so learning curves compare nested data.
    """
    return {name: _capped(rows, max_rows.get(name, len(rows)), seed) for name, rows in by_split.items()}


def _capped(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    by_hash = sorted(range(len(rows)), key=lambda i: (unit_hash(seed, "cap", rows[i].id), i))
    return [rows[i] for i in sorted(by_hash[:count])]


def drop_shared(by_split: Mapping[SplitName, Sequence[Row]]) -> tuple[BySplit, list[Rejection]]:
    """Clean an official split whose texts straddle it: a request in test leaves valid and train, one in valid leaves
    train.

    Requests are the same if their normalized texts are. Test is never touched, so that published figures compare.
    """
    kept: BySplit = {name: [] for name in SPLITS}
    rejected = []
    first_in: dict[str, tuple[SplitName, str]] = {}
    for name in reversed(SPLITS):
        for row in by_split[name]:
            where, twin = first_in.setdefault(normalized(row.request), (name, row.id))
            if where == name:
                kept[name].append(row)
            else:
                rejected.append(Rejection(row, f"also in {where}", twin))
    return kept, rejected
