"""The release checklist: what must hold before a model is shipped, each line decided from the files of its run."""

from typing import Literal, NamedTuple

from ppe_lora.corpus.build import data_content
from ppe_lora.corpus.leaks import find_key, find_number
from ppe_lora.corpus.similarity import normalized
from ppe_lora.evaluation.selection import format_rate
from ppe_lora.recipe.schema import GenerateSource
from ppe_lora.report.page import Words
from ppe_lora.report.run_analysis import Analysis
from ppe_lora.report.run_words import LATENCY_NOTE, NAMES, beside_between
from ppe_lora.tasks.scores import Answer

Status = Literal["passed", "failed", "not done"]
TRACKERS = ("wandb", "weave")


class Check(NamedTuple):
    """One line of the checklist."""

    name: Words
    status: Status
    evidence: Words
    """What the status was decided from."""


def checklist(analysis: Analysis) -> list[Check]:
    """All lines, in the order in which a release goes through them."""
    return [
        _fixed(analysis),
        _leaks(analysis),
        _format(analysis),
        _gate(analysis),
        _baselines(analysis),
        _latency(analysis),
        _tracked(analysis),
    ]


def _fixed(analysis: Analysis) -> Check:
    run = analysis.run
    inputs = run.data.manifest.get("inputs", {})
    version = run.data.manifest.get("dataset_version")
    faults = list(run.data.changed)
    if "data" in inputs:
        faults += ["data.* of the recipe"] * (inputs["data"] != data_content(run.recipe))
        faults += ["seed of the recipe"] * (inputs["seed"] != run.recipe.seed)
    faults += ["dataset_version of the training"] * (run.run["inputs"]["dataset_version"] != version)
    name = Words("Seed and distributions fixed", "シードと分布が固定されている")
    if faults:
        told = ", ".join(faults)
        return Check(name, "failed", Words(f"changed since: {told}", f"作成後に変更: {told}"))
    if "data" not in inputs:
        why = Words("the data set's manifest names no seed and no sampler", "manifest.json にシードと分布の記録がない")
        return Check(name, "not done", why)
    told = f"seed {run.recipe.seed}, dataset_version {version}"
    return Check(name, "passed", Words(told, told))


def _leaks(analysis: Analysis) -> Check:
    run, task = analysis.run, analysis.run.recipe.task
    learned = {normalized(row.request) for row in run.data.by_split["train"]}
    held = [row for split, rows in run.data.by_split.items() if split != "train" for row in rows]
    shared = sum(normalized(row.request) in learned for row in held)
    generated = isinstance(run.recipe.data.source, GenerateSource)
    texts = [row.request for row in run.data.kept] if generated else []
    named = sum(find_number(text) is not None or find_key(text, task) is not None for text in texts)
    told = Words(
        f"{shared} of {len(held):,} validation and test requests are training requests",
        f"検証・テスト {len(held):,} 件のうち学習データと同じ依頼文 {shared} 件",
    )
    if generated:
        told = Words(
            f"{told.en}; {named} of {len(texts):,} requests name a number or a key",
            f"{told.ja}。数値やキー名を含む依頼文 {len(texts):,} 件中 {named} 件",
        )
    name = Words("Leak check passed", "リークの検査に合格")
    return Check(name, "failed" if shared or named else "passed", told)


def _format(analysis: Analysis) -> Check:
    task, trained = analysis.run.recipe.task, analysis.run.run["inputs"]["recipe"]["task"]
    same = task.model_dump(mode="json") == trained
    targets = [row.target for row in analysis.run.rows]
    read = [task.parse(task.render(target)) for target in targets]
    wrong = sum(
        not isinstance(found, Answer) or list(found.values) != [target[key] for key in task.keys]
        for found, target in zip(read, targets, strict=True)
    )
    version = f"output_format_version {task.output_format_version}"
    told = Words(
        f"{version}; {len(read) - wrong:,} of {len(read):,} targets come back from their text unchanged"
        + ("" if same else "; the model was trained on another task section"),
        f"{version}。目標値 {len(read):,} 件中 {len(read) - wrong:,} 件が文字列から元の値に戻る"
        + ("" if same else "。学習時の task と異なる"),
    )
    return Check(
        Words("Output format fixed", "出力形式が固定されている"), "passed" if same and not wrong else "failed", told
    )


def _gate(analysis: Analysis) -> Check:
    metrics, gate = analysis.run.metrics, analysis.run.recipe.evaluate.gate
    told = f"json_valid_rate {metrics['json_valid_rate']:.4f}, schema_valid_rate {metrics['schema_valid_rate']:.4f}"
    return Check(
        Words("json_valid_rate above the gate", "json_valid_rate が基準以上"),
        "passed" if format_rate(metrics) >= gate else "failed",
        Words(f"{told}; the gate is {gate:g}", f"{told}。基準は {gate:g}"),
    )


def _baselines(analysis: Analysis) -> Check:
    told, missing = [], _not_measured(analysis)
    for name, paired in analysis.against.items():
        told.append(beside_between(paired, Words(NAMES[name].en, f"「{NAMES[name].ja}」")))
    return Check(
        Words("mse_norm better than every baseline measured", "mse_norm が測定したすべてのベースラインより良い"),
        "passed" if all(paired.surely_better for paired in analysis.against.values()) else "failed",
        Words(
            f"{analysis.read_out}: {'; '.join(one.en for one in told)} (95 % intervals){missing.en}",
            f"{analysis.read_out}: {'、'.join(one.ja for one in told)}(95 % 区間){missing.ja}",
        ),
    )


def _not_measured(analysis: Analysis) -> Words:
    """Baselines that only a command measures, and that command."""
    absent = [name for name in ("embeddings", "untuned", "plain_sft") if name not in analysis.against]
    if not absent:
        return Words("", "")
    option = " --models" if absent != ["embeddings"] else ""
    return Words(
        f"; not measured: {', '.join(NAMES[name].en for name in absent)}; `ppe-lora baselines RECIPE{option}`",
        f"。未測定: {'、'.join(NAMES[name].ja for name in absent)}(`ppe-lora baselines RECIPE{option}`)",
    )


def _latency(analysis: Analysis) -> Check:
    limit, p95 = analysis.run.recipe.evaluate.latency_limit_ms, analysis.run.metrics.get("latency_ms_p95")
    name = Words("Latency p95 within the recipe's limit", "レイテンシ p95 がレシピの上限以内")
    if p95 is None:
        return Check(
            name, "not done", Words("not measured (evaluate.latency_rows=0)", "未計測(evaluate.latency_rows=0)")
        )
    where = f"{analysis.run.test['latency']['device']}, {analysis.run.test['latency']['engine']}"
    if limit is None:
        return Check(
            name,
            "not done",
            Words(
                f"p95 {p95:.1f} ms on {where}; the recipe sets no limit (evaluate.latency_limit_ms). {LATENCY_NOTE.en}",
                f"p95 {p95:.1f} ms({where})。上限の設定なし(evaluate.latency_limit_ms)。{LATENCY_NOTE.ja}",
            ),
        )
    told = Words(
        f"p95 {p95:.1f} ms on {where}; the limit is {limit:g} ms. {LATENCY_NOTE.en}",
        f"p95 {p95:.1f} ms({where})。上限 {limit:g} ms。{LATENCY_NOTE.ja}",
    )
    return Check(name, "passed" if p95 <= limit else "failed", told)


def _tracked(analysis: Analysis) -> Check:
    tracked = analysis.run.tracked
    name = Words("Artifacts and traces recorded", "成果物とトレースの記録")
    failed = {tracker: problem for tracker, problem in tracked.items() if problem}
    if failed:
        told = "; ".join(f"{tracker}: {problem}" for tracker, problem in failed.items())
        return Check(name, "failed", Words(told, told))
    missing = [tracker for tracker in TRACKERS if tracker not in tracked]
    if missing:
        told = ", ".join(missing)
        return Check(name, "not done", Words(f"not tracked: {told}", f"記録なし: {told}"))
    told = ", ".join(tracked)
    return Check(name, "passed", Words(f"recorded: {told}", f"記録済み: {told}"))
