"""What a run cost: its training, and the language models that wrote and read its data."""

from typing import Any

import numpy as np

from ppe_lora.console import duration
from ppe_lora.recipe.schema import ImportSource
from ppe_lora.recipe.teachers import ScriptedTeacher
from ppe_lora.report.page import Words
from ppe_lora.report.run_folder import RunFolder

_DOING = {
    "writing": Words("teacher, writing the requests", "教師モデル(リクエスト作成)"),
    "reading back": Words("teacher, reading them back", "教師モデル(読み直し)"),
}


def run_cost(run: RunFolder) -> list[tuple[Words, Words]]:
    """What it took, each with its name: time and hours of the training, then requests, tokens and money of the data."""
    return [*_training(run), *_teacher(run)]


def _training(run: RunFolder) -> list[tuple[Words, Words]]:
    cost = []
    if run.epoch_seconds:
        seconds = float(np.mean(list(run.epoch_seconds.values())))
        cost.append((Words("training steps, one epoch", "学習ステップ(1エポック)"), _same(duration(seconds))))
        speed = f"{run.run['train_rows'] / seconds:.3g}"
        cost.append((Words("training rows/s", "学習速度(件/秒)"), _same(speed)))
    whole = Words("training, evaluation of the epochs included", "学習(各エポックの評価込み)")
    cost.append((whole, _same(duration(run.train_seconds))))
    on_gpu, threads = run.run["device"] != "cpu", run.run.get("threads")
    units = run.run["processes"] * (1 if on_gpu else threads or 0)
    if units:
        name = Words("of it, GPU-hours", "GPU 時間") if on_gpu else Words("of it, core-hours", "CPU コア時間")
        cost.append((name, _same(f"{units * run.train_seconds / 3600:.3g}")))
    cost.append((Words("trainable parameters", "学習パラメータ数"), _same(f"{run.run['trainable_parameters']:,}")))
    return cost


def _teacher(run: RunFolder) -> list[tuple[Words, Words]]:
    source = run.recipe.data.source
    if isinstance(source, ImportSource):
        return [(Words("teacher", "教師"), Words("none: the rows were imported", "なし(行は取り込んだもの)"))]
    if isinstance(source.teacher, ScriptedTeacher) and not run.recipe.data.reader:
        free = Words("no requests, tokens or money: it is a phrase book", "リクエスト・トークン・料金なし(定型文集)")
        return [(Words("teacher", "教師"), free)]
    spent: dict[str, dict[str, Any]] | None = run.data.manifest.get("spent")
    if spent is None:
        return [(Words("teacher", "教師"), Words("not recorded when the data was built", "データ作成時に記録なし"))]
    return [(_DOING[doing], _used(used)) for doing, used in spent.items()]


def _used(used: dict[str, Any]) -> Words:
    requests, prompt, completion = used["requests"], used["prompt_tokens"], used["completion_tokens"]
    money = f"{used['money']:,.4g}"
    return Words(
        f"{requests:,} requests, {prompt:,} prompt and {completion:,} completion tokens, "
        + (f"{money} by the recipe's prices" if used["money"] else "no money (the recipe states no prices)"),
        f"{requests:,} リクエスト、入力 {prompt:,}・出力 {completion:,} トークン、"
        + (f"料金 {money}(レシピの単価による)" if used["money"] else "料金なし(レシピに単価なし)"),
    )


def _same(figure: str) -> Words:
    return Words(figure, figure)
