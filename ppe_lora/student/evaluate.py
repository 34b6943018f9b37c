"""Decode a split, parse the answers, score them. Every evaluation of a student goes through here."""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from datasets.table import InMemoryTable

from ppe_lora.artifacts import write_json, write_text
from ppe_lora.console import progress
from ppe_lora.corpus.rows import Row, targets_matrix
from ppe_lora.errors import ModelError
from ppe_lora.evaluation.baselines import constant_mse_norm, train_mean_mse_norm
from ppe_lora.evaluation.correct import UNROUNDED
from ppe_lora.evaluation.metrics import (
    Matrix,
    collapse_warnings,
    error_metrics,
    latency_metrics,
    renamed,
    score,
)
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import Evaluate, OnBadRow, ReadOut
from ppe_lora.student.decode import Decoded, Decoder, answer_token_limit, measure_latency_ms
from ppe_lora.student.encode import EncodedRow, EncodedRows
from ppe_lora.student.head import FOLDS, Head
from ppe_lora.student.load import StudentModel
from ppe_lora.student.posterior import crps, mean, quantile
from ppe_lora.student.processes import processes
from ppe_lora.student.read_out import interval_of, plain, posterior_of
from ppe_lora.student.stored_rows import encode_once, tokens_table
from ppe_lora.student.tensors import OVERFLOWS, NotFinite
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.student.trie import ScoreTrie
from ppe_lora.tasks.scores import Answer, Rejected, ScoresTask

EVALUATION_FILES = ("eval_metrics.json", "eval_predictions.jsonl")
"""What `write_evaluation` writes."""


class EncodedSplit(NamedTuple):
    """The rows of a split that fit the model, with their tokens, and how many did not fit."""

    rows: list[Row]
    encoded: Sequence[EncodedRow]
    too_long: int
    unusable: int = 0
    """Rows that the model's prompt format cannot express, left out by `student.on_bad_row`."""

    def leaves(self, trie: ScoreTrie) -> list[list[int]]:
        """The targets as leaves of the trie, N rows by K keys.

        Raises:
            ModelError: An answer's tokens are not those of its parts, so that its scores would be read at other tokens.
        """
        leaf_of = cache(trie.leaf_of)
        leaves_NK = [[leaf_of(value) for value in row.target.values()] for row in self.rows]
        for row, encoded, leaves in zip(self.rows, self.encoded, leaves_NK, strict=True):
            if trie.completion_of(leaves) != encoded.completion_ids:
                raise ModelError(
                    f"row {row.id}: expected the answer in the tokens of its keys and values; got others, so the "
                    f"tokenizer joins parts of {dict(row.target)}; choose a student whose tokenizer has a token a digit"
                )
        return leaves_NK

    def batch_rows(self, trie: ScoreTrie) -> Dataset:
        """The rows as collators take them, with their `leaves` and their fold (`head.FOLDS`). Raises as `leaves`."""
        table = tokens_table(self.encoded).append_column("leaves", [self.leaves(trie)])
        return Dataset(InMemoryTable(table.append_column("fold", [[index % FOLDS for index in range(len(self.rows))]])))


class Evaluation(NamedTuple):
    """One evaluation: flat metrics, one prediction per row, and what looks wrong, in words."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    warnings: list[str]


def encode_split(
    rows: Sequence[Row],
    task: ScoresTask,
    tokenizer: StudentTokenizer,
    max_tokens: int,
    on_bad_row: OnBadRow = "stop",
) -> EncodedSplit:
    """Encode a split. Rows longer than `max_tokens` are left out and counted, never cut.

    Args:
        rows: In their order.
        task: What they answer.
        tokenizer: The student's.
        max_tokens: Longest row in tokens.
        on_bad_row: Whether to leave out rows that the model's prompt format cannot express, too.

    Raises:
        ModelError: There are such rows, and they are not to be left out.
    """
    found = encode_once(rows, task, tokenizer, max_tokens)
    if on_bad_row == "stop":
        found.checked()
    return keep_encoded(rows, found, task)


def keep_encoded(rows: Sequence[Row], found: EncodedRows, task: ScoresTask) -> EncodedSplit:
    """Of some rows those that have been encoded, their targets in the task's order."""
    without = {row_id for row_id, _ in found.too_long} | {row.id for row in found.unusable}
    in_order = [
        row
        if tuple(row.target) == task.keys
        else row.model_copy(update={"target": {key: row.target[key] for key in task.keys}})
        for row in rows
        if row.id not in without
    ]
    return EncodedSplit(in_order, found.encoded, len(found.too_long), len(found.unusable))


def encode_for(recipe: Recipe, rows: Sequence[Row], tokenizer: StudentTokenizer) -> EncodedSplit:
    """`encode_split` as a recipe has it."""
    student = recipe.student
    return encode_split(rows, recipe.task, tokenizer, student.max_tokens, student.on_bad_row)


def evaluate_student(
    model: StudentModel,
    split: EncodedSplit,
    train_NK: Matrix,
    task: ScoresTask,
    tokenizer: StudentTokenizer,
    settings: Evaluate,
    trie: ScoreTrie | None,
    head: Head | None = None,
) -> Evaluation:
    """Decode every row of a split once, over all processes, and score the answers.

    All processes return the same evaluation. `valid_loss` is the summed negative log-likelihood over the summed
    completion tokens, in nats, whatever the batching. `train_mean_mse_norm` and `constant_mse_norm` are what the two
    trivial predictors get on the same rows. Latencies are those of the read-out that will be served, as `engine_of`
    names it; the prediction of a row that was timed has its `latency_ms`.

    Args:
        model: The bare model, without distributed wrappers; its training mode is restored.
        split: The rows to decode.
        train_NK: Training targets in task units, for the trivial predictor.
        trie: The trie of the task and tokenizer; None where the model does not compute packs exactly
            (`collate.packs_exactly`): then there are no distributions.
        head: Reads scores from hidden states, too.

    Raises:
        NotFinite: The model's outputs are no numbers.
    """
    decoder = Decoder(model, tokenizer, trie, answer_token_limit(task, tokenizer), head)
    decoded = _decode_shared(decoder, split.encoded, settings.batch_rows)
    _check_numbers(decoded, split)
    texts = [tokenizer.decode(one.ids) for one in decoded]
    outcomes = [task.parse(text) for text in texts]
    target_NK = targets_matrix(split.rows, task)
    timed = split.encoded[: settings.latency_rows] if processes().is_main_process else []
    forced = _serves_forced(trie, settings.read_out)
    latencies: list[float] = gather_object(measure_latency_ms(decoder, timed, forced=forced))
    metrics = {
        **score(outcomes, target_NK, task),
        **latency_metrics(latencies),
        "valid_loss": sum(one.nll for one in decoded) / sum(len(row.completion_ids) for row in split.encoded),
        "train_mean_mse_norm": train_mean_mse_norm(train_NK, target_NK, task),
        "constant_mse_norm": constant_mse_norm(target_NK, task),
        "rows_too_long": float(split.too_long),
    }
    predictions = [_prediction(*one, task) for one in zip(split.rows, texts, outcomes, strict=True)]
    posteriors = [one.log_p_KV for one in decoded if one.log_p_KV is not None]
    if trie is not None:
        metrics |= posterior_metrics(posteriors, target_NK, task, trie)
        shown = [_posterior_shown(log_p_KV, task, trie) for log_p_KV in posteriors]
        predictions = [prediction | own for prediction, own in zip(predictions, shown, strict=True)]
    if head is not None:
        read = [one.head_K for one in decoded if one.head_K is not None]
        for prediction, head_K in zip(predictions, read, strict=True):
            prediction["head"] = _by_key(plain(head_K, task), task)
    for prediction, latency in zip(predictions, latencies, strict=False):
        prediction["latency_ms"] = round(latency, 3)
    accepted = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Answer)]
    predicted_NK = np.array([outcome.values for outcome in outcomes if isinstance(outcome, Answer)])
    return Evaluation(metrics, predictions, collapse_warnings(predicted_NK, target_NK[accepted], task))


def _check_numbers(decoded: Sequence[Decoded], split: EncodedSplit) -> None:
    bad = [row.id for row, one in zip(split.rows, decoded, strict=True) if not one.is_finite]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise NotFinite(f"row {bad[0]}{more}: expected numbers from the model; got NaN or infinity; {OVERFLOWS}")


def engine_of(trie: ScoreTrie | None, read_out: ReadOut) -> str:
    """What the latencies of an evaluation are of, in words."""
    if trie is None:
        return "generate of transformers"
    if not _serves_forced(trie, read_out):
        return "decoder of ppe_lora: free text, then all scores in one pass"
    return f"decoder of ppe_lora: {'a score a pass' if trie.alone is None else 'all scores in one pass'}"


def _serves_forced(trie: ScoreTrie | None, read_out: ReadOut) -> bool:
    """Whether a server may force the answer: not where scores are read alone, but the text is what is wanted."""
    return trie is not None and (trie.alone is None or read_out != "greedy")


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write `eval_metrics.json` and `eval_predictions.jsonl`. A metric that is no number is left out, as JSON has none
    of those."""
    lines = [json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in evaluation.predictions]
    write_text(folder / "eval_predictions.jsonl", "".join(lines))
    finite = {name: value for name, value in evaluation.metrics.items() if math.isfinite(value)}
    write_json(folder / "eval_metrics.json", finite)


def _decode_shared(decoder: Decoder, rows: Sequence[EncodedRow], batch_rows: int) -> list[Decoded]:
    """Decode rows, each on one of the processes; all of them get all results."""
    state = processes()
    mine = range(state.process_index, len(rows), state.num_processes)
    with progress("decoding", len(mine), visible=state.is_main_process) as advance:
        own = decoder.decode([rows[index] for index in mine], batch_rows=batch_rows, advance=advance)
    by_row: dict[int, Decoded] = dict(gather_object(list(zip(mine, own, strict=True))))
    return [by_row[index] for index in range(len(rows))]


def posterior_metrics(
    posteriors: Sequence[torch.Tensor], target_NK: Matrix, task: ScoresTask, trie: ScoreTrie
) -> dict[str, float]:
    """Metrics of the posterior: the error metrics of its rounded mean and of its median (`..._posterior_mean`,
    `..._posterior_median`), `crps` (task units),
    `nll` (nats per score) and `coverage@80` (share of targets inside the central 80 % interval)."""
    log_p_SV = torch.cat(list(posteriors))
    values_V = trie.values
    target_S = torch.tensor(target_NK, dtype=torch.float32).flatten()
    leaf_S = torch.argmin((values_V[None] - target_S[:, None]).abs(), dim=1)
    named: dict[str, float] = {}
    for read_out, read_S in (
        ("posterior_mean", mean(log_p_SV, values_V)),
        ("posterior_median", quantile(log_p_SV, values_V, 0.5)),
    ):
        rounded = np.array([task.round(float(value)) for value in read_S], dtype=np.float64)
        errors = error_metrics(rounded.reshape(target_NK.shape), target_NK, task)
        named |= {renamed(name, read_out): value for name, value in errors.items()}
    low_S, high_S = (quantile(log_p_SV, values_V, share) for share in (0.1, 0.9))
    return {
        **named,
        "crps": float(crps(log_p_SV, values_V, target_S).mean()),
        "nll": float(-log_p_SV.gather(1, leaf_S[:, None]).mean()),
        "coverage@80": float(((low_S <= target_S) & (target_S <= high_S)).float().mean()),
    }


def _posterior_shown(log_p_KV: torch.Tensor, task: ScoresTask, trie: ScoreTrie) -> dict[str, Any]:
    means, medians, deviations = posterior_of(log_p_KV, task, trie)
    low_K, high_K = interval_of(log_p_KV, task, trie)
    return {
        "posterior_mean": _by_key([task.round(value) for value in means], task),
        UNROUNDED: _by_key(means, task),
        "posterior_median": _by_key(medians, task),
        "posterior_sd": _by_key(deviations, task),
        "low": _by_key(low_K, task),
        "high": _by_key(high_K, task),
    }


def _by_key(values: Sequence[float], task: ScoresTask) -> dict[str, float]:
    return dict(zip(task.keys, values, strict=True))


def _prediction(row: Row, text: str, outcome: Answer | Rejected, task: ScoresTask) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": row.id, "request": row.request, "language": row.language, "style": row.style}
    shown |= {"scenario": list(row.scenario), "sampler": row.sampler, "target": row.target, "text": text}
    if isinstance(outcome, Rejected):
        return shown | {"parsed": None, "rejected": outcome.reason.value, "detail": outcome.detail, "mse_norm": None}
    errors = [(value - row.target[key]) / task.span for key, value in zip(task.keys, outcome.values, strict=True)]
    parsed = {key: task.round(value) for key, value in zip(task.keys, outcome.values, strict=True)}
    return shown | {"parsed": parsed, "rejected": None, "mse_norm": float(np.mean(np.square(errors)))}
