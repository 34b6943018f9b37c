"""`summary.md`: the report of a run for a pull request: the verdict, the release checklist, the figures."""

from pathlib import Path
from typing import get_args

from ppe_lora.artifacts import read_json, write_text
from ppe_lora.evaluation.intervals import Paired
from ppe_lora.evaluation.metrics import renamed
from ppe_lora.evaluation.selection import metric_of
from ppe_lora.recipe.schema import ReadOut
from ppe_lora.report.checklist import Check
from ppe_lora.report.findings import Finding
from ppe_lora.report.page import Words
from ppe_lora.report.run_analysis import Analysis
from ppe_lora.report.run_cost import run_cost
from ppe_lora.report.run_figures import epoch_lines
from ppe_lora.report.run_words import LATENCY_NOTE, NAMES, READ_OUTS, change_between, error_figure, verdict

FILE_NAME = "summary.md"
_ERRORS = ("mse_norm", "mae_raw", "r2", "within_tolerance@5")
"""Metrics that every read-out has."""
_DISTRIBUTIONS = ("crps", "nll", "coverage@80", "coverage_calibrated@80")
_TEXT = ("mse_norm_strict", "json_valid_rate", "schema_valid_rate")


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
    times = (
        f"{ratio.value:.2f} times ({ratio.low:.2f} to {ratio.high:.2f}) that" if ratio else "there is no ratio to that"
    )
    counted = "; rejected answers count as the worst possible ones" if analysis.rejected else ""
    return (
        f"{verdict(analysis)[1].en} On {len(analysis.run.rows)} test rows mse_norm ({analysis.read_out}) is "
        f"{error_figure(analysis.error.value)}: {times} of always answering the train mean "
        f"({error_figure(trivial)}){counted}; "
        f"json_valid_rate of the greedy text {analysis.run.metrics['json_valid_rate']:.3f}."
    )


def _checklist(checks: list[Check]) -> list[str]:
    lines = ["## Release checklist", ""]
    for check in checks:
        box = "x" if check.status == "passed" else " "
        lines.append(f"- [{box}] {check.name.en}: **{check.status}**. {_line(check.evidence)}")
    return lines


def _findings(findings: list[Finding]) -> list[str]:
    return [f"- {_line(finding.words)} {_line(finding.deed)}" for finding in findings] + [""] * bool(findings)


def _error_table(analysis: Analysis) -> list[str]:
    lines = [
        "| answers on the test rows | mse_norm (95 % interval) | the served answers against it (95 % interval) |",
        "| --- | --- | --- |",
    ]
    for bar in analysis.predictors:
        figure = f"{error_figure(bar.error.value)} ({error_figure(bar.error.low)} to {error_figure(bar.error.high)})"
        against = "served" if bar.against is None else _against(bar.against)
        lines.append(f"| {NAMES[bar.name].en} | {figure} | {against} |")
    return lines


def _against(paired: Paired) -> str:
    return f"{change_between(paired.ratio).en} error" if paired.ratio else "it is never wrong"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _read_outs(analysis: Analysis) -> list[ReadOut]:
    """Those with metrics, the served one first."""
    others: tuple[ReadOut, ...] = get_args(ReadOut)
    ordered = [analysis.read_out, *(name for name in others if name != analysis.read_out)]
    return [name for name in ordered if metric_of(name) in analysis.run.metrics]


def _title(read_out: ReadOut, analysis: Analysis) -> str:
    return f"{READ_OUTS[read_out].en}{' (served)' if read_out == analysis.read_out else ''}"


def _metric(analysis: Analysis, name: str, read_out: ReadOut) -> str:
    return _number(analysis.run.metrics.get(name if read_out == "greedy" else renamed(name, read_out)))


def _metrics(analysis: Analysis) -> list[str]:
    """Errors by read-out, the served one first; then what is of the distributions, and of the greedy text."""
    read_outs, metrics, task = _read_outs(analysis), analysis.run.metrics, analysis.run.recipe.task
    head = [_title(name, analysis) for name in read_outs]
    lines = [_row(["metric on the test rows", *head]), _row(["---"] * (len(head) + 1))]
    lines += [_row([name, *(_metric(analysis, name, read_out) for read_out in read_outs)]) for name in _ERRORS]
    lines += ["", f"within_tolerance@5: off by at most {task.figure(0.05 * task.span)} (5 % of the range).", ""]
    if metrics["schema_valid_rate"] < 1:
        lines += [
            "The greedy text's errors are of its accepted answers; mse_norm_strict counts the others as worst.",
            "",
        ]
    lines += ["| metric | value | of |", "| --- | --- | --- |"]
    for names, of in ((_DISTRIBUTIONS, "the distributions"), (_TEXT, "the greedy text")):
        lines += [f"| {name} | {_number(metrics[name])} | {of} |" for name in names if name in metrics]
    lines += ["", _row(["mse_norm by key", *head, f"r2, {_title(analysis.read_out, analysis)}"])]
    lines.append(_row(["---"] * (len(head) + 2)))
    for key in analysis.keys:
        errors = [_metric(analysis, f"mse_norm/{key}", read_out) for read_out in read_outs]
        lines.append(_row([key, *errors, _metric(analysis, f"r2/{key}", analysis.read_out)]))
    return lines


def _epoch_table(analysis: Analysis) -> list[str]:
    epochs = analysis.run.epochs
    shown = [line for line in epoch_lines(analysis.read_out) if any(line.metric in one for one in epochs.values())]
    lines = [_row(["epoch, on the validation rows", *(line.words.en for line in shown), "json_valid_rate", ""])]
    lines.append(_row(["---"] * (len(shown) + 3)))
    for epoch, metrics in epochs.items():
        names = [*(line.metric for line in shown), "json_valid_rate"]
        selected = "selected" if epoch == analysis.run.run["selected_epoch"] else ""
        lines.append(_row([str(epoch), *(_number(metrics.get(name)) for name in names), selected]))
    return lines


def _latency(analysis: Analysis) -> list[str]:
    if "latency_ms_p50" not in analysis.run.metrics:
        return []
    p50, p95, p99 = (analysis.run.metrics[f"latency_ms_{name}"] for name in ("p50", "p95", "p99"))
    how = analysis.run.test["latency"]
    return [
        f"Latency, one request at a time ({how['requests']} after warm-up), {how['read_out']}: p50 {p50:.1f} ms, "
        f"p95 {p95:.1f} ms, p99 {p99:.1f} ms; {how['engine']}, {how['weights']}, on {how['device']}. {LATENCY_NOTE.en}"
    ]


def _line(words: Words) -> str:
    """English words as text inside a line of Markdown."""
    return words.en.replace("\n", " ")


def _quantized(run_dir: Path) -> list[str]:
    path = run_dir / "quantized" / "manifest.json"
    return [f"Quantized: {read_json(path)['verdict']}"] if path.is_file() else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 1 else f"{value:.1f}"
