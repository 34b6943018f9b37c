"""A run folder as the stages leave it, written by hand, for tests of trackers: no model and no training."""

import csv
import json
from pathlib import Path

from ppe_lora.artifacts import write_json, write_manifest, write_text
from ppe_lora.corpus.rows import SPLITS, Row, row_id, split_path, targets_matrix, write_rows
from ppe_lora.evaluation.metrics import error_metrics, latency_metrics, renamed, score
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.recipe.load import dump_recipe

STEPS_PER_EPOCH = 4
ROWS = {"train": 8, "valid": 3, "test": 4}
RECIPE = """\
task: {keys: [a, b], instruction: {en: 'Score {keys}.'}}
data: {name: d}
student: {model: tiny, lora: {rank: 4}}
train: {epochs: 2, rows_per_step: 2, rows_per_micro_step: 2}
"""


class WrittenRun:
    """Writes a run folder piece by piece, as training, evaluation and export do."""

    def __init__(self, folder: Path, track: str = "{}") -> None:
        path = folder / "run.yaml"
        path.write_text(f"{RECIPE}track: {track}\n", encoding="utf-8")
        self.recipe: Recipe = load_recipe(path)
        self.data, self.run = folder / "data" / "d", folder / "checkpoints" / "run"
        self.rows: dict[str, list[Row]] = {split: _rows(split) for split in SPLITS}
        for split in SPLITS:
            write_rows(split_path(self.data, split), self.rows[split])
        write_manifest(self.data, {}, dataset_version="version-1", rows=ROWS)
        write_text(self.run / "config.yaml", dump_recipe(self.recipe))
        write_json(self.run / "state" / "inputs.json", {"dataset_version": "version-1"})

    def train(self, first: int, last: int) -> None:
        """Log the steps `first` to `last`."""
        log = self.run / "train_log.csv"
        new = not log.exists()
        with log.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "epoch", "loss", "learning_rate", "grad_norm", "seconds"])
            writer.writerows(
                [step, step / STEPS_PER_EPOCH, 2.0 / step, 1e-3, 0.5, step * 0.1] for step in range(first, last + 1)
            )

    def evaluate_epoch(self, epoch: int) -> None:
        """What the end of an epoch leaves."""
        folder = self.run / "epochs" / f"{epoch:03d}"
        times = {"epoch": float(epoch), "step": float(epoch * STEPS_PER_EPOCH), "train_loss": 1.0 / epoch}
        self._evaluate(folder, "valid", times)

    def finish_training(self) -> None:
        """The selected adapter, and the manifest."""
        write_json(self.run / "best" / "adapter_config.json", {"r": 4})
        (self.run / "best" / "adapter_model.safetensors").write_bytes(b"weights")
        write_manifest(self.run, {"dataset_version": "version-1"}, selected_epoch=2)

    def evaluate_test(self) -> None:
        """What the evaluate stage leaves."""
        self._evaluate(self.run / "test", "test", {})
        write_text(self.run / "worst_cases.csv", "id,request\n")
        write_manifest(self.run / "test", {})

    def export(self) -> None:
        """What the export stage leaves."""
        write_text(self.run / "merged" / "model.safetensors", "merged weights")
        write_manifest(self.run / "merged", {})

    def all_of_it(self) -> "WrittenRun":
        """A finished run."""
        self.train(1, 4)
        self.evaluate_epoch(1)
        self.train(5, 8)
        self.evaluate_epoch(2)
        self.finish_training()
        self.evaluate_test()
        self.export()
        return self

    def _evaluate(self, folder: Path, split: str, more: dict[str, float]) -> None:
        task, rows = self.recipe.task, self.rows[split]
        texts = [f'{{"a":{row.target["a"] + 10},"b":{row.target["b"]}}}' for row in rows]
        texts[-1] = "no answer"
        outcomes = [task.parse(text) for text in texts]
        target_NK = targets_matrix(rows, task)
        mean_NK = target_NK + 2.0
        means = {
            renamed(name, "posterior_mean"): value for name, value in error_metrics(mean_NK, target_NK, task).items()
        }
        metrics = score(outcomes, target_NK, task) | means | latency_metrics([10.0, 20.0])
        metrics |= {"valid_loss": 0.7, "train_mean_mse_norm": 0.09, **more}
        predictions = [
            {
                "id": row.id,
                "request": row.request,
                "language": row.language,
                "target": row.target,
                "text": text,
                "parsed": None if text == "no answer" else json.loads(text),
                "rejected": "not JSON" if text == "no answer" else None,
                "mse_norm": None if text == "no answer" else 0.005,
                "posterior_mean": {key: value + 2 for key, value in row.target.items()},
                "posterior_sd": dict.fromkeys(row.target, 3.0),
                "low": row.target,
                "high": {key: value + 4 for key, value in row.target.items()},
            }
            for row, text in zip(rows, texts, strict=True)
        ]
        if split == "test":  # as `corrected` leaves them
            for prediction in predictions:
                prediction["calibrated"] = {key: value + 1 for key, value in prediction["target"].items()}
        predictions[0]["latency_ms"] = 10.5
        lines = "".join(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions)
        write_text(folder / "eval_predictions.jsonl", lines)
        write_json(folder / "eval_metrics.json", metrics)


def _rows(split: str) -> list[Row]:
    rows = []
    for number in range(ROWS[split]):
        request, target = f"{split} 夕方に合う曲 {number}", {"a": 10 * number, "b": 90 - 10 * number}
        scenario = ("rainy",) if number % 2 else ("high_b",)
        identity = row_id(request, target, "en", None)
        rows.append(Row(id=identity, request=request, target=target, language="en", scenario=scenario))
    return rows
