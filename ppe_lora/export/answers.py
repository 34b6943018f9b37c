"""What a model answers to some rows, by our own decoder: the texts and means that exports are compared by."""

import gc
from pathlib import Path
from typing import NamedTuple

import torch

from ppe_lora.corpus.rows import targets_matrix
from ppe_lora.evaluation.metrics import score
from ppe_lora.export.parity import Reading
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import Student
from ppe_lora.student.collate import packs_exactly
from ppe_lora.student.decode import Decoder, answer_token_limit
from ppe_lora.student.evaluate import EncodedSplit, posterior_metrics
from ppe_lora.student.load import StudentModel, load_adapter, load_base
from ppe_lora.student.posterior import mean
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.student.trie import build_trie


class Answers(NamedTuple):
    """One reading per row, and the metrics of all of them."""

    readings: list[Reading]
    metrics: dict[str, float]


def answer_rows(
    student: Student,
    folder: Path,
    split: EncodedSplit,
    recipe: Recipe,
    tokenizer: StudentTokenizer,
    device: torch.device,
    adapter: Path | None = None,
) -> Answers:
    """Load a model, decode rows freely with the distribution of every score, and free it again.

    Args:
        student: How to hold the model: quantization and type.
        folder: The model.
        split: The rows.
        recipe: Gives the task, and how scores are read.
        tokenizer: The student's.
        device: Where to decode.
        adapter: A LoRA adapter to put on the model.
    """
    model = load_base(student, folder, device)
    answers = _answers(load_adapter(model, adapter) if adapter else model, split, recipe, tokenizer)
    del model
    gc.collect()  # modules refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the next model is loaded by another process
    return answers


def _answers(model: StudentModel, split: EncodedSplit, recipe: Recipe, tokenizer: StudentTokenizer) -> Answers:
    task = recipe.task
    exact = packs_exactly(model, split.encoded, tokenizer.pad_id)
    trie = build_trie(task, tokenizer, recipe.train.objective.slots) if exact else None
    decoder = Decoder(model, tokenizer, trie, answer_token_limit(task, tokenizer))
    asked = [row._replace(completion_ids=[]) for row in split.encoded]
    decoded = decoder.decode(asked, batch_rows=recipe.evaluate.batch_rows)
    texts = [tokenizer.decode(one.ids) for one in decoded]
    target_NK = targets_matrix(split.rows, task)
    metrics = score([task.parse(text) for text in texts], target_NK, task)
    if trie is None:
        return Answers([Reading(text) for text in texts], metrics)
    posteriors = [one.log_p_KV for one in decoded if one.log_p_KV is not None]
    metrics |= posterior_metrics(posteriors, target_NK, task, trie)
    means = [dict(zip(task.keys, map(float, mean(log_p_KV, trie.values)), strict=True)) for log_p_KV in posteriors]
    return Answers([Reading(*one) for one in zip(texts, means, strict=True)], metrics)
