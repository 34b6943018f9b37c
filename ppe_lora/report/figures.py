"""The figures of the data report. Colours are CSS variables and words are bilingual; the page fills them in."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ppe_lora.corpus.description import Histogram, Lengths, PairHistogram
from ppe_lora.report.page import Words

ASKED = Words("asked", "候補")
KEPT = Words("kept", "採用")
_SPLIT_DASHES = ("solid", "dash", "dot")
AXIS = {
    "showgrid": False,
    "zeroline": False,
    "fixedrange": True,
    "linecolor": "var(--line)",
    "tickcolor": "var(--line)",
}
COUNT_AXIS = AXIS | {"showgrid": True, "gridcolor": "var(--line)", "nticks": 4, "rangemode": "tozero"}
LAYOUT = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"color": "var(--muted)", "size": 12},
    "hoverlabel": {"bgcolor": "var(--panel)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
    "margin": {"l": 44, "r": 10, "t": 8, "b": 30},
    "showlegend": False,
    "dragmode": False,
    "bargap": 0,
    "barmode": "overlay",
}


def key_figure(histogram: Histogram) -> Any:
    """Asked and kept rows per bin; below, each split's own distribution in percent of its rows."""
    import plotly.graph_objects as go

    edges = histogram.edges
    centers, widths, labels = _bars(edges)
    figure = go.Figure(layout=LAYOUT)
    for counts, words, color in ((histogram.asked, ASKED, "var(--asked)"), (histogram.kept, KEPT, "var(--kept)")):
        figure.add_bar(
            x=centers, y=counts, width=widths, customdata=labels, marker={"color": color, "line": {"width": 0}},
            hovertemplate=f"%{{customdata}}: %{{y:,}} {words.in_figure}<extra></extra>",
        )  # fmt: skip
    highest = 0.0
    for number, (split, counts) in enumerate(histogram.splits.items()):
        shares = [100 * count / (sum(counts) or 1) for count in counts]
        highest = max(highest, *shares)
        figure.add_scatter(
            x=edges, y=[*shares, shares[-1]], yaxis="y2", mode="lines", customdata=[*labels, labels[-1]],
            line={"shape": "hv", "width": 2, "color": f"var(--split-{number})", "dash": _dash(number)},
            hovertemplate=f"{split} %{{customdata}}: %{{y:.1f}} %<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        xaxis=AXIS | {"range": [edges[0], edges[-1]], "anchor": "y2", "nticks": 6},
        yaxis=COUNT_AXIS | {"domain": [0.46, 1]},
        yaxis2=COUNT_AXIS | {"domain": [0, 0.36], "ticksuffix": " %", "nticks": 3, "range": [0, 1.1 * highest]},
    )
    return figure


def length_figure(lengths: Lengths, allowed: Sequence[int]) -> Any:
    """Kept rows by length; dashed lines stand at the allowed lengths that the axis reaches."""
    import plotly.graph_objects as go

    centers, widths, labels = _bars(lengths.edges, whole=True)
    figure = go.Figure(layout=LAYOUT)
    figure.add_bar(
        x=centers, y=lengths.counts, width=widths, customdata=labels,
        marker={"color": "var(--kept)", "line": {"width": 0}},
        hovertemplate=f"%{{customdata}}: %{{y:,}} {KEPT.in_figure}<extra></extra>",
    )  # fmt: skip
    for limit in allowed:
        if limit <= lengths.edges[-1]:
            figure.add_vline(x=limit, line={"color": "var(--warn)", "width": 1.5, "dash": "dash"})
    figure.update_layout(xaxis=AXIS | {"range": [0, lengths.edges[-1]], "nticks": 6}, yaxis=COUNT_AXIS)
    return figure


def pairs_figure(pairs: Mapping[tuple[str, str], PairHistogram], keys: Sequence[str], edges: Sequence[float]) -> Any:
    """All pairs of keys in one square: asked rows below the diagonal, kept rows above it.

    A cell's value is its count over the count that an even spread would put there.
    """
    import plotly.graph_objects as go

    bins = len(edges) - 1
    size = len(keys) * bins
    even = [[None] * size for _ in range(size)]
    rows = [[None] * size for _ in range(size)]
    for (left, right), counted in pairs.items():
        # `left` comes first in the task's order, so its row of blocks is the upper one.
        upper, lower = keys.index(left) * bins, keys.index(right) * bins
        for i in range(bins):
            for j in range(bins):
                _put(even, rows, upper + i, lower + j, counted.kept[i][j], _total(counted.kept), bins)
                _put(even, rows, lower + j, upper + i, counted.asked[i][j], _total(counted.asked), bins)
    labels = [f"{key} {low:g}–{high:g}" for key in keys for low, high in pairwise(edges)]
    figure = go.Figure(layout=LAYOUT)
    figure.add_heatmap(
        x=labels, y=labels, z=even, customdata=rows, zmin=0, zmax=max(2.0, _high(even)), hoverongaps=False,
        colorscale=[[place / 4, f"var(--heat-{place})"] for place in range(5)],
        colorbar={
            "orientation": "h", "thickness": 8, "len": 0.5, "outlinewidth": 0, "ticksuffix": "×", "nticks": 4,
            "y": -0.02, "yanchor": "top",
        },
        hovertemplate="%{x}<br>%{y}<br>%{customdata:,} (%{z:.2f}×)<extra></extra>",
    )  # fmt: skip
    for block in range(1, len(keys)):
        for across in (figure.add_vline, figure.add_hline):
            across(block * bins - 0.5, line={"color": "var(--panel)", "width": 3})
    ticks = AXIS | {
        "type": "category", "tickvals": [labels[k * bins + bins // 2] for k in range(len(keys))],
        "ticktext": list(keys), "ticks": "", "showline": False, "automargin": True,
    }  # fmt: skip
    figure.update_layout(
        xaxis=ticks | {"side": "top", "tickangle": -40}, yaxis=ticks | {"autorange": "reversed"},
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
    )  # fmt: skip
    return figure


def _bars(edges: Sequence[float], whole: bool = False) -> tuple[list[float], list[float], list[str]]:
    """Centres, widths and labels of the bars between the edges; whole numbers exclude a bin's upper edge."""
    ends = list(pairwise(edges))
    labels = [f"{low:g}–{high - 1:g}" if whole and high - low > 1 else f"{low:g}–{high:g}" for low, high in ends]
    return [(low + high) / 2 for low, high in ends], [0.92 * (high - low) for low, high in ends], labels


def _put(even: list[Any], rows: list[Any], i: int, j: int, count: int, total: int, bins: int) -> None:
    rows[i][j] = count
    even[i][j] = round(count * bins * bins / total, 3) if total else 0.0


def _total(cells: list[list[int]]) -> int:
    return sum(map(sum, cells))


def _high(even: list[Any]) -> float:
    """The value that 98 % of the cells stay under, so that one crowded cell does not pale all others."""
    values = sorted(value for line in even for value in line if value is not None)
    return float(values[int(0.98 * (len(values) - 1))])


def _dash(number: int) -> str:
    return _SPLIT_DASHES[number % len(_SPLIT_DASHES)]
