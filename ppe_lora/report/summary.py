"""`summary.md`: is it better than not reading the request, by how much, and how to reproduce it."""

from pathlib import Path
from typing import Any

from ppe_lora.artifacts import read_json, write_text
from ppe_lora.errors import RunError
from ppe_lora.evaluation.selection import metric_of
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import ReadOut

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
)


def write_summary(recipe: Recipe, data_dir: Path, run_dir: Path) -> str:
    """Write the summary of a run whose stages are complete.

    Returns:
        The verdict: one line for the console.

    Raises:
        RunError: A stage has not been run.
    """
    data, run, _, merged = (_manifest(folder) for folder in (data_dir, run_dir, run_dir / "test", run_dir / "merged"))
    metrics = read_json(run_dir / "test" / "eval_metrics.json")
    verdict = _verdict(metrics, recipe.evaluate.read_out)
    lines = [f"# {recipe.name}", "", verdict, "", *_test_table(recipe, metrics), "", *_epoch_table(run_dir, run), ""]
    lines += [
        f"Data: `{recipe.data.name}` version {data['dataset_version']}, {run['train_rows']} training and "
        f"{run['valid_rows']} validation rows; {metrics['rows']:.0f} test rows, decoded once.",
        f"Student: `{recipe.student.model}`, LoRA rank {recipe.student.lora.rank}, "
        f"{run['trainable_parameters']:,} trainable parameters, quantization {recipe.student.quantization}.",
        f"Export: {merged['verdict']}",
        *_quantized(run_dir),
        "",
        "To reproduce: the resolved recipe is `config.yaml`; packages and git revision are in `manifest.json`.",
    ]
    write_text(run_dir / "summary.md", "\n".join(lines) + "\n")
    return f"{verdict}\n{run_dir / 'summary.md'}"


def _verdict(metrics: dict[str, float], read_out: ReadOut) -> str:
    trivial, name = metrics["train_mean_mse_norm"], metric_of(read_out)
    if name not in metrics:
        return "On the test rows no answer was accepted."
    ratio = metrics[name] / trivial
    word = "better" if ratio < 1 else "worse"
    return (
        f"On {metrics['rows']:.0f} test rows mse_norm ({read_out}) is {metrics[name]:.4f}: {ratio:.2f} times that of "
        f"always answering the train mean ({trivial:.4f}), so {word} than not reading the request; "
        f"json_valid_rate {metrics['json_valid_rate']:.3f}."
    )


def _test_table(recipe: Recipe, metrics: dict[str, float]) -> list[str]:
    lines = ["| test rows | mse_norm |", "| --- | --- |"]
    lines += [
        f"| middle of the range, always | {metrics['constant_mse_norm']:.4f} |",
        f"| train mean, always | {metrics['train_mean_mse_norm']:.4f} |",
        f"| ridge regression on character n-grams, same training rows | {_number(metrics.get('ridge_mse_norm'))} |",
        f"| this model, greedy text | {_number(metrics.get('mse_norm'))} |",
        f"| this model, posterior mean | {_number(metrics.get(metric_of('posterior_mean')))} |",
        f"| this model, posterior mean, corrected on validation rows | {_number(metrics.get('mse_norm_calibrated'))} |",
    ]
    lines += ["", "| metric | value |", "| --- | --- |"]
    lines += [f"| {name} | {_number(metrics[name])} |" for name in _SHOWN if name in metrics]
    lines += [
        "",
        "| key | mse_norm greedy | mse_norm posterior mean | r2 posterior mean |",
        "| --- | --- | --- | --- |",
    ]
    for key in recipe.task.keys:
        names = ("mse_norm", "mse_norm_posterior_mean", "r2_posterior_mean")
        lines.append(f"| {key} | {' | '.join(_number(metrics.get(f'{name}/{key}')) for name in names)} |")
    return lines


def _epoch_table(run_dir: Path, run: dict[str, Any]) -> list[str]:
    lines = [
        "| epoch | train/loss | valid/loss | mse_norm greedy | posterior mean | json_valid_rate | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((run_dir / "epochs").glob("*/eval_metrics.json")):
        metrics = read_json(path)
        names = ("train_loss", "valid_loss", "mse_norm", metric_of("posterior_mean"), "json_valid_rate")
        selected = "selected" if int(metrics["epoch"]) == run["selected_epoch"] else ""
        shown = " | ".join(_number(metrics.get(name)) for name in names)
        lines.append(f"| {int(metrics['epoch'])} | {shown} | {selected} |")
    return lines


def _quantized(run_dir: Path) -> list[str]:
    path = run_dir / "quantized" / "manifest.json"
    return [f"Quantized: {read_json(path)['verdict']}"] if path.is_file() else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 1 else f"{value:.1f}"


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise RunError(f"{folder}: not finished; `ppe-lora run RECIPE` makes what is missing")
    manifest: dict[str, Any] = read_json(path)
    return manifest
