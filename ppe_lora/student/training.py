"""Train a student on a data set: from a recipe to a run folder with a selected epoch."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, PrinterCallback, set_seed

from ppe_lora.artifacts import (
    is_current,
    read_json,
    write_json,
    write_manifest,
)
from ppe_lora.console import console, progress, warn
from ppe_lora.corpus.rows import dataset_version, targets_matrix
from ppe_lora.errors import DataError, Interrupted, ModelError
from ppe_lora.evaluation.loss_course import advice, read_loss_course
from ppe_lora.evaluation.metrics import METRIC_VERSION, Matrix
from ppe_lora.evaluation.runs import check_training
from ppe_lora.evaluation.selection import held_back, select_epoch
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.load import decisive_values
from ppe_lora.student.base import resolve_base
from ppe_lora.student.callbacks import (
    Checkpoints,
    EpochEvaluation,
    TrainLog,
    best_epoch,
    epoch_metrics,
    is_exhausted,
    keep_best,
)
from ppe_lora.student.checkpoints import cut_history, newest_checkpoint, step_of
from ppe_lora.student.collate import Collator, PackedCollator, PaddedCollator, packs_exactly
from ppe_lora.student.divergence import Diverged
from ppe_lora.student.estimate import fitting_rows, free_bytes
from ppe_lora.student.evaluate import EncodedSplit
from ppe_lora.student.head import TEACHING_ROWS, TeachingHeads, fit_teaching_heads, layers_to_try, request_states
from ppe_lora.student.load import attach_lora, load_base, trainable_parameters
from ppe_lora.student.machine import bfloat16_supported, model_size
from ppe_lora.student.measured import peak_memory_bytes, rows_per_s
from ppe_lora.student.outputs import unembedding_of
from ppe_lora.student.preflight import Preflight, look_ahead
from ppe_lora.student.processes import processes
from ppe_lora.student.row_tokens import counted_tokens
from ppe_lora.student.run_start import base_of, made_files, note_state, prepare_folder
from ppe_lora.student.trainer import PpeTrainer, sft_config
from ppe_lora.student.trie import ScoreTrie
from ppe_lora.tasks.scores import ScoresTask


def train_inputs(recipe: Recipe, data_dir: Path) -> dict[str, Any]:
    """Everything that decides a training: the recipe but its export and tracking, and the data by content.

    Raises:
        DataError: The data set has not been built.
    """
    decisive = {name: section for name, section in decisive_values(recipe).items() if name not in ("name", "data")}
    return {
        "recipe": decisive,
        "dataset_version": dataset_version(data_dir),
        "metric_version": METRIC_VERSION,
    }


def is_trained(recipe: Recipe, data_dir: Path, run_dir: Path) -> bool:
    """Whether the run folder holds this training, complete and unchanged. Raises as `train_inputs` does."""
    return is_current(run_dir, train_inputs(recipe, data_dir))


def train(
    recipe: Recipe,
    data_dir: Path,
    run_dir: Path,
    *,
    resume: bool = False,
    fresh: bool = False,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Train, evaluate every epoch, and select: the run folder is complete when this returns.

    Args:
        recipe: The experiment.
        data_dir: Its data set.
        run_dir: The run folder; it is created.
        resume: Continue an unfinished run from its newest whole checkpoint (from the start if there is none yet).
        fresh: Delete an earlier run of that name first.
        on_start: Called once the run folder is there, also for a run that is already complete.

    Raises:
        PpeError: `preflight.look_ahead` finds that the run would fail; nothing has been written or deleted.
        RunError: The folder holds another run.
        FileError: Somebody has changed its files.
        ModelError: Somebody has changed the base model since the run began.
        Interrupted: A signal came; the state is saved and `resume` continues.
        SelectionError: No epoch passes the format gate.
    """
    state = processes()
    state.wait_for_everyone()  # the first process may still be making the data
    inputs = train_inputs(recipe, data_dir)
    if not fresh:
        check_training(run_dir)
    if is_current(run_dir, inputs) and not fresh:
        if state.is_main_process:
            console.print(f"{run_dir}: training is complete and unchanged")
        on_start()
        return
    started = time.monotonic()
    ready = look_ahead(recipe, data_dir, run_dir, fresh=fresh)
    if (found := dataset_version(data_dir)) != inputs["dataset_version"]:
        raise DataError(
            f"{data_dir}: expected version {inputs['dataset_version']}, as at the start; got {found}; try again"
        )
    if state.is_main_process:
        for warning in ready.warnings:
            warn(warning)
        prepare_folder(recipe, inputs, run_dir, resume=resume, fresh=fresh)
    state.wait_for_everyone()
    on_start()
    trained = _run(recipe, ready, run_dir)
    _select(recipe, inputs, run_dir, started, trained)
    state.wait_for_everyone()


def _select(recipe: Recipe, inputs: dict[str, Any], run_dir: Path, started: float, trained: dict[str, Any]) -> None:
    """Choose the epoch, keep its adapter, and write the manifest, with which the run is whole."""
    judged = epoch_metrics(run_dir), recipe.evaluate.gate, recipe.evaluate.read_out
    course = read_loss_course(run_dir / "train_log.csv")
    best = select_epoch(*judged, advice(course))
    state = processes()
    if state.is_main_process:
        keep_best(run_dir, best)
        write_manifest(
            run_dir,
            inputs,
            files=made_files(run_dir),
            name=recipe.name,
            selected_epoch=best,
            seconds_of_last_start=round(time.monotonic() - started, 1),
            processes=state.num_processes,
            device=str(state.device),
            threads=torch.get_num_threads(),
            **trained,
        )
        shutil.rmtree(run_dir / "state", ignore_errors=True)
        console.print(f"{run_dir}: epoch {best} selected, its adapter is in {run_dir / 'best'}")
        if told := held_back(*judged):
            warn(told)
        if course is not None and course.diverged and "diverged" not in trained:
            warn(f"the training loss was {course.story}: training has diverged; lower train.learning_rate")


def kept(run_dir: Path) -> str:
    """What a training that is stopped at once leaves, and how to go on."""
    checkpoint, _ = newest_checkpoint(run_dir / "state")
    what = f"everything up to step {step_of(checkpoint)} is kept" if checkpoint else "no step is saved yet"
    return f"{run_dir}: {what}, continue with `ppe-lora train RECIPE --resume`"


def _run(recipe: Recipe, ready: Preflight, run_dir: Path) -> dict[str, Any]:
    state = processes()
    base = resolve_base(recipe.student)
    noted = base_of(base, run_dir)
    rows_per_micro_step = _rows_per_micro_step(recipe, base, run_dir, ready.splits["train"])
    config = sft_config(recipe, run_dir, state.num_processes, rows_per_micro_step)
    tokenizer, trie = ready.tokenizer, ready.trie
    train_split, valid_split = ready.splits["train"], ready.splits["valid"]
    rows = train_split.batch_rows(trie)
    checkpoint = _checkpoint(run_dir)
    set_seed(recipe.seed)
    model = attach_lora(load_base(recipe.student, base, state.device), recipe.student.lora, recipe.seed)
    if state.is_main_process:
        _announce(recipe, model, train_split, valid_split)
    train_NK = targets_matrix(ready.rows["train"], recipe.task)
    packs = packs_exactly(model, train_split.encoded, tokenizer.pad_id)
    collate = _collator(recipe, trie, packs, tokenizer.pad_id)
    unembedding = unembedding_of(model)
    heads = _teaching_heads(model, train_split, recipe, run_dir / "state")  # before the model takes a checkpoint
    diverged: dict[str, str] = {}
    with Checkpoints(recipe.train.checkpoint_minutes) as checkpoints:
        evaluation = EpochEvaluation(
            recipe, run_dir, valid_split, train_NK, tokenizer, trie if packs else None, checkpoints
        )
        steps = -(-len(train_split.rows) // recipe.train.rows_per_step)
        done = step_of(checkpoint) if checkpoint else 0
        if checkpoint and done % steps == 0:
            evaluation.make_up(model, checkpoint, done // steps)
        if checkpoints.stopped_by is None and not is_exhausted(epoch_metrics(run_dir), recipe):
            trainer = _trainer(model, config, rows, collate, [evaluation, checkpoints], recipe, run_dir)
            trainer.trie, trainer.spread_K, trainer.unembedding = trie, _spread(train_NK, recipe.task), unembedding
            trainer.heads = heads
            diverged = _fit(trainer, checkpoint, recipe, run_dir, recipe.train.epochs * steps)
        if checkpoints.stopped_by is not None:
            raise Interrupted(
                f"{run_dir}: stopped by {checkpoints.stopped_by} after step {max(done, checkpoints.saved_step)}; "
                "everything is saved, continue with `ppe-lora train --resume`"
            )
    return {
        "train_rows": len(train_split.rows),
        "valid_rows": len(valid_split.rows),
        "train_rows_too_long": train_split.too_long,
        "valid_rows_too_long": valid_split.too_long,
        "train_rows_unusable": train_split.unusable,
        "valid_rows_unusable": valid_split.unusable,
        "trainable_parameters": trainable_parameters(model),
        "rows_per_micro_step": rows_per_micro_step,
        "rows_per_s": rows_per_s(run_dir, recipe.train.rows_per_step),
        "peak_memory_bytes": peak_memory_bytes(state.device),
        "tokenizer": tokenizer.fingerprint(),
        **diverged,
        "base": noted,
    }


def _fit(trainer: PpeTrainer, checkpoint: Path | None, recipe: Recipe, run_dir: Path, steps: int) -> dict[str, str]:
    """Train to the end, a signal, or where it diverges; what the manifest says of that (see `_ended_by`)."""
    done = step_of(checkpoint) if checkpoint else 0
    with progress("training", steps, done=done, visible=processes().is_main_process) as advance:
        trainer.add_callback(TrainLog(run_dir, advance))
        trainer.callback_handler.callbacks.insert(0, trainer.callback_handler.callbacks.pop())
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Diverged as error:
            return _ended_by(error, recipe, run_dir)
    return {}


def _ended_by(error: Diverged, recipe: Recipe, run_dir: Path) -> dict[str, str]:
    """What the manifest says of a training that ends where it diverged, with an epoch before it to select.

    Raises:
        Diverged: There is none.
    """
    best = best_epoch(epoch_metrics(run_dir), recipe.evaluate)
    if best is None:
        raise error
    if processes().is_main_process:
        warn(
            f"{error.fact}. Training has diverged and ends here. Epoch {best} is from before that: it is kept, and can "
            f"be evaluated and exported. For a longer training, {error.remedy}"
        )
    return {"diverged": error.fact}


def _teaching_heads(model: PeftModel, split: EncodedSplit, recipe: Recipe, folder: Path) -> TeachingHeads | None:
    """Heads fitted to the model before training, if the objective wants them; kept in `folder` for a resume."""
    if not recipe.train.objective.head:
        return None
    state = processes()
    if state.is_main_process and TeachingHeads.load(folder) is None:
        layers = layers_to_try(model)
        batch_rows = recipe.evaluate.batch_rows
        rows, encoded = split.rows[:TEACHING_ROWS], split.encoded[:TEACHING_ROWS]
        with progress("reading hidden states", len(rows)) as advance:
            states_NLD = request_states(model, encoded, layers, batch_rows=batch_rows, advance=advance)
        fit_teaching_heads(states_NLD, layers, targets_matrix(rows, recipe.task)).save(folder)
        note_state(folder)
    state.wait_for_everyone()
    return TeachingHeads.load(folder)


def _rows_per_micro_step(recipe: Recipe, base: Path, run_dir: Path, split: EncodedSplit) -> int:
    """The recipe's number, or what its `auto` was when the run began: with another one, a resumed run would differ by
    rounding. Where that does not divide the rows of a step, as there are more processes now, it is found anew."""
    if recipe.train.rows_per_micro_step != "auto":
        return recipe.train.rows_per_micro_step
    state, file = processes(), run_dir / "state" / "rows_per_micro_step.json"
    own = recipe.train.rows_per_step // state.num_processes
    if state.is_main_process and not (file.is_file() and own % read_json(file)["rows"] == 0):
        size = model_size(recipe.student.model_copy(update={"model": str(base)}))
        assert size is not None  # `base` holds the model's weights
        rows = fitting_rows(
            recipe,
            size,
            free_bytes(state.device),
            on_gpu=state.device.type == "cuda",
            bfloat16=bfloat16_supported(state.device),
            processes=state.num_processes,
            tokens=counted_tokens(recipe, split.encoded),
        )
        write_json(file, {"rows": rows})
        note_state(file.parent)
        console.print(f"train.rows_per_micro_step: auto is {rows} here")
    state.wait_for_everyone()
    return int(read_json(file)["rows"])


def _checkpoint(run_dir: Path) -> Path | None:
    state = processes()
    checkpoint, skipped = newest_checkpoint(run_dir / "state")
    if state.is_main_process:
        for word in skipped:
            warn(word)
        cut_history(run_dir, step_of(checkpoint) if checkpoint else 0)
        if checkpoint:
            console.print(f"resuming after step {step_of(checkpoint)}")
    state.wait_for_everyone()
    return checkpoint


def _trainer(
    model: PeftModel,
    config: Any,
    rows: Dataset,
    collate: Collator,
    callbacks: list[Any],
    recipe: Recipe,
    run_dir: Path,
) -> PpeTrainer:
    start = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    trainer = PpeTrainer(
        model=model,
        args=config,
        data_collator=collate,
        train_dataset=rows,
        processing_class=unused_tokenizer(),
        callbacks=callbacks,
    )
    # TRL rounds the adapters of a quantized base to bfloat16; updates of a few 1e-4 need float32, and the start is the
    # seed's own.
    for name, parameter in model.named_parameters():
        if name in start:
            parameter.data = start[name].to(parameter.device)
    trainer.processing_class = None
    trainer.remove_callback(PrinterCallback)
    trainer.state_dir = run_dir / "state"
    trainer.settings = recipe.train
    return trainer


def _collator(recipe: Recipe, trie: ScoreTrie, packs: bool, pad_id: int) -> Collator:
    numbers = recipe.train.objective.reads_numbers
    if not packs:
        if numbers or recipe.train.objective.head or recipe.evaluate.read_out != "greedy":
            raise ModelError(
                f"{recipe.student.model}: expected a model that computes packs of rows exactly, as train.objective and "
                "evaluate.read_out need; got one that does not. Set raft, crps, legal and head to 0 and read_out to "
                "greedy"
            )
        return PaddedCollator(pad_id)
    return PackedCollator(trie if numbers else None)


def _spread(train_NK: Matrix, task: ScoresTask) -> torch.Tensor:
    """Standard deviation of each key's training targets, (K,), at least a hundredth of the range."""
    return torch.tensor(train_NK.std(axis=0).clip(min=task.span / 100), dtype=torch.float32)


def unused_tokenizer() -> PreTrainedTokenizerFast:
    """TRL wants a tokenizer even for rows that are ids and a collator of their own; it is never asked anything."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"": 0}, unk_token="")))


def _announce(recipe: Recipe, model: PeftModel, train_split: EncodedSplit, valid_split: EncodedSplit) -> None:
    tokens = [len(row.prompt_ids) + len(row.completion_ids) for row in train_split.encoded]
    console.print(
        f"{recipe.student.model} on {model.device}: {trainable_parameters(model):,} trainable parameters "
        f"(rank {recipe.student.lora.rank}); {len(train_split.rows)} training rows of {sum(tokens) / len(tokens):.0f} "
        f"tokens on average (longest {max(tokens)}), {len(valid_split.rows)} validation rows"
    )
