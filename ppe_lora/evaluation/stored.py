"""Evaluations on test rows as they lie in run folders, and which of them may stand in one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppe_lora.artifacts import check_files, read_json, read_jsonl
from ppe_lora.corpus.rows import dataset_version
from ppe_lora.errors import RunError
from ppe_lora.evaluation.metrics import Matrix
from ppe_lora.evaluation.paired import Column
from ppe_lora.evaluation.runs import check_measured, check_training
from ppe_lora.evaluation.selection import selected_by
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.recipe.load import differing_keys, is_decisive
from ppe_lora.recipe.schema import ReadOut
from ppe_lora.tasks.scores import Reason, Rejected


class Stored(NamedTuple):
    """One evaluation on test rows."""

    name: str
    """How tables call it."""
    recipe: Recipe
    manifest: dict[str, Any]
    """The evaluation's manifest: its `inputs` name the test rows by hash, and the version of the metrics."""
    metrics: dict[str, float]
    predictions: dict[str, dict[str, Any]]
    """By row id, in the order of the file."""

    @property
    def read_out(self) -> ReadOut:
        """The read-out that is served."""
        return self.recipe.evaluate.read_out

    @property
    def selected_by(self) -> str:
        """Name of the validation metric that runs and epochs are selected by."""
        return selected_by(self.read_out)

    @property
    def read_outs(self) -> list[ReadOut]:
        """The read-outs that every row has."""
        names: tuple[ReadOut, ...] = ("posterior_mean", "posterior_median", "calibrated")
        return ["greedy", *(name for name in names if all(name in row for row in self.predictions.values()))]

    def answers(self, ids: Sequence[str], read_out: ReadOut) -> Matrix:
        """Answers to some rows, N by K in task units; rows of NaN are rejected answers."""
        keys = self.recipe.task.keys
        field = "parsed" if read_out == "greedy" else read_out
        found = [self.predictions[row][field] or dict.fromkeys(keys, np.nan) for row in ids]
        return np.array([[answer[key] for key in keys] for answer in found], dtype=float)

    def formats(self, ids: Sequence[str]) -> dict[str, Column]:
        """Per row, 1 if the greedy text is JSON (`json_valid_rate`) and if it is an answer (`schema_valid_rate`)."""
        reasons = [self.predictions[row]["rejected"] for row in ids]
        json_valid = [not reason or Rejected(Reason(reason), "", "").is_json for reason in reasons]
        return {
            "json_valid_rate": np.array(json_valid, dtype=float),
            "schema_valid_rate": np.array([not reason for reason in reasons], dtype=float),
        }

    def targets(self, ids: Sequence[str]) -> Matrix:
        """Targets of some rows, N by K in task units."""
        keys = self.recipe.task.keys
        return np.array([[self.predictions[row]["target"][key] for key in keys] for row in ids], dtype=float)


def check_finished(run_dir: Path) -> None:
    """Raise unless a run is trained and its test rows are decoded by that training.

    Raises:
        RunError: There is no run, it is unfinished (and what is missing), or its test rows were decoded by an earlier
            training.
        FileError: Somebody has changed its files.
    """
    training, test = run_dir / "manifest.json", run_dir / "test"
    if not (run_dir / "config.yaml").is_file():
        raise RunError(f"{run_dir}: expected a run folder, with config.yaml; got none; run `ppe-lora run RECIPE`")
    if not training.is_file():
        raise RunError(f"{run_dir}: unfinished run: the training has not ended; `ppe-lora train RECIPE --resume`")
    if not (test / "manifest.json").is_file():
        raise RunError(f"{run_dir}: unfinished run: the test rows are not decoded yet; `ppe-lora evaluate RECIPE`")
    check_training(run_dir)
    check_measured(run_dir)


def read_run(run_dir: Path) -> Stored:
    """The test evaluation of a finished run.

    Raises:
        RunError: It is not finished (see `check_finished`), or its predictions are broken.
    """
    check_finished(run_dir)
    return read_evaluation(run_dir / "test", run_dir.name, load_recipe(run_dir / "config.yaml"))


def read_evaluation(folder: Path, name: str, recipe: Recipe) -> Stored:
    """An evaluation that is whole.

    Raises:
        RunError: Its predictions are broken.
        FileError: Somebody has changed its files.
    """
    check_files(folder, "evaluate again")
    path = folder / "eval_predictions.jsonl"
    try:
        predictions = {row["id"]: row for row in read_jsonl(path)}
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path}: expected the predictions of an evaluation; got: {error}; evaluate again") from None
    metrics = read_json(folder / "eval_metrics.json")
    return Stored(name, recipe, read_json(folder / "manifest.json"), metrics, predictions)


def check_recipe(recipe: Recipe, run_dir: Path, remedy: str, but: tuple[str, ...] = ()) -> None:
    """Raise unless a run was made by this recipe; its name, its export and its tracking decide nothing.

    Args:
        recipe: The experiment as it is asked for now.
        run_dir: The run, with `config.yaml`.
        remedy: What to do about a difference.
        but: Beginnings of further keys that decide nothing here.

    Raises:
        RunError: It was not; all differing keys are named.
    """
    differing = differing_keys(recipe, load_recipe(run_dir / "config.yaml"))
    changed = [key for key in differing if is_decisive(key) and key != "name" and not key.startswith(but)]
    if changed:
        raise RunError(f"{run_dir}: holds a run that differs from the recipe in {', '.join(changed)}. {remedy}")


def check_made_from(recipe: Recipe, data_dir: Path, run_dir: Path) -> None:
    """Raise unless a training is finished and was made by this recipe, from this data set. Read-outs and
    other settings of the evaluation may be new; how data are made is compared by what came of it, their version.

    Raises:
        RunError: It is not finished or of another recipe, or the data set has been built anew since.
        FileError: Somebody has changed the training's files.
        DataError: The data set has not been built, or somebody has changed its rows.
    """
    if not (run_dir / "config.yaml").is_file():
        raise RunError(f"{run_dir}: no training here yet; run `ppe-lora run RECIPE`")
    if not (run_dir / "manifest.json").is_file():
        raise RunError(f"{run_dir}: the training is not finished; run `ppe-lora train RECIPE --resume`")
    check_training(run_dir)
    another = "under another name (name=...)"
    check_recipe(recipe, run_dir, f"Leave these keys as they were, or run the recipe {another}", ("evaluate.", "data."))
    trained, found = read_json(run_dir / "manifest.json")["inputs"]["dataset_version"], dataset_version(data_dir)
    if trained != found:
        raise RunError(
            f"{data_dir}: expected the data set that {run_dir} was trained on (version {trained}); got {found}; build "
            f"that one again, or run the recipe {another}"
        )


def check_comparable(sides: Sequence[Stored]) -> None:
    """Raise unless all sides were measured on the same test rows, for the same task, by the same metrics.

    Raises:
        RunError: They were not; all differences are named.
    """
    first = sides[0]
    problems: list[str] = []
    for side in sides[1:]:
        for what, remedy, one, other in (
            ("test rows", "only errors on the same rows can be compared",
             first.manifest["inputs"]["test_rows"], side.manifest["inputs"]["test_rows"]),
            ("metric version", "evaluate the older one again: `ppe-lora evaluate RECIPE`",
             first.manifest["inputs"]["metric_version"], side.manifest["inputs"]["metric_version"]),
            ("task", "errors on different scores or ranges cannot be compared", _task(first), _task(side)),
        ):  # fmt: skip
            if one != other:
                problems.append(f"{side.name}: expected the {what} of {first.name} ({one}); got {other}; {remedy}")
    if problems:
        raise RunError("\n".join(problems))


def common_ids(sides: Sequence[Stored]) -> list[str]:
    """Ids of the rows that all sides decoded; a row too long for one of the students is left out for all.

    Raises:
        RunError: There are none.
    """
    found = [row for row in sides[0].predictions if all(row in side.predictions for side in sides[1:])]
    if not found:
        raise RunError(f"{', '.join(side.name for side in sides)}: expected rows that all of them decoded; got none")
    return found


def _task(side: Stored) -> str:
    task = side.recipe.task
    return f"{', '.join(task.keys)} from {task.low:g} to {task.high:g} with {task.decimals} decimals"
