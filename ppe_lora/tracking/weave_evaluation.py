"""One evaluation as Weave calls: an Evaluation with our scores, and in it a trace per request."""

import datetime
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import weave
from weave.evaluation.eval_imperative import EvaluationLogger
from weave.trace.weave_client import WeaveClient

from ppe_lora.evaluation.metrics import error_metrics, score
from ppe_lora.recipe.schema import ReadOut
from ppe_lora.recipe.track import WeaveTrack
from ppe_lora.tasks.scores import ScoresTask
from ppe_lora.tracking.run_folder import EvaluatedRows, RunFolder, read_predictions
from ppe_lora.tracking.weave_log import write_ahead

OP = "ppe_lora.answer_request"
_ERRORS = ("mse_norm", "mse_raw", "mae_raw", "within_tolerance@5")


def write_evaluation(folder: RunFolder, evaluation: EvaluatedRows, settings: WeaveTrack, path: Path) -> None:
    """Write an evaluation to the new write-ahead log `path`; asks no server."""
    predictions = traced_rows(read_predictions(evaluation), settings.rate)
    with write_ahead(settings.project, path) as client:
        _log(client, folder, evaluation, predictions)


def traced_rows(predictions: list[dict[str, Any]], rate: float) -> list[dict[str, Any]]:
    """The share of rows to trace, at least one: drawn by their ids, so it is the same rows in every evaluation."""
    return [row for row in predictions if _draw(row) < rate] or [min(predictions, key=_draw)]


def _draw(row: dict[str, Any]) -> float:
    return int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:8], "big") / 2**64


def served_read_out(prediction: dict[str, Any], read_out: ReadOut) -> str:
    """The read-out of a prediction that stands for what is served: an epoch's are not corrected yet."""
    return "posterior_mean" if read_out == "calibrated" and "calibrated" not in prediction else read_out


def trace_output(prediction: dict[str, Any], task: ScoresTask, read_out: ReadOut) -> dict[str, Any]:
    """What one answered request shows: the answer of the read-out that is served, the target, how far off it is.

    `error.per_dim` is answer minus target by key in task units, `error.mse` their mean square; both are null for a
    rejected answer. `latency_ms` is null for a request that was decoded in a batch and not timed.
    """
    served, target = served_read_out(prediction, read_out), prediction["target"]
    answer = prediction["parsed" if served == "greedy" else served]
    per_dim = None if answer is None else {key: answer[key] - target[key] for key in task.keys}
    shown = {name: prediction[name] for name in ("posterior_mean", "posterior_sd", "calibrated") if name in prediction}
    return {
        "model": {"output_raw": prediction["text"], "output_parsed": answer, "read_out": served, **shown},
        "target": {"vector": target},
        "error": {
            "per_dim": per_dim,
            "mse": None if per_dim is None else float(np.mean(np.square(list(per_dim.values())))),
        },
        "latency_ms": prediction.get("latency_ms"),
    }


def row_scores(prediction: dict[str, Any], task: ScoresTask) -> dict[str, dict[str, Any]]:
    """One row's scores by scorer: `format` of the free text, and the errors of each read-out that the row has."""
    target_1K = np.array([[prediction["target"][key] for key in task.keys]], dtype=float)
    greedy = score([task.parse(prediction["text"])], target_1K, task)
    scores: dict[str, dict[str, Any]] = {
        "format": {name: greedy[f"{name}_rate"] == 1.0 for name in ("json_valid", "schema_valid")},
    }
    if "mse_norm" in greedy:
        scores["greedy"] = {name: greedy[name] for name in _ERRORS}
    for read_out in ("posterior_mean", "calibrated"):
        if read_out in prediction:
            answer_1K = np.array([[prediction[read_out][key] for key in task.keys]], dtype=float)
            errors = error_metrics(answer_1K, target_1K, task)
            scores[read_out] = {name: errors[name] for name in _ERRORS}
    return scores


def _log(client: WeaveClient, folder: RunFolder, evaluation: EvaluatedRows, predictions: list[dict[str, Any]]) -> None:
    recipe, task = folder.recipe, folder.recipe.task
    rows = folder.rows[evaluation.split]
    data = {"split": evaluation.split, "dataset_version": folder.dataset_version}
    origin = {"model_id": evaluation.model_id, "run_id": folder.run_id}
    model = {"name": recipe.name, **origin, "student_model": recipe.student.model, "rank": recipe.student.lora.rank}
    table = [{"id": row["id"], "request_text": row["request"], "target": row["target"]} for row in predictions]
    ended_at = datetime.datetime.fromtimestamp(evaluation.predictions.stat().st_mtime, tz=datetime.UTC)
    # Scores are kept on the rows: as calls of their own they would need feedback, which the log has not. The
    # evaluation's own attributes say nothing of the run: equal evaluations of several models can then be compared.
    logger = EvaluationLogger(
        name=f"{recipe.name} {evaluation.label}", model=model, dataset=table, eval_attributes=data, trace_scores=False
    )
    for prediction in predictions:
        about = {**data, **origin, "scenario": list(rows[prediction["id"]].scenario)}
        inputs = {"request_text": prediction["request"], "target": prediction["target"]}
        output = trace_output(prediction, task, recipe.evaluate.read_out)
        answer = output["model"]["output_parsed"]
        with weave.attributes(about), logger.log_prediction(inputs=inputs, output=answer) as logged:
            for scorer, scores in row_scores(prediction, task).items():
                logged.log_score(scorer, scores)
            call = client.create_call(
                OP, {"input": {"request_text": prediction["request"]}}, logged.predict_call, about, use_stack=False,
                started_at=ended_at - datetime.timedelta(milliseconds=output["latency_ms"] or 0),
            )  # fmt: skip
            client.finish_call(call, output=output, ended_at=ended_at)
    logger.log_summary(dict(evaluation.metrics))
