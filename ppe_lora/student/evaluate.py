"""Decode a split, parse the answers, score them. Every evaluation of a student goes through here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object

from ppe_lora.artifacts import write_json, write_text
from ppe_lora.console import progress
from ppe_lora.corpus.rows import Row
from ppe_lora.evaluation.baselines import constant_mse_norm, train_mean_mse_norm
from ppe_lora.evaluation.metrics import (
    Matrix,
    as_matrix,
    collapse_warnings,
    error_metrics,
    latency_metrics,
    score,
)
from ppe_lora.recipe.schema import Evaluate
from ppe_lora.student.collate import Collator, PackedCollator, PaddedCollator, completion_nll, forward_logits
from ppe_lora.student.decode import answer_token_limit, greedy_decode, measure_latency_ms
from ppe_lora.student.encode import EncodedRow, encode_rows
from ppe_lora.student.load import StudentModel
from ppe_lora.student.objective import slot_log_probs
from ppe_lora.student.posterior import crps, deviation, mean, quantile
from ppe_lora.student.processes import processes
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.student.trie import ScoreTrie
from ppe_lora.tasks.scores import Answer, Rejected, ScoresTask

_LOSS_ROWS = 8
_POSTERIOR_ROWS = 4
"""Rows in a pack of the evaluation: attention in a pack costs the square of its length."""


class EncodedSplit(NamedTuple):
    """The rows of a split that fit the model, with their tokens, and how many did not fit."""

    rows: list[Row]
    encoded: list[EncodedRow]
    too_long: int

    def batch_rows(self, trie: ScoreTrie) -> list[dict[str, Any]]:
        """The rows as collators take them, with their targets as leaves of the trie."""
        return [
            {**encoded._asdict(), "leaves": [trie.leaf_of(value) for value in row.target.values()]}
            for row, encoded in zip(self.rows, self.encoded, strict=True)
        ]


class Evaluation(NamedTuple):
    """One evaluation: flat metrics, one prediction per row, and what looks wrong, in words."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    warnings: list[str]


def encode_split(rows: Sequence[Row], task: ScoresTask, tokenizer: StudentTokenizer, max_tokens: int) -> EncodedSplit:
    """Encode a split; rows longer than `max_tokens` are left out and counted, never cut."""
    encoded = encode_rows(rows, task, tokenizer, max_tokens)
    by_id = {row.id: row for row in rows}
    kept = [by_id[row.id] for row in encoded.encoded]
    in_order = [row.model_copy(update={"target": {key: row.target[key] for key in task.keys}}) for row in kept]
    return EncodedSplit(in_order, list(encoded.encoded), len(encoded.too_long))


def evaluate_student(
    model: StudentModel,
    split: EncodedSplit,
    train_NK: Matrix,
    task: ScoresTask,
    tokenizer: StudentTokenizer,
    settings: Evaluate,
    trie: ScoreTrie,
    packs: bool,
) -> Evaluation:
    """Decode every row of a split once, over all processes, and score the answers.

    All processes return the same evaluation. `valid_loss` is the summed negative log-likelihood over the summed
    completion tokens, in nats, whatever the batching. `train_mean_mse_norm` and `constant_mse_norm` are what the two
    trivial predictors get on the same rows.

    Args:
        model: The bare model, without distributed wrappers; its training mode is restored.
        split: The rows to decode.
        train_NK: Training targets in task units, for the trivial predictor.
        trie: The trie of the task and tokenizer.
        packs: Whether the model computes packs exactly (`collate.packs_exactly`); the posterior needs it.
    """
    state = processes()
    mine = range(state.process_index, len(split.rows), state.num_processes)
    limit = answer_token_limit(task, tokenizer)
    with progress("decoding", len(mine), visible=state.is_main_process) as advance:
        ids = greedy_decode(
            model,
            [split.encoded[index].prompt_ids for index in mine],
            tokenizer,
            max_new_tokens=limit,
            batch_rows=settings.batch_rows,
            advance=advance,
        )
    collate = PackedCollator() if packs else PaddedCollator(tokenizer.pad_id)
    sums = gather_object([_summed_nll(model, [split.encoded[index] for index in mine], collate)])
    decoded: dict[int, list[int]] = dict(gather_object(list(zip(mine, ids, strict=True))))
    outcomes = [task.parse(tokenizer.decode(decoded[index])) for index in range(len(split.rows))]
    target_NK = as_matrix([row.target for row in split.rows], task)
    timed = split.encoded[: settings.latency_rows] if state.is_main_process else []
    latencies = measure_latency_ms(model, [row.prompt_ids for row in timed], tokenizer, max_new_tokens=limit)
    metrics = {
        **score(outcomes, target_NK, task),
        **latency_metrics(gather_object(latencies)),
        "valid_loss": sum(one for one, _ in sums) / sum(count for _, count in sums),
        "train_mean_mse_norm": train_mean_mse_norm(train_NK, target_NK, task),
        "constant_mse_norm": constant_mse_norm(target_NK, task),
        "rows_too_long": float(split.too_long),
    }
    accepted = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Answer)]
    predicted_NK = np.array([outcome.values for outcome in outcomes if isinstance(outcome, Answer)])
    predictions = [
        _prediction(row, tokenizer.decode(decoded[index]), outcomes[index], task)
        for index, row in enumerate(split.rows)
    ]
    if packs:
        own = posterior_of(model, [split.encoded[index] for index in mine], [outcomes[index] for index in mine], trie)
        by_row = dict(gather_object(list(zip(mine, own, strict=True))))
        posteriors = [by_row[index] for index in range(len(split.rows))]
        metrics |= posterior_metrics(posteriors, target_NK, task, trie)
        predictions = [
            shown | _posterior_shown(log_p_KV, task, trie)
            for shown, log_p_KV in zip(predictions, posteriors, strict=True)
        ]
    return Evaluation(metrics, predictions, collapse_warnings(predicted_NK, target_NK[accepted], task))


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write `eval_metrics.json` and `eval_predictions.jsonl`."""
    lines = [json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in evaluation.predictions]
    write_text(folder / "eval_predictions.jsonl", "".join(lines))
    write_json(folder / "eval_metrics.json", evaluation.metrics)


@torch.no_grad()
def _summed_nll(model: StudentModel, rows: Sequence[EncodedRow], collate: Collator) -> tuple[float, int]:
    order = sorted(rows, key=lambda row: len(row.prompt_ids) + len(row.completion_ids))
    was_training = model.training
    model.eval()
    nll, tokens = 0.0, 0
    try:
        for start in range(0, len(order), _LOSS_ROWS):
            batch = collate([row._asdict() for row in order[start : start + _LOSS_ROWS]])
            batch_nll, batch_tokens = completion_nll(model, {name: x.to(model.device) for name, x in batch.items()})
            nll += float(batch_nll)
            tokens += int(batch_tokens)
    finally:
        model.train(was_training)
    return nll, tokens


@torch.no_grad()
def posterior_of(
    model: StudentModel, rows: Sequence[EncodedRow], outcomes: Sequence[Answer | Rejected], trie: ScoreTrie
) -> list[torch.Tensor]:
    """The exact distributions of all scores of each row: log-probabilities (K, V), float32, on the CPU.

    A score is conditioned on the row's own greedy answers to the keys before it; where the text was rejected, on the
    middle of the range.
    """
    collate = PackedCollator(trie)
    middle = len(trie.values) // 2
    asked = []
    for row, outcome in zip(rows, outcomes, strict=True):
        leaves = [middle] * len(trie.leads)
        if isinstance(outcome, Answer):
            leaves = [trie.leaf_of(value) for value in outcome.values]
        asked.append({**row._asdict(), "leaves": leaves})
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt_ids))
    found: dict[int, torch.Tensor] = {}
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), _POSTERIOR_ROWS):
            chunk = order[start : start + _POSTERIOR_ROWS]
            batch = {name: x.to(model.device) for name, x in collate([asked[index] for index in chunk]).items()}
            logits, columns = forward_logits(model, batch)
            log_p_SV = slot_log_probs(logits, columns, batch, trie).cpu()
            found.update(zip(chunk, log_p_SV.split(len(trie.leads)), strict=True))
    finally:
        model.train(was_training)
    return [found[index] for index in range(len(rows))]


def posterior_metrics(
    posteriors: Sequence[torch.Tensor], target_NK: Matrix, task: ScoresTask, trie: ScoreTrie
) -> dict[str, float]:
    """Metrics of the posterior: the error metrics of its rounded mean (`..._posterior_mean`), `crps` (task units),
    `nll` (nats per score) and `coverage@80` (share of targets inside the central 80 % interval)."""
    log_p_SV = torch.cat(list(posteriors))
    values_V = trie.values
    target_S = torch.tensor(target_NK, dtype=torch.float32).flatten()
    leaf_S = torch.argmin((values_V[None] - target_S[:, None]).abs(), dim=1)
    rounded = [task.round(float(value)) for value in mean(log_p_SV, values_V)]
    errors = error_metrics(np.array(rounded, dtype=np.float64).reshape(target_NK.shape), target_NK, task)
    named = {}
    for name, value in errors.items():
        metric, slash, key = name.partition("/")
        named[f"{metric}_posterior_mean{slash}{key}"] = value
    low_S, high_S = (quantile(log_p_SV, values_V, share) for share in (0.1, 0.9))
    return {
        **named,
        "crps": float(crps(log_p_SV, values_V, target_S).mean()),
        "nll": float(-log_p_SV.gather(1, leaf_S[:, None]).mean()),
        "coverage@80": float(((low_S <= target_S) & (target_S <= high_S)).float().mean()),
    }


def _posterior_shown(log_p_KV: torch.Tensor, task: ScoresTask, trie: ScoreTrie) -> dict[str, Any]:
    means, deviations = mean(log_p_KV, trie.values), deviation(log_p_KV, trie.values)
    return {
        "posterior_mean": _by_key([task.round(float(value)) for value in means], task),
        "posterior_sd": _by_key([round(float(value), 2) for value in deviations], task),
    }


def _by_key(values: Sequence[float], task: ScoresTask) -> dict[str, float]:
    return dict(zip(task.keys, values, strict=True))


def _prediction(row: Row, text: str, outcome: Answer | Rejected, task: ScoresTask) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": row.id, "request": row.request, "language": row.language, "target": row.target}
    shown["text"] = text
    if isinstance(outcome, Rejected):
        return shown | {"parsed": None, "rejected": outcome.reason.value, "detail": outcome.detail, "mse_norm": None}
    errors = [(value - row.target[key]) / task.span for key, value in zip(task.keys, outcome.values, strict=True)]
    parsed = {key: task.round(value) for key, value in zip(task.keys, outcome.values, strict=True)}
    return shown | {"parsed": parsed, "rejected": None, "mse_norm": float(np.mean(np.square(errors)))}
