"""The test rows, decoded once at the end by the adapter that was selected on validation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppe_lora.artifacts import hash_file, is_current, read_json, write_manifest, write_text
from ppe_lora.cells import csv_text
from ppe_lora.console import console
from ppe_lora.corpus.rows import Row, read_rows, split_path, targets_matrix
from ppe_lora.errors import ModelError
from ppe_lora.evaluation.baselines import baseline_answers, baseline_lines
from ppe_lora.evaluation.calibration import read_calibration
from ppe_lora.evaluation.correct import corrected
from ppe_lora.evaluation.metrics import METRIC_VERSION, Scale, mse_norm
from ppe_lora.evaluation.selection import metric_of
from ppe_lora.evaluation.stored import check_made_from
from ppe_lora.evaluation.test_set import TEST_FORMAT, check_test_rows, note_test_rows
from ppe_lora.recipe import Recipe
from ppe_lora.student.correct import CALIBRATION_FILE, fit_correction
from ppe_lora.student.evaluate import (
    EVALUATION_FILES,
    Evaluation,
    encode_for,
    engine_of,
    evaluate_student,
    write_evaluation,
)
from ppe_lora.student.head import FILE as HEAD_FILE
from ppe_lora.student.head import Head
from ppe_lora.student.machine import device_name
from ppe_lora.student.processes import processes
from ppe_lora.student.ready import make_ready

WORST_CASES = 50
_MEASURED = (
    *EVALUATION_FILES, "baseline_predictions.jsonl", "../worst_cases.csv", f"../{CALIBRATION_FILE}", f"../{HEAD_FILE}",
)  # fmt: skip
"""Files of an evaluation, from `test/`. A correction that it did not fit must not appear later."""


def evaluate_test_rows(recipe: Recipe, data_dir: Path, run_dir: Path) -> None:
    """Write `test/`, `test_rows.json` and `worst_cases.csv` of a finished run, or find them up to date.

    Raises:
        RunError: The run is not finished, is of another recipe or data set, or was measured on other test rows before.
        ModelError: The read-out needs distributions, which this student does not give.
        DataError: The test rows are missing or broken.
    """
    test_path = split_path(data_dir, "test")
    if test_path.is_file():
        check_test_rows(run_dir, test_path)
    check_made_from(recipe, data_dir, run_dir)
    rows = read_rows(test_path, recipe.task)
    inputs: dict[str, Any] = {
        "format": TEST_FORMAT,
        "training": read_json(run_dir / "manifest.json")["inputs_hash"],
        "adapter": hash_file(run_dir / "best" / "adapter_model.safetensors"),
        "test_rows": hash_file(test_path),
        "evaluate": recipe.evaluate.model_dump(mode="json", exclude={"latency_limit_ms"}),
        "metric_version": METRIC_VERSION,
    }
    folder = run_dir / "test"
    if is_current(folder, inputs):
        console.print(f"{folder}: complete and unchanged")
        return
    state = processes()
    if state.is_main_process:
        note_test_rows(run_dir, test_path, len(rows))
    model, tokenizer, split, trie = make_ready(recipe, rows, run_dir, run_dir / "best")
    if trie is None:
        _check_greedy(recipe)
    train_rows = read_rows(split_path(data_dir, "train"), recipe.task)
    train_NK = targets_matrix(train_rows, recipe.task)
    if state.is_main_process:
        (folder / "manifest.json").unlink(missing_ok=True)  # what follows replaces the correction that it stands for
        if trie is not None:
            splits = (train_rows, read_rows(split_path(data_dir, "valid"), recipe.task))
            fit_correction(model, recipe, run_dir, *(encode_for(recipe, some, tokenizer) for some in splits))
    state.wait_for_everyone()
    result = evaluate_student(
        model, split, train_NK, recipe.task, tokenizer, recipe.evaluate, trie, head=Head.load(run_dir)
    )
    if state.is_main_process:
        latency = {
            "read_out": recipe.evaluate.read_out,
            "engine": engine_of(trie, recipe.evaluate.read_out),
            "device": device_name(state.device),
            "weights": _weights(recipe.student.quantization, str(model.dtype)),
            "model": "adapter on its base model",  # not merged, as `serve` loads an exported run
            "requests": sum("latency_ms" in row for row in result.predictions),
        }
        result = _write_test(recipe, run_dir, result, train_rows, split.rows)
        write_manifest(folder, inputs, files=_MEASURED, rows=len(split.rows), device=str(state.device), latency=latency)
        console.print(
            f"test: {len(split.rows)} rows, {recipe.evaluate.read_out} mse_norm "
            f"{result.metrics.get(metric_of(recipe.evaluate.read_out), float('nan')):.4f}, "
            f"train mean {result.metrics['train_mean_mse_norm']:.4f}"
        )
    state.wait_for_everyone()


def _check_greedy(recipe: Recipe) -> None:
    if recipe.evaluate.read_out != "greedy":
        raise ModelError(
            f"evaluate.read_out: expected greedy for {recipe.student.model}, which does not compute packs of these "
            f"rows exactly, so that there are no distributions; got {recipe.evaluate.read_out}"
        )


def _write_test(
    recipe: Recipe, run_dir: Path, result: Evaluation, train_rows: Sequence[Row], rows: Sequence[Row]
) -> Evaluation:
    """Write everything about the test rows but the manifest; return the evaluation with the metrics that were added."""
    task = recipe.task
    texts = [[row.request for row in some] for some in (train_rows, rows)]
    others = baseline_answers(texts[0], targets_matrix(train_rows, task), texts[1], task)
    ridge = mse_norm(others["ridge"], targets_matrix(rows, task), Scale(task.low, task.high))
    predictions, metrics = result.predictions, result.metrics | {"ridge_mse_norm": ridge}
    if "posterior_mean" in predictions[0]:
        path = run_dir / CALIBRATION_FILE
        calibration = read_calibration(path, task) if path.is_file() else None
        predictions, calibrated = corrected(predictions, calibration, task)
        metrics |= calibrated
    result = result._replace(metrics=metrics, predictions=predictions)
    write_evaluation(run_dir / "test", result)
    write_text(run_dir / "test" / "baseline_predictions.jsonl", baseline_lines([row.id for row in rows], others, task))
    write_text(run_dir / "worst_cases.csv", _worst_cases(result, recipe))
    return result


def _weights(quantization: str, dtype: str) -> str:
    return dtype.removeprefix("torch.") if quantization == "none" else quantization


def _worst_cases(result: Evaluation, recipe: Recipe) -> str:
    """The rows whose served answers have the largest error, rejected answers first, as CSV."""
    task = recipe.task
    field = "parsed" if recipe.evaluate.read_out == "greedy" else recipe.evaluate.read_out
    cases: list[tuple[float, dict[str, Any]]] = []
    for row in result.predictions:
        off = [(row[field][key] - row["target"][key]) / task.span for key in task.keys] if row[field] else [np.inf]
        cases.append((float(np.mean(np.square(off))), row))
    cases.sort(key=lambda case: case[0], reverse=True)
    columns = [f"{side}_{key}" for side in ("target", "answer") for key in task.keys]
    table: list[list[Any]] = [["id", "request", "mse_norm", "rejected", *columns]]
    for error, row in cases[:WORST_CASES]:
        answer = row[field] or {}
        targets = [row["target"][key] for key in task.keys]
        answers = [answer.get(key, "") for key in task.keys]
        shown = error if row[field] else ""
        table.append([row["id"], row["request"], shown, row["rejected"] or "", *targets, *answers])
    return csv_text(table)
