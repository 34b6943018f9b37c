"""Finished run folders without a training: real data, real baselines and calibration, made-up answers. For tests of
what reads a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppe_lora.corpus.build as build_module
from ppe_lora.artifacts import hash_file, read_json, write_json, write_manifest, write_text
from ppe_lora.corpus.rows import Row, read_rows, split_path, targets_matrix
from ppe_lora.corpus.teachers import Phrased, make_teacher
from ppe_lora.evaluation.baselines import baseline_answers, constant_mse_norm, train_mean_mse_norm
from ppe_lora.evaluation.calibration import LEAST_ROWS, fit_calibration
from ppe_lora.evaluation.correct import corrected
from ppe_lora.evaluation.metrics import (
    METRIC_VERSION,
    Matrix,
    Scale,
    error_metrics,
    latency_metrics,
    mse_norm,
    renamed,
    score,
)
from ppe_lora.evaluation.test_set import note_test_rows
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.recipe.load import dump_recipe
from ppe_lora.tasks.scores import Answer, ScoresTask


def build_data(recipe: Recipe, folder: Path, hostile: Sequence[str] = ()) -> Path:
    """Build the recipe's data set with the scripted teacher, whose first English texts are the hostile ones. The filter
    that drops markup is off: what shows the texts must be safe without its help."""
    spoilt = iter(hostile)

    class Teacher:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._inner = make_teacher(*arguments, **options)
            self.name, self.version = self._inner.name, self._inner.version

        def phrase(self, asks: Sequence[Any]) -> list[Phrased]:
            said = zip(asks, self._inner.phrase(asks), strict=True)
            return [
                Phrased(next(spoilt, one.text) if ask.language == "en" else one.text, one.scenario) for ask, one in said
            ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "make_teacher", Teacher)
        patch.setattr("ppe_lora.corpus.filters.meta_answer", lambda row: None)
        build_module.build_dataset(recipe, folder)
    return folder


def make_run(
    recipe: Recipe, data_dir: Path, run_dir: Path, *, skill: float = 0.6, rejected: Sequence[str] = ()
) -> Path:
    """Write a finished run on a built data set.

    Args:
        recipe: Its resolved recipe; `config.yaml` is made of it.
        data_dir: Its data set.
        run_dir: The new folder.
        skill: 0 answers the train mean, 1 almost the target.
        rejected: Requests to which the greedy text is no answer.
    """
    task, rng = recipe.task, np.random.default_rng(0)
    rows = {split: read_rows(split_path(data_dir, split), task) for split in ("train", "valid", "test")}
    train_NK = targets_matrix(rows["train"], task)
    write_text(run_dir / "config.yaml", dump_recipe(recipe))
    steps = [(step, step / 20) for step in range(1, 20 * recipe.train.epochs + 1)]
    lines = [f"{step},{epoch:.6f},{2 / (1 + epoch):.6f},0.001,0.5,{1.5 * step:.3f}" for step, epoch in steps]
    write_text(run_dir / "train_log.csv", "\n".join(["step,epoch,loss,learning_rate,grad_norm,seconds", *lines, ""]))
    for epoch in range(1, recipe.train.epochs + 1):
        own = skill * epoch / recipe.train.epochs
        times = {"epoch": float(epoch), "step": 20.0 * epoch, "train_loss": 1.5 / epoch}
        predictions = _write(run_dir / "epochs" / f"{epoch:03d}", rows["valid"], train_NK, task, rng, own, (), times)
    calibration = None
    if len(predictions) >= LEAST_ROWS:
        calibration = fit_calibration(*_posterior(predictions, task), task, train_NK.mean(axis=0))
        write_json(run_dir / "calibration.json", calibration.as_json(task))
    version = read_json(data_dir / "manifest.json")["dataset_version"]
    inputs = {"recipe": {"task": task.model_dump(mode="json")}, "dataset_version": version}
    write_manifest(
        run_dir, inputs, name=recipe.name, selected_epoch=recipe.train.epochs, seconds_of_last_start=95.0, processes=1,
        device="cpu", threads=2, train_rows=len(rows["train"]), valid_rows=len(rows["valid"]), train_rows_too_long=0,
        valid_rows_too_long=0, trainable_parameters=4_884_480, tokenizer="0" * 16,
    )  # fmt: skip
    test_path = split_path(data_dir, "test")
    note_test_rows(run_dir, test_path, len(rows["test"]))
    texts = [[row.request for row in rows[split]] for split in ("train", "test")]
    others = baseline_answers(texts[0], train_NK, texts[1], task)
    ridge = mse_norm(others["ridge"], targets_matrix(rows["test"], task), Scale(task.low, task.high))
    more = {"ridge_mse_norm": ridge}
    tested = _write(run_dir / "test", rows["test"], train_NK, task, rng, skill, rejected, more, timed=20)
    tested, corrected_metrics = corrected(tested, calibration, task)
    _write_lines(run_dir / "test" / "eval_predictions.jsonl", tested)
    path = run_dir / "test" / "eval_metrics.json"
    write_json(path, read_json(path) | corrected_metrics)
    told = [
        {"id": row.id, **{name: dict(zip(task.keys, NK[n].tolist(), strict=True)) for name, NK in others.items()}}
        for n, row in enumerate(rows["test"])
    ]
    _write_lines(run_dir / "test" / "baseline_predictions.jsonl", told)
    latency = {
        "read_out": recipe.evaluate.read_out, "engine": "decoder of ppe_lora: a score a pass", "weights": "float32",
        "device": "a processor of a test", "requests": 20,
    }  # fmt: skip
    test_inputs = {"training": read_json(run_dir / "manifest.json")["inputs_hash"], "test_rows": hash_file(test_path)}
    test_inputs["metric_version"] = METRIC_VERSION
    write_manifest(run_dir / "test", test_inputs, rows=len(rows["test"]), device="cpu", latency=latency)
    return run_dir


def _write(
    folder: Path, rows: list[Row], train_NK: Matrix, task: ScoresTask, rng: np.random.Generator, skill: float,
    rejected: Sequence[str], more: dict[str, float], timed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    target_NK = targets_matrix(rows, task)
    percent = task.span / 100
    noise_NK = percent * rng.gamma(2.0, 6.0, target_NK.shape) * np.linspace(0.7, 1.6, len(task.keys))
    blurred_NK = skill * target_NK + (1 - skill) * train_NK.mean(axis=0)
    mean_NK = np.vectorize(task.round)(blurred_NK + rng.normal(0, 1, target_NK.shape) * noise_NK)
    sd_NK = np.sqrt(noise_NK**2 + ((1 - skill) * target_NK.std(axis=0)) ** 2).round(2)
    greedy_NK = np.vectorize(task.round)(mean_NK + rng.normal(0, 1, target_NK.shape) * 20 * percent)
    predictions, outcomes, waits = [], [], (20 + rng.gamma(2.0, 3.0, timed)).tolist()
    for n, row in enumerate(rows):
        text = task.render(dict(zip(task.keys, greedy_NK[n].tolist(), strict=True)))
        text = text.replace("}", "}</script>") if row.request in rejected else text
        outcome = task.parse(text)
        outcomes.append(outcome)
        line = {"id": row.id, "request": row.request, "language": row.language, "target": row.target, "text": text}
        if isinstance(outcome, Answer):
            off_K = (np.array(outcome.values) - target_NK[n]) / task.span
            parsed = dict(zip(task.keys, greedy_NK[n].tolist(), strict=True))
            line |= {"parsed": parsed, "rejected": None, "mse_norm": float(np.mean(off_K**2))}
        else:
            line |= {"parsed": None, "rejected": outcome.reason.value, "detail": outcome.detail, "mse_norm": None}
        line["posterior_mean"] = dict(zip(task.keys, mean_NK[n].tolist(), strict=True))
        line["posterior_sd"] = dict(zip(task.keys, sd_NK[n].tolist(), strict=True))
        for end, sign in (("low", -1), ("high", 1)):
            end_K = np.clip(mean_NK[n] + sign * 1.2816 * sd_NK[n], task.low, task.high)
            line[end] = dict(zip(task.keys, end_K.round(2).tolist(), strict=True))
        predictions.append(line | ({"latency_ms": round(waits[n], 3)} if n < timed else {}))
    _write_lines(folder / "eval_predictions.jsonl", predictions)
    errors = error_metrics(mean_NK.astype(float), target_NK, task)
    metrics = more | score(outcomes, target_NK, task) | latency_metrics(waits)
    metrics |= {renamed(name, "posterior_mean"): value for name, value in errors.items()}
    metrics |= {
        "valid_loss": 0.6 + 0.2 * (1 - skill),
        "coverage@80": 0.8,
        "crps": 10.0,
        "nll": 4.0,
        "rows_too_long": 0.0,
    }
    metrics |= {
        "train_mean_mse_norm": train_mean_mse_norm(train_NK, target_NK, task),
        "constant_mse_norm": constant_mse_norm(target_NK, task),
    }
    write_json(folder / "eval_metrics.json", metrics)
    return predictions


def _posterior(predictions: list[dict[str, Any]], task: ScoresTask) -> list[Matrix]:
    names = ("posterior_mean", "posterior_sd", "target")
    return [np.array([[row[name][key] for key in task.keys] for row in predictions], dtype=float) for name in names]


def _write_lines(path: Path, lines: Sequence[Any]) -> None:
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def profile_recipe(folder: Path, rows: int, test: float, *lines: str, name: str = "profile") -> Recipe:
    """A recipe of the music profile in Japanese and English, written to `folder` and loaded."""
    source = f"{{kind: generate, rows: {rows}, languages: {{ja: 1, en: 1}}}}"
    sections = [
        f"data: {{name: {name}, source: {source}, split: {{valid: 0.1, test: {test}}}}}",
        "student: {model: smollm2-135m}",
        *lines,
    ]
    if not any(line.startswith("evaluate:") for line in lines):
        sections.append("evaluate: {read_out: posterior_mean}")
    path = folder / f"{name}.yaml"
    path.write_text("\n".join(sections) + "\n", encoding="utf-8")
    return load_recipe(path)
