"""`data_report.html`: what a data set looks like, for a person to judge before a student learns from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppe_lora.artifacts import write_text
from ppe_lora.corpus.description import DataSet, Description
from ppe_lora.corpus.filters import Rejection
from ppe_lora.recipe.schema import GenerateSource, Recipe
from ppe_lora.report.figures import key_figure, length_figure, pairs_figure
from ppe_lora.report.findings import find_all
from ppe_lora.report.page import Words, render_page

FILE_NAME = "data_report.html"
_LANGUAGES = {"en": Words("English", "英語"), "ja": Words("Japanese", "日本語")}
_FIELDS = {
    "language": Words("Language", "言語"),
    "style": Words("Style", "文体"),
    "sampler": Words("Sampler", "サンプラー"),
}
_UNITS = {"characters": Words("characters", "文字数"), "tokens": Words("tokens", "トークン数")}
_SHOWN_AROUND = 120
"""Characters of a rejected request shown before and after its evidence."""


def write_data_page(
    folder: Path,
    recipe: Recipe,
    data: DataSet,
    stats: Mapping[str, Any],
    described: Description,
    token_note: str | None = None,
) -> str:
    """Write the page into the data set's folder. Equal data make equal pages.

    Args:
        folder: Where `data_report.html` goes.
        recipe: Names the limits and settings that the page shows.
        data: The data set.
        stats: The content of `stats.json`.
        described: Its aggregates.
        token_note: Why lengths in tokens are missing, if they are.

    Returns:
        The verdict: one line for the console.
    """
    findings = find_all(recipe, data, stats, described)
    kept = sum(stats["counts"]["split"].values())
    left_out = sum(data.manifest.get("dropped", {}).values())
    verdict = _verdict(described.asked, stats["counts"]["split"], left_out, len(findings))
    html = render_page(
        "data.html.j2",
        _figures(recipe, described),
        data=data,
        stats=stats,
        described=described,
        kept=kept,
        kept_fields={field: _over_splits(stats["counts"][field], asked) for field, asked in described.fields.items()},
        verdict=verdict,
        findings=findings,
        quantiles=list(next(iter(next(iter(stats["keys"].values())).values()))["quantiles"]),
        group=recipe.data.split.group,
        task=recipe.task,
        token_note=token_note,
        languages=_LANGUAGES,
        field_names=_FIELDS,
        units=_UNITS,
        evidence_in=_evidence_in,
        made=_made(recipe, data),
    )
    write_text(folder / FILE_NAME, html)
    return verdict.en


def _figures(recipe: Recipe, described: Description) -> dict[str, Any]:
    figures = {f"key-{key}": key_figure(histogram) for key, histogram in described.keys.items()}
    if described.pairs:
        figures["pairs"] = pairs_figure(described.pairs, recipe.task.keys, described.pair_edges)
    filtered = isinstance(recipe.data.source, GenerateSource)
    allowed = {str(language): limits for language, limits in recipe.data.filters.length.items()} if filtered else {}
    for language, lengths in described.characters.items():
        figures[f"characters-{language}"] = length_figure(lengths, allowed.get(language, ()))
    for language, lengths in described.tokens.items():
        figures[f"tokens-{language}"] = length_figure(lengths, [recipe.student.max_tokens])
    return figures


def _verdict(asked: int, rows: Mapping[str, int], left_out: int, findings: int) -> Words:
    kept = sum(rows.values())
    share = f"{100 * kept / asked:.1f} %"
    splits = ", ".join(f"{count:,} {split}" for split, count in rows.items())
    more = Words(f" {left_out:,} more were left out without fault.", f"ほかに {left_out:,} 件は対象外です。")
    look = Words(
        f"{findings} thing{'s' * (findings > 1)} to look at." if findings else "Nothing suspicious.",
        f"確認すべき点が {findings} 件あります。" if findings else "不審な点はありません。",
    )
    return Words(
        f"{kept:,} of {asked:,} candidates kept ({share}): {splits}.{more.en * bool(left_out)} {look.en}",
        f"候補 {asked:,} 件のうち {kept:,} 件を採用 ({share}): {splits}。{more.ja * bool(left_out)}{look.ja}",
    )


def _over_splits(counts: Mapping[str, Mapping[str, int]], values: Mapping[str, int]) -> dict[str, int]:
    return {value: sum(by_value.get(value, 0) for by_value in counts.values()) for value in values}


def _evidence_in(rejection: Rejection) -> tuple[str, str, str] | None:
    """The request before, at and after the evidence, if the evidence is a part of the request."""
    request, evidence = rejection.row.request, rejection.evidence
    start = request.lower().find(evidence.lower())
    end = start + len(evidence)
    if start < 0 or not evidence:
        return None
    before, after = request[:start], request[end:]
    if len(before) > _SHOWN_AROUND:
        before = "…" + before[-_SHOWN_AROUND:]
    if len(after) > _SHOWN_AROUND:
        after = after[:_SHOWN_AROUND] + "…"
    return before, request[start:end], after


def _noise_floor(relabel: Mapping[str, Any] | None) -> str | None:
    if relabel is None:
        return None
    unread = f", {relabel['unread']:,} unread" if relabel["unread"] else ""
    return f"mse_norm {relabel['mse_norm']:.4f}: {relabel['model']} reads the kept texts back{unread}"


def _made(recipe: Recipe, data: DataSet) -> dict[str, str]:
    manifest = data.manifest
    inputs = manifest.get("inputs", {})
    teacher = inputs.get("teacher")
    dropped = {reason: count for reason, count in manifest.get("dropped", {}).items() if count}
    made = {
        "dataset_version": manifest.get("dataset_version"),
        "source": recipe.data.source.kind,
        "teacher": f"{teacher['name']} {teacher['version']}" if teacher else None,
        "noise floor": _noise_floor(manifest.get("relabel")),
        "seed": inputs.get("seed"),
        "left out": ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or None,
        "split": ", ".join(f"{name} {value}" for name, value in recipe.data.split if value not in ({}, None)),
        "student": recipe.student.model,
        "git_revision": manifest.get("git_revision"),
    }
    return {name: str(value) for name, value in made.items() if value is not None}
