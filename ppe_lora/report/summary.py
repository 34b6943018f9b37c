"""`summary.md`: the report of a run for a pull request: the verdict, the release checklist, the figures."""

from pathlib import Path

from ppe_lora.artifacts import read_json, write_text
from ppe_lora.report.checklist import Check
from ppe_lora.report.findings import Finding
from ppe_lora.report.page import Words
from ppe_lora.report.run_analysis import Analysis
from ppe_lora.report.run_cost import run_cost
from ppe_lora.report.run_words import NAMES, change_between, error_figure, verdict

FILE_NAME = "summary.md"
_SHOWN = (
    "mse_norm_strict",
    "mae_raw",
    "r2",
    "within_tolerance@5",
    "crps",
    "nll",
    "coverage@80",
    "coverage_calibrated@80",
    "json_valid_rate",
    "schema_valid_rate",
    "latency_ms_p50",
    "latency_ms_p95",
    "latency_ms_p99",
)


def write_summary(analysis: Analysis, findings: list[Finding], checks: list[Check]) -> None:
    """Write the summary into the run's folder."""
    run = analysis.run
    recipe, data = run.recipe, run.data.manifest
    export = run.merged["verdict"] if run.merged else "not exported."
    lines = [f"# {recipe.name}", "", headline(analysis), "", *_checklist(checks), "", *_findings(findings)]
    lines += [*_error_table(analysis), "", *_metrics(analysis), "", *_epoch_table(analysis), ""]
    lines += [
        f"Data: `{recipe.data.name}` version {data['dataset_version']}, {run.run['train_rows']} training and "
        f"{run.run['valid_rows']} validation rows; {len(run.rows)} test rows, decoded once.",
        f"Student: `{recipe.student.model}`, LoRA rank {recipe.student.lora.rank}, "
        f"{run.run['trainable_parameters']:,} trainable parameters, quantization {recipe.student.quantization}.",
        *_latency(analysis),
        f"Cost: {'; '.join(f'{name.en}: {value.en}' for name, value in run_cost(run))}.",
        f"Export: {export}",
        *_quantized(run.path),
        "",
        "To reproduce: the resolved recipe is `config.yaml`; packages and git revision are in `manifest.json`. "
        "Pictures, slices and the worst cases are in `report.html`.",
    ]
    write_text(run.path / FILE_NAME, "\n".join(lines) + "\n")


def headline(analysis: Analysis) -> str:
    """Whether it is better, by how much and how surely, in one line."""
    trivial = next(bar.error.value for bar in analysis.predictors if bar.name == "train_mean")
    ratio = analysis.against["train_mean"].ratio
    counted = "; rejected answers count as the worst possible ones" if analysis.rejected else ""
    return (
        f"{verdict(analysis)[1].en} On {len(analysis.run.rows)} test rows mse_norm ({analysis.read_out}) is "
        f"{error_figure(analysis.error.value)}: {ratio.value:.2f} times ({ratio.low:.2f} to {ratio.high:.2f}) that of "
        f"always answering the train mean ({error_figure(trivial)}){counted}; "
        f"json_valid_rate {analysis.run.metrics['json_valid_rate']:.3f}."
    )


def _checklist(checks: list[Check]) -> list[str]:
    lines = ["## Release checklist", ""]
    for check in checks:
        box = "x" if check.status == "passed" else " "
        lines.append(f"- [{box}] {check.name.en}: **{check.status}**. {_line(check.evidence)}")
    return lines


def _findings(findings: list[Finding]) -> list[str]:
    return [f"- {_line(finding.words)}" for finding in findings] + [""] * bool(findings)


def _error_table(analysis: Analysis) -> list[str]:
    lines = [
        "| answers on the test rows | mse_norm (95 % interval) | the served answers against it (95 % interval) |",
        "| --- | --- | --- |",
    ]
    for bar in analysis.predictors:
        figure = f"{error_figure(bar.error.value)} ({error_figure(bar.error.low)} to {error_figure(bar.error.high)})"
        against = "served" if bar.against is None else f"{change_between(bar.against.ratio).en} error"
        lines.append(f"| {NAMES[bar.name].en} | {figure} | {against} |")
    return lines


def _metrics(analysis: Analysis) -> list[str]:
    metrics = analysis.run.metrics
    lines = ["| metric | value |", "| --- | --- |"]
    lines += [f"| {name} | {_number(metrics[name])} |" for name in _SHOWN if name in metrics]
    lines += [
        "",
        "| key | mse_norm greedy | mse_norm posterior mean | r2 posterior mean |",
        "| --- | --- | --- | --- |",
    ]
    for key in analysis.keys:
        names = ("mse_norm", "mse_norm_posterior_mean", "r2_posterior_mean")
        lines.append(f"| {key} | {' | '.join(_number(metrics.get(f'{name}/{key}')) for name in names)} |")
    return lines


def _epoch_table(analysis: Analysis) -> list[str]:
    lines = [
        "| epoch | train/loss | valid/loss | mse_norm greedy | posterior mean | json_valid_rate | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for epoch, metrics in analysis.run.epochs.items():
        names = ("train_loss", "valid_loss", "mse_norm", "mse_norm_posterior_mean", "json_valid_rate")
        selected = "selected" if epoch == analysis.run.run["selected_epoch"] else ""
        shown = " | ".join(_number(metrics.get(name)) for name in names)
        lines.append(f"| {epoch} | {shown} | {selected} |")
    return lines


def _latency(analysis: Analysis) -> list[str]:
    if "latency_ms_p50" not in analysis.run.metrics:
        return []
    p50, p95, p99 = (analysis.run.metrics[f"latency_ms_{name}"] for name in ("p50", "p95", "p99"))
    how = analysis.run.test["latency"]
    return [
        f"Latency, one request at a time ({how['requests']} after warm-up), {how['read_out']}: p50 {p50:.1f} ms, "
        f"p95 {p95:.1f} ms, p99 {p99:.1f} ms; {how['engine']}, {how['weights']}, on {how['device']}."
    ]


def _line(words: Words) -> str:
    """English words as text inside a line of Markdown."""
    return words.en.replace("\n", " ")


def _quantized(run_dir: Path) -> list[str]:
    path = run_dir / "quantized" / "manifest.json"
    return [f"Quantized: {read_json(path)['verdict']}"] if path.is_file() else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 1 else f"{value:.1f}"
