"""The figures of a run's report. Colours are CSS variables and words are bilingual; the page fills them in."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppe_lora.evaluation.metrics import Matrix
from ppe_lora.evaluation.row_errors import DoubtBin
from ppe_lora.evaluation.selection import selected_by
from ppe_lora.recipe.schema import ReadOut
from ppe_lora.report.figures import AXIS, COUNT_AXIS, LAYOUT
from ppe_lora.report.page import Words
from ppe_lora.tasks.scores import ScoresTask

MOST_POINTS = 300
"""Rows drawn per key; a picture of more is a blot, and slow to open."""
_TARGET_BINS = 10
_LOSSES = ("valid_loss", "train_loss")


class EpochLine(NamedTuple):
    """One figure of every epoch, as a line of the picture and a column of the table."""

    metric: str
    words: Words
    color: str
    dash: str


def epoch_lines(read_out: ReadOut) -> list[EpochLine]:
    """The metric that selects the epoch, the other read-outs', the train mean's, and both token losses."""
    selects = selected_by(read_out)
    names = {
        "mse_norm_posterior_mean": Words("posterior mean", "分布の平均"),
        "mse_norm_posterior_median": Words("posterior median", "分布の中央値"),
        "mse_norm": Words("greedy text", "貪欲デコード"),
    }
    shown = dict.fromkeys([selects, "mse_norm_posterior_mean", "mse_norm"])
    chosen = Words(" (selects)", "(選択に使用)")
    lines = [
        EpochLine(
            metric,
            Words(
                f"mse_norm, {names[metric].en}{chosen.en * (metric == selects)}",
                f"mse_norm({names[metric].ja}){chosen.ja * (metric == selects)}",
            ),
            f"--split-{number}",
            "solid" if metric == selects else "dash",
        )
        for number, metric in enumerate(shown)
    ]
    return [
        *lines,
        EpochLine("train_mean_mse_norm", Words("mse_norm, train mean", "mse_norm(学習平均)"), "--muted", "dot"),
        EpochLine("valid_loss", Words("valid/loss", "valid/loss"), "--split-2", "solid"),
        EpochLine("train_loss", Words("train/loss", "train/loss"), "--split-3", "dash"),
    ]


def epochs_figure(epochs: Mapping[int, Mapping[str, float]], selected: int, shown_lines: Sequence[EpochLine]) -> Any:
    """The true error above, the token loss below, by epoch; a line stands at the selected one."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=LAYOUT)
    numbers = sorted(epochs)
    highest = {"y": 0.0, "y2": 0.0}
    for metric, words, color, dash in shown_lines:
        shown = [(epoch, epochs[epoch][metric]) for epoch in numbers if metric in epochs[epoch]]
        axis = "y2" if metric in _LOSSES else "y"
        highest[axis] = max([highest[axis], *(value for _, value in shown)])
        figure.add_scatter(
            x=[epoch for epoch, _ in shown], y=[value for _, value in shown], yaxis=axis, mode="lines+markers",
            line={"width": 2, "color": f"var({color})", "dash": dash},
            marker={"size": 1 if metric.startswith("train_mean") else 7},
            hovertemplate=f"{words.in_figure} %{{x}}: %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
    figure.add_shape(
        type="line", x0=selected, x1=selected, y0=0, y1=1, yref="paper", layer="below",
        line={"color": "var(--good)", "width": 9}, opacity=0.25,
    )  # fmt: skip
    ticks = {"dtick": 1} if len(numbers) <= 12 else {"nticks": 12}
    label = Words("epoch", "エポック").in_figure
    ends = {name: [0, 1.12 * high or 1] for name, high in highest.items()}
    figure.update_layout(
        xaxis=AXIS | ticks | {"anchor": "y2", "range": [numbers[0] - 0.4, numbers[-1] + 0.4], "title": {"text": label}},
        yaxis=COUNT_AXIS | {"domain": [0.44, 1], "title": {"text": "mse_norm"}, "range": ends["y"]},
        yaxis2=COUNT_AXIS | {"domain": [0, 0.34], "title": {"text": "loss"}, "range": ends["y2"]},
        margin={"l": 62, "r": 10, "t": 8, "b": 44},
    )
    return figure


def answers_figure(
    target_N: Matrix, answer_N: Matrix, ends: tuple[Matrix, Matrix] | None, ids: Sequence[str], task: ScoresTask
) -> Any:
    """Answers of one key against their targets: at most `MOST_POINTS` rows as dots with their 80 % intervals, and the
    mean answer of all rows by target.

    Args:
        target_N: Targets of the accepted rows, in task units.
        answer_N: Their answers.
        ends: Lower and upper ends of their intervals, if there are any.
        ids: Their row ids.
        task: Gives the range.
    """
    import plotly.graph_objects as go

    figure = go.Figure(layout=LAYOUT)
    drawn = np.unique(np.linspace(0, len(target_N) - 1, MOST_POINTS).round().astype(int))
    inside_N = np.ones(len(target_N), dtype=bool)
    if ends is not None:
        inside_N = (ends[0] <= target_N) & (target_N <= ends[1])
        _add_intervals(figure, target_N[drawn], ends[0][drawn], ends[1][drawn], task.figure_decimals)
    low, high = task.low, task.high
    figure.add_scatter(
        x=[low, high], y=[low, high], mode="lines", line={"color": "var(--muted)", "width": 1}, hoverinfo="skip"
    )
    for inside, color, symbol in ((True, "--kept", "circle"), (False, "--warn", "circle-open")):
        own = [index for index in drawn.tolist() if inside_N[index] == inside]
        own_ids = [ids[index] for index in own]
        figure.add_scatter(
            x=target_N[own].tolist(), y=answer_N[own].tolist(), mode="markers", customdata=own_ids,
            marker={"size": 6, "color": f"var({color})", "symbol": symbol, "opacity": 0.75},
            hovertemplate=f"{_TARGET.in_figure} %{{x}}, {_ANSWER.in_figure} %{{y}}<br>%{{customdata}}<extra></extra>",
        )  # fmt: skip
    _add_mean_line(figure, target_N, answer_N, task)
    room = 0.03 * task.span
    shape = {"range": [low - room, high + room], "nticks": 6, "showgrid": True, "gridcolor": "var(--line)"}
    figure.update_layout(
        xaxis=AXIS | shape | {"title": {"text": _TARGET.in_figure, "standoff": 4}},
        yaxis=AXIS | shape | {"title": {"text": _ANSWER.in_figure, "standoff": 4}},
        margin={"l": 48, "r": 8, "t": 8, "b": 40},
    )
    return figure


def reliability_figure(reliability: Sequence[tuple[float, float]], calibrated: tuple[float, float] | None) -> Any:
    """Found against wanted coverage of intervals, in percent; the diagonal is honest. `calibrated` is one point of the
    intervals that were fitted on validation rows."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=LAYOUT)
    _add_diagonal(figure, 100)
    wanted, found = ([100 * value for value in values] for values in zip(*reliability, strict=True))
    hover = f"{Words('wanted', '期待').in_figure} %{{x:.0f}} %, {Words('found', '実際').in_figure} %{{y:.1f}} %"
    figure.add_scatter(
        x=wanted, y=found, mode="lines+markers", line={"color": "var(--kept)", "width": 2}, marker={"size": 6},
        hovertemplate=f"{hover}<extra></extra>",
    )  # fmt: skip
    if calibrated:
        figure.add_scatter(
            x=[100 * calibrated[0]], y=[100 * calibrated[1]], mode="markers", hovertemplate=f"{hover}<extra></extra>",
            marker={"size": 13, "symbol": "diamond-open", "color": "var(--warn)", "line": {"width": 2.5}},
        )  # fmt: skip
    axis = AXIS | {"range": [0, 102], "dtick": 20, "ticksuffix": " %", "showgrid": True, "gridcolor": "var(--line)"}
    figure.update_layout(
        xaxis=axis | {"title": {"text": Words("wanted coverage", "期待する被覆率").in_figure, "standoff": 4}},
        yaxis=axis | {"title": {"text": Words("found coverage", "実際の被覆率").in_figure, "standoff": 4}},
        margin={"l": 62, "r": 26, "t": 8, "b": 42},
    )
    return figure


def doubt_figure(bins: Sequence[DoubtBin], task: ScoresTask) -> Any:
    """The error found against the error the model expected, in task units, in bins of its doubt."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=LAYOUT)
    top, shown = 1.1 * max(max(one.said, one.found) for one in bins) or 1, f".{task.figure_decimals}f"
    _add_diagonal(figure, top)
    said, found = Words("expected error", "予想した誤差").in_figure, Words("error found", "実際の誤差").in_figure
    figure.add_scatter(
        x=[one.said for one in bins], y=[one.found for one in bins], customdata=[one.scores for one in bins],
        mode="lines+markers", line={"color": "var(--kept)", "width": 2}, marker={"size": 7},
        hovertemplate=f"{said} %{{x:{shown}}}, {found} %{{y:{shown}}} (%{{customdata:,}})<extra></extra>",
    )  # fmt: skip
    axis = AXIS | {"range": [0, top], "nticks": 6, "showgrid": True, "gridcolor": "var(--line)"}
    figure.update_layout(
        xaxis=axis | {"title": {"text": said, "standoff": 4}},
        yaxis=axis | {"title": {"text": found, "standoff": 4}},
        margin={"l": 52, "r": 10, "t": 8, "b": 42},
    )
    return figure


def latency_figure(waits_ms: Sequence[float], quantiles: Mapping[str, float]) -> Any:
    """Every timed request as a dot on the axis of milliseconds, with lines at the quantiles."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=LAYOUT)
    for number, (name, value) in enumerate(quantiles.items()):
        # Of two quantiles side by side the later label stands higher.
        label = {"text": name, "yref": "paper", "y": 1 + 0.3 * number, "yanchor": "bottom", "xanchor": "center"}
        line = {"color": "var(--warn)", "width": 1.5, "dash": "dash"}
        figure.add_vline(x=value, line=line, annotation=label | {"showarrow": False})
    figure.add_scatter(
        x=list(waits_ms), y=[0] * len(waits_ms), mode="markers", hovertemplate="%{x:.1f} ms<extra></extra>",
        marker={"size": 10, "color": "var(--kept)", "opacity": 0.55},
    )  # fmt: skip
    figure.update_layout(
        xaxis=AXIS | {"range": [0, 1.08 * max(waits_ms)], "nticks": 7, "ticksuffix": " ms"},
        yaxis=AXIS | {"visible": False, "range": [-1, 1]},
        margin={"l": 12, "r": 12, "t": 54, "b": 30},
    )
    return figure


_TARGET, _ANSWER = Words("target", "目標値"), Words("answer", "回答")


def _add_intervals(figure: Any, target_N: Matrix, low_N: Matrix, high_N: Matrix, decimals: int) -> None:
    # One path for all intervals, broken by gaps: hundreds of separate ones take seconds to draw.
    x, y = [], []
    ends = (end_N.round(decimals).tolist() for end_N in (low_N, high_N))
    for target, low, high in zip(target_N.tolist(), *ends, strict=True):
        x += [target, target, None]
        y += [low, high, None]
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": "var(--asked)", "width": 1}, opacity=0.55, hoverinfo="skip"
    )


def _add_mean_line(figure: Any, target_N: Matrix, answer_N: Matrix, task: ScoresTask) -> None:
    bin_N = np.clip(((target_N - task.low) / task.span * _TARGET_BINS).astype(int), 0, _TARGET_BINS - 1)
    shown = [index for index in range(_TARGET_BINS) if (bin_N == index).sum() >= 3]
    figure.add_scatter(
        x=[float(target_N[bin_N == index].mean()) for index in shown],
        y=[float(answer_N[bin_N == index].mean()) for index in shown],
        mode="lines", line={"color": "var(--ink)", "width": 2.5},
        hovertemplate=f"{Words('mean answer', '回答の平均').in_figure} %{{y:.{task.figure_decimals}f}}<extra></extra>",
    )  # fmt: skip


def _add_diagonal(figure: Any, top: float) -> None:
    line = {"color": "var(--muted)", "width": 1, "dash": "dot"}
    figure.add_scatter(x=[0, top], y=[0, top], mode="lines", line=line, hoverinfo="skip")
