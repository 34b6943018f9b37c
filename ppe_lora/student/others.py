"""A run's test rows decoded by something else than the run: its base model alone, another adapter, plain SFT."""

from pathlib import Path

from ppe_lora.artifacts import hash_adapter, hash_file, is_current, read_json, write_manifest
from ppe_lora.corpus.rows import read_rows, split_path, targets_matrix
from ppe_lora.errors import RunError
from ppe_lora.evaluation.correct import corrected
from ppe_lora.evaluation.metrics import METRIC_VERSION
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import Objective
from ppe_lora.student.evaluate import EVALUATION_FILES, evaluate_student, write_evaluation
from ppe_lora.student.processes import processes
from ppe_lora.student.ready import make_ready
from ppe_lora.student.test_rows import evaluate_test_rows
from ppe_lora.student.training import train


def evaluate_other(recipe: Recipe, data_dir: Path, run_dir: Path, adapter: Path | None, folder: Path) -> None:
    """Decode and score a run's test rows, as the run's own evaluation did, or find that up to date.

    Args:
        recipe: The run's recipe.
        data_dir: Its data set.
        run_dir: The run, whose test rows have been decoded.
        adapter: Another adapter of the same base model; None is the base model as it is, told by the instruction only.
        folder: Where the evaluation goes.

    Raises:
        RunError: The data set's test rows are no longer those that the run was evaluated on.
        DataError: The test rows are missing or broken.
        ModelError: The adapter does not fit the base model.
    """
    test_path = split_path(data_dir, "test")
    train_rows, rows = (read_rows(split_path(data_dir, split), recipe.task) for split in ("train", "test"))
    inputs = {
        "adapter": hash_adapter(adapter) if adapter else None,
        "student": recipe.student.model_dump(mode="json"),
        "slots": recipe.train.objective.slots,
        "test_rows": hash_file(test_path),
        "evaluate": recipe.evaluate.model_dump(mode="json"),
        "metric_version": METRIC_VERSION,
    }
    if read_json(run_dir / "test" / "manifest.json")["inputs"]["test_rows"] != inputs["test_rows"]:
        raise RunError(
            f"{test_path}: expected the rows that {run_dir} was evaluated on; got others; build that data set again, "
            "or evaluate the run again"
        )
    if is_current(folder, inputs):
        return
    state = processes()
    model, tokenizer, split, trie = make_ready(recipe, rows, run_dir, adapter)
    train_NK = targets_matrix(train_rows, recipe.task)
    result = evaluate_student(model, split, train_NK, recipe.task, tokenizer, recipe.evaluate, trie)
    if state.is_main_process:
        if trie is not None:  # nothing is fitted for it: its calibrated answers are its posterior means
            predictions, metrics = corrected(result.predictions, None, recipe.task)
            result = result._replace(predictions=predictions, metrics=result.metrics | metrics)
        write_evaluation(folder, result)
        write_manifest(folder, inputs, files=EVALUATION_FILES, rows=len(split.rows), device=str(state.device))
    state.wait_for_everyone()


def evaluate_base(recipe: Recipe, data_dir: Path, run_dir: Path) -> Path:
    """Decode a run's test rows with its base model as it is; the evaluation's folder, in the run. Raises as
    `evaluate_other` does."""
    folder = run_dir / "test_base"
    evaluate_other(recipe, data_dir, run_dir, None, folder)
    return folder


def train_plain_sft(recipe: Recipe, data_dir: Path, run_dir: Path) -> Path:
    """Train the run's recipe on text alone, select its best epoch by greedy text, and decode the test rows with that:
    what a trainer without numbers makes of the same rows, order and rate. The folder of that run, in the run; what is
    complete is not repeated, what was interrupted goes on.

    Raises:
        RunError: The folder holds another run, or cannot be written.
        Interrupted: A signal came; the state is saved.
    """
    plain = recipe.model_copy(
        update={
            "name": f"{recipe.name}_plain_sft",
            "train": recipe.train.model_copy(update={"objective": Objective()}),
            "evaluate": recipe.evaluate.model_copy(update={"read_out": "greedy", "gate": 0.0, "latency_rows": 0}),
        }
    )
    folder = run_dir / "plain_sft"
    train(plain, data_dir, folder, resume=True)
    evaluate_test_rows(plain, data_dir, folder)
    return folder
