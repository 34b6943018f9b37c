"""Which rows train, validate and test: requests that are alike stay together, on any machine alike."""

from collections.abc import Mapping, Sequence

from ppe_lora.corpus.filters import Rejection
from ppe_lora.corpus.rows import SPLITS, Row
from ppe_lora.corpus.seeding import unit_hash
from ppe_lora.corpus.similarity import alike_pairs, normalized
from ppe_lora.recipe.schema import Split, SplitName

BySplit = dict[SplitName, list[Row]]


def group_keys(rows: Sequence[Row], threshold: float) -> list[str]:
    """The group of each row: the smallest id among the requests it is alike with, directly or through others.

    Args:
        rows: Rows with ids.
        threshold: Lowest Jaccard similarity (character 5-grams) that binds two requests.
    """
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for earlier, later, _ in alike_pairs([row.request for row in rows], threshold):
        parent[root(later)] = root(earlier)
    smallest: dict[int, str] = {}
    for i, row in enumerate(rows):
        smallest[root(i)] = min(row.id, smallest.get(root(i), row.id))
    return [smallest[root(i)] for i in range(len(rows))]


def split_rows(rows: Sequence[Row], settings: Split, seed: int) -> BySplit:
    """Send every group of alike requests to one split, by a hash of the seed and the group.

    The shares hold on average; a small data set can miss them. Rows keep their order within a split.
    """
    by_split: BySplit = {name: [] for name in SPLITS}
    for row, key in zip(rows, group_keys(rows, settings.group), strict=True):
        place = unit_hash(seed, "split", key)
        if place < settings.test:
            by_split["test"].append(row)
        elif place < settings.test + settings.valid:
            by_split["valid"].append(row)
        else:
            by_split["train"].append(row)
    return by_split


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
