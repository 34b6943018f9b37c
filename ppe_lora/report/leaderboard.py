"""A sweep's leaderboard as Markdown, CSV and JSON."""

import math
from pathlib import Path
from typing import Any

from ppe_lora.artifacts import write_json, write_text
from ppe_lora.cells import csv_text
from ppe_lora.evaluation.leaderboard import Entry, Leaderboard
from ppe_lora.evaluation.metrics import renamed
from ppe_lora.evaluation.paired import Difference
from ppe_lora.recipe.schema import ReadOut
from ppe_lora.report.page import Words
from ppe_lora.report.run_words import LATENCY_NOTE

_ERRORS = ("mse_norm", "mae_raw", "within_tolerance@5", "r2")
_OTHERS: tuple[ReadOut, ...] = ("posterior_mean", "posterior_median", "calibrated")
SHOWN = (
    *(name for error in _ERRORS for name in (error, *(renamed(error, read_out) for read_out in _OTHERS))),
    "mse_norm_strict",
    "crps",
    "nll",
    "coverage@80",
    "coverage_calibrated@80",
    "json_valid_rate",
    "schema_valid_rate",
    "latency_ms_p50",
    "latency_ms_p95",
    "latency_ms_p99",
)
"""Metrics of the table; per-key values are in the CSV and JSON files."""
_GREEDY = ("mse_raw", "mse_norm_strict", *_ERRORS)
"""Metrics whose names say no read-out: those of the greedy text."""


def metric_label(name: str, board: Leaderboard) -> str:
    """A metric with its read-out where its name says none, and whether all runs serve that: `r2 (greedy text)`."""
    metric, read_outs = name.partition("/")[0], {entry.stored.read_out for entry in board.entries}
    notes = ["greedy text"] if metric in _GREEDY else []
    if len(read_outs) == 1:
        (served,) = read_outs
        notes += ["served"] * (metric in (one if served == "greedy" else renamed(one, served) for one in _ERRORS))
    return f"{name} ({', '.join(notes)})" if notes else name


def write_leaderboard(folder: Path, board: Leaderboard) -> str:
    """Write `leaderboard.md`, `leaderboard.csv` (a row per run, every metric) and `leaderboard.json` (the same, and
    the difference of every pair).

    Returns:
        The verdict, for the console.
    """
    write_text(folder / "leaderboard.md", _markdown(folder.name, board))
    write_text(folder / "leaderboard.csv", _csv(board))
    write_json(folder / "leaderboard.json", _json(board))
    return f"{verdict(board).en}\n{folder / 'leaderboard.md'}"


def verdict(board: Leaderboard) -> Words:
    """What the leaderboard says, in a few sentences: no run beats another unless the test rows show it."""
    if board.selected is None:
        return Words(
            "No run is selected: none passes the format gate, or they were validated on different rows.",
            "選ばれた実行はありません。形式の基準を満たすものがないか、検証データが異なります。",
        )
    others = [entry.name for entry in board.entries if entry.name != board.selected]
    beaten = board.beaten_by(board.selected)
    better = [name for name in others if board.selected in board.beaten_by(name)]
    open_ = [name for name in others if name not in beaten and name not in better]
    names = {entry.stored.selected_by for entry in board.entries}
    by = names.pop() if len(names) == 1 else "mse_norm"
    en = [f"{board.selected} is selected: the smallest {by} on the validation rows."]
    ja = [f"{board.selected} を選択: 検証データの {by} が最小です。"]
    if beaten:
        en.append(f"On {board.rows:,} test rows it beats {_listed(beaten)}.")
        ja.append(f"テスト {board.rows:,} 件で {'、'.join(beaten)} に勝ります。")
    if better:
        en.append(f"On {board.rows:,} test rows it loses to {_listed(better)}.")
        ja.append(f"テスト {board.rows:,} 件で {'、'.join(better)} に劣ります。")
    if open_:
        en.append(f"{board.rows:,} test rows show no difference from {_listed(open_)}.")
        ja.append(f"テスト {board.rows:,} 件では {'、'.join(open_)} との差は示されません。")
    return Words(" ".join(en), "".join(ja))


def number(value: float | None) -> str:
    """A figure for a table: four decimals below 1, three below 10, else one; nothing for nothing."""
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def interval(found: Difference | None) -> str:
    """A difference with its 95 % interval."""
    if found is None:
        return ""
    decimals = 4 if max(abs(found.low), abs(found.high)) < 1 else 2
    return f"{found.difference:+.{decimals}f} [{found.low:+.{decimals}f}, {found.high:+.{decimals}f}]"


def p_value(found: Difference | None) -> str:
    """A p-value, to three decimals."""
    return "" if found is None else "<0.001" if found.p < 0.001 else f"{found.p:.3f}"


def gigabytes(entry: Entry) -> str:
    """Peak memory of the training; empty for a run that did not record it."""
    peak = entry.training.get("peak_memory_bytes")
    return "" if peak is None else f"{peak / 1e9:.2f}"


def against_selected(board: Leaderboard, entry: Entry) -> Difference | None:
    """The run's mse_norm minus the selected one's; None for the selected run itself, or without one."""
    if board.selected in (None, entry.name):
        return None
    return board.between(board.selected, entry.name)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _markdown(title: str, board: Leaderboard) -> str:
    keys = list(board.entries[0].settings)
    metrics = [name for name in SHOWN if any(name in entry.stored.metrics for entry in board.entries)]
    head = [
        "run",
        *(key.rpartition(".")[2] for key in keys),
        "trainable parameters",
        "peak memory, GB",
        "rows/s",
        "gate",
    ]
    head += ["mse_norm (served)", "against the selected", "p", "beats"]
    lines = [f"# {title}", "", verdict(board).en, "", _line(head), _line(["---"] * len(head))]
    for entry in board.entries:
        found = against_selected(board, entry)
        name = f"**{entry.name}** (selected)" if entry.name == board.selected else entry.name
        cells = [name, *(str(entry.settings[key]) for key in keys), f"{entry.training['trainable_parameters']:,}"]
        cells += [
            gigabytes(entry),
            number(entry.training.get("rows_per_s")),
            "passed" if entry.passes_gate else "failed",
        ]
        cells += [number(entry.error if math.isfinite(entry.error) else None), interval(found), p_value(found)]
        lines.append(_line([*cells, ", ".join(board.beaten_by(entry.name))]))
    lines += ["", _line(["test metric", *(entry.name for entry in board.entries)])]
    lines.append(_line(["---"] * (len(board.entries) + 1)))
    for name in metrics:
        figures = (number(one.stored.metrics.get(name)) for one in board.entries)
        lines.append(_line([metric_label(name, board), *figures]))
    if board.unfinished:
        lines += ["", "| not finished | why |", "| --- | --- |"]
        lines += [_line([name, reason.replace("\n", " ")]) for name, reason in board.unfinished.items()]
    lines += ["", *_notes(board)]
    return "\n".join(lines) + "\n"


def _notes(board: Leaderboard) -> list[str]:
    first = board.entries[0].stored
    inputs = first.manifest["inputs"]
    return [
        f"Differences are in mse_norm of the served read-out, over the {board.rows:,} test rows that all runs decoded, "
        "with paired 95 % bootstrap intervals; p is of a paired permutation test, adjusted for the number of pairs "
        "(Benjamini-Hochberg). One run beats another only where the interval excludes zero and p is below 0.05. Every "
        "pair is in `leaderboard.json`. A rejected answer counts as the worst admissible one.",
        "",
        LATENCY_NOTE.en,
        "",
        f"Test rows `{inputs['test_rows']}`, metric version {inputs['metric_version']}, "
        f"decoded on {first.manifest['device']}.",
    ]


def _csv(board: Leaderboard) -> str:
    names = sorted({name for entry in board.entries for name in entry.stored.metrics})
    keys = list(board.entries[0].settings)
    own = ["trainable_parameters", "peak_memory_bytes", "rows_per_s"]
    paired = ["difference", "difference_low", "difference_high", "p"]
    valid = "valid/mse_norm_served"
    rows: list[list[Any]] = [
        ["run", *keys, *own, "gate_passed", "selected", valid, *paired, *(f"test/{name}" for name in names)]
    ]
    for entry in board.entries:
        found = against_selected(board, entry)
        row: list[Any] = [
            entry.name,
            *(entry.settings[key] for key in keys),
            *(entry.training.get(name) for name in own),
        ]
        row += [entry.passes_gate, entry.name == board.selected, entry.valid.get(entry.stored.selected_by)]
        row += [found.difference, found.low, found.high, found.p] if found else [None] * 4
        rows.append([*row, *(entry.stored.metrics.get(name) for name in names)])
    return csv_text(rows)


def _json(board: Leaderboard) -> dict[str, Any]:
    inputs = board.entries[0].stored.manifest["inputs"]
    return {
        "selected": board.selected,
        "test_rows": inputs["test_rows"],
        "metric_version": inputs["metric_version"],
        "rows": board.rows,
        "runs": [
            {
                "run": entry.name,
                "settings": entry.settings,
                "trainable_parameters": entry.training["trainable_parameters"],
                "peak_memory_bytes": entry.training.get("peak_memory_bytes"),
                "rows_per_s": entry.training.get("rows_per_s"),
                "read_out": entry.stored.read_out,
                "selected_epoch": entry.training["selected_epoch"],
                "gate_passed": entry.passes_gate,
                "beats": board.beaten_by(entry.name),
                "valid": entry.valid,
                "test": entry.stored.metrics,
            }
            for entry in board.entries
        ],
        "pairs": [
            {"first": one, "second": other} | found._asdict() | {"is_shown": found.is_shown}
            for (one, other), found in board.pairs.items()
        ],
        "unfinished": board.unfinished,
    }


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
