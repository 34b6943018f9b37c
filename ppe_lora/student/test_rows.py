"""The test rows, decoded once at the end by the adapter that was selected on validation."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppe_lora.artifacts import hash_file, is_current, read_json, write_json, write_manifest, write_text
from ppe_lora.console import console
from ppe_lora.corpus.rows import read_rows, split_path, targets_matrix
from ppe_lora.errors import RunError
from ppe_lora.evaluation.baselines import ridge_mse_norm
from ppe_lora.evaluation.calibration import LEAST_ROWS, fit_calibration
from ppe_lora.evaluation.metrics import METRIC_VERSION, Matrix, error_metrics, renamed
from ppe_lora.evaluation.selection import metric_of
from ppe_lora.recipe import Recipe
from ppe_lora.student.base import resolve_base
from ppe_lora.student.collate import packs_exactly
from ppe_lora.student.evaluate import Evaluation, encode_split, evaluate_student, write_evaluation
from ppe_lora.student.load import load_adapter, load_base
from ppe_lora.student.processes import processes
from ppe_lora.student.tokenizer import load_tokenizer
from ppe_lora.student.trie import build_trie
from ppe_lora.tasks.scores import ScoresTask

WORST_CASES = 50


def evaluate_test_rows(recipe: Recipe, data_dir: Path, run_dir: Path) -> None:
    """Write `test/` and `worst_cases.csv` of a finished run, or find them up to date.

    Raises:
        RunError: The run is not finished.
        DataError: The test rows are missing or broken.
    """
    if not (run_dir / "manifest.json").is_file():
        raise RunError(f"{run_dir}: the training is not finished; run `ppe-lora train RECIPE --resume`")
    test_path = split_path(data_dir, "test")
    rows = read_rows(test_path, recipe.task)
    inputs: dict[str, Any] = {
        "training": read_json(run_dir / "manifest.json")["inputs_hash"],
        "adapter": hash_file(run_dir / "best" / "adapter_model.safetensors"),
        "test_rows": hash_file(test_path),
        "evaluate": recipe.evaluate.model_dump(mode="json"),
        "metric_version": METRIC_VERSION,
    }
    folder = run_dir / "test"
    if is_current(folder, inputs):
        console.print(f"{folder}: complete and unchanged")
        return
    state = processes()
    base = resolve_base(recipe.student)
    tokenizer = load_tokenizer(base)
    model = load_adapter(load_base(recipe.student, base, state.device), run_dir / "best")
    split = encode_split(rows, recipe.task, tokenizer, recipe.student.max_tokens)
    train_rows = read_rows(split_path(data_dir, "train"), recipe.task)
    train_NK = targets_matrix(train_rows, recipe.task)
    packs = packs_exactly(model, split.encoded, tokenizer.pad_id)
    trie = build_trie(recipe.task, tokenizer, recipe.train.objective.slots) if packs else None
    result = evaluate_student(model, split, train_NK, recipe.task, tokenizer, recipe.evaluate, trie)
    if state.is_main_process:
        texts = [[row.request for row in some] for some in (train_rows, split.rows)]
        target_NK = targets_matrix(split.rows, recipe.task)
        ridge = ridge_mse_norm(texts[0], train_NK, texts[1], target_NK, recipe.task)
        corrected = _calibrate(run_dir, result.predictions, recipe.task) if trie is not None else {}
        result = result._replace(metrics=result.metrics | {"ridge_mse_norm": ridge} | corrected)
        write_evaluation(folder, result)
        write_text(run_dir / "worst_cases.csv", _worst_cases(result, recipe))
        write_manifest(folder, inputs, rows=len(split.rows), device=str(state.device))
        console.print(
            f"test: {len(split.rows)} rows, {recipe.evaluate.read_out} mse_norm "
            f"{result.metrics.get(metric_of(recipe.evaluate.read_out), float('nan')):.4f}, "
            f"train mean {result.metrics['train_mean_mse_norm']:.4f}"
        )
    state.wait_for_everyone()


def _calibrate(run_dir: Path, predictions: Sequence[dict[str, Any]], task: ScoresTask) -> dict[str, float]:
    """Fit the correction and the intervals on the selected epoch's validation rows, write `calibration.json`, and
    return what they give on the test rows: the error metrics (`..._calibrated`) and `coverage_calibrated@80`."""
    epoch = read_json(run_dir / "manifest.json")["selected_epoch"]
    path = run_dir / "epochs" / f"{epoch:03d}" / "eval_predictions.jsonl"
    valid = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(valid) < LEAST_ROWS:
        return {}
    found = fit_calibration(*_posterior_matrices(valid, task), task)
    write_json(run_dir / "calibration.json", found.as_json(task))
    mean_NK, sd_NK, target_NK = _posterior_matrices(predictions, task)
    rounded_NK = np.vectorize(task.round, otypes=[float])(found.correct(mean_NK, task))
    low_NK, high_NK = found.interval(mean_NK, sd_NK, task)
    errors = error_metrics(rounded_NK, target_NK, task)
    named = {renamed(name, "calibrated"): value for name, value in errors.items()}
    return named | {"coverage_calibrated@80": float(((low_NK <= target_NK) & (target_NK <= high_NK)).mean())}


def _posterior_matrices(predictions: Sequence[dict[str, Any]], task: ScoresTask) -> tuple[Matrix, Matrix, Matrix]:
    names = ("posterior_mean", "posterior_sd", "target")
    mean_NK, sd_NK, target_NK = (
        np.array([[row[name][key] for key in task.keys] for row in predictions], dtype=float) for name in names
    )
    return mean_NK, sd_NK, target_NK


def _worst_cases(result: Evaluation, recipe: Recipe) -> str:
    """The rows with the largest error, rejected answers first, as CSV."""
    order = sorted(
        result.predictions,
        key=lambda row: float("inf") if row["mse_norm"] is None else row["mse_norm"],
        reverse=True,
    )
    table = io.StringIO()
    writer = csv.writer(table)
    keys = recipe.task.keys
    writer.writerow(
        ["id", "request", "mse_norm", "rejected", *(f"target_{key}" for key in keys), *(f"answer_{k}" for k in keys)]
    )
    for row in order[:WORST_CASES]:
        answer = row["parsed"] or {}
        targets = [row["target"][key] for key in keys]
        answers = [answer.get(key, "") for key in keys]
        writer.writerow([row["id"], row["request"], row["mse_norm"], row["rejected"] or "", *targets, *answers])
    return table.getvalue()
