"""Two evaluations of the same test rows, compared: by metric and key, by row, by slice of the rows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ppe_lora.evaluation.paired import (
    Column,
    Difference,
    Tally,
    adjusted,
    compare_tables,
    differences,
    length_thirds,
    row_scores,
    tally,
)
from ppe_lora.evaluation.stored import Stored, check_comparable, common_ids
from ppe_lora.recipe.schema import ReadOut

LEAST_SLICE = 10
"""Rows from which a slice is compared; fewer are only counted."""
_LATENCIES = ("latency_ms_p50", "latency_ms_p95", "latency_ms_p99")

ReadOuts = tuple[ReadOut, ReadOut]
"""Of the first and of the second side."""


class ComparedSlice(NamedTuple):
    """Rows that share a property, compared by the mse_norm of what is served."""

    field: str
    value: str
    rows: int
    difference: Difference | None
    """None for too few rows."""


class RowChange(NamedTuple):
    """One row on both sides, by what is served."""

    id: str
    request: str
    language: str
    target: dict[str, float]
    first: dict[str, float] | None
    """The answer; None is a rejected one."""
    second: dict[str, float] | None
    first_mse_norm: float
    second_mse_norm: float

    @property
    def change(self) -> float:
        """Below zero where the second is better."""
        return self.second_mse_norm - self.first_mse_norm


class Comparison(NamedTuple):
    """The second side against the first. Differences are second minus first: for errors, below zero is better."""

    names: tuple[str, str]
    rows: int
    left_out: int
    """Rows that only one of them decoded."""
    rejected: tuple[int, int]
    """Greedy texts that were no answer; each counts as the worst admissible one."""
    served: ReadOuts
    metrics: dict[ReadOuts, dict[str, Difference]]
    """By read-outs: what is served first, then the read-outs that both sides have."""
    formats: dict[str, Difference]
    tally: Tally
    """Of the second against the first, by the mse_norm of what is served."""
    latency_ms: dict[str, tuple[float, float]]
    devices: tuple[str, str]
    slices: list[ComparedSlice]
    changes: list[RowChange]
    """Every row, the most improved first."""

    @property
    def headline(self) -> Difference:
        """The difference in mse_norm of what is served."""
        return self.metrics[self.served]["mse_norm"]

    def as_json(self, shown_rows: int) -> dict[str, Any]:
        """What `comparison.json` holds; of the rows, only those that changed most."""
        return {
            "first": self.names[0],
            "second": self.names[1],
            "rows": self.rows,
            "rows_left_out": self.left_out,
            "rejected": list(self.rejected),
            "served": list(self.served),
            "metrics": {
                one if one == other else f"{one} to {other}": {name: _shown(found) for name, found in by_name.items()}
                for (one, other), by_name in self.metrics.items()
            },
            "formats": {name: _shown(found) for name, found in self.formats.items()},
            **self.tally._asdict(),
            "latency_ms": self.latency_ms,
            "devices": list(self.devices),
            "slices": [
                one._asdict() | {"difference": one.difference and _shown(one.difference)} for one in self.slices
            ],
            "improved_most": [one._asdict() for one in self.improved(shown_rows)],
            "worsened_most": [one._asdict() for one in self.worsened(shown_rows)],
        }

    def improved(self, count: int) -> list[RowChange]:
        """The rows with the largest gain."""
        return [one for one in self.changes if one.change < 0][:count]

    def worsened(self, count: int) -> list[RowChange]:
        """The rows with the largest loss."""
        return [one for one in self.changes[::-1] if one.change > 0][:count]


def compare(first: Stored, second: Stored) -> Comparison:
    """Compare two evaluations row by row, joined by id.

    Raises:
        RunError: They have other test rows, tasks or metric versions, or no row in common.
        MetricError: They have only one row in common.
    """
    check_comparable([first, second])
    ids = common_ids([first, second])
    served: ReadOuts = (first.read_out, second.read_out)
    both: list[ReadOuts] = [(one, one) for one in first.read_outs if one in second.read_outs]
    scores = {pair: _scores(first, second, ids, pair) for pair in dict.fromkeys([served, *both])}
    *tables, formats = compare_tables([*scores.values(), (first.formats(ids), second.formats(ids))])
    error_N, other_N = (side["mse_norm"] for side in scores[served])
    rejected = [sum(bool(side.predictions[row]["rejected"]) for row in ids) for side in (first, second)]
    found = [_change(first, second, *one) for one in zip(ids, error_N, other_N, strict=True)]
    return Comparison(
        names=(first.name, second.name),
        rows=len(ids),
        left_out=len(first.predictions.keys() ^ second.predictions.keys()),
        rejected=(rejected[0], rejected[1]),
        served=served,
        metrics=dict(zip(scores, tables, strict=True)),
        formats=formats,
        tally=tally(error_N, other_N),
        latency_ms={
            name: (first.metrics[name], second.metrics[name])
            for name in _LATENCIES
            if name in first.metrics and name in second.metrics
        },
        devices=(str(first.manifest["device"]), str(second.manifest["device"])),
        slices=_slices([first.predictions[row] for row in ids], error_N, other_N),
        changes=sorted(found, key=lambda one: one.change),
    )


def _scores(
    first: Stored, second: Stored, ids: Sequence[str], read_outs: ReadOuts
) -> tuple[dict[str, Column], dict[str, Column]]:
    one, other = (
        row_scores(side.answers(ids, name), side.targets(ids), side.recipe.task)
        for side, name in zip((first, second), read_outs, strict=True)
    )
    return one, other


def _change(first: Stored, second: Stored, row: str, error: float, other: float) -> RowChange:
    answers = [
        side.predictions[row]["parsed" if side.read_out == "greedy" else side.read_out] for side in (first, second)
    ]
    shown = first.predictions[row]
    return RowChange(
        row, shown["request"], shown["language"], shown["target"], answers[0], answers[1], float(error), float(other)
    )


def _slices(rows: Sequence[Mapping[str, Any]], first_N: Column, second_N: Column) -> list[ComparedSlice]:
    """Every property that splits the rows; tags may overlap. The p-values are adjusted for the number of slices."""
    thirds = length_thirds([len(row["request"]) for row in rows], [row["language"] for row in rows])
    members: dict[tuple[str, str], list[int]] = {}
    for number, (row, third) in enumerate(zip(rows, thirds, strict=True)):
        of_row = [("language", row["language"]), ("length", third)]
        of_row += [(field, row[field]) for field in ("style", "sampler") if row.get(field)]
        of_row += [("scenario", tag) for tag in row.get("scenario") or ()]
        for one in of_row:
            members.setdefault(one, []).append(number)
    order = ("language", "length", "style", "sampler", "scenario")
    splitting = [one for one in sorted(members, key=lambda one: (order.index(one[0]), -len(members[one]), one[1]))
                 if len(members[one]) < len(rows)]  # fmt: skip
    large = [one for one in splitting if len(members[one]) >= LEAST_SLICE]
    found = adjusted([differences(first_N[members[one], None], second_N[members[one], None])[0] for one in large])
    by_slice = dict(zip(large, found, strict=True))
    return [ComparedSlice(*one, len(members[one]), by_slice.get(one)) for one in splitting]


def _shown(found: Difference | None) -> dict[str, Any] | None:
    return found and found._asdict() | {"is_shown": found.is_shown}
