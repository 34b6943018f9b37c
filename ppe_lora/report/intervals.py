"""Differences with their intervals, as bars of a table and as a figure."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from ppe_lora.evaluation.paired import Difference
from ppe_lora.report.figures import AXIS, LAYOUT
from ppe_lora.report.page import Words

Judgement = Literal["better", "worse", "open"]
_MORE_IS_BETTER = ("within_tolerance@5", "r2", "json_valid_rate", "schema_valid_rate")
MOST_POINTS = 2000
"""Rows drawn; a picture of more is a blot, and slow to open."""
_COLORS: dict[Judgement, str] = {"better": "var(--good)", "worse": "var(--warn)", "open": "var(--muted)"}


class IntervalLine(NamedTuple):
    """A difference as a table shows it."""

    name: str
    found: Difference
    judgement: Judgement
    """`open` where the rows show no difference."""
    low: float
    """Places on a line whose middle is zero, in percent of its length."""
    at: float
    high: float


def judge(metric: str, found: Difference) -> Judgement:
    """Whether the second is shown to be better or worse in a metric."""
    if not found.is_shown:
        return "open"
    return "better" if (found.difference > 0) == (metric.partition("/")[0] in _MORE_IS_BETTER) else "worse"


def interval_lines(named: Mapping[str, Difference], metric: str = "") -> list[IntervalLine]:
    """Lines of one table.

    Args:
        named: By metric (`mse_norm/energy`): a metric and its keys share a scale. Or by anything else, such as slices.
        metric: The metric of all of them, where the names are not metrics; they then share one scale.
    """
    longest: dict[str, float] = {}
    for name, found in named.items():
        family = metric or name.partition("/")[0]
        longest[family] = max(longest.get(family, 0.0), abs(found.low), abs(found.high))
    lines = []
    for name, found in named.items():
        end = longest[metric or name.partition("/")[0]] or 1.0
        low, at, high = (50 + 48 * value / end for value in (found.low, found.difference, found.high))
        lines.append(IntervalLine(name, found, judge(metric or name, found), low, at, high))
    return lines


def differences_figure(named: Mapping[str, Difference]) -> Any:
    """Differences in mse_norm with their intervals, one below the other; left of zero is better."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=LAYOUT)
    for name, found in named.items():
        color = _COLORS[judge("mse_norm", found)]
        figure.add_scatter(
            x=[found.difference], y=[name], mode="markers", marker={"size": 10, "color": color},
            error_x={
                "type": "data", "symmetric": False, "array": [found.high - found.difference],
                "arrayminus": [found.difference - found.low], "color": color, "thickness": 2.5, "width": 6,
            },
            hovertemplate=f"{name}: %{{x:+.4f}} [{found.low:+.4f}, {found.high:+.4f}]<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": "var(--ink)", "width": 1})
    title = Words("mse_norm minus that of the selected run", "選ばれた実行との mse_norm の差").in_figure
    figure.update_layout(
        xaxis=AXIS | {"showgrid": True, "gridcolor": "var(--line)", "nticks": 6, "title": {"text": title}},
        yaxis=AXIS | {"autorange": "reversed", "automargin": True, "type": "category"},
        margin={"l": 10, "r": 14, "t": 8, "b": 44},
    )
    return figure


def rows_figure(first_N: list[float], second_N: list[float], ids: list[str], names: tuple[str, str]) -> Any:
    """Each row's mse_norm on both sides, of at most `MOST_POINTS` rows; those below the diagonal are better on the
    second."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=LAYOUT)
    end = 1.05 * max([*first_N, *second_N]) or 1.0
    figure.add_scatter(
        x=[0, end], y=[0, end], mode="lines", line={"color": "var(--muted)", "width": 1}, hoverinfo="skip"
    )
    drawn = np.unique(np.linspace(0, len(ids) - 1, min(len(ids), MOST_POINTS)).round().astype(int)).tolist()
    first_N, second_N, ids = ([values[at] for at in drawn] for values in (first_N, second_N, ids))
    colors = [
        _COLORS["better"] if other < one else _COLORS["worse"] if other > one else _COLORS["open"]
        for one, other in zip(first_N, second_N, strict=True)
    ]
    figure.add_scatter(
        x=first_N, y=second_N, mode="markers", customdata=ids, marker={"size": 7, "color": colors, "opacity": 0.75},
        hovertemplate=f"{names[0]} %{{x:.4f}}<br>{names[1]} %{{y:.4f}}<br>%{{customdata}}<extra></extra>",
    )  # fmt: skip
    axis = AXIS | {"range": [0, end], "showgrid": True, "gridcolor": "var(--line)", "nticks": 6}
    figure.update_layout(
        xaxis=axis | {"title": {"text": f"mse_norm, {names[0]}"}},
        yaxis=axis | {"title": {"text": f"mse_norm, {names[1]}"}},
        margin={"l": 56, "r": 10, "t": 8, "b": 44},
    )
    return figure
