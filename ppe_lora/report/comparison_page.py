"""`comparison.html`: whether the second is better, by how much, and where."""

from pathlib import Path
from typing import Any

from ppe_lora.artifacts import write_text
from ppe_lora.evaluation.comparison import Comparison
from ppe_lora.evaluation.stored import Stored
from ppe_lora.report.comparison import SHOWN_ROWS, notes, read_out_words, shown_slices, verdict
from ppe_lora.report.intervals import MOST_POINTS, interval_lines, rows_figure
from ppe_lora.report.leaderboard import interval, number, p_value
from ppe_lora.report.page import Words, render_page

FILE_NAME = "comparison.html"
_FIELDS = {
    "language": Words("language", "言語"),
    "length": Words("length", "長さ"),
    "style": Words("style", "文体"),
    "sampler": Words("sampler", "サンプラー"),
    "scenario": Words("scenario", "場面"),
}
_THIRDS = {
    "shortest third": Words("shortest third", "短い 1/3"),
    "middle third": Words("middle third", "中間 1/3"),
    "longest third": Words("longest third", "長い 1/3"),
}


def write_comparison_page(folder: Path, comparison: Comparison, sides: tuple[Stored, Stored]) -> None:
    """Write the page. Equal comparisons make equal pages.

    Args:
        folder: Where `comparison.html` goes.
        comparison: What it shows.
        sides: The two evaluations, for what they were made from.
    """
    sliced = {
        f"{one.field} {one.value}": one.difference for one in shown_slices(comparison) if one.difference is not None
    }
    lines = {line.name: line for line in interval_lines(sliced, "mse_norm")}
    html = render_page(
        "comparison.html.j2",
        {"rows": _rows_figure(comparison)},
        comparison=comparison,
        verdict=verdict(comparison),
        notes=notes(comparison),
        tables=[(read_out_words(pair), interval_lines(found)) for pair, found in comparison.metrics.items()],
        formats=interval_lines(comparison.formats),
        slices=[(one, lines.get(f"{one.field} {one.value}")) for one in shown_slices(comparison)],
        fields=_FIELDS,
        thirds=_THIRDS,
        improved=comparison.improved(SHOWN_ROWS // 2),
        worsened=comparison.worsened(SHOWN_ROWS // 2),
        most_points=MOST_POINTS,
        made=_made(comparison, sides),
        interval=interval,
        p_value=p_value,
        number=number,
    )
    write_text(folder / FILE_NAME, html)


def _rows_figure(comparison: Comparison) -> Any:
    rows = sorted(comparison.changes, key=lambda one: one.id)
    sides = ([one.first_mse_norm for one in rows], [one.second_mse_norm for one in rows])
    return rows_figure(*sides, [one.id for one in rows], comparison.names)


def _made(comparison: Comparison, sides: tuple[Stored, Stored]) -> dict[str, str]:
    inputs = sides[0].manifest["inputs"]
    made = {
        "test rows": inputs["test_rows"],
        "rows compared": comparison.rows,
        "metric version": inputs["metric_version"],
    }
    for name, side in zip(comparison.names, sides, strict=True):
        made |= {
            f"{name}: student": side.recipe.student.model,
            f"{name}: adapter": side.manifest["inputs"]["adapter"] or "none",
            f"{name}: served": side.read_out,
            f"{name}: device": side.manifest["device"],
            f"{name}: git_revision": side.manifest["git_revision"],
        }
    return {name: str(value) for name, value in made.items()}
