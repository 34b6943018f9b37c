"""The test rows, decoded once at the end by the adapter that was selected on validation."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from ppe_lora.student.load import StudentModel, load_adapter, load_base
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
    adapter, folder = run_dir / "best", run_dir / "test"
    inputs = _inputs(recipe, data_dir, run_dir, adapter)
    if is_current(folder, inputs):
        console.print(f"{folder}: complete and unchanged")
        return
    result, device, calibratable = _decode(recipe, data_dir, adapter)
    state = processes()
    if state.is_main_process:
        corrected = _calibrate(run_dir, result.predictions, recipe.task) if calibratable else {}
        result = result._replace(metrics=result.metrics | corrected)
        write_text(run_dir / "worst_cases.csv", _worst_cases(result, recipe))
        _write(folder, inputs, result, device, recipe)
    state.wait_for_everyone()


def evaluate_for_comparison(recipe: Recipe, data_dir: Path, run_dir: Path, adapter: Path | None, folder: Path) -> None:
    """Decode a finished run's test rows by its base model as it is, or with another adapter on it.

    Args:
        recipe: The run's recipe.
        data_dir: Its data set.
        run_dir: The run.
        adapter: Another adapter of the same base model; None is the base model alone, told by the instruction only.
        folder: Where the evaluation goes, or is found up to date.

    Raises:
        RunError: The run is not finished, or the data set's test rows are no longer those that it was evaluated on.
        DataError: The test rows are missing or broken.
        ModelError: The adapter does not fit the base model.
    """
    inputs = _inputs(recipe, data_dir, run_dir, adapter)
    evaluated = run_dir / "test" / "manifest.json"
    if evaluated.is_file() and read_json(evaluated)["inputs"]["test_rows"] != inputs["test_rows"]:
        raise RunError(
            f"{split_path(data_dir, 'test')}: expected the rows that {run_dir} was evaluated on; got others; build "
            "that data set again, or evaluate the run again"
        )
    if is_current(folder, inputs):
        return
    result, device, _ = _decode(recipe, data_dir, adapter)
    state = processes()
    if state.is_main_process:
        _write(folder, inputs, result, device, recipe)
    state.wait_for_everyone()


def _inputs(recipe: Recipe, data_dir: Path, run_dir: Path, adapter: Path | None) -> dict[str, Any]:
    if not (run_dir / "manifest.json").is_file():
        raise RunError(f"{run_dir}: the training is not finished; run `ppe-lora train RECIPE --resume`")
    test_path = split_path(data_dir, "test")
    read_rows(test_path, recipe.task)  # broken rows are named before a model is loaded
    return {
        "training": read_json(run_dir / "manifest.json")["inputs_hash"],
        "adapter": hash_file(adapter / "adapter_model.safetensors") if adapter else None,
        "test_rows": hash_file(test_path),
        "evaluate": recipe.evaluate.model_dump(mode="json"),
        "metric_version": METRIC_VERSION,
    }


def _decode(recipe: Recipe, data_dir: Path, adapter: Path | None) -> tuple[Evaluation, torch.device, bool]:
    """Decode the test rows: the evaluation with the ridge baseline, the device, and whether there are distributions."""
    train_rows, rows = (read_rows(split_path(data_dir, split), recipe.task) for split in ("train", "test"))
    state = processes()
    base = resolve_base(recipe.student)
    tokenizer = load_tokenizer(base)
    bare = load_base(recipe.student, base, state.device)
    model: StudentModel = load_adapter(bare, adapter) if adapter else bare
    split = encode_split(rows, recipe.task, tokenizer, recipe.student.max_tokens)
    train_NK = targets_matrix(train_rows, recipe.task)
    packs = packs_exactly(model, split.encoded, tokenizer.pad_id)
    trie = build_trie(recipe.task, tokenizer, recipe.train.objective.slots) if packs else None
    result = evaluate_student(model, split, train_NK, recipe.task, tokenizer, recipe.evaluate, trie)
    if state.is_main_process:
        texts = [[row.request for row in some] for some in (train_rows, split.rows)]
        target_NK = targets_matrix(split.rows, recipe.task)
        ridge = ridge_mse_norm(texts[0], train_NK, texts[1], target_NK, recipe.task)
        result = result._replace(metrics=result.metrics | {"ridge_mse_norm": ridge})
    return result, state.device, trie is not None


def _write(folder: Path, inputs: dict[str, Any], result: Evaluation, device: torch.device, recipe: Recipe) -> None:
    write_evaluation(folder, result)
    write_manifest(folder, inputs, rows=len(result.predictions), device=str(device))
    metrics = result.metrics
    console.print(
        f"{folder.name}: {len(result.predictions)} rows, {recipe.evaluate.read_out} mse_norm "
        f"{metrics.get(metric_of(recipe.evaluate.read_out), float('nan')):.4f}, "
        f"train mean {metrics['train_mean_mse_norm']:.4f}"
    )


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
