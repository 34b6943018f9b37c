"""What deserves a look in a run's answers, each with the place on the page that shows it."""

from collections.abc import Iterator
from itertools import pairwise
from typing import get_args

import numpy as np

from ppe_lora.evaluation.calibration import COVERAGE
from ppe_lora.evaluation.metrics import collapse_warnings
from ppe_lora.evaluation.selection import format_rate, selected_by
from ppe_lora.recipe.schema import ReadOut
from ppe_lora.report.findings import Finding
from ppe_lora.report.page import Words
from ppe_lora.report.run_analysis import Analysis

_FEW_ROWS = 100
_FAR_OFF = 0.05
"""How far the coverage must be off, beside being surely off."""


def find_in_run(analysis: Analysis) -> list[Finding]:
    """Everything that deserves a look, the gravest first; empty when all is well."""
    return [
        *_format(analysis),
        *_keys(analysis),
        *_slices(analysis),
        *_read_outs(analysis),
        *_doubt(analysis),
        *_epochs(analysis),
        *_rows(analysis),
    ]


def _format(analysis: Analysis) -> Iterator[Finding]:
    gate, metrics = analysis.run.recipe.evaluate.gate, analysis.run.metrics
    if format_rate(metrics) < gate:
        rates = (
            f"json_valid_rate {metrics['json_valid_rate']:.3f}, schema_valid_rate {metrics['schema_valid_rate']:.3f}"
        )
        yield Finding(
            Words(
                f"On the test rows the format is below the gate of {gate:g}: {rates}.",
                f"テストデータで出力形式が基準 {gate:g} を下回っています: {rates}。",
            ),
            "worst",
        )
    elif analysis.rejected:
        yield Finding(
            Words(
                f"{analysis.rejected:,} answers were rejected; here they count as the worst possible ones.",
                f"{analysis.rejected:,} 件の回答が不正な形式です。ここでは最悪の誤差として数えます。",
            ),
            "worst",
        )
    accepted_N = ~np.isnan(analysis.answer_NK).any(axis=1)
    task = analysis.run.recipe.task
    for warning in collapse_warnings(analysis.answer_NK[accepted_N], analysis.target_NK[accepted_N], task):
        yield Finding(Words(f"{warning[0].upper()}{warning[1:]}.", f"回答の偏り: {warning}。"), "keys")


def _keys(analysis: Analysis) -> Iterator[Finding]:
    beside = {key: found.against for key, found in analysis.keys.items()}  # without those that are never wrong there
    unread = [key for key, by in beside.items() if "train_mean" in by and not by["train_mean"].surely_better]
    if unread:
        names = ", ".join(unread)
        yield Finding(
            Words(
                f"Not surely better than always answering the mean: {names}.",
                f"平均を答える場合より良いと言えないキー: {names}。",
            ),
            "keys",
        )
    behind = [key for key, by in beside.items() if "ridge" in by and by["ridge"].surely_worse]
    if behind:
        names = ", ".join(behind)
        yield Finding(
            Words(
                f"N-gram ridge regression reads these better: {names}. The words are there, but not learned.",
                f"n-gram リッジ回帰のほうが良いキー: {names}。手がかりは文中にありますが、モデルはまだ学んでいません。",
            ),
            "keys",
        )


def _slices(analysis: Analysis) -> Iterator[Finding]:
    worse = [one for one in analysis.slices if one.surely_worse]
    if worse:
        ratio = analysis.error.value
        told = [f"{one.field} {one.value} ({one.error.value / ratio:.1f}×)" for one in worse]
        shown = ", ".join(told[:4]) + (" …" if len(told) > 4 else "")
        yield Finding(
            Words(f"Read less well than the other rows: {shown}.", f"他の行より読み取れていない部分: {shown}。"),
            "slices",
        )


def _read_outs(analysis: Analysis) -> Iterator[Finding]:
    by_name = {bar.name: bar for bar in analysis.predictors}
    others = [by_name[name] for name in get_args(ReadOut) if name in by_name and name != analysis.read_out]
    better = [bar for bar in others if bar.against is not None and bar.against.surely_worse]
    if better:
        other = min(better, key=lambda bar: bar.error.value)
        yield Finding(
            Words(
                f"The other read-out is better: evaluate.read_out={other.name} would have less error.",
                f"別の読み出し(evaluate.read_out={other.name})のほうが誤差が小さくなります。",
            ),
            "baselines",
        )


def _doubt(analysis: Analysis) -> Iterator[Finding]:
    if analysis.doubt is None:
        return
    covered = analysis.doubt.covered
    if abs(covered.value - COVERAGE) > _FAR_OFF and not covered.low <= COVERAGE <= covered.high:
        share = f"{100 * covered.value:.0f} %"
        how = Words("too narrow", "狭すぎ") if covered.value < COVERAGE else Words("too wide", "広すぎ")
        yield Finding(
            Words(
                f"The 80 % intervals hold {share} of the targets: they are {how.en}.",
                f"80 % 区間に入る目標値は {share} で、区間が{how.ja}ます。",
            ),
            "calibration",
        )


def _epochs(analysis: Analysis) -> Iterator[Finding]:
    name = selected_by(analysis.read_out)
    epochs = {epoch: found for epoch, found in sorted(analysis.run.epochs.items()) if name in found}
    numbers = list(epochs)
    parted = [
        later
        for earlier, later in pairwise(numbers)
        if epochs[later]["valid_loss"] < epochs[earlier]["valid_loss"] and epochs[later][name] > epochs[earlier][name]
    ]
    if parted:
        told = ", ".join(map(str, parted))
        yield Finding(
            Words(
                f"Token loss fell while the true error rose in epoch {told}.",
                f"エポック {told} で、トークン損失が下がったのに真の誤差は上がりました。",
            ),
            "epochs",
        )
    if len(numbers) > 1 and analysis.run.run["selected_epoch"] == numbers[-1]:
        yield Finding(
            Words(
                "The last epoch is the best one: longer training may well be better.",
                "最後のエポックが最良でした。学習を続けるとさらに良くなる可能性があります。",
            ),
            "epochs",
        )


def _rows(analysis: Analysis) -> Iterator[Finding]:
    rows = len(analysis.run.rows)
    if rows < _FEW_ROWS:
        yield Finding(
            Words(
                f"Only {rows} test rows: the intervals are wide, and what they miss is not seen.",
                f"テストデータは {rows} 件だけです。区間は広く、見えていない弱点があり得ます。",
            ),
            "data",
        )
    too_long = round(analysis.run.metrics.get("rows_too_long", 0))
    if too_long:
        yield Finding(
            Words(
                f"{too_long:,} test rows were too long for the model and are in no figure.",
                f"テストデータ {too_long:,} 件は長すぎるため、どの数値にも含まれていません。",
            ),
            "data",
        )
    if analysis.run.data.changed:
        names = ", ".join(analysis.run.data.changed)
        yield Finding(
            Words(f"Data files changed after they were made: {names}.", f"作成後に変更されたデータ: {names}。"), "data"
        )
