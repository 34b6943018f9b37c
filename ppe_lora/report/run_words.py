"""Figures of a run in words, English and Japanese: the verdict, and the four answers that a reader wants first."""

import math
from typing import Literal, NamedTuple

from ppe_lora.evaluation.intervals import Interval, Paired
from ppe_lora.report.findings import Finding
from ppe_lora.report.page import Words
from ppe_lora.report.run_analysis import WITHOUT_HEAD, Analysis

NAMES = {
    "constant": Words("middle of the range, always", "常に範囲の中央を回答"),
    "train_mean": Words("train mean, always", "常に学習データの平均を回答"),
    "ridge": Words("ridge regression on character n-grams", "文字 n-gram のリッジ回帰"),
    "embeddings": Words("ridge regression on sentence embeddings", "文埋め込みのリッジ回帰"),
    "untuned": Words("base model untuned, greedy text", "未調整のベースモデル(貪欲デコードの文字列)"),
    "plain_sft": Words("plain SFT at this learning rate, greedy text", "同じ学習率の通常の SFT(貪欲デコードの文字列)"),
    "greedy": Words("this model, greedy text", "このモデル(貪欲デコードの文字列)"),
    "posterior_mean": Words("this model, posterior mean", "このモデル(分布の平均)"),
    "posterior_median": Words("this model, posterior median", "このモデル(分布の中央値)"),
    "calibrated": Words("this model, corrected on validation rows", "このモデル(検証データで補正)"),
    WITHOUT_HEAD: Words(
        "this model behind an engine, corrected without the head", "このモデル(エンジン経由、ヘッドなしで補正)"
    ),
}
READ_OUTS = {
    "greedy": Words("greedy text", "貪欲デコード"),
    "posterior_mean": Words("posterior mean", "事後平均"),
    "posterior_median": Words("posterior median", "事後中央値"),
    "calibrated": Words("corrected posterior mean", "補正した事後平均"),
    WITHOUT_HEAD: Words("correction without the head", "ヘッドなしの補正"),
}
LATENCY_NOTE = Words(
    "Latencies are of the adapter on its base model; of an exported run, `ppe-lora serve` loads the merged weights, "
    "which have no LoRA layers.",
    "レイテンシはベースモデルにアダプターを付けた状態の値です。`ppe-lora serve` はエクスポート済みなら、"
    "LoRA 層のない結合済みの重みを読み込みます。",
)
"""What `latency_ms` was measured on, wherever it is shown: not on what is served."""
_SHORT = {
    "constant": Words("the middle of the range", "範囲の中央"),
    "train_mean": Words("the train mean", "学習平均"),
    "ridge": Words("n-gram ridge regression", "n-gram リッジ回帰"),
    "embeddings": Words("embedding ridge regression", "埋め込みリッジ回帰"),
    "untuned": Words("the untuned base model", "未調整のベースモデル"),
    "plain_sft": Words("plain SFT at this learning rate", "同じ学習率の通常の SFT"),
}
Mark = Literal["good", "unsure", "bad"]


class Told(NamedTuple):
    """One line of an answer, with what it means for the model."""

    words: Words
    mark: Mark | None = None


class Card(NamedTuple):
    """One of the four questions, its answer in a few words, and the lines below it."""

    question: Words
    answer: Words
    lines: list[Told]


def mark_of(paired: Paired) -> Mark:
    """Whether we are surely better, surely worse, or neither."""
    return "good" if paired.surely_better else "bad" if paired.surely_worse else "unsure"


def error_figure(value: float) -> str:
    """An mse_norm as people compare it: three significant digits.

    Example:
        >>> error_figure(0.00653), error_figure(0.1)
        ('0.00653', '0.100')
    """
    return f"{value:#.3g}"


def change(ratio: float) -> Words:
    """A ratio of errors in words: `27 % less error`."""
    percent = f"{abs(100 * (ratio - 1)):.0f} %"
    if percent == "0 %":
        return Words("no less error", "誤差は同じ")
    return Words(f"{percent} {'less' if ratio < 1 else 'more'} error", f"誤差が {percent} {_side(ratio).ja}")


def change_between(ratio: Interval) -> Words:
    """An interval of ratios in words: `20 to 34 % less`, or `5 % less to 10 % more`."""
    if math.isnan(ratio.low) or math.isnan(ratio.high):
        return Words("less or more, for it is wrong on next to no row", "差不明(誤差のある行がほとんどない)")
    ends = sorted((ratio.low, ratio.high), key=lambda end: abs(end - 1))
    low, high = (abs(100 * (end - 1)) for end in ends)
    if high < 0.5:
        return Words("no more and no less", "差なし")
    if (ratio.low < 1) == (ratio.high < 1):
        side = _side(ratio.low if ratio.low < 1 else ratio.high)
        return Words(f"{low:.0f} to {high:.0f} % {side.en}", f"{low:.0f}〜{high:.0f} % {side.ja}")
    less, more = 100 * (1 - ratio.low), 100 * (ratio.high - 1)
    return Words(f"{less:.0f} % less to {more:.0f} % more", f"{less:.0f} % 少ない〜{more:.0f} % 多い")


def beside(paired: Paired, name: Words) -> Words:
    """The served answers against a predictor: `27 % less error than the train mean`."""
    if paired.ratio is None:
        return _never_wrong(paired, name)
    told = change(paired.ratio.value)
    return Words(f"{told.en} than {name.en}", f"{name.ja}比: {told.ja}")


def beside_between(paired: Paired, name: Words) -> Words:
    """The interval of `beside`: `20 to 34 % less error than the train mean`."""
    if paired.ratio is None:
        return _never_wrong(paired, name)
    told = change_between(paired.ratio)
    return Words(f"{told.en} error than {name.en}", f"{name.ja}より {told.ja}")


def _never_wrong(paired: Paired, name: Words) -> Words:
    """In words, for there is no ratio to an error of 0."""
    if paired.difference.value > 0:
        return Words(f"more error than {name.en}, which has none on these rows", f"{name.ja}(誤差 0)より多い")
    return Words(f"no error, and neither has {name.en}", f"{name.ja}と同じく誤差 0")


def verdict(analysis: Analysis) -> tuple[Mark, Words]:
    """What the page opens with, and whether it is good news: the served answers beside the baselines, and the weights
    without what is added to them, where those are no better than not reading."""
    mark, sentence = _served_verdict(analysis)
    alone = weights_alone(analysis)
    return (mark, sentence) if alone is None else (mark, Words(f"{sentence.en} {alone.en}", f"{sentence.ja}{alone.ja}"))


def weak_read_outs(analysis: Analysis) -> list[str]:
    """What the same weights answer, not served, and not surely better than always answering the train mean; none where
    what is served is no better either."""
    if not analysis.against["train_mean"].surely_better:
        return []
    return [name for name, paired in analysis.weights.items() if not paired.surely_better]


def weights_alone(analysis: Analysis) -> Words | None:
    """The errors of those `weak_read_outs` that have more error than the train mean; None where there are none."""
    bad = {name: analysis.weights[name] for name in weak_read_outs(analysis)}
    bad = {name: paired for name, paired in bad.items() if paired.difference.value > 0}
    if not bad:
        return None
    ratios = {name: f"{paired.ratio.value:.1f}" for name, paired in bad.items() if paired.ratio}
    en = ", ".join(f"{READ_OUTS[name].en} {ratio} times" for name, ratio in ratios.items())
    ja = "、".join(f"{READ_OUTS[name].ja} {ratio} 倍" for name, ratio in ratios.items())
    source = _source(analysis)
    return Words(
        f"That comes from {source.en}: without it these weights have more error than the train mean: {en} as much.",
        f"これは{source.ja}によるもので、それなしの重みの誤差は学習平均を上回ります(学習平均の{ja})。",
    )


def _source(analysis: Analysis) -> Words:
    """What makes the served answers of the weights."""
    if analysis.read_out == "calibrated" and analysis.run.calibration is not None:
        if analysis.run.calibration.uses_head:
            return Words("the head", "ヘッド")
        return Words("the correction on validation rows", "検証データでの補正")
    return Words(f"the read-out {analysis.read_out}", f"読み出し {analysis.read_out}")


def _served_verdict(analysis: Analysis) -> tuple[Mark, Words]:
    against = analysis.against
    marks = {name: mark_of(paired) for name, paired in against.items()}
    if all(mark == "good" for mark in marks.values()):
        shorts = [_SHORT[name] for name in marks]
        return "good", Words(
            f"Better than every baseline measured: {', '.join(short.en for short in shorts)}.",
            f"測定したすべてのベースラインを上回っています({'、'.join(short.ja for short in shorts)})。",
        )
    if marks["train_mean"] == "bad":
        return "bad", Words(
            "Worse than not reading the request: always answering the train mean has less error.",
            "依頼文を読まずに常に学習平均を答えるほうが誤差が小さく、モデルはそれに劣ります。",
        )
    if marks["train_mean"] == "unsure":
        return "bad", Words(
            "Not surely better than not reading the request: always answering the train mean may be as good.",
            "依頼文を読まずに常に学習平均を答える場合と、確かな差がありません。",
        )
    name = max((name for name in marks if marks[name] != "good"), key=lambda name: against[name].difference.value)
    short = _SHORT[name]
    if marks[name] == "bad":
        return "unsure", Words(
            f"Better than not reading the request, but worse than {short.en}.",
            f"依頼文を読まない場合よりは良いものの、{short.ja}に劣ります。",
        )
    return "unsure", Words(
        f"Better than not reading the request; against {short.en} nothing is sure.",
        f"依頼文を読まない場合より良く、{short.ja}との差は確かではありません。",
    )


def cards(analysis: Analysis, findings: list[Finding]) -> list[Card]:
    """Is it better, by how much, am I sure, where is it wrong?"""
    return [_better(analysis), _how_much(analysis), _sure(analysis), _where(analysis, findings)]


def _better(analysis: Analysis) -> Card:
    against = analysis.against
    good = [name for name, paired in against.items() if paired.surely_better]
    answer = Words("Yes", "はい")
    if "train_mean" not in good:
        worse = against["train_mean"].surely_worse
        answer = Words("No", "いいえ") if worse else Words("Not surely", "確かではない")
    elif len(good) < len(against):
        answer = Words("Partly", "部分的に")
    lines = [
        Told(Words(f"than {_SHORT[name].en}", f"{_SHORT[name].ja}より"), mark_of(paired))
        for name, paired in against.items()
    ]
    return Card(Words("Is it better?", "良くなったか"), answer, lines)


def _how_much(analysis: Analysis) -> Card:
    mean = analysis.against["train_mean"].ratio
    metrics, task = analysis.run.metrics, analysis.run.recipe.task
    name = "mae_raw" if analysis.read_out == "greedy" else f"mae_raw_{analysis.read_out}"
    lines = [
        Told(Words("than the train mean", "学習平均と比べて") if mean else Words("on these test rows", "このデータで")),
        Told(beside(analysis.against["ridge"], Words("n-gram ridge", "n-gram リッジ"))),
        Told(Words(*(f"mse_norm {error_figure(analysis.error.value)} ({analysis.read_out})",) * 2)),
    ]
    if name in metrics:
        off, low, high = f"{metrics[name]:.3g}", f"{task.low:g}", f"{task.high:g}"
        lines.append(
            Told(Words(f"off by {off} on average, from {low} to {high}", f"平均 {off} のずれ({low}〜{high} のスコア)"))
        )
    answer = change(mean.value) if mean else Words("the train mean is never wrong", "学習平均は誤差 0")
    return Card(Words("By how much?", "どれだけ"), answer, lines)


def _sure(analysis: Analysis) -> Card:
    against = analysis.against
    lines = []
    for name in ("train_mean", "ridge"):
        lines.append(Told(beside_between(against[name], _SHORT[name]), mark_of(against[name])))
    rows = f"{len(analysis.run.rows):,}"
    lines.append(Told(Words(f"95 % intervals over {rows} test rows", f"テスト {rows} 件での 95 % 区間")))
    unsure = [name for name, paired in against.items() if mark_of(paired) == "unsure"]
    answer = Words("Yes", "はい")
    if unsure:
        shorts = [_SHORT[name] for name in unsure]
        answer = Words(
            f"Not against {' and '.join(s.en for s in shorts)}", f"{'・'.join(s.ja for s in shorts)}とは不明"
        )
    return Card(Words("Am I sure?", "確実か"), answer, lines)


def _where(analysis: Analysis, findings: list[Finding]) -> Card:
    worst = sorted(analysis.keys, key=lambda key: -analysis.keys[key].error.value)[:2]
    told = ", ".join(worst)
    if not analysis.error.value:
        never = Words("nowhere on these rows", "このデータでは誤りなし")
        return Card(Words("Where is it wrong?", "どこが悪いか"), never, [])
    first = analysis.keys[worst[0]].error.value / analysis.error.value
    lines = [
        Told(Words(f"{first:.1f} times the average error in {worst[0]}", f"{worst[0]} の誤差は平均の {first:.1f} 倍"))
    ]
    if analysis.slices:
        one = max(analysis.slices, key=lambda one: one.error.low)
        more = 100 * (one.error.value / analysis.error.value - 1)
        lines.append(
            Told(
                Words(
                    f"{more:.0f} % above average: {one.field} {one.value}",
                    f"{one.field} {one.value}: 平均より {more:.0f} % 大",
                )
            )
        )
    if findings:
        count = len(findings)
        lines.append(
            Told(Words(f"{count} thing{'s' * (count > 1)} to look at, below", f"確認すべき点 {count} 件(下記)"))
        )
    return Card(Words("Where is it wrong?", "どこが悪いか"), Words(told, told), lines)


def _side(ratio: float) -> Words:
    return Words("less", "少ない") if ratio < 1 else Words("more", "多い")
