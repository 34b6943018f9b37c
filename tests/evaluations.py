"""Finished runs without a model: folders with evaluations as `ppe-lora run` leaves them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppe_lora.artifacts import write_json, write_manifest, write_text
from ppe_lora.evaluation.metrics import METRIC_VERSION, error_metrics, score
from ppe_lora.evaluation.test_set import TEST_FORMAT
from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.load import dump_recipe
from ppe_lora.tasks.scores import ScoresTask

TASK = ScoresTask(keys=("a", "b"), instruction={"en": "Score {keys}."})
TASK_YAML = "task: {keys: [a, b], instruction: {en: 'Score {keys}.'}}"
STYLES = ("polite", "casual", "short", "long")


def write_recipe(path: Path, *lines: str) -> Path:
    """A recipe that loads; nothing is trained by it."""
    text = "\n".join([TASK_YAML, "data: {name: d}", "student: {model: nowhere}", *lines])
    write_text(path, text + "\n")
    return path


def predictions(errors: Sequence[int], *, seed: int = 0, rejected: Sequence[int] = ()) -> list[dict[str, Any]]:
    """One test row per error, whose answers are off by that much on every key; targets depend on `seed` only."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, error in enumerate(errors):
        target = {key: int(value) for key, value in zip(TASK.keys, rng.integers(30, 71, 2), strict=True)}
        answer = {key: value + error for key, value in target.items()}
        language = "ja" if number % 2 else "en"
        request = ("雨の日の曲" if language == "ja" else "a rainy day ") * (1 + number % 5)
        rows.append(
            {
                "id": f"row{number}", "request": f"{request} {number}", "language": language,
                "style": STYLES[number % 4], "scenario": ["rainy"] * (number % 3 == 0), "sampler": "uniform",
                "target": target, "text": "", "posterior_mean": answer,
                "parsed": None if number in rejected else answer,
                "rejected": "trailing text" if number in rejected else None,
            }
        )  # fmt: skip
    return rows


def write_evaluation(folder: Path, rows: list[dict[str, Any]], training: str, **inputs: Any) -> None:
    """An evaluation on test rows, with its manifest."""
    target_NK, answer_NK = (
        np.array([[row[name][key] for key in TASK.keys] for row in rows], dtype=float)
        for name in ("target", "posterior_mean")
    )
    outcomes = [TASK.parse(json.dumps(row["parsed"], separators=(",", ":"))) for row in rows]
    means = error_metrics(answer_NK, target_NK, TASK)
    metrics = score(outcomes, target_NK, TASK) | {"latency_ms_p50": 10.0, "latency_ms_p95": 20.0}
    metrics |= {f"{name}_posterior_mean": value for name, value in means.items() if "/" not in name}
    write_text(folder / "eval_predictions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(folder / "eval_metrics.json", metrics)
    known = {"training": training, "adapter": "a1", "test_rows": "abc"}
    known |= {"metric_version": METRIC_VERSION, "format": TEST_FORMAT}
    write_manifest(folder, known | inputs, rows=len(rows), device="cpu")


def write_run(run_dir: Path, rows: list[dict[str, Any]], *overrides: str, valid: float = 0.1, **inputs: Any) -> Path:
    """A finished run whose test rows were decoded to `rows`.

    Args:
        run_dir: The run folder.
        rows: From `predictions`.
        overrides: Of its recipe.
        valid: mse_norm of the selected epoch on the validation rows, for both read-outs.
        inputs: What the evaluation's manifest says otherwise, such as `test_rows`.
    """
    recipe = load_recipe(write_recipe(run_dir.with_suffix(".yaml"), f"name: {run_dir.name}"), overrides)
    write_text(run_dir / "config.yaml", dump_recipe(recipe))
    rates = {"json_valid_rate": 1.0, "schema_valid_rate": 1.0}
    write_json(run_dir / "best" / "eval_metrics.json", {"mse_norm": valid, "mse_norm_posterior_mean": valid, **rates})
    write_manifest(
        run_dir, {"dataset_version": "v", "recipe": recipe.name}, selected_epoch=1, valid_rows=8,
        trainable_parameters=1000, rows_per_s=2.5, peak_memory_bytes=2_000_000_000,
    )  # fmt: skip
    training = json.loads((run_dir / "manifest.json").read_text())["inputs_hash"]
    write_evaluation(run_dir / "test", rows, training, **inputs)
    return run_dir
