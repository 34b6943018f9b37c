"""The runs of a sweep in one table: which is selected, and which differences the test rows show.

The selected run is chosen on validation rows. Chosen on the test rows, it would look better there than it is, and no
interval around its lead would be honest.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppe_lora.artifacts import read_json
from ppe_lora.errors import FileError, RunError
from ppe_lora.evaluation.metrics import Matrix
from ppe_lora.evaluation.paired import Difference, adjusted, differences, row_scores
from ppe_lora.evaluation.selection import format_rate, metric_of
from ppe_lora.evaluation.stored import Stored, check_comparable, common_ids, read_run
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.load import recipe_values


class Entry(NamedTuple):
    """A finished run."""

    name: str
    settings: dict[str, Any]
    """The recipe's keys in which the runs of the sweep differ."""
    training: dict[str, Any]
    """The manifest of its training."""
    valid: dict[str, float]
    """Metrics of its selected epoch on the validation rows."""
    stored: Stored
    """Its evaluation on the test rows."""

    @property
    def passes_gate(self) -> bool:
        """Whether the selected epoch passes the recipe's format gate on the validation rows."""
        return format_rate(self.valid) >= self.stored.recipe.evaluate.gate

    @property
    def error(self) -> float:
        """mse_norm on the test rows of the read-out that is served, with rejected answers as the worst admissible ones,
        as in the differences. Infinite where there is none."""
        name = "mse_norm_strict" if self.stored.read_out == "greedy" else metric_of(self.stored.read_out)
        return self.stored.metrics.get(name, float("inf"))


class Leaderboard(NamedTuple):
    """The finished runs, the smallest test error first, and the others with what is known of them."""

    entries: list[Entry]
    selected: str | None
    """The run with the smallest mse_norm on the validation rows of those that pass the gate."""
    rows: int
    """Test rows that all runs decoded: what the differences are over."""
    unfinished: dict[str, str]
    """Name to reason."""
    pairs: dict[tuple[str, str], Difference]
    """For each pair of finished runs, in the order of the table: the second's mse_norm minus the first's. The
    p-values are adjusted for the number of pairs."""

    def between(self, first: str, second: str) -> Difference:
        """The mse_norm of the second minus that of the first."""
        if (first, second) in self.pairs:
            return self.pairs[first, second]
        found = self.pairs[second, first]
        return Difference(found.second, found.first, -found.difference, -found.high, -found.low, found.p)

    def beaten_by(self, name: str) -> list[str]:
        """The runs that this one is shown to be better than."""
        others = [entry.name for entry in self.entries if entry.name != name]
        found = {other: self.between(name, other) for other in others}
        return [other for other, one in found.items() if one.is_shown and one.difference > 0]


def build_leaderboard(runs: Mapping[Path, Recipe], failed: Mapping[str, str]) -> Leaderboard:
    """Read the runs of a sweep.

    Args:
        runs: Run folder to recipe.
        failed: Why a run has failed, by name: it is not read. Other unfinished ones say themselves what is missing.

    Raises:
        RunError: No run is finished, or the finished ones have other test rows, tasks or metric versions.
    """
    settings = _differing(list(runs.values()))
    found: list[Entry] = []
    unfinished: dict[str, str] = {}
    for (run_dir, recipe), own in zip(runs.items(), settings, strict=True):
        try:
            if recipe.name in failed:  # what lies in its folder may be of another recipe
                raise RunError(failed[recipe.name])
            stored = read_run(run_dir)
        except (FileError, RunError) as error:
            unfinished[recipe.name] = str(error).removeprefix(f"{run_dir}: ")
            continue
        valid = read_json(run_dir / "best" / "eval_metrics.json")
        found.append(Entry(recipe.name, own, read_json(run_dir / "manifest.json"), valid, stored))
    if not found:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in unfinished.items())
        raise RunError(f"leaderboard: expected at least one finished run; got none{reasons}")
    check_comparable([entry.stored for entry in found])
    entries = sorted(found, key=lambda entry: entry.error)
    ids = common_ids([entry.stored for entry in entries])
    return Leaderboard(entries, _select(entries), len(ids), unfinished, _pairs(entries, ids))


def _differing(recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    flat = [recipe_values(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for one in flat for key in one if key != "name")
    differing = [key for key in keys if any(one.get(key) != flat[0].get(key) for one in flat)]
    return [{key: one.get(key) for key in differing} for one in flat]


def _select(entries: Sequence[Entry]) -> str | None:
    passing = [entry for entry in entries if entry.passes_gate and entry.stored.selected_by in entry.valid]
    rows = {(entry.training["inputs"]["dataset_version"], entry.training["valid_rows"]) for entry in passing}
    if len(rows) != 1:  # none passes, or their validation rows are not the same
        return None
    return min(passing, key=lambda entry: entry.valid[entry.stored.selected_by]).name


def _pairs(entries: Sequence[Entry], ids: Sequence[str]) -> dict[tuple[str, str], Difference]:
    pairs = list(combinations(range(len(entries)), 2))
    if not pairs or len(ids) < 2:
        return {}
    error_NR = np.stack([_errors(entry.stored, ids) for entry in entries], axis=1)
    first, second = map(list, zip(*pairs, strict=True))
    found = adjusted(differences(error_NR[:, first], error_NR[:, second]))
    return {(entries[i].name, entries[j].name): one for (i, j), one in zip(pairs, found, strict=True)}


def _errors(stored: Stored, ids: Sequence[str]) -> Matrix:
    return row_scores(stored.answers(ids, stored.read_out), stored.targets(ids), stored.recipe.task)["mse_norm"]
