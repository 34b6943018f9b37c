"""What deserves a look in a run's answers, each with what to do about it and the place on the page that shows it.

Everything is about the answers of the read-out that is served, unless its words name another.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import get_args

import numpy as np

from ppe_lora.evaluation.calibration import COVERAGE
from ppe_lora.evaluation.intervals import Interval
from ppe_lora.evaluation.loss_course import read_loss_course
from ppe_lora.evaluation.metrics import flat_keys, rounded_answers
from ppe_lora.evaluation.selection import format_rate, selected_by
from ppe_lora.recipe.schema import ReadOut
from ppe_lora.report.findings import Finding
from ppe_lora.report.page import Words
from ppe_lora.report.run_analysis import Analysis
from ppe_lora.report.run_words import READ_OUTS, weak_read_outs

_FEW_ROWS = 100
_FAR_OFF = 0.05
"""How far the coverage must be off, beside being surely off."""


def find_in_run(analysis: Analysis) -> list[Finding]:
    """Everything that deserves a look, the gravest first; empty when all is well."""
    return [
        *_divergence(analysis),
        *_weights(analysis),
        *_format(analysis),
        *_collapse(analysis),
        *_keys(analysis),
        *_slices(analysis),
        *_read_outs(analysis),
        *_doubt(analysis),
        *_epochs(analysis),
        *_rows(analysis),
    ]


def _divergence(analysis: Analysis) -> Iterator[Finding]:
    course, fact = read_loss_course(analysis.run.path / "train_log.csv"), analysis.run.run.get("diverged")
    if not fact and not (course and course.diverged):
        return
    told = fact or f"the training loss was {course.story if course else ''}"
    yield Finding(
        Words(f"Training has diverged: {told}.", f"学習が発散しています: {told}。"),
        Words(
            "Lower train.learning_rate and train again with `--fresh`, whatever stands below about more epochs.",
            "train.learning_rate を下げ、`--fresh` を付けて学習し直してください。以下にエポックを増やす提案があっても、"
            "こちらが優先です。",
        ),
        "epochs",
    )


def _weights(analysis: Analysis) -> Iterator[Finding]:
    if weak := weak_read_outs(analysis):
        en, ja = (", ".join(names) for names in zip(*(READ_OUTS[name] for name in weak), strict=True))
        yield Finding(
            Words(
                f"Served is {analysis.read_out}; not surely better than always answering the mean: {en}.",
                f"配信するのは {analysis.read_out} です。平均を答える場合より確かに良いとは言えないもの: {ja}。",
            ),
            Words(
                "Serve this run with `ppe-lora serve`, and do not read its weights by those means; more epochs or "
                "rows, or train.objective.raft, may mend them.",
                "`ppe-lora serve` で配信し、重みをそれらの方法で読まないでください。"
                "エポックやデータ、train.objective.raft を増やすと改善することがあります。",
            ),
            "baselines",
        )


def _format(analysis: Analysis) -> Iterator[Finding]:
    gate, metrics = analysis.run.recipe.evaluate.gate, analysis.run.metrics
    if format_rate(metrics) < gate:
        rates = (
            f"json_valid_rate {metrics['json_valid_rate']:.3f}, schema_valid_rate {metrics['schema_valid_rate']:.3f}"
        )
        yield Finding(
            Words(
                f"On the test rows the format of the greedy text is below the gate of {gate:g}: {rates}.",
                f"テストデータで、貪欲デコードの文字列の形式が基準 {gate:g} を下回っています: {rates}。",
            ),
            Words(
                "Raise train.epochs; until then serve it with `ppe-lora serve`, which forces the format, or with the "
                "grammar that the exports for engines bring.",
                "train.epochs を増やしてください。それまでは形式を強制する `ppe-lora serve` か、"
                "エンジン用エクスポートの文法を使って配信してください。",
            ),
            "worst",
        )
    elif analysis.rejected:
        yield Finding(
            Words(
                f"{analysis.rejected:,} answers were rejected; here they count as the worst possible ones.",
                f"{analysis.rejected:,} 件の回答が不正な形式です。ここでは最悪の誤差として数えます。",
            ),
            Words(
                "Serve it with `ppe-lora serve`, which forces the format, or set another evaluate.read_out.",
                "形式を強制する `ppe-lora serve` で配信するか、evaluate.read_out を変えてください。",
            ),
            "worst",
        )


def _collapse(analysis: Analysis) -> Iterator[Finding]:
    accepted_N, task = ~np.isnan(analysis.answer_NK).any(axis=1), analysis.run.recipe.task
    answer_NK, target_NK = analysis.answer_NK[accepted_N], analysis.target_NK[accepted_N]
    if flat := flat_keys(answer_NK, target_NK, task):
        names = ", ".join(flat)
        yield Finding(
            Words(
                f"Answers hardly vary between requests for {names}: collapsed to one value.",
                f"回答が依頼文によらずほぼ一定のキー: {names}。",
            ),
            Words(
                "See whether the requests speak of it (`ppe-lora data stats`); if they do, raise train.epochs.",
                "依頼文に手がかりがあるか `ppe-lora data stats` で確認し、あれば train.epochs を上げてください。",
            ),
            "keys",
        )
    if rounded := rounded_answers(answer_NK, target_NK, task):
        share, wanted, unit = f"{rounded.share:.0%}", f"{rounded.target_share:.0%}", f"{rounded.unit:g}"
        yield Finding(
            Words(
                f"{share} of the answered scores are multiples of {unit} (targets: {wanted}).",
                f"回答の {share} が {unit} の倍数です(目標値では {wanted})。",
            ),
            Words(
                "Serve a mean of the distribution (evaluate.read_out=posterior_mean or calibrated), or give "
                "train.objective.raft or crps a weight.",
                "分布の平均(evaluate.read_out=posterior_mean または calibrated)を配信するか、"
                "train.objective.raft か crps に重みを付けてください。",
            ),
            "keys",
        )


def _keys(analysis: Analysis) -> Iterator[Finding]:
    beside = {key: found.against for key, found in analysis.keys.items()}
    unread = [key for key, by in beside.items() if not by["train_mean"].surely_better and by["train_mean"].ratio]
    if unread:
        names = ", ".join(unread)
        yield Finding(
            Words(
                f"Not surely better than always answering the mean: {names}.",
                f"平均を答える場合より良いと言えないキー: {names}。",
            ),
            Words(
                "Add training rows whose words speak of it (`ppe-lora data stats` shows how much they say), or leave "
                "the key out of task.keys.",
                "それに触れる学習データを増やす(手がかりの量は `ppe-lora data stats`)か、"
                "task.keys から外してください。",
            ),
            "keys",
        )
    behind = [key for key, by in beside.items() if by["ridge"].surely_worse and by["ridge"].ratio]
    if behind:
        names = ", ".join(behind)
        yield Finding(
            Words(
                f"N-gram ridge regression reads these better: {names}. The words are there, but not learned.",
                f"n-gram リッジ回帰のほうが良いキー: {names}。手がかりは文中にありますが、モデルはまだ学んでいません。",
            ),
            _step_to_learn(analysis),
            "keys",
        )


def _step_to_learn(analysis: Analysis) -> Words:
    """The next thing to try where the words say more than the model reads: the first that this recipe has not."""
    recipe = analysis.run.recipe
    if analysis.read_out != "calibrated" and analysis.doubt is not None:
        settings = "evaluate.read_out=calibrated"
        again = "ppe-lora evaluate"
    elif not recipe.evaluate.head and analysis.doubt is not None:
        settings, again = "evaluate.head=true", "ppe-lora evaluate"
    elif not recipe.train.objective.reads_numbers:
        settings, again = "train.objective.raft=1", "ppe-lora run"
    else:
        settings, again = f"train.epochs={2 * recipe.train.epochs}", "ppe-lora run"
    return Words(
        f"Try {settings} (`{again}` with it, and a name of its own where it trains).",
        f"{settings} を試してください(`{again}`。学習し直す場合は別の name で)。",
    )


def _slices(analysis: Analysis) -> Iterator[Finding]:
    worse = [one for one in analysis.slices if one.surely_worse]
    if worse:
        ratio = analysis.error.value
        told = [f"{one.field} {one.value} ({one.error.value / ratio:.1f}×)" for one in worse]
        shown = ", ".join(told[:4]) + (" …" if len(told) > 4 else "")
        yield Finding(
            Words(f"Read less well than the other rows: {shown}.", f"他の行より読み取れていない部分: {shown}。"),
            Words(
                "Add training rows of that kind; the worst cases show what goes wrong there.",
                "その種の学習データを増やしてください。何が起きているかは最悪の例で確認できます。",
            ),
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
                f"Another read-out than the served {analysis.read_out} has less error: {other.name}.",
                f"配信する {analysis.read_out} より誤差の小さい読み出しがあります: {other.name}。",
            ),
            Words(
                f"Set evaluate.read_out={other.name}, then `ppe-lora evaluate` and `ppe-lora export`.",
                f"evaluate.read_out={other.name} とし、`ppe-lora evaluate` と `ppe-lora export` を実行してください。",
            ),
            "baselines",
        )


def _doubt(analysis: Analysis) -> Iterator[Finding]:
    if analysis.doubt is None:
        return
    covered = {key: inside for key, (inside, _) in analysis.doubt.by_key.items() if _surely_off(inside)}
    if _surely_off(analysis.doubt.covered):
        covered = {"": analysis.doubt.covered, **covered}
    for narrow, en, ja in ((True, "too narrow", "狭すぎ"), (False, "too wide", "広すぎ")):
        told = [(key, f"{100 * inside.value:.0f} %") for key, inside in covered.items() if _is_narrow(inside) == narrow]
        if told:
            of = ", ".join(f"{share} for {key}" if key else f"{share} for all" for key, share in told)
            of_ja = "、".join(f"{key or '全体'} {share}" for key, share in told)
            yield Finding(
                Words(
                    f"The 80 % intervals are surely {en}; they hold this share of the targets: {of}.",
                    f"80 % 区間は確かに{ja}ます。区間に入る目標値の割合: {of_ja}。",
                ),
                _step_to_cover(analysis, narrow),
                "calibration",
            )


def _surely_off(covered: Interval) -> bool:
    return abs(covered.value - COVERAGE) > _FAR_OFF and not covered.low <= COVERAGE <= covered.high


def _is_narrow(covered: Interval) -> bool:
    return covered.value < COVERAGE


def _step_to_cover(analysis: Analysis, narrow: bool) -> Words:
    doubt = analysis.doubt
    if doubt is not None and not doubt.calibrated:
        return Words(
            "Run `ppe-lora evaluate`, which fits their width on at least 20 validation rows.",
            "検証データ 20 件以上で幅を合わせる `ppe-lora evaluate` を実行してください。",
        )
    less_en, less_ja = ("less", "低く") if narrow else ("more", "高く")
    return Words(
        f"Read low and high of these scores as {less_en} than 80 %: one width, fitted on validation rows, serves all "
        "keys. More validation rows, or crps in train.objective, bring them nearer.",
        f"これらのスコアの low と high は 80 % より{less_ja}見てください(検証データで合わせた1つの幅を全キーに使用)。"
        "検証データを増やすか train.objective.crps で改善します。",
    )


def _epochs(analysis: Analysis) -> Iterator[Finding]:
    name, selected = selected_by(analysis.read_out), analysis.run.run["selected_epoch"]
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
                f"Token loss fell while {name}, which selects, rose in epoch {told}.",
                f"エポック {told} で、トークン損失が下がったのに、選択に使う {name} は上がりました。",
            ),
            Words(
                f"Nothing to do: epoch {selected} was selected by {name}. Do not select by valid/loss.",
                f"対応は不要です(エポック {selected} は {name} で選択)。valid/loss で選ばないでください。",
            ),
            "epochs",
        )
    if len(numbers) > 1 and selected == numbers[-1]:
        yield Finding(
            Words(
                "The last epoch is the best one: longer training may well be better.",
                "最後のエポックが最良でした。学習を続けるとさらに良くなる可能性があります。",
            ),
            Words(
                f"Train again under another name with train.epochs={2 * analysis.run.recipe.train.epochs}.",
                f"別の name で train.epochs={2 * analysis.run.recipe.train.epochs} として学習してください。",
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
            Words(
                f"Raise data.split.test or add rows until {_FEW_ROWS} or more are test rows.",
                f"テストデータが {_FEW_ROWS} 件以上になるよう、data.split.test かデータの件数を増やしてください。",
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
            Words(
                "Raise student.max_tokens, or expect such requests to be refused when served.",
                "student.max_tokens を上げてください。上げない場合、そのような依頼文は配信時に拒否されます。",
            ),
            "data",
        )
    if analysis.run.data.changed:
        names = ", ".join(analysis.run.data.changed)
        yield Finding(
            Words(f"Data files changed after they were made: {names}.", f"作成後に変更されたデータ: {names}。"),
            Words(
                "Put them back, or build the data set again (`ppe-lora data build`) and train on it.",
                "元に戻すか、`ppe-lora data build` で作り直して学習してください。",
            ),
            "data",
        )
