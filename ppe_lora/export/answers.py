"""What a model answers to some rows, by our own decoder: the texts, means and served answers that exports are compared
by."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ppe_lora.corpus.rows import targets_matrix
from ppe_lora.evaluation.calibration import Calibration, read_calibrations
from ppe_lora.evaluation.metrics import error_metrics, renamed, score
from ppe_lora.export.parity import Reading
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import ReadOut, Student
from ppe_lora.student.collate import packs_exactly
from ppe_lora.student.decode import Decoded, Decoder, answer_token_limit
from ppe_lora.student.evaluate import EncodedSplit, posterior_metrics
from ppe_lora.student.head import Head
from ppe_lora.student.load import StudentModel, load_adapter, load_base
from ppe_lora.student.posterior import mean, quantile
from ppe_lora.student.read_out import corrected_means
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.student.trie import ScoreTrie, build_trie
from ppe_lora.tasks.scores import ScoresTask

WITHOUT_HEAD = "calibrated_without_head"
"""The served read-out of engines, in certificates, where the run's own correction uses the head."""


class Correction(NamedTuple):
    """What makes the served answers of a run from its model's distributions."""

    read_out: ReadOut
    own: Calibration | None
    for_engines: Calibration | None
    """Where `own` uses the head, which engines do not read."""
    head: Head | None

    @property
    def engine_read_out(self) -> str:
        """The read-out that an engine with distributions serves."""
        return WITHOUT_HEAD if self.read_out == "calibrated" and self.for_engines else self.read_out

    def reading(self, text: str, one: Decoded, task: ScoresTask, trie: ScoreTrie) -> Reading:
        """All read-outs of a decoded row that a certificate holds; those of the head only where it was read."""
        assert one.log_p_KV is not None  # there is a trie
        mean_K = [float(value) for value in mean(one.log_p_KV, trie.values)]
        served: dict[str, Sequence[float]] = {}
        if self.read_out == "posterior_median":
            served["posterior_median"] = [float(value) for value in quantile(one.log_p_KV, trie.values, 0.5)]
        elif self.read_out == "calibrated":
            for name, calibration in (("calibrated", self.own), (WITHOUT_HEAD, self.for_engines)):
                if calibration is not None and not (calibration.uses_head and one.head_K is None):
                    served[name] = corrected_means(one, mean_K, task, calibration).tolist()
            if self.own is None:
                served["calibrated"] = mean_K  # uncorrected, as it is served then
        by_key = {name: dict(zip(task.keys, values, strict=True)) for name, values in served.items()}
        return Reading(text, dict(zip(task.keys, mean_K, strict=True)), by_key)


def read_correction(recipe: Recipe, folder: Path) -> Correction:
    """The correction of a run, or of an export of it; none where another read-out is served.

    Raises:
        ModelError: It is broken, or of another task.
    """
    read_out = recipe.evaluate.read_out
    own, for_engines = read_calibrations(folder, recipe.task) if read_out == "calibrated" else (None, None)
    head = Head.load(folder) if own is not None and own.uses_head else None
    return Correction(read_out, own, for_engines, head)


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
    correction: Correction,
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
        correction: Of the run, whatever model of it this is.
        adapter: A LoRA adapter to put on the model.
    """
    model = load_base(student, folder, device)
    answers = _answers(load_adapter(model, adapter) if adapter else model, split, recipe, tokenizer, correction)
    del model
    gc.collect()  # modules refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the next model is loaded by another process
    return answers


def _answers(
    model: StudentModel, split: EncodedSplit, recipe: Recipe, tokenizer: StudentTokenizer, correction: Correction
) -> Answers:
    task = recipe.task
    exact = packs_exactly(model, split.encoded, tokenizer.pad_id)
    trie = build_trie(task, tokenizer, recipe.train.objective.slots) if exact else None
    decoder = Decoder(model, tokenizer, trie, answer_token_limit(task, tokenizer), correction.head)
    asked = [row._replace(completion_ids=[]) for row in split.encoded]
    decoded = decoder.decode(asked, batch_rows=recipe.evaluate.batch_rows)
    texts = [tokenizer.decode(one.ids) for one in decoded]
    target_NK = targets_matrix(split.rows, task)
    metrics = score([task.parse(text) for text in texts], target_NK, task)
    if trie is None:
        return Answers([Reading(text) for text in texts], metrics)
    posteriors = [one.log_p_KV for one in decoded if one.log_p_KV is not None]
    metrics |= posterior_metrics(posteriors, target_NK, task, trie)
    readings = [correction.reading(text, one, task, trie) for text, one in zip(texts, decoded, strict=True)]
    if "calibrated" in readings[0].served:
        corrected_NK = [[task.round(one.served["calibrated"][key]) for key in task.keys] for one in readings]
        errors = error_metrics(np.array(corrected_NK, dtype=float), target_NK, task)
        metrics |= {renamed(name, "calibrated"): value for name, value in errors.items()}
    return Answers(readings, metrics)
