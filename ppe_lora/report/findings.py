"""What deserves a look in a data set, each with what to do about it and the place on the page that shows it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppe_lora.corpus.description import DataSet, Description
from ppe_lora.recipe.schema import ImportSource, Recipe
from ppe_lora.report.page import Words

_REJECTED = 0.3
_FEW_ROWS = 100
_BENT = 0.05
_OTHER_MIX = 0.1
_SURE = 0.001
_SILENT = 0.05


class Finding(NamedTuple):
    """Something that deserves a look."""

    words: Words
    deed: Words
    """What to do about it."""
    section: str
    """Id of the section that shows it."""


def find_all(recipe: Recipe, data: DataSet, stats: Mapping[str, Any], described: Description) -> list[Finding]:
    """Everything that deserves a look, the gravest first; empty when all is well.

    Differences between distributions count when they are large (total variation) and no chance (chi-squared,
    p < 0.001).
    """
    return [
        *_files(recipe, data),
        *_rejects(described),
        *_splits(recipe, data, stats, described),
        *_bent(described, stats),
        *_texts(recipe, described),
        *_narrow(recipe, stats),
    ]


def _files(recipe: Recipe, data: DataSet) -> Iterator[Finding]:
    if data.changed:
        names = ", ".join(data.changed)
        yield Finding(
            Words(
                f"Changed after the data set was made: {names}. Its manifest no longer describes it.",
                f"作成後に変更されたファイル: {names}。manifest.json の内容と一致しません。",
            ),
            Words(
                "Put them back, or make the data set again with `ppe-lora data build`.",
                "元に戻すか、`ppe-lora data build` で作り直してください。",
            ),
            "made",
        )
    made_with = data.manifest.get("inputs", {}).get("data", {})
    now = recipe.data.model_dump(mode="json", include={"filters", "split"})
    if any(name in made_with and made_with[name] != now[name] for name in now):
        yield Finding(
            Words(
                "The recipe now has other filter or split settings than this data set was made with.",
                "レシピのフィルタまたは分割の設定が、このデータの作成時と異なります。",
            ),
            Words("`ppe-lora data build` makes it anew.", "`ppe-lora data build` で作り直せます。"),
            "made",
        )


def _rejects(described: Description) -> Iterator[Finding]:
    rejected = sum(rule.rows for rule in described.rules)
    if described.asked and rejected / described.asked > _REJECTED:
        share, first = f"{100 * rejected / described.asked:.0f} %", described.rules[0]
        yield Finding(
            Words(
                f"{share} of the candidates were rejected, most often by the rule “{first.name}” ({first.rows:,}).",
                f"候補の {share} が除外されました。最も多い規則は「{first.name}」({first.rows:,} 件)です。",
            ),
            Words(
                "Read its examples: change the teacher's prompt where they are bad, the filter where they are good.",
                "例を確認し、悪い例なら教師のプロンプトを、良い例ならフィルタの設定を変えてください。",
            ),
            "rejects",
        )


def _splits(recipe: Recipe, data: DataSet, stats: Mapping[str, Any], described: Description) -> Iterator[Finding]:
    small = {split: len(rows) for split, rows in data.by_split.items() if len(rows) < _FEW_ROWS}
    if small:
        names = ", ".join(f"{split} ({count})" for split, count in small.items())
        yield Finding(
            Words(
                f"Few rows in {names}: differences between models smaller than a few percent will be chance.",
                f"{names} の件数が少なく、モデル間の数パーセントの差は偶然と区別できません。",
            ),
            Words(
                f"Add rows, or raise data.split, until each has {_FEW_ROWS} or more.",
                f"各分割が {_FEW_ROWS} 件以上になるよう、データか data.split を増やしてください。",
            ),
            "balance",
        )
    official = isinstance(recipe.data.source, ImportSource) and recipe.data.source.split is not None
    if described.near.across:
        why = (
            Words("the source's own split is kept", "元データの分割のままです")
            if official
            else Words("they should share one", "同じ分割に入るべきです")
        )
        yield Finding(
            Words(
                f"{described.near.across:,} pairs of requests at least {recipe.data.split.group:g} alike lie in "
                f"different splits ({why.en}): valid and test are partly known to the student.",
                f"類似度 {recipe.data.split.group:g} 以上の依頼文 {described.near.across:,} 組が別々の分割にあります"
                f"({why.ja})。検証・テストの一部が学習済みになります。",
            ),
            Words(
                "Leave out data.source.split, so that alike requests stay together, or read the errors as too small.",
                "data.source.split を外して類似の依頼文を同じ分割にするか、誤差は小さめに出ると考えてください。",
            )
            if official
            else Words(
                "Make the data set again with `ppe-lora data build`.", "`ppe-lora data build` で作り直してください。"
            ),
            "near",
        )
    other = [
        f"{split}: {name}"
        for name, by_split in _mixes(stats, described)
        for split in list(by_split)[1:]
        if _differs(by_split[split], next(iter(by_split.values())), _OTHER_MIX)
    ]
    if other:
        yield Finding(
            Words(
                f"Another mix than in the training rows: {'; '.join(other)}.",
                f"学習データと構成が異なります: {'; '.join(other)}。",
            ),
            Words(
                "Split the rows anew where they are to be alike; else report errors by slice.",
                "同じ構成にすべきなら分割し直し、そうでなければ区分別の誤差で判断してください。",
            ),
            "balance",
        )


def _mixes(stats: Mapping[str, Any], described: Description) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """Name and counts by split of every field and key."""
    for field, asked in described.fields.items():
        counts = stats["counts"][field]
        yield field, {split: [counts[split].get(value, 0) for value in asked] for split in counts}
    for key, histogram in described.keys.items():
        yield key, histogram.splits


def _bent(described: Description, stats: Mapping[str, Any]) -> Iterator[Finding]:
    bent = [
        key
        for key, h in described.keys.items()
        if _differs(h.kept, np.subtract(h.asked, h.kept).tolist(), 0) and _distance(h.kept, h.asked) > _BENT
    ]
    for field, asked in described.fields.items():
        kept = [sum(counts.get(value, 0) for counts in stats["counts"][field].values()) for value in asked]
        whole = list(asked.values())
        if _differs(kept, np.subtract(whole, kept).tolist(), 0) and _distance(kept, whole) > _BENT:
            bent.append(field)
    if bent:
        names = ", ".join(bent)
        yield Finding(
            Words(
                f"The filters bent the distribution of {names}: what was kept is not spread as what was asked for.",
                f"フィルタによって {names} の分布が変わりました。採用分は候補と異なる広がりです。",
            ),
            Words(
                "See below which rule rejects what is missing; ask for more of it, or loosen that rule.",
                "不足分をどの規則が除外したかを下で確認し、その候補を増やすか規則を緩めてください。",
            ),
            "balance" if bent[0] in described.fields else "keys",
        )


def _texts(recipe: Recipe, described: Description) -> Iterator[Finding]:
    if described.too_long:
        limit = recipe.student.max_tokens
        yield Finding(
            Words(
                f"{described.too_long:,} rows are longer than student.max_tokens ({limit}): training leaves them out.",
                f"{described.too_long:,} 件が student.max_tokens ({limit}) を超えるため、学習では使われません。",
            ),
            Words("Raise student.max_tokens.", "student.max_tokens を上げてください。"),
            "lengths",
        )
    if described.contradictions:
        yield Finding(
            Words(
                f"In {described.contradictions:,} rows the words contradict the numbers.",
                f"{described.contradictions:,} 件で、文章と数値が矛盾しています。",
            ),
            Words(
                "Read the oddest ones; correct or remove them, or filter by data.filters.relabel.",
                "特に不自然な行を確認して直すか除き、または data.filters.relabel で除外してください。",
            ),
            "odd",
        )
    silent = [key for key, share in described.explained.items() if share < _SILENT]
    if silent:
        names = ", ".join(silent)
        yield Finding(
            Words(
                f"To a simple reader the words say next to nothing about {names}.",
                f"簡単なモデルで読む限り、文章は {names} についてほとんど何も語っていません。",
            ),
            Words(
                "Read some rows: where a person cannot tell it from the words either, leave the key out of task.keys.",
                "行をいくつか読み、人にも判断できないなら task.keys から外してください。",
            ),
            "keys",
        )


def _narrow(recipe: Recipe, stats: Mapping[str, Any]) -> Iterator[Finding]:
    quantiles = {key: found["quantiles"] for key, found in next(iter(stats["keys"].values())).items()}
    narrow = [key for key, q in quantiles.items() if q["0.95"] - q["0.05"] < recipe.task.span / 3]
    if narrow:
        names = ", ".join(narrow)
        yield Finding(
            Words(
                f"Nine tenths of the training values lie within a third of the range: {names}.",
                f"学習値の9割が範囲の3分の1以内に集まっています: {names}。",
            ),
            Words(
                "Compare errors with those of always answering the mean.",
                "誤差は「常に平均を答える」場合と比べてください。",
            ),
            "keys",
        )


def _differs(left: Sequence[int], right: Sequence[int], distance: float) -> bool:
    """Whether two counts over the same bins differ by more than `distance` (total variation) and more than chance."""
    from scipy.stats import chi2_contingency

    table = np.array([left, right], dtype=float)
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or not table.sum(axis=1).all():
        return False
    return _distance(left, right) > distance and bool(chi2_contingency(table).pvalue < _SURE)


def _distance(left: Sequence[int], right: Sequence[int]) -> float:
    """Total variation between two counts over the same bins, 0 to 1; 0 where one of them is empty."""
    totals = sum(left), sum(right)
    if not all(totals):
        return 0.0
    return float(np.abs(np.divide(left, totals[0]) - np.divide(right, totals[1])).sum() / 2)
