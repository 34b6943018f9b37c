"""After training: fit the head on training rows, and the correction on validation rows."""

from functools import partial
from pathlib import Path

from ppe_lora.artifacts import read_json, read_jsonl, write_json
from ppe_lora.console import progress
from ppe_lora.corpus.rows import targets_matrix
from ppe_lora.evaluation.calibration import LEAST_ROWS, WITHOUT_HEAD, fit_calibration
from ppe_lora.evaluation.correct import by_key, posterior_means
from ppe_lora.recipe import Recipe
from ppe_lora.student.evaluate import EncodedSplit
from ppe_lora.student.head import FILE, HEAD_ROWS, fit_head, layers_to_try, request_states, rows_to_fit
from ppe_lora.student.load import StudentModel

CALIBRATION_FILE = "calibration.json"


def fit_correction(
    model: StudentModel, recipe: Recipe, run_dir: Path, train: EncodedSplit, valid: EncodedSplit
) -> None:
    """Write `calibration.json` of a finished training, and `head.npz` if the correction uses the head. For engines that
    do not read it there is a second correction in the file then, of the posterior means alone.

    With fewer than 20 validation rows, or where those have no distributions, there is neither: answers stay as they
    are.

    Args:
        model: With the selected adapter.
        recipe: The experiment.
        run_dir: Its run folder, with the selected epoch's predictions.
        train: Rows that the head is fitted on.
        valid: Rows that the correction is fitted on.
    """
    for stale in (run_dir / FILE, run_dir / CALIBRATION_FILE):
        stale.unlink(missing_ok=True)
    task = recipe.task
    epoch = read_json(run_dir / "manifest.json")["selected_epoch"]
    predicted = {row["id"]: row for row in read_jsonl(run_dir / "epochs" / f"{epoch:03d}" / "eval_predictions.jsonl")}
    if len(valid.rows) < LEAST_ROWS:
        return
    own = [predicted[row.id] for row in valid.rows]
    if "posterior_mean" not in own[0]:
        return
    mean_NK, sd_NK = posterior_means(own, task), by_key(own, "posterior_sd", task)
    train_NK, target_NK = (targets_matrix(split.rows, task) for split in (train, valid))
    fit = partial(fit_calibration, mean_NK, sd_NK, target_NK, task, train_NK.mean(axis=0))
    head, head_NK = None, None
    if recipe.evaluate.head and len(train.rows) >= HEAD_ROWS:
        layers = layers_to_try(model)
        fitted = rows_to_fit(len(train.rows))
        with progress("reading hidden states", len(fitted) + len(valid.rows)) as advance:
            states = partial(request_states, model, batch_rows=recipe.evaluate.batch_rows, advance=advance)
            head = fit_head(states([train.encoded[row] for row in fitted], layers), layers, train_NK[fitted])
            head_NK = head.read(states(valid.encoded, head.layers), task.low, task.high)
    found = fit(head_NK)
    stored = found.as_json(task)
    if head is not None and found.uses_head:
        head.save(run_dir)
        stored[WITHOUT_HEAD] = fit().as_json(task)
    write_json(run_dir / CALIBRATION_FILE, stored)
