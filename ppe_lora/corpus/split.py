"""Which rows train, validate and test: requests that are alike stay together, on any machine alike."""

from collections.abc import Mapping, Sequence

import numpy as np

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
    from scipy.sparse import coo_array  # slow to import, and only builders of data need it
    from scipy.sparse.csgraph import connected_components

    pairs = [(one, other) for one, other, _ in alike_pairs([row.request for row in rows], threshold)]
    ones, others = zip(*pairs, strict=True) if pairs else ((), ())
    links = coo_array((np.ones(len(pairs), dtype=np.int8), (ones, others)), shape=(len(rows), len(rows)))
    _, group_N = connected_components(links, directed=False)
    smallest: dict[int, str] = {}
    for row, group in zip(rows, group_N.tolist(), strict=True):
        smallest[group] = min(row.id, smallest.get(group, row.id))
    return [smallest[group] for group in group_N.tolist()]


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
