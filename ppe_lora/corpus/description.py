"""A finished data set in aggregates: what was asked, what was kept, where it went, and its strangest rows.

Everything here is numbers and a few dozen rows; `ppe_lora.report` turns them into a page. Asked rows are the kept and
the rejected ones together. Letters: N rows, K keys, B bins.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppe_lora.artifacts import hash_file, read_json
from ppe_lora.cells import parse_json
from ppe_lora.corpus.filters import Rejection
from ppe_lora.corpus.oddities import CONTRADICTION, Oddities, find_oddities
from ppe_lora.corpus.rows import SPLITS, Row, read_rows, split_path, targets_matrix
from ppe_lora.corpus.similarity import alike_pairs
from ppe_lora.corpus.split import BySplit
from ppe_lora.corpus.stats import count_field
from ppe_lora.errors import DataError
from ppe_lora.tasks.scores import ScoresTask

FIELDS = ("language", "style", "sampler")
Step = Callable[[str], None]
_KEY_BINS = 20
_LENGTH_BINS = 40
_MANY_ROWS = 5000
"""From here on a pair of keys is counted in 10 x 10 cells, below in 5 x 5: emptier cells show noise."""
_SHOWN_PAIRS = 12
_SHOWN_ODD = 20
_SHOWN_REJECTS = 5


class DataSet(NamedTuple):
    """A finished data set as it lies on disk."""

    name: str
    by_split: BySplit
    rejected: list[Rejection]
    manifest: dict[str, Any]
    changed: tuple[str, ...]
    """Files whose content is no longer what the manifest says."""

    @property
    def kept(self) -> list[Row]:
        """The rows of all splits, in the order of the splits."""
        return [row for rows in self.by_split.values() for row in rows]


class Histogram(NamedTuple):
    """Rows per bin."""

    edges: list[float]
    """One more than bins, ascending; a bin holds its lower edge, the last one its upper edge too."""
    asked: list[int]
    kept: list[int]
    splits: dict[str, list[int]]
    """Kept rows by split."""


class PairHistogram(NamedTuple):
    """Rows per cell of two keys: `asked[i][j]` has the first key in bin i and the second in bin j."""

    asked: list[list[int]]
    kept: list[list[int]]


class Lengths(NamedTuple):
    """Lengths of one language's kept rows, in characters or tokens."""

    edges: list[float]
    counts: list[int]
    quantiles: dict[str, float]
    longest: int
    per_character: float | None = None
    """Tokens that one more character costs, by least squares; None for characters, or where lengths do not vary."""


class Rule(NamedTuple):
    """A rule with rejected rows."""

    name: str
    rows: int
    by_language: dict[str, int]
    examples: list[Rejection]


class NearPair(NamedTuple):
    """Two kept requests that are alike."""

    similarity: float
    """Jaccard similarity of character 5-grams, 0 to 1."""
    rows: tuple[Row, Row]
    splits: tuple[str, str]
    difference_norm: float
    """Mean distance of their targets over the keys, as a share of the range."""


class Near(NamedTuple):
    """Kept requests that are alike."""

    threshold: float
    """Pairs less alike than this were not looked for."""
    pairs: int
    across: int
    """Pairs whose rows are in different splits although they are at least as alike as rows that must share one."""
    nearest: list[NearPair]
    """The most alike, in descending order."""


class OddRow(NamedTuple):
    """A row whose words say something else than its numbers; see `ppe_lora.corpus.oddities`."""

    row: Row
    split: str
    read: dict[str, float]
    """The scores as the words sound to a reader of the other rows, in task units."""
    read_error: float
    """Root mean square distance of `read` from the target over the keys, in task units."""
    average_error: float
    """The same distance for the mean target: what answering without reading would cost."""


class Description(NamedTuple):
    """Everything the page shows."""

    asked: int
    """Kept and rejected rows."""
    keys: dict[str, Histogram]
    pairs: dict[tuple[str, str], PairHistogram]
    pair_edges: list[float]
    fields: dict[str, dict[str, int]]
    """Asked rows by language, style and sampler; the kept ones are in `stats.json`."""
    characters: dict[str, Lengths]
    tokens: dict[str, Lengths]
    """Empty where no token counts were handed in."""
    too_long: int
    """Kept rows over the student's limit."""
    rules: list[Rule]
    near: Near
    odd: list[OddRow]
    """The oddest first."""
    contradictions: int
    """Kept rows whose words contradict their numbers, shown or not."""
    explained: dict[str, float]
    """Share of each key's variance that the words explain to a simple reader; empty for too few rows."""


def read_dataset(folder: Path, task: ScoresTask) -> DataSet:
    """Read a finished data set.

    Raises:
        DataError: It is not finished, or a file breaks the row contract.
    """
    if not (folder / "manifest.json").is_file():
        raise DataError(f"{folder}: expected a finished data set; got none; make it with `ppe-lora data build RECIPE`")
    manifest = read_json(folder / "manifest.json")
    by_split: BySplit = {split: read_rows(split_path(folder, split), task) for split in SPLITS}
    rejected = _read_rejected(folder / "rejected.jsonl", task)
    hashes = {name: was for name, was in manifest.get("files", {}).items() if name != "stats.json"}
    changed = [name for name, was in hashes.items() if not (folder / name).is_file() or hash_file(folder / name) != was]
    return DataSet(folder.name, by_split, rejected, manifest, tuple(changed))


def describe(
    data: DataSet,
    task: ScoresTask,
    *,
    group: float,
    tokens: Mapping[str, int] | None = None,
    max_tokens: int | None = None,
    step: Step | None = None,
) -> Description:
    """Count, compare and rank the rows of a data set. About 25 seconds for 20,000 rows on one core.

    Args:
        data: At least one row per split.
        task: Names the keys and their range.
        group: Similarity from which two requests must share a split.
        tokens: Length of each kept row in the student's tokens, by row id.
        max_tokens: The student's longest row; needed with `tokens`.
        step: Called before each slow part with what it does.
    """
    say = step or (lambda doing: None)
    say("counting")
    kept = data.kept
    asked = kept + [rejection.row for rejection in data.rejected]
    asked_NK, kept_NK = (np.array(targets_matrix(rows, task), dtype=float) for rows in (asked, kept))
    split_of = [split for split, rows in data.by_split.items() for _ in rows]
    pair_edges = bin_edges(task, 10 if len(asked) >= _MANY_ROWS else 5)
    say("looking for requests that are alike")
    near = _near(kept, split_of, task, group)
    say("reading every request for what its words say")
    oddities = find_oddities(kept, task)
    return Description(
        asked=len(asked),
        keys=_key_histograms(asked_NK, kept_NK, split_of, task),
        pairs=_pair_histograms(asked_NK, kept_NK, pair_edges, task),
        pair_edges=pair_edges,
        fields={field: count_field(asked, field) for field in FIELDS},
        characters=_lengths(kept, {row.id: len(row.request) for row in kept}),
        tokens=_lengths(kept, tokens, per_character=True) if tokens else {},
        too_long=sum(tokens[row.id] > max_tokens for row in kept) if tokens and max_tokens else 0,
        rules=_rules(data.rejected),
        near=near,
        odd=_odd_rows(kept, split_of, task, oddities) if oddities else [],
        contradictions=int((oddities.score_N >= CONTRADICTION).sum()) if oddities else 0,
        explained=_explained(task, oddities) if oddities else {},
    )


def bin_edges(task: ScoresTask, most: int) -> list[float]:
    """Edges of at most `most` bins over the task's range, each of the same number of values; one bin a value where the
    task has no more values. Bins of 1.5 values would show a comb that is not in the rows.

    Example:
        >>> bin_edges(ScoresTask(), 5), bin_edges(ScoresTask(low=1, high=3), 5)
        ([0.0, 20.0, 40.0, 60.0, 80.0, 100.0], [0.5, 1.5, 2.5, 3.5])
        >>> bin_edges(ScoresTask(low=1, high=5, decimals=1), 5)
        [1.0, 1.8, 2.6, 3.4, 4.2, 5.0]
    """
    steps_in = 10**task.decimals
    steps = task.span * steps_in
    if steps >= most:
        at_values, between = (max(n for n in range(1, most + 1) if count % n == 0) for count in (steps, steps + 1))
        if max(at_values, between) <= most / 4:  # no divisor: the last bin is short
            width = -(-(steps + 1) // most)
        elif between > at_values:
            width = (steps + 1) // between
        else:  # the last bin holds one value more; the edges are exactly values, which a sum of fractions would miss
            width = steps // at_values
            return [task.round(task.low + width * n / steps_in) + 0.0 for n in range(at_values + 1)]
    else:
        width = 1
    bins = -(-(steps + 1) // width)
    return [task.low + (width * n - 0.5) / steps_in for n in range(bins + 1)]


def _read_rejected(path: Path, task: ScoresTask) -> list[Rejection]:
    if not path.is_file():
        return []
    rejected = []
    with path.open(encoding="utf-8") as lines:  # not splitlines(): texts hold other line ends, such as U+2028
        for number, line in enumerate(lines, 1):
            try:
                record = parse_json(line)
                task.check_target(record["row"]["target"])
                # Not validated: an empty request is one of the reasons for which rows are here.
                row = Row.model_construct(**record["row"])
                rejected.append(Rejection(row, str(record["rule"]), str(record["evidence"])))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path}:{number}: expected a rejected row (row, rule, evidence); got {type(error).__name__}: "
                    f"{error}; make the data set again with `ppe-lora data build RECIPE`"
                ) from error
    return rejected


def _key_histograms(
    asked_NK: np.ndarray, kept_NK: np.ndarray, split_of: Sequence[str], task: ScoresTask
) -> dict[str, Histogram]:
    edges = bin_edges(task, _KEY_BINS)
    splits_N = np.array(split_of)
    histograms = {}
    for k, key in enumerate(task.keys):
        by_split = {split: _counts(kept_NK[splits_N == split, k], edges) for split in dict.fromkeys(split_of)}
        histograms[key] = Histogram(edges, _counts(asked_NK[:, k], edges), _counts(kept_NK[:, k], edges), by_split)
    return histograms


def _pair_histograms(
    asked_NK: np.ndarray, kept_NK: np.ndarray, edges: list[float], task: ScoresTask
) -> dict[tuple[str, str], PairHistogram]:
    def cells(values_NK: np.ndarray, left: int, right: int) -> list[list[int]]:
        counts_BB, _, _ = np.histogram2d(values_NK[:, left], values_NK[:, right], bins=(edges, edges))
        whole: list[list[int]] = counts_BB.astype(int).tolist()
        return whole

    return {
        (task.keys[i], task.keys[j]): PairHistogram(cells(asked_NK, i, j), cells(kept_NK, i, j))
        for i, j in combinations(range(len(task.keys)), 2)
    }


def _counts(values_N: np.ndarray, edges: list[float]) -> list[int]:
    counts: list[int] = np.histogram(values_N, bins=edges)[0].tolist()
    return counts


def _lengths(rows: Sequence[Row], length_of: Mapping[str, int], per_character: bool = False) -> dict[str, Lengths]:
    top = max(length_of[row.id] for row in rows)
    width = max(1, -(-(top + 1) // _LENGTH_BINS))
    edges = [float(edge) for edge in range(0, top + width + 1, width)]
    lengths: dict[str, Lengths] = {}
    for language in sorted({row.language for row in rows}):
        own = [row for row in rows if row.language == language]
        values_N = np.array([length_of[row.id] for row in own])
        characters_N = np.array([len(row.request) for row in own], dtype=float)
        slope = None
        if per_character and np.ptp(characters_N) > 0:
            slope = float(np.polyfit(characters_N, values_N, 1)[0])
        quantiles = {str(q): float(np.quantile(values_N, q)) for q in (0.05, 0.5, 0.95)}
        lengths[language] = Lengths(edges, _counts(values_N, edges), quantiles, int(values_N.max()), slope)
    return lengths


def _rules(rejected: Sequence[Rejection]) -> list[Rule]:
    rules = []
    for name, count in Counter(rejection.rule for rejection in rejected).most_common():
        # Ids are content hashes, so their order is as good as a draw, and always the same.
        own = sorted((r for r in rejected if r.rule == name), key=lambda r: r.row.id)
        rules.append(Rule(name, count, count_field([r.row for r in own], "language"), own[:_SHOWN_REJECTS]))
    return rules


def _near(rows: Sequence[Row], split_of: Sequence[str], task: ScoresTask, group: float) -> Near:
    threshold = min(0.5, group)
    count = across = 0
    nearest: list[tuple[float, int, int]] = []
    for earlier, later, similarity in alike_pairs([row.request for row in rows], threshold):
        count += 1
        across += similarity >= group and split_of[earlier] != split_of[later]
        found = (similarity, -earlier, -later)
        if len(nearest) < _SHOWN_PAIRS:
            heapq.heappush(nearest, found)
        else:
            heapq.heappushpop(nearest, found)
    pairs = []
    for similarity, minus_earlier, minus_later in sorted(nearest, reverse=True):
        left, right = rows[-minus_earlier], rows[-minus_later]
        distances = [abs(left.target[key] - right.target[key]) / task.span for key in task.keys]
        splits = (split_of[-minus_earlier], split_of[-minus_later])
        pairs.append(NearPair(similarity, (left, right), splits, float(np.mean(distances))))
    return Near(threshold, count, across, pairs)


def _odd_rows(rows: Sequence[Row], split_of: Sequence[str], task: ScoresTask, oddities: Oddities) -> list[OddRow]:
    odd = []
    for i in np.argsort(-oddities.score_N, kind="stable")[:_SHOWN_ODD].tolist():
        target_K = np.array([rows[i].target[key] for key in task.keys], dtype=float)
        read_K = oddities.read_NK[i]
        errors = (float(np.sqrt(np.mean((values_K - target_K) ** 2))) for values_K in (read_K, oddities.average_K))
        odd.append(OddRow(rows[i], split_of[i], dict(zip(task.keys, read_K.tolist(), strict=True)), *errors))
    return odd


def _explained(task: ScoresTask, oddities: Oddities) -> dict[str, float]:
    explained = zip(task.keys, oddities.explained_K.tolist(), strict=True)
    return {key: share for key, share in explained if not np.isnan(share)}
