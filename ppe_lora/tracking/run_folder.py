"""What a run folder has to show: configuration, metrics by step, files. No tracker is imported here."""

import csv
import io
import json
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ppe_lora.artifacts import hash_json, read_json
from ppe_lora.corpus.rows import SPLITS, Row, read_rows, split_path
from ppe_lora.errors import DataError
from ppe_lora.evaluation.metrics import renamed
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import ImportSource, SplitName
from ppe_lora.recipe.teachers import ScriptedTeacher

_RENAMED = {"epoch": "epoch", "train_loss": "train/epoch_loss", "valid_loss": "valid/loss"}
"""Metrics of an epoch that are not `eval/<name>` in a tracker."""


_ERRORS = ("mse_norm", "mae_raw", "r2", "within_tolerance@5")


class Files(NamedTuple):
    """Files that a tracker keeps together, with where they came from."""

    name: str
    kind: str
    files: dict[str, Path]
    metadata: dict[str, Any]
    by_reference: bool = False
    """Whether only their place and hashes are sent, since they are too large to copy."""

    @property
    def stamp(self) -> str:
        """Changes whenever a file is written anew."""
        status = {name: path.stat() for name, path in self.files.items()}
        return hash_json([self.name, {name: [one.st_size, one.st_mtime_ns] for name, one in status.items()}])


class EvaluatedRows(NamedTuple):
    """One finished evaluation: the predictions of an epoch's validation rows, or of the test rows."""

    label: str
    """`epoch-NNN` or `test`."""
    split: SplitName
    model_id: str
    predictions: Path
    metrics: dict[str, float]


class RunFolder:
    """A run folder, complete or growing, together with its recipe and its data set.

    Everything is read from disk at every call: training, in another process, goes on writing.
    """

    def __init__(self, recipe: Recipe, data_dir: Path, run_dir: Path) -> None:
        """Remember the places.

        Raises:
            DataError: The data set is missing, or no longer the one the run was trained on.
        """
        self.recipe, self.data_dir, self.run_dir = recipe, data_dir, run_dir
        manifest = data_dir / "manifest.json"
        if not manifest.is_file():
            raise DataError(f"{data_dir}: no finished data set; make it with `ppe-lora data build RECIPE`")
        self.dataset_version: str = read_json(manifest)["dataset_version"]
        for path in (run_dir / "manifest.json", run_dir / "state" / "inputs.json"):
            if path.is_file():
                known = read_json(path)
                trained_on = known.get("inputs", known)["dataset_version"]
                if trained_on != self.dataset_version:
                    raise DataError(
                        f"{data_dir}: expected version {trained_on}, which {run_dir} was trained on; got version "
                        f"{self.dataset_version}. Build that data set again, with the run's config.yaml"
                    )
                break

    @property
    def run_id(self) -> str:
        """Names the run in every tracker, however often it is resumed; given when the run is first tracked."""
        return (self.run_dir / "tracking" / "run_id").read_text(encoding="utf-8").strip()

    @cached_property
    def rows(self) -> dict[SplitName, dict[str, Row]]:
        """The rows of every split by id."""
        task = self.recipe.task
        return {split: {row.id: row for row in read_rows(split_path(self.data_dir, split), task)} for split in SPLITS}

    @cached_property
    def config(self) -> dict[str, Any]:
        """What decides the run, under the names that comparisons group by, and the whole recipe."""
        recipe = self.recipe
        source = recipe.data.source
        if isinstance(source, ImportSource):
            teacher, strategy = "import", "import"
        else:
            scripted = isinstance(source.teacher, ScriptedTeacher)
            teacher = "scripted" if scripted else getattr(source.teacher, "model", "")
            mixed = source.sampler.model_dump(mode="json", include={"uniform", "clusters", "edges"})
            strategy = ", ".join(f"{name} {weight:g}" for name, weight in mixed.items())
        dumped = recipe.model_dump(mode="json")
        sizes = {f"{split}_size": len(self.rows[split]) for split in SPLITS}
        return {
            "teacher_model": teacher,
            "student_model": recipe.student.model,
            "dataset_version": self.dataset_version,
            "sampling_seed": recipe.seed,
            "read_out": recipe.evaluate.read_out,
            "sampling_strategy": strategy,
            "output_format_version": recipe.task.output_format_version,
            **sizes,
            "hyperparameters": {**dumped["train"], "lora": dumped["student"]["lora"]},
            "recipe": dumped,
        }

    def history(self) -> dict[int, dict[str, float]]:
        """Metrics by optimizer step, for the steps about which everything is known.

        The last step of an epoch waits for the epoch's evaluation, which belongs to it: so a step is never sent twice.
        """
        evaluated = {int(metrics["step"]): metrics for _, metrics in self._epochs()}
        history = {}
        for line in _whole_lines(self.run_dir / "train_log.csv"):
            step, epoch = int(line["step"]), float(line["epoch"])
            if epoch == int(epoch) and step not in evaluated:
                break
            named = {"epoch": epoch, "train/loss": float(line["loss"])}
            for name in ("learning_rate", "grad_norm"):
                if line[name]:
                    named[f"train/{name}"] = float(line[name])
            history[step] = named | _tracker_names(evaluated.get(step, {}))
        return history

    def summary(self) -> dict[str, float]:
        """What is known at the end: the selected epoch, and `test/<metric>` of its test rows; once more, as
        `test/served/<metric>`, the errors of the read-out that is served, by which runs are to be compared."""
        summary = {}
        if (self.run_dir / "manifest.json").is_file():
            summary["selected_epoch"] = read_json(self.run_dir / "manifest.json")["selected_epoch"]
        if (self.run_dir / "test" / "manifest.json").is_file():
            for name, value in read_json(self.run_dir / "test" / "eval_metrics.json").items():
                summary["test/loss" if name == "valid_loss" else f"test/{name}"] = value
            summary |= self._served(read_json(self.run_dir / "test" / "eval_metrics.json"))
        return summary

    def _served(self, metrics: dict[str, float]) -> dict[str, float]:
        read_out = self.recipe.evaluate.read_out
        names = {name: name if read_out == "greedy" else renamed(name, read_out) for name in _ERRORS}
        return {f"test/served/{name}": metrics[served] for name, served in names.items() if served in metrics}

    def data_files(self) -> Files:
        """The data set: what the run was made from."""
        paths = [split_path(self.data_dir, split) for split in SPLITS]
        metadata = {
            "dataset_version": self.dataset_version,
            "rows": {name: len(ids) for name, ids in self.rows.items()},
        }
        return Files(self.recipe.data.name, "dataset", {path.name: path for path in paths}, metadata)

    def made_files(self) -> list[Files]:
        """What the run has made so far: only outputs whose manifest says that they are whole."""
        run, name = self.run_dir, self.recipe.name
        found = []
        if (run / "manifest.json").is_file():
            epoch = read_json(run / "manifest.json")["selected_epoch"]
            paths = _below(run / "best")
            found.append(Files(f"{name}-adapter", "model", paths, {"epoch": epoch, **self._origin()}))
        if (run / "test" / "manifest.json").is_file():
            predictions = {"eval_predictions.jsonl": run / "test" / "eval_predictions.jsonl"}
            found.append(Files(f"{name}-eval_predictions", "predictions", predictions, {"split": "test"}))
            worst = {"worst_cases.csv": run / "worst_cases.csv"}
            found.append(Files(f"{name}-worst_cases", "predictions", worst, {"split": "test"}))
        if (run / "merged" / "manifest.json").is_file():
            found.append(Files(f"{name}-merged", "model", _below(run / "merged"), self._origin(), by_reference=True))
        return found

    def evaluations(self) -> list[EvaluatedRows]:
        """Every finished evaluation, oldest first."""
        name, run = self.recipe.name, self.run_dir
        found = [
            EvaluatedRows(f"epoch-{path.name}", "valid", f"{name}-epoch-{path.name}", _predictions(path), metrics)
            for path, metrics in self._epochs()
        ]
        if (run / "test" / "manifest.json").is_file():
            epoch = read_json(run / "manifest.json")["selected_epoch"]
            metrics = read_json(run / "test" / "eval_metrics.json")
            found.append(
                EvaluatedRows("test", "test", f"{name}-epoch-{epoch:03d}", _predictions(run / "test"), metrics)
            )
        return found

    def _epochs(self) -> list[tuple[Path, dict[str, float]]]:
        """Folder and metrics of every evaluated epoch; the metrics are the last file of such a folder."""
        found = sorted((self.run_dir / "epochs").glob("[0-9][0-9][0-9]/eval_metrics.json"))
        return [(path.parent, read_json(path)) for path in found]

    def _origin(self) -> dict[str, Any]:
        return {"dataset_version": self.dataset_version, "student_model": self.recipe.student.model}


def _tracker_names(metrics: dict[str, float]) -> dict[str, float]:
    return {_RENAMED.get(name, f"eval/{name}"): value for name, value in metrics.items() if name != "step"}


def _whole_lines(path: Path) -> list[dict[str, str]]:
    """The lines of a log that is being written: the last one counts once it has its line end."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))


def _below(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _predictions(folder: Path) -> Path:
    return folder / "eval_predictions.jsonl"


def read_predictions(evaluation: EvaluatedRows) -> list[dict[str, Any]]:
    """The predictions of an evaluation, one per row, as `write_evaluation` left them."""
    with evaluation.predictions.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
