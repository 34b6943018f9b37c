"""`report.html` of a run: is it better, by how much, how sure is that, where is it wrong; and how it was made."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ppe_lora.artifacts import read_json, write_text
from ppe_lora.corpus.stats import dataset_stats
from ppe_lora.evaluation.calibration import COVERAGE
from ppe_lora.evaluation.intervals import Interval, Paired
from ppe_lora.evaluation.test_set import NOTE
from ppe_lora.recipe.load import dump_recipe
from ppe_lora.report.checklist import Check
from ppe_lora.report.findings import Finding
from ppe_lora.report.page import Words, render_page
from ppe_lora.report.run_analysis import Analysis
from ppe_lora.report.run_cost import run_cost
from ppe_lora.report.run_figures import (
    MOST_POINTS,
    answers_figure,
    doubt_figure,
    epoch_lines,
    epochs_figure,
    latency_figure,
    reliability_figure,
)
from ppe_lora.report.run_folder import RunFolder
from ppe_lora.report.run_words import (
    LATENCY_NOTE,
    NAMES,
    Mark,
    beside,
    cards,
    change,
    change_between,
    error_figure,
    mark_of,
    verdict,
)

FILE_NAME = "report.html"
_WORST = 20
_MOST_SLICES = 8
"""Of one field, shown without being asked."""
_LISTED_SLICES = 60
"""Of one field, shown at all: the ones with the most error."""
_QUANTILES = ("p50", "p95", "p99")
_FIELDS = {
    "language": Words("Language", "言語"),
    "style": Words("Style", "文体"),
    "sampler": Words("Sampler", "サンプラー"),
    "length": Words("Length (thirds, within a language)", "長さ(言語ごとの三分位)"),
    "scenario": Words("Scenario", "場面"),
}
_VALUES = {
    "ja": Words("Japanese", "日本語"), "en": Words("English", "英語"), "short": Words("short", "短い"),
    "medium": Words("medium", "中くらい"), "long": Words("long", "長い"), "none": Words("none", "なし"),
    "polite": Words("polite", "丁寧"), "casual": Words("casual", "くだけた"), "uniform": Words("uniform", "一様"),
    "cluster": Words("cluster", "クラスタ"), "edge": Words("edge", "端"), "import": Words("import", "取り込み"),
}  # fmt: skip


class Bar(NamedTuple):
    """One line of a picture made of lines: a figure with its interval on a common scale."""

    name: Words
    figure: str
    place: tuple[float, float, float]
    """Low end, value and high end of the interval, in percent of the scale."""
    note: Words
    mark: Mark | None = None
    strong: bool = False


class Worst(NamedTuple):
    """One of the rows that are furthest off."""

    row: Any
    prediction: Mapping[str, Any]
    error: float
    scores: list[tuple[str, str, str | None, dict[str, float] | None, bool]]
    """Key, target, answer, places in percent (`is`, `reads`, `low`, `high`), whether far off. None for no answer."""


def write_run_page(analysis: Analysis, findings: list[Finding], checks: list[Check]) -> None:
    """Write the page into the run's folder. Equal files make equal pages."""
    run = analysis.run
    mark, sentence = verdict(analysis)
    html = render_page(
        "run.html.j2",
        _figures(analysis),
        analysis=analysis,
        run=run,
        task=run.recipe.task,
        mark=mark,
        verdict=sentence,
        cards=cards(analysis, findings),
        findings=findings,
        checks=checks,
        epoch_lines=epoch_lines(analysis.read_out),
        bars=_bars(analysis),
        key_bars=_key_bars(analysis),
        slices=_slice_bars(analysis),
        fields=_FIELDS,
        most_points=MOST_POINTS,
        most_slices=_MOST_SLICES,
        listed_slices=_LISTED_SLICES,
        worst=_worst(analysis),
        stats=dataset_stats(run.data.by_split, run.recipe.task),
        quantiles=[
            (name, run.metrics[f"latency_ms_{name}"]) for name in _QUANTILES if f"latency_ms_{name}" in run.metrics
        ],
        cost=run_cost(run),
        commands=_commands(run),
        made=_made(run),
        packages=run.run["packages"],
        config=dump_recipe(run.recipe),
        error=error_figure,
        names=NAMES,
        latency_note=LATENCY_NOTE,
    )
    write_text(run.path / FILE_NAME, html)


def _figures(analysis: Analysis) -> dict[str, Any]:
    run, doubt = analysis.run, analysis.doubt
    figures = {"epochs": epochs_figure(run.epochs, run.run["selected_epoch"], epoch_lines(analysis.read_out))}
    accepted_N = np.flatnonzero(~np.isnan(analysis.answer_NK).any(axis=1))
    ids = [run.rows[index].id for index in accepted_N.tolist()]
    for k, key in enumerate(run.recipe.task.keys):
        target_N, answer_N = analysis.target_NK[accepted_N, k], analysis.answer_NK[accepted_N, k]
        ends = (doubt.low_NK[accepted_N, k], doubt.high_NK[accepted_N, k]) if doubt else None
        figures[f"key-{key}"] = answers_figure(target_N, answer_N, ends, ids, run.recipe.task)
    if doubt:
        fitted = (COVERAGE, doubt.covered.value) if doubt.calibrated else None
        figures |= {
            "reliability": reliability_figure(doubt.reliability, fitted),
            "doubt": doubt_figure(doubt.bins, run.recipe.task),
        }
    waits = [row["latency_ms"] for row in run.predictions if "latency_ms" in row][:MOST_POINTS]
    if waits:
        figures["latency"] = latency_figure(waits, {name: run.metrics[f"latency_ms_{name}"] for name in _QUANTILES})
    return figures


def _place(interval: Interval, top: float) -> tuple[float, float, float]:
    low, value, high = (
        100 * max(0.0, min(1.0, end / (top or 1))) for end in (interval.low, interval.value, interval.high)
    )
    return low, value, high


def _bars(analysis: Analysis) -> list[Bar]:
    top = 1.04 * max(bar.error.high for bar in analysis.predictors)
    bars = []
    for bar in sorted(analysis.predictors, key=lambda bar: -bar.error.value):
        note, mark = Words("served", "配信する読み出し"), None
        if bar.against is not None:
            note = _served_against(bar.against)
            mark = mark_of(bar.against) if bar.name in analysis.run.baselines else None
        figure = error_figure(bar.error.value)
        bars.append(Bar(NAMES[bar.name], figure, _place(bar.error, top), note, mark, bar.name == analysis.read_out))
    return bars


def _served_against(paired: Paired) -> Words:
    if paired.ratio is None:
        return Words("never wrong on these rows", "このデータでは誤差 0")
    told, between = change(paired.ratio.value), change_between(paired.ratio)
    return Words(f"served answers: {told.en} ({between.en})", f"配信する回答は{told.ja}(95 % 区間 {between.ja})")


_BESIDE = {"train_mean": Words("the train mean", "学習平均"), "ridge": Words("n-gram ridge", "n-gram リッジ")}


def _key_bars(analysis: Analysis) -> list[Bar]:
    top = 1.04 * max(found.error.high for found in analysis.keys.values())
    bars = []
    for key, found in analysis.keys.items():
        told = [beside(found.against[name], words) for name, words in _BESIDE.items()]
        note = Words(", ".join(one.en for one in told), "、".join(one.ja for one in told))
        mark = mark_of(found.against["train_mean"])
        bars.append(Bar(Words(key, key), error_figure(found.error.value), _place(found.error, top), note, mark))
    return sorted(bars, key=lambda bar: -bar.place[1])


def _slice_bars(analysis: Analysis) -> dict[str, list[Bar]]:
    if not analysis.slices:
        return {}
    top = 1.04 * max(one.error.high for one in analysis.slices)
    fields: dict[str, list[Bar]] = {}
    for one in analysis.slices:
        told = change(one.ratio)
        note = Words(f"{one.rows:,} rows, {told.en} than the train mean", f"{one.rows:,} 件、学習平均比: {told.ja}")
        name = _VALUES.get(one.value, Words(one.value, one.value))
        mark: Mark | None = "bad" if one.surely_worse else None
        bar = Bar(name, error_figure(one.error.value), _place(one.error, top), note, mark)
        fields.setdefault(one.field, []).append(bar)
    fields["all"] = [
        Bar(Words("all", "全体"), error_figure(analysis.error.value), _place(analysis.error, top), Words("", ""))
    ]
    return fields


def _worst(analysis: Analysis) -> list[Worst]:
    error_N = analysis.error_NK.mean(axis=1)
    order = sorted(range(len(error_N)), key=lambda n: (not np.isnan(analysis.answer_NK[n, 0]), -error_N[n]))
    return [_worst_row(analysis, n, float(error_N[n])) for n in order[:_WORST]]


def _worst_row(analysis: Analysis, n: int, error: float) -> Worst:
    run, task = analysis.run, analysis.run.recipe.task

    def percent(value: float) -> float:
        return round(100 * (value - task.low) / task.span, 1)

    scores: list[tuple[str, str, str | None, dict[str, float] | None, bool]] = []
    for k, key in enumerate(task.keys):
        target, answer = float(analysis.target_NK[n, k]), float(analysis.answer_NK[n, k])
        shown = task.render_value(target)
        if np.isnan(answer):
            scores.append((key, shown, None, None, False))
            continue
        places = {"is": percent(target), "reads": percent(answer)}
        if analysis.doubt:
            places |= {"low": percent(analysis.doubt.low_NK[n, k]), "high": percent(analysis.doubt.high_NK[n, k])}
        scores.append((key, shown, task.render_value(answer), places, abs(answer - target) > 0.3 * task.span))
    return Worst(run.rows[n], run.predictions[n], error, scores)


def _commands(run: RunFolder) -> list[str]:
    revision = run.run["git_revision"]
    noted = read_json(run.path / NOTE)
    checkout = [f"git checkout {revision}"] if revision else []
    return [
        *checkout,
        "make setup",
        f"ppe-lora run checkpoints/{run.path.name}/config.yaml name={run.recipe.name}_again",
        f"sha256sum {noted['file']} | cut -c1-16    # expected: {noted['sha256']}",
    ]


def _made(run: RunFolder) -> dict[str, str]:
    teacher = run.data.manifest.get("inputs", {}).get("teacher")
    made = {
        "dataset_version": run.data.manifest["dataset_version"],
        "test rows (SHA-256)": run.test["inputs"]["test_rows"],
        "metric_version": run.test["inputs"]["metric_version"],
        "training inputs": run.run["inputs_hash"],
        "adapter (SHA-256)": run.test["inputs"].get("adapter"),
        "student": run.recipe.student.model,
        "LoRA": f"rank {run.recipe.student.lora.rank}, alpha {run.recipe.student.lora.alpha:g}",
        "quantization": run.recipe.student.quantization,
        "teacher": f"{teacher['name']} {teacher['version']}" if teacher else None,
        "seed": run.recipe.seed,
        "device": f"{run.run['device']}, {run.run['processes']} process{'es' * (run.run['processes'] > 1)}",
        "export": run.merged["verdict"] if run.merged else None,
        "git_revision": run.run["git_revision"],
    }
    return {name: str(value) for name, value in made.items() if value is not None}
