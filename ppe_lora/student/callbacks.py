"""What happens around the steps of a training: a log, checkpoints by time and signal, an evaluation per epoch."""

import csv
import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ppe_lora.artifacts import check_files, files_below, hash_adapter, new_folder, read_json, write_manifest
from ppe_lora.console import Advance, console, warn
from ppe_lora.errors import SelectionError
from ppe_lora.evaluation.metrics import Matrix, ratio
from ppe_lora.evaluation.runs import epoch_folders
from ppe_lora.evaluation.selection import metric_of, select_epoch
from ppe_lora.interruption import signals_to, stop
from ppe_lora.recipe.schema import Evaluate, Recipe
from ppe_lora.student.checkpoints import step_of
from ppe_lora.student.divergence import Diverged, check_adapter, check_step
from ppe_lora.student.evaluate import EncodedSplit, Evaluation, evaluate_student, write_evaluation
from ppe_lora.student.processes import processes
from ppe_lora.student.tensors import NotFinite
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.student.trie import ScoreTrie

LOG_COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "seconds")


class TrainLog(TrainerCallback):
    """One line of `train_log.csv` per optimizer step, and the progress bar."""

    def __init__(self, run_dir: Path, advance: Advance) -> None:
        self.path = run_dir / "train_log.csv"
        self.advance = advance
        self._started = time.monotonic()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Append the step, on the first process only.

        Raises:
            RunError: The loss or the gradient is no number, on all processes; what is saved is from before that.
        """
        if "loss" not in logs:
            return
        check_step(self.path, state.global_step, logs["loss"], logs.get("grad_norm"))
        if not state.is_world_process_zero:
            return
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(LOG_COLUMNS)
            seconds = round(time.monotonic() - self._started, 3)
            shown = (logs["loss"], logs["learning_rate"], logs.get("grad_norm", ""))
            writer.writerow([state.global_step, round(state.epoch or 0.0, 6), *shown, seconds])
        self.advance(1, f"loss {logs['loss']:.3f}")


class EvaluationStopped(BaseException):
    """A signal came while an epoch was evaluated."""


class Checkpoints(TrainerCallback):
    """Saves by time, at the end of each epoch, and when the process is asked to stop (SIGTERM, Ctrl-C).

    All processes agree at every step, since a signal may reach only one of them and clocks differ.
    """

    def __init__(self, minutes: float) -> None:
        self.interval_s = minutes * 60
        self.stopped_by: str | None = None
        self.stopping = False
        """Whether all processes have agreed to stop in the middle of an epoch."""
        self._saved_at = time.monotonic()
        self.saved_step = -1
        """The step of the newest checkpoint of this start."""
        self._evaluating = False
        self._signals = ExitStack()

    def __enter__(self) -> "Checkpoints":
        self._signals.enter_context(signals_to(self._on_signal))
        return self

    def __exit__(self, *exc: object) -> None:
        self._signals.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is not None:  # asked twice: stop at once
            stop(number, frame)
        self.stopped_by = signal.Signals(number).name
        if self._evaluating and self._is_alone:
            console.print(f"{self.stopped_by}: saving a checkpoint; once more stops at once")
            raise EvaluationStopped
        now = "after the epoch is evaluated" if self._evaluating else "after this step"
        console.print(f"{self.stopped_by}: saving a checkpoint {now}; once more stops at once")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """While an epoch is evaluated. A single process leaves that at a signal, and a resumed run makes up for it;
        several finish it together, as each waits for the answers of the others.

        Raises:
            EvaluationStopped: A signal came, now or at the epoch's last step.
        """
        if self.stopped_by is not None and self._is_alone:
            raise EvaluationStopped
        self._evaluating = True
        try:
            yield
        finally:
            self._evaluating = False

    @property
    def _is_alone(self) -> bool:
        return processes().num_processes == 1

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint when one is due or a signal has come. Not at an epoch's last step: a run that
        resumed there would neither evaluate the epoch nor stop where it should; `on_epoch_end` saves it."""
        if state.global_step % (state.max_steps // state.num_train_epochs) == 0:
            return control
        due = time.monotonic() - self._saved_at >= self.interval_s
        stopped, due = _agree(self.stopped_by is not None), _agree(due)
        if stopped:
            self.stopping = True
            self._stop(control)
        control.should_save = control.should_save or stopped or due
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint after the epoch's evaluation (this callback comes after it), and stop if one came."""
        if _agree(self.stopped_by is not None):
            self._stop(control)
        control.should_save = state.global_step != self.saved_step
        return control

    def _stop(self, control: TrainerControl) -> None:
        self.stopped_by = self.stopped_by or "SIGTERM"
        control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock anew."""
        self._saved_at = time.monotonic()
        self.saved_step = state.global_step


class EpochEvaluation(TrainerCallback):
    """Decodes the validation set at the end of every epoch and keeps the best epoch's adapter in `best/`.

    Everything it decides from is on disk, in `epochs/NNN/`, so a resumed run decides the same.
    """

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        valid: EncodedSplit,
        train_NK: Matrix,
        tokenizer: StudentTokenizer,
        trie: ScoreTrie | None,
        checkpoints: Checkpoints,
    ) -> None:
        self.recipe = recipe
        self.run_dir = run_dir
        self.valid = valid
        self.train_NK = train_NK
        self.tokenizer = tokenizer
        self.trie = trie
        self.checkpoints = checkpoints

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> TrainerControl:
        """Evaluate, write the epoch's folder, choose the best epoch, and stop early if the recipe says so.

        The trainer also ends an epoch here when it stops in the middle of one; that is no epoch to evaluate.
        """
        if self.checkpoints.stopping:
            return control
        with suppress(EvaluationStopped):  # the checkpoint of the epoch's end is saved, and the run stops
            self._evaluate(state, model)
            if is_exhausted(epoch_metrics(self.run_dir), self.recipe):
                control.should_training_stop = True
        return control

    def make_up(self, model: PeftModel, checkpoint: Path, epoch: int) -> None:
        """Evaluate the epoch at whose end a checkpoint was saved, if a signal kept it from that: the model takes the
        checkpoint's adapter."""
        if (self.run_dir / "epochs" / f"{epoch:03d}" / "eval_metrics.json").is_file():
            return
        set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"))
        first = processes().is_main_process
        with suppress(EvaluationStopped):
            state = TrainerState(epoch=epoch, global_step=step_of(checkpoint), is_world_process_zero=first)
            self._evaluate(state, model)

    def _evaluate(self, state: TrainerState, model: Any) -> None:
        epoch = round(state.epoch or 0)
        folder = self.run_dir / "epochs" / f"{epoch:03d}"
        if (folder / "eval_metrics.json").is_file():
            return
        student: PeftModel = getattr(model, "module", model)
        settings, task = self.recipe.evaluate, self.recipe.task
        check_adapter(student, self.run_dir, state.global_step)
        try:
            with self.checkpoints.evaluating():
                result = evaluate_student(student, self.valid, self.train_NK, task, self.tokenizer, settings, self.trie)
        except NotFinite as error:
            raise Diverged(f"{self.run_dir}: epoch {epoch}: {error}") from error
        if state.is_world_process_zero:
            times = {"epoch": float(epoch), "step": float(state.global_step)}
            train_loss = {"train_loss": _mean_train_loss(self.run_dir, epoch)}
            result = result._replace(metrics=times | train_loss | result.metrics)
            with new_folder(folder) as made:
                student.save_pretrained(str(made / "adapter"))
                write_evaluation(made, result)
                write_manifest(made, {"epoch": epoch}, files=files_below(made))
            history = epoch_metrics(self.run_dir)
            best = best_epoch(history, settings)
            keep_best(self.run_dir, best)
            self._report(epoch, result, history, best)
        processes().wait_for_everyone()

    def _report(self, epoch: int, result: Evaluation, history: dict[int, dict[str, float]], best: int | None) -> None:
        metrics = result.metrics
        trivial = metrics["train_mean_mse_norm"]
        read_outs = (("greedy", "mse_norm"), ("posterior mean", metric_of("posterior_mean")))
        shown = ", ".join(
            f"{words} {metrics[name]:.4f}{_times(metrics[name], trivial)}"
            for words, name in read_outs
            if name in metrics
        )
        mark = "  <- best so far" if best == epoch else ""
        console.print(
            f"epoch {epoch}: train/loss {metrics['train_loss']:.3f}  valid/loss {metrics['valid_loss']:.3f}  "
            f"mse_norm {shown or 'of no accepted answer'} against the train mean's {trivial:.4f}  "
            f"json {metrics['json_valid_rate']:.3f}  schema {metrics['schema_valid_rate']:.3f}{mark}"
        )
        for warning in [*result.warnings, *_divergence(history, epoch)]:
            warn(f"epoch {epoch}: {warning}")


def _times(error: float, trivial: float) -> str:
    times = ratio(error, trivial)
    return "" if times is None else f" ({times:.2f}x)"


def epoch_metrics(run_dir: Path) -> dict[int, dict[str, float]]:
    """Metrics of every evaluated epoch of a run.

    Raises:
        FileError: Somebody has changed an epoch's files, by which the best one is chosen.
    """
    for folder in epoch_folders(run_dir):
        check_files(folder, "put them back, or train again with --fresh")
    return {int(folder.name): read_json(folder / "eval_metrics.json") for folder in epoch_folders(run_dir)}


def best_epoch(history: dict[int, dict[str, float]], settings: Evaluate) -> int | None:
    """The epoch that would be served now, or None while none passes the format gate."""
    try:
        return select_epoch(history, settings.gate, settings.read_out)
    except SelectionError:
        return None


def is_exhausted(history: dict[int, dict[str, float]], recipe: Recipe) -> bool:
    """Whether the recipe's patience has run out: so many epochs since the best one."""
    best = best_epoch(history, recipe.evaluate)
    patience = recipe.train.patience
    return patience is not None and best is not None and max(history) - best >= patience


def keep_best(run_dir: Path, epoch: int | None) -> None:
    """Make `best/` a copy of that epoch's adapter and metrics, replaced in one step; nothing passing leaves none."""
    best = run_dir / "best"
    if epoch is None:
        shutil.rmtree(best, ignore_errors=True)
        return
    folder = run_dir / "epochs" / f"{epoch:03d}"
    metrics = (folder / "eval_metrics.json").read_bytes()
    kept = (best / "eval_metrics.json").is_file() and (best / "eval_metrics.json").read_bytes() == metrics
    if kept and hash_adapter(best) == hash_adapter(folder / "adapter"):
        return
    with new_folder(best) as made:
        shutil.copytree(folder / "adapter", made, dirs_exist_ok=True)
        (made / "eval_metrics.json").write_bytes(metrics)


def _mean_train_loss(run_dir: Path, epoch: int) -> float:
    """Mean of the logged step losses of one epoch, read from the log so that a resumed run gets the same; NaN where
    somebody has cut the log, which is no reason to lose the epoch."""
    with (run_dir / "train_log.csv").open(newline="", encoding="utf-8") as file:
        losses = [float(line["loss"]) for line in csv.DictReader(file) if epoch - 1 < float(line["epoch"]) <= epoch]
    return sum(losses) / len(losses) if losses else math.nan


def _divergence(history: dict[int, dict[str, float]], epoch: int) -> list[str]:
    """A warning when the token loss fell since the epoch before while the decoded error rose."""
    before, now = history.get(epoch - 1), history[epoch]
    if before is None or "mse_norm" not in before or "mse_norm" not in now:
        return []
    if now["valid_loss"] < before["valid_loss"] and now["mse_norm"] > before["mse_norm"]:
        return [
            f"valid/loss fell ({before['valid_loss']:.3f} to {now['valid_loss']:.3f}) while mse_norm rose "
            f"({before['mse_norm']:.4f} to {now['mse_norm']:.4f}): token loss is not the goal"
        ]
    return []


def _agree(flag: bool) -> bool:
    """Whether any process says so."""
    if processes().num_processes == 1:
        return flag
    shared = torch.tensor(float(flag), device=processes().device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return bool(shared.item())
